//! Changes of a subject's tables: objects of an API server for nomagic, rules for the kernel.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::kernel_rules;
use super::subject::{API, Running, Setup};
use super::workload::slice_json;
use crate::results::SubjectKind;

/// How long the API server may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How one change reaches the subject.
pub fn how(kind: SubjectKind) -> &'static str {
    match kind {
        SubjectKind::Nomagic => "an EndpointSlice is put to the API server that it watches",
        SubjectKind::Nftables => "`nft -f` with the changed chains, as kube-proxy's partial sync (without its watch and its minSyncPeriod)",
        SubjectKind::Iptables => {
            "`iptables-restore --noflush` with the changed chains, as kube-proxy's partial sync (without its watch and its minSyncPeriod)"
        }
        SubjectKind::NoWork | SubjectKind::Routing | SubjectKind::Direct => "it has no table",
    }
}

/// Gives one Service the endpoints of a generation. Returns when the subject has the change; packets may follow it later.
pub fn change_one(running: &Running, service: u32, generation: u32) -> Result<()> {
    match running.subject.kind {
        SubjectKind::Nomagic => put(running, service, generation),
        SubjectKind::Nftables => running.feed(&["nft", "-f", "-"], &kernel_rules::nftables_change(service, generation)),
        SubjectKind::Iptables => running.feed(&["iptables-restore", "--noflush"], &kernel_rules::iptables_change(service, generation)),
        kind => bail!("{kind:?} has no table"),
    }
}

/// Gives all Services the endpoints of a generation, as after a restart of the control plane: another API server with
/// another list, or a transaction that replaces all rules.
pub fn reload(running: &Running, setup: &Setup<'_>, generation: u32) -> Result<()> {
    let services = running.subject.services;
    match running.subject.kind {
        SubjectKind::Nomagic => running.start_api(setup, services, generation),
        SubjectKind::Nftables => {
            let rules = format!("flush ruleset\n{}", kernel_rules::nftables(services, generation));
            running.feed(&["nft", "-f", "-"], &rules)
        }
        SubjectKind::Iptables => running.feed(&["iptables-restore"], &kernel_rules::iptables(services, generation)),
        kind => bail!("{kind:?} has no table"),
    }
}

/// Puts a Service's EndpointSlice to the API server in the gateway.
fn put(running: &Running, service: u32, generation: u32) -> Result<()> {
    let object = slice_json(service, generation);
    let (name, body) = (object["metadata"]["name"].as_str().unwrap_or_default().to_owned(), object.to_string());
    let head = format!(
        "PUT /apis/discovery.k8s.io/v1/namespaces/bench/endpointslices/{name} HTTP/1.1\r\nHost: {API}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let answer = running.topology.gateway.run(|| -> Result<String> {
        let mut stream = TcpStream::connect(API).context("cannot reach the API server")?;
        stream.set_read_timeout(Some(ANSWER_LIMIT)).context("a time limit")?;
        stream.write_all((head + &body).as_bytes()).context("cannot write to the API server")?;
        let mut answer = [0; 64];
        let n = stream.read(&mut answer).context("the API server did not answer")?;
        Ok(String::from_utf8_lossy(&answer[..n]).into_owned())
    })??;
    ensure!(answer.starts_with("HTTP/1.1 20"), "the API server refused {name}: {}", answer.lines().next().unwrap_or_default());
    Ok(())
}
