//! The command line of `nomagic-bench report`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use super::against::{Change, Comparison};
use super::sections::{IDS, sections};
use super::{draw, page, summary, text};
use crate::results::Results;

const EXAMPLES: &str = "\
Examples:
  A page with everything, in one self-contained file:
    nomagic-bench report results.json --out report.html
  The differences from an earlier run; the second command fails when a value is clearly worse:
    nomagic-bench report new.json --against old.json --out report.html
    nomagic-bench report new.json --against old.json --format text --fail-on-worse
  A median and the figures, for scripts:
    nomagic-bench report results.json --format json | jq '.[\"rates/nomagic-1000/established/zero-loss\"]'
    nomagic-bench report results.json --format json | jq 'to_entries[] | select(.key | startswith(\"figures/\"))'
  One plot as a file:
    nomagic-bench report results.json --plot rates --out rates.svg

The JSON is one flat object: started, commit, machine, kernel, rig; figures/NAME is \"reached\", \"notReached\" or \"notMeasured\"; every other key is a
median, with KEY.low and KEY.high if it has an interval. A value that was not measured is null, and KEY.notMeasured is the reason. Rates are
frames or connections a second; latency is in us, cpu and cost in ns, churn and programming in ms; ratios and flood are plain numbers.

A value is worse or better than another run's if their intervals do not overlap. Single values have no interval and are never worse.";

/// `nomagic-bench report`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ReportArgs {
    /// Results of `nomagic-bench compare`
    results: PathBuf,
    /// Results to compare with
    #[arg(long, value_name = "OLD.json")]
    against: Option<PathBuf>,
    /// Fail when a value is clearly worse than in --against
    #[arg(long, requires = "against")]
    fail_on_worse: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Html)]
    format: Format,
    /// Write one plot as SVG instead
    #[arg(long, value_parser = IDS, conflicts_with_all = ["against", "format"])]
    plot: Option<String>,
    /// Output file [default: report.html, PLOT.svg; text and JSON: standard output]
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    /// A page
    Html,
    /// Tables for a terminal
    Text,
    /// A flat object of figures and medians
    Json,
}

impl ReportArgs {
    pub fn run(&self) -> Result<()> {
        let results = Results::read(&self.results)?;
        if let Some(id) = &self.plot {
            return self.write_plot(&results, id);
        }
        let comparison = match &self.against {
            Some(path) => Some(Comparison::new(&results, &Results::read(path)?)),
            None => None,
        };
        let mut words = text::figures(&results);
        words.push('\n');
        match &comparison {
            Some(c) => words.push_str(&text::comparison(c)),
            None if self.format == Format::Text => words.push_str(&text::summary(&results)),
            None => {}
        }
        match self.format {
            Format::Html => {
                let out = self.out.clone().unwrap_or("report.html".into());
                write(&out, &page::html(&results, comparison.as_ref())?)?;
                print!("{words}");
                println!("the page: {}", out.display());
            }
            Format::Text => self.write_or_print(&words)?,
            Format::Json => {
                let mut json = serde_json::to_string_pretty(&summary::json(&results))?;
                json.push('\n');
                self.write_or_print(&json)?;
                if let Some(c) = &comparison {
                    eprint!("{}", text::comparison(c));
                }
            }
        }
        match comparison.map(|c| c.count(Change::Worse)) {
            Some(worse) if worse > 0 && self.fail_on_worse => {
                bail!(
                    "{worse} values are clearly worse than in {}: see the outcomes above",
                    self.against.as_deref().unwrap_or(Path::new("")).display()
                )
            }
            _ => Ok(()),
        }
    }

    fn write_plot(&self, results: &Results, id: &str) -> Result<()> {
        let section = sections(results).into_iter().find(|s| s.id == id).with_context(|| format!("there is no plot {id}"))?;
        ensure!(!section.plots.is_empty(), "{}: nothing to plot: {}", self.results.display(), section.lead);
        let out = self.out.clone().unwrap_or_else(|| format!("{id}.svg").into());
        write(&out, &draw::file(&section.plots)?)?;
        println!("the plot: {}", out.display());
        Ok(())
    }

    fn write_or_print(&self, text: &str) -> Result<()> {
        match &self.out {
            Some(out) => write(out, text),
            None => {
                print!("{text}");
                Ok(())
            }
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
