//! The connection table in a file: connections continue in the next process, however the previous one ended. Needs root.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use nomagic_api::TakenOver;
use nomagic_core::reason::Reason;
use nomagic_core::reject::Class;
use nomagic_testbed::peers::blob;
use nomagic_testbed::rig::Netns;

use crate::common::*;

const V4: &str = "10.109.35.24:80";
const V6: &str = "[fd00:10:109::24]:80";
const KEPT: &str = "graceMs: 10000\nconntrack: {capacity: 65536, file: $STATE/conntrack}";
/// Size of a download that takes some seconds.
const BODY: usize = 16 << 20;

/// Downloads with at most 4 MB/s and compares the bytes.
fn slow_download(g: &Gateway, to: &str) -> JoinHandle<Result<(), String>> {
    let to: SocketAddr = to.parse().unwrap();
    let download = move || -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(format!("GET /blob?bytes={BODY} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())?;
        let (mut answer, mut chunk) = (Vec::new(), vec![0; 32 << 10]);
        loop {
            let n = stream.read(&mut chunk)?;
            if n == 0 {
                break;
            }
            answer.extend(&chunk[..n]);
            std::thread::sleep(Duration::from_micros(n as u64 / 4));
        }
        if answer.ends_with(&blob(BODY)) { Ok(()) } else { Err(std::io::Error::other(format!("{} bytes came", answer.len()))) }
    };
    let thread = g.scene.client.thread(download).unwrap();
    std::thread::spawn(move || thread.join().unwrap().unwrap().map_err(|e| e.to_string()))
}

/// A pod sends one datagram per millisecond to a client that has sent one request, until stopped; the client counts them.
struct DatagramStream {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
}

const STREAM: &str = "10.109.35.25:9999";

impl DatagramStream {
    fn start(g: &Gateway) -> DatagramStream {
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let server = g.scene.pods[0].run(|| UdpSocket::bind("0.0.0.0:9999").unwrap()).unwrap();
        let client = g.scene.client.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        client.connect(STREAM).unwrap();
        client.send(b"more").unwrap();
        let (_, to) = server.recv_from(&mut [0; 16]).unwrap();
        let (ended, count) = (stop.clone(), received.clone());
        std::thread::spawn(move || {
            while !ended.load(Relaxed) {
                let _ = server.send_to(b"datagram", to);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        // Ends by timeout when the stream has ended.
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        std::thread::spawn(move || {
            while client.recv(&mut [0; 16]).is_ok() {
                count.fetch_add(1, Relaxed);
            }
        });
        DatagramStream { stop, received }
    }
}

impl Drop for DatagramStream {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// Packets forwarded by a namespace's kernel, IPv4 and IPv6.
fn forwarded_by_kernel(ns: &Netns) -> u64 {
    let count = || {
        let v4 = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
        let mut ip = v4.lines().filter(|l| l.starts_with("Ip:")).map(|l| l.split_whitespace());
        let (names, numbers) = (ip.next().unwrap(), ip.next().unwrap());
        let v4 = names.zip(numbers).find(|(name, _)| *name == "ForwDatagrams").unwrap().1.to_owned();
        let v6 = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
        let v6 = v6.lines().find(|l| l.starts_with("Ip6OutForwDatagrams")).unwrap().split_whitespace().last().unwrap().to_owned();
        [v4, v6].iter().map(|n| n.parse::<u64>().unwrap()).sum()
    };
    ns.run(count).unwrap()
}

fn taken_over(g: &Gateway) -> Option<TakenOver> {
    g.status().conntrack.taken_over
}

/// Kills the process during transfers and starts the next one: connections see only a pause.
fn goes_on_after_kill_9(tag: &str, extra: &str, snat: bool) {
    let spec = "clusterIP: 10.109.35.25\nclusterIPs: [10.109.35.25, 'fd00:10:109::25']\nipFamilies: [IPv4, IPv6]";
    let stream = manifests(&[Svc { name: "stream", spec, status: "", ports: &[("udp", "UDP", 9999, 0)], pods: &[0] }]);
    let mut g = Gateway::start(tag, &format!("{KEPT}\n{extra}"), &format!("{}{stream}", nginx(&[0, 1, 2])));
    let stream = DatagramStream::start(&g);
    let open = |to: &str, n: usize| -> Vec<(TcpStream, String)> {
        let to: SocketAddr = to.parse().unwrap();
        g.scene.client.run(move || (0..n).map(|_| keep_alive(to)).collect()).unwrap()
    };
    let mut idle = open(V4, 10);
    idle.extend(open(V6, 10));
    let downloads = [V4, V6].map(|to| slow_download(&g, to));
    std::thread::sleep(Duration::from_secs(1));
    let past = forwarded_by_kernel(&g.scene.gw);
    g.kill();
    std::thread::sleep(Duration::from_millis(700));
    g.restart();
    assert!(downloads.iter().all(|d| !d.is_finished()), "it was killed in the middle");
    let streamed = stream.received.load(Relaxed);
    wait_for("the stream to go on", Duration::from_secs(5), || stream.received.load(Relaxed) > streamed + 100);
    let found = taken_over(&g).expect("a table");
    assert!(found.connections >= 23 && found.unwanted == 0 && !found.detached, "{found:?}");
    for (stream, pod) in &mut idle {
        assert_eq!(&ask(stream), pod);
    }
    for download in downloads {
        download.join().unwrap().expect("every byte comes");
    }
    assert_eq!(g.count(|c| c.conntrack.created), 0, "nothing was picked up: all were known");
    assert_eq!(g.reason(Reason::MidFlowSnat), 0);
    assert_eq!(g.number(|s| s.snat.connections) > 0, snat);
    assert!(g.number(|s| s.replies.announced) > 0);
    assert_eq!(forwarded_by_kernel(&g.scene.gw), past, "not one packet got past nomagic");
    assert!(g.process.output().contains("took over"), "{}", g.process.output());
    // New connections work next to the old ones.
    for to in [V4, V6] {
        let report = g.http(&g.scene.client, to, 20);
        assert_eq!((report.answered(), report.failed()), (20, 0), "{report:?}");
    }
    g.assert_accounts_close();
}

#[test]
fn snat_connections_continue_after_kill_9() {
    goes_on_after_kill_9("keep-s", "masqueradeAll: true", true);
}

#[test]
fn dnat_connections_continue_after_kill_9() {
    goes_on_after_kill_9("keep-d", "", false);
}

/// Rewrites the configuration.
fn configure(g: &Gateway, extra: &str) {
    std::fs::write(g.config_path(), config(g.dir.path(), &format!("{KEPT}\n{extra}"))).unwrap();
}

/// How a request on an open connection ends, and after how long.
fn asks_again(stream: &mut TcpStream) -> (std::io::ErrorKind, Duration) {
    let begun = std::time::Instant::now();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let ended = stream.write_all(b"GET /name HTTP/1.1\r\nHost: x\r\n\r\n").and_then(|()| match stream.read(&mut [0; 256])? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    });
    (ended.expect_err("nothing is left of the connection").kind(), begun.elapsed())
}

#[test]
fn without_a_file_snat_connections_are_reset_at_the_next_segment() {
    let mut g = Gateway::start("lost-s", "graceMs: 10000\nmasqueradeAll: true", &nginx(&[0, 1, 2]));
    let open = |to: &str| -> Vec<(TcpStream, String)> {
        let to: SocketAddr = to.parse().unwrap();
        g.scene.client.run(move || (0..5).map(|_| keep_alive(to)).collect()).unwrap()
    };
    let mut open: Vec<(TcpStream, String)> = [V4, V6].into_iter().flat_map(open).collect();
    terminate(&mut g);
    g.restart();
    assert_eq!(taken_over(&g), None);
    for (stream, _) in &mut open {
        let (ended, after) = asks_again(stream);
        assert!(ended == std::io::ErrorKind::ConnectionReset && after < Duration::from_secs(1), "{ended} after {after:?}");
    }
    assert!(g.reason(Reason::MidFlowSnat) >= 10 && g.count(|c| c.path.rejects_made[Class::Reset]) >= 10);
    assert_eq!(g.count(|c| c.path.rejects_suppressed.total()), 0);
    assert_eq!(g.http(&g.scene.client, V4, 10).failed(), 0);
    g.assert_accounts_close();
}

fn terminate(g: &mut Gateway) {
    assert!(g.process.terminate(Duration::from_secs(5)).unwrap().success(), "{}", g.process.output());
}

#[test]
fn statistics_keep_their_names_and_connections_of_removed_sources_end() {
    let mut g = Gateway::start("keep-n", &format!("{KEPT}\nmasqueradeAll: true"), &nginx(&[0, 1, 2]));
    let to: SocketAddr = V4.parse().unwrap();
    let mut open: Vec<(TcpStream, String)> = g.scene.client.run(move || (0..12).map(|_| keep_alive(to)).collect()).unwrap();
    terminate(&mut g);
    // Another Service comes first now, so all indices change.
    let spec = "clusterIP: 10.109.35.9\nclusterIPs: [10.109.35.9, 'fd00:10:109::9']\nipFamilies: [IPv4, IPv6]";
    let first = manifests(&[Svc { name: "aaa", spec, status: "", ports: &[("http", "TCP", 80, 0)], pods: &[2, 1, 0] }]);
    std::fs::write(g.dir.path().join("manifests.yaml"), format!("{first}{}", nginx(&[0, 1, 2]))).unwrap();
    g.restart();
    let found = taken_over(&g).expect("a table");
    assert_eq!((found.connections, found.not_whole, found.detached), (12, 0, true), "{found:?}");
    open.iter_mut().for_each(|(stream, pod)| assert_eq!(&ask(stream), pod));
    for target in g.status().targets {
        let pod = |ip: &str| nomagic_testbed::rig::PODS.iter().find(|p| ip == format!("{}:80", p.v4)).map_or("", |p| p.name);
        let theirs = open.iter().filter(|(_, name)| name == pod(&target.backend)).count() as u64;
        let nginx = target.service_port() == "default/nginx:80/TCP";
        // At least a request and its acknowledgement.
        let to_backend = target.carried.to_backend.packets;
        assert!(if nginx { to_backend >= theirs && (theirs > 0 || to_backend == 0) } else { to_backend == 0 }, "{target:?}");
    }
    // The SNAT port range has changed: replies to the old ports could not be distinguished from foreign packets.
    terminate(&mut g);
    configure(&g, "masqueradeAll: true\nsnat: {ports: 62000-62999}");
    g.restart();
    let found = taken_over(&g).expect("a table");
    let stayed = found.connections;
    assert_eq!(stayed + found.unwanted, 12, "{found:?}");
    assert!(stayed < 12 && g.number(|s| s.snat.connections) == u64::from(stayed), "{found:?}");
    let report = g.http(&g.scene.client, V4, 20);
    assert_eq!((report.answered(), report.failed()), (20, 0), "{report:?}");
}

#[test]
fn invalid_table_files_are_set_aside_or_rejected_and_removed_by_cleanup() {
    let mut g = Gateway::start("keep-f", KEPT, &nginx(&[0, 1, 2]));
    let table = g.state_dir().join("conntrack");
    let aside = g.state_dir().join("conntrack.set-aside.1");
    assert_eq!((taken_over(&g), g.status().conntrack.file), (None, Some(table.clone())));
    terminate(&mut g);
    let mut bytes = std::fs::read(&table).unwrap();
    bytes[..64].fill(0x5a);
    std::fs::write(&table, bytes).unwrap();
    g.restart();
    assert_eq!(taken_over(&g), None);
    let said = g.process.output();
    assert!(said.contains("it is no connection table") && said.contains("conntrack.set-aside"), "{said}");
    assert_eq!(g.http(&g.scene.client, V4, 10).failed(), 0);
    terminate(&mut g);
    // Writable for other users.
    nomagic_testbed::rig::run("chmod", &["0666", &table.to_string_lossy()]).unwrap();
    let mut process = g.scene.gw.spawn(NOMAGIC, &["run", "--config", &g.config_path().to_string_lossy()]).unwrap();
    assert_eq!(process.wait(Duration::from_secs(20)).unwrap().code(), Some(1));
    process.wait_for_line("chmod 0600", Duration::from_secs(1)).unwrap();
    nomagic_testbed::rig::run("chmod", &["0600", &table.to_string_lossy()]).unwrap();
    assert!(table.exists() && aside.exists());
    let said = g.scene.gw.exec(NOMAGIC, &["cleanup", "--config", &g.config_path().to_string_lossy()]).unwrap();
    assert!(said.contains("the connection table") && !table.exists() && !aside.exists(), "{said}");
}

#[test]
fn a_table_that_is_cut_while_it_is_used_costs_its_connections_only() {
    let mut g = Gateway::start("keep-cut", KEPT, &nginx(&[0, 1, 2]));
    let table = g.state_dir().join("conntrack");
    assert_eq!(g.http(&g.scene.client, V4, 10).answered(), 10);
    std::fs::OpenOptions::new().write(true).open(&table).unwrap().set_len(4_096).unwrap();
    assert_eq!(g.http(&g.scene.client, V4, 20).answered(), 20, "as after a start without a table");
    wait_for("the problem", Duration::from_secs(5), || {
        g.status().services.problems.iter().any(|p| p.contains("was cut") && p.contains(&*table.to_string_lossy()))
    });
    assert!(g.process.running() && g.process.output().contains("was cut"), "{}", g.process.output());
    terminate(&mut g);
    g.restart();
    assert_eq!(taken_over(&g), None);
    assert_eq!(g.http(&g.scene.client, V4, 20).answered(), 20);
}
