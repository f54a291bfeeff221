//! `berth oci`: an OCI runtime's command line, as podman, containerd and people use it.

mod exec;
mod hooks;
mod lifecycle;
mod limits;
mod outside;
mod podman;
mod refused;
