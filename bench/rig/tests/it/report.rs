//! The report: its page, plots and texts, and `nomagic-bench report` as scripts call it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nomagic_bench::report::against::{Change, Comparison};
use nomagic_bench::report::sections::{IDS, sections};
use nomagic_bench::report::table::Cell;
use nomagic_bench::report::{draw, page, summary, text};
use nomagic_bench::results::{Estimate, Results, RigKind};
use serde_json::Value;

use crate::sample::{hostile, results, unmeasured};

/// A directory with a run and one in which nomagic got slower, also to look into afterwards.
fn runs(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let old = results();
    let mut slower = old.clone();
    slower.manifest.kernel = "6.12.1".into();
    for row in slower.rates.iter_mut().filter(|r| r.subject == "nomagic-1") {
        row.zero_loss = row.zero_loss.map(|e| Estimate { median: e.median * 0.8, low: e.low * 0.8, high: e.high * 0.8, n: e.n });
    }
    let write = |file: &str, results: &Results| std::fs::write(dir.join(file), serde_json::to_string(results).unwrap()).unwrap();
    write("old.json", &old);
    write("slower.json", &slower);
    write("unmeasured.json", &unmeasured());
    write("hostile.json", &hostile());
    std::fs::write(dir.join("other.json"), "{\"format\": 99}").unwrap();
    dir
}

fn report(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nomagic-bench")).current_dir(dir).arg("report").args(args).output().unwrap()
}

fn utf8(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn it_ends_as_scripts_expect_and_says_why() {
    let dir = runs("report-ends");
    let cases: [(&[&str], i32, &str, &str); 10] = [
        (&["old.json"], 0, "the page: report.html", ""),
        (&["old.json", "--format", "text"], 0, "✗ not reached", ""),
        (&["hostile.json", "--against", "old.json", "--format", "text"], 0, "THE RUNS DIFFER", ""),
        (&["slower.json", "--against", "old.json", "--out", "c.html"], 0, "kernel: 6.1.0-31-amd64 then, 6.12.1 now", ""),
        (&["slower.json", "--against", "old.json", "--format", "text", "--fail-on-worse"], 1, "-20.0 %", "2 values are clearly worse"),
        (&["old.json", "--against", "slower.json", "--format", "text", "--fail-on-worse"], 0, "✓ better", ""),
        (&["old.json", "--against", "old.json", "--format", "json", "--fail-on-worse"], 0, "\"rig\": \"veth\"", "0 worse"),
        (&["old.json", "--plot", "rates", "--out", "rates.svg"], 0, "the plot: rates.svg", ""),
        (&["unmeasured.json", "--plot", "rates"], 1, "", "nothing to plot"),
        (&["other.json"], 1, "", "its format is 99"),
    ];
    for (args, code, out, err) in cases {
        let done = report(&dir, args);
        let (stdout, stderr) = (utf8(&done.stdout), utf8(&done.stderr));
        assert_eq!(done.status.code(), Some(code), "{args:?}: {stdout}{stderr}");
        assert!(stdout.contains(out) && stderr.contains(err), "{args:?}: {stdout}{stderr}");
        assert!(!stdout.contains('\u{1b}'), "{args:?}: a name reached the terminal as it is");
    }
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
    assert!(read("report.html").starts_with("<!DOCTYPE html>") && !read("report.html").contains("id=\"against\""));
    assert!(read("c.html").contains("id=\"against\"") && read("c.html").contains("✗ worse"));
    assert!(read("rates.svg").starts_with("<svg "));
}

#[test]
fn the_json_is_one_flat_object() {
    let dir = runs("report-json");
    let done = report(&dir, &["old.json", "--format", "json"]);
    let all: serde_json::Map<String, Value> = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(all["rates/nomagic-1000/established/zero-loss"], 612_000.0);
    assert!(all.values().all(|v| !v.is_object() && !v.is_array()), "{all:?}");
}

/// The page without its JSON, which has every string again.
fn visible(page: &str) -> &str {
    page.split_once("<footer>").unwrap().0
}

fn escaped(text: &str) -> String {
    maud::html! { (text) }.into_string()
}

/// Every reason in the JSON of results.
fn reasons(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("notMeasured").and_then(|v| v.as_str()).map(str::to_owned));
            map.values().for_each(|v| reasons(v, found));
        }
        Value::Array(items) => items.iter().for_each(|v| reasons(v, found)),
        _ => {}
    }
}

#[test]
fn every_reason_is_in_the_page_and_in_the_terminal() {
    for results in [results(), unmeasured(), hostile()] {
        let mut found = Vec::new();
        reasons(&serde_json::to_value(&results).unwrap(), &mut found);
        assert!(found.len() > 2, "{found:?}");
        let page = page::html(&results, None).unwrap();
        let text = text::summary(&results);
        for why in found {
            let words = Cell::Missing(why, 1).words();
            assert!(visible(&page).contains(&escaped(&words)), "{words} is not in the page");
            assert!(text.contains(&words), "{words} is not in\n{text}");
        }
    }
}

#[test]
fn no_cell_is_empty_and_nothing_undefined_is_shown() {
    for results in [results(), unmeasured(), hostile()] {
        let page = page::html(&results, Some(&Comparison::new(&results, &unmeasured()))).unwrap();
        for hole in ["<td></td>", "\"></td>", "\"></th>", "<dd></dd>", "<span></span>", "NaN", "\"inf", ">inf"] {
            assert!(!visible(&page).contains(hole), "{hole}");
        }
    }
}

#[test]
fn names_cannot_become_elements() {
    let page = page::html(&hostile(), Some(&Comparison::new(&hostile(), &results()))).unwrap();
    assert_eq!(page.matches("<script").count(), 1, "only the results");
    assert_eq!(page.matches("</script").count(), 1);
    for part in ["<img", "<!--", "<b>", "http://", "https://", "url(", "@import", " src=\"", "onload=\"", "\u{1b}", "\u{7}"] {
        assert!(!page.contains(part), "{part:?}");
    }
    let json = page.split_once("id=\"results\">").unwrap().1.split_once("</script>").unwrap().0;
    assert!(Results::parse(json).unwrap() == hostile(), "the JSON is not that of the results");
    assert!(page.contains(page::POLICY));
}

#[test]
fn a_missing_result_is_named_in_a_sentence() {
    let mut empty = results();
    empty.figures.clear();
    empty.rates.clear();
    empty.ratios.clear();
    empty.latencies.clear();
    empty.cpu.clear();
    empty.connections.clear();
    empty.churn.clear();
    empty.flood.clear();
    empty.programming.clear();
    empty.table_cost.clear();
    let page = page::html(&empty, None).unwrap();
    assert_eq!(page.matches("Not in these results: ").count(), IDS.len());
    assert!(page.contains("No figures were wanted.") && !page.contains("<svg"), "an empty plot");
    let page = page::html(&unmeasured(), None).unwrap();
    assert!(!page.contains("<svg"), "an empty plot");
}

#[test]
fn the_link_holds_the_same_json() {
    let page = page::html(&results(), None).unwrap();
    let encoded = page.split_once("data:application/json,").unwrap().1.split_once('"').unwrap().0;
    let mut bytes = Vec::new();
    let mut rest = encoded.bytes();
    while let Some(b) = rest.next() {
        let mut digit = || char::from(rest.next().unwrap()).to_digit(16).unwrap() as u8;
        bytes.push(if b == b'%' { digit() << 4 | digit() } else { b });
    }
    assert_eq!(String::from_utf8(bytes).unwrap(), serde_json::to_string(&results()).unwrap());
}

/// A drawing as XML, after looking whether all of it lies within its borders.
fn drawing(svg: &str) -> roxmltree::Document<'_> {
    let document = roxmltree::Document::parse(svg).unwrap_or_else(|e| panic!("{e}:\n{svg}"));
    let size = |name| document.root_element().attribute(name).unwrap().parse::<f64>().unwrap();
    let (width, height) = (size("width"), size("height"));
    for element in document.descendants() {
        let number = |name| element.attribute(name).map(|v: &str| v.parse::<f64>().unwrap());
        let places =
            [("x", width), ("cx", width), ("x1", width), ("x2", width), ("y", height), ("cy", height), ("y1", height), ("y2", height)];
        for (name, most) in places {
            assert!(number(name).is_none_or(|v| (-1.0..=most + 1.0).contains(&v)), "{name} of {element:?}");
        }
        for point in element.attribute("points").unwrap_or_default().split_whitespace() {
            let (x, y) = point.split_once(',').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((-1.0..=width + 1.0).contains(&x) && (-1.0..=height + 1.0).contains(&y), "{point} of {element:?}");
        }
    }
    document
}

/// The texts of a drawing.
fn texts(document: &roxmltree::Document<'_>) -> Vec<String> {
    document.descendants().filter(|e| e.has_tag_name("text")).map(|e| e.text().unwrap_or_default().trim().to_owned()).collect()
}

#[test]
fn every_plot_is_well_formed_and_lies_within_its_borders() {
    for results in [results(), hostile()] {
        for section in sections(&results) {
            for plot in &section.plots {
                let narrow = draw::element(plot, draw::BESIDE_TABLE).unwrap();
                let document = drawing(&narrow);
                assert!(texts(&document).len() > 3, "{}: {narrow}", section.id);
                assert!(
                    document
                        .descendants()
                        .all(|e| ["", "svg", "rect", "text", "line", "polyline", "polygon", "circle"].contains(&e.tag_name().name()))
                );
            }
            drawing(&draw::file(&section.plots).unwrap());
        }
    }
}

#[test]
fn plots_name_their_subjects_axes_and_values() {
    let all = sections(&results());
    let texts_of = |id: &str| {
        let section = all.iter().find(|s| s.id == id).unwrap();
        texts(&drawing(&draw::file(&section.plots).unwrap()))
    };
    for (id, expected) in [
        ("rates", ["Zero-loss rate, established flows", "nomagic", "nftables DNAT", "Services", "zero-loss rate (kpps)", "10k"]),
        ("ratios", ["Zero-loss rate of one over another", "1: equally fast", "ratio", "0.969", "1.51", "2.44"]),
        ("latency", ["Latency at 50 % of the zero-loss rate", "p50", "p99.9", "p99.99", "percentile of frames", "latency (us)"]),
        ("cpu", ["CPU time a packet, by kind", "user", "softirq", "system calls", "CPU time a packet (us)", "routing alone"]),
    ] {
        let found = texts_of(id);
        for words in expected {
            assert!(found.iter().any(|t| t == words), "{id}: {words} is not in {found:?}");
        }
    }
}

/// A longer bar is a larger value.
#[test]
fn bars_are_as_long_as_their_values() {
    let results = results();
    let all = sections(&results);
    let section = all.iter().find(|s| s.id == "flood").unwrap();
    let svg = draw::file(&section.plots).unwrap();
    let document = drawing(&svg);
    // The ground is the widest; bars are filled with the colour of a kind of subject.
    let bars: Vec<f64> = document
        .descendants()
        .filter(|e| e.has_tag_name("rect") && e.attribute("fill") != Some("#FFFFFF"))
        .map(|e| e.attribute("width").unwrap().parse().unwrap())
        .collect();
    let goodputs: Vec<f64> = results.flood.iter().map(|r| r.goodput.value().unwrap().median).collect();
    assert_eq!(bars.len(), goodputs.len(), "{svg}");
    for (bar, goodput) in bars.iter().zip(&goodputs) {
        assert!((bar / bars[0] - goodput / goodputs[0]).abs() < 0.01, "{bars:?} {goodputs:?}");
    }
}

#[test]
fn figures_are_aligned_and_say_why_when_they_are_missing() {
    let text = text::figures(&results());
    let lines: Vec<&str> = text.lines().collect();
    let at = |line: &str, word: &str| line.find(word).map(|byte| line[..byte].chars().count());
    let column = at(lines[0], "outcome").unwrap();
    for (line, word) in [(lines[1], "✓ reached"), (lines[2], "✗ not reached"), (lines[3], "– not measured")] {
        assert_eq!(at(line, word), Some(column), "{text}");
    }
    assert!(lines[3].contains("not measured: no NIC"), "{text}");
    let mut none = results();
    none.figures.clear();
    assert_eq!(text::figures(&none), "No figures were wanted.\n");
}

#[test]
fn a_terminal_gets_no_control_characters() {
    let (new, old) = (hostile(), results());
    let comparisons = [Comparison::new(&new, &old), Comparison::new(&old, &new)].map(|c| text::comparison(&c));
    for text in [text::figures(&new), text::summary(&new)].iter().chain(&comparisons) {
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }
}

#[test]
fn every_section_is_in_the_summary_also_without_results() {
    let mut r = results();
    assert!(text::summary(&r).contains("nothing here is a network card's figure"));
    for part in ["620 kpps", "p99.99", "connections in the table", "blocked", "goodput"] {
        assert!(text::summary(&r).contains(part), "{part}:\n{}", text::summary(&r));
    }
    r.latencies.clear();
    r.rig.kind = RigKind::Nic;
    assert!(text::summary(&r).contains("Latency: Not in these results: latencies."), "{}", text::summary(&r));
    assert!(!text::summary(&r).contains("network card's"));
}

#[test]
fn scripts_find_medians_intervals_and_reasons_by_name() {
    let all = summary::json(&results());
    assert_eq!(all["rig"], "veth");
    assert_eq!(all["figures/zero-loss rate, nomagic / no-work loop"], "reached");
    assert_eq!(all["rates/nomagic-1/established/zero-loss"], 620_000.0);
    assert!(all["rates/nomagic-1/established/zero-loss.low"].as_f64().unwrap() < 620_000.0);
    assert_eq!(all["latency/nomagic-1000/50/p99.9"], 92.0);
    assert!(all.get("latency/nomagic-1000/50/p99.9.low").is_none());
    assert_eq!(all["connections/nomagic-1"], Value::Null);
    assert!(all["connections/nomagic-1.notMeasured"].as_str().unwrap().contains("clients"));
    assert!(all.as_object().unwrap().values().all(|v| !v.is_object() && !v.is_array()));
}

#[test]
fn rows_of_the_same_name_keep_both_values() {
    let mut r = results();
    r.flood.push(r.flood[0].clone());
    let keys: Vec<String> = summary::entries(&r).into_iter().map(|e| e.key).filter(|k| k.starts_with("flood/")).collect();
    assert!(keys.contains(&"flood/nomagic-1000".into()) && keys.contains(&"flood/nomagic-1000#2".into()), "{keys:?}");
}

#[test]
fn the_same_run_twice_has_no_difference() {
    let c = Comparison::new(&results(), &results());
    assert!(c.differences.is_empty() && c.only_new.is_empty() && c.only_old.is_empty(), "{c:?}");
    assert_eq!((c.count(Change::Worse), c.count(Change::Better)), (0, 0));
    assert!(c.count(Change::NoDifference) > 10 && c.count(Change::NoInterval) > 10, "{}", c.verdict());
    assert_eq!(c.tables().len(), IDS.len());
}

#[test]
fn another_machine_and_rows_of_one_run_are_named() {
    let (old, mut new) = (results(), results());
    new.manifest.kernel = "6.99".into();
    new.manifest.commit = Some("fedcba9".into());
    new.rig.lb_cpu = 7;
    for row in &mut new.rates {
        row.zero_loss = row.zero_loss.map(|e| Estimate { median: e.median / 2.0, low: e.low / 2.0, high: e.high / 2.0, n: e.n });
    }
    let gone = new.flood.pop().unwrap();
    new.programming[0].how = "by post".into();
    let c = Comparison::new(&new, &old);
    for part in ["kernel: 6.1.0-31-amd64 then, 6.99 now", "commit: ", "CPUs of subject and generator: 0 and 1 then, 7 and 1 now"] {
        assert!(c.differences.iter().any(|d| d.starts_with(part)), "{part}: {:?}", c.differences);
    }
    assert_eq!(c.differences.len(), 3);
    let measured = old.rates.iter().filter(|r| r.zero_loss.value().is_some()).count();
    assert_eq!((c.count(Change::Worse), c.count(Change::Better)), (measured, 0));
    assert!(c.only_new.iter().any(|n| n.contains("by post")), "{:?}", c.only_new);
    assert!(c.only_old.iter().any(|n| n.contains(old.label(&gone.subject))), "{:?}", c.only_old);
    let text: String = c.tables().iter().map(|t| t.1.text()).collect();
    assert!(text.contains("✗ worse") && text.contains("-50.0 %"), "{text}");
}
