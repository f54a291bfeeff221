//! Which images are pinned: never removed to make room. Pure.

/// Whether a full tag is one of those listed; an entry that ends with `*` stands for all that begin so.
pub(super) fn is_pinned(tag: &str, pinned: &[String]) -> bool {
    pinned.iter().any(|entry| match entry.strip_suffix('*') {
        Some(beginning) => tag.starts_with(beginning),
        None => tag == entry,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_the_rest_and_nothing_else_does() {
        let pinned = ["registry.k8s.io/pause:3.10".to_owned(), "quay.io/base/*".to_owned()];
        for (tag, expected) in [
            ("registry.k8s.io/pause:3.10", true),
            ("registry.k8s.io/pause:3.10.1", false),
            ("quay.io/base/x:1", true),
            ("quay.io/bases:1", false),
        ] {
            assert_eq!(is_pinned(tag, &pinned), expected, "{tag}");
        }
    }
}
