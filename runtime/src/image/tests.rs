//! The store through its public doors: imports, pulls from a registry made here, removals, reopening. As root.

mod fixture;
mod hosts;
mod imports;
mod pulls;
mod records;
mod server;
