//! The testbed itself, with the kernel as the gateway.

use std::net::IpAddr;
use std::time::Duration;

use nomagic_testbed::peers::{ClientOptions, PodOptions, download, http_load, start_pod, udp_load, upload};
use nomagic_testbed::rig::{CLIENT_V4, CLIENT_V6, Netns, PODS, Scene};

#[test]
fn pods_answer_the_client_through_the_gateway_in_both_families() {
    let scene = Scene::new("scene").unwrap();
    let pods: Vec<_> = scene.pods.iter().zip(PODS).map(|(ns, p)| start_pod(ns, PodOptions::new(p.name)).unwrap()).collect();
    let before = scene.client.link_counters("eth0").unwrap();
    for pod in PODS {
        for (addr, client) in [(IpAddr::V4(pod.v4), IpAddr::V4(CLIENT_V4)), (pod.v6.into(), CLIENT_V6.into())] {
            let (http, udp) = scene
                .client
                .block_on(|| async move {
                    let options = ClientOptions::default();
                    (http_load((addr, 80).into(), 5, options).await, udp_load((addr, 53).into(), 5, options).await)
                })
                .unwrap();
            for report in [http, udp] {
                assert_eq!(report.per_pod.get(pod.name), Some(&5), "{report:?}");
                assert_eq!(report.clients_seen.get(&client), Some(&5), "{report:?}");
                assert_eq!(report.failed(), 0, "{report:?}");
            }
        }
    }
    let seen = scene.client.link_counters("eth0").unwrap().since(&before);
    assert!(seen.tx_packets >= 3 * 2 * (5 * 5 + 5), "{seen:?}");
    assert!(seen.rx_packets >= 3 * 2 * (5 * 4 + 5), "{seen:?}");
    for pod in pods {
        pod.stop().unwrap();
    }
}

#[test]
fn bodies_of_3_mb_pass_byte_for_byte() {
    let scene = Scene::new("body").unwrap();
    let _pod = start_pod(&scene.pods[0], PodOptions::new("nginx-1")).unwrap();
    let to = (PODS[0].v4, 80).into();
    let limit = Duration::from_secs(20);
    let (up, down) =
        scene.client.block_on(|| async move { (upload(to, 3_000_000, limit).await, download(to, 3_000_000, limit).await) }).unwrap();
    assert_eq!(up.unwrap(), "nginx-1");
    down.unwrap();
}

#[test]
fn namespaces_and_processes_end_with_their_owners() {
    let netns = Netns::new("ends").unwrap();
    let path = netns.path();
    let mut sleeper = netns.spawn("sleep", &["60"]).unwrap();
    assert!(sleeper.running());
    let other = netns.spawn("sh", &["-c", "echo one; echo two >&2; sleep 60"]).unwrap();
    let pids = [sleeper.pid(), other.pid()];
    drop(netns);
    assert!(!path.exists());
    assert!(!sleeper.running(), "processes inside end with the namespace");
    drop((sleeper, other));
    assert!(pids.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()));
}

#[test]
fn output_is_collected_and_a_premature_end_is_told() {
    let netns = Netns::new("output").unwrap();
    let mut process = netns.spawn("sh", &["-c", "echo first; echo ready now >&2; exit 3"]).unwrap();
    assert_eq!(process.wait_for_line("ready", Duration::from_secs(5)).unwrap(), "ready now");
    assert_eq!(process.wait(Duration::from_secs(5)).unwrap().code(), Some(3));
    let error = process.wait_for_line("never", Duration::from_secs(5)).unwrap_err().to_string();
    assert!(error.contains("before it wrote `never`") && error.contains("first"), "{error}");
}

#[test]
fn two_pods_on_one_port_are_an_error_that_says_so() {
    let netns = Netns::new("twice").unwrap();
    let _first = start_pod(&netns, PodOptions::new("a")).unwrap();
    let error = format!("{:#}", start_pod(&netns, PodOptions::new("b")).unwrap_err());
    assert!(error.contains("cannot listen on TCP port 80"), "{error}");
}

#[test]
fn sysctls_belong_to_the_namespace() {
    let netns = Netns::new("sysctl").unwrap();
    netns.sysctl("net.ipv4.ip_local_reserved_ports", "61000-65535").unwrap();
    assert_eq!(netns.sysctl_get("net.ipv4.ip_local_reserved_ports").unwrap(), "61000-65535");
    let host = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap();
    assert_ne!(host.trim(), "61000-65535");
    assert!(netns.sysctl("net.ipv4.no_such_thing", "1").unwrap_err().to_string().contains("net.ipv4.no_such_thing"));
}

#[test]
fn commands_run_inside_and_their_errors_are_told() {
    let netns = Netns::new("exec").unwrap();
    assert!(netns.exec("ip", &["-br", "link"]).unwrap().starts_with("lo "));
    let error = netns.exec("ip", &["link", "show", "nothing0"]).unwrap_err().to_string();
    assert!(error.contains("`ip link show nothing0` failed") && error.contains("does not exist"), "{error}");
    let error = format!("{:#}", netns.spawn("/no/such/program", &[]).unwrap_err());
    assert!(error.contains("cannot start `/no/such/program"), "{error}");
}
