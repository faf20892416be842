//! `nomagic check kube-proxy`: nomagic's table beside the rules of the kube-proxy that it will replace.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use nomagic_core::tuple::Proto;
use nomagic_kube_proxy_rules::Ruleset;
use nomagic_kube_proxy_rules::parity::{self, Finding, Judgement, Report, Table};
use serde::Serialize;

use super::super::config_args::ConfigArgs;
use super::super::explain::LoadedFiles;
use super::super::output;
use crate::parity::{KnownObjects, from_files, from_kernel, node};

/// Maximum number of findings of a kind, and of unknown rules, in the text.
const SHOWN_MAX: usize = 100;

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Format {
    /// Sentences.
    Text,
    /// One JSON object.
    Json,
}

/// `nomagic check kube-proxy`
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubectl get services,endpointslices -A -o yaml > objects.yaml
  nomagic check kube-proxy --config nomagic.yaml --manifests objects.yaml
  nomagic check kube-proxy --config nomagic.yaml --rules ruleset.json
  nomagic check kube-proxy --kube-proxy-config config.conf --manifests objects.yaml --rules v4.rules --rules v6.rules --format json

It changes nothing. Each address and port of the objects and of the rules is asked for senders in pods, outside and on the node.
Exit codes: 0 both do the same, 1 they differ, 2 it cannot be told, or invalid input.")]
pub(in super::super) struct CheckKubeProxyArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Rules of the kube-proxy, repeatable: the output of `nft -j list ruleset`, `iptables-save` or `ip6tables-save`; `-` is standard
    /// input. Default: these commands are run, as root on the node.
    #[arg(long, value_name = "FILE")]
    rules: Vec<PathBuf>,
    /// Leave out rules that are not kube-proxy's: a CNI's, a firewall's. Without this, they count as the kernel would have them.
    #[arg(long)]
    only_kube_proxy: bool,
    /// Output format.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// Prints what differs. Returns the exit code.
pub(in super::super) fn run(args: &CheckKubeProxyArgs) -> Result<u8> {
    let discovered = if args.rules.is_empty() { crate::net::node::local_addresses()? } else { Vec::new() };
    let (loaded, problems) = match LoadedFiles::load(&args.config, &discovered) {
        Ok(loaded) => loaded,
        Err(message) => return refuse(&message),
    };
    let rules = if args.rules.is_empty() { from_kernel() } else { from_files(&args.rules) };
    let mut rules = match rules {
        Ok(rules) => rules,
        Err(e) => return refuse(&e.to_string()),
    };
    if args.only_kube_proxy {
        rules.leave_out_others();
    }
    if rules.is_ipvs() {
        return refuse("the kube-proxy is in IPVS mode: where packets go is in the kernel's IPVS, not in rules");
    }
    let mut warnings: Vec<String> = loaded.warnings(&args.config);
    warnings.extend(problems.iter().map(ToString::to_string));
    if !rules.has_kube_proxy(false) && !rules.has_kube_proxy(true) {
        return refuse(match rules.lacks_iptables_save() {
            true => "the kube-proxy is in iptables mode, and nft does not show such rules in full: give the output of iptables-save too",
            false => "no chain of a kube-proxy is in the rules",
        });
    }
    let (objects, here) = (KnownObjects { index: &loaded.index, settings: &loaded.settings }, node(&loaded.settings));
    let table = Table { services: &loaded.compiled.services, node: &here, primary: &loaded.settings.node.primary, objects: &objects };
    let report = parity::check(&table, &rules);
    let outcome = Outcome::of(&report, &rules, &table, &loaded.settings.node.name, warnings);
    output::print(&match args.format {
        Format::Text => outcome.text(),
        Format::Json => serde_json::to_string(&outcome)?,
    })?;
    Ok(outcome.exit_code())
}

fn refuse(message: &str) -> Result<u8> {
    output::print_error(message);
    Ok(2)
}

/// What is printed. The JSON output has these fields in this order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    /// `agree`, `differ` or `unknown`.
    result: &'static str,
    /// Rules that were read.
    rules: usize,
    /// Addresses with ports.
    destinations: usize,
    /// Packets that were followed through both.
    packets: usize,
    differences: Vec<Shown>,
    /// Differences between kube-proxy's two modes.
    mode_differences: Vec<Shown>,
    undecided: Vec<Shown>,
    unknown_rules: Vec<String>,
    /// What else keeps the comparison from being complete, or helps to understand it.
    notes: Vec<String>,
    warnings: Vec<String>,
    #[serde(skip)]
    not_compared: bool,
    #[serde(skip)]
    more: usize,
    #[serde(skip)]
    differing: usize,
}

/// Addresses and ports of a Service of which the same is said.
#[derive(PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    addresses: Vec<String>,
    protocol: &'static str,
    service: Option<String>,
    senders: Vec<String>,
    differences: Vec<String>,
    explanation: String,
}

impl Shown {
    /// The findings of a kind, together where they are the same.
    fn all(report: &Report, judgement: Judgement) -> Vec<Shown> {
        let mut all: Vec<Shown> = Vec::new();
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        for finding in report.findings.iter().filter(|finding| finding.judgement == judgement) {
            let shown = Shown::of(finding);
            let same = format!("{:?} {} {:?} {:?} {}", shown.service, shown.protocol, shown.senders, shown.differences, shown.explanation);
            match places.get(&same) {
                Some(place) => all[*place].addresses.push(finding.to.to_string()),
                None => {
                    places.insert(same, all.len());
                    all.push(Shown { addresses: vec![finding.to.to_string()], ..shown });
                }
            }
        }
        all
    }

    fn of(finding: &Finding) -> Shown {
        Shown {
            addresses: Vec::new(),
            protocol: Proto::name(finding.proto),
            service: finding.service.clone(),
            senders: finding.senders.clone(),
            differences: finding.differences.iter().map(|difference| difference.text()).collect(),
            explanation: finding.words.clone(),
        }
    }

    fn text(&self, label: &str) -> String {
        let of = self.service.as_ref().map_or(String::new(), |service| format!(" of Service {service}"));
        let mut text = format!("{label}: {} ({}){of}, for {}:\n", self.addresses.join(", "), self.protocol, self.senders.join(", "));
        self.differences.iter().for_each(|difference| text += &format!("    {difference}.\n"));
        if !self.explanation.is_empty() {
            text += &format!("    {}\n", self.explanation);
        }
        text
    }
}

impl Outcome {
    fn of(report: &Report, rules: &Ruleset, table: &Table<'_>, node_name: &str, warnings: Vec<String>) -> Outcome {
        let shown = |judgement| Shown::all(report, judgement);
        let mut notes = Vec::new();
        let mut not_compared = false;
        for (v6, family) in [(false, "IPv4"), (true, "IPv6")] {
            let count = table.services.frontends().filter(|(address, ..)| address.is_ipv6() == v6).count();
            if !rules.has_kube_proxy(v6) && count > 0 {
                not_compared = true;
                notes.push(format!("The rules have no chain of a kube-proxy for {family}: {count} addresses and ports are not compared."));
            }
        }
        if let Some((node, count)) = report.other_node() {
            notes.push(format!(
                "{count} of the findings fit node {node}, and this node is {node_name}: the rules may be another node's, or node.name is wrong."
            ));
        }
        if report.undecided() > 0 && !report.unknown.is_empty() {
            notes.push("--only-kube-proxy leaves out the rules of others, and with them what is not known of those.".into());
        }
        if report.not_asked > 0 {
            notes.push(format!(
                "{} addresses and ports were not asked about: the rules are too many, or lead in circles.",
                report.not_asked
            ));
        }
        let result = match (report.differing(), report.undecided()) {
            (0, 0) if !not_compared => "agree",
            (0, _) => "unknown",
            _ => "differ",
        };
        Outcome {
            result,
            rules: rules.rule_count(),
            destinations: report.destinations,
            packets: report.packets,
            differences: shown(Judgement::Differs),
            mode_differences: shown(Judgement::ModesDiffer),
            undecided: shown(Judgement::CannotTell),
            unknown_rules: report.unknown.iter().map(ToString::to_string).collect(),
            notes,
            warnings,
            not_compared,
            more: report.more,
            differing: report.differing(),
        }
    }

    fn exit_code(&self) -> u8 {
        match self.result {
            "agree" => 0,
            "differ" => 1,
            _ => 2,
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut list = |label: &str, lines: &mut dyn Iterator<Item = String>, count: usize| {
            lines.take(SHOWN_MAX).for_each(|line| text += &line);
            if count > SHOWN_MAX {
                text += &format!("{label}: {} more are not shown; --format json has all\n", count - SHOWN_MAX);
            }
        };
        let line = |label: &'static str| move |what: &String| format!("{label}: {what}\n");
        list("warning", &mut self.warnings.iter().map(line("warning")), self.warnings.len());
        list("differs", &mut self.differences.iter().map(|shown| shown.text("differs")), self.differences.len() + self.more);
        list("cannot tell", &mut self.undecided.iter().map(|shown| shown.text("cannot tell")), self.undecided.len());
        list("mode differs", &mut self.mode_differences.iter().map(|shown| shown.text("mode differs")), self.mode_differences.len());
        list("unknown rule", &mut self.unknown_rules.iter().map(line("unknown rule")), self.unknown_rules.len());
        list("note", &mut self.notes.iter().map(line("note")), self.notes.len());
        let Outcome { rules, destinations, packets, .. } = self;
        text += &format!("{rules} rules were read; {destinations} addresses and ports were asked with {packets} packets.\n");
        text += &match self.result {
            "agree" => "kube-proxy's rules and nomagic's table do the same.".to_owned(),
            "differ" => format!("kube-proxy's rules and nomagic's table differ at {} addresses and ports.", self.differing),
            _ => format!(
                "It cannot be told whether both do the same: {}.",
                if self.not_compared { "rules are missing".into() } else { format!("{} findings are undecided", self.undecided.len()) }
            ),
        };
        text
    }
}
