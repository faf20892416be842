//! Compares the running gateway's answer with that of files.

use std::collections::BTreeSet;

use nomagic_api::explain::{Answer, Difference, Verdict};
use serde_json::{Value, json};

/// Maximum number of candidates named in a sentence.
const NAMED_MAX: usize = 6;

/// Adds what files answer otherwise: as fields, and as the last step. `as_new`: the gateway's answer about a new flow, if it knows this one.
pub(super) fn add(live: &mut Answer, as_new: Option<&Answer>, files: &Answer) {
    let differences = differences(as_new.unwrap_or(live), files);
    let subject = if as_new.is_some() { " Files know no flows, so a new one in its place is compared." } else { "" };
    live.steps.push(match differences.as_slice() {
        [] => format!("The files answer the same.{subject}"),
        some => {
            let each: Vec<String> = some.iter().map(words).collect();
            format!("The files answer otherwise: {}.{subject}", each.join("; "))
        }
    });
    live.differences = Some(differences);
}

fn differences(live: &Answer, files: &Answer) -> Vec<Difference> {
    // Only a gateway has neighbours to wait for.
    let plain = |verdict: Verdict| if verdict == Verdict::Hold { Verdict::Forward } else { verdict };
    let sorted = |backends: &[String]| backends.iter().cloned().collect::<BTreeSet<String>>();
    let mut fields = vec![
        ("verdict", json!(plain(live.verdict)), json!(plain(files.verdict))),
        ("reason", json!(live.reason), json!(files.reason)),
        ("service", json!(live.service), json!(files.service)),
        ("port", json!(live.port), json!(files.port)),
        ("address", json!(live.address), json!(files.address)),
        ("backends", json!(sorted(&live.backends)), json!(sorted(&files.backends))),
        ("snat", json!(live.snat), json!(files.snat)),
    ];
    // Without the seed the files' choice is only an example.
    if files.certain {
        fields.push(("chosen", json!(live.chosen), json!(files.chosen)));
    }
    let differs = fields.into_iter().filter(|(_, live, files)| live != files);
    differs.map(|(field, live, files)| Difference { field: field.into(), live, files }).collect()
}

fn words(difference: &Difference) -> String {
    let Difference { field, live, files } = difference;
    if let (Value::Array(live), Value::Array(files)) = (live, files) {
        let only = |of: &[Value], others: &[Value]| {
            let names: Vec<&str> = of.iter().filter(|v| !others.contains(v)).filter_map(Value::as_str).collect();
            let more = names.len().saturating_sub(NAMED_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            (!names.is_empty()).then(|| format!("{}{more}", names[..names.len().min(NAMED_MAX)].join(", ")))
        };
        let live_only = only(live, files).map(|names| format!("{names} only in the gateway"));
        let files_only = only(files, live).map(|names| format!("{names} only in the files"));
        let both: Vec<String> = live_only.into_iter().chain(files_only).collect();
        return format!("{field}: {}", both.join(", "));
    }
    let shown =
        |value: &Value| value.as_str().map_or_else(|| if value.is_null() { "none".into() } else { value.to_string() }, str::to_owned);
    format!("{field} is {} in the gateway, {} in the files", shown(live), shown(files))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(verdict: Verdict, backends: &[&str], chosen: Option<&str>) -> Answer {
        let mut answer = Answer::new("tcp 1.2.3.4:1 -> 5.6.7.8:9", verdict);
        answer.backends = backends.iter().map(|b| (*b).to_owned()).collect();
        answer.chosen = chosen.map(Into::into);
        answer
    }

    fn compared(mut live: Answer, as_new: Option<&Answer>, files: &Answer) -> (Vec<String>, String) {
        add(&mut live, as_new, files);
        (live.differences.unwrap().into_iter().map(|d| d.field).collect(), live.steps.pop().unwrap())
    }

    #[test]
    fn equal_answers_differ_in_nothing() {
        let forward = answer(Verdict::Forward, &["a", "b"], Some("a"));
        let (fields, step) = compared(forward.clone(), None, &forward);
        assert_eq!((fields.len(), step.as_str()), (0, "The files answer the same."));
        let held = answer(Verdict::Hold, &["b", "a"], Some("a"));
        assert_eq!(compared(held, None, &forward).0.len(), 0, "it will be forwarded");
        let mut uncertain = answer(Verdict::Forward, &["a", "b"], Some("b"));
        assert_eq!(compared(forward.clone(), None, &uncertain).0, ["chosen"]);
        uncertain.certain = false;
        assert_eq!(compared(forward, None, &uncertain).0.len(), 0);
    }

    #[test]
    fn every_difference_is_named() {
        let files = answer(Verdict::Reject, &["b", "c"], None);
        let (fields, step) = compared(answer(Verdict::Forward, &["a", "b"], Some("a")), None, &files);
        assert_eq!(fields, ["verdict", "backends", "chosen"]);
        let expected = "The files answer otherwise: verdict is forward in the gateway, reject in the files; backends: a only in the gateway, c only \
                        in the files; chosen is a in the gateway, none in the files.";
        assert_eq!(step, expected);
        // Of a known flow, a new one is compared.
        let new = answer(Verdict::Reject, &["b", "c"], None);
        let (fields, step) = compared(answer(Verdict::Forward, &[], Some("a")), Some(&new), &files);
        assert!(fields.is_empty() && step.contains("a new one in its place is compared"), "{step}");
    }
}
