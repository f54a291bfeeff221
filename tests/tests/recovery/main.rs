//! The daemon dies; containers do not. What they wrote and how they ended is there when it is back.

mod attempts;
mod clock;
mod crash;
mod disk;
mod faults;
mod found;
mod frozen;
mod hang;
mod memory;
mod output;
mod reboot;
mod refusals;
mod registry;
mod sender;
mod service;
mod shim;
mod story;
mod sweep;

/// Whether the kernel tells the exit status of a process that somebody else has reaped.
fn kernel_keeps() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 15)
}
