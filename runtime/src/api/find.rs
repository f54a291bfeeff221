//! What a caller's text means: an id, an unambiguous prefix of one, or a standalone container's name.
//!
//! Clients send what people type, so prefixes are accepted wherever an id is. A word that is no id is not found; what
//! can be none (a path, nothing) is refused by its field. The text never goes further than this file.

use std::sync::Arc;

use crate::{
    Error, Kind, Result,
    id::{ContainerId, PodId},
    pod::{Client, ContainerView, PodView, Pods},
};

/// A pod of CRI's.
///
/// # Errors
/// `Invalid` for what can be no id, `NotFound`.
pub fn pod(pods: &Pods, text: &str) -> Result<Arc<PodView>> {
    id("find pod", "pod_sandbox_id", text)?;
    if let Ok(id) = PodId::parse(text) {
        let found = pods.pod(&id).filter(|pod| pod.client == Client::Cri);
        return found.ok_or_else(|| Error::not_found("find pod", text));
    }
    let listed = pods.list();
    let candidates = listed.iter().filter(|pod| pod.client == Client::Cri);
    one("find pod", text, candidates, |pod| pod.id.as_str()).cloned()
}

/// A container of CRI's.
///
/// # Errors
/// `Invalid` for what can be no id, `NotFound`.
pub fn container(pods: &Pods, text: &str) -> Result<ContainerView> {
    id("find container", "container_id", text)?;
    if let Ok(id) = ContainerId::parse(text) {
        let found = pods.container(&id).filter(|container| container.client == Client::Cri);
        return found.ok_or_else(|| Error::not_found("find container", text));
    }
    let listed = pods.list();
    let candidates = listed.iter().filter(|pod| pod.client == Client::Cri).flat_map(|pod| &pod.containers);
    one("find container", text, candidates, |container| container.id.as_str()).cloned()
}

/// Any container: by the name of a standalone one, by id, by prefix.
pub fn any_container(pods: &Pods, text: &str) -> Result<ContainerView> {
    if let Ok(id) = ContainerId::parse(text)
        && let Some(found) = pods.container(&id)
    {
        return Ok(found);
    }
    let listed = pods.list();
    let containers = || listed.iter().flat_map(|pod| &pod.containers);
    if let Some(named) = containers().find(|container| name(container) == Some(text)) {
        return Ok(named.clone());
    }
    one("find container", text, containers(), |container| container.id.as_str()).cloned().map_err(|error| {
        match error.kind {
            Kind::NotFound => error.hint("`berth ps -a` lists the names"),
            _ => error,
        }
    })
}

/// The name that a person gave, or was given, for a standalone container.
pub fn name(container: &ContainerView) -> Option<&str> {
    container.standalone.as_ref().map(|spec| spec.name.as_str())
}

/// `NotFound` -> success, for calls that may be repeated.
pub fn absent_is_done(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind == Kind::NotFound => Ok(()),
        other => other,
    }
}

/// An id as clients write it, whole or its beginning.
fn id(op: &'static str, field: &'static str, text: &str) -> Result<()> {
    const LONGEST: usize = 256;
    if text.is_empty() {
        return Err(Error::invalid(op, field, "the field is missing"));
    }
    let letters = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    match letters && text.len() <= LONGEST {
        true => Ok(()),
        false => Err(Error::invalid(op, field, "an id is of hex digits")),
    }
}

fn one<'a, T>(
    op: &'static str,
    text: &str,
    candidates: impl Iterator<Item = &'a T>,
    id: impl Fn(&T) -> &str,
) -> Result<&'a T> {
    if text.is_empty() {
        return Err(Error::invalid(op, "\"\"", "the id is empty"));
    }
    let hex = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let mut matching = candidates.filter(|candidate| hex && id(candidate).starts_with(text));
    match (matching.next(), matching.next()) {
        (Some(only), None) => Ok(only),
        (Some(_), Some(_)) => {
            Err(Error::invalid(op, text, "more than one id begins so").hint("give more digits of it"))
        }
        (None, _) => Err(Error::not_found(op, format!("{text:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_enough_while_it_is_unambiguous() {
        let ids = ["abc123".to_owned(), "abd456".to_owned()];
        let find = |text| one("find", text, ids.iter(), |id| id.as_str());
        assert_eq!(find("abc").unwrap(), "abc123");
        assert_eq!(find("abd456").unwrap(), "abd456");
        assert_eq!(find("ab").unwrap_err().kind, Kind::Invalid);
        assert_eq!(find("").unwrap_err().kind, Kind::Invalid);
        for text in ["f", "../../etc/passwd", "/", "abc1234", "ABC", "abc\0", "ä"] {
            assert_eq!(find(text).unwrap_err().kind, Kind::NotFound, "{text}");
        }
    }

    #[test]
    fn an_id_is_no_path() {
        for good in ["abc123", "some-uuid-1", "x.y_z"] {
            assert!(id("find", "container_id", good).is_ok(), "{good}");
        }
        for bad in ["", "a/b", "../x", "a\0", "a b", "ä", &"a".repeat(257)] {
            let error = id("find", "container_id", bad).unwrap_err();
            assert_eq!((error.kind, error.object.as_str()), (Kind::Invalid, "container_id"), "{bad}");
        }
    }

    #[test]
    fn only_absence_is_success_for_repeated_calls() {
        assert!(absent_is_done(Err(Error::not_found("stop", "x"))).is_ok());
        assert!(absent_is_done(Err(Error::new(Kind::Internal, "stop", "x"))).is_err());
    }
}
