//! The control socket. A client sends one line with a request and receives one line with the answer; both are JSON objects.
//!
//! ```text
//! {"version":1,"request":{"status":{}}}
//! {"version":1,"response":{"status":{"schema":1,"ready":true,...}}}
//! {"version":1,"error":"unknown request `trace`; known: status, explain, deny_add, ..."}
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Status;
use crate::deny::{DenyChange, DenyReport};
use crate::events::{EventFilter, EventsFrom, EventsPage};
use crate::explain::Answer;
use crate::flows::{CountBy, FlowFilter, FlowsPage};
use crate::services::{ServiceFilter, ServicesPage};
use crate::taps::{TapPage, TapRequest};

/// The protocol version of this program.
pub const VERSION: u32 = 1;
/// Maximum length of a request in bytes, including the newline.
pub const REQUEST_MAX: u64 = 4_096;
/// Maximum length of an answer in bytes.
pub const ANSWER_MAX: u64 = 256 << 20;

/// A client's request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// The gateway's [`Status`].
    Status {},
    /// What happens to a packet now, with the gateway's tables, flows and routes; `flow` has the notation of `nomagic explain`. `as_new`: as if
    /// the gateway did not know the flow.
    Explain {
        flow: String,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        as_new: bool,
    },
    /// Denies a prefix, for a time or, without one, until it is removed. A prefix that is denied by command gets the new time.
    DenyAdd { prefix: String, for_s: Option<u64> },
    /// Takes a [`Request::DenyAdd`] back.
    DenyRemove { prefix: String },
    /// The deny list, with what each prefix has dropped.
    DenyList {},
    /// Tells load balancers to leave, or (`on: false`) to come back. Traffic goes on.
    Drain { on: bool },
    /// Flows that fit, from slot `from` on. `count_by`: counts them instead.
    Flows { filter: FlowFilter, count_by: Option<CountBy>, from: u32 },
    /// Ends the flows that fit, from slot `from` on. A filter that selects all flows is refused, unless `all` is set.
    FlowsEnd { filter: FlowFilter, from: u32, all: bool },
    /// Events that fit.
    Events { filter: EventFilter, from: EventsFrom },
    /// Watches packets from now on.
    TapOpen(TapRequest),
    /// What a tap has seen since it was read last. A tap must be read every few seconds, else it ends.
    TapRead { id: u64 },
    /// Ends a tap.
    TapClose { id: u64 },
    /// Logs from this level on until the process ends; `None` only asks.
    Log { level: Option<String> },
    /// Services that fit, from this one on (`namespace/name`, whether it exists or not).
    Services { filter: ServiceFilter, from: Option<String> },
}

/// The names of all requests.
const KNOWN: [&str; 14] = [
    "status",
    "explain",
    "deny_add",
    "deny_remove",
    "deny_list",
    "drain",
    "flows",
    "flows_end",
    "events",
    "tap_open",
    "tap_read",
    "tap_close",
    "log",
    "services",
];

/// A gateway's answer to a request.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Explain`].
    Explain(Box<Answer>),
    /// To [`Request::DenyAdd`] and [`Request::DenyRemove`].
    DenyChange(DenyChange),
    /// To [`Request::DenyList`].
    DenyReport(DenyReport),
    /// To [`Request::Drain`].
    Drain { on: bool },
    /// To [`Request::Flows`].
    Flows(FlowsPage),
    /// To [`Request::FlowsEnd`]: the number of flows ended, and the slot to go on at.
    FlowsEnd { ended: u64, next: Option<u32> },
    /// To [`Request::Events`].
    Events(EventsPage),
    /// To [`Request::TapOpen`].
    TapOpen { id: u64 },
    /// To [`Request::TapRead`].
    TapRead(TapPage),
    /// To [`Request::TapClose`].
    TapClose {},
    /// To [`Request::Log`]: the level now.
    Log { level: String },
    /// To [`Request::Services`].
    Services(ServicesPage),
}

#[derive(Deserialize)]
struct Call {
    version: u32,
    request: Value,
}

#[derive(Serialize, Deserialize)]
struct Reply {
    version: u32,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Response(Response),
    Error(String),
}

impl Request {
    /// The line to send, including the newline.
    pub fn line(&self) -> String {
        format!("{}\n", serde_json::json!({ "version": VERSION, "request": self }))
    }

    /// Whether it changes nothing and shows no packet's bytes.
    pub fn is_read_only(&self) -> bool {
        match self {
            Request::Status {} | Request::Explain { .. } | Request::DenyList {} => true,
            Request::Flows { .. } | Request::Events { .. } | Request::Services { .. } => true,
            Request::Log { level } => level.is_none(),
            Request::DenyAdd { .. } | Request::DenyRemove { .. } | Request::Drain { .. } | Request::FlowsEnd { .. } => false,
            Request::TapOpen(_) | Request::TapRead { .. } | Request::TapClose { .. } => false,
        }
    }

    /// Parses a client's line. `Err` is the error message to answer with.
    pub fn parse(line: &str) -> Result<Request, String> {
        let call: Call = serde_json::from_str(line)
            .map_err(|e| format!("not a request ({e}); one is a line like {}", Request::Status {}.line().trim_end()))?;
        if call.version != VERSION {
            return Err(format!("request of version {}; this gateway speaks version {VERSION}", call.version));
        }
        let name = match &call.request {
            Value::Object(fields) if fields.len() == 1 => fields.keys().next().cloned(),
            _ => None,
        };
        let Some(name) = name else { return Err("`request` must be an object with one field, named as the request is".into()) };
        if !KNOWN.contains(&name.as_str()) {
            return Err(format!("unknown request `{name}`; known: {}", KNOWN.join(", ")));
        }
        serde_json::from_value(call.request).map_err(|e| format!("request `{name}`: {e}"))
    }
}

/// The line that answers a request, including the newline.
pub fn reply(outcome: Result<Response, String>) -> String {
    let outcome = match outcome {
        Ok(response) => Outcome::Response(response),
        Err(error) => Outcome::Error(error),
    };
    let line = serde_json::to_string(&Reply { version: VERSION, outcome });
    // Cannot fail: all maps have string keys.
    line.unwrap_or_else(|e| format!("{{\"version\":{VERSION},\"error\":\"the answer cannot be written: {e}\"}}")) + "\n"
}

/// Parses a gateway's line. `Err` says why there is no answer.
pub fn parse_reply(line: &str) -> Result<Response, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let foreign = |e: serde_json::Error| format!("the answer cannot be read ({e}): is the other process of another version?");
    let Version { version } = serde_json::from_str(line).map_err(foreign)?;
    if version != VERSION {
        return Err(format!("the answer is of version {version}, this program speaks version {VERSION}"));
    }
    match serde_json::from_str::<Reply>(line).map_err(foreign)?.outcome {
        Outcome::Response(response) => Ok(response),
        Outcome::Error(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_round_trip() {
        assert_eq!(Request::Status {}.line(), "{\"request\":{\"status\":{}},\"version\":1}\n");
        assert_eq!(Request::parse(&Request::Status {}.line()), Ok(Request::Status {}));
        let status = Response::Status(Box::new(Status { uptime_s: 9, ..Status::default() }));
        let line = reply(Ok(status.clone()));
        assert!(line.starts_with("{\"version\":1,\"response\":{\"status\":{\"schema\":1,"), "{line}");
        assert_eq!((line.matches('\n').count(), parse_reply(&line)), (1, Ok(status)));
        let line = reply(Err("no \"such\"\nthing".into()));
        assert_eq!((line.matches('\n').count(), parse_reply(&line)), (1, Err("no \"such\"\nthing".into())));
    }

    #[test]
    fn every_known_request_can_be_made() {
        let prefix = "192.0.2.0/24".to_owned();
        let requests = [
            Request::Status {},
            Request::Explain { flow: "udp 10.0.0.1:1 -> 10.0.0.2:53".into(), as_new: true },
            Request::DenyAdd { prefix: prefix.clone(), for_s: Some(600) },
            Request::DenyRemove { prefix },
            Request::DenyList {},
            Request::Drain { on: true },
            Request::Flows {
                filter: FlowFilter { service: Some("default/web".into()), state: "established".parse().ok(), ..FlowFilter::default() },
                count_by: Some(CountBy::Backend),
                from: 7,
            },
            Request::FlowsEnd { filter: FlowFilter { port: Some(80), ..FlowFilter::default() }, from: 7, all: false },
            Request::Events { filter: EventFilter::default(), from: EventsFrom::Cursor(vec![1, 2]) },
            Request::TapOpen(TapRequest { filter: FlowFilter::default(), snap_len: 96, packets_per_s: 10, lasts_s: 60 }),
            Request::TapRead { id: 7 },
            Request::TapClose { id: 7 },
            Request::Log { level: Some("debug".into()) },
            Request::Services {
                filter: ServiceFilter { namespace: Some("default".into()), problems: true, ..ServiceFilter::default() },
                from: Some("default/web".into()),
            },
        ];
        assert_eq!(requests.len(), KNOWN.len());
        for (request, name) in requests.iter().zip(KNOWN) {
            assert!(request.line().contains(&format!("{{\"{name}\":")), "{name}");
            assert_eq!(Request::parse(&request.line()).as_ref(), Ok(request));
        }
    }

    #[test]
    fn invalid_requests_are_answered_with_an_error() {
        for (line, words) in [
            ("status", "not a request"),
            ("", "not a request"),
            ("{}", "missing field `version`"),
            (r#"{"version":2,"request":{"status":{}}}"#, "this gateway speaks version 1"),
            (r#"{"version":1,"request":{"trace":{}}}"#, "unknown request `trace`; known: status, explain, deny_add"),
            (r#"{"version":1,"request":"status"}"#, "an object with one field"),
            (r#"{"version":1,"request":{"status":{},"flows":{}}}"#, "an object with one field"),
            (r#"{"version":1,"request":{"flows":{"filter":{"host":"a"},"from":0}}}"#, "request `flows`: unknown field `host`"),
            (r#"{"version":1,"request":{"status":7}}"#, "request `status`: "),
            (r#"{"version":1,"request":{"services":{"filter":{"name":"a"}}}}"#, "request `services`: unknown field `name`"),
            (r#"{"version":1,"request":{"explain":{}}}"#, "request `explain`: missing field `flow`"),
            (r#"{"version":1,"request":{"deny_add":{"for_s":1}}}"#, "request `deny_add`: missing field `prefix`"),
            (r#"{"version":1,"request":{"deny_add":{"prefix":"::/0","for_s":-1}}}"#, "request `deny_add`: "),
        ] {
            let error = Request::parse(line).unwrap_err();
            assert!(error.contains(words), "{line}: {error}");
        }
        for (line, words) in [("status", "of another version"), (r#"{"version":3,"response":{}}"#, "of version 3")] {
            let error = parse_reply(line).unwrap_err();
            assert!(error.contains(words), "{line}: {error}");
        }
    }
}
