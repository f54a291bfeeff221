//! The one room with `unsafe`: system calls that rustix lacks, each as a safe function on owned and borrowed fds.
#![allow(unsafe_code)]

pub mod bpf;
pub mod clone;
pub mod exec;
pub mod memory;
pub mod mount;
pub mod netlink;
pub mod pidfd;
pub mod quota;
pub mod scheduling;
pub mod seccomp;
pub mod signal;
