//! Floods of ICMP errors: beside them, other connections and errors about these lose nothing.

use arrayvec::ArrayVec;
use nomagic_core::frame::{BATCH_MAX, Frame, Outputs, PortId, Verdict};
use nomagic_core::icmp::ErrorClass;
use nomagic_core::pipeline::process;
use nomagic_core::reason::Reason;
use nomagic_core_fixtures::*;

/// Frames of a flood in a millisecond: a million a second.
const A_MS: u32 = 1_000;
/// How long a flood takes, milliseconds.
const FLOOD_MS: u64 = 1_000;

fn world() -> World {
    World::new(services(), 4_096)
}

/// A client's established connection to `service`: what it looks like beyond the gateway.
fn connect(w: &mut World, client: &str, service: &str) -> Spec {
    let syn = Spec { payload: 0, ..spec("tcp", client, service, SYN) };
    let went = w.connect(&syn).unwrap().tuple;
    Spec {
        src: (went.src_addr(), went.sport).into(),
        dst: (went.dst_addr(), went.dport).into(),
        flags: ACK,
        sequence: syn.sequence + 1,
        ..syn
    }
}

/// "Fragmentation needed" about a packet as it went, from a router.
fn too_big(went: &Spec, from: &str) -> Vec<u8> {
    let spec = IcmpSpec { from: ip(from), to: went.src.ip(), kind: 3, code: 4, rest: [0, 0, 5, 0x78] };
    spec.frame(&went.frame()[14..14 + 20 + 8])
}

/// Runs frames as batches; how many were forwarded.
fn run(w: &mut World, port: PortId, frames: &[Vec<u8>]) -> usize {
    let mut forwarded = 0;
    for batch in frames.chunks(BATCH_MAX) {
        let mut buffers = vec![[0u8; 512]; batch.len()];
        let mut list: ArrayVec<Frame<'_>, BATCH_MAX> = buffers
            .iter_mut()
            .zip(batch)
            .map(|(buffer, bytes)| {
                buffer[128..128 + bytes.len()].copy_from_slice(bytes);
                Frame::new(buffer, 128, bytes.len(), port, 0)
            })
            .collect();
        let mut verdicts = ArrayVec::new();
        w.with(|ctx| process(ctx, &mut list, &mut verdicts, &mut Outputs::default()));
        forwarded += verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Forward(..))).count();
    }
    forwarded
}

/// Runs a flood of a second by this port beside an honest client: its packets pass, and so do the errors about them, ten in that time. Returns how
/// many of the flood were forwarded.
fn beside(w: &mut World, port: PortId, mut flood: impl FnMut(u32) -> Vec<u8>) -> usize {
    let honest = connect(w, "10.0.0.2:50000", "10.96.0.2:80");
    let packet = Spec { payload: 9, sequence: 8, ..spec("tcp", "10.0.0.2:50000", "10.96.0.2:80", ACK) }.frame();
    // The flood is made before its time is taken.
    let frames: Vec<Vec<u8>> = (0..64 * A_MS).map(&mut flood).collect();
    let (mut passed, mut spent) = (0, std::time::Duration::ZERO);
    for ms in 0..FLOOD_MS {
        w.now_ms += 1;
        let first = (ms % 64) as usize * A_MS as usize;
        let started = std::time::Instant::now();
        passed += run(w, port, &frames[first..first + A_MS as usize]);
        spent += started.elapsed();
        assert_eq!(run(w, CLIENTS, std::slice::from_ref(&packet)), 1, "after {ms} ms");
        if ms % 100 == 99 {
            assert_eq!(run(w, PODS, &[too_big(&honest, "192.168.9.9")]), 1, "after {ms} ms");
        }
    }
    println!(
        "{} ns for each of the flood's frames, copying included; {passed} forwarded",
        spent.as_nanos() / u128::from(FLOOD_MS * u64::from(A_MS))
    );
    w.reconciled();
    passed
}

fn dropped(w: &World, reason: Reason) -> u64 {
    w.counters.reasons.drop.of(reason).get()
}

const FLOOD: u64 = FLOOD_MS * A_MS as u64;

/// About packets from a Service's address that nobody has sent: the filter takes them, and the kernel gets a few.
#[test]
fn errors_about_no_flow() {
    let mut w = world();
    let forged = |i: u32| {
        let quoted = spec("tcp", "10.96.0.1:80", &format!("203.0.113.{}:{}", i % 250 + 1, 1_024 + i / 250), ACK);
        too_big(&quoted, &std::net::Ipv4Addr::from(0x0b00_0000 + i).to_string())
    };
    assert_eq!(beside(&mut w, CLIENTS, forged), 0);
    let kernel = w.counters.reasons.kernel.of(Reason::Icmp).get();
    assert_eq!(kernel + dropped(&w, Reason::IcmpLimit), FLOOD);
    assert!((1_150..=1_200).contains(&kernel), "{kernel}: 1,000 a second after 200 at once");
}

/// About the flood's own connections, from one address: its share and no more.
#[test]
fn errors_about_the_floods_own_connection() {
    let mut w = world();
    let own = connect(&mut w, "10.0.0.2:50001", "10.96.0.1:80");
    // The clients behind one address share one limit, so the honest one has another address.
    w.routes = routes(2);
    let own = Spec { src: "203.0.113.7:5".parse().unwrap(), ..own };
    let syn = Spec { payload: 0, ..spec("tcp", "203.0.113.7:5", "10.96.0.1:80", SYN) };
    let went = w.connect(&syn).unwrap().tuple;
    let own = Spec { dst: (went.dst_addr(), went.dport).into(), ..own };
    let passed = beside(&mut w, PODS, |i| too_big(&own, &std::net::Ipv4Addr::from(0xc0a8_0900 + i % 200).to_string()));
    assert!((1_150..=1_200).contains(&passed), "{passed}: 1,000 a second after 200 at once");
    assert_eq!(dropped(&w, Reason::IcmpLimit), FLOOD - passed as u64);
}

/// About flows that forged packets have opened, from many addresses: they use up the limit of these, not that of connections.
#[test]
fn errors_about_forged_flows() {
    let mut w = world();
    let forged: Vec<Spec> = (0..2_000u32)
        .map(|i| {
            let sent = spec("udp", &format!("203.0.113.{}:{}", i % 250 + 1, 1_024 + i / 250), "10.96.0.1:80", 0);
            let went = read(&w.run(CLIENTS, &sent.frame()).bytes).unwrap().tuple;
            Spec { dst: (went.dst_addr(), went.dport).into(), ..sent }
        })
        .collect();
    let passed = beside(&mut w, PODS, |i| too_big(&forged[i as usize % forged.len()], "192.168.9.9"));
    assert!((1_150..=1_200).contains(&passed), "{passed}: 1,000 a second after 200 at once");
    assert_eq!(dropped(&w, Reason::IcmpLimit), FLOOD - passed as u64);
    assert_eq!(w.counters.path.icmp_errors.of(ErrorClass::Unconfirmed).get(), passed as u64);
}

/// About a connection of others, with guessed sequence numbers.
#[test]
fn errors_about_others_connections() {
    let mut w = world();
    let other = connect(&mut w, "10.0.0.2:50001", "10.96.0.1:80");
    let far = |i: u32| other.sequence.wrapping_add(1 << 30).wrapping_add(i);
    assert_eq!(beside(&mut w, PODS, |i| too_big(&Spec { sequence: far(i), ..other }, "192.168.9.9")), 0);
    assert_eq!(dropped(&w, Reason::IcmpSequence), FLOOD);
    // And by the port that does not lead there.
    let mut w = world();
    let other = connect(&mut w, "10.0.0.2:50001", "10.96.0.1:80");
    assert_eq!(beside(&mut w, CLIENTS, |_| too_big(&other, "192.168.9.9")), 0);
    assert_eq!(dropped(&w, Reason::IcmpPort), FLOOD);
}

#[test]
fn classes_have_the_limits_that_are_written_down() {
    use nomagic_core::reject::{Limited, Rate};
    let rates = |class: ErrorClass| (class.limit(), class.share());
    let (many, few) = (Rate { per_second: 10_000, burst: 2_000 }, Rate { per_second: 1_000, burst: 200 });
    assert_eq!([ErrorClass::Confirmed, ErrorClass::Answered].map(rates), [(many, few); 2]);
    let tenth = Rate { per_second: 100, burst: 50 };
    assert_eq!([ErrorClass::Unconfirmed, ErrorClass::Unknown].map(rates), [(few, tenth); 2]);
}
