//! The kernel's own generator (the module pktgen), through its files in /proc/net/pktgen.
//!
//! Documentation: <https://docs.kernel.org/networking/pktgen.html>. Its frames carry its own payload, so a sink can only count them.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::backend::{Backend, Sent};
use super::profile::{Choice, FCS_LEN, FIRST_PORT, Profile, Protocol, Size};
use super::template::Macs;

/// The thread of CPU 0, which sends.
const THREAD: &str = "kpktgend_0";

/// One device on one of pktgen's threads.
#[derive(Debug)]
pub struct KernelPktgen {
    dir: PathBuf,
    device: String,
    frame_len: u32,
    sent: Sent,
}

impl KernelPktgen {
    /// Gives the profile to the device. `dir` is /proc/net/pktgen.
    pub fn open(dir: &Path, interface: &str, profile: &Profile, macs: Macs, rate: Option<u64>) -> Result<KernelPktgen> {
        ensure!(
            dir.join("pgctrl").exists(),
            "--backend kernel: {} is not there: load the module (`modprobe pktgen`), where the kernel has it",
            dir.display()
        );
        let commands = commands(profile, macs, rate)?;
        let pktgen = KernelPktgen {
            dir: dir.to_owned(),
            device: interface.to_owned(),
            frame_len: profile.size_of(0) - FCS_LEN,
            sent: Sent::default(),
        };
        pktgen.tell(THREAD, "rem_device_all")?;
        pktgen.tell(THREAD, &format!("add_device {interface}"))?;
        for command in commands {
            pktgen.tell(interface, &command)?;
        }
        Ok(pktgen)
    }

    /// Writes one command. The thread's and the device's files then say `Result: OK`, or what was wrong.
    fn tell(&self, file: &str, command: &str) -> Result<()> {
        let path = self.dir.join(file);
        let write = || fs::OpenOptions::new().write(true).open(&path)?.write_all(format!("{command}\n").as_bytes());
        write().with_context(|| format!("`{command}` into {}", path.display()))
    }
}

/// What a device is told.
fn commands(profile: &Profile, macs: Macs, rate: Option<u64>) -> Result<Vec<String>> {
    ensure!(profile.protocol == Protocol::Udp, "--backend kernel: pktgen sends UDP only");
    ensure!(profile.targets.len() == 1, "--backend kernel: pktgen has one destination; give one --to");
    ensure!(profile.size != Size::Imix, "--backend kernel: one size only");
    ensure!(
        !matches!(profile.choice, Choice::Zipf(_)) && profile.new_flows.is_none(),
        "--backend kernel: flows are round-robin or uniform"
    );
    let mac = macs.dst.map(|b| format!("{b:02x}")).join(":");
    let (to, hosts) = (profile.targets[0], profile.sources.hosts());
    let (first, last) = (profile.sources.host(0), profile.sources.host(hosts.min(profile.flows.into()) - 1));
    let addresses = match to.ip() {
        IpAddr::V4(ip) => vec![format!("dst_min {ip}"), format!("dst_max {ip}"), format!("src_min {first}"), format!("src_max {last}")],
        // Of IPv6 sources pktgen takes a single one.
        IpAddr::V6(ip) => vec![format!("dst6 {ip}"), format!("src6 {first}")],
    };
    let ports = u64::from(profile.flows).div_ceil(hosts).clamp(1, u64::from(u16::MAX - FIRST_PORT));
    let mut out = vec![format!("pkt_size {}", profile.size_of(0) - FCS_LEN), "delay 0".into(), format!("dst_mac {mac}")];
    out.extend(addresses);
    out.extend([format!("udp_dst_min {}", to.port()), format!("udp_dst_max {}", to.port())]);
    // Ends of a range are exclusive for random ports, inclusive for ports in turn; one more does no harm.
    out.extend([format!("udp_src_min {FIRST_PORT}"), format!("udp_src_max {}", u64::from(FIRST_PORT) + ports)]);
    if profile.choice == Choice::Uniform {
        out.extend(["flag UDPSRC_RND".into(), "flag IPSRC_RND".into()]);
    }
    out.push("flag UDPCSUM".into());
    out.extend(rate.map(|pps| format!("ratep {pps}")));
    Ok(out)
}

/// The number behind `word` in a device's file.
fn number_after(text: &str, word: &str) -> Option<u64> {
    let rest = text.split_once(word)?.1.trim_start();
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

impl Backend for KernelPktgen {
    fn describe(&self) -> String {
        "the kernel's pktgen, one thread".into()
    }

    fn burst_max(&self) -> u32 {
        u32::MAX
    }

    fn send(&mut self, frames: u32, _until_ns: u64) -> Result<u32> {
        self.tell(&self.device, &format!("count {frames}"))?;
        // Returns when all have been sent.
        self.tell("pgctrl", "start")?;
        let path = self.dir.join(&self.device);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let result = text.split_once("Result:").with_context(|| format!("{} has no result", path.display()))?.1.trim();
        if !result.starts_with("OK") {
            bail!("pktgen on {}: {}", self.device, result.lines().next().unwrap_or("no reason"));
        }
        let sent = number_after(&text, "pkts-sofar:").with_context(|| format!("{} names no pkts-sofar", path.display()))?;
        self.sent.frames += sent;
        self.sent.bytes += sent * u64::from(self.frame_len);
        self.sent.blocked += number_after(&text, "errors:").unwrap_or(0);
        Ok(sent as u32)
    }

    fn sent(&self) -> Sent {
        self.sent
    }

    fn paces_itself(&self) -> bool {
        true
    }
}

impl Drop for KernelPktgen {
    fn drop(&mut self) {
        // Only tidies up: the thread forgets the device at the next start too.
        let _ = self.tell(THREAD, "rem_device_all");
    }
}

#[cfg(test)]
#[path = "kernel_tests.rs"]
mod tests;
