//! The command line's form: flags as Go's programs take them (`-f v`, `--flag v`, `--flag=v`, `-flag`), then words. Pure.

use crate::{Error, Result};

/// A flag that a verb knows.
#[derive(Debug)]
pub struct Flag {
    pub name: &'static str,
    /// One letter, or empty.
    pub short: &'static str,
    pub takes: Takes,
    pub help: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    Nothing,
    Value,
}

/// Where flags may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Anywhere,
    /// The first word ends them: the rest is another program's.
    First,
}

/// What was said.
#[derive(Debug, Default, PartialEq)]
pub struct Line {
    flags: Vec<(&'static str, String)>,
    pub words: Vec<String>,
}

impl Line {
    pub fn has(&self, name: &str) -> bool {
        self.last(name).is_some_and(|value| value != "false")
    }

    pub fn last<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).last()
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.flags.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// A number that a flag was given.
    pub fn number<T: std::str::FromStr>(&self, name: &'static str) -> Result<Option<T>> {
        let Some(text) = self.last(name) else { return Ok(None) };
        let bad = |_| wrong(&format!("--{name}"), format!("{text:?} is no number in range"));
        text.parse().map(Some).map_err(bad)
    }

    /// The one word that a verb takes: a container's id.
    pub fn id(&self) -> Result<&str> {
        match self.words.as_slice() {
            [id] => Ok(id),
            [] => Err(wrong("container", "its id is missing".into())),
            [_, second, ..] => Err(wrong(second, "one container's id is all there may be".into())),
        }
    }
}

pub const fn switch(name: &'static str, short: &'static str, help: &'static str) -> Flag {
    Flag { name, short, takes: Takes::Nothing, help }
}

pub const fn value(name: &'static str, short: &'static str, help: &'static str) -> Flag {
    Flag { name, short, takes: Takes::Value, help }
}

/// Takes words apart; gives too what was left where flags had to come first.
///
/// # Errors
/// `Invalid` for a flag that isn't known, or one without its value.
pub fn parse(flags: &[Flag], order: Order, words: &[String]) -> Result<Line> {
    let mut line = Line::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--" {
            line.words.extend(words.by_ref().cloned());
            break;
        }
        let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|name| !name.is_empty());
        let Some(name) = name else {
            line.words.push(word.clone());
            if order == Order::First {
                line.words.extend(words.by_ref().cloned());
                break;
            }
            continue;
        };
        let (name, given) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        let known = flags.iter().find(|flag| flag.name == name || flag.short == name);
        let flag = known.ok_or_else(|| wrong(word, "there is no such flag; --help lists them".into()))?;
        let value = match (flag.takes, given) {
            (_, Some(value)) => value,
            (Takes::Nothing, None) => "true".to_owned(),
            (Takes::Value, None) => {
                words.next().cloned().ok_or_else(|| wrong(word, "its value is missing".into()))?
            }
        };
        if flag.takes == Takes::Nothing && !matches!(value.as_str(), "true" | "false") {
            return Err(wrong(word, "it is either true or false".into()));
        }
        line.flags.push((flag.name, value));
    }
    Ok(line)
}

pub fn wrong(object: &str, why: String) -> Error {
    Error::invalid("read arguments", object, why)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FLAGS: &[Flag] = &[value("bundle", "b", ""), switch("all", "a", ""), value("env", "e", "")];

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn flags_are_taken_in_all_forms_of_gos() {
        for text in ["--bundle /b id", "-b /b id", "--bundle=/b id", "-bundle /b id", "-b=/b id", "id -b /b"]
        {
            let line = parse(FLAGS, Order::Anywhere, &words(text)).unwrap();
            assert_eq!((line.last("bundle"), line.id().unwrap()), (Some("/b"), "id"), "{text}");
        }
        let line = parse(FLAGS, Order::First, &words("-e A=1 --env B=2 --all id sh -c -b")).unwrap();
        assert_eq!(line.all("env").collect::<Vec<_>>(), ["A=1", "B=2"]);
        assert!(line.has("all"));
        assert_eq!(line.words, ["id", "sh", "-c", "-b"]);
        assert!(!parse(FLAGS, Order::First, &words("--all=false id")).unwrap().has("all"));
        assert_eq!(parse(FLAGS, Order::Anywhere, &words("-- --all")).unwrap().words, ["--all"]);
    }

    #[test]
    fn what_is_no_flag_or_lacks_its_value_is_refused() {
        for text in ["--bundles x", "--bundle", "-x", "--all=maybe"] {
            assert!(parse(FLAGS, Order::Anywhere, &words(text)).is_err(), "{text}");
        }
        assert!(Line::default().id().is_err());
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(text in prop::collection::vec("[-=a-z/ ]{0,8}", 0..8)) {
            // Refusing is an answer too.
            parse(FLAGS, Order::Anywhere, &text).ok();
            parse(FLAGS, Order::First, &text).ok();
        }
    }
}
