//! The compiled service table, which decides about new flows.
//!
//! The control plane builds a [`Services`] from Kubernetes objects and never changes it again; workers share it. Every rule about
//! traffic policies, readiness and source classes is decided while compiling: here an address, port and protocol lead to a
//! [`Frontend`], the class of the client's address to an [`Action`], and the action to a [`Pool`] with its Maglev table.

mod limits;
mod outer;
mod pool;
mod refused;
mod snat;

use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use crate::cow_map::CowMap;
use crate::hash::{WordSet, identity_of};
use crate::mss::SegmentSize;
use crate::reason::Reason;
use crate::tuple::{AddrWords, HashSeed, Prefix, PrefixSet, Proto, Tuple, addr_words};

pub use crate::backend::Backend;
pub use limits::{ClientLimit, ConnectionsPerClient, ConnectionsPerSecond, Limits, RateLimit, TokenBucket};
pub use outer::{OnlyHere, OuterAddresses, UnusedPorts};
pub use pool::Pool;
pub use refused::Refused;
pub use snat::{PortLimits, PortSet, SnatRange, Source};

/// Which of a Service's addresses a packet was sent to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AddressKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `spec.ports[].nodePort` on an address of this node.
    NodePort,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `status.loadBalancer.ingress[].ip`.
    LoadBalancer,
}

impl AddressKind {
    /// The name in `explain`'s JSON: `clusterIP`, `nodePort`, `externalIP`, `loadBalancerIP`.
    pub fn label(self) -> &'static str {
        match self {
            AddressKind::ClusterIp => "clusterIP",
            AddressKind::NodePort => "nodePort",
            AddressKind::ExternalIp => "externalIP",
            AddressKind::LoadBalancer => "loadBalancerIP",
        }
    }
}

/// Where a client is, as kube-proxy's rules tell clients apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ClientClass {
    /// Inside the cluster's pod ranges.
    Pod,
    /// One of this node's own addresses.
    Node,
    /// Anywhere else.
    External,
}

/// What happens to a new flow.
#[derive(Clone, Debug)]
pub enum Action {
    /// To a backend of this pool; `snat`: the client's address is replaced too (kube-proxy: masquerade).
    Forward {
        /// The candidates.
        pool: Arc<Pool>,
        /// Whether the source is replaced.
        snat: bool,
    },
    /// Answered with ICMP port unreachable, or with a reset: see [`TcpReject`].
    Reject(Reason),
    /// Silence.
    Drop(Reason),
}

/// How a TCP connection is rejected. Other protocols are always told by ICMP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TcpReject {
    /// By ICMP port unreachable, as kube-proxy does.
    #[default]
    PortUnreachable,
    /// By a reset, as a host without such a port does.
    Reset,
}

/// One address, port and protocol that clients connect to.
#[derive(Clone, Debug)]
pub struct Frontend {
    /// The Service port.
    pub port: Arc<ServicePort>,
    /// Which kind of address it is.
    pub kind: AddressKind,
    /// For clients in pods.
    pub pod: Action,
    /// For the node itself.
    pub node: Action,
    /// For everybody else.
    pub external: Action,
    /// Load balancer addresses with source ranges: clients outside are dropped.
    pub source_ranges: Option<Arc<PrefixSet>>,
}

impl Action {
    /// Equal, and of the same pool.
    fn same(&self, other: &Action) -> bool {
        match (self, other) {
            (Action::Forward { pool: a, snat: x }, Action::Forward { pool: b, snat: y }) => Arc::ptr_eq(a, b) && x == y,
            (Action::Reject(a), Action::Reject(b)) | (Action::Drop(a), Action::Drop(b)) => a == b,
            _ => false,
        }
    }
}

impl Frontend {
    /// Equal, with the same port and the same pools behind it: nothing would change.
    pub fn same(&self, other: &Frontend) -> bool {
        Arc::ptr_eq(&self.port, &other.port)
            && self.kind == other.kind
            && self.source_ranges == other.source_ranges
            && self.actions().into_iter().zip(other.actions()).all(|(a, b)| a.same(b))
    }

    /// For pods, the node and everybody else.
    pub fn actions(&self) -> [&Action; 3] {
        [&self.pod, &self.node, &self.external]
    }
}

/// A Service port, for names in `explain` and metrics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Name of the port ("" when it has none).
    pub port_name: String,
    /// `spec.ports[].port`.
    pub port: u16,
    /// Protocol.
    pub proto: Proto,
    /// Whether a client's connections go to one backend (`sessionAffinity: ClientIP`).
    pub affinity: Option<Affinity>,
    /// How many flows it takes.
    pub limits: Limits,
    /// How many packets it refused.
    pub refused: Arc<Refused>,
}

/// Session affinity of a Service port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Affinity {
    /// The Service port's identity; the same in every table and every process.
    pub id: u64,
    /// How long after its last new connection a client is remembered, seconds.
    pub timeout_s: u32,
}

impl Affinity {
    /// Affinity of the port with this name of a Service.
    pub fn new(namespace: &str, name: &str, port_name: &str, proto: Proto, timeout_s: u32) -> Affinity {
        Affinity { id: identity_of(proto as u64, &[namespace, name, port_name]), timeout_s }
    }
}

/// Everything the packet path knows about Services. Immutable once published; a copy shares what it does not change.
#[derive(Clone, Debug)]
pub struct Services {
    /// Raised by the control plane with each publication.
    pub generation: u64,
    /// Seed of the Maglev tables and of the choice of a slot; the same on every gateway.
    pub seed: HashSeed,
    /// How many Service ports there are.
    pub ports: usize,
    /// Addresses that belong to a cluster IP: their unused ports are rejected. By how many Services name them.
    pub cluster_ips: CowMap<IpAddr, u32>,
    /// ServiceCIDRs: addresses in here that nobody has are dropped.
    pub service_cidrs: Vec<Prefix>,
    /// Pod ranges, but for those of one address, see [`Services::set_pods`].
    pub pod_cidrs: Vec<Prefix>,
    /// Addresses of single pods. With neither these nor ranges local detection is off, and no client is [`ClientClass::Pod`].
    pub pod_ips: WordSet<IpAddr>,
    /// This node's own addresses.
    pub node_ips: WordSet<IpAddr>,
    /// Addresses that are the kernel's but for the ports of Services: this node's, and those of Services that are not served here. What is for
    /// another port of them is neither rejected nor dropped.
    pub kernel_ips: WordSet<IpAddr>,
    /// Objects could not be read, so there may be Services that this table lacks: what is for an unallocated address is left to the kernel.
    pub incomplete: bool,
    /// Source NAT: addresses and ports.
    pub snat: SnatRange,
    frontends: CowMap<FrontendKey, Frontend>,
    /// Load balancer and external IPs: those of the frontends.
    outer: OuterAddresses,
    /// What becomes of their unused ports' packets.
    pub unused_ports: UnusedPorts,
    /// Pings to addresses that only Services have are answered.
    pub answer_ping: bool,
    /// The maximum segment size in SYNs.
    pub mss: SegmentSize,
    /// IPv4 packets without DF that are larger than the MTU of their way on are sent in fragments; otherwise they are dropped.
    pub fragment: bool,
    /// How TCP connections are rejected.
    pub tcp_reject: TcpReject,
    /// Both ends of a TCP connection that ends by its idle timeout get a reset.
    pub reset_idle: bool,
}

/// The Service's address that a packet was sent to, and where its client is.
#[derive(Clone, Copy, Debug)]
pub struct Matched<'s> {
    /// The matched address.
    pub frontend: &'s Frontend,
    /// Where the client is.
    pub client: ClientClass,
}

/// The answer for the first packet of a connection.
#[derive(Clone, Copy, Debug)]
pub enum Decision<'s> {
    /// Not an address of a Service: the kernel's business.
    Pass(Reason),
    /// To this backend.
    Forward {
        /// The matched address and the client's class.
        matched: Matched<'s>,
        /// The candidates.
        pool: &'s Pool,
        /// Slot of the Maglev table.
        slot: u32,
        /// The chosen one.
        backend: &'s Backend,
        /// Whether the source is replaced, and if so for which of the two causes.
        snat: Option<SnatCause>,
    },
    /// Answered with ICMP port unreachable, or with a reset: see [`TcpReject`].
    Reject(Option<Matched<'s>>, Reason),
    /// Silence.
    Drop(Option<Matched<'s>>, Reason),
}

/// Why the client's address is replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SnatCause {
    /// The Service's address and the client's class ask for it (kube-proxy: masquerade).
    Masquerade,
    /// The chosen backend is the client: without it the backend would answer itself.
    Hairpin,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct FrontendKey {
    addr: AddrWords,
    /// Port, protocol and family.
    meta: u64,
}

impl Hash for FrontendKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [high, low] = self.addr;
        // Of IPv4 everything fits into one word.
        if high == 0 && low >> 32 == 0 {
            return state.write_u64((low << 32) | self.meta);
        }
        [high, low, self.meta].iter().for_each(|word| state.write_u64(*word));
    }
}

impl FrontendKey {
    fn new(addr: AddrWords, v6: bool, port: u16, proto: Proto) -> FrontendKey {
        FrontendKey { addr, meta: (u64::from(port) << 16) | (u64::from(proto as u8) << 8) | u64::from(v6) }
    }
}

impl Services {
    /// An empty table.
    pub fn empty(seed: HashSeed) -> Services {
        Services {
            generation: 0,
            seed,
            ports: 0,
            cluster_ips: CowMap::default(),
            service_cidrs: Vec::new(),
            pod_cidrs: Vec::new(),
            pod_ips: WordSet::default(),
            node_ips: WordSet::default(),
            kernel_ips: WordSet::default(),
            incomplete: false,
            snat: SnatRange::default(),
            frontends: CowMap::default(),
            outer: OuterAddresses::default(),
            unused_ports: UnusedPorts::default(),
            answer_ping: false,
            mss: SegmentSize::Keep,
            fragment: true,
            tcp_reject: TcpReject::default(),
            reset_idle: false,
        }
    }

    /// Adds a frontend. When the address, port and protocol are taken, the earlier frontend stays and is returned.
    pub fn add_frontend(&mut self, addr: IpAddr, port: u16, proto: Proto, frontend: Frontend) -> Result<(), &Frontend> {
        let (words, v6) = addr_words(addr);
        let key = FrontendKey::new(words, v6, port, proto);
        if !self.frontends.contains(&key) {
            self.outer.add(addr, frontend.kind);
            self.frontends.insert(key, frontend);
            return Ok(());
        }
        self.frontends.get(&key).map_or(Ok(()), Err)
    }

    /// Sets or removes the frontend at an address, port and protocol. True when it was added.
    pub fn set_frontend(&mut self, addr: IpAddr, port: u16, proto: Proto, frontend: Option<Frontend>) -> bool {
        let (words, v6) = addr_words(addr);
        let key = FrontendKey::new(words, v6, port, proto);
        let kind = frontend.as_ref().map(|frontend| frontend.kind);
        let added = kind.is_some();
        // The new one first, so that an address that stays is never gone.
        kind.into_iter().for_each(|kind| self.outer.add(addr, kind));
        let before = match frontend {
            Some(frontend) => self.frontends.insert(key, frontend),
            None => self.frontends.remove(&key),
        };
        before.iter().for_each(|before| self.outer.remove(addr, before.kind));
        added && before.is_none()
    }

    /// All frontends: `(address, port, protocol, frontend)`, in no order.
    pub fn frontends(&self) -> impl Iterator<Item = (IpAddr, u16, Proto, &Frontend)> {
        self.frontends.iter().filter_map(|(k, f)| {
            let addr = crate::tuple::words_addr(k.addr, k.meta & 1 == 1);
            Some((addr, (k.meta >> 16) as u16, Proto::from_ip_number((k.meta >> 8) as u8)?, f))
        })
    }

    /// Number of frontends.
    pub fn frontend_count(&self) -> usize {
        self.frontends.len()
    }

    /// The frontend at an address.
    pub fn frontend(&self, addr: IpAddr, port: u16, proto: Proto) -> Option<&Frontend> {
        let (words, v6) = addr_words(addr);
        self.frontends.get(&FrontendKey::new(words, v6, port, proto))
    }

    /// Sets the pods' addresses and ranges. Single addresses, of which there may be thousands, are looked up; ranges are scanned for each
    /// new flow.
    pub fn set_pods(&mut self, pods: &[Prefix]) {
        let (ips, cidrs): (Vec<Prefix>, Vec<Prefix>) = pods.iter().partition(|p| **p == Prefix::host(p.addr()));
        self.pod_ips = ips.iter().map(Prefix::addr).collect();
        self.pod_cidrs = cidrs;
    }

    /// Where a client is.
    pub fn client_class(&self, client: IpAddr) -> ClientClass {
        if self.node_ips.contains(&client) {
            ClientClass::Node
        } else if self.pod_ips.contains(&client) || self.pod_cidrs.iter().any(|p| p.contains(client)) {
            ClientClass::Pod
        } else {
            ClientClass::External
        }
    }

    /// Decides about a flow's first packet. A pure function of table and tuple: without session affinity.
    pub fn decide(&self, tuple: &Tuple) -> Decision<'_> {
        self.decide_with(tuple, |_, _, _| None)
    }

    /// Like [`Services::decide`]. For Service ports with session affinity, `remembered` gets the backend chosen by hash and may return
    /// another one.
    pub fn decide_with<'s>(
        &'s self,
        tuple: &Tuple,
        remembered: impl FnOnce(&Affinity, &'s Pool, &'s Backend) -> Option<&'s Backend>,
    ) -> Decision<'s> {
        let key = FrontendKey::new(tuple.dst, tuple.v6, tuple.dport, tuple.proto);
        let Some(frontend) = self.frontends.get(&key) else { return self.decide_unmatched(tuple) };
        let client = tuple.src_addr();
        let matched = Matched { frontend, client: self.client_class(client) };
        if let Some(ranges) = &frontend.source_ranges
            && !ranges.contains(client)
        {
            return Decision::Drop(Some(matched), Reason::SourceRange);
        }
        let action = match matched.client {
            ClientClass::Pod => &frontend.pod,
            ClientClass::Node => &frontend.node,
            ClientClass::External => &frontend.external,
        };
        let (pool, masquerade) = match action {
            Action::Forward { pool, snat } => (&**pool, *snat),
            Action::Reject(reason) => return Decision::Reject(Some(matched), *reason),
            Action::Drop(reason) => return Decision::Drop(Some(matched), *reason),
        };
        let (slot, index) = pool.maglev.pick(tuple.hash(&self.seed));
        let mut backend = &pool.backends[index as usize];
        if let Some(affinity) = &frontend.port.affinity {
            backend = remembered(affinity, pool, backend).unwrap_or(backend);
        }
        let snat = match masquerade {
            true => Some(SnatCause::Masquerade),
            false => (backend.addr == client).then_some(SnatCause::Hairpin),
        };
        Decision::Forward { matched, pool, slot, backend, snat }
    }

    /// No frontend: unused ports of a cluster IP are rejected, unallocated addresses of the Service range dropped (kube-proxy's nftables
    /// mode), everything else is left to the kernel. So is what is for the node itself: kube-proxy rejects and drops in the hooks forward and
    /// output only.
    fn decide_unmatched(&self, tuple: &Tuple) -> Decision<'_> {
        let dst = tuple.dst_addr();
        match self.only_here(dst) {
            Some(OnlyHere::ClusterIp) => return Decision::Reject(None, Reason::UnusedServicePort),
            Some(OnlyHere::Unallocated) if self.incomplete => return Decision::Pass(Reason::NotOurs),
            Some(OnlyHere::Unallocated) => return Decision::Drop(None, Reason::UnallocatedServiceAddress),
            // The routes decide, see the packet path.
            Some(OnlyHere::Outer) | None => {}
        }
        if self.snat.contains(dst, tuple.dport) {
            return Decision::Pass(Reason::NoFlow);
        }
        Decision::Pass(Reason::NotOurs)
    }
}
