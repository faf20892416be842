//! Counters as time series. Their names and help texts come from `nomagic_core::counters`.

use nomagic_core::counters::Series;

use super::Exposition;
use super::exposition::MetricType::Counter;

/// The counters of one worker, socket or gateway.
#[derive(Debug)]
pub(super) struct CounterRow {
    /// The labels that distinguish the row.
    pub labels: Vec<(&'static str, String)>,
    pub numbers: Vec<(Series, u64)>,
}

impl CounterRow {
    /// Collects the values that `each` passes to its callback.
    pub fn new(labels: impl IntoIterator<Item = (&'static str, String)>, each: impl FnOnce(&mut dyn FnMut(Series, u64))) -> CounterRow {
        let mut numbers = Vec::new();
        each(&mut |series, n| numbers.push((series, n)));
        CounterRow { labels: labels.into_iter().collect(), numbers }
    }
}

/// Writes rows of the same counter list, metric by metric.
pub(super) fn write(out: &mut Exposition, rows: &[CounterRow]) {
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
    fn a_metric_has_one_header_and_a_series_per_worker() {
        let mut counts = [WorkerCounts::default(), WorkerCounts::default()];
        counts[1].frames.held = Volume { packets: 3, bytes: 180 };
        let rows = [0, 1].map(|worker: usize| {
            let frames = &counts[worker].frames;
            CounterRow::new([("worker", worker.to_string())], |f| frames.each(f))
        });
        let mut out = Exposition::default();
        write(&mut out, &rows);
        let text = out.finish();
        let held: Vec<&str> = text.lines().filter(|l| l.contains("_held_")).collect();
        assert_eq!(
            held,
            [
                "# HELP nomagic_worker_held_frames_total Frames that had to wait for a neighbour or for another fragment.",
                "# TYPE nomagic_worker_held_frames_total counter",
                "nomagic_worker_held_frames_total{worker=\"0\"} 0",
                "nomagic_worker_held_frames_total{worker=\"1\"} 3",
                "# HELP nomagic_worker_held_bytes_total Bytes of frames that had to wait for a neighbour or for another fragment.",
                "# TYPE nomagic_worker_held_bytes_total counter",
                "nomagic_worker_held_bytes_total{worker=\"0\"} 0",
                "nomagic_worker_held_bytes_total{worker=\"1\"} 180",
            ]
        );
    }

    #[test]
    fn counter_labels_become_series_labels() {
        let mut counts = ConntrackCounts { mid_stream: 7, ..ConntrackCounts::default() };
        counts.evicted[EvictionRank::Unconfirmed] = 11;
        let mut out = Exposition::default();
        write(&mut out, &[CounterRow::new([], |f| counts.each(f))]);
        let text = out.finish();
        for line in [
            "nomagic_flows_mid_stream_total 7",
            "nomagic_flows_evicted_total{rank=\"closed\"} 0",
            "nomagic_flows_evicted_total{rank=\"unconfirmed\"} 11",
            "nomagic_flows_evicted_total{rank=\"idle_udp\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nin\n{text}");
        }
        assert_eq!(text.matches("# TYPE nomagic_flows_evicted_total").count(), 1);
    }
}
