//! What a running nomagic tells about itself: one JSON object, and the same for people.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use nomagic_core::counters::{Counters, XdpCounts};
use nomagic_core::reason::Reason;
use nomagic_core::services::{Action, Services, SnatRange};
use nomagic_xsk::{Condition, Edge, EdgeStatus, PortInfo, PortStatus, WorkerStatus};
use serde_json::{Value, json};

use crate::observe::metrics::reconciler::Reconciled;

/// What control adds to the edge's own account.
pub struct Control<'a> {
    /// The service table in force.
    pub services: &'a Services,
    /// Connections ended because their endpoint is gone.
    pub reconciled: &'a Reconciled,
    /// Problems of the objects in force, as shown in the log.
    pub problems: &'a [String],
    /// How the watch of an API server fares; null without one.
    pub api: Value,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Where the connection table is, if in a file.
    pub table_file: Option<&'a Path>,
}

/// Why this gateway is not ready; empty: it is. Ready means: the tables are in force in every worker, the XDP programs are attached, every
/// queue is bound and its owner alive.
pub fn not_ready(status: &EdgeStatus, alive: usize) -> Vec<String> {
    let mut reasons = Vec::new();
    if alive < status.workers.len() {
        reasons.push(format!("{} of {} workers are dead or stuck", status.workers.len() - alive, status.workers.len()));
    }
    let lost = status.ports.iter().filter(|p| p.info.condition != Condition::Bound);
    reasons.extend(lost.map(|p| format!("port {} is {}", p.info.name, p.info.condition)));
    for (what, applied) in [("service table", status.services_applied), ("routes", status.routes_applied)] {
        if !applied {
            reasons.push(format!("not every worker uses the latest {what} yet"));
        }
    }
    reasons
}

/// The status of a gateway that waits for its first objects.
pub fn waiting(missing: &str, api: Value, uptime_s: u64) -> Value {
    json!({ "ready": false, "not_ready": [missing], "uptime_s": uptime_s, "api": api })
}

/// The whole status.
pub fn read(edge: &Edge, control: &Control<'_>) -> anyhow::Result<Value> {
    let status = edge.status()?;
    let counters: Vec<&Counters> = (0..status.workers.len()).filter_map(|i| edge.counters(i)).collect();
    let count = |f: &dyn Fn(&Counters) -> u64| counters.iter().map(|c| f(c)).sum::<u64>();
    let (alive, all) = edge.workers_alive();
    let targets: Vec<Value> = targets(control.services)
        .into_iter()
        .map(|(service, backend, stats)| {
            json!({
                "service": service,
                "backend": backend,
                "flows": count(&|c| c.target(stats).flows.get()),
                "packets_to_backend": count(&|c| c.target(stats).forward.packets.get()),
                "packets_to_client": count(&|c| c.target(stats).reply.packets.get()),
                "bytes_to_backend": count(&|c| c.target(stats).forward.bytes.get()),
                "bytes_to_client": count(&|c| c.target(stats).reply.bytes.get()),
            })
        })
        .collect();
    let conntrack = json!({
        "live": status.flows_live,
        "capacity": status.flows_capacity,
        "file": control.table_file,
        "taken_over": edge.taken_over().map(|r| json!({
            "connections": r.connections, "not_whole": r.not_whole, "unwanted": r.unwanted, "detached": r.detached,
        })),
        "endpoint_gone": control.reconciled.ended.iter().sum::<u64>(),
        "walks": control.reconciled.walks,
    });
    let not_ready = not_ready(&status, alive);
    let mut totals = serde_json::to_value(status.totals())?;
    merge(&mut totals["conntrack"], conntrack);
    merge(
        &mut totals,
        json!({
            "held_now": status.workers.iter().map(|w| w.held_now).sum::<u64>(),
            "snat": {
                "connections": status.source_ports,
                "fullest_endpoint": status.source_ports_fullest,
                "largest_share": status.source_ports_largest,
                "ports": source_ports(&control.services.snat),
                "share_max": control.services.snat.holder_max().min(u64::from(source_ports(&control.services.snat))),
                "refused": {
                    "exhausted": count(&|c| c.reasons.read().drop[Reason::SnatPortsExhausted]),
                    "share": count(&|c| c.reasons.read().drop[Reason::SnatShare]),
                },
            },
            "replies": { "announced": status.replies_announced, "capacity": status.replies_capacity },
        }),
    );
    Ok(json!({
        "ready": not_ready.is_empty(),
        "not_ready": not_ready,
        "uptime_s": control.uptime_s,
        "workers": status.workers.iter().map(worker).collect::<Vec<_>>(),
        "workers_alive": alive,
        "workers_all": all,
        "totals": totals,
        "pools": status.pools.iter().map(|f| json!({
            "total": f.total, "free": f.free, "fill": f.fill, "tx": f.tx, "held": f.held, "in_hand": f.in_hand, "handed_over": f.away,
        })).collect::<Vec<_>>(),
        "ports": status.ports.iter().map(port).collect::<Vec<_>>(),
        "redirect_ports": status.redirects.iter().map(|r| json!({
            "name": r.name, "ifindex": r.ifindex, "xdp_mode": mode(r.native), "condition": r.condition.to_string(),
        })).collect::<Vec<_>>(),
        "redirect_xdp": xdp(&status.redirects_xdp),
        "services": {
            "generation": status.services_generation,
            "applied": status.services_applied,
            "ports": control.services.ports,
            "addresses": control.services.frontend_count(),
            "problems": control.problems,
        },
        "api": control.api,
        "routes": { "generation": status.routes_generation, "applied": status.routes_applied },
        "targets": targets,
    }))
}

/// Source ports that there are towards one endpoint.
pub fn source_ports(range: &SnatRange) -> u32 {
    (u32::from(range.port_last) + 1).saturating_sub(u32::from(range.port_first))
}

/// Every (Service port, backend) pair with statistics of its own: `(Service, backend, place)`, sorted.
fn targets(services: &Services) -> BTreeSet<(String, String, u32)> {
    let mut targets = BTreeSet::new();
    for (_, _, _, frontend) in services.frontends() {
        let port = &frontend.port;
        let service = format!("{}/{}:{}/{}", port.namespace, port.name, port.port, port.proto);
        for action in frontend.actions() {
            let Action::Forward { pool, .. } = action else { continue };
            for backend in pool.backends.iter() {
                targets.insert((service.clone(), SocketAddr::new(backend.addr, backend.port).to_string(), backend.stats));
            }
        }
    }
    targets
}

/// Adds the fields of one object to another.
fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

fn worker(w: &WorkerStatus) -> Value {
    let mut worker = json!({ "id": w.id, "alive": w.alive, "heartbeat_age_ns": w.heartbeat_age_ns, "held_now": w.held_now });
    merge(&mut worker, serde_json::to_value(&w.counts).unwrap_or_default());
    worker
}

fn mode(native: bool) -> &'static str {
    if native { "native" } else { "generic" }
}

fn xdp(x: &XdpCounts) -> Value {
    let mut xdp = json!({ "received": x.received(), "passed": x.passed(), "dropped": x.dropped() });
    merge(&mut xdp, serde_json::to_value(x).unwrap_or_default());
    xdp
}

fn port(p: &PortStatus) -> Value {
    json!({
        "name": p.info.name,
        "ifindex": p.info.ifindex,
        "mtu": p.info.mtu,
        "queues": p.info.queues,
        "owners": p.info.owners,
        "condition": p.info.condition.to_string(),
        "rebinds": p.info.rebinds,
        "xdp_mode": mode(p.info.native),
        "zero_copy": p.info.zero_copy,
        "rss": rss(&p.info),
        "xdp": xdp(&p.xdp),
        "sockets": p.sockets,
    })
}

/// Whether the queue of an answer is told beforehand, so that source ports are chosen by it.
fn rss(info: &PortInfo) -> Value {
    match &info.rss {
        Ok(rss) => json!({ "predicted": true, "entries": rss.entries() }),
        Err(reason) => json!({ "predicted": false, "because": reason.to_string() }),
    }
}

/// How the watch fares, a line a kind.
fn write_api(out: &mut String, api: &Value) {
    let Some(kinds) = api["kinds"].as_array() else { return };
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let _ = writeln!(out, "objects from {}", text(&api["server"]));
    for k in kinds {
        let heard = k["heard_s_ago"].as_u64().map_or("never heard of".into(), |s| format!("heard {s} s ago"));
        let (kind, state, for_s, objects) = (text(&k["kind"]), text(&k["state"]), &k["for_s"], k["objects"].as_u64().unwrap_or(0));
        let error = if state == "connected" { String::new() } else { k["error"].as_str().map_or(String::new(), |e| format!(": {e}")) };
        let _ = writeln!(out, "  {kind:<14} {objects:>7}  {state} for {for_s} s, {heard}{error}");
    }
}

/// The status as a page for people.
pub fn page(status: &Value) -> String {
    let n = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let text = |v: &Value, key: &str| v[key].as_str().unwrap_or_default().to_owned();
    let list = |key: &str| status[key].as_array().cloned().unwrap_or_default();
    let mut out = String::new();
    let missing: Vec<String> = list("not_ready").iter().filter_map(|r| r.as_str().map(str::to_owned)).collect();
    let _ = writeln!(out, "{}", if missing.is_empty() { "ready".into() } else { format!("NOT READY: {}", missing.join("; ")) });
    write_api(&mut out, &status["api"]);
    if status["workers"].is_null() {
        return out;
    }
    let _ = writeln!(
        out,
        "up {} s, {} of {} workers alive, {} Service ports on {} addresses",
        n("/uptime_s"),
        n("/workers_alive"),
        n("/workers_all"),
        n("/services/ports"),
        n("/services/addresses"),
    );
    let taken_over = match &status["totals"]["conntrack"]["taken_over"] {
        Value::Null => String::new(),
        _ => format!(" ({} were taken over)", n("/totals/conntrack/taken_over/connections")),
    };
    let _ = writeln!(
        out,
        "connections {} of {}{taken_over}, announced replies {} of {}",
        n("/totals/conntrack/live"),
        n("/totals/conntrack/capacity"),
        n("/totals/replies/announced"),
        n("/totals/replies/capacity"),
    );
    let snat = |key: &str| n(&format!("/totals/snat/{key}"));
    let _ = writeln!(
        out,
        "source ports: {} in use; towards the fullest endpoint {} of {} ({} %), {} of at most {} for one client or Service; refused: {} as all were taken, \
         {} as a share was used up",
        snat("connections"),
        snat("fullest_endpoint"),
        snat("ports"),
        (100 * snat("fullest_endpoint")).checked_div(snat("ports")).unwrap_or(0),
        snat("largest_share"),
        snat("share_max"),
        snat("refused/exhausted"),
        snat("refused/share"),
    );
    let conntrack = |key: &str| n(&format!("/totals/conntrack/{key}"));
    let _ = writeln!(
        out,
        "created {} ({} mid-stream), ended: idle {}, replaced by a new SYN {}, endpoint gone {}; survived a forged RST {}; evicted when full: closed {}, half-open {}, idle UDP {}\n",
        conntrack("created"),
        conntrack("mid_stream"),
        conntrack("expired"),
        conntrack("replaced"),
        conntrack("endpoint_gone"),
        conntrack("revived"),
        conntrack("evicted/closed"),
        conntrack("evicted/half_open"),
        conntrack("evicted/idle_udp"),
    );
    let _ = writeln!(out, "{:<12} {:>10} {:>10} {:>10} {:>10}  mode", "port", "received", "taken", "passed", "dropped");
    for p in list("ports") {
        let x = |key: &str| p["xdp"][key].as_u64().unwrap_or(0);
        let copy = if p["zero_copy"] == true { "zero-copy" } else { "copy" };
        let rss = match p.pointer("/rss/entries").and_then(Value::as_u64) {
            Some(entries) => format!("RSS of {entries} entries"),
            None => "RSS unknown".into(),
        };
        let _ = writeln!(
            out,
            "{:<12} {:>10} {:>10} {:>10} {:>10}  {} XDP, {copy}, {} queue(s), {rss}",
            text(&p, "name"),
            x("received"),
            x("taken"),
            x("passed"),
            x("dropped"),
            text(&p, "xdp_mode"),
            p["queues"],
        );
    }
    if !list("redirect_ports").is_empty() {
        let names: Vec<String> = list("redirect_ports").iter().map(|r| format!("{} ({})", text(r, "name"), text(r, "condition"))).collect();
        let taken = status["redirect_xdp"]["taken"].as_u64().unwrap_or(0);
        let _ = writeln!(out, "redirect ports: {}; {taken} frames taken", names.join(", "));
    }
    let _ = writeln!(out, "\nframes that came up      {:>10}", n("/totals/received/packets"));
    for (label, pointer) in [
        ("forwarded", "/totals/forwarded/packets"),
        ("back to the kernel", "/totals/kernel/packets"),
        ("dropped", "/totals/dropped/packets"),
        ("held now", "/totals/held_now"),
        ("made (rejects)", "/totals/made/packets"),
    ] {
        let _ = writeln!(out, "  {label:<22} {:>10}", n(pointer));
    }
    for (what, disposition) in [("back to the kernel", "kernel"), ("dropped", "drop"), ("handed over, then dropped", "handed")] {
        let of = |r: &Reason| n(&format!("/totals/reasons/{disposition}/{}", r.label()));
        for (reason, n) in Reason::ALL.iter().map(|r| (r, of(r))).filter(|(_, n)| *n > 0) {
            let _ = writeln!(out, "    {:<20} {n:>10}  {what}: {}", reason.label(), reason.text());
        }
    }
    if !list("targets").is_empty() {
        let _ = writeln!(out, "\n{:<28} {:<28} {:>8} {:>12} {:>12}", "Service port", "backend", "flows", "to backend", "to client");
        for t in list("targets") {
            let c = |key: &str| t[key].as_u64().unwrap_or(0);
            let (service, backend) = (text(&t, "service"), text(&t, "backend"));
            let _ = writeln!(
                out,
                "{service:<28} {backend:<28} {:>8} {:>12} {:>12}",
                c("flows"),
                c("packets_to_backend"),
                c("packets_to_client"),
            );
        }
    }
    for problem in status.pointer("/services/problems").and_then(Value::as_array).into_iter().flatten() {
        let _ = writeln!(out, "problem: {}", problem.as_str().unwrap_or_default());
    }
    out
}

#[cfg(test)]
mod tests;
