//! Reads the ports of a Service.

use std::collections::HashMap;

use k8s_openapi::api::core::v1 as k8s;
use nomagic_core::tuple::Proto;

use crate::objects::{ServicePortSpec, read_port, read_proto, too_long};
use crate::problem::Notes;

/// Reads the ports. True if one is skipped that none of the others stands for.
pub(super) fn read_ports(spec: &k8s::ServiceSpec, notes: &mut Notes) -> (Vec<ServicePortSpec>, bool) {
    let listed = spec.ports.as_deref().unwrap_or(&[]);
    if listed.is_empty() {
        notes.add("spec.ports", "empty: a Service without ports answers nowhere; add at least one port");
    }
    let (mut ports, mut repeated): (Vec<ServicePortSpec>, usize) = (Vec::new(), 0);
    let mut names: HashMap<(&str, Proto), usize> = HashMap::new();
    let mut numbers: HashMap<(u16, Proto), usize> = HashMap::new();
    for (index, port) in listed.iter().enumerate() {
        let Some(proto) = read_proto(port.protocol.as_deref()) else {
            let name = port.protocol.as_deref().unwrap_or("");
            notes.add(format!("spec.ports[{index}].protocol"), format!("{name:?}: TCP, UDP and SCTP are allowed; the port is skipped"));
            continue;
        };
        let Some(number) = read_port(port.port) else {
            notes.add(format!("spec.ports[{index}].port"), format!("{}: 1 to 65535 are allowed; the port is skipped", port.port));
            continue;
        };
        let name = port.name.as_deref().unwrap_or("");
        if let Some(length) = too_long(name) {
            notes.add(format!("spec.ports[{index}].name"), format!("{length}; the port is skipped"));
            continue;
        }
        // Endpoints are matched by port name and protocol, which must therefore be unique.
        if let Some(first) = names.get(&(name, proto)) {
            let message = format!("{name:?} is the name of spec.ports[{first}] ({proto}) already; the port is skipped");
            notes.add(format!("spec.ports[{index}].name"), message);
            continue;
        }
        if let Some(first) = numbers.get(&(number, proto)) {
            let message = format!("{number}/{proto} is spec.ports[{first}] already; the port is skipped");
            notes.add(format!("spec.ports[{index}].port"), message);
            repeated += 1;
            continue;
        }
        names.insert((name, proto), index);
        numbers.insert((number, proto), index);
        let node_port = read_optional_port(&format!("spec.ports[{index}].nodePort"), port.node_port, notes);
        ports.push(ServicePortSpec { name: name.into(), proto, port: number, node_port, index });
    }
    let unread = ports.len() + repeated < listed.len();
    (ports, unread)
}

/// A port number; 0 and absent mean "none".
pub(super) fn read_optional_port(field: &str, number: Option<i32>, notes: &mut Notes) -> Option<u16> {
    let number = number.filter(|&n| n != 0)?;
    let port = read_port(number);
    if port.is_none() {
        notes.add(field, format!("{number}: 1 to 65535 are allowed; it is skipped"));
    }
    port
}
