//! Replay of a capture file, pcap or pcapng. The whole file is read at once: a replay must not wait for a disk.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use pcap_parser::{Block, Linktype, PcapBlockOwned, PcapError, create_reader};

use super::stream::Source;
use super::template::Macs;

/// The largest capture file, in bytes.
pub const FILE_MAX: u64 = 1 << 30;
/// The largest frame, in bytes: the size of a buffer.
pub const REPLAY_FRAME_MAX: usize = 1514;
/// The shortest frame, in bytes: an Ethernet header.
const FRAME_LEAST: usize = 14;
/// Bytes of the reader's buffer: the limit of a block.
const BLOCK_MAX: usize = 1 << 18;

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Capture {
    bytes: Vec<u8>,
    frames: Vec<Range<usize>>,
    /// Skipped frames: longer than a buffer, truncated by the capture, or without an Ethernet header.
    pub skipped: u64,
}

impl Capture {
    pub fn open(path: &Path) -> Result<Capture> {
        let name = || format!("--pcap {}", path.display());
        let file = File::open(path).with_context(name)?;
        let len = file.metadata().with_context(name)?.len();
        ensure!(len <= FILE_MAX, "{}: {len} bytes; at most {FILE_MAX}", name());
        Capture::read(file).with_context(name)
    }

    pub fn read(from: impl Read + Send) -> Result<Capture> {
        let mut reader = match create_reader(BLOCK_MAX, from) {
            Ok(reader) => reader,
            Err(PcapError::ReadError) => bail!("cannot be read"),
            Err(_) => bail!("not a pcap or pcapng file"),
        };
        let mut capture = Capture::default();
        // Link types by interface number.
        let mut links = Vec::new();
        loop {
            let n = capture.frames.len() as u64 + capture.skipped + 1;
            let used = match reader.next() {
                Ok((used, block)) => {
                    match block {
                        PcapBlockOwned::LegacyHeader(header) => links = vec![header.network],
                        PcapBlockOwned::Legacy(frame) => capture.add(links.first(), frame.data, frame.origlen)?,
                        PcapBlockOwned::NG(Block::SectionHeader(_)) => links.clear(),
                        PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => links.push(interface.linktype),
                        PcapBlockOwned::NG(Block::EnhancedPacket(frame)) => {
                            let data = frame.data.get(..frame.caplen as usize).context("a frame is longer than its block")?;
                            capture.add(links.get(frame.if_id as usize), data, frame.origlen)?;
                        }
                        PcapBlockOwned::NG(Block::SimplePacket(frame)) => {
                            let data = frame.data.get(..frame.origlen as usize).unwrap_or(frame.data);
                            capture.add(links.first(), data, frame.origlen)?;
                        }
                        PcapBlockOwned::NG(_) => {}
                    }
                    used
                }
                Err(PcapError::Eof) => break,
                Err(PcapError::Incomplete(_)) => {
                    reader
                        .refill()
                        .map_err(|_| anyhow::anyhow!("frame {n} cannot be read, or its block is longer than {BLOCK_MAX} bytes"))?;
                    continue;
                }
                Err(_) => bail!("frame {n} is cut off or damaged"),
            };
            reader.consume(used);
        }
        let skipped = capture.skipped;
        ensure!(!capture.frames.is_empty(), "no frame of {FRAME_LEAST} to {REPLAY_FRAME_MAX} bytes in it ({skipped} others)");
        Ok(capture)
    }

    fn add(&mut self, link: Option<&Linktype>, frame: &[u8], original: u32) -> Result<()> {
        let link = link.context("a frame of an interface that the file does not describe")?;
        // The upper bits say whether frames have their FCS.
        let link = link.0 & 0x0fff_ffff;
        ensure!(link == Linktype::ETHERNET.0, "link type {link}; only Ethernet (1) can be replayed");
        if frame.len() == original as usize && (FRAME_LEAST..=REPLAY_FRAME_MAX).contains(&frame.len()) {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(frame);
            self.frames.push(start..self.bytes.len());
        } else {
            self.skipped += 1;
        }
        Ok(())
    }

    pub fn frames(&self) -> impl Iterator<Item = &[u8]> {
        self.frames.iter().map(|range| &self.bytes[range.clone()])
    }
}

/// Sends a capture's frames in a loop. Only the MAC addresses are changed.
#[derive(Clone, Debug)]
pub struct Replay {
    capture: Capture,
    macs: Macs,
    next: usize,
}

impl Replay {
    pub fn new(capture: Capture, macs: Macs) -> Replay {
        Replay { capture, macs, next: 0 }
    }
}

impl Source for Replay {
    fn next(&mut self, out: &mut [u8], _now_ns: u64) -> usize {
        let frame = self.capture.frames[self.next].clone();
        self.next = (self.next + 1) % self.capture.frames.len();
        let len = frame.len();
        out[..len].copy_from_slice(&self.capture.bytes[frame]);
        out[0..6].copy_from_slice(&self.macs.dst);
        out[6..12].copy_from_slice(&self.macs.src);
        len
    }

    fn frame_max(&self) -> usize {
        self.capture.frames.iter().map(Range::len).max().unwrap_or(0)
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
                let file = file(big, magic, 1, &[(60, 60), (100, 1500), (1514, 1514), (1515, 1515), (13, 13)]);
                let capture = Capture::read(&file[..]).unwrap();
                assert_eq!(capture.frames().map(<[u8]>::len).collect::<Vec<_>>(), [60, 1514]);
                assert!(capture.frames().nth(1).unwrap().iter().all(|b| *b == 3));
                assert_eq!(capture.skipped, 3);
            }
        }
    }

    /// A pcapng file: a section, an interface of this link type, and one frame of 60 bytes.
    fn file_ng(link: u16, interface: u32) -> Vec<u8> {
        let block = |kind: u32, body: &[u8]| {
            let len = (body.len() as u32 + 12).to_le_bytes();
            [&kind.to_le_bytes(), &len[..], body, &len].concat()
        };
        let section = [&0x1a2b_3c4du32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat();
        let description = [&link.to_le_bytes()[..], &[0, 0], &65_535u32.to_le_bytes()].concat();
        let frame = [&interface.to_le_bytes()[..], &[0; 8], &60u32.to_le_bytes(), &60u32.to_le_bytes(), &[5; 60]].concat();
        [block(0x0a0d_0d0a, &section), block(1, &description), block(6, &frame)].concat()
    }

    #[test]
    fn frames_of_pcapng() {
        let capture = Capture::read(&file_ng(1, 0)[..]).unwrap();
        assert_eq!(capture.frames().collect::<Vec<_>>(), [&[5; 60]]);
        let error = |file: Vec<u8>| Capture::read(&file[..]).unwrap_err().to_string();
        assert!(error(file_ng(113, 0)).contains("link type 113"));
        assert!(error(file_ng(1, 3)).contains("does not describe"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let good = file(false, 0xa1b2_c3d4, 1, &[(60, 60), (70, 70)]);
        for (bytes, words) in [
            (vec![], "not a pcap"),
            (b"hello, world: no capture at all".to_vec(), "not a pcap"),
            (good[..20].to_vec(), "not a pcap"),
            (good[..good.len() - 1].to_vec(), "frame 2 is cut off"),
            (good[..24 + 16 + 60 + 5].to_vec(), "frame 2 is cut off"),
            (file(false, 0xa1b2_c3d4, 113, &[(60, 60)]), "link type 113"),
            (file(false, 0xa1b2_c3d4, 1, &[(60, 61)]), "no frame of 14"),
        ] {
            let error = Capture::read(&bytes[..]).unwrap_err().to_string();
            assert!(error.contains(words), "{error} should say {words}");
        }
        assert!(Capture::open(Path::new("/no/such.pcap")).unwrap_err().to_string().contains("--pcap /no/such.pcap"));
    }

    #[test]
    fn a_replay_goes_round_with_its_own_macs() {
        let capture = Capture::read(&file(true, 0xa1b2_c3d4, 1, &[(60, 60), (70, 70)])[..]).unwrap();
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
            let _ = Capture::read(&bytes[..]);
            let mut changed = file(false, 0xa1b2_c3d4, 1, &[(60, 60), (70, 70)]);
            let at = at.index(changed.len());
            changed[at] = bytes.first().copied().unwrap_or(0xff);
            let _ = Capture::read(&changed[..]);
        }
    }
}
