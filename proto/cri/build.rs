//! Compiles the two proto files without protoc and keeps their descriptors for reflection and tests.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(["cri.proto", "berth.proto"], ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=cri.proto");
    println!("cargo:rerun-if-changed=berth.proto");
    Ok(())
}
