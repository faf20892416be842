//! What happened in the connection table, and to what passes it.

use nomagic_core::conntrack::EvictionRank;
use nomagic_core::counters::{Counter as Count, Counters};

use super::Exposition;
use super::exposition::Kind::Counter;

/// Sums over all workers; the fields are those of [`Counters`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub struct Flows {
    pub hits: u64,
    pub created: u64,
    pub expired: u64,
    pub replaced: u64,
    pub picked_up: u64,
    pub busy: u64,
    pub revived: u64,
    pub syn_repeated: u64,
    pub checksums_completed: u64,
    /// In the order of [`EvictionRank::ALL`].
    pub evicted: [u64; EvictionRank::COUNT],
}

/// A rank's name in labels, as in `nomagic status`.
fn label(rank: EvictionRank) -> &'static str {
    match rank {
        EvictionRank::Over => "over",
        EvictionRank::HalfOpen => "half_open",
        EvictionRank::Answered => "answered",
    }
}

impl Flows {
    /// The workers' counters at this moment.
    pub fn read(workers: &[&Counters]) -> Flows {
        let sum = |count: fn(&Counters) -> &Count| workers.iter().map(|c| count(c).get()).sum();
        Flows {
            hits: sum(|c| &c.conntrack_hit),
            created: sum(|c| &c.conntrack_created),
            expired: sum(|c| &c.conntrack_expired),
            replaced: sum(|c| &c.conntrack_replaced),
            picked_up: sum(|c| &c.conntrack_picked_up),
            busy: sum(|c| &c.conntrack_busy),
            revived: sum(|c| &c.conntrack_revived),
            syn_repeated: sum(|c| &c.conntrack_syn_repeated),
            checksums_completed: sum(|c| &c.checksum_completed),
            evicted: EvictionRank::ALL.map(|rank| workers.iter().map(|c| c.conntrack_evicted(rank).get()).sum()),
        }
    }

    pub(super) fn write(&self, out: &mut Exposition) {
        for (name, help, value) in [
            ("flow_hits", "Frames of known connections.", self.hits),
            ("flows_created", "Connections created.", self.created),
            ("flows_expired", "Connections that ended or were idle for too long.", self.expired),
            ("flows_replaced", "Connections whose client opened a new one from the same port.", self.replaced),
            ("flows_picked_up", "Connections met in their middle; they count as created, too.", self.picked_up),
            ("flows_busy", "Creations given up because another worker was creating the same connection.", self.busy),
            ("flows_revived", "Connections that went on after an RST, which so was forged or late.", self.revived),
            ("flow_syns_repeated", "SYNs of known connections that changed nothing.", self.syn_repeated),
            ("checksums_completed", "Checksums computed in full because the sender left them to its NIC.", self.checksums_completed),
        ] {
            out.single(&format!("nomagic_{name}_total"), Counter, help, value);
        }
        let name = "nomagic_flows_evicted_total";
        out.begin(name, Counter, "Connections evicted to make room, by what they were: over, half-open, or UDP that was answered.");
        for (rank, n) in EvictionRank::ALL.into_iter().zip(self.evicted) {
            out.sample(name, &[("rank", label(rank))], n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_has_its_own_series() {
        let (a, b) = (Counters::new(1), Counters::new(1));
        let all: [fn(&Counters) -> &Count; 9] = [
            |c| &c.conntrack_hit,
            |c| &c.conntrack_created,
            |c| &c.conntrack_expired,
            |c| &c.conntrack_replaced,
            |c| &c.conntrack_picked_up,
            |c| &c.conntrack_busy,
            |c| &c.conntrack_revived,
            |c| &c.conntrack_syn_repeated,
            |c| &c.checksum_completed,
        ];
        for (n, count) in (1..).zip(all) {
            count(&a).add(n);
            count(&b).add(100);
        }
        for (n, rank) in (10..).zip(EvictionRank::ALL) {
            a.conntrack_evicted(rank).add(n);
        }
        let mut out = Exposition::default();
        Flows::read(&[&a, &b]).write(&mut out);
        let text = out.finish();
        for line in [
            "nomagic_flow_hits_total 101",
            "nomagic_flows_created_total 102",
            "nomagic_flows_expired_total 103",
            "nomagic_flows_replaced_total 104",
            "nomagic_flows_picked_up_total 105",
            "nomagic_flows_busy_total 106",
            "nomagic_flows_revived_total 107",
            "nomagic_flow_syns_repeated_total 108",
            "nomagic_checksums_completed_total 109",
            "nomagic_flows_evicted_total{rank=\"over\"} 10",
            "nomagic_flows_evicted_total{rank=\"half_open\"} 11",
            "nomagic_flows_evicted_total{rank=\"answered\"} 12",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nin\n{text}");
        }
    }
}
