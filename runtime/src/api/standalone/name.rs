//! Names of standalone containers: made up where none is given, one container each.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    Error, Kind, Result,
    api::find,
    id::ContainerId,
    pod::{ContainerView, Pods},
};

const ADJECTIVES: [&str; 32] = [
    "able", "amber", "bold", "brave", "bright", "brisk", "calm", "clear", "crisp", "eager", "fair", "fleet",
    "fresh", "gentle", "glad", "grand", "keen", "kind", "light", "lively", "lucky", "merry", "mild", "neat",
    "noble", "patient", "proud", "quiet", "steady", "swift", "trim", "wise",
];
const NOUNS: [&str; 32] = [
    "anchor", "barge", "bay", "beacon", "boat", "breeze", "brig", "buoy", "canal", "cape", "cargo", "coast",
    "cove", "crane", "crew", "deck", "dock", "ferry", "fjord", "harbour", "heron", "jetty", "lagoon", "mast",
    "pier", "pilot", "quay", "reef", "sail", "shoal", "skiff", "tide",
];

/// The longest name; it is also a host name and a log field.
const NAME_BYTES: usize = 128;

/// Names of containers on their way: taken, but in no list yet. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Names(Arc<Mutex<BTreeSet<String>>>);

/// A name held until the container that has it is listed, or came to nothing.
#[derive(Debug)]
pub(super) struct Held {
    names: Names,
    pub(super) name: String,
}

impl Names {
    /// Takes `wanted`, or for an empty one a name made from `id`.
    ///
    /// # Errors
    /// `AlreadyExists` names the container that has it; `Invalid` for what can be no name.
    pub(super) fn take(&self, pods: &Pods, wanted: &str, id: &ContainerId) -> Result<Held> {
        check(wanted)?;
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Listed under the lock: who let go of a name before has it in the list by now.
        let listed = pods.list();
        let containers = || listed.iter().flat_map(|pod| &pod.containers);
        let holder = |name: &str| containers().find(|container| find::name(container) == Some(name));
        let name = if wanted.is_empty() {
            let free = |name: &String| !taken.contains(name) && holder(name).is_none();
            (0..).map(|attempt| made_up(id, attempt)).find(free).unwrap_or_else(|| id.to_string())
        } else if let Some(found) = holder(wanted) {
            return Err(exists(wanted, Some(found)));
        } else if taken.contains(wanted) {
            return Err(exists(wanted, None));
        } else {
            wanted.to_owned()
        };
        taken.insert(name.clone());
        drop(taken);
        Ok(Held { names: self.clone(), name })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.names.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

fn exists(name: &str, holder: Option<&ContainerView>) -> Error {
    let cause = match holder {
        Some(holder) => format!("container {} has the name", holder.id.short()),
        None => "a container with that name is being created".into(),
    };
    Error::new(Kind::AlreadyExists, "name container", name)
        .because(crate::error::Cause(cause))
        .hint(format!("give another --name, or remove that one with `berth rm {name}`"))
}

fn check(name: &str) -> Result<()> {
    let wrong = |cause: &str| Err(Error::invalid("name container", format!("{name:?}"), cause));
    if name.is_empty() {
        return Ok(());
    }
    if name.len() > NAME_BYTES {
        return wrong("a name has at most 128 bytes");
    }
    let begins = name.as_bytes()[0].is_ascii_alphanumeric();
    if !begins || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')) {
        return wrong("a name is letters, digits, `_`, `.` and `-`, and begins with a letter or a digit");
    }
    if ContainerId::parse(name).is_ok() {
        return wrong("it reads as a container's id");
    }
    Ok(())
}

/// Two words picked by the id's digits; from the second attempt on with digits of it behind.
fn made_up(id: &ContainerId, attempt: usize) -> String {
    let digits = id.as_str();
    let pick = |from: usize| usize::from_str_radix(&digits[from..from + 4], 16).unwrap_or(0);
    let name = format!("{}-{}", ADJECTIVES[pick(0) % ADJECTIVES.len()], NOUNS[pick(4) % NOUNS.len()]);
    match attempt {
        0 => name,
        _ => format!("{name}-{}", &digits[8..(11 + attempt).min(digits.len())]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_word_that_is_no_id() {
        for good in ["", "a", "web-1", "Web_1.x", "0abc", &"a".repeat(128)] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["-a", ".a", "a/b", "a b", "ä", "a\0", &"a".repeat(129), &"a".repeat(64)] {
            assert_eq!(check(bad).unwrap_err().kind, Kind::Invalid, "{bad}");
        }
    }

    #[test]
    fn made_up_names_differ_per_attempt_and_are_names() {
        let id = ContainerId::random();
        let names: BTreeSet<_> = (0..4).map(|attempt| made_up(&id, attempt)).collect();
        assert_eq!(names.len(), 4);
        for name in names {
            check(&name).unwrap();
        }
    }

    #[test]
    fn a_name_let_go_is_free_again() {
        let names = Names::default();
        names.0.lock().unwrap().insert("web".into());
        drop(Held { names: names.clone(), name: "web".into() });
        assert!(names.0.lock().unwrap().is_empty());
    }
}
