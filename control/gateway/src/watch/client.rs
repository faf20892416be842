//! Connections to the API server, and one request.

use std::time::Duration;

use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::fault::{self, Fault};
use super::lines::Lines;
use crate::config::Kubernetes;

/// Timeout for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of an error's body, bytes.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// Maximum number of characters of a server's message that are logged.
const MESSAGE_MAX: usize = 500;
/// Upper limit for a server's Retry-After.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Reads credentials and certificates and creates a client; sends nothing. kube re-reads token and CA files each minute; other changes take
/// effect when a new client is created after a fault.
pub(crate) async fn connect(server: &Kubernetes) -> Result<Client, Fault> {
    let mut config = config(server).await?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // `Lines` has its own timeout for each chunk, and `Follower` its own backoff.
    config.read_timeout = None;
    config.default_retry = false;
    Client::try_from(config).map_err(|e| Fault::Unusable(format!("the credentials for {server} are unusable: {e}")))
}

async fn config(server: &Kubernetes) -> Result<Config, Fault> {
    match server {
        Kubernetes::InCluster => {
            Config::incluster().map_err(|e| Fault::Unusable(format!("kubernetes.inCluster: not in a pod with a service account: {e}")))
        }
        Kubernetes::Kubeconfig { path, context } => {
            let unusable = |e| Fault::Unusable(format!("kubernetes.kubeconfig {}: {e}", path.display()));
            let file = Kubeconfig::read_from(path).map_err(unusable)?;
            let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
            Config::from_custom_kubeconfig(file, &options).await.map_err(unusable)
        }
        Kubernetes::Url { url, ca_file, token_file } => {
            let mut config = Config::new(url.clone());
            if let Some(path) = ca_file {
                let bad = |e: &dyn std::fmt::Display| Fault::Unusable(format!("kubernetes.caFile {}: {e}", path.display()));
                let list = CertificateDer::pem_file_iter(path).map_err(|e| bad(&e))?;
                let list = list.map(|c| c.map(|c| c.to_vec())).collect::<Result<Vec<_>, _>>().map_err(|e| bad(&e))?;
                if list.is_empty() {
                    return Err(bad(&"contains no PEM certificate"));
                }
                config.root_cert = Some(list);
                config.root_cert_file = Some(path.clone());
            }
            if let Some(path) = token_file {
                std::fs::metadata(path).map_err(|e| Fault::Unusable(format!("kubernetes.tokenFile {}: {e}", path.display())))?;
                config.auth_info.token_file = Some(path.to_string_lossy().into_owned());
            }
            Ok(config)
        }
    }
}

/// Sends a request and waits for the head of a successful response. Timeouts: `head` for it, `chunk` for each chunk of the body.
pub(crate) async fn open(client: &Client, mut request: Request<Vec<u8>>, head: Duration, chunk: Duration) -> Result<Lines, Fault> {
    // Newer servers compress watch events one by one, which is not supported here.
    request.headers_mut().insert(header::ACCEPT_ENCODING, header::HeaderValue::from_static("identity"));
    let sent = tokio::time::timeout(head, client.send(request.map(Body::from))).await;
    let response = sent.map_err(|_| Fault::Timeout(head))?.map_err(|e| fault::no_connection(&e))?;
    if response.status().is_success() {
        return Ok(Lines::new(response.into_body(), chunk));
    }
    let (parts, body) = response.into_parts();
    let body = tokio::time::timeout(head, Limited::new(body, ERROR_BYTES_MAX).collect()).await;
    let body = body.ok().and_then(Result::ok).map(|b| b.to_bytes()).unwrap_or_default();
    let message = match serde_json::from_slice::<kube::core::Status>(&body) {
        Ok(status) => status.message,
        Err(_) => String::from_utf8_lossy(&body).trim().to_owned(),
    };
    Err(refused(parts.status.as_u16(), &message, retry_after(&parts.headers)))
}

/// The fault of an HTTP status, or of an ERROR event's code.
pub(super) fn refused(code: u16, message: &str, retry_after: Option<Duration>) -> Fault {
    let message: String = message.chars().take(MESSAGE_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    match code {
        410 => Fault::Gone(message),
        _ => Fault::Refused { code, message, retry_after },
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}
