//! A row for each thing: bars from zero, or values with their median and interval.

use super::plot::{AXIS_HEIGHT, Axis, HEADING, LINE, PAD, Style, horizontal_axis};
use super::scale::Scale;
use super::svg::{Anchor, Svg, fit, text_width};

/// Rows of a plot at the most; whoever makes one says what was left out.
pub const ROWS_MAX: usize = 24;
/// Below this width, and if they are long, names stand above their marks instead of beside them.
const NAMES_BESIDE_FROM: f64 = 500.0;

/// What a row shows.
#[derive(Clone, PartialEq, Debug)]
pub enum Marks {
    /// Parts of a bar from zero on, with the interval of their sum.
    Bar {
        /// Their lengths.
        parts: Vec<f64>,
        /// The interval.
        interval: Option<(f64, f64)>,
    },
    /// Single values as dots, the median as a mark, the interval as a whisker.
    Dots {
        /// Single values.
        values: Vec<f64>,
        /// Their median.
        median: f64,
        /// Its interval.
        interval: Option<(f64, f64)>,
    },
    /// Not measured.
    Nothing,
}

/// One row.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    /// Its name.
    pub label: String,
    /// Its looks.
    pub style: Style,
    /// What it shows.
    pub marks: Marks,
    /// The same in words, at the right.
    pub value: String,
}

/// Rows over an axis.
#[derive(Clone, PartialEq, Debug)]
pub struct RowPlot {
    /// Heading.
    pub title: String,
    /// What it shows, for those who do not see it.
    pub description: String,
    /// Along.
    pub x: Axis,
    /// The rows.
    pub rows: Vec<Row>,
    /// Names of the parts of bars, if they have several.
    pub parts: Vec<String>,
    /// A value that all are compared with, and its name.
    pub reference: Option<(f64, String)>,
}

impl RowPlot {
    /// Draws below the heading; returns the height of all.
    pub fn draw(&self, svg: &mut Svg, width: f64) -> f64 {
        let mut top = PAD + HEADING;
        top += self.draw_parts(svg, (PAD, top), width - 2.0 * PAD);
        if self.reference.is_some() {
            top += LINE;
        }
        let widest = |texts: &mut dyn Iterator<Item = &String>| texts.map(|t| text_width(t)).fold(0.0, f64::max);
        let names = widest(&mut self.rows.iter().map(|r| &r.label));
        let beside = width >= NAMES_BESIDE_FROM && names <= width * 0.36;
        let values = widest(&mut self.rows.iter().map(|r| &r.value)).min(width * 0.3);
        let left = PAD + if beside { names + 12.0 } else { 0.0 };
        let right = width - PAD - values - 12.0;
        let row_height = if beside { 26.0 } else { 40.0 };
        let bottom = top + row_height * self.rows.len() as f64 + 4.0;

        let inset = 9.0;
        let from = if self.rows.iter().any(|r| matches!(r.marks, Marks::Bar { .. })) { left } else { left + inset };
        let reference = self.reference.iter().map(|r| r.0);
        let x = Scale::covering(self.x.kind, self.rows.iter().flat_map(|r| r.marks.values()).chain(reference)).between(from, right - inset);
        horizontal_axis(svg, &self.x, &x, (left, right), (top, bottom));
        if let Some((value, name)) = &self.reference {
            svg.line("event", (x.at(*value), top - 4.0), (x.at(*value), bottom));
            let (anchor, room) = if x.at(*value) < f64::midpoint(left, right) {
                (Anchor::Start, right - x.at(*value))
            } else {
                (Anchor::End, x.at(*value) - left)
            };
            svg.text("m", (x.at(*value), top - 8.0), anchor, &fit(name, room));
        }
        svg.line("axis", (left, top), (left, bottom));
        for (i, row) in self.rows.iter().enumerate() {
            let row_top = top + row_height * i as f64 + 2.0;
            let middle = row_top + if beside { 13.0 } else { 28.0 };
            if beside {
                svg.text("t", (left - 10.0, middle + 4.0), Anchor::End, &fit(&row.label, names));
            } else {
                svg.text("t halo", (left + 4.0, row_top + 14.0), Anchor::Start, &fit(&row.label, width - 2.0 * PAD - 4.0));
            }
            row.draw(svg, &x, middle);
            let class = if row.marks == Marks::Nothing { "m" } else { "t" };
            svg.text(class, (width - PAD, middle + 4.0), Anchor::End, &fit(&row.value, values));
        }
        bottom + AXIS_HEIGHT
    }

    /// The legend of the parts: the same greys for every colour of bar.
    fn draw_parts(&self, svg: &mut Svg, (left, top): (f64, f64), width: f64) -> f64 {
        let (mut x, mut y) = (left, top);
        for (i, part) in self.parts.iter().enumerate() {
            let part = fit(part, width - 20.0);
            let needed = 20.0 + text_width(&part) + 12.0;
            if x > left && x + needed > left + width + 12.0 {
                (x, y) = (left, y + LINE);
            }
            svg.rect(&format!("bar k6 f{i}"), (x + 0.5, y + 2.5), (12.0, 11.0));
            svg.text("t", (x + 18.0, y + 12.0), Anchor::Start, &part);
            x += needed;
        }
        if self.parts.is_empty() { 0.0 } else { y + LINE - top + 6.0 }
    }
}

impl Row {
    fn draw(&self, svg: &mut Svg, x: &Scale, y: f64) {
        match &self.marks {
            Marks::Bar { parts, interval } => {
                let mut sum = 0.0;
                for (i, part) in parts.iter().enumerate() {
                    let from = x.at(sum);
                    sum += part;
                    svg.rect(&format!("{} f{i}", self.style.class("bar")), (from, y - 7.0), (x.at(sum) - from, 14.0));
                }
                self.whisker(svg, x, y, *interval, "whisker over");
            }
            Marks::Dots { values, median, interval } => {
                for v in values {
                    svg.marker(&self.style.class("dot"), 0, (x.at(*v), y), 3.0);
                }
                self.whisker(svg, x, y, *interval, "whisker");
                svg.marker(&self.style.class("mark"), self.style.colour, (x.at(*median), y), 4.5);
            }
            Marks::Nothing => {}
        }
    }

    fn whisker(&self, svg: &mut Svg, x: &Scale, y: f64, interval: Option<(f64, f64)>, class: &str) {
        if let Some((low, high)) = interval {
            let class = self.style.class(class);
            svg.line(&class, (x.at(low), y), (x.at(high), y));
            for end in [low, high] {
                svg.line(&class, (x.at(end), y - 4.0), (x.at(end), y + 4.0));
            }
        }
    }
}

impl Marks {
    /// All that the axis must show.
    fn values(&self) -> Vec<f64> {
        let (mut values, interval) = match self {
            Marks::Bar { parts, interval } => (vec![parts.iter().sum()], interval),
            Marks::Dots { values, median, interval } => (values.iter().copied().chain([*median]).collect(), interval),
            Marks::Nothing => return Vec::new(),
        };
        values.extend(interval.iter().flat_map(|(low, high)| [*low, *high]));
        values
    }
}
