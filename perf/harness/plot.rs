//! Drawings: how long answers took, how fast rows were committed over time, and how many machines a rate takes.

use std::path::Path;

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use crate::Failure;

const SIZE: (u32, u32) = (1000, 560);
const COLOURS: [RGBColor; 5] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(110, 80, 160),
];

/// A line.
pub struct Line {
    /// The subject.
    pub name: String,
    /// The subject's number, which is its colour in every drawing.
    pub colour: usize,
    /// Rising in x.
    pub points: Vec<(f64, f64)>,
}

/// Percentiles against latency in milliseconds, the last percent drawn as wide as the first ninety.
pub fn latency(path: &Path, lines: &[Line]) -> Result<(), Failure> {
    let nines = |percentile: f64| -(1.0 - percentile / 100.0).max(1e-4).log10();
    let lines: Vec<Line> = (lines.iter())
        .map(|line| {
            let points = line.points.iter().map(|(percentile, ms)| (nines(*percentile), ms.max(0.01)));
            Line { name: line.name.clone(), colour: line.colour, points: points.collect() }
        })
        .collect();
    let (low, high) = bounds(&lines);
    // P0, P90, P99, P99.9, P99.99
    let percentile =
        |nines: &f64| format!("P{:.*}", (nines - 2.0).max(0.0) as usize, 100.0 - 100.0 * 10f64.powf(-nines));
    let axes = Axes { title: "Latency of answers", x: "percentile", y: "ms", x_labels: 5, x_label: &percentile };
    draw(path, &lines, 0.0..4.0, (low * 0.8..high * 8.0).log_scale(), axes)
}

/// Seconds against rows a second.
pub fn throughput(path: &Path, lines: &[Line]) -> Result<(), Failure> {
    let seconds = lines.iter().flat_map(|line| &line.points).map(|point| point.0).fold(1.0, f64::max);
    let (_, high) = bounds(lines);
    let second = |x: &f64| format!("{x:.0}");
    let axes = Axes {
        title: "Rows committed a second",
        x: "seconds since the load began",
        y: "rows/s",
        x_labels: 12,
        x_label: &second,
    };
    draw(path, lines, 0.0..seconds, 0.0..high * 1.3, axes)
}

/// Events a second against machines, both by powers of ten.
pub fn machines(path: &Path, lines: &[Line]) -> Result<(), Failure> {
    let rates = || lines.iter().flat_map(|line| &line.points).map(|point| point.0);
    let (low, high) = (rates().fold(f64::INFINITY, f64::min), rates().fold(1.0, f64::max));
    let (_, most) = bounds(lines);
    let rate = |x: &f64| if *x >= 1e6 { format!("{:.0} million", x / 1e6) } else { format!("{:.0} 000", x / 1e3) };
    let axes = Axes {
        title: "Machines for a rate, standbys not counted",
        x: "events/s",
        y: "machines",
        x_labels: 4,
        x_label: &rate,
    };
    draw(path, lines, (low..high).log_scale(), (0.9..most * 1.5).log_scale(), axes)
}

fn bounds(lines: &[Line]) -> (f64, f64) {
    let values = || lines.iter().flat_map(|line| &line.points).map(|point| point.1);
    (values().fold(f64::INFINITY, f64::min).clamp(0.01, 1e9), values().fold(1.0, f64::max))
}

struct Axes<'a> {
    title: &'a str,
    x: &'a str,
    y: &'a str,
    x_labels: usize,
    x_label: &'a dyn Fn(&f64) -> String,
}

fn draw<X, Y>(path: &Path, lines: &[Line], x: X, y: Y, axes: Axes<'_>) -> Result<(), Failure>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(axes.title, ("sans-serif", 22))
        .margin(16)
        .margin_right(40)
        .x_label_area_size(44)
        .y_label_area_size(84)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_labels(axes.x_labels)
        .x_label_formatter(axes.x_label)
        .y_label_formatter(&|y| if *y >= 1000.0 { format!("{:.0} 000", y / 1000.0) } else { y.to_string() })
        .x_desc(axes.x)
        .y_desc(axes.y)
        .label_style(("sans-serif", 14))
        .draw()?;
    let mut names: Vec<&str> = Vec::new();
    for line in lines {
        let colour = COLOURS[line.colour % COLOURS.len()];
        let series = chart.draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))?;
        if !names.contains(&&*line.name) {
            names.push(&line.name);
            series
                .label(&*line.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.4))
        .label_font(("sans-serif", 14))
        .draw()?;
    root.present()?;
    Ok(())
}
