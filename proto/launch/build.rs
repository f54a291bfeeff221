//! Compiles `launch.proto` without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = protox::compile(["launch.proto"], ["."])?;
    prost_build::Config::new().compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=launch.proto");
    Ok(())
}
