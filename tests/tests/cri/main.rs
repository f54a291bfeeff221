//! CRI as a kubelet uses it, over the socket.

mod cni;
mod cni_handlers;
mod containers;
mod cost;
mod devices;
mod errors;
mod filter;
mod handlers;
mod hostile;
mod limits;
mod logs;
mod memory;
mod namespaces;
mod network;
mod node;
mod observe;
mod pods;
mod security;
mod spdy;
mod streaming;
mod systemd;
mod together;
mod users;
mod volumes;
mod way_out;

/// Whether the kernel tells the exit status of a process that somebody else has reaped: Linux 6.15.
fn kernel_keeps_exit_statuses() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 15)
}
