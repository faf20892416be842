//! The deny list of a running gateway: by command, by file, over a restart. Needs root.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nomagic_api::deny::{DenyEntry, DenyReport, DenySource};
use nomagic_api::explain::Verdict;
use nomagic_testbed::rig::Netns;
use socket2::{Domain, Socket, Type};

use crate::common::*;

const V4: &str = "10.109.35.24:80";
const V6: &str = "[fd00:10:109::24]:80";
const DENIED: &str = "10.0.0.2";
const OTHER: &str = "10.0.0.3";
/// The node's own port, as ssh would be.
const SSH: &str = "10.0.0.1:22";
const BANNER: &[u8] = b"SSH-2.0-node\r\n";
/// Long enough for an answer, short enough to wait for one that does not come.
const PATIENCE: Duration = Duration::from_millis(700);

fn nomagic(g: &Gateway, words: &[&str]) -> Output {
    Command::new(NOMAGIC).args(words).arg("--state-dir").arg(g.state_dir()).output().unwrap()
}

/// The output of a command that succeeds.
fn done(g: &Gateway, words: &[&str]) -> String {
    let out = nomagic(g, words);
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The exit code and the error of a command that fails.
fn refused(g: &Gateway, words: &[&str]) -> (i32, String) {
    let out = nomagic(g, words);
    assert!(!out.status.success(), "{words:?}: {out:?}");
    (out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap())
}

fn list(g: &Gateway) -> Vec<DenyEntry> {
    let report: DenyReport = serde_json::from_str(&done(g, &["deny", "list", "--format", "json"])).unwrap();
    assert_eq!(report.entries_max, 65_536);
    report.entries
}

/// The prefixes with their sources.
fn sources(g: &Gateway) -> Vec<(String, Vec<DenySource>)> {
    list(g).into_iter().map(|entry| (entry.prefix, entry.sources)).collect()
}

/// Frames that the port towards the clients has counted as denied.
fn denied(g: &Gateway) -> u64 {
    g.number(|s| s.port("cl0").unwrap().xdp.counts.denied)
}

/// Connects from one of the namespace's addresses.
fn connect(from: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(5 * PATIENCE))?;
    Ok(stream)
}

/// Whether a Service answers a new connection from this address.
fn served(ns: &Netns, from: &str, to: &str) -> bool {
    let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
    ns.run(move || connect(from, to).map(|mut stream| ask(&mut stream)).is_ok()).unwrap()
}

/// What the node's own port says to this address.
fn ssh_banner(ns: &Netns, from: &str) -> Vec<u8> {
    let (from, to) = (from.parse().unwrap(), SSH.parse().unwrap());
    let read = move || {
        let mut banner = vec![0; BANNER.len()];
        connect(from, to).and_then(|mut stream| stream.read_exact(&mut banner)).map(|()| banner)
    };
    ns.run(read).unwrap().expect("the node's own port answers")
}

/// Serves the node's own port until the end of the test.
struct Ssh(Arc<AtomicBool>);

impl Ssh {
    fn start(gw: &Netns) -> Ssh {
        let stop = Arc::new(AtomicBool::new(false));
        let listener = gw.run(|| TcpListener::bind(SSH).unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stopped = stop.clone();
        std::thread::spawn(move || {
            while !stopped.load(Relaxed) {
                match listener.accept() {
                    Ok((mut stream, _)) => drop(std::io::Write::write_all(&mut stream, BANNER)),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Ssh(stop)
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn gateway(tag: &str, extra: &str) -> Gateway {
    let g = Gateway::start(tag, extra, &nginx(&[0, 1, 2]));
    g.scene.client.ip(&format!("addr add {OTHER}/24 dev eth0")).unwrap();
    g
}

#[test]
fn a_client_is_denied_by_command_for_a_time() {
    let g = gateway("deny", "");
    let client = &g.scene.client;
    let _ssh = Ssh::start(&g.scene.gw);
    assert!(served(client, DENIED, V4) && served(client, OTHER, V4));
    let (from, to) = (DENIED.parse().unwrap(), V4.parse().unwrap());
    let mut open = client.run(move || connect(from, to).unwrap()).unwrap();
    let pod = ask(&mut open);
    assert_eq!((list(&g), denied(&g)), (vec![], 0));

    let added = Instant::now();
    assert_eq!(done(&g, &["deny", "add", DENIED, "--for", "6s"]), "10.0.0.2/32 is denied for 6 s\n");
    assert!(!served(client, DENIED, V4), "a new connection");
    assert!(served(client, OTHER, V4), "another client is not touched");
    assert_eq!(ssh_banner(client, DENIED), BANNER, "the node's own port is the kernel's");
    std::io::Write::write_all(&mut open, b"GET / HTTP/1.1\r\nHost: nginx\r\n\r\n").unwrap();
    open.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(open.read(&mut [0; 1]).is_err(), "its open connection");
    assert_eq!(ssh_banner(client, DENIED), BANNER);
    let explained = g.explain("tcp 10.0.0.2:40000 -> 10.109.35.24:80");
    assert_eq!((explained.verdict, explained.reason.as_deref()), (Verdict::Drop, Some("denied")), "{explained:#?}");
    assert!(explained.steps[1].starts_with("The deny list has 10.0.0.2/32, and 10.0.0.2 is in it"), "{explained:#?}");

    let [entry] = &list(&g)[..] else { panic!("{:?}", list(&g)) };
    assert_eq!((entry.prefix.as_str(), &entry.sources[..]), ("10.0.0.2/32", &[DenySource::Command][..]));
    assert!(entry.expires_in_s.is_some_and(|s| (1..=6).contains(&s)), "{entry:?}");
    // At least a SYN and the request; TCP sends them again.
    assert!(entry.packets >= 2 && denied(&g) >= entry.packets, "{entry:?}, {}", denied(&g));
    assert_eq!(g.number(|s| s.port("cl0").unwrap().xdp.dropped), 0, "no sign of a fault");
    let metrics = g.scene.gw.run(|| plain_http::get("127.0.0.1:10249".parse().unwrap(), "/metrics").unwrap().body).unwrap();
    let metrics = prometheus::parse(&metrics);
    assert!(metrics.value("nomagic_xdp_frames_total", &[("port", "cl0"), ("outcome", "denied")]) >= entry.packets as f64);
    assert_eq!(metrics.value("nomagic_deny_prefixes_by_source", &[("source", "command")]), 1.0);
    assert_eq!(["nomagic_deny_prefixes", "nomagic_deny_prefixes_max"].map(|name| metrics.value(name, &[])), [1.0, 65_536.0]);
    let page = done(&g, &["status"]);
    assert!(page.contains("deny list: 1 of 65536 prefixes (0 of the configuration, 0 of the file, 1 of commands)"), "{page}");

    wait_for("the end of the command", Duration::from_secs(10), || list(&g).is_empty());
    assert!(added.elapsed() >= Duration::from_secs(6), "{:?}", added.elapsed());
    assert!(served(client, DENIED, V4), "allowed again");
    // The client has sent its request again, with growing pauses.
    open.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let mut answer = [0; 8];
    open.read_exact(&mut answer).expect("the open connection goes on");
    assert_eq!(&answer, b"HTTP/1.1", "from {pod}");
    g.assert_accounts_close();
}

#[test]
fn the_configuration_a_file_and_commands_unite_and_outlive_the_process() {
    let scene_file = tempfile::tempdir().unwrap();
    let path = scene_file.path().join("deny.txt");
    let write = |text: &str| {
        let aside = scene_file.path().join("new");
        std::fs::write(&aside, text).unwrap();
        std::fs::rename(aside, &path).unwrap();
    };
    write("# A flood.\nfd00:a::2 # a client\n");
    let mut g = gateway("denyf", &format!("deny: {{prefixes: [198.51.100.0/24], file: {}}}", path.display()));
    let (configuration, file, command) = (DenySource::Configuration, DenySource::File, DenySource::Command);
    let of = |entries: &[(&str, &[DenySource])]| entries.iter().map(|(p, s)| ((*p).to_owned(), s.to_vec())).collect::<Vec<_>>();
    assert_eq!(sources(&g), of(&[("198.51.100.0/24", &[configuration]), ("fd00:a::2/128", &[file])]));
    assert!(!served(&g.scene.client, "fd00:a::2", V6) && served(&g.scene.client, DENIED, V4));

    // A changed file: a bad line costs no other.
    write("10.0.0.2\nexample.com\n");
    wait_for("the changed file", Duration::from_secs(5), || sources(&g)[0].0 == "10.0.0.2/32");
    assert!(served(&g.scene.client, "fd00:a::2", V6) && !served(&g.scene.client, DENIED, V4));
    let problems = |g: &Gateway| g.number(|s| s.services.problems.join("\n"));
    assert!(problems(&g).contains("deny.txt: line 2: \"example.com\" is not a CIDR"), "{}", problems(&g));
    std::fs::remove_file(&path).unwrap();
    wait_for("the missing file", Duration::from_secs(5), || problems(&g).contains("deny.txt: cannot be read"));
    assert!(!served(&g.scene.client, DENIED, V4), "the last list stays");

    done(&g, &["deny", "add", "10.0.0.3/32"]);
    done(&g, &["deny", "add", "198.51.100.7/24", "--for", "1h"]);
    assert_eq!(
        done(&g, &["deny", "remove", "198.51.100.0/24"]),
        "198.51.100.0/24 is no longer denied by command, but still by: configuration\n"
    );
    let errors = [
        (&["deny", "remove", "198.51.100.0/24"][..], 1, "remove it from deny.prefixes and restart nomagic"),
        (&["deny", "remove", "10.0.0.2"], 1, "remove its line there"),
        (&["deny", "remove", "10.9.9.9"], 1, "not in the deny list"),
        (&["deny", "add", "10.0.0.0/33"], 2, "not a CIDR or an address"),
        (&["deny", "add", "10.0.0.0/8", "--for", "0s"], 2, "from 1s to 720h"),
    ];
    for (words, code, message) in errors {
        let (exit, error) = refused(&g, words);
        assert!(exit == code && error.contains(message), "{words:?}: {exit}: {error}");
    }

    // While no process runs, and in the next one: commands, counters, and the list of a file that is still missing.
    assert!(!served(&g.scene.client, OTHER, V4));
    let packets = |g: &Gateway| list(g).into_iter().map(|e| (e.prefix, e.packets)).collect::<std::collections::BTreeMap<_, _>>();
    let before = packets(&g);
    assert!(before["10.0.0.3/32"] > 0 && before["10.0.0.2/32"] > 0, "{before:?}");
    g.kill();
    assert!(!served(&g.scene.client, OTHER, V4));
    g.restart();
    assert_eq!(sources(&g), of(&[("10.0.0.2/32", &[file]), ("10.0.0.3/32", &[command]), ("198.51.100.0/24", &[configuration])]));
    let after = packets(&g);
    assert!(after["10.0.0.3/32"] > before["10.0.0.3/32"] && after["10.0.0.2/32"] >= before["10.0.0.2/32"], "{before:?} {after:?}");
    assert!(!served(&g.scene.client, OTHER, V4) && served(&g.scene.client, "fd00:a::2", V6));
    assert_eq!(done(&g, &["deny", "remove", OTHER]), "10.0.0.3/32 is no longer denied\n");
    assert!(served(&g.scene.client, OTHER, V4));
}
