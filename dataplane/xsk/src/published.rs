//! Tables that the control plane replaces while workers read them.
//!
//! Control publishes a whole new `Arc`. A worker notices it by one relaxed load per batch, takes it, and sends its old `Arc` back: only
//! control ever frees a table.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};

/// The control plane's handle.
pub struct Published<T> {
    shared: Arc<Latest<T>>,
    retired: Receiver<Arc<T>>,
    retire: Sender<Arc<T>>,
    /// The sequence number each reader uses.
    applied: Vec<Arc<AtomicU64>>,
}

struct Latest<T> {
    /// Number of publications so far, starting at 1.
    sequence: AtomicU64,
    current: Mutex<Arc<T>>,
}

/// A worker's handle.
pub struct Reader<T> {
    shared: Arc<Latest<T>>,
    retire: Sender<Arc<T>>,
    applied: Arc<AtomicU64>,
    seen: u64,
    table: Arc<T>,
}

impl<T> Latest<T> {
    /// The mutex guards a single pointer, which is valid even if the thread that held it panicked.
    fn lock(&self) -> MutexGuard<'_, Arc<T>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Published<T> {
    /// Publishes the first table, for this many readers.
    pub fn new(table: Arc<T>, readers: usize) -> (Published<T>, Vec<Reader<T>>) {
        // Between two publications, which empty the channel, each reader can retire at most two tables.
        let (retire, retired) = bounded(readers.max(1) * 4);
        let shared = Arc::new(Latest { sequence: AtomicU64::new(1), current: Mutex::new(table.clone()) });
        let readers: Vec<Reader<T>> = (0..readers)
            .map(|_| Reader {
                shared: shared.clone(),
                retire: retire.clone(),
                applied: Arc::new(AtomicU64::new(1)),
                seen: 1,
                table: table.clone(),
            })
            .collect();
        let applied = readers.iter().map(|r| r.applied.clone()).collect();
        (Published { shared, retired, retire, applied }, readers)
    }

    /// Replaces the table; returns its sequence number for [`Published::wait`].
    pub fn publish(&self, table: Arc<T>) -> u64 {
        self.collect();
        let mut current = self.shared.lock();
        let old = std::mem::replace(&mut *current, table);
        let sequence = self.shared.sequence.load(Ordering::Relaxed) + 1;
        // Release: a reader that sees the number finds the table behind the mutex. The mutex orders it anyway.
        self.shared.sequence.store(sequence, Ordering::Release);
        drop(current);
        drop(old);
        sequence
    }

    /// The latest table.
    pub fn current(&self) -> Arc<T> {
        self.shared.lock().clone()
    }

    /// The sequence number of the latest publication.
    pub fn sequence(&self) -> u64 {
        self.shared.sequence.load(Ordering::Acquire)
    }

    /// The oldest sequence number still in use by the readers that count.
    pub fn applied(&self, counts: impl Fn(usize) -> bool) -> u64 {
        let counted = self.applied.iter().enumerate().filter(|(reader, _)| counts(*reader));
        counted.map(|(_, at)| at.load(Ordering::Acquire)).min().unwrap_or_else(|| self.sequence())
    }

    /// Waits until every reader that counts uses this publication or a later one. False on timeout.
    pub fn wait(&self, sequence: u64, timeout: Duration, counts: impl Fn(usize) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut pause = Duration::from_micros(5);
        while self.applied(&counts) < sequence {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
        }
        self.collect();
        true
    }

    /// Frees the tables that readers have returned.
    pub fn collect(&self) {
        self.retired.try_iter().for_each(drop);
    }

    /// The number of tables returned but not yet freed.
    pub fn retired(&self) -> usize {
        debug_assert!(self.retired.len() <= self.retire.capacity().unwrap_or(usize::MAX));
        self.retired.len()
    }
}

impl<T> Reader<T> {
    /// The table in use.
    #[inline]
    pub fn table(&self) -> &T {
        &self.table
    }

    /// Switches to a newer table if there is one. Call it between batches. Returns whether the table changed.
    #[inline]
    pub fn refresh(&mut self) -> bool {
        if self.shared.sequence.load(Ordering::Relaxed) == self.seen {
            return false;
        }
        self.exchange()
    }

    #[cold]
    fn exchange(&mut self) -> bool {
        let (table, sequence) = {
            let current = self.shared.lock();
            (current.clone(), self.shared.sequence.load(Ordering::Relaxed))
        };
        let old = std::mem::replace(&mut self.table, table);
        // The channel has room for all tables that can accumulate. If control has ended, the table is freed here.
        drop(self.retire.try_send(old));
        self.seen = sequence;
        self.applied.store(sequence, Ordering::Release);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use std::thread::ThreadId;

    struct Table {
        value: u64,
        freed_by: Arc<Mutex<Vec<ThreadId>>>,
    }

    impl Drop for Table {
        fn drop(&mut self) {
            self.freed_by.lock().unwrap().push(std::thread::current().id());
        }
    }

    #[test]
    fn readers_follow_and_only_control_frees_tables() {
        let freed_by = Arc::new(Mutex::new(Vec::new()));
        let table = |value| Arc::new(Table { value, freed_by: freed_by.clone() });
        let (published, readers) = Published::new(table(0), 2);
        let stop = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = readers
            .into_iter()
            .map(|mut reader| {
                let stop = stop.clone();
                std::thread::spawn(move || {
                    let mut last = 0;
                    while !stop.load(Ordering::Relaxed) {
                        reader.refresh();
                        assert!(reader.table().value >= last, "tables never go back");
                        last = reader.table().value;
                    }
                    reader
                })
            })
            .collect();
        for value in 1..=500 {
            let sequence = published.publish(table(value));
            if value % 50 == 0 {
                assert!(published.wait(sequence, Duration::from_secs(10), |_| true));
            }
        }
        assert!(published.wait(published.sequence(), Duration::from_secs(10), |_| true));
        stop.store(true, Ordering::Relaxed);
        let readers: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        published.collect();
        assert!(readers.iter().all(|r| r.table().value == 500));
        let freed = freed_by.lock().unwrap().clone();
        assert_eq!(freed.len(), 500, "all but the one in use");
        assert!(freed.iter().all(|id| *id == std::thread::current().id()), "freed by control alone");
    }

    #[test]
    fn waiting_for_a_reader_that_sleeps_times_out() {
        let (published, mut readers) = Published::new(Arc::new(1u32), 1);
        let sequence = published.publish(Arc::new(2));
        assert!(!published.wait(sequence, Duration::from_millis(20), |_| true));
        assert!(published.wait(sequence, Duration::from_millis(20), |_| false), "dead readers do not count");
        assert!(readers[0].refresh());
        assert!(!readers[0].refresh());
        assert!(published.wait(sequence, Duration::from_millis(20), |_| true));
        assert_eq!((*readers[0].table(), *published.current()), (2, 2));
    }
}
