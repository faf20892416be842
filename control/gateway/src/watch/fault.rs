//! Faults of connections to an API server, with advice for the operator.

use std::fmt;
use std::io;
use std::time::Duration;

use rustls::{CertificateError, Error as TlsError};

/// Maximum depth of a chain of causes.
const DEPTH_MAX: usize = 16;

/// Why a list or watch was interrupted.
#[derive(Debug)]
pub(crate) enum ApiFault {
    /// Configuration or credentials are unusable.
    Unusable(String),
    /// No connection, or none that lasted until the head of a response.
    Connection(String),
    /// The connection broke in the middle of a response.
    Broken(String),
    /// An HTTP error status, or an ERROR event.
    Refused { code: u16, message: String, retry_after: Option<Duration> },
    /// The resource version is compacted: a new list is needed.
    Gone(String),
    /// The server's state is older than a version that it sent before: a new list is needed.
    WentBack { server: u64, known: u64 },
    /// The server sent invalid data.
    Invalid(String),
    /// No data for this long.
    Timeout(Duration),
    /// A limit of nomagic was exceeded.
    LimitExceeded(String),
    /// The watch ended at once, without events.
    EndedEarly,
    /// The feed was dropped.
    Closed,
}

impl ApiFault {
    /// Whether the watch may continue from its resource version. Errors other than those of credentials and load may be caused by the version:
    /// one in the future after etcd was restored (504), or one whose change the server cannot decode (500).
    pub(super) fn keeps_version(&self) -> bool {
        match self {
            ApiFault::Refused { code, .. } => matches!(code, 401 | 403 | 429 | 503),
            ApiFault::Gone(_) | ApiFault::WentBack { .. } | ApiFault::Invalid(_) | ApiFault::LimitExceeded(_) => false,
            ApiFault::Unusable(_)
            | ApiFault::Connection(_)
            | ApiFault::Broken(_)
            | ApiFault::Timeout(_)
            | ApiFault::EndedEarly
            | ApiFault::Closed => true,
        }
    }

    /// Whether other credentials may help.
    pub(super) fn concerns_credentials(&self) -> bool {
        matches!(self, ApiFault::Unusable(_) | ApiFault::Refused { code: 401 | 403, .. })
    }
}

impl fmt::Display for ApiFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiFault::Unusable(what)
            | ApiFault::Connection(what)
            | ApiFault::Broken(what)
            | ApiFault::Invalid(what)
            | ApiFault::LimitExceeded(what) => f.write_str(what),
            ApiFault::Refused { code, message, .. } => write!(f, "the API server responded with {code}: {message}{}", advice(*code)),
            ApiFault::Gone(message) => write!(f, "410 Gone ({message}): listing again"),
            ApiFault::WentBack { server, known } => write!(
                f,
                "the API server is at version {server}, and was at {known} before: its data was restored to an older state; listing again"
            ),
            ApiFault::Timeout(time) => write!(f, "no data from the API server for {time:?}"),
            ApiFault::EndedEarly => f.write_str("the API server ended the watch at once"),
            ApiFault::Closed => f.write_str("stopped"),
        }
    }
}

fn advice(code: u16) -> &'static str {
    match code {
        401 => " (the token or client certificate is not accepted: is it expired, or from another cluster?)",
        403 => {
            " (RBAC: nomagic needs get, list and watch on services, endpointslices, nodes and servicecidrs, like the ClusterRole system:node-proxier)"
        }
        404 => " (the server does not support this kind)",
        429 => " (the server is overloaded)",
        _ => "",
    }
}

/// The fault of a request that could not be sent or got no response.
pub(super) fn no_connection(error: &(dyn std::error::Error + 'static)) -> ApiFault {
    ApiFault::Connection(format!("no connection: {}", cause(error)))
}

/// The fault of a response that was cut off.
pub(super) fn broken(error: &(dyn std::error::Error + 'static)) -> ApiFault {
    ApiFault::Broken(format!("the connection to the API server broke: {}", cause(error)))
}

/// The innermost cause and the one around it; outer ones only repeat that something failed.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let (mut outer, mut words) = (String::new(), String::new());
    let mut cause = Some(error);
    for _ in 0..DEPTH_MAX {
        let Some(error) = cause else { break };
        if let Some(tls) = tls(error) {
            return tls;
        }
        outer = std::mem::replace(&mut words, error.to_string());
        cause = error.downcast_ref::<io::Error>().and_then(inner).or_else(|| error.source());
    }
    if outer.is_empty() || outer.contains(&words) { words } else { format!("{outer}: {words}") }
}

/// The error inside an I/O error; `source` would skip it.
fn inner(error: &io::Error) -> Option<&(dyn std::error::Error + 'static)> {
    error.get_ref().map(|e| e as _)
}

/// The message for a TLS error, if it is one.
fn tls(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let tls = error.downcast_ref::<TlsError>()?;
    Some(match tls {
        // The CA of another cluster with the same name leads to a bad signature.
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "TLS: the API server's certificate is signed by an untrusted CA: set caFile (or the kubeconfig's \
             certificate-authority) to the CA of this cluster"
                .into()
        }
        TlsError::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            format!("TLS: the API server's certificate is for other names: connect to a name or address in it ({tls})")
        }
        TlsError::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            format!("TLS: the API server's certificate has expired: renew it, or correct this node's clock ({tls})")
        }
        TlsError::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            format!("TLS: the API server's certificate is not valid yet: is this node's clock right? ({tls})")
        }
        TlsError::InvalidMessage(_) => format!("TLS: the server does not speak TLS: is the URL's scheme or port right? ({tls})"),
        TlsError::AlertReceived(alert) => {
            format!("TLS: the API server refused with {alert:?}: does it require another client certificate?")
        }
        other => format!("TLS: {other}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(error: impl std::error::Error + Send + Sync + 'static) -> String {
        no_connection(&kube::Error::Service(Box::new(error))).to_string()
    }

    #[test]
    fn tls_faults_contain_advice() {
        for (error, word) in [
            (TlsError::InvalidCertificate(CertificateError::UnknownIssuer), "set caFile"),
            (TlsError::InvalidCertificate(CertificateError::BadSignature), "set caFile"),
            (TlsError::InvalidCertificate(CertificateError::NotValidForName), "other names"),
            (TlsError::InvalidCertificate(CertificateError::Expired), "expired"),
            (TlsError::InvalidCertificate(CertificateError::NotValidYet), "clock"),
            (TlsError::InvalidMessage(rustls::InvalidMessage::InvalidContentType), "scheme or port"),
            (TlsError::AlertReceived(rustls::AlertDescription::CertificateRequired), "client certificate"),
            (TlsError::DecryptError, "TLS: "),
        ] {
            let text = words(io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error)));
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn causes_are_not_repeated() {
        let refused = words(io::Error::from_raw_os_error(libc::ECONNREFUSED));
        assert_eq!(refused, "no connection: Connection refused (os error 111)");
        let io = io::Error::from_raw_os_error(libc::ECONNREFUSED);
        assert_eq!(broken(&io).to_string(), "the connection to the API server broke: Connection refused (os error 111)");
        let code = ApiFault::Refused { code: 403, message: "no".into(), retry_after: None };
        assert!(code.to_string().contains("ClusterRole"), "{code}");
    }
}
