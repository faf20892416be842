//! `nomagic explain --kube-proxy-rules`: what the rules of a kube-proxy do, beside nomagic's own answer.

use std::io::{self, Write};

use nomagic_api::explain::{Answer, Verdict};
use nomagic_core::tuple::Tuple;
use nomagic_kube_proxy_rules::parity::{self, Finding, Judgement, Table};
use nomagic_kube_proxy_rules::{Decision, Difference, Packet, Ruleset};
use serde::Serialize;

use super::{AnswerFormat, LoadedFiles, summary};
use crate::parity::{KnownObjects, node};

/// Both answers about one flow. The JSON output has nomagic's fields, as without rules, and then these.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Both {
    #[serde(flatten)]
    nomagic: Answer,
    kube_proxy: KubeProxyAnswer,
    /// `null`: it cannot be told.
    agrees: Option<bool>,
    /// In sentences without a period.
    differences: Vec<String>,
    /// Who is right, as far as it can be told; empty if both agree.
    judgement: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KubeProxyAnswer {
    /// `nftables` or `iptables`.
    mode: &'static str,
    verdict: Verdict,
    /// `namespace/name`, as far as the rules tell.
    service: Option<String>,
    /// All candidates.
    backends: Vec<String>,
    /// Their shares of the connections, in the same order, between 0 and 1.
    shares: Vec<f64>,
    /// Whether the client's address is replaced. `null`: for some of the backends.
    snat: Option<bool>,
    /// Backends for which it is, although `snat` is false: the client itself.
    hairpin: Vec<String>,
    /// Seconds of session affinity; 0: the rules do not say how many.
    affinity: Option<u32>,
    certain: bool,
    /// The rules that decided, in sentences.
    steps: Vec<String>,
}

impl KubeProxyAnswer {
    fn of(decision: &Decision, tuple: &Tuple, iptables: bool) -> KubeProxyAnswer {
        let snat = decision.masquerades(tuple.src_addr());
        let hairpin = decision.backends.iter().filter(|backend| backend.snat && snat == Some(false));
        KubeProxyAnswer {
            mode: if iptables { "iptables" } else { "nftables" },
            verdict: decision.verdict,
            service: decision.service.clone(),
            backends: decision.backends.iter().map(|backend| backend.to.to_string()).collect(),
            // Six digits are enough for shares of thousands of endpoints.
            shares: decision.backends.iter().map(|backend| (backend.share * 1e6).round() / 1e6).collect(),
            snat,
            hairpin: hairpin.map(|backend| backend.to.to_string()).collect(),
            affinity: decision.affinity_s,
            certain: decision.certain,
            steps: decision.steps.iter().map(ToString::to_string).collect(),
        }
    }

    fn summary(&self) -> String {
        let source = match (self.snat, self.hairpin.as_slice()) {
            (Some(true), _) => "source rewritten to an address of this node".to_owned(),
            (Some(false), []) => "source unchanged".to_owned(),
            (Some(false), own) => format!("source unchanged, but rewritten for {}", own.join(", ")),
            (None, _) => "source rewritten for some".to_owned(),
        };
        match (self.verdict, self.backends.as_slice()) {
            (Verdict::Forward, [one]) => format!("FORWARD to {one}, {source}"),
            (Verdict::Forward, all) => format!("FORWARD to one of {}, {source}", all.len()),
            (Verdict::Reject, _) => "REJECT: connection refused".into(),
            (Verdict::Drop, _) => "DROP: no response".into(),
            (Verdict::Local, _) => "LOCAL: for the node's health check server".into(),
            (Verdict::Pass | Verdict::Hold, _) => "PASS: no rule takes it".into(),
        }
    }
}

impl Both {
    pub(super) fn of(nomagic: Answer, tuple: &Tuple, rules: &Ruleset, loaded: &LoadedFiles) -> Both {
        let (here, objects) = (node(&loaded.settings), KnownObjects { index: &loaded.index, settings: &loaded.settings });
        let table = Table { services: &loaded.compiled.services, node: &here, primary: &loaded.settings.node.primary, objects: &objects };
        let packet = Packet { tuple: *tuple, origin: parity::origin(&table, tuple.src_addr()) };
        let decision = rules.follow(&packet, &here);
        let kube_proxy = KubeProxyAnswer::of(&decision, tuple, rules.is_iptables(tuple.v6));
        let mut both = Both { nomagic, kube_proxy, agrees: Some(true), differences: Vec::new(), judgement: String::new() };
        if rules.is_ipvs() {
            both.agrees = None;
            both.judgement = "The kube-proxy is in IPVS mode: where packets go is in the kernel's IPVS, not in rules.".into();
        } else if !rules.has_kube_proxy(tuple.v6) {
            let family = if tuple.v6 { "IPv6" } else { "IPv4" };
            both.agrees = None;
            both.judgement = format!("The rules have no chain of a kube-proxy for {family}.");
        } else if let Some(finding) = parity::check_packet(&table, rules, &packet) {
            both.add(&finding);
        } else if !same(both.nomagic.verdict, decision.verdict) {
            // The table would forward, and something else of nomagic's does not.
            both.agrees = Some(false);
            both.differences.push(Difference::Verdict { rules: decision.verdict, expected: both.nomagic.verdict }.text());
            both.judgement = "nomagic refuses the packet for a reason that kube-proxy does not have; its steps say which.".into();
        }
        both
    }

    fn add(&mut self, finding: &Finding) {
        self.agrees = (finding.judgement != Judgement::CannotTell).then_some(false);
        self.differences = finding.differences.iter().map(Difference::text).collect();
        self.judgement.clone_from(&finding.words);
    }

    pub(super) fn print(&self, format: AnswerFormat, out: &mut dyn Write) -> io::Result<()> {
        if format == AnswerFormat::Json {
            serde_json::to_writer(&mut *out, self)?;
            return writeln!(out);
        }
        writeln!(out, "{}\n  nomagic:", self.nomagic.flow)?;
        let steps = |out: &mut dyn Write, steps: &[String]| -> io::Result<()> {
            steps.iter().enumerate().try_for_each(|(i, step)| writeln!(out, "  {}. {step}", i + 1))
        };
        steps(out, &self.nomagic.steps)?;
        writeln!(out, "  => {}\n  kube-proxy ({}):", summary(&self.nomagic), self.kube_proxy.mode)?;
        steps(out, &self.kube_proxy.steps)?;
        writeln!(out, "  => {}", self.kube_proxy.summary())?;
        let end = match self.agrees {
            Some(true) => "Both do the same.".to_owned(),
            Some(false) => format!("They differ: {}. {}", self.differences.join("; "), self.judgement),
            None => format!("It cannot be told whether both do the same. {}", self.judgement),
        };
        writeln!(out, "  {}\n", end.trim_end())
    }
}

/// Not all rules tell kube-proxy's health check server from other servers of the node.
fn same(nomagic: Verdict, rules: Verdict) -> bool {
    let plain = |verdict| if verdict == Verdict::Local { Verdict::Pass } else { verdict };
    plain(nomagic) == plain(rules)
}
