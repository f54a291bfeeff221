//! Device rules for the v1 controller. It has a default and exceptions from it, no order: rules are worked in one by one,
//! and what can't be said that way is refused rather than said too widely.

use super::{Access, Kind, Numbers, Rule, Rules, Verdict};
use crate::{Error, Kind as ErrorKind, Result, error::Cause};

/// What a group's list is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    default: Verdict,
    /// Each of one kind, each place once.
    exceptions: Vec<(Numbers, Access)>,
}

impl List {
    /// # Errors
    /// `Precondition` for a rule that takes back a part of an earlier, wider one.
    pub fn of(rules: &Rules) -> Result<Self> {
        let mut list = Self { default: Verdict::Deny, exceptions: Vec::new() };
        for rule in &rules.0 {
            list.work_in(rule)?;
        }
        if list.default == Verdict::Deny {
            list.join();
        }
        Ok(list)
    }

    fn work_in(&mut self, rule: &Rule) -> Result<()> {
        if rule.is_everything() {
            *self = Self { default: rule.verdict, exceptions: Vec::new() };
            return Ok(());
        }
        for kind in [Kind::Block, Kind::Char] {
            let of_kind = Numbers { kind: Some(kind), major: None, minor: None };
            let Some(on) = rule.on.shared(&of_kind) else { continue };
            match rule.verdict == self.default {
                true => self.take_back(on, rule.access)?,
                false => self.add(on, rule.access),
            }
        }
        Ok(())
    }

    fn add(&mut self, on: Numbers, access: Access) {
        match self.exceptions.iter_mut().find(|(place, _)| *place == on) {
            Some((_, there)) => *there = there.with(access),
            None => self.exceptions.push((on, access)),
        }
    }

    fn take_back(&mut self, on: Numbers, access: Access) -> Result<()> {
        for (place, there) in &mut self.exceptions {
            let meets = place.shared(&on).is_some() && !there.both(access).is_none();
            if on.cover(place) {
                *there = there.without(access);
            } else if meets {
                return Err(Error::new(ErrorKind::Precondition, "limit devices", line(on, access))
                    .because(Cause(format!(
                        "cgroup v1 can't take a part of an earlier rule back: {}",
                        line(*place, *there)
                    )))
                    .hint("name the devices one by one, or use cgroup v2"));
            }
        }
        self.exceptions.retain(|(_, access)| !access.is_none());
        Ok(())
    }

    /// The kernel wants one exception that allows all that an open asks for: where two meet, both hold, so one more says so.
    fn join(&mut self) {
        let mut at = 0;
        while at < self.exceptions.len() {
            for other in 0..at {
                let ((one, first), (two, second)) = (self.exceptions[at], self.exceptions[other]);
                let opens = |access: Access| access.both(Access::READ.with(Access::WRITE));
                let (first, second) = (opens(first), opens(second));
                let widens = !first.without(second).is_none() && !second.without(first).is_none();
                // Each lacks what the other has; else the one that has all is enough.
                if let Some(shared) = one.shared(&two).filter(|_| widens) {
                    self.add(shared, first.with(second));
                }
            }
            at += 1;
        }
    }

    /// What is to be written, file and line, to a group whose `devices.list` says this now. Where it has such a list already
    /// only the differences are: at no moment is more taken away than is to be.
    pub fn lines(&self, now: &str) -> Vec<(&'static str, String)> {
        let (to_default, to_except) = match self.default {
            Verdict::Deny => ("devices.deny", "devices.allow"),
            Verdict::Allow => ("devices.allow", "devices.deny"),
        };
        let there = match self.default {
            Verdict::Deny => exceptions(now),
            // The kernel tells nothing of what is forbidden beside a default that allows.
            Verdict::Allow => None,
        };
        let mut lines = Vec::new();
        if there.is_none() {
            lines.push((to_default, "a".to_owned()));
        }
        let there = there.unwrap_or_default();
        let of = |list: &[(Numbers, Access)], place: Numbers| {
            list.iter().find(|(other, _)| *other == place).map_or(Access(0), |(_, access)| *access)
        };
        for (place, access) in &there {
            let over = access.without(of(&self.exceptions, *place));
            if !over.is_none() {
                lines.push((to_default, line(*place, over)));
            }
        }
        for (place, access) in &self.exceptions {
            let lacking = access.without(of(&there, *place));
            if !lacking.is_none() {
                lines.push((to_except, line(*place, lacking)));
            }
        }
        lines
    }
}

/// What a `devices.list` allows; `None` where it allows by default, or says what we don't know.
fn exceptions(list: &str) -> Option<Vec<(Numbers, Access)>> {
    list.lines().filter(|line| !line.trim().is_empty()).map(exception).collect()
}

/// "c 136:* rwm"
pub(super) fn exception(line: &str) -> Option<(Numbers, Access)> {
    let mut words = line.split_whitespace();
    let kind = match words.next()? {
        "b" => Kind::Block,
        "c" => Kind::Char,
        _ => return None,
    };
    let (major, minor) = words.next()?.split_once(':')?;
    let number = |text: &str| match text {
        "*" => Some(None),
        digits => digits.parse().ok().map(Some),
    };
    let on = Numbers { kind: Some(kind), major: number(major)?, minor: number(minor)? };
    Some((on, Access::parse(words.next()?).ok()?))
}

pub(super) fn line(on: Numbers, access: Access) -> String {
    let kind = match on.kind {
        None => 'a',
        Some(Kind::Block) => 'b',
        Some(Kind::Char) => 'c',
    };
    let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    let letters = [(Access::READ, 'r'), (Access::WRITE, 'w'), (Access::MAKE, 'm')];
    let letters: String =
        letters.iter().filter(|(one, _)| !access.both(*one).is_none()).map(|(_, letter)| letter).collect();
    format!("{kind} {}:{} {letters}", number(on.major), number(on.minor))
}
