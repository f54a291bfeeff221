//! CRI as a kubelet uses it, over the socket.

mod cni;
mod containers;
mod devices;
mod errors;
mod hostile;
mod limits;
mod logs;
mod namespaces;
mod network;
mod node;
mod observe;
mod pods;
mod security;
mod streaming;
mod users;
mod volumes;
