//! Lines over an axis, with intervals, levels and events.

use plotters::prelude::*;

use super::scale::Scale;
use super::{AXIS, Area, CHARACTER, Drawn, GRID, MUTED, TEXT, colour, fit, legend_places, marker, text, width_of};
use crate::report::plot::{LinePlot, Style};

const AXIS_HEIGHT: u32 = 44;
const TITLE: u32 = 20;

pub fn height(plot: &LinePlot, width: u32) -> u32 {
    legend_height(plot, width) + TITLE + plot.height + AXIS_HEIGHT
}

fn legend_items(plot: &LinePlot) -> Vec<(Style, &str)> {
    let lines = plot.lines.iter().map(|l| (l.style, l.label.as_str()));
    let items: Vec<_> = lines.chain(plot.levels.iter().map(|l| (l.style, l.label.as_str()))).collect();
    // One line is named by the title.
    if items.len() > 1 { items } else { Vec::new() }
}

fn legend_height(plot: &LinePlot, width: u32) -> u32 {
    legend_places(&legend_items(plot).iter().map(|i| i.1).collect::<Vec<_>>(), width).1
}

pub fn draw<'a>(plot: &LinePlot, area: &Area<'a>) -> Drawn<'a> {
    let width = area.dim_in_pixel().0;
    let (legend, area) = area.split_vertically(legend_height(plot, width));
    draw_legend(plot, &legend, width)?;

    let places = plot.lines.iter().flat_map(|l| &l.points).map(|p| p.x).chain(plot.events.iter().copied());
    let x = Scale::covering(&plot.x, places, (width / 80) as usize);
    let values = plot.lines.iter().flat_map(|l| &l.points).flat_map(|p| spread(p.y, p.interval));
    let levels = plot.levels.iter().flat_map(|l| spread(l.y, l.interval));
    let y = Scale::covering(&plot.y, values.chain(levels).chain(plot.include.iter().copied()), (plot.height / 34) as usize);
    area.draw_text(&fit(&y.title(), width / 2), &text(MUTED), (8, 0))?;
    let (_, area) = area.split_vertically(TITLE);
    let mut chart = ChartBuilder::on(&area)
        .margin_left(8)
        .margin_right(20)
        .x_label_area_size(AXIS_HEIGHT)
        .y_label_area_size(y.label_width() + CHARACTER * 2)
        .build_cartesian_2d(x.places(), y.places())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(AXIS)
        .label_style(text(MUTED))
        .x_desc(x.title())
        .x_label_formatter(&|v| x.label(*v))
        .y_label_formatter(&|v| y.label(*v))
        .draw()?;

    for level in &plot.levels {
        if let Some((low, high)) = level.interval {
            let corners = [(x.first(), y.at(low)), (x.last(), y.at(high))];
            chart.draw_series([Rectangle::new(corners, colour(level.style).mix(0.12).filled())])?;
        }
        let ends = [(x.first(), y.at(level.y)), (x.last(), y.at(level.y))];
        chart.draw_series(DashedLineSeries::new(ends, 7, 4, colour(level.style).stroke_width(2)))?;
    }
    for line in &plot.lines {
        let points: Vec<(f64, f64)> = line.points.iter().map(|p| (x.at(p.x), y.at(p.y))).collect();
        let stroke = colour(line.style).stroke_width(2);
        match line.style.dash {
            0 => chart.draw_series(LineSeries::new(points.iter().copied(), stroke))?,
            dash => {
                let (length, gap) = [(6, 3), (2, 3), (10, 4)][(dash - 1) % 3];
                chart.draw_series(DashedLineSeries::new(points.iter().copied(), length, gap, stroke))?
            }
        };
        if line.marks {
            let whiskers = line.points.iter().filter_map(|p| {
                let (low, high) = p.interval?;
                Some(ErrorBar::new_vertical(x.at(p.x), y.at(low), y.at(p.y), y.at(high), colour(line.style).filled(), 6))
            });
            chart.draw_series(whiskers)?;
            let mark = |at: &(f64, f64)| EmptyElement::at(*at) + Polygon::new(marker(line.style.colour, 4), colour(line.style));
            chart.draw_series(points.iter().map(mark))?;
        }
    }
    for event in &plot.events {
        let ends = [(x.at(*event), y.first()), (x.at(*event), y.last())];
        chart.draw_series(DashedLineSeries::new(ends, 2, 3, TEXT.stroke_width(1)))?;
    }
    if let Some(first) = plot.events.first() {
        // On the side that has more room.
        let name = fit(&plot.event, width / 2);
        let left = if x.at(*first) < x.middle() { 3 } else { -(width_of(&name) as i32) };
        chart.draw_series([EmptyElement::at((x.at(*first), y.last())) + Text::new(name, (left, -18), text(TEXT))])?;
    }
    Ok(())
}

fn draw_legend<'a>(plot: &LinePlot, area: &Area<'a>, width: u32) -> Drawn<'a> {
    let items = legend_items(plot);
    let (places, _) = legend_places(&items.iter().map(|i| i.1).collect::<Vec<_>>(), width);
    for ((style, label), (left, top)) in items.into_iter().zip(places) {
        let corners: Vec<(i32, i32)> = marker(style.colour, 4).into_iter().map(|(dx, dy)| (left + 5 + dx, top + 8 + dy)).collect();
        area.draw(&Polygon::new(corners, colour(style)))?;
        area.draw_text(&fit(label, width - 28), &text(TEXT), (left + 14, top + 1))?;
    }
    Ok(())
}

/// All of an axis that a value takes.
fn spread(value: f64, interval: Option<(f64, f64)>) -> [f64; 3] {
    let (low, high) = interval.unwrap_or((value, value));
    [value, low, high]
}
