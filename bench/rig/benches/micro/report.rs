//! Rows with their targets, as text and as JSON. Rows are printed as they are measured.

use serde::Serialize;

#[derive(Serialize)]
pub struct Line {
    pub name: String,
    /// The unit of `value`: `ns`, `ratio`, `percent`, `ms`.
    pub unit: &'static str,
    pub value: f64,
    /// The floor with the same footprint, in the same rounds, in nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_ns: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over_floor: Option<f64>,
    /// An upper limit, or a lower one for ratios.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted: Option<Wanted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reached: Option<bool>,
    /// Connections in the table, if the row depends on them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flows: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub floors: Vec<f64>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    Most(f64),
    /// At most this, and at most so many times the floor.
    MostAndFloors(f64, f64),
    /// At most so many times the floor.
    MostFloors(f64),
    Least(f64),
}

impl Line {
    pub fn new(name: &str, unit: &'static str, value: f64, floor_ns: Option<f64>, wanted: Option<Wanted>) -> Line {
        let over_floor = floor_ns.map(|f| value / f);
        let reached = wanted.map(|wanted| match wanted {
            Wanted::Most(most) => value <= most,
            Wanted::MostAndFloors(most, times) => value <= most && over_floor.is_none_or(|o| o <= times),
            Wanted::MostFloors(times) => over_floor.is_some_and(|o| o <= times),
            Wanted::Least(least) => value >= least,
        });
        Line { name: name.into(), unit, value, floor_ns, over_floor, wanted, reached, flows: None, values: Vec::new(), floors: Vec::new() }
    }

    pub fn print(&self) {
        let optional = |v: Option<f64>, digits: usize| v.map_or(String::new(), |v| format!("{v:.digits$}"));
        let wanted = match self.wanted {
            None => String::new(),
            Some(Wanted::Most(most)) => format!("<= {most}"),
            Some(Wanted::MostAndFloors(most, times)) => format!("<= {most}, <= {times}x"),
            Some(Wanted::MostFloors(times)) => format!("<= {times}x"),
            Some(Wanted::Least(least)) => format!(">= {least}"),
        };
        let reached = self.reached.map_or("", |r| if r { "reached" } else { "not reached" });
        let digits = if self.unit == "ratio" { 4 } else { 1 };
        let (value, unit) = (format!("{:.digits$}", self.value), self.unit);
        let (floor, over) = (optional(self.floor_ns, 1), optional(self.over_floor, 2));
        println!("{:<46} {value:>9} {unit:<8}{floor:>7}{over:>8}  {wanted:<16} {reached}", self.name);
    }
}

pub fn heading(text: &str) {
    println!("\n{text:<46} {:>9} {:<8}{:>7}{:>8}  {:<16}", "", "", "floor", "x floor", "wanted");
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

#[derive(Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cpus: usize,
    pub kernel: String,
}

impl Machine {
    pub fn here() -> Machine {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|l| l.strip_prefix("model name")).map(|l| l.trim_start_matches([' ', '\t', ':']).to_string());
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_string();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Machine { cpu: model.unwrap_or_else(|| "unknown".into()), cpus, kernel }
    }
}
