//! Sends a batch of conversations through both worlds, step by step, and compares what arrives.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use super::classes::{CLASSES, late as late_class};
use super::compare::{Case, Outcome, outcomes};
use super::generate::{Conversation, STEPS_MAX, Side, What};
use super::packet::{Ends, LINK_LEN, Role, Special, is_fragment, is_later_fragment};
use super::seen::Seen;
use super::world::{World, endpoint, router, service};

/// nomagic allows 1,000 errors of a class a second.
const PACE: Duration = Duration::from_micros(1_200);
/// What a fragment that was held, or a packet that was left to the kernel, may need until it arrives.
const SETTLED: Duration = Duration::from_millis(50);

/// What one world knows of a conversation.
#[derive(Default)]
struct Known {
    /// The last packets that each side has sent, and has got.
    sent: [Option<Vec<u8>>; 2],
    arrived: [Option<Vec<u8>>; 2],
}

/// A step of a conversation as one world sends it. `None`: nothing has arrived that it could be about.
fn step_frames(world: &World, known: &mut Known, conversation: &Conversation, number: usize) -> Option<Vec<Vec<u8>>> {
    let step = &conversation.steps[number];
    let (from, v6, id) = (step.from, conversation.v6(), conversation.id);
    let arrived = known.arrived[from as usize].as_deref();
    let link = world.link(from, v6);
    match &step.what {
        What::Error(error) => Some(error.frames(&error.packet(arrived?, router(v6, from), id), &link, id)),
        What::Packet(form) => {
            let ends = match from {
                Side::Client => Ends { src: conversation.client, dst: service(v6, conversation.snat, conversation.proto) },
                Side::Endpoint => {
                    let seen = Seen::read(arrived?, from, None)?;
                    Ends { src: (endpoint(v6), seen.dst.1), dst: seen.src }
                }
            };
            let packet = form.packet(conversation.proto, &ends, id);
            let frames = form.frames(&packet, &link, id);
            // Of a datagram in fragments nomagic quotes the first one; the kernel puts them together.
            let first = frames.iter().map(|frame| &frame[LINK_LEN..]).find(|packet| !is_later_fragment(packet));
            let quoted = first.filter(|first| world.gateway().is_some() && is_fragment(first));
            known.sent[from as usize] = Some(quoted.map_or(packet, <[u8]>::to_vec));
            Some(frames)
        }
    }
}

/// Whether nomagic may answer a step by an error or a reset of its own.
pub fn may_be_refused(what: &What) -> bool {
    let What::Packet(form) = what else { return false };
    matches!(form.role, Role::Stray(_)) || form.ttl < 2 || matches!(form.special, Special::Length(1_300..))
}

/// What a run has found.
#[derive(Default)]
pub struct Findings {
    pub packets: usize,
    /// By kind: sent, and arrived in both worlds.
    kinds: BTreeMap<String, [usize; 2]>,
    pub classes: BTreeMap<&'static str, usize>,
    /// By their signature, with an example.
    pub unknown: BTreeMap<String, (usize, String)>,
    /// Steps of batches that were looked at once more.
    repeated: usize,
}

impl Findings {
    fn add(&mut self, case: &Case<'_>, raw: [&Outcome; 2]) {
        self.packets += 1;
        let kind = self.kinds.entry(case.kind()).or_default();
        kind[0] += 1;
        kind[1] += usize::from(!case.kernel.is_empty() && !case.nomagic.is_empty());
        if case.kernel == case.nomagic {
            return;
        }
        match CLASSES.iter().find(|class| (class.is)(case)) {
            Some(class) => *self.classes.entry(class.name).or_default() += 1,
            None => self.unknown.entry(case.signature()).or_insert_with(|| (0, case.show(raw))).0 += 1,
        }
    }

    fn merge(&mut self, other: Findings) {
        self.packets += other.packets;
        for (kind, counts) in other.kinds {
            self.kinds.entry(kind).or_default().iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
        }
        other.classes.into_iter().for_each(|(class, n)| *self.classes.entry(class).or_default() += n);
        for (signature, (n, example)) in other.unknown {
            self.unknown.entry(signature).or_insert((0, example)).0 += n;
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, [sent, arrived]) in &self.kinds {
            writeln!(f, "  {kind}: {sent}, {arrived} arrived in both worlds")?;
        }
        self.classes.iter().try_for_each(|(name, n)| writeln!(f, "  difference {name}: {n}"))?;
        writeln!(f, "{} packets, {} steps of a batch looked at once more", self.packets, self.repeated)
    }
}

/// A step of a conversation: its place in the batch, and its frames in both worlds.
type Sent = (usize, [Vec<Vec<u8>>; 2]);

/// A batch on its way.
pub struct Lockstep<'w> {
    worlds: &'w mut [World; 2],
    batch: &'w [Conversation],
    known: [Vec<Known>; 2],
    /// Conversations that go on.
    alive: Vec<bool>,
}

impl<'w> Lockstep<'w> {
    pub fn new(worlds: &'w mut [World; 2], batch: &'w [Conversation]) -> Lockstep<'w> {
        let known = [0, 1].map(|_| batch.iter().map(|_| Known::default()).collect());
        Lockstep { worlds, batch, known, alive: vec![true; batch.len()] }
    }

    pub fn run(mut self, findings: &mut Findings) {
        for number in 0..STEPS_MAX {
            let sent = self.frames(number);
            let mut arrived = [0, 1].map(|i| self.send(i, number, &sent));
            let mut found = self.compare(number, &sent, &arrived);
            if !found.unknown.is_empty() {
                std::thread::sleep(SETTLED);
                for (world, arrived) in self.worlds.iter_mut().zip(&mut arrived) {
                    arrived.iter_mut().zip(world.flush()).for_each(|(all, more)| all.extend(more));
                }
                found = self.compare(number, &sent, &arrived);
                findings.repeated += 1;
            }
            findings.merge(found);
        }
    }

    /// The frames of the conversations that have such a step.
    fn frames(&mut self, number: usize) -> Vec<Sent> {
        let mut sent = Vec::new();
        for (place, conversation) in self.batch.iter().enumerate().filter(|(_, conversation)| conversation.steps.len() > number) {
            let frames = [0, 1].map(|i| step_frames(&self.worlds[i], &mut self.known[i][place], conversation, number));
            match frames {
                [Some(kernel), Some(nomagic)] if self.alive[place] => sent.push((place, [kernel, nomagic])),
                _ => self.alive[place] = false,
            }
        }
        sent
    }

    /// Sends them through one world, and returns what arrives by side.
    fn send(&mut self, i: usize, number: usize, sent: &[Sent]) -> [Vec<Vec<u8>>; 2] {
        let (world, begun) = (&mut self.worlds[i], Instant::now());
        let steps = sent.iter().map(|(place, frames)| (&self.batch[*place].steps[number], &frames[i]));
        steps.clone().for_each(|(step, frames)| frames.iter().for_each(|frame| world.send(step.from, frame)));
        let arrived = world.flush();
        let limited = steps.filter(|(step, _)| matches!(step.what, What::Error(_)) || may_be_refused(&step.what)).count();
        if world.gateway().is_some() {
            std::thread::sleep((PACE * limited as u32).saturating_sub(begun.elapsed()));
        }
        arrived
    }

    fn compare(&mut self, number: usize, sent: &[Sent], arrived: &[[Vec<Vec<u8>>; 2]; 2]) -> Findings {
        let mut findings = Findings::default();
        let outcomes = [0, 1].map(|i| {
            let (outcomes, late) = outcomes(self.batch, &arrived[i]);
            for packet in late {
                let class = late_class(i == 1, packet).unwrap_or_else(|| panic!("{}: late packet {packet:02x?}", self.worlds[i].name));
                *findings.classes.entry(class).or_default() += 1;
            }
            outcomes
        });
        for (place, frames) in sent {
            let conversation = &self.batch[*place];
            let [kernel, nomagic] = [0, 1].map(|i| {
                let (outcome, known) = (&outcomes[i][*place], &mut self.known[i][*place]);
                outcome.remember(&mut known.arrived);
                outcome.seen(conversation, number, &known.sent)
            });
            let case = Case { conversation, number, frames: &frames[1], kernel: &kernel, nomagic: &nomagic };
            findings.add(&case, [&outcomes[0][*place], &outcomes[1][*place]]);
        }
        findings
    }
}
