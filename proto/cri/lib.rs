//! The two services on Berth's socket, as generated from `cri.proto` and `berth.proto`: messages and
//! stubs, no logic. CRI is Kubernetes' contract; `berth.v1` holds what CRI lacks.
#![allow(missing_debug_implementations, clippy::all, rustdoc::all)]

/// CRI v1, package `runtime.v1`.
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// Berth's own calls, package `berth.v1`.
pub mod berth {
    tonic::include_proto!("berth.v1");
}

/// Both files' descriptors, an encoded `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
