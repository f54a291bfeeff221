//! bpf(2): the device program of a v2 cgroup, loaded and attached in place of what is there.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

const PROG_LOAD: i64 = 5;
const PROG_ATTACH: i64 = 8;
const PROG_DETACH: i64 = 9;
const PROG_GET_FD_BY_ID: i64 = 13;
const PROG_QUERY: i64 = 16;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
/// The most programs that the kernel lets one group have.
const PROGRAMS: usize = 64;

/// The head of `union bpf_attr` for loading.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct ById {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Attaches a program (`struct bpf_insn[]`) to a cgroup's directory, then detaches all others: between the two both hold.
pub fn set_device_program(group: BorrowedFd<'_>, program: &[u8]) -> io::Result<()> {
    const INSTRUCTION_BYTES: usize = 8;
    if program.is_empty() || !program.len().is_multiple_of(INSTRUCTION_BYTES) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let target_fd = group.as_raw_fd().unsigned_abs();
    let mut ids = [0u32; PROGRAMS];
    let mut query = Query {
        target_fd,
        attach_type: ATTACH_CGROUP_DEVICE,
        prog_ids: (&raw mut ids) as u64,
        prog_cnt: PROGRAMS as u32,
        ..Query::default()
    };
    bpf(PROG_QUERY, &mut query)?;
    // The kernel reads instructions of 8 bytes with their alignment.
    let words: Vec<u64> = program
        .chunks_exact(INSTRUCTION_BYTES)
        .map(|bytes| bytes.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte)).to_le())
        .collect();
    let mut load = Load {
        prog_type: TYPE_CGROUP_DEVICE,
        insn_cnt: words.len() as u32,
        insns: words.as_ptr() as u64,
        license: c"Apache".as_ptr() as u64,
        ..Load::default()
    };
    let loaded = bpf(PROG_LOAD, &mut load).and_then(owned)?;
    let mut attach = Attach {
        target_fd,
        attach_bpf_fd: loaded.as_raw_fd().unsigned_abs(),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
        ..Attach::default()
    };
    bpf(PROG_ATTACH, &mut attach)?;
    for &prog_id in ids.iter().take(query.prog_cnt as usize) {
        // One that went by itself needs no detaching.
        let Ok(old) = bpf(PROG_GET_FD_BY_ID, &mut ById { prog_id, ..ById::default() }).and_then(owned) else {
            continue;
        };
        let attach_bpf_fd = old.as_raw_fd().unsigned_abs();
        let attach_type = ATTACH_CGROUP_DEVICE;
        bpf(PROG_DETACH, &mut Attach { target_fd, attach_bpf_fd, attach_type, ..Attach::default() })?;
    }
    Ok(())
}

fn bpf<T>(command: i64, attributes: &mut T) -> io::Result<i64> {
    // SAFETY: the structs above are plain integers, laid out as the head of bpf_attr for their command; what their
    // pointers point at is owned by the caller's frame and outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: i64) -> io::Result<OwnedFd> {
    let number = i32::try_from(result).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: both callers got a new descriptor from the kernel, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
