//! The v1 devices controller: which device nodes a group may open or make. v2 has no files for it, a program in the
//! kernel decides there; that one comes with the whole OCI surface.

use std::{collections::BTreeSet, path::Path};

use super::file;
use crate::Result;

/// What every container may do: make any node, open the harmless ones and its own terminals.
const DEFAULT: [&str; 11] = [
    "b *:* m",
    "c *:* m",
    "c 1:3 rwm",   // null
    "c 1:5 rwm",   // zero
    "c 1:7 rwm",   // full
    "c 1:8 rwm",   // random
    "c 1:9 rwm",   // urandom
    "c 5:0 rwm",   // tty
    "c 5:1 rwm",   // console
    "c 5:2 rwm",   // ptmx
    "c 136:* rwm", // pts
];

/// Narrows a group to the default list. A group below can never have more than the one above.
pub fn narrow(dir: &Path) -> Result<()> {
    let list = file::read(&dir.join("devices.list"))?.unwrap_or_default();
    // Writing the same again would take everything away for a moment, and is refused once the group has children.
    if is_default(&list) {
        return Ok(());
    }
    file::write(&dir.join("devices.deny"), "a")?;
    DEFAULT.iter().try_for_each(|rule| file::write(&dir.join("devices.allow"), rule))
}

fn is_default(list: &str) -> bool {
    let now: BTreeSet<&str> = list.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    now == BTreeSet::from(DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_list_is_known_again_in_any_order() {
        let mut lines = DEFAULT.to_vec();
        lines.reverse();
        assert!(is_default(&format!("{}\n", lines.join("\n"))));
        assert!(!is_default("a *:* rwm\n"));
        assert!(!is_default(""));
        assert!(!is_default(&lines[1..].join("\n")));
    }
}
