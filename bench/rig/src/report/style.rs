//! The looks of drawings, and a plot as a file of its own.

use super::plot::Plot;
use std::fmt::Write;

/// How the elements of a drawing look; light, and dark where that is preferred.
pub const CHART_CSS: &str = include_str!("chart.css");
/// How the page around them looks.
pub const PAGE_CSS: &str = include_str!("page.css");

/// Width of a plot as a file, in pixels.
const WIDTH: f64 = 720.0;

/// Plots below each other as one SVG file. It brings its own ground, so that it can be read on pages of any colour.
pub fn standalone(plots: &[Plot]) -> String {
    let mut body = String::new();
    let mut names = Vec::new();
    let mut height = 0.0;
    for plot in plots {
        let drawing = plot.draw(WIDTH);
        let _ = write!(body, "<g transform=\"translate(0 {height:.0})\">\n{}</g>\n", drawing.svg.body());
        height += drawing.height + 8.0;
        names.push(plot.title());
    }
    let (title, css) = (super::svg::escape(&names.join("; ")), CHART_CSS);
    let descriptions: Vec<&str> = plots.iter().map(Plot::description).collect();
    let description = super::svg::escape(&descriptions.join(" "));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" aria-labelledby=\"t d\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
         height=\"{height:.0}\">\n<title id=\"t\">{title}</title><desc id=\"d\">{description}</desc>\n<style>\n{css}.ground {{ fill: var(--ground); }}\n</style>\n\
         <rect class=\"ground\" width=\"{WIDTH}\" height=\"{height:.0}\" rx=\"6\"/>\n{body}</svg>\n"
    )
}
