//! Sets of CPUs, written as the kernel writes them: `0-3,8`.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// The highest number of a CPU that is taken: no kernel is built for more (CONFIG_NR_CPUS is 8192 at the most).
const CPU_MAX: u32 = 8191;

/// CPUs by number.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CpuSet(pub BTreeSet<u32>);

impl FromStr for CpuSet {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<CpuSet> {
        let mut cpus = BTreeSet::new();
        for part in text.trim().split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |t: &str| t.parse::<u32>().with_context(|| format!("`{text}`: give CPUs such as 2,3 or 2-5"));
            let (first, last) = (number(first)?, number(last)?);
            ensure!(first <= last && last <= CPU_MAX, "`{text}`: {first}-{last} is no range of CPUs up to {CPU_MAX}");
            cpus.extend(first..=last);
        }
        Ok(CpuSet(cpus))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while rest.next_if_eq(&(last + 1)).is_some() {
                last += 1;
            }
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
            comma = ",";
        }
        if comma.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> CpuSet {
        CpuSet(cpus.into_iter().collect())
    }
}

impl CpuSet {
    /// No CPU at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that are in both.
    pub fn both(&self, other: &CpuSet) -> CpuSet {
        CpuSet(&self.0 & &other.0)
    }

    /// Those that the other has not.
    pub fn without(&self, other: &CpuSet) -> CpuSet {
        CpuSet(&self.0 - &other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_and_written_as_the_kernel_does() {
        for (text, written) in [("0", "0"), ("0-3,8", "0-3,8"), ("3,2,1\n", "1-3"), ("", "none"), ("4-5,7-7", "4-5,7")] {
            assert_eq!(text.parse::<CpuSet>().unwrap().to_string(), written, "{text}");
        }
        for bad in ["a", "3-1", "1-", "0-99999999", "-1", "(null)"] {
            assert!(bad.parse::<CpuSet>().is_err(), "{bad}");
        }
    }
}
