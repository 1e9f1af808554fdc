//! Latency by percentile: in the terminal, and as SVG.

use std::fmt::Write as _;

use super::{LoadReport, Report};

/// Marks of the loads in the terminal.
const MARKS: [char; 6] = ['●', '○', '■', '□', '▲', '△'];
/// The same in the picture.
const COLOURS: [&str; 6] = ["#0b6e99", "#d9730d", "#0f7b6c", "#ad1a72", "#6940a5", "#64473a"];
/// Marks on the axis of percentiles.
const PARTS: [(f64, &str); 6] =
    [(0.0, "0"), (0.5, "50"), (0.9, "90"), (0.99, "99"), (0.999, "99.9"), (0.9999, "99.99")];

/// 0 at the 0th percentile, 1 at the 90th, 2 at the 99th and so on: the tail gets as much room as the rest.
fn along(part: f64) -> f64 {
    -(1.0 - part.min(0.999_99)).log10()
}

/// The least and the greatest latency, in decades.
fn decades(report: &Report) -> Option<(f64, f64)> {
    let all = report.loads.iter().flat_map(|load| &load.latency.curve).map(|(_, ms)| ms.max(1e-3).log10());
    let (low, high) = all.fold((f64::MAX, f64::MIN), |(low, high), ms| (low.min(ms), high.max(ms)));
    (low <= high).then(|| (low, high.max(low + 0.3)))
}

/// Latency by percentile for a terminal; empty where nothing was answered.
pub fn percentiles(report: &Report, width: usize, height: usize) -> String {
    let Some((low, high)) = decades(report) else { return String::new() };
    let (width, height) = (width.max(40), height.max(5));
    let far = along(0.9999);
    let mut grid = vec![vec![' '; width + 1]; height + 1];
    for (load, mark) in report.loads.iter().zip(MARKS.into_iter().cycle()) {
        // Between the points that are known, on straight lines.
        let points: Vec<(f64, f64)> =
            load.latency.curve.iter().map(|(part, ms)| (along(*part), ms.max(1e-3).log10())).collect();
        for column in 0..=width {
            let x = column as f64 / width as f64 * far;
            let Some(y) = between(&points, x) else { continue };
            let row = ((high - y) / (high - low) * height as f64).round() as usize;
            if let Some(cell) = grid.get_mut(row.min(height)).and_then(|row| row.get_mut(column)) {
                *cell = mark;
            }
        }
    }
    let mut text = String::from("latency by percentile\n");
    for (i, row) in grid.iter().enumerate() {
        let ms = 10_f64.powf(high - (high - low) * i as f64 / height as f64);
        let label = if i % 3 == 0 { show_ms(ms) } else { String::new() };
        let line: String = row.iter().collect();
        let _infallible = writeln!(text, "{label:>9} ┤{}", line.trim_end());
    }
    let mut axis = vec![' '; width + 8];
    for (part, label) in PARTS {
        let column = (along(part) / far * width as f64).round() as usize;
        for (i, c) in label.chars().chain(['%']).enumerate() {
            if let Some(cell) = axis.get_mut(column + i) {
                *cell = c;
            }
        }
    }
    let axis: String = axis.into_iter().collect();
    let _infallible = writeln!(text, "{:>9} └{}", "", "─".repeat(width));
    let _infallible = writeln!(text, "{:>11}{}", "", axis.trim_end());
    for (load, mark) in report.loads.iter().zip(MARKS.into_iter().cycle()) {
        let _infallible = writeln!(text, "{:>11}{mark} {}", "", load.name);
    }
    text
}

fn between(points: &[(f64, f64)], x: f64) -> Option<f64> {
    points.windows(2).find_map(|pair| match pair {
        [(x0, y0), (x1, y1)] if (*x0..=*x1).contains(&x) && x1 > x0 => {
            Some(y0 + (y1 - y0) * (x - x0) / (x1 - x0))
        }
        _ => None,
    })
}

fn show_ms(ms: f64) -> String {
    if ms < 1.0 {
        format!("{:.0} us", ms * 1e3)
    } else if ms < 10.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.0} ms")
    }
}

/// Latency by percentile as one SVG picture that stands on its own.
pub fn svg(title: &str, report: &Report) -> String {
    let (width, height, left, top, right, bottom) = (860.0, 440.0, 76.0, 46.0, 190.0, 50.0);
    let (low, high) = decades(report).unwrap_or((0.0, 1.0));
    let (low, high) = (low.floor(), high.ceil().max(low.floor() + 1.0));
    let far = along(0.9999);
    let x = |part: f64| left + along(part) / far * (width - left - right);
    let y = |ms: f64| top + (high - ms.max(1e-3).log10()) / (high - low) * (height - top - bottom);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#37352f\"><rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\
         <text x=\"{left}\" y=\"24\" font-size=\"15\">{}</text>",
        escape(title)
    );
    for (part, label) in PARTS {
        let _infallible = write!(
            out,
            "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{top}\" y2=\"{1}\" stroke=\"#e3e2e0\"/>\
             <text x=\"{0:.1}\" y=\"{2}\" text-anchor=\"middle\">{label} %</text>",
            x(part),
            height - bottom,
            height - bottom + 18.0
        );
    }
    let mut decade = low;
    while decade <= high {
        for step in 1..10 {
            let ms = 10_f64.powf(decade) * f64::from(step);
            if ms.log10() > high + 1e-9 {
                break;
            }
            let shade = if step == 1 { "#d3d1cb" } else { "#f1f0ee" };
            let _infallible = write!(
                out,
                "<line x1=\"{left}\" x2=\"{0}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"{shade}\"/>",
                width - right,
                y(ms)
            );
            if step == 1 {
                let _infallible = write!(
                    out,
                    "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                    left - 8.0,
                    y(ms) + 4.0,
                    show_ms(ms)
                );
            }
        }
        decade += 1.0;
    }
    for (i, (load, colour)) in report.loads.iter().zip(COLOURS.into_iter().cycle()).enumerate() {
        let points: Vec<String> =
            load.latency.curve.iter().map(|(part, ms)| format!("{:.1},{:.1}", x(*part), y(*ms))).collect();
        let line = top + 14.0 + 34.0 * i as f64;
        let _infallible = write!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.5\"/>\
             <rect x=\"{2}\" y=\"{3:.1}\" width=\"14\" height=\"4\" fill=\"{colour}\"/>\
             <text x=\"{4}\" y=\"{5:.1}\">{1}</text><text x=\"{4}\" y=\"{6:.1}\" fill=\"#787774\">{7}</text>",
            points.join(" "),
            escape(&load.name),
            width - right + 14.0,
            line - 6.0,
            width - right + 34.0,
            line,
            line + 14.0,
            escape(&summary(load))
        );
    }
    let _infallible = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#787774\">percentile of answered requests</text></svg>",
        (left + width - right) / 2.0,
        height - 12.0
    );
    out
}

fn summary(load: &LoadReport) -> String {
    format!("{:.0}/s, p99 {}", load.rate, show_ms(load.latency.p99))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Latency;

    fn report() -> Report {
        let load = |name: &str, scale: f64| LoadReport {
            name: name.to_owned(),
            model: "m".to_owned(),
            pace: "10/s".to_owned(),
            sent: 10,
            unsent: 0,
            ok: 10,
            refused: 0,
            errors: Default::default(),
            rate: 10.0,
            rows_per_second: 10.0,
            latency: Latency {
                curve: vec![(0.0, scale), (0.5, scale * 2.0), (0.99, scale * 10.0)],
                ..Latency::default()
            },
            generator_lag_p99_ms: 0.1,
            timeline: Vec::new(),
        };
        let loads = vec![load("fast <1>", 0.2), load("slow", 4.0)];
        Report { addr: String::new(), protocol: "native".to_owned(), seconds: 1.0, loads }
    }

    #[test]
    fn the_terminal_shows_every_load_and_both_axes() {
        let text = percentiles(&report(), 60, 12);
        for expect in ["●", "○", "fast <1>", "99.9%", "200 us", "40 ms"] {
            assert!(text.contains(expect), "{expect}:\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() < 90), "{text}");
        let nothing = Report { loads: Vec::new(), ..report() };
        assert_eq!(percentiles(&nothing, 60, 12), "");
    }

    #[test]
    fn the_picture_is_well_formed() {
        let picture = svg("a & b", &report());
        assert!(picture.contains("a &amp; b") && picture.contains("fast &lt;1&gt;"));
        assert_eq!(picture.matches("<polyline").count(), 2);
        assert_eq!(picture.matches("<text").count(), picture.matches("</text>").count());
        assert!(
            !picture.contains("NaN") && !svg("", &Report { loads: Vec::new(), ..report() }).contains("NaN")
        );
    }
}
