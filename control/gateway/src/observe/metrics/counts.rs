//! Counters as time series. Their names and sentences come from the lists in `nomagic_core::counters`.

use nomagic_core::counters::Series;

use super::Exposition;
use super::exposition::Kind::Counter;

/// The numbers of one worker, socket or gateway.
#[derive(Debug)]
pub(super) struct Row {
    /// The labels that set it apart from others.
    pub labels: Vec<(&'static str, String)>,
    /// Its numbers.
    pub numbers: Vec<(Series, u64)>,
}

impl Row {
    /// Collects the numbers that `each` hands out.
    pub fn new(labels: impl IntoIterator<Item = (&'static str, String)>, each: impl FnOnce(&mut dyn FnMut(Series, u64))) -> Row {
        let mut numbers = Vec::new();
        each(&mut |series, n| numbers.push((series, n)));
        Row { labels: labels.into_iter().collect(), numbers }
    }
}

/// Writes rows of the same list of counters, metric by metric.
pub(super) fn write(out: &mut Exposition, rows: &[Row]) {
    let Some(first) = rows.first() else { return };
    let mut metric = "";
    for (place, (series, _)) in first.numbers.iter().enumerate() {
        if metric != series.metric {
            metric = &series.metric;
            out.begin(metric, Counter, &series.help);
        }
        for row in rows {
            let (series, n) = &row.numbers[place];
            let labels: Vec<(&str, &str)> = row.labels.iter().map(|(name, value)| (*name, value.as_str())).chain(series.label).collect();
            out.sample(metric, &labels, n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nomagic_core::conntrack::EvictionRank;
    use nomagic_core::counters::{ConntrackCounts, Volume, WorkerCounts};

    #[test]
    fn a_metric_is_begun_once_and_has_each_workers_series() {
        let mut counts = [WorkerCounts::default(), WorkerCounts::default()];
        counts[1].frames.held = Volume { packets: 3, bytes: 180 };
        let rows = [0, 1].map(|worker: usize| {
            let frames = &counts[worker].frames;
            Row::new([("worker", worker.to_string())], |f| frames.each(f))
        });
        let mut out = Exposition::default();
        write(&mut out, &rows);
        let text = out.finish();
        let held: Vec<&str> = text.lines().filter(|l| l.contains("_held_")).collect();
        assert_eq!(
            held,
            [
                "# HELP nomagic_worker_held_frames_total Frames that had to wait for a neighbour.",
                "# TYPE nomagic_worker_held_frames_total counter",
                "nomagic_worker_held_frames_total{worker=\"0\"} 0",
                "nomagic_worker_held_frames_total{worker=\"1\"} 3",
                "# HELP nomagic_worker_held_bytes_total Bytes of frames that had to wait for a neighbour.",
                "# TYPE nomagic_worker_held_bytes_total counter",
                "nomagic_worker_held_bytes_total{worker=\"0\"} 0",
                "nomagic_worker_held_bytes_total{worker=\"1\"} 180",
            ]
        );
    }

    #[test]
    fn a_label_of_the_counter_is_a_label_of_the_series() {
        let mut counts = ConntrackCounts { mid_stream: 7, ..ConntrackCounts::default() };
        counts.evicted[EvictionRank::HalfOpen] = 11;
        let mut out = Exposition::default();
        write(&mut out, &[Row::new([], |f| counts.each(f))]);
        let text = out.finish();
        for line in [
            "nomagic_flows_mid_stream_total 7",
            "nomagic_flows_evicted_total{rank=\"closed\"} 0",
            "nomagic_flows_evicted_total{rank=\"half_open\"} 11",
            "nomagic_flows_evicted_total{rank=\"idle_udp\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nin\n{text}");
        }
        assert_eq!(text.matches("# TYPE nomagic_flows_evicted_total").count(), 1);
    }
}
