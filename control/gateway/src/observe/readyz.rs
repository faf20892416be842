//! The state behind `/readyz`: what the control loop last said, and when.

use std::time::{Duration, Instant};

use serde::Serialize;

/// The control loop looks at its readiness twice a second. If it has not for this long, it hangs.
const AGE_MAX: Duration = Duration::from_secs(10);

/// Whether the gateway can carry, as the control loop last said.
#[derive(Debug)]
pub struct Readyz {
    said: Instant,
    /// Why it cannot.
    reasons: Vec<String>,
}

impl Readyz {
    /// Not ready until the control loop says so.
    pub fn starting(now: Instant) -> Readyz {
        Readyz { said: now, reasons: vec!["nomagic is starting".into()] }
    }

    /// Records why the gateway cannot carry; nothing if it can.
    pub fn say(&mut self, reasons: Vec<String>, now: Instant) {
        *self = Readyz { said: now, reasons };
    }

    /// The response: `(good, body)`.
    pub fn respond(&self, now: Instant) -> (bool, String) {
        let age = now.saturating_duration_since(self.said);
        let hangs = (self.reasons.is_empty() && age > AGE_MAX).then(|| format!("the control loop has not run for {} s", age.as_secs()));
        let reasons: Vec<&str> = self.reasons.iter().chain(&hangs).map(String::as_str).collect();
        let report = ReadyReport { ready: reasons.is_empty(), reasons };
        (report.ready, serde_json::to_string(&report).unwrap_or_default())
    }
}

/// The body of `/readyz`.
#[derive(Serialize)]
struct ReadyReport<'a> {
    ready: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<&'a str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_what_the_control_loop_said_recently() {
        let start = Instant::now();
        let mut readyz = Readyz::starting(start);
        assert_eq!(readyz.respond(start), (false, r#"{"ready":false,"reasons":["nomagic is starting"]}"#.into()));
        readyz.say(Vec::new(), start);
        assert_eq!(readyz.respond(start + AGE_MAX), (true, r#"{"ready":true}"#.into()));
        let (good, body) = readyz.respond(start + AGE_MAX + Duration::from_secs(1));
        assert!(!good && body.contains("has not run for 11 s"), "{body}");
        readyz.say(vec!["port \"a\" is missing".into()], start);
        assert_eq!(readyz.respond(start), (false, r#"{"ready":false,"reasons":["port \"a\" is missing"]}"#.into()));
    }
}
