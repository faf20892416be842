//! Lines over an axis, with intervals, levels and events.

use super::plot::{AXIS_HEIGHT, Axis, HEADING, LINE, PAD, Style, horizontal_axis, legend};
use super::scale::Scale;
use super::svg::{Anchor, Svg, fit, text_width};

/// Lines and levels of a plot at the most; whoever makes one says what was left out.
pub const LINES_MAX: usize = 10;
/// From this width on lines are labelled at their ends instead of by a legend.
const DIRECT_LABELS_FROM: f64 = 500.0;

/// A place on a line.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Point {
    /// Along.
    pub x: f64,
    /// Up.
    pub y: f64,
    /// The interval, drawn as a whisker.
    pub interval: Option<(f64, f64)>,
}

/// A line.
#[derive(Clone, PartialEq, Debug)]
pub struct Line {
    /// Its name.
    pub label: String,
    /// Its looks.
    pub style: Style,
    /// In the order of `x`.
    pub points: Vec<Point>,
    /// With a mark at every point.
    pub marks: bool,
}

/// A value that does not depend on the axis: a level line.
#[derive(Clone, PartialEq, Debug)]
pub struct Level {
    /// Its name.
    pub label: String,
    /// Its looks.
    pub style: Style,
    /// Where.
    pub y: f64,
    /// The interval, drawn as a band.
    pub interval: Option<(f64, f64)>,
}

/// Lines over an axis.
#[derive(Clone, PartialEq, Debug)]
pub struct LinePlot {
    /// Heading.
    pub title: String,
    /// What it shows, for those who do not see it.
    pub description: String,
    /// Along.
    pub x: Axis,
    /// Up.
    pub y: Axis,
    /// The lines.
    pub lines: Vec<Line>,
    /// The levels.
    pub levels: Vec<Level>,
    /// Places at which something happened, and what.
    pub events: Vec<f64>,
    /// Name of the events.
    pub event: String,
    /// Values that the vertical axis shows beside its own: plots beside each other have the same.
    pub include: Vec<f64>,
    /// Height of the lines' area.
    pub height: f64,
}

impl LinePlot {
    /// Draws below the heading; returns the height of all.
    pub fn draw(&self, svg: &mut Svg, width: f64) -> f64 {
        let values = self.lines.iter().flat_map(|l| &l.points).flat_map(|p| spread(p.y, p.interval));
        let levels = self.levels.iter().flat_map(|l| spread(l.y, l.interval));
        let y = Scale::covering(self.y.kind, values.chain(levels).chain(self.include.iter().copied()));
        let places = self.lines.iter().flat_map(|l| &l.points).map(|p| p.x).chain(self.events.iter().copied());
        let x = Scale::covering(self.x.kind, places);

        let items: Vec<(Style, &str)> =
            self.lines.iter().map(|l| (l.style, l.label.as_str())).chain(self.levels.iter().map(|l| (l.style, l.label.as_str()))).collect();
        let direct = width >= DIRECT_LABELS_FROM && items.len() as f64 * LINE <= self.height && items.len() > 1;
        let widest = items.iter().map(|i| text_width(i.1)).fold(0.0, f64::max);
        let margin = if direct { (widest + 26.0).min(width * 0.4) } else { 14.0 };
        let mut top = PAD + HEADING;
        if !direct && items.len() > 1 {
            top += legend(svg, &items, (PAD, top), width - 2.0 * PAD);
        }
        top += LINE + 5.0 + if self.events.is_empty() { 0.0 } else { LINE };
        let bottom = top + self.height;

        let y = y.between(bottom, top);
        let ticks = self.y.ticks(&y, (self.height / 34.0) as usize);
        let left = PAD + ticks.iter().map(|t| text_width(&t.1)).fold(0.0, f64::max) + 8.0;
        let right = width - PAD - margin;
        svg.text(
            "m",
            (PAD, top - 14.0 - if self.events.is_empty() { 0.0 } else { LINE }),
            Anchor::Start,
            &fit(&self.y.title(&y), right - PAD),
        );
        for (value, label) in ticks {
            svg.line("grid", (left, y.at(value)), (right, y.at(value)));
            svg.text("m", (left - 6.0, y.at(value) + 4.0), Anchor::End, &label);
        }
        // Marks at the ends do not lie on the frame.
        let inset = if self.lines.iter().any(|l| l.marks) { 12.0 } else { 0.0 };
        let x = x.between(left + inset, right - inset);
        horizontal_axis(svg, &self.x, &x, (left, right), (top, bottom));
        svg.line("axis", (left, bottom), (right, bottom));

        self.draw_events(svg, &x, (left, right), (top, bottom));
        self.draw_levels(svg, &y, (left, right));
        self.draw_lines(svg, &x, &y);
        if direct {
            self.label_ends(svg, &x, &y, (right, margin), (top, bottom));
        }
        bottom + AXIS_HEIGHT
    }

    fn draw_events(&self, svg: &mut Svg, x: &Scale, (left, right): (f64, f64), (top, bottom): (f64, f64)) {
        for &event in &self.events {
            svg.line("event", (x.at(event), top - 4.0), (x.at(event), bottom));
        }
        if let Some(&first) = self.events.first() {
            let at = x.at(first);
            let (anchor, room) = if at < f64::midpoint(left, right) { (Anchor::Start, right - at) } else { (Anchor::End, at - left) };
            svg.text("t", (at, top - 9.0), anchor, &fit(&self.event, room));
        }
    }

    fn draw_levels(&self, svg: &mut Svg, y: &Scale, (left, right): (f64, f64)) {
        for level in &self.levels {
            if let Some((low, high)) = level.interval {
                svg.rect(&level.style.class("band"), (left, y.at(high)), (right - left, y.at(low) - y.at(high)));
            }
            svg.line(&format!("{} level", level.style.class("line")), (left, y.at(level.y)), (right, y.at(level.y)));
        }
    }

    fn draw_lines(&self, svg: &mut Svg, x: &Scale, y: &Scale) {
        let middle = self.lines.len().saturating_sub(1) as f64 / 2.0;
        for (i, line) in self.lines.iter().enumerate() {
            svg.path(&line.style.class("line"), line.points.iter().map(|p| (x.at(p.x), y.at(p.y))));
            if !line.marks {
                continue;
            }
            for p in &line.points {
                if let Some((low, high)) = p.interval {
                    // Whiskers at one place stand beside each other.
                    let at = x.at(p.x) + (i as f64 - middle) * 3.0;
                    svg.line(&line.style.class("whisker"), (at, y.at(low)), (at, y.at(high)));
                    for end in [low, high] {
                        svg.line(&line.style.class("whisker"), (at - 3.0, y.at(end)), (at + 3.0, y.at(end)));
                    }
                }
                svg.marker(&line.style.class("mark"), line.style.colour, (x.at(p.x), y.at(p.y)), 4.0);
            }
        }
    }

    /// Writes the names at the lines' ends, moved apart where they would lie on each other.
    fn label_ends(&self, svg: &mut Svg, x: &Scale, y: &Scale, (right, margin): (f64, f64), (top, bottom): (f64, f64)) {
        let lines = self.lines.iter().filter_map(|l| l.points.last().map(|p| (x.at(p.x), y.at(p.y), l.style, l.label.as_str())));
        let mut ends: Vec<_> = lines.chain(self.levels.iter().map(|l| (right, y.at(l.y), l.style, l.label.as_str()))).collect();
        ends.sort_by(|a, b| a.1.total_cmp(&b.1));
        let places = apart(&ends.iter().map(|e| e.1).collect::<Vec<_>>(), LINE, (top, bottom));
        for ((from, at, style, label), place) in ends.into_iter().zip(places) {
            // A line that ends early has none: it would look like more of it.
            if from > right - 30.0 {
                svg.line(&style.class("leader"), (from.max(right - 12.0), at), (right + 6.0, place));
            }
            svg.marker(&style.class("mark"), style.colour, (right + 12.0, place), 4.0);
            svg.text("t", (right + 21.0, place + 4.0), Anchor::Start, &fit(label, margin - 21.0));
        }
    }
}

/// What a value takes of an axis.
fn spread(value: f64, interval: Option<(f64, f64)>) -> [f64; 3] {
    let (low, high) = interval.unwrap_or((value, value));
    [value, low, high]
}

/// Moves sorted places as little as needed so that each is `gap` from the next, all between the two ends if they have room.
fn apart(wanted: &[f64], gap: f64, (first, last): (f64, f64)) -> Vec<f64> {
    let mut places = wanted.to_vec();
    let mut least = first;
    for place in &mut places {
        *place = place.max(least);
        least = *place + gap;
    }
    let mut most = last;
    for place in places.iter_mut().rev() {
        *place = place.min(most);
        most = *place - gap;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_moved_apart() {
        for (wanted, places) in [
            (vec![10.0, 50.0], vec![10.0, 50.0]),
            (vec![10.0, 12.0, 14.0], vec![10.0, 20.0, 30.0]),
            (vec![95.0, 99.0], vec![90.0, 100.0]),
            (vec![-5.0, 120.0], vec![0.0, 100.0]),
        ] {
            assert_eq!(apart(&wanted, 10.0, (0.0, 100.0)), places, "{wanted:?}");
        }
    }
}
