//! Plots, as SVG: bars of figures, and lines over time.

use std::path::Path;

use plotters::prelude::*;

use crate::report::Entry;

#[cfg(test)]
mod tests;

/// Pixels of a plot's width, of one bar, and of what surrounds the bars.
const WIDTH: u32 = 760;
const BAR: u32 = 26;
const AROUND: u32 = 90;
/// Pixels of the height of lines, and of the place for their names beside them.
const HEIGHT: u32 = 300;
const NAMES: i32 = 110;
/// Of lines, one after the other.
const COLOURS: [RGBColor; 8] = [
    RGBColor(40, 110, 180),
    RGBColor(220, 110, 30),
    RGBColor(50, 150, 70),
    RGBColor(190, 50, 60),
    RGBColor(130, 90, 180),
    RGBColor(120, 85, 70),
    RGBColor(210, 100, 170),
    RGBColor(110, 110, 110),
];
/// Of bars.
const OURS: RGBColor = COLOURS[0];
const REFERENCE: RGBColor = RGBColor(170, 170, 170);
/// Points of a line that are drawn; of more, each so many's greatest.
const POINTS_MAX: usize = 600;

/// Bars of ours, and of the reference where there is one.
pub(crate) fn bars(
    file: &Path,
    entries: &[&Entry],
    unit: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    // What cannot be measured is no number, and has no length.
    let length = |figure: f64| if figure.is_finite() { figure } else { 0.0 };
    let bars: Vec<(String, f64, RGBColor)> = entries
        .iter()
        .flat_map(|e| {
            let ours = (e.name.to_owned(), length(e.ours), OURS);
            let reference = e
                .reference
                .map(|r| (String::from("reference"), length(r), REFERENCE));
            [Some(ours), reference]
        })
        .flatten()
        .collect();
    let count = u32::try_from(bars.len())?;
    let figures = || bars.iter().map(|b| b.1);
    // Differences may be below zero.
    let least = figures().fold(0.0, f64::min) * 1.05;
    let most = match figures().fold(0.0, f64::max) * 1.05 {
        most if most > least => most,
        _ => least + 1.0,
    };
    let area = SVGBackend::new(file, (WIDTH, AROUND + BAR * count)).into_drawing_area();
    area.fill(&WHITE)?;
    let rows = i32::try_from(count)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(230)
        .build_cartesian_2d(least..most, (0..rows).into_segmented())?;
    let name = |row: &SegmentValue<i32>| match row {
        SegmentValue::CenterOf(n) => usize::try_from(rows - 1 - n)
            .ok()
            .and_then(|n| bars.get(n))
            .map_or_else(String::new, |b| b.0.clone()),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(bars.len())
        .y_label_formatter(&name)
        .x_desc(unit)
        .draw()?;
    chart.draw_series(bars.iter().zip(0..).map(|((_, figure, colour), n)| {
        let row = rows - 1 - n;
        let corners = [
            (0.0, SegmentValue::Exact(row)),
            (*figure, SegmentValue::Exact(row + 1)),
        ];
        let mut bar = Rectangle::new(corners, colour.filled());
        bar.set_margin(4, 4, 0, 0);
        bar
    }))?;
    area.present()?;
    Ok(())
}

/// Lines over time, each with its name; points are minutes and values.
///
/// # Errors
/// When the file cannot be written.
pub fn lines(
    file: &Path,
    lines: &[(&str, Vec<(f64, f64)>)],
    unit: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let points = || lines.iter().flat_map(|line| &line.1);
    let end = points().map(|point| point.0).fold(0.0, f64::max);
    let most = points().map(|point| point.1).fold(0.0, f64::max).max(1e-3);
    let area = SVGBackend::new(file, (WIDTH, HEIGHT)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .margin_right(NAMES)
        .x_label_area_size(36)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..end.max(1e-3), 0.0..most * 1.08)?;
    chart
        .configure_mesh()
        .x_desc("minutes")
        .y_desc(unit)
        .draw()?;
    let right = i32::try_from(WIDTH)? - NAMES + 4;
    for (n, (name, points)) in (0..).zip(lines) {
        let colour = COLOURS[n % COLOURS.len()];
        let each = points.len().div_ceil(POINTS_MAX).max(1);
        let greatest = |few: &[(f64, f64)]| {
            let greatest = few.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
            greatest.unwrap_or_default()
        };
        let drawn: Vec<(f64, f64)> = points.chunks(each).map(greatest).collect();
        chart.draw_series([PathElement::new(drawn, colour.stroke_width(1))])?;
        let at = (right, 18 + 16 * i32::try_from(n)?);
        let style = ("sans-serif", 13).into_font().color(&colour);
        area.draw(&Text::new((*name).to_owned(), at, style))?;
    }
    area.present()?;
    Ok(())
}
