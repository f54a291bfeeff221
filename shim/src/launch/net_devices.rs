//! Network devices that are moved into a container: looked at and given by the shim, found and set up by init. What they
//! are (MTU, hardware address) goes with them; their addresses the kernel takes away, so they are given again.
//!
//! ```text
//! shim:  look ── clone3 ─────────── give ── gate
//! init:             └ namespaces ─ waits ────└ set_up
//! ```
//! With the container's network namespace a real device comes back to the host by the kernel, and a virtual one ends.

use berth_launch::v1::{NetDevice, Step};
use rustix::fs::{Mode, OFlags, open};

use super::{
    failure::{At, Result, fail},
    sandbox::index_of,
};
use crate::kernel::netlink::Route;

/// A device as it was on the host.
#[derive(Debug)]
pub struct Device {
    index: u32,
    host_name: String,
    /// In the container.
    name: String,
    addresses: Vec<(Vec<u8>, u8)>,
}

/// Looks at a plan's devices in the network namespace we are in.
pub fn look(devices: &[NetDevice]) -> Result<Vec<Device>> {
    if devices.is_empty() {
        return Ok(Vec::new());
    }
    let route = Route::open().at(Step::Link, "netlink")?;
    devices
        .iter()
        .map(|device| {
            let host_name = device.host_name.clone();
            let index = index_of(&host_name).map_err(|failure| match failure.errno {
                libc::ENODEV => {
                    fail(Step::Link, &host_name, libc::ENODEV, "the host has no such network device")
                }
                _ => failure,
            })?;
            let addresses = route.addresses(index).at(Step::Link, &host_name)?;
            let name = if device.name.is_empty() { host_name.clone() } else { device.name.clone() };
            Ok(Device { index, host_name, name, addresses })
        })
        .collect()
}

/// Moves the devices to the network namespace of a process.
pub fn give(devices: &[Device], pid: i32) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let path = format!("/proc/{pid}/ns/net");
    let namespace = open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).at(Step::Link, &path)?;
    let route = Route::open().at(Step::Link, "netlink")?;
    devices.iter().try_for_each(|device| {
        route.give(device.index, &device.name, &namespace).map_err(|error| {
            let detail = match error.raw_os_error() {
                Some(libc::EEXIST) => format!("the container has a network device {} already", device.name),
                Some(libc::EINVAL) => "the kernel lets it go to no other network namespace".to_owned(),
                Some(libc::EPERM) => {
                    "it takes CAP_NET_ADMIN here and in the container's namespace".to_owned()
                }
                _ => String::new(),
            };
            fail(Step::Link, &device.host_name, error.raw_os_error().unwrap_or(0), &detail)
        })
    })
}

/// Gives the devices their addresses again and brings them up, in the container's network namespace.
pub fn set_up(devices: &[Device]) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let route = Route::open().at(Step::Link, "netlink")?;
    devices.iter().try_for_each(|device| {
        // The number may be another's here.
        let index = index_of(&device.name)?;
        // As in a sandbox, up first: an address of IPv6 may be lost without a word as a link comes up.
        route.up(index).at(Step::Link, &device.name)?;
        device
            .addresses
            .iter()
            .try_for_each(|(ip, prefix)| route.address(index, ip, *prefix).at(Step::Link, &device.name))
    })
}
