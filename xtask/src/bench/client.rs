//! The program that asks runtimes over CRI (`tests/src/bin/bench`), and what it answers.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{contender::Contender, figures::Figures};
use crate::process;

/// How it is called.
#[derive(Debug)]
pub struct Client {
    pub program: PathBuf,
    /// What its pods run.
    pub image: String,
    pub logs: PathBuf,
}

/// One answer: a figure's samples, or why there are none.
#[derive(Debug, Clone)]
pub struct Answer {
    pub name: String,
    pub runtime: String,
    pub unit: String,
    pub outcome: std::result::Result<Vec<f64>, String>,
}

impl Client {
    /// Has it do something to all of these.
    ///
    /// # Errors
    /// It could not begin, or gave up; what failed with one runtime is an answer.
    pub fn ask<'a>(
        &self,
        contenders: impl IntoIterator<Item = &'a Contender>,
        words: &[String],
    ) -> Result<Vec<Answer>> {
        let mut command = Command::new(&self.program);
        command.arg("--image").arg(&self.image).arg("--logs").arg(&self.logs);
        for contender in contenders {
            let (name, address, pods) = (&contender.name, contender.address(), contender.pods());
            command.args(["--runtime", &format!("{name}={address}={pods}")]);
        }
        answers(&process::output(command.args(words))?)
    }

    /// The same of one, into the figures, each name behind a prefix.
    pub fn measure(
        &self,
        contender: &Contender,
        words: &[String],
        prefix: &str,
        figures: &mut Figures,
    ) -> Result<()> {
        figures.take(self.ask([contender], words)?, prefix);
        Ok(())
    }

    /// The one sample of one figure.
    pub fn sample(&self, contender: &Contender, words: &[String]) -> Result<f64> {
        let answers = self.ask([contender], words)?;
        match answers.first().map(|answer| &answer.outcome) {
            Some(Ok(samples)) => samples.first().copied().context("no sample"),
            Some(Err(why)) => bail!("{why}"),
            None => bail!("no answer"),
        }
    }
}

/// The words of a verb with its numbers.
pub fn words(verb: &str, numbers: &[usize]) -> Vec<String> {
    std::iter::once(verb.to_owned()).chain(numbers.iter().map(usize::to_string)).collect()
}

fn answers(text: &str) -> Result<Vec<Answer>> {
    let list: Vec<Value> = serde_json::from_str(text).context("read what the client measured")?;
    let word = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let answer = |value: &Value| Answer {
        name: word(value, "name"),
        runtime: word(value, "runtime"),
        unit: word(value, "unit"),
        outcome: match value["failed"].as_str() {
            Some(why) => Err(why.to_owned()),
            None => {
                let samples = value["samples"].as_array().map(Vec::as_slice).unwrap_or_default();
                Ok(samples.iter().filter_map(Value::as_f64).collect())
            }
        },
    };
    Ok(list.iter().map(answer).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_samples_or_a_failure() {
        let text = r#"[{"name":"up","runtime":"a","unit":"ms","samples":[1,2.5]},
                       {"name":"up","runtime":"b","failed":"no"}]"#;
        let read = answers(text).unwrap();
        assert_eq!(read[0].outcome, Ok(vec![1.0, 2.5]));
        assert_eq!(read[1].outcome, Err("no".to_owned()));
        assert!(answers("no JSON").is_err());
    }
}
