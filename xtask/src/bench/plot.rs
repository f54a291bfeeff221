//! Figures as SVG: bars of medians with a whisker to the 90th percentile, one plot for a measure, on a logarithmic scale.

use super::{
    contender::{OURS, is_ours},
    figures::{Figures, Series},
    launch::{STEP, STEPS},
    statistics::Summary,
    table::number,
    trace::KERNEL,
};

const WIDTH: f64 = 780.0;
const BAR: f64 = 22.0;
const TOP: f64 = 34.0;
const LEFT: f64 = 230.0;
const RIGHT: f64 = 110.0;
const OUR_COLOUR: &str = "#1f6feb";

/// What is drawn: file, title, measure.
pub const PLOTS: &[(&str, &str, &str)] = &[
    ("pod-up", "A pod with its container: until it runs", "pod up"),
    ("pod-down", "Stopping and removing it", "pod down"),
    ("exec", "ExecSync of true", "ExecSync"),
    ("at-once", "Eight clients at once: pods a second", "pods up at once"),
    ("memory", "The daemon's memory with 100 pods", "100 pods: daemon RSS"),
    ("monitors", "What stays beside each pod", "100 pods: monitors' PSS a pod"),
    ("restart", "A killed daemon's successor tells of 100 pods", "100 pods: restart until listed"),
    ("logs", "A gigabyte of short log lines", "short lines: wall"),
    ("logs-cpu", "A gigabyte of short log lines: processor time beside the producer's", "short lines: CPU"),
    ("pull", "A cold pull: 1 GiB in 20 layers", "pull: wall"),
    ("pull-cpu", "A cold pull: processor time", "pull: CPU"),
];

/// A plot of each measure that there are figures of: its file's name and its text.
pub fn all(figures: &Figures) -> Vec<(String, String)> {
    let drawn = PLOTS.iter().filter_map(|(file, title, measure)| {
        let row = figures.row(measure);
        let bars: Vec<(&str, Summary)> =
            row.iter().map(|(series, of)| (series.runtime.as_str(), *of)).collect();
        let unit = row.first().map(|(series, _)| series.unit.as_str())?;
        Some((format!("{file}.svg"), svg(title, unit, &bars)))
    });
    drawn.chain(budget(figures)).chain(kernel(figures)).collect()
}

/// What the kernel takes of it, by whom and what.
fn kernel(figures: &Figures) -> Option<(String, String)> {
    let of =
        |series: &Series| Some((series.measure.strip_prefix(KERNEL)?.to_owned(), *series.samples.first()?));
    let steps: Vec<(String, f64)> = figures.series.iter().filter_map(of).collect();
    (!steps.is_empty()).then(|| ("kernel.svg".to_owned(), waterfall("What the kernel takes of it", &steps)))
}

/// Steps of a start one after the other, each from where the one before ended; the last is what no step accounts for.
fn budget(figures: &Figures) -> Option<(String, String)> {
    let p50 = |measure: &str| {
        figures.row(measure).iter().find(|(series, _)| series.runtime == OURS).map(|row| row.1.p50)
    };
    let all = p50("pod up")?;
    let mut steps: Vec<(String, f64)> =
        STEPS.iter().filter_map(|step| Some(((*step).to_owned(), p50(&format!("{STEP}{step}"))?))).collect();
    let told: f64 = steps.iter().map(|(_, took)| took).sum();
    if steps.is_empty() {
        return None;
    }
    steps.push(("calls, records, the rest".to_owned(), (all - told).max(0.0)));
    Some(("launch.svg".to_owned(), waterfall("Where a pod's start goes: medians of the steps", &steps)))
}

/// Milliseconds one after the other.
fn waterfall(title: &str, steps: &[(String, f64)]) -> String {
    let (room, sum) = (WIDTH - LEFT - RIGHT, steps.iter().map(|(_, took)| took).sum::<f64>());
    let mut text = head(title, "ms", steps.len());
    let mut from = 0.0;
    for (at, (step, took)) in steps.iter().enumerate() {
        let y = TOP + BAR * 1.4 * at as f64;
        let (x, length) = (LEFT + from / sum * room, took / sum * room);
        text += &format!(
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"{OUR_COLOUR}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
            LEFT - 8.0,
            y + BAR / 2.0 + 4.5,
            escaped(step),
            x + length + 6.0,
            y + BAR / 2.0 + 4.5,
            number(*took)
        );
        from += took;
    }
    text + "</svg>\n"
}

fn head(title: &str, unit: &str, bars: usize) -> String {
    let height = TOP + BAR * 1.4 * bars as f64 + 12.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {WIDTH} {height:.0}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"8\" y=\"20\" font-weight=\"bold\">{} ({})</text>\n",
        escaped(title),
        escaped(unit)
    )
}

/// The scale is logarithmic where the largest is more than thirty times the smallest.
fn svg(title: &str, unit: &str, bars: &[(&str, Summary)]) -> String {
    let most = bars.iter().map(|(_, of)| of.p90.max(of.p50)).fold(f64::MIN_POSITIVE, f64::max);
    let least = bars.iter().map(|(_, of)| of.p50).filter(|value| *value > 0.0).fold(most, f64::min);
    let logarithmic = most / least > 30.0;
    let room = WIDTH - LEFT - RIGHT;
    let along = |value: f64| {
        let part = if logarithmic {
            let floor = least / 2.0;
            (value.max(floor) / floor).ln() / (most / floor).ln()
        } else {
            value.max(0.0) / most
        };
        part * room
    };
    let scale = if logarithmic { ", logarithmic" } else { "" };
    let mut text = head(title, &format!("{unit}{scale}"), bars.len());
    for (at, (name, of)) in bars.iter().enumerate() {
        let y = TOP + BAR * 1.4 * at as f64;
        let (middle, length, whisker) = (y + BAR / 2.0, along(of.p50), LEFT + along(of.p90));
        let colour = if is_ours(name) { OUR_COLOUR } else { "#9aa4b2" };
        text += &format!(
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\n\
             <line x1=\"{:.1}\" x2=\"{whisker:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\" stroke=\"#444444\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
            LEFT - 8.0,
            middle + 4.5,
            escaped(name),
            LEFT + length,
            whisker.max(LEFT + length) + 6.0,
            middle + 4.5,
            number(of.p50)
        );
    }
    text + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_medians() {
        let mut figures = Figures::default();
        figures.add("pod up", "berth", "ms", 5.0);
        figures.add("pod up", "a<b", "ms", 10.0);
        let plots = all(&figures);
        assert_eq!(plots.len(), 1);
        let (file, text) = &plots[0];
        assert_eq!(file, "pod-up.svg");
        assert!(text.contains("width=\"220.0\"") && text.contains("width=\"440.0\""), "{text}");
        assert!(text.contains("a&lt;b") && text.ends_with("</svg>\n"));
    }

    #[test]
    fn steps_follow_each_other_and_the_rest_is_what_is_missing() {
        let mut figures = Figures::default();
        figures.add("pod up", "berth", "ms", 10.0);
        figures.add("step: launch", "berth", "ms", 5.0);
        figures.add("step: start", "berth", "ms", 2.0);
        let text = budget(&figures).unwrap().1;
        for bar in ["x=\"230.0\" y=\"34.0\" width=\"220.0\"", "x=\"450.0\"", "width=\"132.0\""] {
            assert!(text.contains(bar), "{bar}: {text}");
        }
        figures.series.retain(|series| series.measure == "pod up");
        assert_eq!(budget(&figures), None);
    }

    #[test]
    fn what_lies_far_apart_is_drawn_by_its_logarithm() {
        let mut figures = Figures::default();
        figures.add("pod up", "berth", "ms", 1.0);
        figures.add("pod up", "a", "ms", 1000.0);
        assert!(all(&figures)[0].1.contains("logarithmic"));
    }
}
