//! Validation of new `events.k8s.io/v1` Events, as in the real server (`pkg/apis/core/validation/events.go`).

use serde_json::Value;

/// Required fields and their maximum length, bytes.
const REQUIRED: [(&str, usize); 5] =
    [("reportingController", 253), ("reportingInstance", 128), ("action", 128), ("reason", 128), ("type", 7)];
/// Fields that a new Event must not set.
const DEPRECATED: [&str; 4] = ["deprecatedSource", "deprecatedFirstTimestamp", "deprecatedLastTimestamp", "deprecatedCount"];
/// Maximum length of a note, bytes.
const NOTE_MAX: usize = 1_024;

/// Validates an Event that is created in a namespace.
pub(crate) fn validate(event: &Value, namespace: Option<&str>) -> Result<(), String> {
    let text = |field: &str| event[field].as_str().unwrap_or_default();
    for (field, bytes_max) in REQUIRED {
        if !(1..=bytes_max).contains(&text(field).len()) {
            return Err(format!("{field}: Invalid value: must have 1 to {bytes_max} characters"));
        }
    }
    if !["Normal", "Warning"].contains(&text("type")) {
        return Err(format!("type: Invalid value: {:?}", text("type")));
    }
    if !is_micro_time(text("eventTime")) {
        return Err(format!("eventTime: Invalid value: {:?} is not a timestamp with microseconds", text("eventTime")));
    }
    if let Some(field) = DEPRECATED.iter().find(|field| !event[**field].is_null()) {
        return Err(format!("{field}: Invalid value: needs to be unset"));
    }
    if text("note").len() > NOTE_MAX {
        return Err(format!("note: Invalid value: can have at most {NOTE_MAX} characters"));
    }
    let (own, regarding) = (event["metadata"]["namespace"].as_str(), event["regarding"]["namespace"].as_str());
    let fits = match regarding.filter(|n| !n.is_empty()) {
        Some(regarding) => own == Some(regarding),
        None => matches!(own, Some("default" | "kube-system")),
    };
    if !fits || own != namespace {
        return Err(format!("metadata.namespace: {own:?} does not match the path's {namespace:?} and regarding.namespace {regarding:?}"));
    }
    Ok(())
}

/// `2026-01-02T03:04:05.678901Z`
fn is_micro_time(text: &str) -> bool {
    const FORM: &[u8] = b"0000-00-00T00:00:00.000000Z";
    text.len() == FORM.len() && text.bytes().zip(FORM).all(|(c, form)| if *form == b'0' { c.is_ascii_digit() } else { c == *form })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn invalid_events_are_rejected() {
        let good = json!({
            "metadata": {"name": "a.1", "namespace": "default"}, "regarding": {"kind": "Node", "name": "a"},
            "eventTime": "2026-01-02T03:04:05.678901Z", "reportingController": "c", "reportingInstance": "i",
            "action": "A", "reason": "R", "type": "Normal", "note": "n",
        });
        assert_eq!(validate(&good, Some("default")), Ok(()));
        for (field, value) in [
            ("eventTime", json!("2026-01-02T03:04:05Z")),
            ("eventTime", Value::Null),
            ("reportingInstance", json!("i".repeat(129))),
            ("action", json!("")),
            ("type", json!("Error")),
            ("note", json!("n".repeat(1_025))),
            ("deprecatedCount", json!(1)),
            ("regarding", json!({"namespace": "other"})),
        ] {
            let mut bad = good.clone();
            bad[field] = value;
            assert!(validate(&bad, Some("default")).is_err(), "{field}");
        }
        assert!(validate(&good, Some("other")).is_err());
    }
}
