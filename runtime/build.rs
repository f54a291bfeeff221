//! How the programs are linked: what is relocated at their start as a bitmap, which is a twentieth of a table. `elf(5)`, DT_RELR.
//! `berth-oci`, whose life is a few milliseconds, is linked to fixed addresses, as the shim is: nothing is relocated.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    let of = |name: &str| std::env::var(name).unwrap_or_default();
    let is_static = of("CARGO_CFG_TARGET_FEATURE").split(',').any(|feature| feature == "crt-static");
    if is_static && of("CARGO_CFG_TARGET_ENV") == "gnu" {
        // The last of them counts with the compiler that links.
        for argument in ["-no-pie", "-static"] {
            println!("cargo:rustc-link-arg-bin=berth-oci={argument}");
        }
    }
}
