//! The daemon dies; containers do not. What they wrote and how they ended is there when it is back.

mod attempts;
mod crash;
mod disk;
mod faults;
mod found;
mod reboot;
mod shim;
mod sweep;
