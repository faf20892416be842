//! The addresses of the API server, whatever it is named by: no Service may claim one of them (but for a cluster IP), so the table must know
//! them. A name that cannot be resolved any more keeps its last addresses.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tower::Service;

/// Most addresses that are remembered, the newest ones: names may resolve to others over time.
const ADDRESSES_MAX: usize = 64;

/// The addresses known so far, shared by the connections of one watch.
#[derive(Clone, Default, Debug)]
pub struct ServerAddresses(Arc<Mutex<VecDeque<SocketAddr>>>);

impl ServerAddresses {
    /// Every address, oldest first.
    pub fn all(&self) -> Vec<SocketAddr> {
        self.lock().iter().copied().collect()
    }

    /// Adds the server of a URL, if it is named by an address.
    pub(super) fn add_literal(&self, url: &Uri) {
        let host = url.host().map(|host| host.trim_start_matches('[').trim_end_matches(']'));
        if let Some(ip) = host.and_then(|host| host.parse::<IpAddr>().ok()) {
            self.add([SocketAddr::new(ip, port_of(url))]);
        }
    }

    fn add(&self, addresses: impl IntoIterator<Item = SocketAddr>) {
        let mut known = self.lock();
        for address in addresses {
            if !known.contains(&address) {
                known.push_back(address);
            }
        }
        let surplus = known.len().saturating_sub(ADDRESSES_MAX);
        known.drain(..surplus);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<SocketAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The port of a URL.
fn port_of(url: &Uri) -> u16 {
    url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 })
}

/// The system's resolver, which remembers its answers.
#[derive(Clone)]
pub(super) struct RememberingResolver {
    system: GaiResolver,
    port: u16,
    known: ServerAddresses,
}

impl RememberingResolver {
    /// For the name in a URL.
    pub fn new(url: &Uri, known: ServerAddresses) -> RememberingResolver {
        RememberingResolver { system: GaiResolver::new(), port: port_of(url), known }
    }
}

impl Service<Name> for RememberingResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Service::poll_ready(&mut self.system, context)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (found, port, known) = (self.system.call(name.clone()), self.port, self.known.clone());
        Box::pin(async move {
            let with_port = |address: SocketAddr| SocketAddr::new(address.ip(), port);
            match found.await {
                Ok(addresses) => {
                    let addresses: Vec<SocketAddr> = addresses.map(with_port).collect();
                    known.add(addresses.iter().copied());
                    Ok(addresses.into_iter())
                }
                Err(e) => {
                    let last = known.all();
                    if last.is_empty() {
                        return Err(e);
                    }
                    tracing::debug!("{name} cannot be resolved ({e}): its last addresses are used");
                    Ok(last.into_iter())
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(url: &str) -> Vec<String> {
        let known = ServerAddresses::default();
        known.add_literal(&url.parse().unwrap());
        known.all().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_in_urls_are_known_at_once_and_names_are_not() {
        assert_eq!(known("https://192.0.2.1:6443"), ["192.0.2.1:6443"]);
        assert_eq!(known("https://[2001:db8::1]"), ["[2001:db8::1]:443"]);
        assert_eq!(known("http://192.0.2.1"), ["192.0.2.1:80"]);
        assert!(known("https://api.example:6443").is_empty());
    }

    #[test]
    fn the_newest_addresses_stay() {
        let known = ServerAddresses::default();
        let address = |i: usize| SocketAddr::from(([192, 0, 2, i as u8], 443));
        known.add((0..=ADDRESSES_MAX).map(address));
        known.add([address(5)]);
        let all = known.all();
        assert_eq!((all.len(), all[0], all[ADDRESSES_MAX - 1]), (ADDRESSES_MAX, address(1), address(ADDRESSES_MAX)));
    }

    #[tokio::test]
    async fn a_name_that_resolves_no_more_keeps_its_addresses() {
        let known = ServerAddresses::default();
        let mut resolver = RememberingResolver::new(&"https://localhost:6443".parse().unwrap(), known.clone());
        let found: Vec<_> = resolver.call("localhost".parse().unwrap()).await.unwrap().collect();
        assert!(found.iter().all(|address| address.port() == 6443 && address.ip().is_loopback()), "{found:?}");
        assert_eq!(known.all(), found);
        // RFC 6761: this name never resolves.
        let gone: Vec<_> = resolver.call("api.invalid".parse().unwrap()).await.unwrap().collect();
        assert_eq!(gone, found);
        let mut fresh = RememberingResolver::new(&"https://api.invalid".parse().unwrap(), ServerAddresses::default());
        fresh.call("api.invalid".parse().unwrap()).await.unwrap_err();
    }
}
