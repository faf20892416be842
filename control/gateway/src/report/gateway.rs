//! What the running gateway says of itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nomagic_api::Status;
use nomagic_api::events::EventFilter;
use nomagic_api::flows::{CountBy, FlowFilter};
use nomagic_api::services::ServiceFilter;
use nomagic_api::socket::{Request, Response};
use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::bundle::{About, Bundle};
use crate::cli::services::each_service;
use crate::cli::trace::kept;
use crate::run::socket;

const STATUS: About = About::new("status.json", "nomagic status --format json").up_to(8 << 20);
const PROBLEMS: About = About::new("problems.txt", "why it is not ready, and problems");
const SERVICES: About = About::new("services.jsonl", "nomagic services --format json").up_to(8 << 20);
const FLOWS: About = About::new("flows.json", "numbers of flows by Service and by state");
const EVENTS: About = About::new("events.jsonl", "nomagic trace --format json: the last events").up_to(2 << 20);
const DENY: About = About::new("deny.json", "the deny list");
const LOG: About = About::new("log-level.json", "the log level");
const PROCESS: About = About::new("process.json", "the running process: command line, limits, memory, threads");

/// Maximum number of events.
const EVENTS_MAX: usize = 2_000;
/// Maximum number of pages of flows that are counted, about 268 million slots.
const FLOW_PAGES_MAX: usize = 1_024;

/// The process that runs.
pub struct Running {
    pub pid: i32,
    /// Its arguments.
    pub command_line: Vec<String>,
}

/// Adds what the gateway says. `None`: none runs with this state directory, or it cannot be told which process it is.
pub fn collect(bundle: &mut Bundle, state_dir: &Path) -> Option<Running> {
    let status = match ask(state_dir, &Request::Status {}) {
        Ok(Response::Status(status)) => Ok(*status),
        Ok(_) => Err("unexpected response from the gateway: not a status".to_owned()),
        Err(e) => Err(e),
    };
    bundle.add_text(PROBLEMS, status.as_ref().map(problems).map_err(Clone::clone));
    let is_running = status.is_ok();
    bundle.add_json(STATUS, status.and_then(|status| serde_json::to_value(&status).map_err(|e| e.to_string())));
    if !is_running {
        return None;
    }
    add_services(bundle, state_dir);
    bundle.add_json(FLOWS, flows(state_dir));
    add_events(bundle, state_dir);
    bundle.add_json(DENY, answer(ask(state_dir, &Request::DenyList {})));
    bundle.add_json(LOG, answer(ask(state_dir, &Request::Log { level: None })));
    let running = process(state_dir);
    bundle.add_json(PROCESS, running.as_ref().map(describe).ok_or_else(|| "the process of the control socket is not known".into()));
    running
}

fn ask(state_dir: &Path, request: &Request) -> Result<Response, String> {
    socket::ask(state_dir, request).map_err(|e| format!("{e:#}"))
}

/// An answer's content, without its name.
fn answer(response: Result<Response, String>) -> Result<Value, String> {
    let value = serde_json::to_value(response?).map_err(|e| e.to_string())?;
    match value {
        Value::Object(fields) if fields.len() == 1 => Ok(fields.into_iter().next().map(|(_, value)| value).unwrap_or_default()),
        other => Ok(other),
    }
}

fn problems(status: &Status) -> String {
    let not_ready = status.not_ready.iter().map(|reason| format!("not ready: {reason}\n"));
    let problems = status.services.problems.iter().map(|problem| format!("problem: {problem}\n"));
    let text: String = not_ready.chain(problems).collect();
    if text.is_empty() { "none\n".into() } else { text }
}

fn add_services(bundle: &mut Bundle, state_dir: &Path) {
    let mut lines = String::new();
    let listed = each_service(state_dir, &ServiceFilter::default(), |service| {
        // What is beyond is cut anyway.
        if lines.len() <= SERVICES.max() {
            lines += &serde_json::to_string(service)?;
            lines.push('\n');
        }
        Ok(())
    });
    bundle.add_partial(SERVICES, lines, listed.err().map(|e| format!("{e:#}")));
}

fn add_events(bundle: &mut Bundle, state_dir: &Path) {
    let events = kept(state_dir, &EventFilter::default(), EVENTS_MAX);
    let lines = events.and_then(|(events, _)| Ok(events.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?));
    let text = lines.map(|lines| lines.iter().map(|line| format!("{line}\n")).collect::<String>());
    bundle.add_text(EVENTS, text.map_err(|e| format!("{e:#}")));
}

fn flows(state_dir: &Path) -> Result<Value, String> {
    let count = |by: CountBy| -> Result<Value, String> {
        let (mut groups, mut other, mut all, mut from) = (BTreeMap::<String, u64>::new(), 0, 0, 0);
        for _ in 0..FLOW_PAGES_MAX {
            let request = Request::Flows { filter: FlowFilter::default(), count_by: Some(by), from };
            let Response::Flows(page) = ask(state_dir, &request)? else {
                return Err("unexpected response from the gateway: not flows".into());
            };
            page.groups.into_iter().for_each(|(group, flows)| *groups.entry(group).or_default() += flows);
            (other, all) = (other + page.other, all + page.matched);
            match page.next {
                Some(next) => from = next,
                None => return Ok(json!({ "flows": all, "groups": groups, "other": other })),
            }
        }
        Err("the connection table has more parts than are counted".into())
    };
    Ok(json!({ "by_service": count(CountBy::Service)?, "by_state": count(CountBy::State)? }))
}

/// The process that listens on the control socket.
fn process(state_dir: &Path) -> Option<Running> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().ok()?;
    let peer = runtime.block_on(async { UnixStream::connect(socket::path(state_dir)).await?.peer_cred() }).ok()?;
    // 0: it is not in this process's PID namespace.
    let pid = peer.pid().filter(|pid| *pid > 0)?;
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command_line =
        bytes.split(|b| *b == 0).filter(|arg| !arg.is_empty()).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
    Some(Running { pid, command_line })
}

fn describe(running: &Running) -> Value {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", running.pid)).map_err(|e| e.to_string());
    let lines = |name: &str| match read(name) {
        Ok(text) => json!(text.lines().collect::<Vec<_>>()),
        Err(e) => json!(e),
    };
    let threads: Vec<String> = std::fs::read_dir(format!("/proc/{}/task", running.pid))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|thread| Some(std::fs::read_to_string(thread.path().join("comm")).ok()?.trim().to_owned()))
        .take(256)
        .collect();
    let executable = std::fs::read_link(format!("/proc/{}/exe", running.pid)).ok();
    json!({
        "pid": running.pid, "command_line": running.command_line, "executable": executable, "threads": threads, "limits": lines("limits"),
        "status": lines("status"), "cgroup": lines("cgroup"),
    })
}

impl Running {
    /// A file as the process sees it, which may be in a container.
    pub fn file(&self, path: &str) -> PathBuf {
        let below = |base: &str, path: &str| PathBuf::from(format!("/proc/{}/{base}", self.pid)).join(path);
        match path.strip_prefix('/') {
            Some(absolute) => below("root", absolute),
            None => below("cwd", path),
        }
    }

    /// The value of an option of its command line.
    pub fn option(&self, name: &str) -> Option<&str> {
        let mut args = self.command_line.iter();
        while let Some(arg) = args.next() {
            if arg == name {
                return args.next().map(String::as_str);
            }
            if let Some(value) = arg.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_command_line() {
        let args = ["nomagic", "run", "--config", "/etc/n.yaml", "--interface=eth0"];
        let running = Running { pid: 7, command_line: args.map(str::to_owned).to_vec() };
        assert_eq!((running.option("--config"), running.option("--interface")), (Some("/etc/n.yaml"), Some("eth0")));
        assert_eq!((running.option("--manifests"), running.option("--conf")), (None, None));
        assert_eq!(running.file("/etc/n.yaml"), Path::new("/proc/7/root/etc/n.yaml"));
        assert_eq!(running.file("n.yaml"), Path::new("/proc/7/cwd/n.yaml"));
    }
}
