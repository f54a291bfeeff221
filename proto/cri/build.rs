//! Compiles the two proto files without protoc and keeps their descriptors for reflection and tests.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

/// Answers that a server may give as bytes it has already: all of them hold one list and nothing else.
const LISTS: [&str; 4] = [
    "ListContainersResponse",
    "ListPodSandboxResponse",
    "StreamContainersResponse",
    "StreamPodSandboxesResponse",
];

fn main() -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(["cri.proto", "berth.proto"], ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let configure = || tonic_prost_build::configure().bytes(".");
    configure().build_server(false).compile_fds(descriptors.clone())?;
    // The servers by themselves: they take and give the messages made above, but for the lists.
    let servers = out.join("servers");
    fs::create_dir_all(&servers)?;
    let mut server = configure()
        .build_client(false)
        .out_dir(servers)
        .extern_path(".runtime.v1", "crate::v1")
        .extern_path(".berth.v1", "crate::berth");
    for list in LISTS {
        server = server.extern_path(format!(".runtime.v1.{list}"), "crate::Items");
    }
    server.compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=cri.proto");
    println!("cargo:rerun-if-changed=berth.proto");
    Ok(())
}
