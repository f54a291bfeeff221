//! Figures as text for a terminal and as Markdown.

use serde_json::Value;

use super::{
    contender::OURS,
    figures::{Figures, Verdict},
    statistics::Summary,
};

/// What is not like for like, to be told beside all figures.
pub const UNLIKE: &[&str] = &[
    "Berth has its built-in bridge in `berth` and CNI's bridge plugin in `berth+cni`; peers have no network of their own and use the plugin, without masquerade.",
    "containerd and CRI-O as they configure themselves; containerd keeps the oom score of a pod's process, where this machine could not lower it. containerd has a pause process in each pod, which is not counted as a monitor.",
    "CPU is of the whole cgroup: daemon, monitors, OCI runtimes and the containers themselves. That of logs is without what the producer uses alone into a pipe.",
    "Peers run with an image of this repository; seccomp profiles and AppArmor are asked of nobody.",
    "Berth syncs what it pulls before it names it; containerd and CRI-O leave that to the kernel.",
    "On hosts with v1's cgroups and an empty v2 hierarchy beside them, what runs crun is in a mount namespace without the latter, beside which crun refuses to run; crun's own row and podman's are entered by nsenter(1), which takes a millisecond.",
    "Where podman runs an old crun or runc of the distribution's, its row says only what that one does.",
    "The floor of pulls is `tar -xz` of the layers one after the other, that of logs the producer into a drained pipe.",
];

/// A line for each figure of each runtime; behind a peer's, how many times Berth's it is.
pub fn text(figures: &Figures) -> String {
    let mut text = format!(
        "{:<40} {:<18} {:>10} {:>10} {:>10} {:>7} {:>6} {:>8}\n",
        "", "runtime", "p50", "p90", "p99", "spread", "", "ratio"
    );
    for measure in figures.measures() {
        let row = figures.row(&measure.name);
        let ours = row.iter().find(|(series, _)| series.runtime == OURS).map_or(f64::NAN, |(_, of)| of.p50);
        for (series, of) in &row {
            text += &format!(
                "{:<40} {:<18} {:>10} {:>10} {:>10} {:>7} {:>6} {:>8}\n",
                measure.name,
                series.runtime,
                number(of.p50),
                number(of.p90),
                number(of.p99),
                spread(of),
                series.unit,
                Some(of.p50 / ours)
                    .filter(|ratio| ratio.is_finite())
                    .map_or(String::new(), |ratio| format!("{ratio:.2}x"))
            );
        }
    }
    text += "\n";
    for verdict in figures.verdicts() {
        text += &format!("{} {}\n", if verdict.met { "reached " } else { "MISSED  " }, judged(&verdict));
    }
    for (measure, runtime, why) in &figures.failed {
        text += &format!("failed   {measure} of {runtime}: {}\n", first_line(why));
    }
    for what in &figures.missing {
        text += &format!("missing  {what}\n");
    }
    text
}

/// The goals, the table of all figures, what failed and what is not like for like.
pub fn markdown(figures: &Figures, header: &Value) -> String {
    let mut text = head(header);
    text += "| goal | ours beside it | ratio | |\n|---|---|---|---|\n";
    for verdict in figures.verdicts() {
        text += &format!(
            "| {} <= {} | {} | {} | {} |\n",
            verdict.measure,
            verdict.goal,
            verdict.beside,
            ratio(verdict.ratio),
            if verdict.met { "reached" } else { "**missed**" }
        )
        .replace("at once <=", "at once >=");
    }
    text += "\n| what | runtime | p50 | p90 | p99 | spread | samples |\n|---|---|---|---|---|---|---|\n";
    for measure in figures.measures() {
        for (at, (series, of)) in figures.row(&measure.name).iter().enumerate() {
            let says = if measure.says.is_empty() { String::new() } else { format!(": {}", measure.says) };
            let what = if at == 0 { format!("{}{says}", measure.name) } else { String::new() };
            let unit = &series.unit;
            text += &format!(
                "| {what} | {} | {} {unit} | {} | {} | {} | {} |\n",
                series.runtime,
                number(of.p50),
                number(of.p90),
                number(of.p99),
                spread(of),
                of.count
            );
        }
    }
    text += "\nNot like for like:\n\n";
    UNLIKE.iter().for_each(|line| text += &format!("- {line}\n"));
    if !(figures.failed.is_empty() && figures.missing.is_empty()) {
        text += "\nWhat failed or was not there:\n\n";
        for (measure, runtime, why) in &figures.failed {
            text += &format!("- {measure} of {runtime}: {}\n", first_line(why));
        }
        figures.missing.iter().for_each(|what| text += &format!("- {what}\n"));
    }
    text
}

fn head(header: &Value) -> String {
    let word = |key: &str| match &header[key] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let programs = header["programs"].as_object();
    let programs: Vec<String> = programs
        .into_iter()
        .flatten()
        .map(|(name, version)| format!("{name}: {}", version.as_str().unwrap_or_default()))
        .collect();
    format!(
        "{} at {}, {}; {} x {}, {} MiB, Linux {}, cgroups {}; load {} before and {} after. {}.\n\n",
        word("date"),
        word("commit"),
        word("profile"),
        word("cores"),
        word("processor"),
        word("memory_mib"),
        word("kernel"),
        word("cgroups"),
        word("load_before"),
        word("load_after"),
        programs.join("; ")
    )
}

fn judged(verdict: &Verdict) -> String {
    format!("{}: {} of {}; the goal: {}", verdict.measure, ratio(verdict.ratio), verdict.beside, verdict.goal)
}

/// A ratio as 1/N where it is small.
fn ratio(ratio: f64) -> String {
    if ratio > 0.0 && ratio < 0.5 { format!("1/{:.1}", 1.0 / ratio) } else { format!("{ratio:.2}") }
}

/// Three digits that count.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn spread(of: &Summary) -> String {
    if of.count < 4 || !of.spread.is_finite() { String::new() } else { format!("{:.0} %", of.spread * 100.0) }
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        let mut figures = Figures::default();
        figures.add("pod up", "berth", "ms", 4.0);
        figures.add("pod up", "containerd", "ms", 100.0);
        figures.fail("pod up", "crun", "it ended\nwith more");
        figures.miss("no podman".to_owned());
        figures
    }

    #[test]
    fn a_peer_is_compared_by_the_median() {
        let text = text(&figures());
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].ends_with("1.00x") && lines[2].ends_with("25.00x"), "{text}");
        assert!(
            text.contains("reached  pod up: 1/25.0 of containerd; the goal: 1/16 of the best peer's"),
            "{text}"
        );
    }

    #[test]
    fn failures_and_who_is_missing_are_told_in_both() {
        let header = serde_json::json!({ "cores": 2, "kernel": "6.18" });
        for text in [text(&figures()), markdown(&figures(), &header)] {
            assert!(text.contains("pod up of crun: it ended\n") && text.contains("no podman"), "{text}");
        }
        assert!(markdown(&figures(), &header).contains("Linux 6.18"));
    }
}
