//! Two answers of the gateway and the rates between them.

use std::collections::HashMap;

use nomagic_api::{Carried, ServicePort, Status, Target, Worker};

/// An answer may be older than its arrival by so much; the gateway counts its age in whole seconds.
const UPTIME_SLACK_S: u64 = 2;

/// One answer.
#[derive(Clone, Debug)]
struct Sample {
    at_ns: u64,
    status: Status,
}

/// The newest answer and the one before.
#[derive(Default, Debug)]
pub struct Samples {
    now: Option<Sample>,
    before: Option<Sample>,
    /// What the targets of the newest answer had carried before, in their order; `None`: that is not known.
    targets_before: Vec<Option<Carried>>,
    /// By Service port: rejected and dropped.
    refused_before: HashMap<String, (u64, u64)>,
}

impl Samples {
    /// Takes an answer. Returns whether it is from another process than the one before: then there are no rates yet.
    pub fn take(&mut self, status: Status, at_ns: u64) -> bool {
        let is_another = self.now.as_ref().is_some_and(|now| is_restart(now, &status, at_ns));
        self.before = self.now.take().filter(|_| !is_another);
        self.now = Some(Sample { at_ns, status });
        self.pair();
        is_another
    }

    /// Finds what each target had carried before.
    fn pair(&mut self) {
        let (Some(now), Some(before)) = (&self.now, &self.before) else {
            (self.targets_before, self.refused_before) = (Vec::new(), HashMap::new());
            return;
        };
        let carried: HashMap<_, &Carried> = before.status.targets.iter().map(|target| (key(target), &target.carried)).collect();
        self.targets_before = now.status.targets.iter().map(|target| carried.get(&key(target)).map(|c| **c)).collect();
        let ports = &before.status.service_ports;
        self.refused_before = ports.iter().map(|port| (port.service_port(), (port.rejected, port.dropped))).collect();
    }

    pub fn status(&self) -> Option<&Status> {
        self.now.as_ref().map(|sample| &sample.status)
    }

    pub fn has_rates(&self) -> bool {
        self.before.is_some()
    }

    /// Seconds between the two answers.
    pub fn interval_s(&self) -> Option<f64> {
        let (now, before) = (self.now.as_ref()?, self.before.as_ref()?);
        Some((now.at_ns.saturating_sub(before.at_ns) as f64 / 1e9).max(1e-3))
    }

    /// By how much a counter grew a second.
    pub fn rate(&self, of: impl Fn(&Status) -> u64) -> Option<f64> {
        self.rate_of(of(self.status()?), of(&self.before.as_ref()?.status))
    }

    fn rate_of(&self, now: u64, before: u64) -> Option<f64> {
        Some(now.saturating_sub(before) as f64 / self.interval_s()?)
    }

    /// The rate of a worker's counter; `None` too if the worker is new.
    pub fn worker_rate(&self, id: u32, of: impl Fn(&Worker) -> u64) -> Option<f64> {
        let find = |status: &Status| status.workers.iter().find(|worker| worker.id == id).map(&of);
        self.rate_of(find(self.status()?)?, find(&self.before.as_ref()?.status)?)
    }

    /// Every target with the rates of its counters; `None`: it is new, and its counters may be those of an earlier one.
    pub fn targets(&self) -> impl Iterator<Item = (&Target, Option<Carrying>)> {
        let targets = self.status().map_or(&[][..], |status| &status.targets);
        targets.iter().enumerate().map(|(place, target)| {
            let before = self.targets_before.get(place).copied().flatten();
            (target, before.and_then(|before| self.carrying(&target.carried, &before)))
        })
    }

    fn carrying(&self, now: &Carried, before: &Carried) -> Option<Carrying> {
        let rate = |of: fn(&Carried) -> u64| self.rate_of(of(now), of(before));
        Some(Carrying {
            flows: rate(|c| c.flows)?,
            refused: rate(|c| c.snat_refused + c.rate_limited + c.client_limited)?,
            packets: [rate(|c| c.to_backend.packets)?, rate(|c| c.to_client.packets)?],
            bytes: [rate(|c| c.to_backend.bytes)?, rate(|c| c.to_client.bytes)?],
        })
    }

    /// The traffic of the targets beyond the limit.
    pub fn beyond(&self) -> Option<Carrying> {
        self.carrying(&self.status()?.targets_beyond.carried, &self.before.as_ref()?.status.targets_beyond.carried)
    }

    /// The Service ports that need attention, with the rates of rejected and dropped packets.
    pub fn refusing(&self) -> impl Iterator<Item = (&ServicePort, Option<(f64, f64)>)> {
        let ports = self.status().map_or(&[][..], |status| &status.service_ports);
        ports.iter().map(|port| {
            let before = self.before.as_ref().and_then(|before| match self.refused_before.get(&port.service_port()) {
                Some(refused) => Some(*refused),
                // A port without a row has refused nothing yet, unless it was beyond the limit.
                None => (before.status.service_ports_beyond == 0).then_some((0, 0)),
            });
            let rates =
                before.and_then(|(rejected, dropped)| Some((self.rate_of(port.rejected, rejected)?, self.rate_of(port.dropped, dropped)?)));
            (port, rates)
        })
    }
}

/// What a target carries a second; packets and bytes to the backend and to the client.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Carrying {
    pub flows: f64,
    pub refused: f64,
    pub packets: [f64; 2],
    pub bytes: [f64; 2],
}

impl Carrying {
    pub fn add(&mut self, other: &Carrying) {
        self.flows += other.flows;
        self.refused += other.refused;
        for direction in [0, 1] {
            self.packets[direction] += other.packets[direction];
            self.bytes[direction] += other.bytes[direction];
        }
    }
}

fn key(target: &Target) -> (&str, &str, &str, &str, &str) {
    (&target.namespace, &target.service, &target.port_name, &target.protocol, &target.backend)
}

/// Whether this answer is from a process that was started after the one of the sample.
fn is_restart(before: &Sample, status: &Status, at_ns: u64) -> bool {
    let elapsed_s = at_ns.saturating_sub(before.at_ns) / 1_000_000_000;
    status.uptime_s < before.status.uptime_s || status.uptime_s + UPTIME_SLACK_S < before.status.uptime_s + elapsed_s
}
