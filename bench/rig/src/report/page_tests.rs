use super::*;
use crate::report::fixture::{hostile, results, unmeasured};
use crate::report::sections::IDS;

/// The page without its JSON, which has every string again.
fn visible(page: &str) -> &str {
    page.split_once("<footer>").unwrap().0
}

/// Every reason in the JSON of results.
fn reasons(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            found.extend(map.get("notMeasured").and_then(|v| v.as_str()).map(str::to_owned));
            map.values().for_each(|v| reasons(v, found));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|v| reasons(v, found)),
        _ => {}
    }
}

#[test]
fn every_reason_is_in_the_page_and_in_the_terminal() {
    for results in [results(), unmeasured(), hostile()] {
        let mut found = Vec::new();
        reasons(&serde_json::to_value(&results).unwrap(), &mut found);
        assert!(found.len() > 2, "{found:?}");
        let page = html(&results, None).unwrap();
        let text = crate::report::text::summary(&results);
        for why in found {
            let words = Cell::Missing(why, 1).words();
            assert!(visible(&page).contains(&escape(&words)), "{words} is not in the page");
            assert!(text.contains(&words), "{words} is not in\n{text}");
        }
    }
}

#[test]
fn no_cell_is_empty_and_nothing_undefined_is_shown() {
    for results in [results(), unmeasured(), hostile()] {
        let page = html(&results, Some(&Comparison::new(&results, &unmeasured()))).unwrap();
        for hole in ["<td></td>", "\"></td>", "\"></th>", "<dd></dd>", "<span></span>", "NaN", "\"inf", ">inf"] {
            assert!(!visible(&page).contains(hole), "{hole}");
        }
    }
}

#[test]
fn names_cannot_become_elements() {
    let page = html(&hostile(), Some(&Comparison::new(&hostile(), &results()))).unwrap();
    assert_eq!(page.matches("<script").count(), 1, "only the results");
    assert_eq!(page.matches("</script").count(), 1);
    for part in ["<img", "<!--", "<b>", "http://", "https://", "url(", "@import", " src=\"", "onload=\""] {
        assert!(!page.contains(part), "{part}");
    }
    let json = page.split_once("id=\"results\">").unwrap().1.split_once("</script>").unwrap().0;
    assert!(Results::parse(json).unwrap() == hostile(), "the JSON is not that of the results");
    assert!(page.contains(POLICY));
}

#[test]
fn what_is_missing_is_said_in_a_sentence() {
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
    let page = html(&empty, None).unwrap();
    assert_eq!(page.matches("Not in these results: ").count(), IDS.len());
    assert!(page.contains("No figures were wanted.") && !page.contains("<svg role"), "an empty plot");
    let page = html(&unmeasured(), None).unwrap();
    assert!(!page.contains("<svg role"), "an empty plot");
}

#[test]
fn the_link_holds_the_same_json() {
    let page = html(&results(), None).unwrap();
    let encoded = page.split_once("data:application/json,").unwrap().1.split_once('"').unwrap().0;
    let mut bytes = Vec::new();
    let mut rest = encoded.bytes();
    while let Some(b) = rest.next() {
        let mut digit = || char::from(rest.next().unwrap()).to_digit(16).unwrap() as u8;
        bytes.push(if b == b'%' { digit() << 4 | digit() } else { b });
    }
    assert_eq!(String::from_utf8(bytes).unwrap(), serde_json::to_string(&results()).unwrap());
}

#[test]
fn a_plot_alone_brings_its_looks_and_its_ground() {
    for section in sections(&results()) {
        let svg = crate::report::style::standalone(&section.plots);
        assert!(
            svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\"") && svg.contains("class=\"ground\"") && svg.contains("<style>"),
            "{svg}"
        );
        assert!(section.plots.iter().all(|p| svg.contains(&escape(p.title()))), "{}", section.id);
    }
}
