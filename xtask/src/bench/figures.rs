//! What a run measured: samples by measure and runtime, what failed, who was not there.

use serde_json::{Value, json};

use super::{
    client::Answer,
    contender::{OURS, is_ours},
    measures::{self, Goal, Measure},
    statistics::{Better, Summary, best, summary},
};

/// What stands for the machine's own limit in a row: the producer alone, `tar` alone.
pub const FLOOR: &str = "floor";

/// The samples of one measure of one runtime.
#[derive(Debug, Clone)]
pub struct Series {
    pub measure: String,
    pub runtime: String,
    pub unit: String,
    pub samples: Vec<f64>,
}

/// All that a run has to tell.
#[derive(Debug, Default)]
pub struct Figures {
    pub series: Vec<Series>,
    /// Measure, runtime, why.
    pub failed: Vec<(String, String, String)>,
    /// Who was not found, and what was left out for want of time.
    pub missing: Vec<String>,
}

/// What became of a goal.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub measure: String,
    /// In words: what ours is compared with.
    pub beside: String,
    /// Ours by theirs.
    pub ratio: f64,
    pub goal: String,
    pub met: bool,
}

impl Figures {
    pub fn add(&mut self, measure: &str, runtime: &str, unit: &str, sample: f64) {
        self.extend(measure, runtime, unit, vec![sample]);
    }

    /// Of a series that is there already, one more round.
    pub fn extend(&mut self, measure: &str, runtime: &str, unit: &str, samples: Vec<f64>) {
        let same = |series: &&mut Series| series.measure == measure && series.runtime == runtime;
        match self.series.iter_mut().find(same) {
            Some(series) => series.samples.extend(samples),
            None => self.series.push(Series {
                measure: measure.to_owned(),
                runtime: runtime.to_owned(),
                unit: unit.to_owned(),
                samples,
            }),
        }
    }

    pub fn fail(&mut self, measure: &str, runtime: &str, why: &str) {
        eprintln!("xtask: {measure} of {runtime}: {why}");
        self.failed.push((measure.to_owned(), runtime.to_owned(), why.to_owned()));
    }

    pub fn miss(&mut self, what: String) {
        eprintln!("xtask: {what}");
        if !self.missing.contains(&what) {
            self.missing.push(what);
        }
    }

    /// What a client answered, each name behind a prefix.
    pub fn take(&mut self, answers: Vec<Answer>, prefix: &str) {
        for Answer { name, runtime, unit, outcome } in answers {
            let name = format!("{prefix}{name}");
            match outcome {
                Ok(samples) => self.extend(&name, &runtime, &unit, samples),
                Err(why) => self.fail(&name, &runtime, &why),
            }
        }
    }

    /// Whether a runtime failed at anything with this name.
    pub fn has_failed(&self, measure: &str, runtime: &str) -> bool {
        self.failed.iter().any(|failed| failed.0 == measure && failed.1 == runtime)
    }

    /// Measures in the order of the table, those it doesn't know at the end.
    pub fn measures(&self) -> Vec<Measure> {
        let mut names: Vec<&str> = Vec::new();
        for series in &self.series {
            if !names.contains(&series.measure.as_str()) {
                names.push(&series.measure);
            }
        }
        let mut measures: Vec<Measure> = names.into_iter().map(measures::of).collect();
        measures.sort_by_key(|measure| measure.place);
        measures
    }

    /// One row: each runtime's summary, ours first.
    pub fn row(&self, measure: &str) -> Vec<(&Series, Summary)> {
        let of = self.series.iter().filter(|series| series.measure == measure);
        let mut row: Vec<_> =
            of.filter_map(|series| summary(&series.samples).map(|summary| (series, summary))).collect();
        row.sort_by_key(|(series, _)| (!is_ours(&series.runtime), series.runtime == FLOOR));
        row
    }

    /// Every goal that this run can judge.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for measure in self.measures() {
            let row = self.row(&measure.name);
            let p50 =
                |name: &str| row.iter().find(|(series, _)| series.runtime == name).map(|(_, of)| of.p50);
            let peers = row.iter().filter(|(series, _)| !is_ours(&series.runtime) && series.runtime != FLOOR);
            let best = best(measure.better, peers.map(|(series, of)| (series.runtime.as_str(), of.p50)));
            for goal in measure.goals {
                let beside = match goal {
                    Goal::OfBest(_) => best.map(|(name, value)| (name.to_owned(), value)),
                    Goal::OfFloor(_) => p50(FLOOR).map(|value| (FLOOR.to_owned(), value)),
                    Goal::AtMost(value) => Some(("the goal".to_owned(), *value)),
                };
                let (Some(ours), Some((beside, theirs))) = (p50(OURS), beside) else { continue };
                let ratio = ours / theirs;
                verdicts.push(Verdict {
                    measure: measure.name.clone(),
                    beside,
                    ratio,
                    goal: goal.to_string(),
                    met: goal.is_met(ratio, measure.better),
                });
            }
        }
        verdicts
    }

    pub fn json(&self) -> Value {
        let number = |value: f64| if value.is_finite() { json!(value) } else { Value::Null };
        let mut figures = Vec::new();
        for measure in self.measures() {
            for (series, of) in self.row(&measure.name) {
                figures.push(json!({
                    "name": series.measure, "runtime": series.runtime, "unit": series.unit, "count": of.count,
                    "p50": number(of.p50), "p90": number(of.p90), "p99": number(of.p99),
                    "min": number(of.min), "max": number(of.max), "spread": number(of.spread),
                    "better": match measure.better { Better::Less => "less", Better::More => "more" },
                }));
            }
        }
        let goals: Vec<Value> = self
            .verdicts()
            .into_iter()
            .map(|one| {
                json!({
                    "name": one.measure, "beside": one.beside, "ratio": number(one.ratio), "goal": one.goal,
                    "met": one.met,
                })
            })
            .collect();
        let failed: Vec<Value> = self
            .failed
            .iter()
            .map(|(measure, runtime, why)| json!({ "name": measure, "runtime": runtime, "why": why }))
            .collect();
        json!({ "figures": figures, "goals": goals, "failed": failed, "missing": self.missing })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(name: &str, values: &[(&str, f64)]) -> Figures {
        let mut figures = Figures::default();
        values.iter().for_each(|(runtime, value)| figures.add(name, runtime, "ms", *value));
        figures
    }

    #[test]
    fn a_goal_is_judged_beside_the_best_peer_and_never_beside_ourselves() {
        let figures = figures(
            "pod up",
            &[("berth", 10.0), ("berth+cni", 1.0), ("a", 300.0), ("b", 200.0), (FLOOR, 1.0)],
        );
        let verdicts = figures.verdicts();
        assert_eq!(verdicts.len(), 1);
        assert_eq!((verdicts[0].beside.as_str(), verdicts[0].ratio, verdicts[0].met), ("b", 0.05, true));
        assert!(!self::figures("pod up", &[("berth", 20.0), ("b", 200.0)]).verdicts()[0].met);
    }

    #[test]
    fn rates_are_better_when_they_are_more() {
        let rate = |ours: f64| figures("pods up at once", &[("berth", ours), ("a", 3.0), ("b", 5.0)]);
        assert!(rate(81.0).verdicts()[0].met && !rate(79.0).verdicts()[0].met);
        assert_eq!(rate(81.0).verdicts()[0].beside, "b");
    }

    #[test]
    fn without_a_peer_there_is_no_verdict() {
        assert_eq!(figures("pod up", &[("berth", 10.0)]).verdicts(), []);
        assert_eq!(figures("pod up", &[("a", 10.0)]).verdicts(), []);
    }

    #[test]
    fn rounds_of_one_runtime_are_one_series() {
        let mut figures = figures("pod up", &[("berth", 1.0), ("berth", 3.0), ("a", 2.0)]);
        figures.fail("pod up", "c", "no");
        assert_eq!(figures.row("pod up")[0].1.count, 2);
        assert!(figures.has_failed("pod up", "c") && !figures.has_failed("pod up", "a"));
        assert_eq!(figures.json()["failed"][0]["why"], "no");
    }
}
