//! A strict parser of Prometheus' text format, written from its specification and independent of nomagic's writer.

use std::collections::{BTreeMap, BTreeSet};

/// Values by `name{label="value",...}` with the labels sorted.
#[derive(Debug, Default)]
pub struct Page {
    pub samples: BTreeMap<(String, BTreeMap<String, String>), f64>,
    pub kinds: BTreeMap<String, String>,
}

impl Page {
    /// A sample's value.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels = labels.iter().map(|(l, v)| (l.to_string(), v.to_string())).collect();
        let key = (name.to_string(), labels);
        *self.samples.get(&key).unwrap_or_else(|| panic!("no sample {key:?}"))
    }

    /// The sum of all samples of a name that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |have: &BTreeMap<String, String>| labels.iter().all(|(l, v)| have.get(*l).is_some_and(|h| h == v));
        self.samples.iter().filter(|((n, have), _)| n == name && fits(have)).map(|(_, value)| value).sum()
    }
}

fn name(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    assert!(end > 0 && !text.starts_with(|c: char| c.is_ascii_digit()), "a name at {text:?}");
    text.split_at(end)
}

fn labels(mut text: &str) -> (BTreeMap<String, String>, &str) {
    let mut found = BTreeMap::new();
    loop {
        let (label, rest) = name(text);
        let mut rest = rest.strip_prefix("=\"").expect("=\" after a label").chars();
        let mut value = String::new();
        loop {
            match rest.next().expect("a closing quote") {
                '"' => break,
                '\\' => value.push(match rest.next() {
                    Some('n') => '\n',
                    Some(c @ ('\\' | '"')) => c,
                    other => panic!("escaped {other:?}"),
                }),
                c => value.push(c),
            }
        }
        assert!(found.insert(label.to_string(), value).is_none(), "label {label} twice");
        text = rest.as_str();
        match text.strip_prefix(',') {
            Some(more) => text = more,
            None => return (found, text.strip_prefix('}').expect("a closing brace")),
        }
    }
}

/// Parses a page and checks its invariants: each metric has one header with help and type and its samples together, no duplicate sample;
/// counters end with `_total` and are not negative; histogram buckets are cumulative and end with +Inf.
pub fn parse(text: &str) -> Page {
    assert!(text.ends_with('\n'), "the last line is ended");
    let (mut page, mut current, mut helped) = (Page::default(), String::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (metric, words) = name(help);
            assert!(helped.insert(metric.to_string()) && words.len() > 3, "help for {metric}");
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (metric, kind) = name(kind);
            assert!(helped.contains(metric) && !page.kinds.contains_key(metric), "{metric} is announced once, with help");
            assert!(["counter", "gauge", "histogram"].contains(&kind.trim()), "{line}");
            page.kinds.insert(metric.to_string(), kind.trim().to_string());
            current = metric.to_string();
            continue;
        }
        let (metric, rest) = name(line);
        let (labels, rest) = if let Some(rest) = rest.strip_prefix('{') { labels(rest) } else { (BTreeMap::new(), rest) };
        let value: f64 = rest.strip_prefix(' ').expect("a blank before the value").parse().unwrap_or_else(|e| panic!("{line}: {e}"));
        let kind = page.kinds.get(&current).expect("a type before the first sample").as_str();
        let suffix = metric.strip_prefix(current.as_str()).unwrap_or_else(|| panic!("{line} among the samples of {current}"));
        match kind {
            "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&suffix), "{line}"),
            "counter" => assert!(suffix.is_empty() && metric.ends_with("_total") && value >= 0.0, "{line}"),
            _ => assert!(suffix.is_empty(), "{line}"),
        }
        assert!(page.samples.insert((metric.to_string(), labels), value).is_none(), "twice: {line}");
    }
    check_histograms(&page);
    page
}

fn check_histograms(page: &Page) {
    for metric in page.kinds.iter().filter(|(_, kind)| *kind == "histogram").map(|(name, _)| name) {
        let mut series: BTreeMap<BTreeMap<String, String>, Vec<(f64, f64)>> = BTreeMap::new();
        for ((_, labels), count) in page.samples.iter().filter(|((name, _), _)| *name == format!("{metric}_bucket")) {
            let mut labels = labels.clone();
            let end = labels.remove("le").expect("le").replace("+Inf", "inf").parse().expect("a bound");
            series.entry(labels).or_default().push((end, *count));
        }
        assert!(!series.is_empty(), "{metric} has buckets");
        for (labels, mut buckets) in series {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.windows(2).all(|w| w[0].1 <= w[1].1), "{metric} {labels:?}: {buckets:?}");
            let last = buckets[buckets.len() - 1];
            let count = page.samples[&(format!("{metric}_count"), labels)];
            assert_eq!((last.0, last.1), (f64::INFINITY, count), "{metric}");
        }
    }
}
