//! Service ports that need attention: without backends, or with refused packets.

use nomagic_api::ServicePort;
use nomagic_table::compile::{CountedPort, PortKey};

/// Maximum number of ports that are shown.
const PORTS_SHOWN_MAX: usize = 10_000;

/// The ports to show, sorted, and how many more there are. `number` returns the Service port's number.
pub fn service_ports<'p>(
    ports: impl Iterator<Item = CountedPort<'p>>,
    number: impl Fn(&PortKey) -> Option<u16>,
) -> (Vec<ServicePort>, u64) {
    let concerned = ports.filter(|port| port.backends == 0 || port.refused.rejected() + port.refused.dropped() > 0);
    let mut shown: Vec<ServicePort> = concerned
        .filter_map(|CountedPort { key, backends, refused }| {
            Some(ServicePort {
                namespace: key.service.namespace.clone(),
                service: key.service.name.clone(),
                port_name: key.port_name.clone(),
                port: number(key)?,
                protocol: key.proto.name().to_owned(),
                backends,
                rejected: refused.rejected(),
                dropped: refused.dropped(),
            })
        })
        .collect();
    let key = |p: &ServicePort| (p.namespace.clone(), p.service.clone(), p.port, p.protocol.clone());
    shown.sort_by_cached_key(key);
    let beyond = shown.len().saturating_sub(PORTS_SHOWN_MAX);
    shown.truncate(PORTS_SHOWN_MAX);
    (shown, beyond as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nomagic_core::services::Refused;
    use nomagic_core::tuple::Proto;
    use nomagic_table::objects::NamespacedName;

    #[test]
    fn only_ports_that_need_attention_are_shown_up_to_a_limit() {
        let key =
            |name: String| PortKey { service: NamespacedName { namespace: "n".into(), name }, port_name: String::new(), proto: Proto::Tcp };
        let keys: Vec<PortKey> = (0..10_100).map(|i| key(format!("s{:05}", 10_099 - i))).collect();
        let (quiet, busy) = (Refused::default(), Refused::default());
        busy.count_rejected();
        busy.count_dropped();
        let ports = |backends, refused| keys.iter().map(move |key| CountedPort { key, backends, refused });
        assert_eq!(service_ports(ports(1, &quiet), |_| Some(80)), (Vec::new(), 0));
        let (shown, beyond) = service_ports(ports(0, &quiet), |_| Some(80));
        assert_eq!((shown.len(), beyond, shown[0].service_port().as_str()), (10_000, 100, "n/s00000:80/TCP"));
        let (shown, _) = service_ports(ports(1, &busy).take(1), |_| Some(80));
        assert_eq!((shown[0].backends, shown[0].rejected, shown[0].dropped), (1, 1, 1));
    }
}
