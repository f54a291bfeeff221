//! `berth oci`: an OCI runtime's command line, as podman, containerd and people use it.

mod attacks;
mod controllers;
mod devices;
mod exec;
mod hooks;
mod lifecycle;
mod limits;
mod many;
mod mounts;
mod namespaces;
mod nested;
mod network;
mod notify;
mod outside;
mod podman;
mod process;
mod ready;
mod refused;
mod rootless;
mod systemd;
mod tmpfs;
