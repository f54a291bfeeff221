//! Images: from archives and registries, whole or damaged or hostile, until they are removed.

mod archives;
mod credentials;
mod disks;
mod hostile;
mod layers;
mod proxies;
mod registries;
mod store;

use std::{fs, path::Path};

use berth_cri::v1 as cri;
use berth_tests::{Answer, Daemon};

fn named(name: &str) -> Option<cri::ImageSpec> {
    Some(cri::ImageSpec { image: name.into(), ..Default::default() })
}

fn pull(daemon: &Daemon, name: &str) -> Answer<String> {
    let request = cri::PullImageRequest { image: named(name), ..Default::default() };
    daemon.call(daemon.images().pull_image(request)).map(|answer| answer.image_ref)
}

fn status(daemon: &Daemon, name: &str) -> Option<cri::Image> {
    let request = cri::ImageStatusRequest { image: named(name), verbose: false };
    daemon.call(daemon.images().image_status(request)).expect("ask for the image").image
}

fn list(daemon: &Daemon) -> Vec<cri::Image> {
    daemon.call(daemon.images().list_images(cri::ListImagesRequest::default())).expect("list images").images
}

fn remove(daemon: &Daemon, name: &str) -> Answer<()> {
    let request = cri::RemoveImageRequest { image: named(name) };
    daemon.call(daemon.images().remove_image(request)).map(drop)
}

/// Everything below the daemon's root that is no directory, relative, sorted: what a store without images holds.
fn files(daemon: &Daemon) -> Vec<String> {
    fn walk(top: &Path, at: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(at).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                walk(top, &path, found);
            } else {
                found.push(path.strip_prefix(top).expect("it is below").display().to_string());
            }
        }
    }
    let mut found = Vec::new();
    walk(&daemon.root(), &daemon.root(), &mut found);
    found.sort();
    found
}
