//! How the programs are linked: what is relocated at their start as a bitmap, which is a twentieth of a table. `elf(5)`, DT_RELR.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
