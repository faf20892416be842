//! What can go wrong between an API server and us, said so that whoever reads it knows what to do.

use std::fmt;
use std::io;
use std::time::Duration;

use rustls::{CertificateError, Error as TlsError};

/// Causes of causes looked at, at the most.
const DEPTH_MAX: usize = 16;

/// Why following a kind was interrupted.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Configuration or credentials cannot be read.
    Unusable(String),
    /// No connection, or it broke.
    Connection(String),
    /// The server refused: an HTTP status, or an ERROR event.
    Refused { code: u16, message: String, retry_after: Option<Duration> },
    /// The version that we know is compacted: everything must be listed anew.
    Gone(String),
    /// What the server sent makes no sense.
    Garbled(String),
    /// Nothing was heard for this long.
    Silent(Duration),
    /// A limit of ours.
    TooMuch(String),
    /// The stream ended before it said anything.
    EndedEarly,
    /// Nobody listens any more.
    Closed,
}

impl Fault {
    /// Whether the watch may go on from the version that it had. An error that is neither about credentials nor about load may be about
    /// the version: one that lies in the future after etcd was restored (504), or one whose change the server cannot read (500).
    pub(super) fn leaves_the_version(&self) -> bool {
        match self {
            Fault::Refused { code, .. } => matches!(code, 401 | 403 | 429 | 503),
            Fault::Gone(_) | Fault::Garbled(_) | Fault::TooMuch(_) => false,
            Fault::Unusable(_) | Fault::Connection(_) | Fault::Silent(_) | Fault::EndedEarly | Fault::Closed => true,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Unusable(what) | Fault::Connection(what) | Fault::Garbled(what) | Fault::TooMuch(what) => f.write_str(what),
            Fault::Refused { code, message, .. } => write!(f, "the API server answered {code}: {message}{}", advice(*code)),
            Fault::Gone(message) => write!(f, "410 Gone ({message}): everything is listed anew"),
            Fault::Silent(time) => write!(f, "nothing was heard from the API server for {time:?}"),
            Fault::EndedEarly => f.write_str("the API server ended the watch at once"),
            Fault::Closed => f.write_str("stopped"),
        }
    }
}

fn advice(code: u16) -> &'static str {
    match code {
        401 => " (the token or client certificate is not accepted: is it expired, or of another cluster?)",
        403 => {
            " (RBAC: nomagic needs get, list and watch on services, endpointslices, nodes and servicecidrs, as the ClusterRole system:node-proxier has it)"
        }
        404 => " (this server does not have that kind of objects)",
        429 => " (it is overloaded)",
        _ => "",
    }
}

/// A request that could not be sent, or whose answer did not come.
pub(super) fn no_connection(error: &(dyn std::error::Error + 'static)) -> Fault {
    Fault::Connection(format!("no connection: {}", cause(error)))
}

/// An answer that was broken off.
pub(super) fn broken(error: &(dyn std::error::Error + 'static)) -> Fault {
    Fault::Connection(format!("the connection to the API server broke: {}", cause(error)))
}

/// The innermost cause with the one around it; what lies further out only repeats that something failed.
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

/// What an I/O error is wrapped around; its `source` would be the next one inside.
fn inner(error: &io::Error) -> Option<&(dyn std::error::Error + 'static)> {
    error.get_ref().map(|e| e as _)
}

/// A TLS fault in words, if it is one.
fn tls(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let tls = error.downcast_ref::<TlsError>()?;
    Some(match tls {
        // A bad signature is what the CA of another cluster with the same name leads to.
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "TLS: the API server's certificate comes from a CA that is not trusted here: set caFile (or the kubeconfig's \
             certificate-authority) to the CA of this cluster"
                .into()
        }
        TlsError::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            format!("TLS: the API server's certificate is for other names: connect by a name or address that is in it ({tls})")
        }
        TlsError::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            format!("TLS: the API server's certificate has expired: renew it, or set this node's clock ({tls})")
        }
        TlsError::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            format!("TLS: the API server's certificate is not valid yet: is this node's clock right? ({tls})")
        }
        TlsError::InvalidMessage(_) => format!("TLS: no TLS is spoken there: is the URL's scheme or port right? ({tls})"),
        TlsError::AlertReceived(alert) => format!("TLS: the API server refused with {alert:?}: does it want another client certificate?"),
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
    fn tls_faults_say_what_to_do() {
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
    fn causes_are_told_once() {
        let refused = words(io::Error::from_raw_os_error(libc::ECONNREFUSED));
        assert_eq!(refused, "no connection: Connection refused (os error 111)");
        let io = io::Error::from_raw_os_error(libc::ECONNREFUSED);
        assert_eq!(broken(&io).to_string(), "the connection to the API server broke: Connection refused (os error 111)");
        let code = Fault::Refused { code: 403, message: "no".into(), retry_after: None };
        assert!(code.to_string().contains("ClusterRole"), "{code}");
    }
}
