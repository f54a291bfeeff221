//! `berth oci`: an OCI runtime's command line, as podman, containerd and people use it.

mod attacks;
mod controllers;
mod devices;
mod exec;
mod filters;
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
mod person;
mod podman;
mod podman_users;
mod process;
mod ready;
mod refused;
mod rootless;
mod systemd;
mod tmpfs;
mod user_systemd;
