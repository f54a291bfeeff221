//! The store through its public doors: imports, pulls from a registry made here, removals, reopening. As root.

mod crash;
mod damage;
mod differential;
mod fixture;
mod fuzz;
mod hosts;
mod imports;
mod limits;
mod pulls;
mod records;
mod server;
mod signed;
mod tapes;
mod used;
