//! `nomagic trace` and `nomagic capture`: what they say of real connections, beside the gateway's counters. Needs root, and tshark.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nomagic_api::events::{EVENT_SCHEMA, Event, EventType};
use nomagic_api::flows::FlowState;
use nomagic_api::taps::{PACKET_SCHEMA, TappedPacket};
use nomagic_testbed::rig::CLIENT_V4;

use crate::common::*;

fn command(g: &Gateway, name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(NOMAGIC);
    command.arg(name).arg("--state-dir").arg(g.state_dir()).args(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn output(g: &Gateway, name: &str, args: &[&str]) -> Output {
    command(g, name, args).output().unwrap()
}

fn lines<T: serde::de::DeserializeOwned>(out: &Output) -> Vec<T> {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn events(g: &Gateway, args: &[&str]) -> Vec<Event> {
    lines(&output(g, "trace", &[args, &["--last", "100000", "--format", "json"]].concat()))
}

/// Opens a connection, asks once and closes it. Returns its own address.
fn ask(g: &Gateway, to: SocketAddr) -> SocketAddr {
    let asked = g.scene.client.run(move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        stream.local_addr().unwrap()
    });
    asked.unwrap()
}

/// Runs `act` while a command runs that has taken its first look.
fn during<R>(g: &Gateway, name: &str, args: &[&str], act: impl FnOnce() -> R) -> (Output, R) {
    let child: Child = command(g, name, args).spawn().unwrap();
    // A tap is open as soon as the worker's round after that is over; a follower has its cursor.
    std::thread::sleep(Duration::from_millis(500));
    let acted = act();
    (child.wait_with_output().unwrap(), acted)
}

#[test]
fn events_of_a_running_gateway() {
    let g = Gateway::start("trace", "", &nginx(&[0, 1, 2]));
    let to: SocketAddr = "10.109.35.24:80".parse().unwrap();
    let (out, client) =
        during(&g, "trace", &["--follow", "--duration", "2", "--service", "default/nginx", "--format", "json"], || ask(&g, to));
    let followed: Vec<Event> = lines(&out);
    // The first packet may have waited for the endpoint's MAC address.
    let own = followed.iter().filter(|event| event.source.as_deref() == Some(&client.to_string()) && event.kind != EventType::Held);
    let own: Vec<&Event> = own.collect();
    let states: Vec<(EventType, Option<FlowState>)> = own.iter().map(|event| (event.kind, event.state)).collect();
    let changed = |state| (EventType::Changed, Some(state));
    assert_eq!(states[..3], [(EventType::New, Some(FlowState::SynSent)), changed(FlowState::SynRecv), changed(FlowState::Established)]);
    assert_eq!(states.last(), Some(&changed(FlowState::TimeWait)), "{states:?}");
    for event in &own {
        assert_eq!(
            (event.schema, event.proto.as_deref(), event.service.as_deref()),
            (EVENT_SCHEMA, Some("TCP"), Some("default/nginx:http"))
        );
        assert_eq!((event.destination.as_deref(), event.snat.as_deref()), (Some("10.109.35.24:80"), None));
        assert!(event.backend.is_some() && event.worker.is_some() && event.interface.is_some() && event.bytes > 0, "{event:?}");
        assert!(event.backend == own[0].backend && event.time.ends_with('Z') && event.time.starts_with("20"), "{event:?}");
    }

    // What was refused, and why; the counters say the same number.
    let refused: SocketAddr = "10.109.35.24:81".parse().unwrap();
    g.scene.client.run(move || TcpStream::connect_timeout(&refused, Duration::from_secs(2)).unwrap_err()).unwrap();
    let rejected = events(&g, &["--type", "rejected", "--reason", "unused_service_port"]);
    assert!(!rejected.is_empty() && rejected.iter().all(|event| event.destination.as_deref() == Some("10.109.35.24:81")), "{rejected:?}");
    assert_eq!((rejected[0].answer.as_deref(), rejected[0].answered), (Some("icmp"), Some(true)));
    let counted = g.status().totals.counts.reasons.drop[nomagic_core::reason::Reason::UnusedServicePort];
    assert_eq!(rejected.len() as u64, counted, "{}", g.account());
    let created = g.status().totals.counts.conntrack.created;
    assert_eq!(events(&g, &["--type", "new"]).len() as u64, created, "{}", g.account());

    // As text, the last ones, and by client.
    let text = String::from_utf8(output(&g, "trace", &["--last", "3", "--client", &CLIENT_V4.to_string()]).stdout).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.contains("-> 10.109.35.24:81") && text.contains("rejected, the sender gets an ICMP error"), "{text}");
    for (args, words) in [
        (&["--reason", "bad_luck"][..], "reason `bad_luck`: no such reason"),
        (&["--type", "open"], "there are new, changed, ended"),
        (&["--rate", "5"], "--packets"),
        (&["--client", "x"], "client `x`: not a CIDR"),
    ] {
        let out = output(&g, "trace", args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && said.contains(words), "{args:?}: {said}");
    }
}

#[test]
fn packets_step_by_step() {
    let g = Gateway::start("steps", "", &nginx(&[0, 1, 2]));
    let to: SocketAddr = "10.109.35.24:80".parse().unwrap();
    let args = ["--packets", "--service", "default/nginx", "--rate", "100", "--duration", "2", "--format", "json"];
    let (out, client) = during(&g, "trace", &args, || ask(&g, to));
    let packets: Vec<TappedPacket> = lines(&out);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        said.contains(&format!("{} packets shown of {} that fit; 0 were beyond the rate, 0 were lost", packets.len(), packets.len())),
        "{said}"
    );
    // The first packet may have waited for the endpoint's MAC address.
    let packets: Vec<TappedPacket> = packets.into_iter().filter(|packet| packet.verdict != "hold").collect();
    let first = &packets[0];
    assert_eq!((first.schema, first.verdict.as_str(), first.source.clone()), (PACKET_SCHEMA, "forward", Some(client.to_string())));
    let backend = first.backend.clone().unwrap();
    let story = first.steps.join("\n");
    for words in [
        "TCP SYN ",
        "The client is outside of the cluster, and the destination is a cluster IP of default/nginx:http;",
        "3 endpoint(s) may answer",
    ] {
        assert!(story.contains(words), "{words}: {story}");
    }
    assert!(story.contains(&format!("of the Maglev table: {backend}.")) && story.contains("sees the client's own address"), "{story}");
    // Both ways, each by its flow; what explain says of the flow is the same.
    let replies = packets.iter().filter(|packet| packet.source.as_ref() == Some(&backend)).count();
    assert!(replies >= 3 && packets.len() - replies >= 4, "{replies} of {}", packets.len());
    let reply = packets.iter().find(|packet| packet.source.as_ref() == Some(&backend)).unwrap();
    assert!(reply.steps[1].contains("It is a reply of the known flow to default/nginx:http, which is SYN_SENT"), "{:?}", reply.steps);
    assert!(packets.iter().all(|packet| packet.verdict == "forward" && packet.service.as_deref() == Some("default/nginx:http")));

    // A limit for a second, and an end by number.
    let (out, ()) = during(&g, "trace", &["--packets", "--rate", "2", "--duration", "1"], || {
        (0..3).for_each(|_| _ = ask(&g, to));
    });
    let said = String::from_utf8_lossy(&out.stderr);
    let numbers: Vec<u64> = said.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
    let [shown, matched, limited, missed] = numbers[..] else { panic!("{said}") };
    assert!(shown <= 6 && limited > 10 && shown + limited == matched && missed == 0, "{said}");
    let ask_until_there = || (0..20).for_each(|_| _ = ask(&g, to));
    let (out, ()) = during(&g, "trace", &["--packets", "--backend", &backend, "--count", "2"], ask_until_there);
    assert_eq!(String::from_utf8_lossy(&out.stdout).lines().filter(|line| line.ends_with("  forward")).count(), 2);
}

/// What tshark reads of a capture: interface, addresses, ports and comment of each packet.
fn read_capture(path: &std::path::Path) -> Vec<Vec<String>> {
    let fields = ["frame.interface_name", "ip.src", "tcp.srcport", "ip.dst", "tcp.dstport", "tcp.checksum.status", "frame.comment"];
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-o", "tcp.check_checksum:TRUE", "-T", "fields", "-E", "separator=|", "-r"]).arg(path);
    for field in fields {
        tshark.args(["-e", field]);
    }
    let out = tshark.output().expect("tshark is installed (make setup)");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).lines().map(|line| line.split('|').map(str::to_owned).collect()).collect()
}

#[test]
fn a_capture_shows_each_packet_before_and_after() {
    let g = Gateway::start("capture", "", &nginx(&[0, 1, 2]));
    let to: SocketAddr = "10.109.35.24:80".parse().unwrap();
    let refused: SocketAddr = "10.109.35.24:81".parse().unwrap();
    let file = g.state_dir().join("capture.pcapng");
    let before = g.status().totals.counts;
    let args = ["--client", &CLIENT_V4.to_string(), "--duration", "2", "--write", file.to_str().unwrap()];
    let (out, client) = during(&g, "capture", &args, || {
        g.scene.client.run(move || TcpStream::connect_timeout(&refused, Duration::from_secs(2)).unwrap_err()).unwrap();
        ask(&g, to)
    });
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let counts = g.status().totals.counts;
    let packets = read_capture(&file);
    let of = |interface: &str, comment: &str| -> Vec<&Vec<String>> {
        packets.iter().filter(|packet| packet[0] == interface && packet[6].starts_with(comment)).collect()
    };
    // Each packet's comment beside the counters.
    let (received, sent) = (of("received", "forward; service default/nginx:http; backend "), of("sent", "forward; "));
    assert_eq!(received.len() as u64, counts.frames.forwarded.packets - before.frames.forwarded.packets, "{}", g.account());
    let held = counts.frames.held.packets - before.frames.held.packets;
    assert_eq!(of("received", "hold; ").len() as u64, held, "{}", g.account());
    let others = of("received", "reject: unused_service_port").len() + of("received", "hold; ").len();
    assert_eq!((received.len(), of("received", "").len()), (sent.len(), received.len() + others));
    let rejected = of("received", "reject: unused_service_port; worker ");
    let dropped = nomagic_core::reason::Reason::UnusedServicePort;
    assert_eq!(rejected.len() as u64, counts.reasons.drop[dropped] - before.reasons.drop[dropped]);
    assert_eq!(of("sent", "answer to: reject: unused_service_port").len(), rejected.len());

    // Before: to the Service. After: to the endpoint that the comment names, with whole checksums on both sides.
    for (before, after) in received.iter().zip(&sent) {
        let comment = &before[6];
        assert_eq!(comment, &after[6]);
        let backend: SocketAddr = comment.split("; ").find_map(|part| part.strip_prefix("backend ")).unwrap().parse().unwrap();
        let ends = |packet: &[String]| (format!("{}:{}", packet[1], packet[2]), format!("{}:{}", packet[3], packet[4]));
        let (client, service, backend) = (client.to_string(), to.to_string(), backend.to_string());
        let expected = match ends(before).0 == client {
            true => ((client.clone(), service), (client, backend)),
            false => ((backend, client.clone()), (service, client)),
        };
        assert_eq!((ends(before), ends(after)), expected, "{comment}");
        assert_eq!(after[5], "1", "a good checksum: {after:?}");
    }

    // To a pipe, and never to a terminal's reader that has left.
    let (out, _) = during(&g, "capture", &["--service", "default/nginx", "--count", "1"], || ask(&g, to));
    assert_eq!(out.stdout[..4], [0x0a, 0x0d, 0x0d, 0x0a], "a section header block");
    let mut child = command(&g, "capture", &["--service", "default/nginx"]).spawn().unwrap();
    drop(child.stdout.take());
    let (_, said) = (ask(&g, to), child.wait_with_output().unwrap());
    assert_eq!(said.status.code(), Some(0), "{}", String::from_utf8_lossy(&said.stderr));
    let wrong = output(&g, "capture", &["--snap-len", "0"]);
    assert_eq!(wrong.status.code(), Some(2));
}
