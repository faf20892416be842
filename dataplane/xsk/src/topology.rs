//! The worker that owns each queue.

use nomagic_core::frame::PortId;

/// The owners of all queues. Workers look up here which workers send through a port.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Topology {
    /// By [`PortId`]; `None` for unbound ports.
    pub ports: Vec<Option<PortPlan>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PortPlan {
    pub pool: usize,
    /// The owning worker, by queue.
    pub owners: Vec<u16>,
}

impl Topology {
    pub fn port(&self, port: PortId) -> Option<&PortPlan> {
        self.ports.get(usize::from(port.0))?.as_ref()
    }
}

/// Spreads a port's queues over the workers in turn, so that each has one if there are enough. A port with fewer queues than workers starts
/// at worker index `first`, so that such ports do not all use the same workers.
pub(crate) fn spread(queues: u32, workers: &[u16], first: usize) -> Vec<u16> {
    let first = if queues as usize >= workers.len() { 0 } else { first };
    (0..queues as usize).map(|queue| workers[(first + queue) % workers.len()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_gets_its_queue_where_there_are_enough() {
        assert_eq!(spread(4, &[0, 1], 1), [0, 1, 0, 1]);
        assert_eq!(spread(3, &[0, 1], 1), [0, 1, 0]);
        assert_eq!(spread(1, &[0, 1], 0), [0]);
        assert_eq!(spread(1, &[0, 1], 1), [1], "the next port with one queue");
        assert_eq!(spread(2, &[0, 1, 2], 2), [2, 0]);
        assert_eq!(spread(2, &[1], 5), [1, 1], "the only one alive");
    }
}
