//! Each check with what is right and with what is wrong.

use super::*;
use crate::preflight::facts::{Cpu, Load, Role};
use crate::preflight::finding::State::{self, Missing, Ok as Fine, Unknown, Warning};
use crate::preflight::nic::{Irq, Link, Namespace, Pci, Program, Rss};
use std::collections::BTreeMap;

fn wanted() -> Wanted {
    Wanted { workers: 2, cpus: "2,3".parse().unwrap(), role: Role::Gateway, huge_pages: 64 }
}

/// A machine with nothing to complain about.
fn good_machine() -> Machine {
    let cpu = |sibling: &str| Cpu {
        governor: Some("performance".into()),
        siblings: Some(sibling.parse().unwrap()),
        node: Some(1),
        idle_exit_us: Some(2),
    };
    let load = |busy| Load { busy, steal: 0.0 };
    let set = |text: &str| Some(text.parse().unwrap());
    let config = ["BPF_SYSCALL", "BPF_JIT", "XDP_SOCKETS"].map(|o| (o.to_owned(), "y".to_owned()));
    Machine {
        capabilities: Some(u64::MAX),
        release: Some("6.12.5".into()),
        config: Some(BTreeMap::from(config)),
        memlock: Some(u64::MAX),
        jit: Some(1),
        clocksource: Some("tsc".into()),
        nmi_watchdog: Some(0),
        vulnerabilities: BTreeMap::from([("meltdown".into(), "Not affected".into())]),
        hypervisor: Some(false),
        online: set("0-11"),
        isolated: set("2-3"),
        nohz_full: set("2-3"),
        rcu_nocbs: set(""),
        turbo: Some(false),
        irqbalance: Some(false),
        huge_pages_free: Some(64),
        load: Some(BTreeMap::from([(0, load(0.9)), (2, load(0.01)), (3, load(0.0)), (8, load(0.0)), (9, load(0.0))])),
        cpus: BTreeMap::from([(2, cpu("2,8")), (3, cpu("3,9"))]),
        nf_conntrack: Some(false),
    }
}

fn good_nic() -> Nic {
    let irq = |number, cpu: &str| Irq { number, name: format!("eth1-TxRx-{number}"), cpus: cpu.parse().ok() };
    let off = |name: &str| (name.to_owned(), false);
    Nic {
        name: "eth1".into(),
        netns: None,
        link: Ok(Link { up: true, carrier: true, mtu: 1500, program: None }),
        xdp_features: Some(0x7f),
        driver: Ok("ice".into()),
        speed: Ok(25_000),
        queues: Ok((2, Some(64))),
        separate_queues: false,
        rings: Ok([(4096, 8160), (2048, 8160)]),
        pause: Ok((false, false)),
        features: Ok(BTreeMap::from([off("large-receive-offload"), off("ntuple-filters"), off("generic-receive-offload")])),
        coalesce: Ok((Some(false), Some(8))),
        rss: Ok(Rss { queues: [0, 1].into() }),
        udp_ports_hashed: [Ok(true), Ok(true)],
        pci: Some(Pci { node: Some(1), speed: Some((16.0, 16.0)), width: Some((16, 16)) }),
        irqs: Some(vec![irq(0, "4"), irq(1, "5")]),
        namespace: Namespace { ip_forward: Some(1), local_ports: Some((32_768, 60_999)), reserved_ports: Some(vec![]), pktgen: true },
    }
}

#[test]
fn nothing_to_complain_about() {
    for role in [Role::Gateway, Role::Generator] {
        let wanted = Wanted { role, ..wanted() };
        let all: Vec<Finding> = machine(&wanted, &good_machine()).into_iter().chain(nic(&wanted, &good_machine(), &good_nic())).collect();
        assert_eq!(all.len(), MACHINE.len() + 1 + NIC.len() + 2);
        for finding in &all {
            assert!(finding.state == Fine && finding.remedy.is_none(), "{finding:?}");
        }
        let mut names: Vec<&str> = all.iter().map(|f| f.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all.len(), "one thing, one check");
    }
}

/// Where nothing is known nothing is called fine, but for what does not depend on it.
#[test]
fn nothing_known() {
    let (nothing, why) = (Machine::default(), || Err("Operation not supported".to_owned()));
    let silent = Nic {
        netns: None,
        xdp_features: None,
        driver: why().map(|()| String::new()),
        speed: why().map(|()| 0),
        queues: why().map(|()| (0, None)),
        separate_queues: false,
        rings: why().map(|()| [(0, 0); 2]),
        pause: why().map(|()| (false, false)),
        features: why().map(|()| BTreeMap::new()),
        coalesce: why().map(|()| (None, None)),
        rss: why().map(|()| Rss { queues: [].into() }),
        udp_ports_hashed: [why().map(|()| true), why().map(|()| true)],
        pci: None,
        irqs: None,
        namespace: Namespace::default(),
        ..good_nic()
    };
    for cpus in ["", "2,3"] {
        let wanted = Wanted { cpus: cpus.parse().unwrap(), ..wanted() };
        for finding in machine(&wanted, &nothing).into_iter().chain(nic(&wanted, &nothing, &silent)) {
            let by_netlink = ["interface", "link", "MTU", "XDP program"].contains(&finding.name);
            assert_eq!(finding.state, if by_netlink { Fine } else { Unknown }, "{finding:?}");
        }
    }
}

type MachineCase = (MachineCheck, fn(&mut Machine), State, &'static str);

#[test]
fn machines() {
    let cases: [MachineCase; 42] = [
        (kernel::privileges, |m| m.capabilities = Some(0), Missing, "without CAP_NET_ADMIN"),
        (kernel::privileges, |m| m.capabilities = Some((1 << 21) | (7 << 12)), Fine, "all"),
        (kernel::privileges, |m| m.capabilities = Some((3 << 38) | (3 << 12)), Missing, "without CAP_IPC_LOCK"),
        (kernel::version, |m| m.release = Some("5.15.0-91-generic".into()), Missing, "5.15"),
        (kernel::version, |m| m.release = Some("6.1.0".into()), Warning, "6.1.0"),
        (kernel::version, |m| m.release = Some("next".into()), Unknown, "next"),
        (kernel::options, |m| drop(m.config.as_mut().unwrap().remove("XDP_SOCKETS")), Missing, "CONFIG_XDP_SOCKETS"),
        (kernel::options, |m| m.config = None, Unknown, "/boot/config"),
        (kernel::memlock, |m| (m.capabilities, m.memlock) = (Some(0), Some(8 << 20)), Missing, "8192 KiB"),
        (kernel::memlock, |m| m.capabilities = Some(0), Fine, "unlimited"),
        (kernel::jit, |m| m.jit = Some(0), Missing, "interpreted"),
        (kernel::jit, |m| m.jit = Some(2), Warning, "debugging"),
        (kernel::jit, |m| m.jit = None, Unknown, "namespace"),
        (kernel::clocksource, |m| m.clocksource = Some("hpet".into()), Warning, "hpet"),
        (kernel::nmi_watchdog, |m| m.nmi_watchdog = Some(1), Warning, "on"),
        (kernel::mitigations, |m| drop(m.vulnerabilities.insert("spectre_v2".into(), "Vulnerable".into())), Fine, "1 not needed, 1 open"),
        (kernel::mitigations, |m| m.vulnerabilities.clear(), Unknown, "no /sys"),
        (kernel::huge_pages, |m| m.huge_pages_free = Some(63), Missing, "63"),
        (kernel::huge_pages, |m| m.huge_pages_free = None, Unknown, "2 MiB"),
        (kernel::conntrack, |m| m.nf_conntrack = Some(true), Fine, "kernel peers"),
        (cpu::hypervisor, |m| m.hypervisor = Some(true), Warning, "virtual"),
        (cpu::steal, |m| m.load.as_mut().unwrap().get_mut(&3).unwrap().steal = 0.02, Missing, "2.0 %"),
        (cpu::steal, |m| m.load.as_mut().unwrap().get_mut(&0).unwrap().steal = 0.5, Fine, "0.0 %"),
        (cpu::present, |m| m.online = "0-2".parse().ok(), Missing, "3 not running"),
        (cpu::foreign_load, |m| m.load.as_mut().unwrap().get_mut(&3).unwrap().busy = 0.3, Missing, "30.0 % at the most (CPU 3)"),
        (cpu::foreign_load, |m| m.load = Some(BTreeMap::new()), Unknown, "/proc/stat"),
        (cpu::isolation, |m| m.isolated = "3".parse().ok(), Warning, "isolcpus without 2"),
        (cpu::isolation, |m| (m.nohz_full, m.rcu_nocbs) = ("".parse().ok(), "2-3".parse().ok()), Warning, "nohz_full without 2-3"),
        (cpu::isolation, |m| m.nohz_full = None, Unknown, "nohz_full"),
        (cpu::governor, |m| m.cpus.get_mut(&3).unwrap().governor = Some("powersave".into()), Missing, "powersave on CPU 3"),
        (cpu::governor, |m| m.cpus.get_mut(&3).unwrap().governor = None, Unknown, "cpufreq"),
        (cpu::turbo, |m| m.turbo = Some(true), Warning, "on"),
        (cpu::idle_states, |m| m.cpus.get_mut(&2).unwrap().idle_exit_us = Some(133), Warning, "133 us"),
        (cpu::idle_states, |m| m.cpus.get_mut(&2).unwrap().idle_exit_us = None, Unknown, "cpuidle"),
        (cpu::siblings, |m| m.cpus.get_mut(&2).unwrap().siblings = "2-3".parse().ok(), Warning, "one core"),
        (cpu::siblings, |m| m.load.as_mut().unwrap().get_mut(&8).unwrap().busy = 0.5, Warning, "50.0 % at the most (CPU 8, of 8-9)"),
        (cpu::siblings, |m| m.load = None, Unknown, "8-9"),
        (cpu::siblings, |m| m.cpus.iter_mut().for_each(|(n, c)| c.siblings = Some([*n].into_iter().collect())), Fine, "none"),
        (
            cpu::siblings,
            |m| {
                m.hypervisor = Some(true);
                m.cpus.iter_mut().for_each(|(n, c)| c.siblings = Some([*n].into_iter().collect()));
            },
            Unknown,
            "hypervisor",
        ),
        (cpu::irqbalance, |m| m.irqbalance = Some(true), Warning, "moves"),
        (cpu::isolation, |m| m.isolated = "".parse().ok(), Warning, "isolcpus without 2-3"),
        (
            kernel::jit,
            |m| {
                m.jit = None;
                m.config.as_mut().unwrap().insert("BPF_JIT_ALWAYS_ON".into(), "y".into());
            },
            Fine,
            "always",
        ),
    ];
    for (n, (check, change, state, words)) in cases.into_iter().enumerate() {
        let mut machine = good_machine();
        change(&mut machine);
        verify(n, &check(&wanted(), &machine), state, words);
    }
}

/// A finding as expected, with a remedy where something is wrong.
fn verify(n: usize, finding: &Finding, state: State, words: &str) {
    assert_eq!(finding.state, state, "case {n}: {finding:?}");
    assert!(finding.found.contains(words), "case {n}: {finding:?}");
    assert!(!matches!(state, Missing | Warning) || finding.remedy.as_ref().is_some_and(|r| !r.is_empty()), "case {n}: {finding:?}");
}

type NicCase = (NicCheck, fn(&mut Machine, &mut Nic), State, &'static str);

fn link(nic: &mut Nic) -> &mut Link {
    nic.link.as_mut().unwrap()
}

#[test]
fn interfaces() {
    let cases: [NicCase; 43] = [
        (link::exists, |_, n| n.link = Err("Device \"eth1\" does not exist.".into()), Missing, "does not exist"),
        (link::exists, |_, n| n.link = Err("cannot run ip: not found".into()), Unknown, "cannot run"),
        (link::up, |_, n| link(n).up = false, Missing, "down"),
        (link::up, |_, n| link(n).carrier = false, Missing, "without carrier"),
        (link::speed, |_, n| n.speed = Ok(1000), Warning, "1000 Mbit/s"),
        (link::speed, |_, n| n.speed = Err("`Unknown!`".into()), Unknown, "Unknown"),
        (link::mtu, |_, n| link(n).mtu = 1774, Fine, "1774"),
        (link::mtu, |_, n| link(n).mtu = 1775, Warning, "1775"),
        (link::mtu, |_, n| link(n).mtu = 9000, Missing, "9000"),
        (link::pause, |_, n| n.pause = Ok((false, true)), Missing, "rx off, tx on"),
        (link::offloads, |_, n| *n.features.as_mut().unwrap().get_mut("large-receive-offload").unwrap() = true, Missing, "on"),
        (link::offloads, |_, n| n.features = Ok(BTreeMap::new()), Unknown, "does not name"),
        (link::pcie, |_, n| n.pci.as_mut().unwrap().width = Some((8, 16)), Warning, "x8 of 16 GT/s x16"),
        (link::pcie, |_, n| n.pci.as_mut().unwrap().speed = None, Unknown, "slot"),
        (link::numa, |_, n| n.pci.as_mut().unwrap().node = Some(0), Missing, "NIC on 0, CPU 2 on 1"),
        (link::numa, |_, n| n.pci.as_mut().unwrap().node = Some(-1), Unknown, "firmware"),
        (link::numa, |m, _| m.cpus.get_mut(&3).unwrap().node = None, Unknown, "CPUs'"),
        (xdp::native, |_, n| n.xdp_features = Some(0), Missing, "no, says the kernel"),
        (xdp::native, |_, n| n.xdp_features = Some(0b101), Missing, "no, says the kernel"),
        (xdp::zero_copy, |_, n| n.xdp_features = Some(0b111), Missing, "no, says the kernel"),
        (xdp::zero_copy, |_, n| n.xdp_features = None, Unknown, "does not tell"),
        (xdp::zero_copy, |m, n| (m.release, n.xdp_features) = (Some("6.1.0".into()), Some(0)), Fine, "yes, as upstream's driver ice"),
        (xdp::zero_copy, |m, n| (m.release, n.xdp_features) = (Some("5.4.0".into()), None), Missing, "no, as upstream's"),
        (xdp::zero_copy, |m, n| (m.release, n.driver, n.xdp_features) = (Some("6.1.0".into()), Ok("ena".into()), None), Missing, "Amazon"),
        (
            xdp::native,
            |m, n| (m.release, n.driver, n.xdp_features) = (Some("6.1.0".into()), Ok("wonder".into()), Some(0)),
            Unknown,
            "wonder",
        ),
        (xdp::native, |m, n| (m.release, n.xdp_features) = (None, None), Unknown, "does not tell"),
        (
            xdp::attached,
            |_, n| link(n).program = Some(Program { id: 9, name: Some("cil_xdp_entry".into()) }),
            Missing,
            "`cil_xdp_entry`, id 9",
        ),
        (xdp::attached, |_, n| link(n).program = Some(Program { id: 9, name: None }), Missing, "somebody else's"),
        (xdp::attached, |_, n| link(n).program = Some(Program { id: 9, name: Some("nomagic_filter".into()) }), Warning, "nomagic"),
        (queues::count, |_, n| n.queues = Ok((8, Some(8))), Warning, "8 of 8"),
        (queues::count, |_, n| n.queues = Ok((3, None)), Missing, "3"),
        (queues::count, |_, n| n.queues = Ok((1, Some(1))), Missing, "1 of 1"),
        (queues::spread, |_, n| n.rss = Ok(Rss { queues: [0, 1, 2].into() }), Missing, "queues 0-2"),
        (queues::spread, |_, n| n.rss = Ok(Rss { queues: [0].into() }), Missing, "queues 0"),
        (queues::udp_hash, |_, n| n.udp_ports_hashed[1] = Ok(false), Missing, "IPv4 ports, IPv6 no ports"),
        (queues::udp_hash, |_, n| n.udp_ports_hashed[1] = Err("x".into()), Unknown, "not known"),
        (queues::rings, |_, n| n.rings = Ok([(512, 4096), (512, 512)]), Warning, "rx 512 of 4096, tx 512 of 512"),
        (queues::coalescing, |_, n| n.coalesce = Ok((Some(true), Some(8))), Warning, "adaptive"),
        (queues::coalescing, |_, n| n.coalesce = Ok((None, Some(250))), Warning, "250"),
        (queues::interrupts, |_, n| n.irqs.as_mut().unwrap()[1].cpus = "0-5".parse().ok(), Warning, "on 0-5: a worker's"),
        (queues::interrupts, |_, n| n.irqs.as_mut().unwrap()[1].cpus = "4-5".parse().ok(), Warning, "moves between 4-5"),
        (queues::interrupts, |_, n| n.irqs.as_mut().unwrap()[1].cpus = "4".parse().ok(), Warning, "queues share one"),
        (queues::ntuple, |_, n| *n.features.as_mut().unwrap().get_mut("ntuple-filters").unwrap() = true, Warning, "on"),
    ];
    for (n, (check, change, state, words)) in cases.into_iter().enumerate() {
        let (mut machine, mut nic) = (good_machine(), good_nic());
        change(&mut machine, &mut nic);
        verify(n, &check(&wanted(), &machine, &nic), state, words);
    }
}

#[test]
fn roles() {
    let cases: [NicCase; 9] = [
        (namespace::forwarding, |_, n| n.namespace.ip_forward = Some(0), Missing, "off"),
        (namespace::ports, |_, n| n.namespace.local_ports = Some((1024, 65_535)), Missing, "1024-65535"),
        (
            namespace::ports,
            |_, n| (n.namespace.local_ports, n.namespace.reserved_ports) = (Some((1024, 65_535)), Some(vec![(61_000, 65_535)])),
            Fine,
            "1024-65535",
        ),
        (namespace::ports, |_, n| n.namespace.local_ports = None, Unknown, "ip_local_port_range"),
        (namespace::kernel_pktgen, |_, n| n.namespace.pktgen = false, Warning, "built without"),
        (namespace::kernel_pktgen, |m, n| (m.config, n.namespace.pktgen) = (None, false), Warning, "not loaded"),
        (namespace::live_frames, |m, _| m.release = Some("5.17.1".into()), Missing, "too old"),
        (namespace::live_frames, |_, n| n.xdp_features = Some(0b11), Unknown, "does not say"),
        (namespace::live_frames, |m, _| m.release = None, Unknown, "not known"),
    ];
    for (n, (check, change, state, words)) in cases.into_iter().enumerate() {
        let (mut machine, mut nic) = (good_machine(), good_nic());
        change(&mut machine, &mut nic);
        verify(n, &check(&wanted(), &machine, &nic), state, words);
    }
    let mut loaded = good_machine();
    loaded.nf_conntrack = Some(true);
    let generator = Wanted { role: Role::Generator, ..wanted() };
    verify(0, &kernel::conntrack(&generator, &loaded), Warning, "generator");
    let names = |role| nic(&Wanted { role, ..wanted() }, &loaded, &good_nic()).iter().map(|f| f.name).collect::<Vec<_>>();
    assert!(names(Role::Gateway).contains(&"SNAT ports") && !names(Role::Generator).contains(&"SNAT ports"));
}

#[test]
fn of_an_interface_that_is_not_there_only_that_is_said() {
    let gone = Nic { link: Err("no".into()), netns: Some("gen".into()), ..good_nic() };
    let findings = nic(&wanted(), &good_machine(), &gone);
    assert_eq!((findings.len(), findings[0].state, findings[0].interface.as_deref()), (1, Missing, Some("eth1@gen")));
}

#[test]
fn remedies_can_be_copied() {
    let mut there = Nic { netns: Some("gen".into()), udp_ports_hashed: [Ok(false), Ok(false)], ..good_nic() };
    there.pause = Ok((true, true));
    let findings = nic(&wanted(), &good_machine(), &there);
    let remedy = |name: &str| findings.iter().find(|f| f.name == name).unwrap().remedy.clone().unwrap();
    assert_eq!(remedy("flow control"), "ip netns exec gen ethtool -A eth1 autoneg off rx off tx off");
    let twice = "ip netns exec gen ethtool -N eth1 rx-flow-hash udp4 sdfn; ip netns exec gen ethtool -N eth1 rx-flow-hash udp6 sdfn";
    assert_eq!(remedy("RSS of UDP"), twice);
    there.irqs.as_mut().unwrap()[0].cpus = "0-5".parse().ok();
    let findings = nic(&wanted(), &good_machine(), &there);
    let irqs = findings.iter().find(|f| f.name == "queue interrupts").unwrap().remedy.clone().unwrap();
    assert!(
        irqs.starts_with("ip netns exec gen bench/rigs/tune-gateway.sh apply --interface eth1 --worker-cpus 2,3 --irq-cpus LIST"),
        "{irqs}"
    );
    let few = queues::count(&wanted(), &good_machine(), &Nic { queues: Ok((1, Some(1))), ..good_nic() });
    assert_eq!(few.remedy.as_deref(), Some("--workers 1: the card has no more queues"));
    let more =
        |separate_queues| queues::count(&wanted(), &good_machine(), &Nic { queues: Ok((1, Some(8))), separate_queues, ..good_nic() });
    assert_eq!(more(false).remedy.as_deref(), Some("ethtool -L eth1 combined 2"));
    assert_eq!(more(true).remedy.as_deref(), Some("ethtool -L eth1 rx 2 tx 2"));
    let ports = Namespace { local_ports: Some((1024, 65_535)), reserved_ports: Some(vec![(80, 80), (8000, 8100)]), ..Namespace::default() };
    let reserve = namespace::ports(&wanted(), &good_machine(), &Nic { namespace: ports, ..good_nic() });
    assert_eq!(reserve.remedy.as_deref(), Some("sysctl -w net.ipv4.ip_local_reserved_ports=80,8000-8100,61000-65535"));
}
