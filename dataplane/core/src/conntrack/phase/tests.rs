use super::Direction::{Original, Reply};
use super::*;
use tcp::*;

/// What happens, as a line of words: `syn`, `synack`, `fin`, `ack`, `rst`, by the client; with `<` before it, by the backend; with `!` after
/// it, not proven by its numbers.
fn packets(line: &str) -> impl Iterator<Item = (Direction, u8, bool)> {
    line.split_whitespace().map(|word| {
        let (direction, what) = word.strip_prefix('<').map_or((Original, word), |what| (Reply, what));
        let (what, proven) = what.strip_suffix('!').map_or((what, true), |what| (what, false));
        let flags = match what {
            "syn" => SYN,
            "synack" => SYN | ACK,
            "fin" => FIN | ACK,
            "ack" => ACK,
            "rst" => RST,
            other => panic!("{other}"),
        };
        (direction, flags, proven)
    })
}

fn walk(proto: Proto, line: &str) -> Phase {
    let mut packets = packets(line);
    let (_, first, _) = packets.next().unwrap();
    packets.fold(Phase::first(proto, first), |phase, (direction, flags, proven)| phase.after(direction, flags, proven))
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn tcp_walks() {
    use PhaseKind::*;
    let walks = [
        ("syn", SynSent),
        ("syn syn", SynSent),
        ("syn <ack", SynSent), // A challenge ACK.
        ("syn <synack", SynReceived),
        ("syn <synack <synack <ack syn", SynReceived),
        ("syn <synack ack", Established),
        ("syn <synack ack <synack ack", Established),
        ("syn <syn", SynReceived),
        ("syn <syn synack <synack", Established), // Both at once.
        ("syn <rst", Closed),
        ("syn <synack rst", Closed),
        // Normal closing, by either side; what is sent again changes nothing.
        ("syn <synack ack fin", FinWait),
        ("syn <synack ack fin fin ack", FinWait),
        ("syn <synack ack fin <ack", CloseWait),
        ("syn <synack ack fin <ack <ack ack fin ack", CloseWait),
        ("syn <synack ack fin <ack <fin", LastAck),
        ("syn <synack ack fin <ack <fin <ack <fin", LastAck),
        ("syn <synack ack fin <ack <fin ack", TimeWait),
        ("syn <synack ack fin <ack <fin ack <fin ack fin", TimeWait),
        ("syn <synack ack <fin ack fin <ack", TimeWait),
        // FIN and ACK in one; both at once; in the handshake.
        ("syn <synack ack fin <fin ack", TimeWait),
        ("syn <synack ack fin <fin <ack", LastAck),
        ("syn <synack fin", FinWait),
        ("syn <synack <fin ack", Established),
        ("syn fin <fin", SynSent),
        // A SYN on what is not over, and the backend's challenge.
        ("syn <synack ack syn <ack", Established),
        ("syn <synack ack syn <ack rst", Closed),
        ("syn <synack ack fin <ack syn <ack", CloseWait),
        ("syn <synack ack fin <fin syn <ack", LastAck),
        ("syn <synack ack fin <fin syn <synack ack", Established), // It had forgotten the old connection.
        ("syn <synack ack <syn", Established),
        ("syn <synack ack fin <fin ack <syn", TimeWait),
        // Met in its middle.
        ("ack", PickedUp),
        ("ack ack syn", PickedUp),
        ("ack <ack", PickedUpReply),
        ("ack <ack ack", Established),
        ("ack <fin", PickedUpReply),
        ("ack <ack fin", FinWait),
        ("ack <rst", Closed),
        ("ack syn <synack", SynReceived),
        ("syn ack", PickedUp),
        ("syn ack <ack", PickedUpReply),
        ("syn ack <ack ack", Established),
        // A real RST is the end, whatever was on its way.
        ("syn <synack ack rst <ack <fin <ack", Closed),
        ("syn <synack ack <rst ack fin ack", Closed),
        ("syn <synack ack rst <rst", Closed),
        // A forged one is not.
        ("syn <synack ack rst ack", PickedUp),
        ("syn <synack ack rst ack ack", PickedUp),
        ("syn <synack ack rst ack <ack", PickedUpReply),
        ("syn <synack ack rst ack <ack ack", Established),
        ("syn <synack ack <rst <ack", PickedUpReply),
        ("syn <synack ack <rst <ack <ack", PickedUpReply),
        ("syn <synack ack <rst <ack ack", Established),
        ("syn <synack ack rst <rst ack", PickedUp),
        ("syn <synack ack rst <rst <ack", PickedUpReply),
        ("syn <synack ack rst fin <ack", PickedUpReply),
        ("syn <rst <synack ack", Established),
        // A new SYN proves nothing about an RST.
        ("syn <synack ack rst syn", Closed),
        // A client that cannot know the backend's number gets nowhere.
        ("syn <synack ack!", SynReceived),
        ("syn <synack synack!", SynReceived),
        ("syn <synack fin! ack! fin!", SynReceived),
        ("syn ack! <synack ack!", SynReceived),
        ("ack! fin! ack!", PickedUp),
        ("ack! <ack fin! ack!", PickedUpReply),
        ("syn rst! ack! fin! <ack ack!", PickedUpReply),
        ("syn <synack rst! fin! ack!", PickedUp),
        // A reset and a FIN that do not fit.
        ("syn <synack ack rst!", Closed),
        ("syn <synack ack rst! syn <synack ack", Established),
        ("syn <synack ack rst! ack!", Established),
        ("syn <synack ack fin! <ack!", FinWait),
        ("syn <synack ack fin! ack", FinWait),
        ("syn <synack ack fin! ack!", Established),
        ("syn <synack ack <fin fin! ack!", CloseWait),
        ("syn <synack ack rst! fin! ack!", Established),
        ("syn <synack ack fin! <ack", CloseWait),
        ("syn <synack ack fin! <fin!", FinWait),
        ("syn <synack ack fin! <fin", LastAck),
        ("syn <synack ack fin! <fin ack", TimeWait),
        ("syn <synack ack <fin fin! <ack!", LastAck),
        ("syn <synack ack <fin fin! <ack", TimeWait),
    ];
    for (line, kind) in walks {
        assert_eq!(walk(Proto::Tcp, line).kind(), kind, "{line}");
    }
}

/// The phase with a name as in the table below.
fn named(name: &str) -> Phase {
    use PhaseKind::*;
    let (name, doubtful) = name.strip_suffix('?').map_or((name, 0), |name| (name, DOUBTFUL));
    let kinds = [("SS", SynSent), ("SR", SynReceived), ("ES", Established), ("FW", FinWait), ("CW", CloseWait), ("LA", LastAck)];
    let kinds = kinds.into_iter().chain([("TW", TimeWait), ("CL", Closed), ("PU", PickedUp), ("PR", PickedUpReply)]);
    let (_, kind) = kinds.into_iter().find(|(short, _)| name.starts_with(short)).unwrap_or_else(|| panic!("{name}"));
    let by = match &name[2..] {
        "c" => BY_CLIENT,
        "b" => BY_BACKEND,
        "a" => BY,
        _ => 0,
    };
    Phase(kind as u8 | by | doubtful)
}

/// Every phase, both directions, every combination of flags.
#[test]
fn tcp_goes_by_the_table() {
    let table = include_str!("../../../fixtures/tcp_states.txt");
    let rows: Vec<Vec<&str>> = table.lines().filter(|l| !l.starts_with('#')).map(|l| l.split_whitespace().collect()).collect();
    assert!(rows.len() == 22 && rows.iter().all(|row| row.len() == 11));
    for row in rows {
        let phase = named(row[0]);
        let cases = [Original, Reply].into_iter().flat_map(|d| (0..=255).map(move |f| (d, f)));
        for ((direction, flags), proven) in cases.flat_map(|case| [(case, true), (case, false)]) {
            let column = match flags & (SYN | FIN | RST | ACK) {
                f if f & RST != 0 => 5,
                f if f & SYN != 0 => 1 + usize::from(f & ACK != 0),
                f if f & FIN != 0 => 3,
                ACK => 4,
                _ => {
                    assert_eq!(phase.after(direction, flags, proven), phase);
                    continue;
                }
            };
            let cell = row[column + 5 * direction as usize];
            let (first, second) = cell.split_once('/').unwrap_or((cell, cell));
            let expected = match if proven { first } else { second } {
                "." | "NEW" => phase,
                name => named(name),
            };
            assert_eq!(phase.after(direction, flags, proven).0, expected.0, "{} {direction:?} {flags:#x} {proven}", row[0]);
        }
        assert_eq!(phase.reusable(), row[1] == "NEW", "{}", row[0]);
    }
}

#[test]
fn sctp_walks() {
    use PhaseKind::*;
    // INIT, INIT ACK, COOKIE ECHO, COOKIE ACK; SHUTDOWN, SHUTDOWN ACK, SHUTDOWN COMPLETE.
    let walks = [
        ("syn", SynSent),
        ("syn <synack", SynReceived),
        ("syn <synack ack", SynReceived),
        ("syn <synack ack <ack", Established),
        ("syn <synack synack", SynReceived),
        ("syn <synack ack <ack fin", FinWait),
        ("syn <synack ack <ack fin <ack", CloseWait),
        ("syn <synack ack <ack fin <fin", LastAck),
        ("syn <synack ack <ack fin <fin rst", Closed),
        ("syn <synack ack <ack <rst", Closed),
        ("ack", PickedUp),
        ("ack <ack", Established),
    ];
    for (line, kind) in walks {
        let phase = walk(Proto::Sctp, line);
        assert_eq!((phase.kind(), phase.is_sctp()), (kind, true), "{line}");
    }
}

#[test]
fn udp_walks_and_bits() {
    let after = |phase: Phase, direction, flags| phase.after(direction, flags, direction == Reply);
    let first = Phase::first(Proto::Udp, 0);
    assert_eq!((after(first, Original, 0).kind(), first.grown_old()), (PhaseKind::Unreplied, first));
    for flags in 0..=255 {
        let answered = after(first, Reply, flags);
        assert_eq!((answered.kind(), after(answered, Reply, flags)), (PhaseKind::Replied, answered));
        let confirmed = after(answered, Original, flags);
        assert_eq!(
            (confirmed.kind(), after(confirmed, Original, flags), after(confirmed, Reply, flags)),
            (PhaseKind::Confirmed, confirmed, confirmed)
        );
        let stream = answered.grown_old();
        assert_eq!((stream.kind(), stream.grown_old(), after(stream, Reply, flags)), (PhaseKind::Stream, stream, stream));
        assert_eq!(confirmed.grown_old(), stream);
    }
    for kind in PhaseKind::ALL {
        let phase = Phase::from_bits(Phase(kind as u8 | SCTP | BY).bits());
        assert_eq!(phase.kind(), kind);
        assert!(phase.grown_old() == phase || matches!(kind, PhaseKind::Replied | PhaseKind::Confirmed), "{kind:?}");
    }
    for not_a_phase in [0, 15] {
        assert_eq!(Phase::from_bits(not_a_phase).kind(), PhaseKind::Closed);
    }
}

#[test]
fn what_makes_room_first() {
    use EvictionRank::{Doubtful, IdleUdp, Unconfirmed};
    use PhaseKind::*;
    assert!(EvictionRank::Closed < Unconfirmed && Unconfirmed < Doubtful && Doubtful < IdleUdp);
    for kind in PhaseKind::ALL {
        for bits in [0, SCTP, BY_CLIENT, BY_BACKEND | SCTP, DOUBTFUL | BY_CLIENT] {
            for idle_ms in [0, CONFIRMED_IDLE_MIN_MS - 1, CONFIRMED_IDLE_MIN_MS, u64::MAX] {
                let rank = match kind {
                    Closed | TimeWait | LastAck if bits & DOUBTFUL != 0 => Some(Doubtful),
                    Closed | TimeWait | LastAck => Some(EvictionRank::Closed),
                    SynSent | SynReceived | PickedUp | PickedUpReply | Unreplied | Replied => Some(Unconfirmed),
                    Confirmed | Stream => (idle_ms >= 5_000).then_some(IdleUdp),
                    Established | FinWait | CloseWait => None,
                };
                assert_eq!(Phase(kind as u8 | bits).eviction_rank(idle_ms), rank, "{kind:?} {idle_ms}");
            }
        }
    }
}
