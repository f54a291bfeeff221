//! A kubelet and its kind, built from the published Go modules: once, below the user's cache directory, by version.
//!
//! `k8s.io/kubernetes` names its own parts in a version that is no version (v0.0.0) and replaces them by directories of its
//! repository. A module of our own requires it and replaces the parts by what is published of them.
//!
//! ```text
//!   <cache>/berth/kubernetes/v1.37.2/module/{go.mod,go.sum}
//!                                    bin/{kubelet,kubectl,…}       a program is there whole or not at all
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::process;

const VERSION: &str = "v1.37.2";
/// The same of the parts.
const PARTS_VERSION: &str = "v0.37.2";

/// What `k8s.io/kubernetes` replaces in its go.mod, each below `k8s.io/`.
const PARTS: &[&str] = &[
    "api",
    "apiextensions-apiserver",
    "apimachinery",
    "apiserver",
    "cli-runtime",
    "client-go",
    "cloud-provider",
    "cluster-bootstrap",
    "code-generator",
    "component-base",
    "component-helpers",
    "controller-manager",
    "cri-api",
    "cri-client",
    "cri-streaming",
    "csi-translation-lib",
    "dynamic-resource-allocation",
    "endpointslice",
    "externaljwt",
    "kms",
    "kube-aggregator",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
    "metrics",
    "mount-utils",
    "pod-security-admission",
    "sample-apiserver",
    "sample-cli-plugin",
    "sample-controller",
    "streaming",
];

/// What a kubelet without a cluster needs.
pub const NODE: &[&str] = &["kubelet", "kubectl", "agnhost"];
/// What a node needs whose pods come from an apiserver, and nobody else does anything.
pub const JOINED: &[&str] = &["kubelet", "kubectl", "agnhost", "etcd", "kube-apiserver"];
/// What a cluster of one node needs, and its services.
pub const CLUSTER: &[&str] = &[
    "kubelet",
    "kubectl",
    "agnhost",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
];

/// Builds those that are missing, some minutes each on a small machine, and returns the directory of all.
///
/// # Errors
/// What Go said; that there is no Go.
pub fn programs(wanted: &[&str]) -> Result<PathBuf> {
    let home = cache()?.join("kubernetes").join(VERSION);
    let bin = home.join("bin");
    let missing: Vec<&str> = wanted.iter().copied().filter(|name| !bin.join(name).is_file()).collect();
    if missing.is_empty() {
        return Ok(bin);
    }
    if !process::succeeds(Command::new("go").arg("version")) {
        bail!("no Go in PATH: it builds {}", missing.join(", "));
    }
    let module = home.join("module");
    write_module(&module)?;
    fs::create_dir_all(&bin).with_context(|| format!("make {}", bin.display()))?;
    for name in missing {
        println!("xtask: building {name} {VERSION}: this takes minutes, once");
        build(&module, name, &bin)?;
    }
    Ok(bin)
}

/// Where these are, if all of them were built before.
///
/// # Errors
/// There is no cache directory.
pub fn built(wanted: &[&str]) -> Result<Option<PathBuf>> {
    let bin = cache()?.join("kubernetes").join(VERSION).join("bin");
    Ok(wanted.iter().all(|name| bin.join(name).is_file()).then_some(bin))
}

/// Where what is costly to make is kept between clones.
pub fn cache() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    Ok(cache.context("find a cache directory: neither XDG_CACHE_HOME nor HOME is set")?.join("berth"))
}

fn write_module(module: &Path) -> Result<()> {
    fs::create_dir_all(module).with_context(|| format!("make {}", module.display()))?;
    let file = module.join("go.mod");
    // Go adds what these require: what is there already saves it the asking.
    if file.is_file() {
        return Ok(());
    }
    fs::write(&file, go_mod()).with_context(|| format!("write {}", file.display()))
}

fn go_mod() -> String {
    let replaced: String =
        PARTS.iter().map(|part| format!("\tk8s.io/{part} => k8s.io/{part} {PARTS_VERSION}\n")).collect();
    format!(
        "module berth.example/kubernetes\n\ngo 1.26.0\n\nrequire k8s.io/kubernetes {VERSION}\n\nreplace (\n{replaced})\n"
    )
}

fn build(module: &Path, name: &str, bin: &Path) -> Result<()> {
    let package = match name {
        "agnhost" => "k8s.io/kubernetes/test/images/agnhost".to_owned(),
        // The version that Kubernetes' own tests require.
        "etcd" => "go.etcd.io/etcd/server/v3".to_owned(),
        _ => format!("k8s.io/kubernetes/cmd/{name}"),
    };
    // A kubelet whose version says v0.0.0 is refused by an apiserver that has one.
    let version = "k8s.io/component-base/version";
    let flags =
        format!("-s -w -X {version}.gitVersion={VERSION} -X {version}.gitMajor=1 -X {version}.gitMinor=37");
    let unfinished = bin.join(format!("{name}.new"));
    let mut go = Command::new("go");
    go.current_dir(module)
        .envs([("CGO_ENABLED", "0"), ("GOFLAGS", "-mod=mod -buildvcs=false -trimpath")])
        // Two at a time: the linker of an apiserver takes a gigabyte.
        .args(["build", "-p", "2", "-ldflags", &flags, "-o"])
        .arg(&unfinished)
        .arg(&package);
    process::run(&mut go)?;
    fs::rename(&unfinished, bin.join(name)).with_context(|| format!("name {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_replaces_every_part_once() {
        let text = go_mod();
        assert!(PARTS.windows(2).all(|pair| pair[0] < pair[1]));
        for part in PARTS {
            assert_eq!(text.matches(&format!("\tk8s.io/{part} => ")).count(), 1, "{part}");
        }
        assert!(text.contains("require k8s.io/kubernetes v1.37.2\n"), "{text}");
    }
}
