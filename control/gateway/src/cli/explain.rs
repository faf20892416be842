//! `nomagic explain`: answers for flows, from configuration and manifests or from the running gateway. Reading files needs neither
//! privileges nor interfaces.

mod compare;
mod files;
mod kube_proxy;
mod named;
mod sources;

use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use nomagic_api::explain::{Answer, Verdict};
use nomagic_kube_proxy_rules::Ruleset;
use nomagic_table::explain::Explainer;
use nomagic_table::explain::flow::LINE_MAX;
use nomagic_table::problem::{Problem, shown};

use super::config_args::ConfigArgs;
use crate::parity;
pub(super) use files::LoadedFiles;
use kube_proxy::Both;
use named::AtAddress;
pub use named::Client;
use sources::Sources;

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
  nomagic explain --live 'tcp 10.0.0.9:40000 -> 10.109.35.24:80'
  nomagic explain --live default/nginx:http
  nomagic explain --live --client 203.0.113.77 default/nginx
  nomagic explain --live --config nomagic.yaml --manifests objects.yaml default/nginx:http
  nomagic explain --config nomagic.yaml --kube-proxy-rules v4.rules --kube-proxy-rules v6.rules 'tcp 10.0.0.9:40000 -> 10.109.35.24:80'
  printf '%s\\n' 'tcp 203.0.113.9:1234 -> 192.168.0.2:30080' | nomagic explain --config nomagic.yaml --format json

By name, each address of the Service port is explained: for an example of a client outside the cluster, and for a pod if that differs, or for
--client. With --live and a configuration, the gateway's answers are compared with those of the files, and the last step says what differs.

Exit codes: 0 all answered (and the files answer the same), 1 failure, 2 invalid configuration, manifest path, flow or name, or no gateway
answers (all other questions are answered), 3 the gateway and the files answer differently.")]
pub struct ExplainArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Ask the running gateway instead of reading files. The answers then include its flows, affinity and routes. With a configuration, also say
    /// what differs from the files.
    #[arg(long, visible_alias = "running", group = "ConfigFile")]
    pub live: bool,
    /// The state directory of the running gateway [default: the configuration's, or /run/nomagic].
    #[arg(long, value_name = "DIR", requires = "live")]
    pub state_dir: Option<PathBuf>,
    /// Also show what these rules of a kube-proxy do, repeatable: the output of `nft -j list ruleset`, `iptables-save` or `ip6tables-save`.
    #[arg(long, value_name = "RULES", conflicts_with = "live")]
    pub kube_proxy_rules: Vec<PathBuf>,
    /// The client to ask for, with questions by name: an address, or with its port [default: examples].
    #[arg(long, value_name = "ADDRESS")]
    pub client: Option<Client>,
    /// Output format.
    #[arg(long, value_enum, default_value_t = AnswerFormat::Text)]
    pub format: AnswerFormat,
    /// Flows: PROTOCOL SOURCE:PORT -> DESTINATION:PORT; or Services by name: NAMESPACE/NAME:PORT, NAMESPACE/NAME if there is one port. Default:
    /// one per line from standard input; blank lines and `#` lines are skipped.
    #[arg(value_name = "FLOW")]
    pub flows: Vec<String>,
}

/// What came of all questions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Answered,
    /// The gateway and the files answer differently.
    Differ,
    /// A question is invalid, or nobody answers it.
    Invalid,
}

impl Outcome {
    fn code(self) -> u8 {
        match self {
            Outcome::Answered => 0,
            Outcome::Differ => 3,
            Outcome::Invalid => 2,
        }
    }
}

/// Runs the command. Returns the exit code.
pub fn run(args: &ExplainArgs, input: &mut dyn BufRead, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    let Some(sources) = Sources::open(args, err)? else { return Ok(2) };
    let rules = match parity::from_files(&args.kube_proxy_rules) {
        Ok(rules) => rules,
        Err(e) => {
            writeln!(err, "error: {e}")?;
            return Ok(2);
        }
    };
    let explainer = sources.explainer();
    let asker = Asker { args, sources: &sources, explainer: explainer.as_ref(), rules: &rules };
    let mut outcome = Outcome::Answered;
    let mut ask = |place: &str, text: &str, out: &mut dyn Write| -> io::Result<()> {
        match asker.ask(text.trim(), out) {
            Ok(of_one) => outcome = outcome.max(of_one),
            Err(Failure::Output(e)) => return Err(e),
            Err(Failure::Question(message)) => {
                outcome = Outcome::Invalid;
                writeln!(err, "error: {place}: {message}")?;
            }
        }
        Ok(())
    };
    for (i, flow) in args.flows.iter().enumerate() {
        ask(&format!("flow {} ({})", i + 1, quoted(flow)), flow, out)?;
    }
    if args.flows.is_empty() {
        let mut line = Vec::new();
        let mut number = 0;
        while read_line(input, &mut line)? {
            number += 1;
            let text = String::from_utf8_lossy(&line);
            if !text.trim().is_empty() && !text.trim_start().starts_with('#') {
                ask(&format!("line {number} ({})", quoted(&text)), text.trim(), out)?;
            }
        }
    }
    out.flush()?;
    Ok(outcome.code())
}

/// Why there is no answer.
enum Failure {
    Question(String),
    Output(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Failure {
        Failure::Question(message)
    }
}

/// Asks and prints.
struct Asker<'a> {
    args: &'a ExplainArgs,
    sources: &'a Sources,
    explainer: Option<&'a Explainer<'a>>,
    rules: &'a Ruleset,
}

impl Asker<'_> {
    /// Answers one question: about a flow, or about a Service by its name.
    fn ask(&self, text: &str, out: &mut dyn Write) -> Result<Outcome, Failure> {
        if !text.contains("->") && text.contains('/') {
            return self.ask_by_name(text, out);
        }
        let (tuple, answer) = self.sources.answer(self.explainer, text)?;
        let outcome = outcome(&answer);
        match &self.sources.files {
            Some(loaded) if !self.args.kube_proxy_rules.is_empty() => {
                Both::of(answer, &tuple, self.rules, loaded).print(self.args.format, out)?;
            }
            _ => print(&answer, self.args.format, out)?,
        }
        Ok(outcome)
    }

    fn ask_by_name(&self, text: &str, out: &mut dyn Write) -> Result<Outcome, Failure> {
        let name = named::parse_name(text)?;
        let (service, clients) = self.sources.service(&name.service)?;
        let port = named::port(&service, &name)?;
        let mut all = Outcome::Answered;
        for at in named::questions(&service, port, &clients, self.args.client) {
            all = all.max(self.ask_at(&at, out)?);
        }
        if port.more_addresses > 0 && self.args.format == AnswerFormat::Text {
            writeln!(out, "and {} more addresses", port.more_addresses)?;
        }
        Ok(all)
    }

    fn ask_at(&self, at: &AtAddress, out: &mut dyn Write) -> Result<Outcome, Failure> {
        let is_text = self.args.format == AnswerFormat::Text;
        if is_text {
            writeln!(out, "{}", shown(&at.heading))?;
        }
        if let Some(note) = at.note.as_ref().filter(|_| is_text) {
            writeln!(out, "  {note}\n")?;
        }
        let mut first: Option<Answer> = None;
        let mut all = Outcome::Answered;
        for (flow, asked, who) in &at.questions {
            let (_, mut answer) = self.sources.answer(self.explainer, flow)?;
            all = all.max(outcome(&answer));
            answer.asked = Some(asked.clone());
            match &first {
                Some(first) if is_text && is_alike(first, &answer) => {
                    writeln!(out, "For a pod the same holds (asked for {}).\n", answer.flow)?;
                    continue;
                }
                Some(_) if is_text => writeln!(out, "For a pod the answer differs:")?,
                _ => {}
            }
            if is_text {
                writeln!(out, "({who})")?;
            }
            print(&answer, self.args.format, out)?;
            first.get_or_insert(answer);
        }
        Ok(all)
    }
}

fn outcome(answer: &Answer) -> Outcome {
    if answer.differences.as_ref().is_some_and(|all| !all.is_empty()) { Outcome::Differ } else { Outcome::Answered }
}

/// Whether two clients get the same, but for the endpoint that each one's hash chooses.
fn is_alike(a: &Answer, b: &Answer) -> bool {
    (a.verdict, &a.reason, &a.service, a.port, &a.backends, a.snat) == (b.verdict, &b.reason, &b.service, b.port, &b.backends, b.snat)
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
    let source = answer.snat.map_or("source unchanged".to_owned(), |snat| format!("source rewritten to {snat}"));
    match (answer.verdict, &answer.chosen) {
        (Verdict::Forward, Some(to)) => format!("FORWARD to {}, {source}", sure(to)),
        (Verdict::Forward, None) => "FORWARD".into(),
        (Verdict::Reject, ..) => "REJECT: connection refused".into(),
        (Verdict::Drop, ..) => "DROP: no response".into(),
        (Verdict::Local, ..) => "LOCAL: answered by the node's health check server".into(),
        (Verdict::Pass, ..) => "PASS: left to the kernel".into(),
        (Verdict::Hold, Some(to)) => format!("HOLD: until the next hop's MAC address is known, then to {}, {source}", sure(to)),
        (Verdict::Hold, None) => "HOLD: until the next hop's MAC address is known".into(),
    }
}

#[cfg(test)]
mod tests;
