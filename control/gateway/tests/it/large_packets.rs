//! Large packets: links with an MTU of 9,000 bytes, with real sockets. The kernel's NAT in the gateway's place says what is right. Needs root.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use nomagic_api::XdpMode;
use nomagic_testbed::peers::{blob, download};
use nomagic_testbed::rig::{PODS, Scene};
use socket2::SockRef;

use crate::common::kernel_nat::SERVICE;
use crate::common::nat::Nat;
use crate::common::*;

const MTU: u32 = 9_000;
const LIMIT: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_secs(3);
const BODY: usize = 3_000_000;
const EMSGSIZE: i32 = 90;
/// What echoes large datagrams.
const ECHO: u16 = 5_400;

fn manifest() -> String {
    manifests(&[Svc {
        name: "nginx",
        spec: "clusterIP: 10.109.35.24\nclusterIPs: [10.109.35.24, 'fd00:10:109::24']\nipFamilies: [IPv4, IPv6]",
        status: "",
        ports: &[("http", "TCP", 80, 0), ("echo", "UDP", ECHO, 0)],
        pods: &[0],
    }])
}

/// Echoes datagrams of any size.
fn echo(scene: &Scene) {
    for any in ["0.0.0.0", "::"] {
        let pod = if any == "::" { PODS[0].v6.to_string() } else { PODS[0].v4.to_string() };
        let at = SocketAddr::new(pod.parse().unwrap(), ECHO);
        let socket = scene.pods[0].run(move || UdpSocket::bind(at).unwrap()).unwrap();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((n, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..n], from);
            }
        });
    }
}

/// What the client sees on one family: the largest segment, a download, and datagrams around the edges of packet buffers that come back.
fn seen(scene: &Scene, v6: bool) -> Vec<String> {
    let service = SERVICE[usize::from(v6)].parse().unwrap();
    let (http, udp, headers) = (SocketAddr::new(service, 80), SocketAddr::new(service, ECHO), if v6 { 48 } else { 28 });
    let segment = || SockRef::from(&TcpStream::connect_timeout(&http, LIMIT).unwrap()).tcp_mss().unwrap();
    let mut seen = vec![format!("segment: {}", scene.client.run(segment).unwrap())];
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let loaded = scene.client.run(move || runtime().block_on(download(http, BODY, LIMIT)).map_err(|e| format!("{e:#}"))).unwrap();
    seen.push(format!("download: {loaded:?}"));
    for ip_len in [1_500, 1_778, 1_779, 3_570, 3_571, 8_000, MTU as usize] {
        seen.push(format!("{ip_len} bytes: {:?}", scene.client.run(move || echoed(udp, ip_len - headers)).unwrap()));
    }
    seen
}

/// Sends a datagram, with DF in IPv4 as Linux does by default. `Ok`: it came back.
fn echoed(to: SocketAddr, len: usize) -> Result<(), Option<i32>> {
    let socket = UdpSocket::bind(if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.connect(to).unwrap();
    let body = blob(len);
    let mut answer = vec![0; 65_536];
    let received = socket.send(&body).and_then(|_| socket.recv(&mut answer)).map_err(|e| e.raw_os_error())?;
    assert!(answer[..received] == body, "what comes back is something else");
    Ok(())
}

/// The scene with this MTU, and with another one on the pods' side.
fn start(tag: &str, pods_mtu: u32, nomagic: bool) -> Nat {
    let scene = Scene::new(tag).expect("a scene (needs root)");
    scene.set_mtu(MTU).unwrap();
    if pods_mtu != MTU {
        scene.gw.ip(&format!("link set pods0 mtu {pods_mtu}")).unwrap();
        scene.pods.iter().for_each(|pod| drop(pod.ip(&format!("link set eth0 mtu {pods_mtu}")).unwrap()));
    }
    echo(&scene);
    Nat::start(scene, &manifest(), nomagic)
}

#[test]
fn large_packets_are_carried_in_native_mode() {
    let _cpus = CpuLock::take();
    let [kernel, nomagic] = [false, true].map(|nomagic| {
        let nat = start(if nomagic { "large-n" } else { "large-k" }, MTU, nomagic);
        let seen = [false, true].map(|v6| seen(nat.scene(), v6));
        if let Nat::Nomagic(g) = &nat {
            assert!(g.status().ports.iter().all(|port| port.xdp_mode == XdpMode::Native), "{}", g.account());
            g.assert_accounts_close();
        }
        seen
    });
    println!("{nomagic:#?}");
    assert_eq!(nomagic, kernel);
    assert!(nomagic.iter().flatten().skip(1).all(|line| line.starts_with("segment: 89") || line.ends_with("Ok(())")), "{nomagic:?}");
}

#[test]
fn senders_of_large_packets_hear_of_smaller_links() {
    let _cpus = CpuLock::take();
    let [kernel, nomagic] = [false, true].map(|nomagic| {
        let nat = start(if nomagic { "larges-n" } else { "larges-k" }, 1_500, nomagic);
        [false, true].map(|v6| {
            let service = SERVICE[usize::from(v6)].parse().unwrap();
            let (http, udp) = (SocketAddr::new(service, 80), SocketAddr::new(service, ECHO));
            let client = &nat.scene().client;
            let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let loaded = client.run(move || runtime().block_on(download(http, BODY, LIMIT)).map_err(|e| format!("{e:#}"))).unwrap();
            let told = client.run(move || echoed(udp, 8_000)).unwrap();
            (loaded, told)
        })
    });
    assert_eq!(nomagic, kernel);
    assert!(nomagic.iter().all(|(loaded, told)| loaded.is_ok() && *told == Err(Some(EMSGSIZE))), "{nomagic:?}");
}
