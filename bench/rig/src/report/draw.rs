//! Plots as SVG, drawn by plotters.

mod lines;
mod rows;
mod scale;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::plot::{Plot, Style};

/// Widths in pixels: on a page next to a table, and in a separate file.
pub const BESIDE_TABLE: u32 = 560;
const ALONE: u32 = 720;

const GROUND: RGBColor = RGBColor(0xff, 0xff, 0xff);
const TEXT: RGBColor = RGBColor(0x1b, 0x1f, 0x24);
const MUTED: RGBColor = RGBColor(0x57, 0x60, 0x6a);
const GRID: RGBColor = RGBColor(0xe6, 0xe9, 0xed);
const AXIS: RGBColor = RGBColor(0x8c, 0x95, 0x9f);
/// One for each kind of subject, and a grey; colour-blind readers can tell them apart.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x00, 0x62, 0xb1),
    RGBColor(0x5b, 0x65, 0x70),
    RGBColor(0xc0, 0x3a, 0x00),
    RGBColor(0x9a, 0x3f, 0xb0),
    RGBColor(0x00, 0x74, 0x5a),
    RGBColor(0x80, 0x60, 0x00),
    RGBColor(0x4a, 0x52, 0x5b),
];

/// Font size as plotters counts it; 12 pixels in the SVG.
const FONT: f64 = 15.0;
/// About the width of a character, in pixels.
const CHARACTER: u32 = 7;
const LINE: u32 = 18;
const HEADING: u32 = 26;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// plotters' errors borrow the drawing; their text is enough.
type Drawn<'a> = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// One plot as an `svg` element of this width.
pub fn element(plot: &Plot, width: u32) -> Result<String> {
    draw(std::slice::from_ref(plot), width)
}

/// Plots below each other as an SVG file.
pub fn file(plots: &[Plot]) -> Result<String> {
    draw(plots, ALONE)
}

fn draw(plots: &[Plot], width: u32) -> Result<String> {
    let heights: Vec<u32> = plots.iter().map(|p| height(p, width)).collect();
    let mut svg = String::new();
    {
        let mut rest = SVGBackend::with_string(&mut svg, (width, heights.iter().sum())).into_drawing_area();
        let bold = ("sans-serif", FONT, FontStyle::Bold).into_font().color(&TEXT);
        let mut all = || -> Drawn<'_> {
            rest.fill(&GROUND)?;
            for (plot, height) in plots.iter().zip(&heights) {
                let (area, below) = rest.split_vertically(*height);
                area.draw_text(&fit(plot.title(), width - 16), &bold, (8, 8))?;
                let (_, area) = area.split_vertically(HEADING);
                match plot {
                    Plot::Lines(p) => lines::draw(p, &area)?,
                    Plot::Rows(p) => rows::draw(p, &area)?,
                }
                rest = below;
            }
            rest.present()
        };
        all().map_err(|e| anyhow!("cannot draw: {e}"))?;
    }
    Ok(svg)
}

fn height(plot: &Plot, width: u32) -> u32 {
    HEADING
        + match plot {
            Plot::Lines(p) => lines::height(p, width),
            Plot::Rows(p) => rows::height(p, width),
        }
}

fn colour(style: Style) -> RGBColor {
    COLOURS[style.colour % COLOURS.len()]
}

fn text(colour: RGBColor) -> TextStyle<'static> {
    ("sans-serif", FONT).into_font().color(&colour)
}

fn width_of(text: &str) -> u32 {
    text.chars().count() as u32 * CHARACTER
}

/// The text without control characters, cut to about this width.
fn fit(text: &str, width: u32) -> String {
    let characters = (width / CHARACTER) as usize;
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    if text.chars().count() <= characters {
        return clean.collect();
    }
    clean.take(characters.saturating_sub(1)).chain(['…']).collect()
}

/// Corners of the mark of a kind of subject around its place: each kind has another shape, so that readers need not tell colours.
fn marker(shape: usize, size: i32) -> Vec<(i32, i32)> {
    let third = (size / 3).max(1);
    match shape {
        1 => vec![(-size, -size), (size, -size), (size, size), (-size, size)],
        2 => vec![(0, -size - 1), (size + 1, 0), (0, size + 1), (-size - 1, 0)],
        3 => vec![(0, -size), (size, size), (-size, size)],
        4 => vec![(0, size), (size, -size), (-size, -size)],
        5 => {
            let arm = [(-size, -third), (-third, -third), (-third, -size)];
            let turn = |(x, y): (i32, i32), n: i32| if n == 0 { (x, y) } else { (-x, y) };
            let upper = arm.into_iter().chain(arm.into_iter().rev().map(|p| turn(p, 1)));
            let lower: Vec<(i32, i32)> = upper.clone().map(|(x, y)| (x, -y)).rev().collect();
            upper.chain(lower).collect()
        }
        _ => (0..12).map(|n| f64::from(n) * std::f64::consts::TAU / 12.0).map(|a| around(a, size)).collect(),
    }
}

fn around(angle: f64, size: i32) -> (i32, i32) {
    ((angle.cos() * f64::from(size)).round() as i32, (angle.sin() * f64::from(size)).round() as i32)
}

/// Where the items of a legend stand, in as many lines as they need, and the height of all.
fn legend_places(labels: &[&str], width: u32) -> (Vec<(i32, i32)>, u32) {
    let (mut x, mut y) = (8, 0);
    let places = labels.iter().map(|label| {
        let needed = width_of(label) + 28;
        if x > 8 && x + needed > width {
            (x, y) = (8, y + LINE);
        }
        let place = (x as i32, y as i32);
        x += needed;
        place
    });
    let places: Vec<_> = places.collect();
    let height = if labels.is_empty() { 0 } else { y + LINE + 6 };
    (places, height)
}
