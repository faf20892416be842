//! A row for each subject: a bar from zero, or values with their median and interval.

use plotters::prelude::*;

use super::scale::{Places, Scale};
use super::{AXIS, Area, Drawn, GRID, LINE, MUTED, TEXT, colour, fit, legend_places, marker, text, width_of};
use crate::report::plot::{Marks, Row, RowPlot};

const ROW: u32 = 28;
const AXIS_HEIGHT: u32 = 44;
/// How solid the parts of a bar are, from the first on.
const SHADES: [f64; 4] = [1.0, 0.55, 0.25, 0.1];

pub fn height(plot: &RowPlot, width: u32) -> u32 {
    top(plot, width) + ROW * plot.rows.len() as u32 + AXIS_HEIGHT
}

/// The legend of the parts, and the name of the reference.
fn top(plot: &RowPlot, width: u32) -> u32 {
    let labels: Vec<&str> = plot.parts.iter().map(String::as_str).collect();
    legend_places(&labels, width).1 + if plot.reference.is_some() { LINE } else { 0 }
}

pub fn draw<'a>(plot: &RowPlot, area: &Area<'a>) -> Drawn<'a> {
    let width = area.dim_in_pixel().0;
    let (legend, area) = area.split_vertically(top(plot, width));
    draw_parts(plot, &legend, width)?;

    let widest = |texts: &mut dyn Iterator<Item = &String>, most: u32| texts.map(|t| width_of(t)).max().unwrap_or(0).min(most);
    let names = widest(&mut plot.rows.iter().map(|r| &r.label), width / 2);
    let values = widest(&mut plot.rows.iter().map(|r| &r.value), width / 5);
    let reference = plot.reference.iter().map(|r| r.0);
    let x = Scale::covering(
        &plot.x,
        plot.rows.iter().flat_map(|r| r.marks.values()).chain(reference),
        ((width - names - values) / 70) as usize,
    );
    // The first row is on top.
    let count = plot.rows.len();
    let row_at = |i: usize| (count - i) as f64 - 0.5;
    let places: Vec<f64> = (0..count).map(row_at).collect();
    let mut chart = ChartBuilder::on(&area)
        .margin_left(8)
        .margin_right(values + 20)
        .x_label_area_size(AXIS_HEIGHT)
        .y_label_area_size(names + 12)
        .build_cartesian_2d(x.places(), Places { range: 0.0..count as f64, ticks: places })?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(AXIS)
        .label_style(text(MUTED))
        .y_label_style(text(TEXT))
        .x_desc(x.title())
        .x_label_formatter(&|v| x.label(*v))
        .y_label_formatter(&|v| plot.rows.get(count - (v + 0.5).round() as usize).map_or(String::new(), |r| fit(&r.label, names)))
        .draw()?;
    if let Some((value, name)) = &plot.reference {
        chart.draw_series(DashedLineSeries::new([(x.at(*value), 0.0), (x.at(*value), count as f64)], 2, 3, TEXT.stroke_width(1)))?;
        let name = fit(name, width / 2);
        let left = if x.at(*value) < x.middle() { 3 } else { -(width_of(&name) as i32) };
        chart.draw_series([EmptyElement::at((x.at(*value), count as f64)) + Text::new(name, (left, -16), text(MUTED))])?;
    }
    for (i, row) in plot.rows.iter().enumerate() {
        let y = row_at(i);
        let (bars, dots) = shapes(row, &x, y);
        chart.draw_series(bars)?;
        chart.draw_series(dots.into_iter().map(|(at, corners, style)| EmptyElement::at((at, y)) + Polygon::new(corners, style)))?;
        if let Marks::Bar { interval: Some((low, high)), .. } | Marks::Dots { interval: Some((low, high)), .. } = &row.marks {
            let (low, high) = (x.at(*low), x.at(*high));
            let stroke = if matches!(row.marks, Marks::Bar { .. }) { TEXT } else { colour(row.style) };
            chart.draw_series([ErrorBar::new_horizontal(y, low, f64::midpoint(low, high), high, stroke.stroke_width(1), 8)])?;
        }
        let shade = if row.marks == Marks::Nothing { MUTED } else { TEXT };
        chart.draw_series([EmptyElement::at((x.last(), y)) + Text::new(fit(&row.value, values), (8, -7), text(shade))])?;
    }
    Ok(())
}

/// The parts of a row's bar, and its dots: place, corners and style.
type Shapes = (Vec<Rectangle<(f64, f64)>>, Vec<(f64, Vec<(i32, i32)>, ShapeStyle)>);

fn shapes(row: &Row, x: &Scale<'_>, y: f64) -> Shapes {
    let solid = colour(row.style);
    match &row.marks {
        Marks::Bar { parts, .. } => {
            let mut sum = 0.0;
            let bar = |(i, part): (usize, &f64)| {
                let from = x.at(sum);
                sum += part;
                Rectangle::new([(from, y - 0.28), (x.at(sum), y + 0.28)], solid.mix(SHADES[i.min(3)]).filled())
            };
            (parts.iter().enumerate().map(bar).collect(), Vec::new())
        }
        Marks::Dots { values, median, .. } => {
            let dots = values.iter().map(|v| (x.at(*v), marker(0, 3), solid.mix(0.35).filled()));
            (Vec::new(), dots.chain([(x.at(*median), marker(row.style.colour, 5), solid.filled())]).collect())
        }
        Marks::Nothing => (Vec::new(), Vec::new()),
    }
}

/// The legend of the parts: the same greys for every colour of bar.
fn draw_parts<'a>(plot: &RowPlot, area: &Area<'a>, width: u32) -> Drawn<'a> {
    let labels: Vec<&str> = plot.parts.iter().map(String::as_str).collect();
    for (i, (label, (left, top))) in labels.iter().zip(legend_places(&labels, width).0).enumerate() {
        area.draw(&Rectangle::new([(left, top + 2), (left + 11, top + 13)], MUTED.mix(SHADES[i.min(3)]).filled()))?;
        area.draw_text(&fit(label, width - 28), &text(TEXT), (left + 16, top + 1))?;
    }
    Ok(())
}
