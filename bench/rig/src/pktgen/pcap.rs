//! Replaying a capture file: classic pcap, microseconds or nanoseconds, either byte order.
//!
//! Format: <https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-04.html>. Read whole, with limits: a replay must not wait for a disk.

use anyhow::{Context, Result, bail, ensure};
use std::path::Path;

use super::stream::Source;
use super::template::Macs;

/// Bytes of a capture file at the most.
pub const FILE_MAX: u64 = 1 << 30;
/// Bytes of a frame at the most: what one buffer holds.
pub const REPLAY_FRAME_MAX: usize = 1514;
/// Bytes of the shortest frame: the Ethernet header.
const FRAME_LEAST: usize = 14;
const LINKTYPE_ETHERNET: u32 = 1;

/// The frames of a capture.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capture {
    bytes: Vec<u8>,
    /// Start and length of each frame.
    frames: Vec<(usize, usize)>,
    /// Frames that were left out: longer than a buffer, cut by the capture, or without an Ethernet header.
    pub skipped: u64,
}

impl Capture {
    /// Reads a file.
    pub fn open(path: &Path) -> Result<Capture> {
        let name = || format!("--pcap {}", path.display());
        let len = std::fs::metadata(path).with_context(name)?.len();
        ensure!(len <= FILE_MAX, "{}: {len} bytes; at most {FILE_MAX}", name());
        Capture::parse(std::fs::read(path).with_context(name)?).with_context(name)
    }

    /// Reads a file's contents.
    pub fn parse(bytes: Vec<u8>) -> Result<Capture> {
        let field = |at: usize| bytes.get(at..at + 4).and_then(|b| b.first_chunk::<4>().copied());
        let swapped = match field(0).map(u32::from_le_bytes) {
            Some(0xa1b2_c3d4 | 0xa1b2_3c4d) => false,
            Some(0xd4c3_b2a1 | 0x4d3c_b2a1) => true,
            Some(0x0a0d_0d0a) => bail!("this is pcapng: convert it (`editcap -F pcap`)"),
            _ => bail!("this is no pcap file"),
        };
        let number = |at: usize| field(at).map(if swapped { u32::from_be_bytes } else { u32::from_le_bytes });
        // The upper bits say whether frames have their FCS.
        let link = number(20).context("the file header is cut off")? & 0x0fff_ffff;
        ensure!(link == LINKTYPE_ETHERNET, "link type {link}; only Ethernet (1) can be replayed");
        let (mut frames, mut skipped, mut at) = (Vec::new(), 0, 24);
        while at < bytes.len() {
            let n = frames.len() as u64 + skipped + 1;
            let (Some(kept), Some(original)) = (number(at + 8), number(at + 12)) else { bail!("the header of frame {n} is cut off") };
            let (start, len) = (at + 16, kept as usize);
            ensure!(bytes.len() - start >= len, "frame {n} is cut off");
            if kept == original && (FRAME_LEAST..=REPLAY_FRAME_MAX).contains(&len) {
                frames.push((start, len));
            } else {
                skipped += 1;
            }
            at = start + len;
        }
        ensure!(!frames.is_empty(), "no frame of {FRAME_LEAST} to {REPLAY_FRAME_MAX} bytes in it ({skipped} others)");
        Ok(Capture { bytes, frames, skipped })
    }

    /// The frames in their order.
    pub fn frames(&self) -> impl Iterator<Item = &[u8]> {
        self.frames.iter().map(|(start, len)| &self.bytes[*start..start + len])
    }
}

/// Sends a capture's frames again and again, unchanged but for the MAC addresses.
#[derive(Clone, Debug)]
pub struct Replay {
    capture: Capture,
    macs: Macs,
    next: usize,
}

impl Replay {
    /// The frames of a capture, with these MAC addresses.
    pub fn new(capture: Capture, macs: Macs) -> Replay {
        Replay { capture, macs, next: 0 }
    }
}

impl Source for Replay {
    fn next(&mut self, out: &mut [u8], _now_ns: u64) -> usize {
        let (start, len) = self.capture.frames[self.next];
        self.next = (self.next + 1) % self.capture.frames.len();
        out[..len].copy_from_slice(&self.capture.bytes[start..start + len]);
        out[0..6].copy_from_slice(&self.macs.dst);
        out[6..12].copy_from_slice(&self.macs.src);
        len
    }

    fn frame_max(&self) -> usize {
        self.capture.frames.iter().map(|(_, len)| *len).max().unwrap_or(0)
    }

    fn flows_opened(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A capture of these frames: `(bytes kept, bytes there were)`.
    fn file(big: bool, magic: u32, link: u32, frames: &[(usize, u32)]) -> Vec<u8> {
        let word = |n: u32| if big { n.to_be_bytes() } else { n.to_le_bytes() };
        let mut out: Vec<u8> = [magic, 0x0004_0002, 0, 0, 65_535, link].into_iter().flat_map(word).collect();
        for (n, (kept, original)) in frames.iter().enumerate() {
            out.extend([1, 2, *kept as u32, *original].into_iter().flat_map(word));
            out.extend(std::iter::repeat_n(n as u8 + 1, *kept));
        }
        out
    }

    #[test]
    fn frames_of_all_four_kinds_of_file() {
        for big in [false, true] {
            for magic in [0xa1b2_c3d4, 0xa1b2_3c4d] {
                let capture = Capture::parse(file(big, magic, 1, &[(60, 60), (100, 1500), (1514, 1514), (1515, 1515), (13, 13)])).unwrap();
                assert_eq!(capture.frames().map(<[u8]>::len).collect::<Vec<_>>(), [60, 1514]);
                assert!(capture.frames().nth(1).unwrap().iter().all(|b| *b == 3));
                assert_eq!(capture.skipped, 3);
            }
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let good = file(false, 0xa1b2_c3d4, 1, &[(60, 60), (70, 70)]);
        for (bytes, words) in [
            (vec![], "no pcap file"),
            (vec![0x0a, 0x0d, 0x0d, 0x0a], "pcapng"),
            (good[..20].to_vec(), "file header is cut off"),
            (good[..good.len() - 1].to_vec(), "frame 2 is cut off"),
            (good[..24 + 16 + 60 + 5].to_vec(), "header of frame 2"),
            (file(false, 0xa1b2_c3d4, 113, &[(60, 60)]), "link type 113"),
            (file(false, 0xa1b2_c3d4, 1, &[(60, 61)]), "no frame of 14"),
        ] {
            let error = Capture::parse(bytes).unwrap_err().to_string();
            assert!(error.contains(words), "{error} should say {words}");
        }
        assert!(Capture::open(Path::new("/no/such.pcap")).unwrap_err().to_string().contains("--pcap /no/such.pcap"));
    }

    #[test]
    fn a_replay_goes_round_with_its_own_macs() {
        let capture = Capture::parse(file(true, 0xa1b2_c3d4, 1, &[(60, 60), (70, 70)])).unwrap();
        let mut replay = Replay::new(capture, Macs { src: [8; 6], dst: [9; 6] });
        assert_eq!(replay.frame_max(), 70);
        let mut out = [0; 70];
        for (len, fill) in [(60, 1), (70, 2), (60, 1)] {
            assert_eq!(replay.next(&mut out, 0), len);
            assert_eq!(out[..12], [[9; 6], [8; 6]].concat());
            assert!(out[12..len].iter().all(|b| *b == fill));
        }
    }

    proptest! {
        #[test]
        fn hostile_files_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index) {
            let _ = Capture::parse(bytes.clone());
            let mut changed = file(false, 0xa1b2_c3d4, 1, &[(60, 60), (70, 70)]);
            let at = at.index(changed.len());
            changed[at] = bytes.first().copied().unwrap_or(0xff);
            let _ = Capture::parse(changed);
        }
    }
}
