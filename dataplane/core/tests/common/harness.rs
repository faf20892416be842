//! One fuzz input: frames for a small world, and what must hold whatever they are.
//!
//! Format: any number of `port: u8, length: u16 big endian, bytes`; the last one may be cut short.

use arrayvec::ArrayVec;
use nomagic_core::frame::{Frame, Outputs, PortId, Verdict};
use nomagic_core::pipeline::process;

use super::World;

/// Frames of one input at the most.
const FRAMES_MAX: usize = 64;
const BUFFER: usize = 2048;
const START: usize = 256;

/// Writes frames in the input format.
pub fn encode(frames: &[(u8, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (port, bytes) in frames {
        out.push(*port);
        out.extend((bytes.len() as u16).to_be_bytes());
        out.extend(*bytes);
    }
    out
}

fn decode(mut input: &[u8]) -> Vec<(PortId, Vec<u8>)> {
    let mut frames = Vec::new();
    while let [port, high, low, rest @ ..] = input {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len()).min(BUFFER - START);
        frames.push((PortId(u16::from(port % 4)), rest[..len].to_vec()));
        input = &rest[len..];
        if frames.len() == FRAMES_MAX {
            break;
        }
    }
    frames
}

/// Runs one input through `process` as one batch and checks what must always hold.
pub fn run(world: &mut World, input: &[u8]) {
    let sent = decode(input);
    let mut buffers: Vec<Vec<u8>> = sent
        .iter()
        .map(|(_, bytes)| {
            let mut buffer = vec![0xa5; BUFFER];
            buffer[START..START + bytes.len()].copy_from_slice(bytes);
            buffer
        })
        .collect();
    let mut spares = vec![[0u8; BUFFER]; 4];
    let mut out = Outputs::default();
    for spare in &mut spares {
        out.spare.push(Frame::new(spare, 0, 0, PortId(0), 0));
    }
    let mut frames: ArrayVec<Frame<'_>, FRAMES_MAX> = buffers
        .iter_mut()
        .zip(&sent)
        .enumerate()
        .map(|(i, (buffer, (port, bytes)))| Frame::new(buffer, START, bytes.len(), *port, i as u64))
        .collect();
    let mut verdicts = ArrayVec::new();
    world.with(|ctx| process(ctx, &mut frames, &mut verdicts, &mut out));
    assert_eq!(verdicts.len(), sent.len());
    for (i, (frame, verdict)) in frames.iter().zip(&verdicts).enumerate() {
        let (_, before) = &sent[i];
        assert_eq!(frame.token, i as u64);
        match verdict {
            Verdict::Drop(_) | Verdict::Hold(_) => assert_eq!(frame.head(), before, "{verdict:?}: changed"),
            Verdict::Forward(..) | Verdict::Kernel(_) => {
                // Only VLAN tags may have gone; everything behind the headers is as it was.
                let gone = before.len() - frame.head_len();
                assert!(matches!(gone, 0 | 4 | 8), "{verdict:?}: {gone} bytes gone");
                assert!(frame.head().ends_with(&before[before.len().min(14 + gone + 128)..]), "{verdict:?}: payload changed");
            }
        }
    }
    for (frame, ..) in &out.made {
        assert!(frame.head_len() <= 14 + 8 + 1280);
        assert!(etherparse::PacketHeaders::from_ethernet_slice(frame.head()).is_ok(), "an answer that nobody can read");
    }
    let frames = world.reconciled();
    let out_of = frames.forwarded.packets + frames.kernel.packets + frames.dropped.packets + frames.held.packets;
    assert_eq!(frames.received.packets, out_of, "accounts close");
}
