//! Builds the events.k8s.io/v1 object of an event, within the limits of `pkg/apis/core/validation/events.go`.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;

use super::{Event, Regarding, Type};

const CONTROLLER: &str = "nomagic";
/// Maximum length of a note in bytes.
const NOTE_MAX: usize = 1_024;
/// Maximum length of the reporting instance in bytes.
const INSTANCE_MAX: usize = 128;
/// Bytes of the regarding object's name used in the event's name, which has at most 253.
const NAME_MAX: usize = 230;
/// Namespace of events about cluster-scoped objects.
const DEFAULT_NAMESPACE: &str = "default";

/// Builds the object. `node` is the reporting node, `at` the time of the event.
pub(super) fn object(event: &Event, node: &str, at: Timestamp) -> k8s::Event {
    let regarding = match &event.regarding {
        // Like kube-proxy: `kubectl describe node` selects events by the node's name in the UID field.
        Regarding::Node(name) => {
            ObjectReference { kind: Some("Node".into()), name: Some(name.clone()), uid: Some(name.clone()), ..ObjectReference::default() }
        }
        Regarding::Service(key) => ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Service".into()),
            namespace: Some(key.namespace.clone()),
            name: Some(key.name.clone()),
            ..ObjectReference::default()
        },
    };
    let name = regarding.name.as_deref().unwrap_or_default();
    // Each label of a DNS name must end with a letter or a digit.
    let stem = cut(name, NAME_MAX).trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
    k8s::Event {
        metadata: ObjectMeta {
            name: Some(format!("{stem}.{:x}", at.as_nanosecond())),
            namespace: Some(regarding.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.into())),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(at)),
        reporting_controller: Some(CONTROLLER.into()),
        reporting_instance: Some(cut(&format!("{CONTROLLER}-{node}"), INSTANCE_MAX).into()),
        action: Some(event.action.into()),
        reason: Some(event.reason.into()),
        type_: Some(if event.kind == Type::Normal { "Normal" } else { "Warning" }.into()),
        note: Some(cut(&event.note, NOTE_MAX).into()),
        regarding: Some(regarding),
        ..k8s::Event::default()
    }
}

/// Truncates a text to at most `bytes_max` bytes, at a character boundary.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use nomagic_table::objects::NamespacedName;
    use serde_json::json;

    use super::*;

    #[test]
    fn object_matches_the_api() {
        let at: Timestamp = "2026-01-02T03:04:05.678901234Z".parse().unwrap();
        let service = NamespacedName { namespace: "shop".into(), name: "web".into() };
        let event = Event::no_health_check("gw-1", &service, 31_999, "Address already in use");
        assert_eq!(
            serde_json::to_value(object(&event, "gw-1", at)).unwrap(),
            json!({
                "apiVersion": "events.k8s.io/v1", "kind": "Event",
                "metadata": {"name": format!("web.{:x}", at.as_nanosecond()), "namespace": "shop"},
                "eventTime": "2026-01-02T03:04:05.678901Z",
                "reportingController": "nomagic", "reportingInstance": "nomagic-gw-1",
                "action": "Listen", "reason": "FailedToStartServiceHealthcheck", "type": "Warning",
                "note": "node gw-1 failed to start healthcheck \"shop/web\" on port 31999: Address already in use",
                "regarding": {"apiVersion": "v1", "kind": "Service", "namespace": "shop", "name": "web"},
            })
        );
        let started = object(&Event::starting("gw-1"), "gw-1", at);
        assert_eq!((started.metadata.namespace.as_deref(), started.type_.as_deref()), (Some("default"), Some("Normal")));
        assert_eq!(serde_json::to_value(started.regarding).unwrap(), json!({"kind": "Node", "name": "gw-1", "uid": "gw-1"}));
    }

    #[test]
    fn long_names_and_notes_are_cut() {
        let long = format!("{}.{}", "a".repeat(NAME_MAX - 1), "b".repeat(22));
        let made = object(&Event::no_healthz(&long, &"ä".repeat(NOTE_MAX)), &long, Timestamp::MAX);
        let name = made.metadata.name.unwrap();
        assert!(name.len() <= 253 && name.starts_with(&format!("{}.", "a".repeat(NAME_MAX - 1))) && !name.contains(".."), "{name}");
        assert_eq!((made.note.unwrap().len(), made.reporting_instance.unwrap().len()), (NOTE_MAX, INSTANCE_MAX));
    }
}
