//! Limits of connections, from settings and annotations.

use nomagic_core::services::{ConnectionsPerClient, ConnectionsPerSecond, Limits};
use nomagic_core::tuple::Proto;

use super::tests::{compile, named, settings, slice};
use super::*;
use crate::objects::Object;
use crate::settings::DefaultLimits;

/// A Service with two ports and these annotations.
fn annotated(annotations: &str) -> [Object; 2] {
    let ports = "{clusterIP: 172.30.0.1, ports: [{name: a, port: 80}, {name: b, port: 81}]}";
    [
        named(&format!("{{name: s, namespace: n, annotations: {{{annotations}}}}}"), ports, "{}"),
        slice("s-1", "s", "{name: a, port: 8080}, {name: b, port: 8081}", &["10.1.0.1"]),
    ]
}

fn limits_at(c: &Compiled, port: u16) -> Limits {
    c.services.frontend("172.30.0.1".parse().unwrap(), port, Proto::Tcp).unwrap().port.limits.clone()
}

#[test]
fn annotations_override_the_default_limits() {
    let (second, client) = ("nomagic.io/connections-per-second", "nomagic.io/max-connections-per-client");
    let defaults = DefaultLimits { per_second: ConnectionsPerSecond::new(100), per_client: ConnectionsPerClient::new(10) };
    for (annotations, with_defaults, without) in [
        (String::new(), (100, 10), (0, 0)),
        (format!("{second}: '5'"), (5, 10), (5, 0)),
        (format!("{client}: '6'"), (100, 6), (0, 6)),
        (format!("{second}: '0', {client}: '0'"), (0, 0), (0, 0)),
        (format!("{second}: 'x', {client}: '-1'"), (100, 10), (0, 0)),
    ] {
        for (defaults, expected) in [(defaults, with_defaults), (DefaultLimits::default(), without)] {
            let c = compile(&annotated(&annotations), &Settings { limits: defaults, ..settings() });
            for port in [80, 81] {
                let limits = limits_at(&c, port);
                let numbers = (limits.rate.map_or(0, |rate| rate.most.get()), limits.per_client.map_or(0, |limit| limit.most.get()));
                assert_eq!(numbers, expected, "{annotations} {defaults:?}");
            }
            let problems = if annotations.contains("'x'") { 2 } else { 0 };
            assert_eq!(c.problems.len(), problems, "{:?}", c.problems);
        }
    }
}

/// The bucket is the Service port's: changes of the limit, of the endpoints and of all settings keep it, another port has its own.
#[test]
fn a_token_bucket_lives_as_long_as_its_service_port() {
    let second = |n: u32| annotated(&format!("nomagic.io/connections-per-second: '{n}'"));
    let mut compiler = Compiler::new(TARGETS_MAX);
    let bucket = |c: &Compiled, port| limits_at(c, port).rate.unwrap().bucket;
    let mut index = Index::of(second(5));
    let first = compiler.compile(&index, &settings());
    let kept = bucket(&first, 80);
    assert!(!Arc::ptr_eq(&kept, &bucket(&first, 81)));
    for object in [second(6)[0].clone(), slice("s-1", "s", "{name: a, port: 8080}", &["10.1.0.2"]), slice("s-1", "s", "", &[])] {
        index.apply(object);
        let touched = index.take_touched();
        let next = compiler.recompile(&index, &settings(), &touched);
        assert!(Arc::ptr_eq(&kept, &bucket(&next, 80)));
    }
    let other = compiler.compile(&index, &Settings { masquerade_all: true, ..settings() });
    assert_eq!((Arc::ptr_eq(&kept, &bucket(&other, 80)), limits_at(&other, 80).rate.unwrap().most.get()), (true, 6));
    // Without the limit it is gone; a new one begins full.
    index.apply(annotated("")[0].clone());
    let touched = index.take_touched();
    assert_eq!(limits_at(&compiler.recompile(&index, &settings(), &touched), 80), Limits::default());
    index.apply(second(5)[0].clone());
    let touched = index.take_touched();
    assert!(!Arc::ptr_eq(&kept, &bucket(&compiler.recompile(&index, &settings(), &touched), 80)));
}
