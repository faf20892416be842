//! The content of `bench/rigs/`, as far as it can be checked without a NIC.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser;
use nomagic::cli::config_args::{ConfigArgs, ConfigFile};
use nomagic::cli::explain::{AnswerFormat, ExplainArgs, run};
use nomagic::preflight::PreflightArgs;
use nomagic_bench::pktgen::PktgenArgs;
use serde_json::Value;

fn rigs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../rigs").join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(rigs(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// nomagic's answers about flows, with the rig's configuration.
fn explain(flows: &[&str]) -> Vec<Value> {
    let file = ConfigFile { config: Some(rigs("nomagic/nomagic.yaml")), kube_proxy_config: None };
    let args = ExplainArgs {
        config: ConfigArgs { file, manifests: None },
        live: false,
        client: None,
        state_dir: None,
        kube_proxy_rules: Vec::new(),
        format: AnswerFormat::Json,
        flows: flows.iter().map(ToString::to_string).collect(),
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = run(&args, &mut &b""[..], &mut out, &mut err).unwrap();
    assert_eq!((code, String::from_utf8(err).unwrap().as_str()), (0, ""), "not even a warning");
    String::from_utf8(out).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn the_gateways_configuration_carries_the_rigs_flows() {
    let flows = [
        ("udp 198.18.64.1:1024 -> 10.96.0.10:9", 8),
        ("tcp 198.18.127.254:65535 -> 10.96.0.10:80", 8),
        ("udp 198.18.64.1:1024 -> 10.96.0.11:9", 2),
        ("udp 198.18.64.1:1024 -> 10.96.0.13:9", 2),
    ];
    for ((flow, endpoints), answer) in flows.iter().zip(explain(&flows.map(|(flow, _)| flow))) {
        assert_eq!((&answer["verdict"], &answer["snat"]), (&"forward".into(), &Value::Null), "{flow}: {answer}");
        assert_eq!(answer["backends"].as_array().unwrap().len(), *endpoints, "{flow}: {answer}");
    }
    let config = nomagic::config::Config::load(&rigs("nomagic/nomagic.yaml")).unwrap();
    assert_eq!(config.interfaces, ["eth1", "eth2"]);
}

/// Every Service that a generator sends to is one of the rig's.
#[test]
fn generators_send_to_services_that_there_are() {
    for name in ["trex/nomagic_udp.py", "dpdk-pktgen/nomagic_udp.lua", "pktgen-kernel.sh", "two-machines.md"] {
        let text = text(name);
        let words = text.split(|c: char| !c.is_ascii_digit() && c != '.').map(|w| w.trim_end_matches('.'));
        let services: Vec<&str> = words.filter(|w| w.starts_with("10.96.0.") && w.parse::<std::net::Ipv4Addr>().is_ok()).collect();
        assert!(!services.is_empty(), "{name}");
        for service in services {
            let answer = &explain(&[&format!("udp 198.18.64.1:1024 -> {service}:9")])[0];
            assert_eq!(answer["verdict"], "forward", "{name}: {service}");
        }
    }
}

#[derive(Parser)]
enum Cli {
    Pktgen(Box<PktgenArgs>),
    Preflight(PreflightArgs),
}

/// The command lines of our programs in the document are valid.
#[test]
fn the_documents_commands_are_accepted() {
    let document = text("two-machines.md");
    let command = |line: &str| ["nomagic-bench pktgen", "nomagic preflight"].iter().any(|start| line.starts_with(start));
    // The generator's interfaces are in a namespace.
    let lines: Vec<&str> = document.lines().map(|line| line.trim_start_matches("ip netns exec gen ")).filter(|l| command(l)).collect();
    assert_eq!(lines.len(), 4, "{lines:?}");
    for line in lines {
        match Cli::try_parse_from(line.split_whitespace()).unwrap_or_else(|e| panic!("{line}: {e}")) {
            Cli::Pktgen(args) => args.options().unwrap().check().unwrap_or_else(|e| panic!("{line}: {e:#}")),
            Cli::Preflight(_) => {}
        }
    }
}

/// Runs a checker, if it is installed, and expects no complaint.
fn passes(program: &str, args: &[&str], file: &Path) {
    match Command::new(program).args(args).arg(file).output() {
        Err(_) => eprintln!("{program} is not installed: {} is not checked", file.display()),
        Ok(out) => assert!(out.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&out.stderr)),
    }
}

#[test]
fn scripts_can_be_read() {
    // Without leaving a compiled file next to the source.
    passes("python3", &["-c", "import sys; compile(open(sys.argv[1]).read(), sys.argv[1], 'exec')"], &rigs("trex/nomagic_udp.py"));
    for script in ["tune-gateway.sh", "pktgen-kernel.sh"] {
        passes("bash", &["-n"], &rigs(script));
        // Without arguments it only prints its usage.
        let out = Command::new(rigs(script)).output().unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(2), &b""[..]), "{said}");
        assert!(said.contains(&format!("{script} ")) && said.contains("--interface"), "{said}");
    }
}

#[test]
fn tuning_refuses_what_makes_no_sense_and_a_dry_run_changes_nothing() {
    let state = tempfile::tempdir().unwrap();
    let tune = |words: &str| {
        let mut command = Command::new(rigs("tune-gateway.sh"));
        let out = command.args(words.split_whitespace()).env("NOMAGIC_RIG_STATE", state.path()).output().unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap())
    };
    for (words, said) in [
        ("apply --worker-cpus 0 --irq-cpus 1", "name one"),
        ("apply --interface no-such-link --worker-cpus 0 --irq-cpus 1 --dry-run", "not there"),
        ("apply --interface lo --worker-cpus 0-3 --irq-cpus 1 --dry-run", "--worker-cpus"),
        ("apply --interface lo --worker-cpus 0 --irq-cpus 0 --dry-run", "is a worker's"),
        ("apply --interface lo --worker-cpus 0 --irq-cpus 9999 --dry-run", "no CPU 9999"),
        ("undo --interface lo --dry-run", "nothing to undo"),
        ("apply --interface", "tune-gateway.sh apply"),
        ("again --interface lo --dry-run", "tune-gateway.sh apply"),
    ] {
        let (code, out) = tune(words);
        assert!(code.is_some_and(|c| c > 0) && out.contains(said), "{words}: {out}");
    }
    let (code, out) = tune("apply --interface lo --worker-cpus 0 --irq-cpus 1 --dry-run");
    if Path::new("/sys/devices/system/cpu/cpu1").exists() {
        assert_eq!(code, Some(0), "{out}");
        assert!(out.contains("+ ethtool -X lo equal 1") && out.contains("+ ethtool -N lo rx-flow-hash udp4 sdfn"), "{out}");
    }
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0);
}
