//! The two services on Berth's socket, as generated from `cri.proto` and `berth.proto`: messages and
//! stubs, no logic. CRI is Kubernetes' contract; `berth.v1` holds what CRI lacks.
#![allow(missing_debug_implementations, clippy::all, rustdoc::all)]

use prost::bytes::Bytes;

/// CRI v1, package `runtime.v1`.
pub mod v1 {
    tonic::include_proto!("runtime.v1");
    include!(concat!(env!("OUT_DIR"), "/servers/runtime.v1.rs"));
}

/// Berth's own calls, package `berth.v1`.
pub mod berth {
    tonic::include_proto!("berth.v1");
    include!(concat!(env!("OUT_DIR"), "/servers/berth.v1.rs"));
}

/// What a server gives for the messages that hold one list and nothing else (`ListContainersResponse` and its like): the
/// items as they are on the wire. On the wire it is the same message: an embedded message and bytes are both their length
/// and themselves (protobuf encoding, "Length-Delimited Records"). So what is listed every second is encoded once.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Items {
    /// Each an encoded `Container` or `PodSandbox`, by the call.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub items: Vec<Bytes>,
}

/// Both files' descriptors, an encoded `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
