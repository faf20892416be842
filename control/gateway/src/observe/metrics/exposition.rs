//! Prometheus' text format, version 0.0.4: <https://prometheus.io/docs/instrumenting/exposition_formats/>.
//!
//! The crate prometheus-client does not fit: it writes OpenMetrics, whose rules for the suffix `_total` exclude some of kube-proxy's names.

use std::fmt::{Display, Write as _};

/// The response's Content-Type header.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetricType {
    Counter,
    Gauge,
    Histogram,
}

/// Builds the text of a scrape.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// Writes a metric's header; its samples follow. `help` is one line of plain text.
    pub fn begin(&mut self, name: &str, kind: MetricType, help: &str) {
        let kind = match kind {
            MetricType::Counter => "counter",
            MetricType::Gauge => "gauge",
            MetricType::Histogram => "histogram",
        };
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Writes a sample of the metric begun last.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        for (i, (label, value)) in labels.iter().enumerate() {
            self.text.push(if i == 0 { '{' } else { ',' });
            self.text.push_str(label);
            self.text.push_str("=\"");
            self.push_escaped(value);
            self.text.push('"');
        }
        let _ = writeln!(self.text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// Writes a metric with one sample and no labels.
    pub fn single(&mut self, name: &str, kind: MetricType, help: &str, value: impl Display) {
        self.begin(name, kind, help);
        self.sample(name, &[], value);
    }

    pub fn finish(self) -> String {
        self.text
    }

    fn push_escaped(&mut self, value: &str) {
        for c in value.chars() {
            match c {
                '\\' => self.text.push_str("\\\\"),
                '"' => self.text.push_str("\\\""),
                '\n' => self.text.push_str("\\n"),
                c => self.text.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_label_values_stay_inside_their_quotes() {
        let mut out = Exposition::default();
        out.begin("a_total", MetricType::Counter, "Things.");
        out.sample("a_total", &[("x", "1\"} 9\n\\")], 5);
        out.single("b_seconds", MetricType::Gauge, "Time.", 0.25);
        let expected = "# HELP a_total Things.\n# TYPE a_total counter\na_total{x=\"1\\\"} 9\\n\\\\\"} 5\n# HELP b_seconds Time.\n# TYPE b_seconds gauge\nb_seconds 0.25\n";
        assert_eq!(out.finish(), expected);
    }
}
