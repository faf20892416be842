//! Watched packets as pcapng (draft-ietf-opsawg-pcapng).

use std::borrow::Cow;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::Result;
use nomagic_api::taps::{TappedFrame, TappedPacket};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::{DataLink, PcapError};

/// The file's interfaces: packets as they came in, and as they are sent.
const RECEIVED: u32 = 0;
const SENT: u32 = 1;
/// Timestamps are nanoseconds: 10^-9 s.
const RESOLUTION: u8 = 9;

pub(super) struct Writer<W: Write>(PcapNgWriter<W>);

impl<W: Write> Writer<W> {
    /// Writes the file's head.
    pub fn new(out: W, snap_len: u32) -> Result<Writer<W>> {
        let mut writer = PcapNgWriter::new(out).map_err(plain)?;
        for (name, text) in [("received", "packets as nomagic receives them"), ("sent", "packets as nomagic sends them")] {
            let options = vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(name)),
                InterfaceDescriptionOption::IfDescription(Cow::Borrowed(text)),
                InterfaceDescriptionOption::IfTsResol(RESOLUTION),
            ];
            let block = InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: snap_len, options };
            writer.write_pcapng_block(block).map_err(plain)?;
        }
        Ok(Writer(writer))
    }

    /// Writes a packet before and after the rewrite, and the answer to its sender.
    pub fn write(&mut self, packet: &TappedPacket) -> Result<()> {
        let comment = comment(packet);
        self.frame(packet, RECEIVED, &packet.received, &comment)?;
        if let Some(sent) = &packet.sent {
            self.frame(packet, SENT, sent, &comment)?;
        }
        if let Some(answer) = &packet.answer {
            self.frame(packet, SENT, answer, &format!("answer to: {comment}"))?;
        }
        Ok(())
    }

    fn frame(&mut self, packet: &TappedPacket, interface_id: u32, frame: &TappedFrame, comment: &str) -> Result<()> {
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp: Duration::from_nanos(packet.time_ns),
            original_len: frame.len,
            data: Cow::Borrowed(&frame.bytes),
            options: vec![EnhancedPacketOption::Comment(Cow::Borrowed(comment))],
        };
        self.0.write_pcapng_block(block).map_err(plain)?;
        Ok(())
    }

    pub fn flush(&mut self) -> Result<()> {
        Ok(self.0.get_mut().flush()?)
    }
}

/// A failed write as such, so that a closed reader is known as one.
fn plain(e: PcapError) -> anyhow::Error {
    match e {
        PcapError::IoError(e) => e.into(),
        e => io::Error::other(e).into(),
    }
}

/// `forward; service default/nginx:http; backend 172.16.0.5:80; worker 0; in eth0; out eth1`
fn comment(packet: &TappedPacket) -> String {
    let mut parts = vec![match &packet.reason {
        Some(reason) => format!("{}: {reason}", packet.verdict),
        None => packet.verdict.clone(),
    }];
    let named = [("service", &packet.service), ("backend", &packet.backend), ("snat", &packet.snat)];
    parts.extend(named.iter().filter_map(|(name, value)| Some(format!("{name} {}", value.as_deref()?))));
    parts.push(format!("worker {}", packet.worker));
    parts.push(format!("in {}", packet.received.interface));
    parts.extend(packet.sent.as_ref().map(|sent| format!("out {}", sent.interface)));
    parts.join("; ")
}
