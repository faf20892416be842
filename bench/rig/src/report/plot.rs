//! What all plots have in common: their frame, their words, who has which colour and shape.

use super::line::LinePlot;
use super::number::{Quantity, short};
use super::row::RowPlot;
use super::scale::{Kind, Scale};
use super::svg::{Anchor, FONT, Svg, escape, fit, text_width};
use crate::results::SubjectKind;

/// Width of a drawing beside its table, in pixels.
pub const WIDE: f64 = 520.0;
/// Width of the same drawing on a telephone.
pub const NARROW: f64 = 350.0;
/// From a line of text to the next.
pub const LINE: f64 = 17.0;
/// Height that a plot's heading takes.
pub const HEADING: f64 = 24.0;
/// Space around all.
pub const PAD: f64 = 8.0;

/// How something is drawn: colour and shape say the kind of subject, dashes tell several of a kind apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Style {
    /// Colour and shape, 0 to 5.
    pub colour: usize,
    /// Dashes, 0 (none) to 3.
    pub dash: usize,
}

impl Style {
    /// That of a kind of subject.
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

    /// Classes: of what is drawn and the colour.
    pub fn class(self, what: &str) -> String {
        let dash = if what == "line" && self.dash > 0 { format!(" d{}", self.dash % 4) } else { String::new() };
        format!("{what} k{}{dash}", self.colour)
    }
}

/// An axis.
#[derive(Clone, PartialEq, Debug)]
pub struct Axis {
    /// How values lie on it.
    pub kind: Kind,
    /// What they are.
    pub quantity: Quantity,
    /// Its name, without the unit.
    pub label: String,
}

impl Axis {
    /// An axis of this name.
    pub fn new(kind: Kind, quantity: Quantity, label: &str) -> Axis {
        Axis { kind, quantity, label: label.into() }
    }

    fn divisor(&self, scale: &Scale) -> (f64, &'static str) {
        match self.kind {
            Kind::Log | Kind::Percentile => (1.0, self.quantity.base_unit()),
            Kind::Linear | Kind::Close => self.quantity.unit(scale.low.abs().max(scale.high.abs())),
        }
    }

    /// Its name with the unit in which [`Axis::ticks`] are written.
    pub fn title(&self, scale: &Scale) -> String {
        match self.divisor(scale).1 {
            "" => self.label.clone(),
            unit => format!("{} ({unit})", self.label),
        }
    }

    /// Values to mark, with their labels.
    pub fn ticks(&self, scale: &Scale, most: usize) -> Vec<(f64, String)> {
        let (divisor, _) = self.divisor(scale);
        let decimals = scale.decimals(most, divisor);
        let label = |v: f64| match self.kind {
            Kind::Percentile => format!("p{v}"),
            Kind::Log => short(v),
            Kind::Linear | Kind::Close => match v / divisor {
                shown if shown.abs() >= 10_000.0 => short(shown),
                shown => format!("{:.decimals$}", shown + 0.0),
            },
        };
        scale.ticks(most).into_iter().map(|v| (v, label(v))).collect()
    }
}

/// A plot, not yet of any size.
#[derive(Clone, PartialEq, Debug)]
pub enum Plot {
    /// Lines over an axis.
    Lines(LinePlot),
    /// A row for each thing.
    Rows(RowPlot),
}

/// A drawn plot.
pub struct Drawing {
    /// Its elements.
    pub svg: Svg,
    /// Its height; the width was given.
    pub height: f64,
}

impl Plot {
    /// Its heading.
    pub fn title(&self) -> &str {
        match self {
            Plot::Lines(p) => &p.title,
            Plot::Rows(p) => &p.title,
        }
    }

    /// What it shows, in a sentence, for those who do not see it.
    pub fn description(&self) -> &str {
        match self {
            Plot::Lines(p) => &p.description,
            Plot::Rows(p) => &p.description,
        }
    }

    /// Draws it `width` pixels wide.
    pub fn draw(&self, width: f64) -> Drawing {
        let mut svg = Svg::default();
        svg.text("h", (PAD, PAD + FONT), Anchor::Start, &fit(self.title(), (width - 2.0 * PAD) / 1.1));
        let height = match self {
            Plot::Lines(p) => p.draw(&mut svg, width),
            Plot::Rows(p) => p.draw(&mut svg, width),
        };
        Drawing { svg, height }
    }

    /// An `svg` element for a page that has the styles; `id` is unique in it.
    pub fn element(&self, id: &str, width: f64) -> String {
        let Drawing { svg, height } = self.draw(width);
        let (title, description) = (escape(self.title()), escape(self.description()));
        format!(
            "<svg role=\"img\" aria-labelledby=\"{id}-t {id}-d\" viewBox=\"0 0 {width} {height:.0}\" width=\"{width}\" height=\"{height:.0}\">\n\
             <title id=\"{id}-t\">{title}</title><desc id=\"{id}-d\">{description}</desc>\n{}</svg>\n",
            svg.body()
        )
    }
}

/// Names with their marks in as many lines as they need. Returns the height of them.
pub fn legend(svg: &mut Svg, items: &[(Style, &str)], (left, top): (f64, f64), width: f64) -> f64 {
    const MARK: f64 = 16.0;
    let (mut x, mut y) = (left, top);
    for (style, label) in items {
        let label = fit(label, width - MARK);
        let needed = MARK + text_width(&label) + 12.0;
        if x > left && x + needed > left + width + 12.0 {
            (x, y) = (left, y + LINE);
        }
        svg.marker(&style.class("mark"), style.colour, (x + 5.0, y + 8.0), 4.0);
        svg.text("t", (x + MARK, y + 12.0), Anchor::Start, &label);
        x += needed;
    }
    if items.is_empty() { 0.0 } else { y + LINE - top + 5.0 }
}

/// The horizontal axis: ticks, grid, labels and its name below.
pub fn horizontal_axis(svg: &mut Svg, axis: &Axis, scale: &Scale, (left, right): (f64, f64), (top, bottom): (f64, f64)) {
    let apart = if axis.kind == Kind::Log { 44.0 } else { 62.0 };
    let ticks = axis.ticks(scale, ((right - left) / apart) as usize);
    let mut free = f64::NEG_INFINITY;
    for (value, label) in ticks {
        let x = scale.at(value);
        svg.line("grid", (x, top), (x, bottom));
        let half = text_width(&label) / 2.0;
        let middle = x.max(half);
        // A label that would touch its neighbour is left out, its line stays.
        if middle - half >= free {
            svg.text("m", (middle, bottom + 19.0), Anchor::Middle, &label);
            free = middle + half + 4.0;
        }
    }
    svg.text("m", (f64::midpoint(left, right), bottom + 36.0), Anchor::Middle, &fit(&axis.title(scale), right - left + 40.0));
}

/// Height of the labels of a [`horizontal_axis`].
pub const AXIS_HEIGHT: f64 = 46.0;
