//! `nomagic explain`: configuration and manifests in, answers out. Needs neither privileges nor interfaces.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use nomagic_api::explain::{Answer, Verdict};
use nomagic_api::socket::{Request, Response};
use nomagic_table::compile::{Compiled, Compiler, TARGETS_MAX};
use nomagic_table::explain::flow::LINE_MAX;
use nomagic_table::explain::{Explainer, parse_flow};
use nomagic_table::index::Index;
use nomagic_table::problem::Problem;
use nomagic_table::settings::Settings;

use super::config_args::{ConfigArgs, Loaded as Configuration};
use crate::config::Config;
use crate::config::error::ConfigError;
use crate::kubeproxy::Warning;
use crate::manifests;
use crate::run::socket;

/// Problems printed before the answers at the most.
const WARNINGS_MAX: usize = 50;

const NO_NODE: &str = "missing: `run` finds the node's addresses out, `explain` does not; it knows neither node ports \
    nor an address for rewritten sources until they are listed";

/// How answers are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Format {
    /// Step by step, for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `nomagic explain`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  nomagic explain --config nomagic.yaml 'tcp 192.168.0.5:40000 -> 10.109.35.24:80'
  nomagic explain --config nomagic.yaml 'udp [fd00::5]:40000 -> [fd00:10:109::24]:53'
  nomagic explain --kube-proxy-config config.conf --manifests services.yaml 'tcp 10.0.0.9:40000 -> 10.109.35.24:80'
  nomagic explain --running 'tcp 10.0.0.9:40000 -> 10.109.35.24:80'
  printf '%s\\n' 'tcp 203.0.113.9:1234 -> 192.168.0.2:30080' | nomagic explain --config nomagic.yaml --format json

Exit codes: 0 all flows answered, 1 failure, 2 a configuration, manifest path or flow that cannot be used, or no gateway that answers (the
other flows are answered).")]
pub struct Args {
    /// The configuration; `interfaces` may be missing.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Ask the gateway that runs here, in place of files: its flows, affinity and routes count as well.
    #[arg(long, group = "ConfigFile", conflicts_with = "manifests")]
    pub running: bool,
    /// The state directory of the running gateway [default: /run/nomagic].
    #[arg(long, value_name = "DIR", requires = "running")]
    pub state_dir: Option<PathBuf>,
    /// How answers are printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Flows: PROTOCOL SOURCE:PORT -> DESTINATION:PORT. Without any, one a line is read from standard input; blank lines and `#` lines are skipped.
    #[arg(value_name = "FLOW")]
    pub flows: Vec<String>,
}

/// Everything that answers are made of.
struct Loaded {
    index: Index,
    settings: Settings,
    compiled: Compiled,
    /// What a kube-proxy's file asks for in vain.
    left_out: Vec<Warning>,
}

/// Who answers.
enum Source {
    Files(Box<Loaded>),
    /// The gateway with this state directory.
    Running(PathBuf),
}

impl Source {
    fn answer(&self, explainer: Option<&Explainer<'_>>, flow: &str) -> Result<Answer, String> {
        let tuple = parse_flow(flow)?;
        match (self, explainer) {
            (Source::Running(state_dir), _) => {
                match socket::ask(state_dir, &Request::Explain { flow: flow.into() }).map_err(|e| format!("{e:#}"))? {
                    Response::Explain(answer) => Ok(*answer),
                    Response::Status(_) => Err("the gateway answered with its status".into()),
                }
            }
            (Source::Files(_), Some(explainer)) => Ok(explainer.answer(flow, &tuple)),
            (Source::Files(_), None) => Err("there is nothing to answer from".into()),
        }
    }
}

/// Runs the command; the exit code is 0, or 2 for bad input.
pub fn run(args: &Args, input: &mut dyn BufRead, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let Some(source) = open(args, err)? else { return Ok(2) };
    let explainer = match &source {
        Source::Files(loaded) => Some(Explainer::new(&loaded.index, &loaded.settings, &loaded.compiled)),
        Source::Running(_) => None,
    };
    let mut all_good = true;
    let mut answer = |place: &str, text: &str, out: &mut dyn Write| -> io::Result<()> {
        match source.answer(explainer.as_ref(), text.trim()) {
            Ok(answer) => print(&answer, args.format, out),
            Err(message) => {
                all_good = false;
                writeln!(err, "error: {place}: {message}")
            }
        }
    };
    for (i, flow) in args.flows.iter().enumerate() {
        answer(&format!("flow {} ({})", i + 1, shown(flow)), flow, out)?;
    }
    if args.flows.is_empty() {
        let mut line = Vec::new();
        let mut number = 0;
        while read_line(input, &mut line)? {
            number += 1;
            let text = String::from_utf8_lossy(&line);
            if !text.trim().is_empty() && !text.trim_start().starts_with('#') {
                answer(&format!("line {number} ({})", shown(&text)), text.trim(), out)?;
            }
        }
    }
    out.flush()?;
    Ok(if all_good { 0 } else { 2 })
}

/// Loads the files, unless a gateway is to be asked. `None`: they cannot be used, and the error says why.
fn open(args: &Args, err: &mut dyn Write) -> io::Result<Option<Source>> {
    if args.running {
        return Ok(Some(Source::Running(args.state_dir.clone().unwrap_or_else(|| Config::default().state_dir))));
    }
    match load(&args.config) {
        Ok((loaded, problems)) => {
            loaded.left_out.iter().try_for_each(|warning| writeln!(err, "warning: {warning}"))?;
            if loaded.settings.node.ips.is_empty() {
                let field = if args.config.file.kube_proxy_config.is_some() { "bindAddress" } else { "node.primaryIPs" };
                writeln!(err, "warning: {}: {field}: {NO_NODE}", args.config.path().display())?;
            }
            warn(&problems, err)?;
            Ok(Some(Source::Files(Box::new(loaded))))
        }
        Err(message) => {
            writeln!(err, "error: {message}")?;
            Ok(None)
        }
    }
}

fn load(args: &ConfigArgs) -> Result<(Loaded, Vec<Problem>), String> {
    let Configuration { mut config, drop_in } = args.load().map_err(|e| e.to_string())?;
    let left_out = drop_in.map_or(Vec::new(), |drop_in| {
        drop_in.apply(&mut config, &[]);
        drop_in.warnings
    });
    let missing = || match config.kubernetes {
        Some(_) => {
            let message = "`explain` reads files, and here an API server is watched: name `manifests` instead, or --manifests";
            ConfigError::missing(args.path(), "kubernetes", message)
        }
        None => {
            let message = "missing: name the file or directory with the Kubernetes YAML, in nomagic's configuration or with --manifests";
            ConfigError::missing(args.path(), "manifests", message)
        }
    };
    let manifests = manifests::load(config.manifests.as_deref().ok_or_else(|| missing().to_string())?, None).map_err(|p| p.to_string())?;
    let index = Index::of(manifests.objects);
    let settings = config.settings_for(&[], &index);
    let compiled = Compiler::new(TARGETS_MAX).compile(&index, &settings);
    let mut problems = manifests.problems;
    problems.extend(compiled.problems.iter().cloned());
    Ok((Loaded { index, settings, compiled, left_out }, problems))
}

fn warn(problems: &[Problem], err: &mut dyn Write) -> io::Result<()> {
    for problem in problems.iter().take(WARNINGS_MAX) {
        writeln!(err, "warning: {problem}")?;
    }
    match problems.len().saturating_sub(WARNINGS_MAX) {
        0 => Ok(()),
        more => writeln!(err, "warning: {more} more problems are not shown"),
    }
}

/// Reads a line of which at most `LINE_MAX + 1` bytes are kept. False at the end.
fn read_line(input: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let mut any = false;
    loop {
        let available = input.fill_buf()?;
        if available.is_empty() {
            return Ok(any);
        }
        any = true;
        let end = available.iter().position(|b| *b == b'\n');
        let taken = &available[..end.unwrap_or(available.len())];
        line.extend_from_slice(&taken[..taken.len().min((LINE_MAX + 1).saturating_sub(line.len()))]);
        let used = end.map_or(available.len(), |e| e + 1);
        input.consume(used);
        if end.is_some() {
            return Ok(true);
        }
    }
}

fn shown(text: &str) -> String {
    let mut short: String = text.trim().chars().take(60).collect();
    if short.len() < text.trim().len() {
        short.push('…');
    }
    format!("{short:?}")
}

fn print(answer: &Answer, format: Format, out: &mut dyn Write) -> io::Result<()> {
    match format {
        Format::Json => {
            serde_json::to_writer(&mut *out, answer)?;
            writeln!(out)
        }
        Format::Text => {
            writeln!(out, "{}", answer.flow)?;
            for (i, step) in answer.steps.iter().enumerate() {
                writeln!(out, "  {}. {step}", i + 1)?;
            }
            writeln!(out, "  => {}\n", summary(answer))
        }
    }
}

fn summary(answer: &Answer) -> String {
    match (answer.verdict, &answer.chosen, answer.snat) {
        (Verdict::Forward, Some(to), Some(snat)) => format!("FORWARD to {to}, source rewritten to {snat}"),
        (Verdict::Forward, Some(to), None) => format!("FORWARD to {to}, source unchanged"),
        (Verdict::Forward, None, _) => "FORWARD".into(),
        (Verdict::Reject, ..) => "REJECT: connection refused".into(),
        (Verdict::Drop, ..) => "DROP: silence".into(),
        (Verdict::Local, ..) => "LOCAL: answered by the node's health check server".into(),
        (Verdict::Pass, ..) => "PASS: left to the kernel".into(),
        (Verdict::Hold, ..) => "HOLD: until the next hop's MAC address is known".into(),
    }
}

#[cfg(test)]
mod tests;
