//! `nomagic explain`: answers for flows, from configuration and manifests or from the running gateway. Reading files needs neither
//! privileges nor interfaces.

mod files;
mod kube_proxy;

use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use nomagic_api::explain::{Answer, Verdict};
use nomagic_api::socket::{Request, Response};
use nomagic_core::tuple::Tuple;
use nomagic_table::explain::flow::LINE_MAX;
use nomagic_table::explain::{Explainer, parse_flow};
use nomagic_table::problem::Problem;

use super::config_args::ConfigArgs;
use crate::config::Config;
use crate::parity;
use crate::run::socket;
pub(super) use files::LoadedFiles;
use kube_proxy::Both;

/// Maximum number of problems printed before the answers.
const WARNINGS_MAX: usize = 50;

/// Output format of answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum AnswerFormat {
    /// Text, step by step.
    Text,
    /// One JSON object per line.
    Json,
}

/// `nomagic explain`
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  nomagic explain --config nomagic.yaml 'tcp 192.168.0.5:40000 -> 10.109.35.24:80'
  nomagic explain --config nomagic.yaml 'udp [fd00::5]:40000 -> [fd00:10:109::24]:53'
  nomagic explain --kube-proxy-config config.conf --manifests services.yaml 'tcp 10.0.0.9:40000 -> 10.109.35.24:80'
  nomagic explain --running 'tcp 10.0.0.9:40000 -> 10.109.35.24:80'
  nomagic explain --config nomagic.yaml --kube-proxy-rules v4.rules --kube-proxy-rules v6.rules 'tcp 10.0.0.9:40000 -> 10.109.35.24:80'
  printf '%s\\n' 'tcp 203.0.113.9:1234 -> 192.168.0.2:30080' | nomagic explain --config nomagic.yaml --format json

Exit codes: 0 all flows answered, 1 failure, 2 invalid configuration, manifest path or flow, or no gateway answers (all other flows are
answered).")]
pub struct ExplainArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Ask the running gateway instead of reading files. The answers then include its flows, affinity and routes.
    #[arg(long, group = "ConfigFile", conflicts_with = "manifests")]
    pub running: bool,
    /// The state directory of the running gateway [default: /run/nomagic].
    #[arg(long, value_name = "DIR", requires = "running")]
    pub state_dir: Option<PathBuf>,
    /// Also show what these rules of a kube-proxy do, repeatable: the output of `nft -j list ruleset`, `iptables-save` or `ip6tables-save`.
    #[arg(long, value_name = "RULES", conflicts_with = "running")]
    pub kube_proxy_rules: Vec<PathBuf>,
    /// Output format.
    #[arg(long, value_enum, default_value_t = AnswerFormat::Text)]
    pub format: AnswerFormat,
    /// Flows: PROTOCOL SOURCE:PORT -> DESTINATION:PORT. Default: one per line from standard input; blank lines and `#` lines are skipped.
    #[arg(value_name = "FLOW")]
    pub flows: Vec<String>,
}

/// The source of answers.
enum AnswerSource {
    Files(Box<LoadedFiles>),
    /// The gateway with this state directory.
    Running(PathBuf),
}

impl AnswerSource {
    fn answer(&self, explainer: Option<&Explainer<'_>>, flow: &str) -> Result<(Tuple, Answer), String> {
        let tuple = parse_flow(flow)?;
        let answer = match (self, explainer) {
            (AnswerSource::Running(state_dir), _) => {
                match socket::ask(state_dir, &Request::Explain { flow: flow.into(), as_new: false }).map_err(|e| format!("{e:#}"))? {
                    Response::Explain(answer) => *answer,
                    _ => return Err("unexpected response from the gateway: not an explanation".into()),
                }
            }
            (AnswerSource::Files(_), Some(explainer)) => explainer.answer(flow, &tuple),
            (AnswerSource::Files(_), None) => return Err("no files are loaded".into()),
        };
        Ok((tuple, answer))
    }
}

/// Runs the command. The exit code is 0, or 2 for invalid input.
pub fn run(args: &ExplainArgs, input: &mut dyn BufRead, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let Some(source) = open_source(args, err)? else { return Ok(2) };
    let rules = match parity::from_files(&args.kube_proxy_rules) {
        Ok(rules) => rules,
        Err(e) => {
            writeln!(err, "error: {e}")?;
            return Ok(2);
        }
    };
    let explainer = match &source {
        AnswerSource::Files(loaded) => {
            let explainer = Explainer::new(&loaded.index, &loaded.settings, &loaded.compiled).with_denied(&loaded.denied);
            Some(if loaded.seed_unknown { explainer.with_unknown_seed() } else { explainer })
        }
        AnswerSource::Running(_) => None,
    };
    let mut all_good = true;
    let mut answer = |place: &str, text: &str, out: &mut dyn Write| -> io::Result<()> {
        match source.answer(explainer.as_ref(), text.trim()) {
            Ok((tuple, answer)) => match &source {
                AnswerSource::Files(loaded) if !args.kube_proxy_rules.is_empty() => {
                    Both::of(answer, &tuple, &rules, loaded).print(args.format, out)
                }
                _ => print(&answer, args.format, out),
            },
            Err(message) => {
                all_good = false;
                writeln!(err, "error: {place}: {message}")
            }
        }
    };
    for (i, flow) in args.flows.iter().enumerate() {
        answer(&format!("flow {} ({})", i + 1, quoted(flow)), flow, out)?;
    }
    if args.flows.is_empty() {
        let mut line = Vec::new();
        let mut number = 0;
        while read_line(input, &mut line)? {
            number += 1;
            let text = String::from_utf8_lossy(&line);
            if !text.trim().is_empty() && !text.trim_start().starts_with('#') {
                answer(&format!("line {number} ({})", quoted(&text)), text.trim(), out)?;
            }
        }
    }
    out.flush()?;
    Ok(if all_good { 0 } else { 2 })
}

/// Loads the files, unless `--running` is given. `None`: they are invalid, and the error has been printed.
fn open_source(args: &ExplainArgs, err: &mut dyn Write) -> io::Result<Option<AnswerSource>> {
    if args.running {
        return Ok(Some(AnswerSource::Running(args.state_dir.clone().unwrap_or_else(|| Config::default().state_dir))));
    }
    match LoadedFiles::load(&args.config, &[]) {
        Ok((loaded, problems)) => {
            loaded.warnings(&args.config).iter().try_for_each(|warning| writeln!(err, "warning: {warning}"))?;
            print_problems(&problems, err)?;
            Ok(Some(AnswerSource::Files(Box::new(loaded))))
        }
        Err(message) => {
            writeln!(err, "error: {message}")?;
            Ok(None)
        }
    }
}

fn print_problems(problems: &[Problem], err: &mut dyn Write) -> io::Result<()> {
    for problem in problems.iter().take(WARNINGS_MAX) {
        writeln!(err, "warning: {problem}")?;
    }
    match problems.len().saturating_sub(WARNINGS_MAX) {
        0 => Ok(()),
        more => writeln!(err, "warning: {more} more problems are not shown"),
    }
}

/// Reads a line and keeps at most `LINE_MAX + 1` bytes of it. Returns false at the end of input.
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

fn quoted(text: &str) -> String {
    let mut short: String = text.trim().chars().take(60).collect();
    if short.len() < text.trim().len() {
        short.push('…');
    }
    format!("{short:?}")
}

fn print(answer: &Answer, format: AnswerFormat, out: &mut dyn Write) -> io::Result<()> {
    match format {
        AnswerFormat::Json => {
            serde_json::to_writer(&mut *out, answer)?;
            writeln!(out)
        }
        AnswerFormat::Text => writeln!(out, "{}", text(answer)),
    }
}

/// The flow, the steps and what happens in the end, each on a line.
pub(super) fn text(answer: &Answer) -> String {
    let mut text = format!("{}\n", answer.flow);
    for (i, step) in answer.steps.iter().enumerate() {
        text += &format!("  {}. {step}\n", i + 1);
    }
    text + &format!("  => {}\n", summary(answer))
}

fn summary(answer: &Answer) -> String {
    let sure = |to: &str| match answer.certain {
        true => to.to_owned(),
        false => format!("any of {} candidates ({to} with the seed 0)", answer.backends.len()),
    };
    match (answer.verdict, &answer.chosen, answer.snat) {
        (Verdict::Forward, Some(to), Some(snat)) => format!("FORWARD to {}, source rewritten to {snat}", sure(to)),
        (Verdict::Forward, Some(to), None) => format!("FORWARD to {}, source unchanged", sure(to)),
        (Verdict::Forward, None, _) => "FORWARD".into(),
        (Verdict::Reject, ..) => "REJECT: connection refused".into(),
        (Verdict::Drop, ..) => "DROP: no response".into(),
        (Verdict::Local, ..) => "LOCAL: answered by the node's health check server".into(),
        (Verdict::Pass, ..) => "PASS: left to the kernel".into(),
        (Verdict::Hold, ..) => "HOLD: until the next hop's MAC address is known".into(),
    }
}

#[cfg(test)]
mod tests;
