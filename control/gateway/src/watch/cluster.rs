//! The identity of the cluster: the UID of the Namespace kube-system. All gateways of a cluster can read it, clients outside cannot.
//!
//! It is read beside the first list, so that gateways of one cluster agree on it: a gateway that did not wait for the answer would choose
//! another hash seed than the others. The wait has a limit, because Services must work without it.

use std::pin::pin;
use std::time::Duration;

use nomagic_table::problem::shown;
use serde_json::Value;

use super::WatchTimeouts;
use super::backoff::Backoff;
use super::client::{ApiClient, open};
use super::fault::ApiFault;
use super::query;

/// How long a finished list waits for the UID. It was requested when the list began, so a server that answers has answered by then.
pub(super) const UID_WAIT: Duration = Duration::from_secs(2);
/// Maximum size of a Namespace, bytes.
const NAMESPACE_BYTES_MAX: usize = 1 << 20;
/// Maximum length of a UID, bytes. Servers use UUIDs, which have 36.
const UID_BYTES_MAX: usize = 128;

/// Runs `listing`, and reads the UID meanwhile: `(the list, the UID or why it cannot be read)`. Ends at the latest [`UID_WAIT`] after the
/// list; if that fails, at once.
pub(super) async fn read_uid_beside<T>(
    client: &ApiClient,
    timeouts: WatchTimeouts,
    listing: impl Future<Output = Result<T, ApiFault>>,
) -> Result<(T, Result<String, String>), ApiFault> {
    let mut reader = UidReader { client, timeouts, latest: None };
    let (list, uid) = {
        let (mut reading, mut listing) = (pin!(reader.read()), pin!(listing));
        let mut uid = None;
        let list = loop {
            tokio::select! {
                listed = &mut listing => break listed?,
                read = &mut reading, if uid.is_none() => uid = Some(read),
            }
        };
        match uid {
            Some(uid) => (list, Some(uid)),
            None => (list, tokio::time::timeout(UID_WAIT, reading).await.ok()),
        }
    };
    let late = || Err(reader.latest.take().unwrap_or(ApiFault::Timeout(UID_WAIT)));
    Ok((list, uid.unwrap_or_else(late).map_err(|fault| shown(&words(&fault)))))
}

struct UidReader<'c> {
    client: &'c ApiClient,
    timeouts: WatchTimeouts,
    /// The latest fault that may pass.
    latest: Option<ApiFault>,
}

impl UidReader<'_> {
    /// Tries until the server has answered.
    async fn read(&mut self) -> Result<String, ApiFault> {
        let mut backoff = Backoff::new(self.timeouts.pause_min, self.timeouts.pause_max);
        loop {
            match self.attempt().await {
                Err(fault) if may_pass(&fault) => self.latest = Some(fault),
                answered => return answered,
            }
            tokio::time::sleep(backoff.pause(None)).await;
        }
    }

    async fn attempt(&self) -> Result<String, ApiFault> {
        let body = open(self.client, query::kube_system()?, self.timeouts.answer, self.timeouts.silence).await?;
        uid(&body.whole(NAMESPACE_BYTES_MAX).await?)
    }
}

/// Whether another attempt may succeed.
fn may_pass(fault: &ApiFault) -> bool {
    match fault {
        ApiFault::Refused { code, .. } => matches!(code, 401 | 429 | 500..),
        ApiFault::Connection(_) | ApiFault::Broken(_) | ApiFault::Timeout(_) | ApiFault::EndedEarly => true,
        ApiFault::Unusable(_)
        | ApiFault::Gone(_)
        | ApiFault::WentBack { .. }
        | ApiFault::Invalid(_)
        | ApiFault::LimitExceeded(_)
        | ApiFault::Closed => false,
    }
}

/// The UID in a Namespace object.
fn uid(body: &[u8]) -> Result<String, ApiFault> {
    let invalid = |what: &str| ApiFault::Invalid(format!("invalid Namespace from the API server: {what}"));
    let object: Value = serde_json::from_slice(body).map_err(|e| invalid(&e.to_string()))?;
    match object["metadata"]["uid"].as_str() {
        Some(uid) if !uid.is_empty() && uid.len() <= UID_BYTES_MAX => Ok(uid.to_owned()),
        Some(uid) => Err(invalid(&format!("metadata.uid has {} bytes, 1 to {UID_BYTES_MAX} are allowed", uid.len()))),
        None => Err(invalid("no metadata.uid")),
    }
}

/// The fault with advice. That of lists would not fit.
fn words(fault: &ApiFault) -> String {
    match fault {
        ApiFault::Refused { code: code @ 403, message, .. } => {
            format!("the API server responded with {code}: {message} (RBAC: nomagic needs get on the Namespace kube-system)")
        }
        ApiFault::Refused { code, message, .. } => format!("the API server responded with {code}: {message}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uid_of_an_object() {
        assert_eq!(uid(br#"{"metadata":{"name":"kube-system","uid":"1-2"}}"#).unwrap(), "1-2");
        let long = format!(r#"{{"metadata":{{"uid":"{}"}}}}"#, "x".repeat(UID_BYTES_MAX + 1));
        for (body, part) in
            [("{}", "no metadata.uid"), (r#"{"metadata":{"uid":""}}"#, "0 bytes"), (&long, "129 bytes"), ("<html>", "invalid Namespace")]
        {
            let fault = uid(body.as_bytes()).unwrap_err();
            assert!(fault.to_string().contains(part) && !may_pass(&fault), "{body}: {fault}");
        }
    }

    #[test]
    fn refusals_end_the_reading_and_overload_does_not() {
        let refused = |code| ApiFault::Refused { code, message: "no".into(), retry_after: None };
        let passes = [401, 403, 404, 429, 500, 503].map(|code| may_pass(&refused(code)));
        assert_eq!(passes, [true, false, false, true, true, true]);
        let text = words(&refused(403));
        assert!(text.contains("get on the Namespace kube-system") && !text.contains("endpointslices"), "{text}");
        assert_eq!(words(&refused(404)), "the API server responded with 404: no");
    }
}
