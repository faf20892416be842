//! nomagic's table beside rules that a real kube-proxy wrote for the same objects: the comparison itself, and the commands that print it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nomagic::parity::{KnownObjects, node};
use nomagic_kube_proxy_rules::Ruleset;
use nomagic_kube_proxy_rules::parity::{Judgement, Report, Table, check};
use nomagic_testbed::rig::Netns;
use serde_json::{Value, json};

use crate::common::NOMAGIC;
use crate::common::replay::{CaseTable, cases, list, settings, text};

/// The dumps that the crate of the rules keeps, by file name; see its tests for their format.
fn dumps() -> BTreeMap<String, String> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kube-proxy-rules/tests/data");
    let lines = std::fs::read_to_string(data.join("lines.txt")).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    let dump = |entry: &str| {
        let (name, places) = entry.split_once('\t').unwrap();
        let range = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            lines[first.parse().unwrap()..=last.parse().unwrap()].to_vec()
        };
        let own: Vec<&str> = places.split(' ').flat_map(range).collect();
        let text = if name.ends_with(".json") { format!("{{\"nftables\": [{}]}}", own.join(",")) } else { own.join("\n") + "\n" };
        (name.to_owned(), text)
    };
    std::fs::read_to_string(data.join("dumps.tsv")).unwrap().lines().map(dump).collect()
}

/// The endings of the files of a step, by mode.
const FILES: [&[&str]; 2] = [&["nft.json"], &["ipv4.rules", "ipv6.rules"]];

fn compare(table: &CaseTable, texts: &[&String]) -> Report {
    let mut rules = Ruleset::default();
    for text in texts {
        rules.read(text).unwrap();
    }
    let (node, objects) = (node(&table.settings), KnownObjects { index: &table.index, settings: &table.settings });
    check(&Table { services: &table.compiled.services, node: &node, primary: &table.settings.node.primary, objects: &objects }, &rules)
}

#[test]
fn the_recorded_rules_do_what_the_table_does() {
    let (dumps, file) = (dumps(), cases("kubeproxy-cases.yaml"));
    let (mut steps, mut packets, mut modes, mut wrong) = (0, 0, 0, Vec::new());
    for case in list(&file["cases"]) {
        for (number, step) in list(&case["steps"]).iter().enumerate() {
            let name = format!("{}.{number}", text(case, "id"));
            for files in FILES {
                let texts: Vec<&String> = files.iter().filter_map(|ending| dumps.get(&format!("{name}.{ending}"))).collect();
                if texts.is_empty() {
                    continue;
                }
                let report = compare(&CaseTable::new(&step["objects"], settings(&file["defaults"]["config"], case)), &texts);
                (steps, packets) = (steps + 1, packets + report.packets);
                modes += report.findings.iter().filter(|finding| finding.judgement == Judgement::ModesDiffer).count();
                let others = report.findings.into_iter().filter(|finding| finding.judgement != Judgement::ModesDiffer);
                wrong.extend(others.map(|finding| format!("{name} {}: {finding:?}", files[0])));
            }
        }
    }
    println!("{steps} rule sets, {packets} packets, {modes} differences between the modes, {} others", wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(steps >= 166 && packets > 2_000, "{steps} {packets}");
}

/// A configuration, the objects and the rules of a case's first step in a directory.
struct Files {
    dir: tempfile::TempDir,
    config: PathBuf,
}

impl Files {
    fn of(case_id: &str) -> Files {
        let (dumps, file) = (dumps(), cases("kubeproxy-cases.yaml"));
        let case = list(&file["cases"]).iter().find(|case| text(case, "id") == case_id).unwrap();
        let mut config = file["defaults"]["config"].clone();
        config.as_object_mut().unwrap().extend(case["config"].as_object().cloned().unwrap_or_default());
        config.as_object_mut().unwrap().remove("detectLocalMode");
        config["manifests"] = "objects.yaml".into();
        config["hash"] = json!({"seed": 0});
        let dir = tempfile::tempdir().unwrap();
        let files = Files { config: dir.path().join("nomagic.yaml"), dir };
        files.write("nomagic.yaml", &config.to_string());
        files.write("objects.yaml", &json!({"apiVersion": "v1", "kind": "List", "items": case["steps"][0]["objects"]}).to_string());
        for ending in FILES.concat() {
            files.write(ending, &dumps[&format!("{case_id}.0.{ending}")]);
        }
        files
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    /// In the text of the rules.
    fn damage(&self, name: &str, from: &str, to: &str) {
        let before = std::fs::read_to_string(self.path(name)).unwrap();
        let after = before.replace(from, to);
        assert_ne!(before, after, "{from}");
        self.write(name, &after);
    }

    /// `(exit code, standard output, standard error)`
    fn run(&self, command: &[&str], rules: (&str, &[&str]), more: &[&str], input: &str) -> (Option<i32>, String, String) {
        let mut process = Command::new(NOMAGIC);
        process.args(command).arg("--config").arg(&self.config).current_dir(self.dir.path());
        for file in rules.1 {
            process.arg(rules.0).arg(file);
        }
        let mut child = process.args(more).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (out.status.code(), text(out.stdout), text(out.stderr))
    }

    fn check(&self, rules: &[&str], more: &[&str]) -> (Option<i32>, String, String) {
        self.run(&["check", "kube-proxy"], ("--rules", rules), more, "")
    }

    fn explain(&self, rules: &[&str], more: &[&str], input: &str) -> (Option<i32>, String, String) {
        self.run(&["explain"], ("--kube-proxy-rules", rules), more, input)
    }
}

/// What the programs of a machine list, of both modes.
#[test]
fn the_rules_of_this_machine() {
    let (files, netns) = (Files::of(CASE), Netns::new("kp-rules").unwrap());
    let check = || {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", netns.name(), NOMAGIC, "check", "kube-proxy", "--config"]).arg(&files.config);
        let out = command.output().unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap())
    };
    let (code, text) = check();
    assert!(code == Some(2) && text.contains("this machine has no rules of a kube-proxy"), "{text}");
    // There is no nfacct object in the namespace.
    for (name, restore) in [("ipv4.rules", "iptables-restore"), ("ipv6.rules", "ip6tables-restore")] {
        for object in ["ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts"] {
            let words = format!("-m nfacct --nfacct-name  {object} ");
            let text = std::fs::read_to_string(files.path(name)).unwrap();
            files.write(name, &text.replace(&words, ""));
        }
        netns.exec(restore, &[&files.path(name)]).unwrap();
    }
    let (code, text) = check();
    assert_eq!(code, Some(0), "{text}");
    netns
        .exec("iptables", &["-t", "nat", "-I", "PREROUTING", "-d", "172.30.0.41", "-p", "tcp", "-j", "DNAT", "--to", "10.99.0.9:8080"])
        .unwrap();
    let (code, text) = check();
    assert!(code == Some(1) && text.contains("A rule that is not kube-proxy's decides here"), "{text}");
    // Without iptables' own listing it cannot be told.
    files.write("nft.json", &netns.exec("nft", &["-j", "list", "ruleset"]).unwrap());
    let (code, _, err) = files.check(&["nft.json"], &[]);
    assert!(code == Some(2) && err.contains("give the output of iptables-save too"), "{err}");
}

const CASE: &str = "up-ipt-internal-external-masquerade-base";

#[test]
fn check_says_whether_both_do_the_same() {
    let files = Files::of(CASE);
    for rules in FILES {
        let (code, out, err) = files.check(rules, &[]);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
        assert!(out.contains("kube-proxy's rules and nomagic's table do the same."), "{out}");
    }
    files.damage("ipv4.rules", "--to-destination 10.180.1.1:80", "--to-destination 10.180.9.9:80");
    let (code, out, err) = files.check(FILES[1], &[]);
    assert_eq!((code, err.as_str()), (Some(1), ""), "{out}");
    let words = [
        "differs: 1.2.3.4:80, 172.30.0.41:80, 192.168.0.2:3001",
        "(TCP) of Service ns1/svc1, for pods, outside, the node",
        "only the rules have the endpoint 10.180.9.9:80.",
        "the rules lack the endpoint 10.180.1.1:80.",
        "No EndpointSlice of the Service has 10.180.9.9:80: the rules are stale",
        "differ at 5 addresses and ports.",
    ];
    words.iter().for_each(|words| assert!(out.contains(words), "{words}: {out}"));

    let (code, out, _) = files.check(FILES[1], &["--format", "json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &report["result"]), (Some(1), &"differ".into()));
    let finding = list(&report["differences"]).iter().find(|d| d["addresses"][1] == "172.30.0.41:80").unwrap();
    assert_eq!((&finding["service"], &finding["protocol"], &finding["senders"][0]), (&"ns1/svc1".into(), &"TCP".into(), &"pods".into()));
}

#[test]
fn check_says_when_it_cannot_tell() {
    let files = Files::of(CASE);
    let first = "-A FORWARD -m conntrack --ctstate NEW";
    files.damage("ipv4.rules", first, &format!("-A FORWARD -m set --match-set blocked src -j DROP\n{first}"));
    let (code, out, _) = files.check(FILES[1], &[]);
    assert_eq!(code, Some(2), "{out}");
    assert!(out.contains("cannot tell: ") && out.contains("--match-set blocked src"), "{out}");
    let (code, out, _) = files.check(FILES[1], &["--only-kube-proxy"]);
    assert!(code == Some(0), "{out}");

    // Of one family only, and not of a kube-proxy.
    let (code, out, _) = files.check(&["ipv6.rules"], &[]);
    assert!(code == Some(2) && out.contains("no chain of a kube-proxy for IPv4"), "{out}");
    files.write("other.rules", "# Generated by iptables-save v1.8.9\n*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n");
    let (code, _, err) = files.check(&["other.rules"], &[]);
    assert!(code == Some(2) && err.contains("no chain of a kube-proxy is in the rules"), "{err}");
    files.write(
        "bad.rules",
        "# Generated by iptables-save v1.8.9\n*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n",
    );
    let table = [
        ("bad.rules", "bad.rules: line 4: chain \"KUBE-SERVICES\" does not exist"),
        ("none.rules", "none.rules: the rules cannot be read"),
    ];
    for (name, words) in table {
        let (code, out, err) = files.check(&[name], &[]);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
        assert!(err.starts_with("error: ") && err.contains(words), "{err}");
    }
}

#[test]
fn explain_shows_both_answers() {
    let files = Files::of(CASE);
    let flows = "tcp 203.0.113.9:1234 -> 172.30.0.41:80\n# IPv6\ntcp [2001:db8::9]:1 -> [fd00:172:30::99]:80\n";
    for rules in FILES {
        let (code, out, err) = files.explain(rules, &["--format", "json"], flows);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
        let answers: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(answers.len(), 2);
        let (nomagic, kube_proxy) = (&answers[0], &answers[0]["kubeProxy"]);
        assert_eq!((&nomagic["verdict"], &kube_proxy["verdict"], &nomagic["agrees"]), (&"forward".into(), &"forward".into(), &true.into()));
        assert_eq!(nomagic["backends"], kube_proxy["backends"]);
        assert_eq!(
            (&kube_proxy["snat"], &kube_proxy["service"], &kube_proxy["shares"]),
            (&true.into(), &"ns1/svc1".into(), &json!([0.5, 0.5]))
        );
        let (code, out, _) = files.explain(rules, &["tcp 203.0.113.9:1234 -> 172.30.0.41:80"], "");
        assert_eq!(code, Some(0));
        let words = [
            "  nomagic:\n",
            "  kube-proxy (",
            "=> FORWARD to one of 2, source rewritten",
            "Both do the same.",
            "the client is not in the pods' range 10.0.0.0/8",
        ];
        words.iter().for_each(|words| assert!(out.contains(words), "{words}: {out}"));
    }
    files.damage("nft.json", "\"10.180.1.1\",80", "\"10.180.1.1\",81");
    let (_, out, _) = files.explain(FILES[0], &["tcp 203.0.113.9:1234 -> 172.30.0.41:80"], "");
    assert!(out.contains("They differ: the rules lead to 10.180.1.1:81 instead of 10.180.1.1:80: the port differs"), "{out}");
    files.write("broken.json", "{\"nftables\": [{\"rule\": {\"family\": \"ip\", \"table\": \"t\", \"chain\": \"c\", \"expr\": []}}]}");
    let (code, _, err) = files.explain(&["broken.json"], &["tcp 203.0.113.9:1234 -> 172.30.0.41:80"], "");
    assert!(code == Some(2) && err.contains("broken.json: nftables[0]: rule: chain \"c\" does not exist"), "{err}");
}
