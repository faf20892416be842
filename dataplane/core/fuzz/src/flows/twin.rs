//! Two worlds that see the same frames: one takes the fast path where it can, the other one never. They must not differ in a single word.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;
use nomagic_core::conntrack::{Expected, Flow, Hit, Phase, recover};
use nomagic_core::frame::{BATCH_MAX, Frame, Outputs, PortId, Verdict};
use nomagic_core::observe::Observer;
use nomagic_core::pipeline::{WorkerState, end_connection, process, process_observed, sweep};
use nomagic_core::reason::Reason;
use nomagic_core::reject::Answer;
use nomagic_core::routes::Routes;
use nomagic_core::services::Services;
use nomagic_core::tuple::Tuple;
use nomagic_core_fixtures::{Replies, World};

use super::frames::Sent;

pub const BUFFER: usize = 2_048;
pub const START: usize = 256;
/// Workers that share the table.
pub const WORKERS: usize = 3;
/// Frames that a batch may make.
const SPARES: usize = 4;

/// What became of a batch.
#[derive(PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Each frame's verdict, and its bytes afterwards.
    pub done: Vec<(Verdict, Vec<u8>)>,
    /// The frames made, and the ports that they leave by.
    pub made: Vec<(PortId, Vec<u8>)>,
}

/// A live flow at some moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Live {
    pub flow: Flow,
    pub phase: Phase,
    pub seen_ms: u64,
}

pub struct Twin {
    worlds: [World; 2],
    /// Of the workers that do not work at the moment, by world.
    workers: [Vec<WorkerState>; 2],
}

/// Compares what it hears with what comes out.
#[derive(Default)]
struct Heard {
    verdicts: Vec<Verdict>,
    sent: usize,
}

impl Observer<'_> for Heard {
    fn rejected(&mut self, _reason: Reason, _answer: Answer, sent: bool) {
        self.sent += usize::from(sent);
    }

    fn verdict(&mut self, verdict: &Verdict) {
        self.verdicts.push(*verdict);
    }
}

impl Twin {
    pub fn new(services: &Services, capacity: u32, filter_buckets: usize) -> Twin {
        let world = || {
            let mut world = World::new(services.clone(), capacity);
            world.replies = Replies::new(filter_buckets);
            // A world formats its table when it is used first.
            assert_eq!(world.live(), 0);
            world
        };
        let workers = || (0..WORKERS as u16).map(WorkerState::new).collect();
        Twin { worlds: [world(), world()], workers: [workers(), workers()] }
    }

    pub fn each(&mut self, mut change: impl FnMut(&mut World)) {
        self.worlds.iter_mut().for_each(&mut change);
    }

    pub fn routes(&self) -> &Routes {
        &self.worlds[0].routes
    }

    pub fn set_routes(&mut self, routes: impl Fn() -> Routes) {
        self.each(|world| world.routes = routes());
    }

    /// Does something in both worlds as this worker, at this time.
    fn as_worker<R>(&mut self, number: usize, now_ms: u64, mut act: impl FnMut(usize, &mut World) -> R) -> [R; 2] {
        [0, 1].map(|which| {
            let (world, worker) = (&mut self.worlds[which], &mut self.workers[which][number]);
            std::mem::swap(&mut world.worker, worker);
            world.now_ms = now_ms;
            let result = act(which, world);
            std::mem::swap(&mut world.worker, worker);
            result
        })
    }

    /// Gives a batch to both worlds.
    pub fn process(&mut self, worker: usize, now_ms: u64, batch: &[Sent]) -> Outcome {
        let [fast, slow] = self.as_worker(worker, now_ms, |which, world| process_batch(world, batch, which == 1));
        assert_eq!(fast, slow, "the observed path differs");
        fast
    }

    pub fn sweep(&mut self, worker: usize, now_ms: u64, places: u32) {
        self.as_worker(worker, now_ms, |_, world| world.with(|ctx| sweep(ctx, places, &mut Outputs::default())));
    }

    /// Ends a flow, as another thread may at any time. True when it did.
    pub fn end(&mut self, original: &Tuple) -> bool {
        let [fast, slow] = [0, 1].map(|which| {
            self.worlds[which].with(|ctx| {
                let hit = ctx.table.lookup(original, ctx.table.hash(original));
                hit.is_some_and(|hit| end_connection(ctx.table, ctx.filter, &hit))
            })
        });
        assert_eq!(fast, slow);
        fast
    }

    /// Ends the process and starts the next one, which takes the table over and announces the replies anew.
    pub fn restart(&mut self, now_ms: u64, in_order: bool) {
        for (world, workers) in self.worlds.iter_mut().zip(&mut self.workers) {
            *workers = (0..WORKERS as u16).map(WorkerState::new).collect();
            let live = world.live();
            if in_order {
                world.with(|ctx| ctx.table.detach());
            }
            let expected = Expected { capacity: world.capacity, boot_id: [0, 0] };
            let (_, recovered) =
                recover(&world.table_words, expected, now_ms, |flow| world.services.takes_over(flow)).expect("the table of this process");
            assert_eq!((recovered.detached, recovered.not_whole), (in_order, 0));
            assert_eq!(u64::from(recovered.connections + recovered.unwanted), live);
            world.with(|ctx| {
                let Some(filter) = ctx.filter else { return };
                filter.clear();
                ctx.table.for_each(|hit, flow| assert!(!flow.announced || filter.insert(&flow.reply(), hit.slot()), "it had room before"));
            });
        }
    }

    /// All live flows, after a comparison of both worlds.
    pub fn flows(&mut self) -> Vec<Live> {
        self.assert_equal();
        let mut flows = Vec::new();
        self.worlds[0].with(|ctx| ctx.table.for_each(|hit, flow| flows.push(Live { flow: *flow, phase: hit.phase, seen_ms: hit.seen_ms })));
        flows
    }

    pub fn lookup(&mut self, tuple: &Tuple) -> Option<Hit> {
        self.worlds[0].with(|ctx| ctx.table.lookup(tuple, ctx.table.hash(tuple)))
    }

    /// The world that takes the fast path.
    pub fn world(&mut self) -> &mut World {
        &mut self.worlds[0]
    }

    fn assert_equal(&self) {
        let [a, b] = &self.worlds;
        let counts = |w: &World| (w.counters.frames.read(), w.counters.path.read(), w.counters.conntrack.read(), w.counters.reasons.read());
        assert_eq!(counts(a), counts(b), "the observed path counts differently");
        // Without a comparison of each word, which libFuzzer would take for a branch of interest.
        let different = a.table_words.iter().zip(&b.table_words).fold(0, |bits, (a, b)| bits | (a.load(Relaxed) ^ b.load(Relaxed)));
        if different != 0 {
            let word = a.table_words.iter().zip(&b.table_words).position(|(a, b)| a.load(Relaxed) != b.load(Relaxed));
            panic!("word {word:?} of the table's {} differs with the observed path", a.table_words.len());
        }
        let differ = |(a, b): (&AtomicU32, &AtomicU32)| a.load(Relaxed) != b.load(Relaxed);
        for (a, b) in [(&a.replies.words, &b.replies.words), (&a.replies.owners, &b.replies.owners)] {
            assert_eq!(a.iter().zip(b).position(differ), None, "word of the reply filter that differs");
        }
    }
}

fn process_batch(world: &mut World, batch: &[Sent], observed: bool) -> Outcome {
    let mut buffers: Vec<[u8; BUFFER]> = vec![[0xa5; BUFFER]; batch.len()];
    let mut spares = [[0u8; BUFFER]; SPARES];
    let parts: Vec<(&[u8], &[u8])> = batch.iter().map(|sent| sent.bytes.split_at(sent.split.unwrap_or(sent.bytes.len()))).collect();
    let tails: Vec<[&[u8]; 1]> = parts.iter().map(|(_, tail)| [*tail]).collect();
    let mut out = Outputs::default();
    for spare in &mut spares {
        out.spare.push(Frame::new(spare, 0, 0, PortId(0), 0));
    }
    let mut frames: ArrayVec<Frame<'_>, BATCH_MAX> = ArrayVec::new();
    for (i, (buffer, sent)) in buffers.iter_mut().zip(batch).enumerate() {
        let head = parts[i].0;
        buffer[START..START + head.len()].copy_from_slice(head);
        let mut frame = Frame::new(buffer, START, head.len(), sent.port, i as u64);
        if sent.split.is_some() {
            frame = frame.with_tail(&tails[i]);
        }
        frame.resubmitted = sent.resubmitted;
        frames.push(frame);
    }
    let (mut verdicts, mut heard) = (ArrayVec::new(), Heard::default());
    world.with(|ctx| match observed {
        true => process_observed(ctx, &mut frames, &mut verdicts, &mut out, &mut heard),
        false => process(ctx, &mut frames, &mut verdicts, &mut out),
    });
    assert_eq!(verdicts.len(), batch.len());
    assert!(!observed || heard.verdicts == verdicts[..] && heard.sent == out.made.len(), "the observer heard something else");
    assert_eq!(out.made.len() + out.spare.len(), SPARES, "a spare frame was lost");
    let whole = |frame: &Frame<'_>| [frame.head(), &frame.tail().concat()].concat();
    Outcome {
        done: verdicts.iter().copied().zip(frames.iter().map(whole)).collect(),
        made: out.made.iter().map(|(frame, port, _)| (*port, frame.head().to_vec())).collect(),
    }
}
