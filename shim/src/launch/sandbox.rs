//! A pod's namespaces: one clone3 makes them, the link is put in, files pin them, and the process that they came from
//! leaves, unless it is to stay as the pod's PID 1.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use berth_launch::v1::{Failure, Link, NamespaceKind, Ready, SandboxPlan, Step};
use rustix::{
    fs::{Mode, OFlags, open},
    mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount},
};

use super::{
    channel::{Channel, Message_},
    child, end,
    failure::{At, Result, fail},
    namespaces, prepare, start_time,
    user::Resolved,
    users,
};
use crate::kernel::{
    self,
    clone::{Parent, Side},
    netlink::Route,
};

/// Makes and pins a pod's namespaces, its link and its /dev/shm. After a failure nothing is left.
pub fn create(plan: &SandboxPlan) -> Result<Ready> {
    let mut made = Undo::default();
    let result = build(plan, &mut made);
    if result.is_ok() {
        made.0.clear();
    }
    result
}

fn build(plan: &SandboxPlan, made: &mut Undo) -> Result<Ready> {
    let mut kinds: Vec<NamespaceKind> = plan.new_namespaces().collect();
    if plan.shared_pid {
        kinds.push(NamespaceKind::Pid);
    }
    if plan.shm_bytes != 0 {
        shm(plan, made)?;
    }
    if kinds.is_empty() {
        return Ok(Ready::default());
    }
    let cgroup = plan.cgroup.clone().unwrap_or_default();
    if plan.shared_pid && !cgroup.device_program.is_empty() {
        super::attach_device_program(&cgroup.v2, &cgroup.device_program)?;
    }
    let group = if plan.shared_pid { prepare::cgroup_v2(&cgroup)? } else { None };
    let mut tasks = if plan.shared_pid { prepare::cgroup_v1(&cgroup)? } else { Vec::new() };
    let (parent, channel) = Channel::pair()?;
    let flags = kinds.iter().fold(0, |flags, kind| flags | namespaces::flag(*kind) as u64);
    match kernel::clone::clone3(flags, group.as_ref().map(AsFd::as_fd), Parent::Us)
        .at(Step::Clone, "sandbox")?
    {
        Side::Child => {
            drop(parent);
            inside(plan, &mut tasks, &channel)
        }
        Side::Parent { pid, pidfd } => {
            drop(channel);
            let outcome =
                map_ids(plan, pid, &parent).and_then(|()| outside(plan, &kinds, pid, &parent, made));
            if outcome.is_err() || !plan.shared_pid {
                end(&pidfd);
            }
            outcome.map(|ready| Ready {
                pid: if plan.shared_pid { pid } else { 0 },
                pid_start_time: if plan.shared_pid { start_time(pid) } else { 0 },
                ..ready
            })
        }
    }
}

/// The parent, before all else: who the child is.
fn map_ids(plan: &SandboxPlan, pid: i32, child: &Channel) -> Result<()> {
    match has_users(plan) {
        true => users::map(pid, &plan.uid_maps, &plan.gid_maps).and_then(|()| child.open_gate()),
        false => Ok(()),
    }
}

fn has_users(plan: &SandboxPlan) -> bool {
    plan.new_namespaces().any(|kind| kind == NamespaceKind::User)
}

/// The parent: the link from outside, the pins, then the child's own half through the gate.
fn outside(
    plan: &SandboxPlan,
    kinds: &[NamespaceKind],
    pid: i32,
    child: &Channel,
    made: &mut Undo,
) -> Result<Ready> {
    if let Some(link) = &plan.link {
        let path = format!("/proc/{pid}/ns/net");
        let linked = open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .at(Step::Link, &path)
            .and_then(|namespace| host_end(link, &namespace));
        if let Err(failure) = linked {
            // A child that died before its gate has said why: then that is the failure to tell.
            return Err(if Path::new(&path).exists() { failure } else { last_word(child) });
        }
    }
    child.open_gate()?;
    let ready = match child.receive()? {
        Message_::Ready(ready, _) => ready,
        Message_::Failure(failure) => return Err(failure),
        Message_::Closed => return Err(fail(Step::Clone, "sandbox", 0, super::DIED)),
    };
    let pins = Path::new(&plan.dir).join(berth_launch::PINS);
    std::fs::create_dir_all(&pins).at(Step::Pin, &pins)?;
    for kind in kinds {
        let name = namespaces::file(*kind);
        let pin = pins.join(name);
        std::fs::write(&pin, "").at(Step::Pin, &pin)?;
        mount_bind(format!("/proc/{pid}/ns/{name}"), &pin).at(Step::Pin, &pin)?;
        made.0.push(pin);
    }
    Ok(ready)
}

/// What a dead child said.
fn last_word(child: &Channel) -> Failure {
    match child.receive() {
        Ok(Message_::Failure(failure)) | Err(failure) => failure,
        Ok(Message_::Ready(..) | Message_::Closed) => fail(Step::Clone, "sandbox", 0, super::DIED),
    }
}

fn host_end(link: &Link, namespace: &OwnedFd) -> Result<()> {
    let route = Route::open().at(Step::Link, "netlink")?;
    route
        .veth(&link.host_name, link.bridge_index, link.mtu, &link.name, &link.mac, namespace)
        .at(Step::Link, &link.host_name)?;
    let index = index_of(&link.host_name)?;
    if link.hairpin {
        route.hairpin(index).at(Step::Link, &link.host_name)?;
    }
    limit(&route, index, &link.host_name, link.ingress_bits)
}

/// Bounds what an end of the pair sends.
fn limit(route: &Route, index: u32, name: &str, bits: u64) -> Result<()> {
    if bits == 0 {
        return Ok(());
    }
    route.limit(index, bits).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT) => {
            let why = "the kernel has no queueing discipline tbf, which limits of bandwidth take: load sch_tbf, or ask for no limit";
            fail(Step::Link, name, libc::EOPNOTSUPP, why)
        }
        errno => fail(Step::Link, name, errno.unwrap_or(0), ""),
    })
}

/// The index of a link of the namespace we are in.
pub fn index_of(name: &str) -> Result<u32> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .at(Step::Link, "socket")?;
    rustix::net::netdevice::name_to_index(&socket, name).at(Step::Link, name)
}

/// The child in the new namespaces: never returns.
fn inside(plan: &SandboxPlan, tasks: &mut [std::fs::File], channel: &Channel) -> ! {
    match set_up(plan, tasks, channel) {
        Ok(()) => channel.send_ready(&Resolved::default(), Vec::new(), None),
        Err(failure) => {
            channel.send_failure(failure);
            kernel::clone::exit_now(1);
        }
    }
    if plan.shared_pid {
        reap();
    }
    // The parent pins what /proc shows of us, then ends us.
    channel.wait_for_gate();
    kernel::clone::exit_now(0)
}

fn set_up(plan: &SandboxPlan, tasks: &mut [std::fs::File], channel: &Channel) -> Result<()> {
    if !plan.shared_pid {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).ok();
    }
    child::enter_cgroups(tasks)?;
    if has_users(plan) {
        if !channel.wait_for_gate() {
            kernel::clone::exit_now(1);
        }
        users::become_root()?;
    }
    if !plan.hostname.is_empty() {
        rustix::system::sethostname(plan.hostname.as_bytes()).at(Step::Hostname, &plan.hostname)?;
    }
    child::sysctls(&plan.sysctls)?;
    if !channel.wait_for_gate() {
        kernel::clone::exit_now(1);
    }
    if plan.new_namespaces().any(|kind| kind == NamespaceKind::Net) {
        let route = Route::open().at(Step::Link, "netlink")?;
        route.up(1).at(Step::Link, "lo")?;
        if let Some(link) = &plan.link {
            pod_end(&route, link)?;
        }
    }
    Ok(())
}

fn pod_end(route: &Route, link: &Link) -> Result<()> {
    let index = index_of(&link.name)?;
    // Its routes are ours to give: a neighbour that says it is a router is not heard. Without IPv6 there is no such file.
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{}/accept_ra", link.name), "0").ok();
    // Up before it has addresses: those of IPv6 that a link has as it comes up get their routes in an atomic context, where
    // memory for them may be short for a moment; the kernel then drops the address and says so to nobody but its log.
    route.up(index).at(Step::Link, &link.name)?;
    for address in &link.addresses {
        let prefix = address.prefix as u8;
        let object = || format!("{}: address {}/{prefix}", link.name, shown(&address.ip));
        route.address(index, &address.ip, prefix).map_err(|error| failed_link(&object(), &error))?;
    }
    for hop in &link.routes {
        let prefix = hop.prefix as u8;
        let object = || format!("{}: route {}/{prefix} by {}", link.name, shown(&hop.to), shown(&hop.via));
        route.route(index, &hop.to, prefix, &hop.via).map_err(|error| failed_link(&object(), &error))?;
    }
    limit(route, index, &link.name, link.egress_bits)
}

fn failed_link(object: &str, error: &std::io::Error) -> Failure {
    fail(Step::Link, object, error.raw_os_error().unwrap_or(0), "")
}

/// An address as people write it; no bytes are any address.
fn shown(ip: &[u8]) -> String {
    let four = <[u8; 4]>::try_from(ip).map(|ip| std::net::Ipv4Addr::from(ip).to_string());
    let sixteen = || <[u8; 16]>::try_from(ip).map(|ip| std::net::Ipv6Addr::from(ip).to_string());
    four.or_else(|_| sixteen()).unwrap_or_else(|_| "any".to_owned())
}

/// PID 1 of a pod: reaps what its containers leave, until it is killed.
fn reap() -> ! {
    rustix::process::set_parent_process_death_signal(None).ok();
    kernel::exec::setsid();
    // Nothing of the shim's is held on to: its streams would keep a reader waiting, its directory a mount.
    rustix::process::chdir("/").ok();
    kernel::exec::close_all();
    // As PID 1 we get no signal that we have no handler for; the pod's end is SIGKILL from outside.
    let set = kernel::signal::wait_set(libc::SIGCHLD);
    loop {
        kernel::signal::wait(&set);
        while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
    }
}

fn shm(plan: &SandboxPlan, made: &mut Undo) -> Result<()> {
    let path = Path::new(&plan.dir).join("shm");
    std::fs::create_dir_all(&path).at(Step::Shm, &path)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let mut data = format!("mode=1777,size={}", plan.shm_bytes);
    if let (Some(uid), Some(gid)) = (users::outside(&plan.uid_maps, 0), users::outside(&plan.gid_maps, 0)) {
        data.push_str(&format!(",uid={uid},gid={gid}"));
    }
    let data = std::ffi::CString::new(data).unwrap_or_default();
    mount("shm", &path, "tmpfs", flags, data.as_c_str()).at(Step::Shm, &path)?;
    made.0.push(path);
    Ok(())
}

/// Mounts to be taken back, last first.
#[derive(Debug, Default)]
struct Undo(Vec<PathBuf>);

impl Drop for Undo {
    fn drop(&mut self) {
        while let Some(path) = self.0.pop() {
            // The failure that brought us here is the one to tell; the daemon sweeps what stays mounted.
            unmount(&path, UnmountFlags::DETACH).ok();
        }
    }
}
