//! The content of plots; [`super::draw`] draws them.

use super::number::Quantity;
use crate::results::SubjectKind;

/// The most lines and rows of a plot; the section mentions the omitted ones.
pub const LINES_MAX: usize = 10;
pub const ROWS_MAX: usize = 24;

/// Colour and shape show the kind of subject, dashes distinguish subjects of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Style {
    /// 0 to 6.
    pub colour: usize,
    pub dash: usize,
}

impl Style {
    pub fn of(kind: SubjectKind) -> Style {
        let colour = match kind {
            SubjectKind::Nomagic => 0,
            SubjectKind::NoWork => 1,
            SubjectKind::Nftables => 2,
            SubjectKind::Iptables => 3,
            SubjectKind::Routing => 4,
            SubjectKind::Direct => 5,
        };
        Style { colour, dash: 0 }
    }
}

/// How values lie on an axis.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AxisKind {
    /// From zero.
    Linear,
    /// As close around the values as possible.
    Close,
    Log,
    /// Percentiles, logarithmic in the share of slower frames: p90, p99 and p99.9 are equally far apart.
    Percentile,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Axis {
    pub kind: AxisKind,
    pub quantity: Quantity,
    pub label: String,
}

impl Axis {
    pub fn new(kind: AxisKind, quantity: Quantity, label: &str) -> Axis {
        Axis { kind, quantity, label: label.into() }
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Point {
    pub x: f64,
    pub y: f64,
    /// Drawn as a whisker.
    pub interval: Option<(f64, f64)>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Line {
    pub label: String,
    pub style: Style,
    /// In the order of `x`.
    pub points: Vec<Point>,
    /// With a mark at every point.
    pub marks: bool,
}

/// A value that does not depend on the horizontal axis.
#[derive(Clone, PartialEq, Debug)]
pub struct Level {
    pub label: String,
    pub style: Style,
    pub y: f64,
    /// Drawn as a band.
    pub interval: Option<(f64, f64)>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct LinePlot {
    pub title: String,
    /// For readers who do not see the plot.
    pub description: String,
    pub x: Axis,
    pub y: Axis,
    pub lines: Vec<Line>,
    pub levels: Vec<Level>,
    /// Events on the horizontal axis.
    pub events: Vec<f64>,
    pub event: String,
    /// Values that the vertical axis includes besides its own, so that neighbouring plots have the same axis.
    pub include: Vec<f64>,
    /// Height of the plotting area, in pixels.
    pub height: u32,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Marks {
    /// The parts of a stacked bar, with the interval of their sum.
    Bar {
        parts: Vec<f64>,
        interval: Option<(f64, f64)>,
    },
    /// Single values as dots, the median as a mark, the interval as a whisker.
    Dots {
        values: Vec<f64>,
        median: f64,
        interval: Option<(f64, f64)>,
    },
    Nothing,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    pub label: String,
    pub style: Style,
    pub marks: Marks,
    /// The value in words, at the right.
    pub value: String,
}

#[derive(Clone, PartialEq, Debug)]
pub struct RowPlot {
    pub title: String,
    pub description: String,
    pub x: Axis,
    pub rows: Vec<Row>,
    /// Names of the parts of bars, if they have several.
    pub parts: Vec<String>,
    /// A value to compare all rows with, and its name.
    pub reference: Option<(f64, String)>,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Plot {
    Lines(LinePlot),
    Rows(RowPlot),
}

impl Plot {
    pub fn title(&self) -> &str {
        match self {
            Plot::Lines(p) => &p.title,
            Plot::Rows(p) => &p.title,
        }
    }

    pub fn description(&self) -> &str {
        match self {
            Plot::Lines(p) => &p.description,
            Plot::Rows(p) => &p.description,
        }
    }
}

impl Marks {
    /// All values that the axis must include.
    pub fn values(&self) -> Vec<f64> {
        let (mut values, interval) = match self {
            Marks::Bar { parts, interval } => (vec![parts.iter().sum()], interval),
            Marks::Dots { values, median, interval } => (values.iter().copied().chain([*median]).collect(), interval),
            Marks::Nothing => return Vec::new(),
        };
        values.extend(interval.iter().flat_map(|(low, high)| [*low, *high]));
        values
    }
}
