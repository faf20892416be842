//! Connections to the API server, and one request.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Limited};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use socket2::{Domain, Socket, Type};
use tower::{BoxError, ServiceBuilder};

use super::credentials::{CredentialFiles, TokenFile};
use super::fault::{self, ApiFault};
use super::lines::Lines;
use super::servers::{RememberingResolver, ServerAddresses};
use crate::config::Kubernetes;

/// Timeout for a TCP connection. A server that is away without a refusal is tried this often; one lost packet (1 s) is tolerated.
const TCP_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout for a connection including TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A quiet connection is probed after this time, and then each second: a server that was switched off and is back resets it at the next probe.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(5);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(1);
/// Probes without an answer before the connection counts as broken. Short failures of the network stay below it.
const KEEPALIVE_PROBES: u32 = 20;
/// A client is used for this long after faults of its connections. Then credentials that are not in files (of a plugin) are read again.
const RENEWED_AFTER: Duration = Duration::from_secs(60);
/// Maximum size of an error's body, bytes.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// Maximum number of characters of a server's message that are logged.
const MESSAGE_MAX: usize = 500;
/// Upper limit for a server's Retry-After.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// A client with the credentials as they were read.
#[derive(Clone)]
pub(crate) struct ApiClient {
    client: Client,
    /// Read for each request.
    token: Option<TokenFile>,
    /// The files that the credentials came from.
    pub(crate) files: CredentialFiles,
    created: Instant,
}

impl ApiClient {
    /// Whether the client may be used again after a fault.
    pub(super) fn survives(&self, fault: &ApiFault) -> bool {
        !fault.concerns_credentials() && self.created.elapsed() < RENEWED_AFTER
    }
}

/// Reads credentials and certificates and creates a client; sends nothing. `mark`: the mark of its sockets. `addresses`: where the server's
/// addresses are noted.
pub(crate) async fn connect(server: &Kubernetes, mark: Option<u32>, addresses: &ServerAddresses) -> Result<ApiClient, ApiFault> {
    let created = Instant::now();
    let mut files = CredentialFiles::new(named_files(server));
    let mut config = config(server).await?;
    let auth = &config.auth_info;
    [&auth.token_file, &auth.client_certificate, &auth.client_key].into_iter().flatten().for_each(|path| files.add(path.into()));
    let token = take_token_file(&mut config, server);
    let client =
        client(config, mark, addresses).map_err(|e| ApiFault::Unusable(format!("the credentials for {server} are unusable: {e}")))?;
    Ok(ApiClient { client, token, files, created })
}

/// Whether the calling thread may set a socket's mark.
pub(crate) fn can_mark(mark: u32) -> io::Result<()> {
    Socket::new(Domain::IPV4, Type::STREAM, None)?.set_mark(mark)
}

/// The token's file, unless other credentials have precedence in kube.
fn take_token_file(config: &mut Config, server: &Kubernetes) -> Option<TokenFile> {
    let auth = &mut config.auth_info;
    if auth.auth_provider.is_some() || auth.token.is_some() || (auth.username.is_some() && auth.password.is_some()) {
        return None;
    }
    let field = match server {
        Kubernetes::InCluster => "kubernetes.inCluster: the service account's token".into(),
        Kubernetes::Kubeconfig { path, .. } => format!("kubernetes.kubeconfig {}: tokenFile", path.display()),
        Kubernetes::Url { .. } => "kubernetes.tokenFile".into(),
    };
    auth.token_file.take().map(|path| TokenFile::new(path.into(), field))
}

/// The files of credentials that the configuration names.
pub(super) fn named_files(server: &Kubernetes) -> Vec<PathBuf> {
    match server {
        Kubernetes::InCluster => Vec::new(),
        Kubernetes::Kubeconfig { path, .. } => vec![path.clone()],
        Kubernetes::Url { ca_file, token_file, .. } => [ca_file, token_file].into_iter().flatten().cloned().collect(),
    }
}

/// Like kube's own constructor, but with settings for the sockets, and without retries: `Lines` has its own timeout for each chunk, and
/// `Follower` its own pauses.
fn client(config: Config, mark: Option<u32>, addresses: &ServerAddresses) -> kube::Result<Client> {
    if config.proxy_url.is_some() {
        // kube's error: support for proxies is not compiled in.
        return Client::try_from(config);
    }
    addresses.add_literal(&config.cluster_url);
    let mut sockets = HttpConnector::new_with_resolver(RememberingResolver::new(&config.cluster_url, addresses.clone()));
    sockets.enforce_http(false);
    sockets.set_nodelay(true);
    sockets.set_mark(mark);
    sockets.set_connect_timeout(Some(TCP_TIMEOUT));
    sockets.set_keepalive(Some(KEEPALIVE_AFTER));
    sockets.set_keepalive_interval(Some(KEEPALIVE_EVERY));
    sockets.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(sockets)?);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let http: legacy::Client<_, Body> = legacy::Client::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}

async fn config(server: &Kubernetes) -> Result<Config, ApiFault> {
    match server {
        Kubernetes::InCluster => {
            Config::incluster().map_err(|e| ApiFault::Unusable(format!("kubernetes.inCluster: not in a pod with a service account: {e}")))
        }
        Kubernetes::Kubeconfig { path, context } => {
            let unusable = |e| ApiFault::Unusable(format!("kubernetes.kubeconfig {}: {e}", path.display()));
            let file = Kubeconfig::read_from(path).map_err(unusable)?;
            let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
            Config::from_custom_kubeconfig(file, &options).await.map_err(unusable)
        }
        Kubernetes::Url { url, ca_file, token_file } => {
            let mut config = Config::new(url.clone());
            if let Some(path) = ca_file {
                let bad = |e: &dyn std::fmt::Display| ApiFault::Unusable(format!("kubernetes.caFile {}: {e}", path.display()));
                let list = CertificateDer::pem_file_iter(path).map_err(|e| bad(&e))?;
                let list = list.map(|c| c.map(|c| c.to_vec())).collect::<Result<Vec<_>, _>>().map_err(|e| bad(&e))?;
                if list.is_empty() {
                    return Err(bad(&"contains no PEM certificate"));
                }
                config.root_cert = Some(list);
                config.root_cert_file = Some(path.clone());
            }
            if let Some(path) = token_file {
                config.auth_info.token_file = Some(path.to_string_lossy().into_owned());
            }
            Ok(config)
        }
    }
}

/// Sends a request and waits for the head of a successful response. Timeouts: `head` for it, `chunk` for each chunk of the body.
pub(crate) async fn open(client: &ApiClient, mut request: Request<Vec<u8>>, head: Duration, chunk: Duration) -> Result<Lines, ApiFault> {
    // Newer servers compress watch events one by one, which is not supported here.
    request.headers_mut().insert(header::ACCEPT_ENCODING, header::HeaderValue::from_static("identity"));
    if let Some(token) = &client.token {
        request.headers_mut().insert(header::AUTHORIZATION, token.authorization()?);
    }
    let sent = tokio::time::timeout(head, client.client.send(request.map(Body::from))).await;
    let response = sent.map_err(|_| ApiFault::Timeout(head))?.map_err(|e| fault::no_connection(&e))?;
    if response.status().is_success() {
        return Ok(Lines::new(response.into_body(), chunk));
    }
    let (parts, body) = response.into_parts();
    let body = tokio::time::timeout(head, Limited::new(body, ERROR_BYTES_MAX).collect()).await;
    let body = body.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let message = match serde_json::from_slice::<kube::core::Status>(&body) {
        Ok(status) => status.message,
        Err(_) => String::from_utf8_lossy(&body).trim().to_owned(),
    };
    Err(refused(parts.status.as_u16(), &message, retry_after(&parts.headers)))
}

/// The fault of an HTTP status, or of an ERROR event's code.
pub(super) fn refused(code: u16, message: &str, retry_after: Option<Duration>) -> ApiFault {
    let message: String = message.chars().take(MESSAGE_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    match code {
        410 => ApiFault::Gone(message),
        _ => ApiFault::Refused { code, message, retry_after },
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}
