//! CRI v1: `runtime` is the table of the 37 calls and `images` that of the six; the rest is what they say.

mod catalog;
mod check;
mod containers;
mod events;
mod exec;
#[cfg(test)]
mod hostile;
mod images;
mod layers;
mod lists;
mod metrics;
mod node;
mod pods;
mod rates;
mod runtime;
mod stats;
mod streaming;
mod view;

pub use self::{layers::Layers, lists::Lists, rates::Rates};

use std::collections::HashMap;

use crate::{Error, Result};

/// Takes a field that must be there.
fn required<T>(op: &'static str, field: &'static str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| missing(op, field))
}

/// Refuses an empty text.
fn filled(op: &'static str, field: &'static str, value: &str) -> Result<()> {
    if value.is_empty() { Err(missing(op, field)) } else { Ok(()) }
}

fn missing(op: &'static str, field: &'static str) -> Error {
    Error::invalid(op, field, "the field is missing")
}

/// All of `wanted` are among `labels`.
fn labelled(labels: &HashMap<String, String>, wanted: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
