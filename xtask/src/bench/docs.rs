//! The part of docs/PERFORMANCE.md that a run writes, and its plots in docs/performance.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{figures::Figures, plot, table};
use crate::cargo;

const BEGIN: &str = "<!-- written by `cargo xtask bench --docs`: -->";
const END: &str = "<!-- until here -->";

/// Writes plots, and the section between its marks.
pub fn write(figures: &Figures, header: &Value) -> Result<()> {
    let docs = cargo::root().join("docs");
    let plots = docs.join("performance");
    fs::create_dir_all(&plots).with_context(|| format!("make {}", plots.display()))?;
    let drawn = plot::all(figures);
    for (file, text) in &drawn {
        put(&plots.join(file), text)?;
    }
    let mut section = table::markdown(figures, header);
    let files: Vec<String> = drawn.into_iter().map(|(file, _)| format!("![](performance/{file})")).collect();
    section += &format!("\n{}\n", files.join("\n"));
    let file = docs.join("PERFORMANCE.md");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    put(&file, &replaced(&text, &section)?)
}

fn put(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

fn replaced(text: &str, section: &str) -> Result<String> {
    let (Some(begin), Some(end)) = (text.find(BEGIN), text.find(END)) else {
        bail!("docs/PERFORMANCE.md has no place for figures: between {BEGIN} and {END}");
    };
    if end < begin {
        bail!("docs/PERFORMANCE.md: {END} stands before {BEGIN}");
    }
    Ok(format!("{}{BEGIN}\n\n{section}\n{}", &text[..begin], &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_between_the_marks_is_written() {
        let text = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let once = replaced(&text, "new").unwrap();
        assert_eq!(once, format!("before\n{BEGIN}\n\nnew\n{END}\nafter\n"));
        assert_eq!(replaced(&once, "new").unwrap(), once);
        assert!(replaced("no marks", "new").is_err());
    }

    #[test]
    fn the_document_has_its_place() {
        let text = fs::read_to_string(cargo::root().join("docs/PERFORMANCE.md")).unwrap();
        assert!(replaced(&text, "").is_ok());
    }
}
