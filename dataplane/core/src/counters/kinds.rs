//! What a counter can be: one number, frames with their bytes, or one number for each value of a label.
//!
//! Each kind has two forms. The counter is written by one worker and read by any thread; the count is its value at one moment, which
//! can be added up, shown and sent.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::ops::{Index, IndexMut};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A counter with one writing thread. Readers on other threads see it a little late, never torn.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only ever called by the owning worker.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Takes back what was counted too early; only ever called by the owning worker.
    #[inline]
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Counts frames and their bytes.
#[derive(Default, Debug)]
pub struct Traffic {
    /// Frames.
    pub packets: Counter,
    /// Bytes on the wire (link-layer header included, as interface counters have it).
    pub bytes: Counter,
}

impl Traffic {
    /// Counts one frame.
    #[inline]
    pub fn count(&self, bytes: usize) {
        self.add(1, bytes as u64);
    }

    /// Counts several.
    #[inline]
    pub fn add(&self, packets: u64, bytes: u64) {
        self.packets.add(packets);
        self.bytes.add(bytes);
    }

    /// Takes back a frame that was counted too early.
    pub(super) fn uncount(&self, bytes: usize) {
        self.packets.sub(1);
        self.bytes.sub(bytes as u64);
    }
}

/// Frames and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Volume {
    /// Frames.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The values that a label of a counter may have.
pub trait Labels: Copy + Eq + std::fmt::Debug + 'static {
    /// What stands for a value in code.
    type LabelValue: Copy + Eq + std::fmt::Debug + 'static;
    /// The label's name in metrics.
    const NAME: &'static str;
    /// Every key, in the order of [`Labels::index`].
    const ALL: &'static [Self::LabelValue];

    /// The key's place among [`Labels::ALL`].
    fn index(key: Self::LabelValue) -> usize;

    /// The key's word in metrics and in the status.
    fn label(key: Self::LabelValue) -> &'static str;

    /// Whether this label may have that value; others are neither counted nor shown.
    fn holds(_key: Self::LabelValue) -> bool {
        true
    }
}

/// One counter for each value of a label.
#[derive(Debug)]
pub struct CounterBy<L: Labels>(Box<[Counter]>, PhantomData<L>);

impl<L: Labels> CounterBy<L> {
    /// The counter of one value.
    #[inline]
    pub fn of(&self, key: L::LabelValue) -> &Counter {
        debug_assert!(L::holds(key), "{key:?} is no value of this label");
        &self.0[L::index(key)]
    }
}

impl<L: Labels> Default for CounterBy<L> {
    fn default() -> CounterBy<L> {
        CounterBy(L::ALL.iter().map(|_| Counter::default()).collect(), PhantomData)
    }
}

/// One count for each value of a label.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CountBy<L: Labels>(Box<[u64]>, PhantomData<L>);

impl<L: Labels> CountBy<L> {
    /// Every value that the label may have, with its count.
    pub fn iter(&self) -> impl Iterator<Item = (L::LabelValue, u64)> {
        L::ALL.iter().copied().zip(self.0.iter().copied()).filter(|(key, _)| L::holds(*key))
    }

    /// The sum over all values.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl<L: Labels> Default for CountBy<L> {
    fn default() -> CountBy<L> {
        CountBy(L::ALL.iter().map(|_| 0).collect(), PhantomData)
    }
}

impl<L: Labels> Index<L::LabelValue> for CountBy<L> {
    type Output = u64;

    fn index(&self, key: L::LabelValue) -> &u64 {
        &self.0[L::index(key)]
    }
}

impl<L: Labels> IndexMut<L::LabelValue> for CountBy<L> {
    fn index_mut(&mut self, key: L::LabelValue) -> &mut u64 {
        &mut self.0[L::index(key)]
    }
}

/// What a counter is called, from its line in `counters!`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CounterInfo {
    /// The field, which is also its key in the status.
    pub key: &'static str,
    /// The metric; of frames and bytes, that of the frames.
    pub metric: &'static str,
    /// The sentence for people.
    pub help: &'static str,
}

impl CounterInfo {
    /// The metric of the bytes that belong to a metric of frames.
    fn bytes(&self) -> (String, String) {
        (self.metric.replace("_frames_total", "_bytes_total"), self.help.replacen("Frames", "Bytes of frames", 1))
    }
}

/// One time series of a counter, named as metrics name it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Series {
    /// The counter.
    pub info: &'static CounterInfo,
    /// The metric's name.
    pub metric: Cow<'static, str>,
    /// The metric's sentence for people.
    pub help: Cow<'static, str>,
    /// Name and value of the label, if it has one.
    pub label: Option<(&'static str, &'static str)>,
}

impl Series {
    fn new(info: &'static CounterInfo) -> Series {
        Series { info, metric: info.metric.into(), help: info.help.into(), label: None }
    }
}

/// A kind of counter.
pub trait CounterKind: Default {
    /// Its values.
    type Count: Count;

    /// The values now.
    fn read(&self) -> Self::Count;
}

/// What was counted, at one moment.
pub trait Count: Default {
    /// Adds what another worker counted.
    fn add(&mut self, other: &Self);

    /// Hands out every number of it, with its name.
    fn each(&self, info: &'static CounterInfo, f: &mut dyn FnMut(Series, u64));
}

impl CounterKind for Counter {
    type Count = u64;

    fn read(&self) -> u64 {
        self.get()
    }
}

impl Count for u64 {
    fn add(&mut self, other: &u64) {
        *self += other;
    }

    fn each(&self, info: &'static CounterInfo, f: &mut dyn FnMut(Series, u64)) {
        f(Series::new(info), *self);
    }
}

impl CounterKind for Traffic {
    type Count = Volume;

    fn read(&self) -> Volume {
        Volume { packets: self.packets.get(), bytes: self.bytes.get() }
    }
}

impl Count for Volume {
    fn add(&mut self, other: &Volume) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }

    fn each(&self, info: &'static CounterInfo, f: &mut dyn FnMut(Series, u64)) {
        f(Series::new(info), self.packets);
        let (metric, help) = info.bytes();
        f(Series { info, metric: metric.into(), help: help.into(), label: None }, self.bytes);
    }
}

impl<L: Labels> CounterKind for CounterBy<L> {
    type Count = CountBy<L>;

    fn read(&self) -> CountBy<L> {
        CountBy(self.0.iter().map(Counter::get).collect(), PhantomData)
    }
}

impl<L: Labels> Count for CountBy<L> {
    fn add(&mut self, other: &CountBy<L>) {
        self.0.iter_mut().zip(&other.0).for_each(|(sum, n)| *sum += n);
    }

    fn each(&self, info: &'static CounterInfo, f: &mut dyn FnMut(Series, u64)) {
        self.iter().for_each(|(key, n)| f(Series { label: Some((L::NAME, L::label(key))), ..Series::new(info) }, n));
    }
}

#[cfg(feature = "serde")]
mod as_map {
    //! A map from the label's words to the counts. Words of a newer program are passed over, missing ones are 0.

    use serde::de::{Deserialize, Deserializer};
    use serde::ser::{Serialize, Serializer};
    use std::collections::BTreeMap;

    use super::{CountBy, Labels};

    impl<L: Labels> Serialize for CountBy<L> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_map(self.iter().map(|(key, n)| (L::label(key), n)))
        }
    }

    impl<'de, L: Labels> Deserialize<'de> for CountBy<L> {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<CountBy<L>, D::Error> {
            let by_word = BTreeMap::<String, u64>::deserialize(deserializer)?;
            let mut counts = CountBy::default();
            for &key in L::ALL.iter().filter(|key| L::holds(**key)) {
                counts[key] = by_word.get(L::label(key)).copied().unwrap_or_default();
            }
            Ok(counts)
        }
    }
}
