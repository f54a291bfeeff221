//! Images that are mounted into containers: which they are, the hold on their layers, and the one error that the kubelet
//! knows them by (`k8s.io/cri-api/pkg/errors`, ErrImageVolumeMountFailed). And the holds of all containers after a power cut.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use berth_cri::v1 as cri;
use berth_launch::v1::{Failure, Step};
use tracing::{info, warn};

use super::{
    Rooms, blocking, place,
    record::{ContainerRecord, Phase},
};
use crate::{Error, Result, error::Cause, id::ContainerId};

/// A cause that begins so is moved to the front of the message.
const PREFIX: &str = "ImageVolumeMountFailed";
const OP: &str = "mount image volume";

/// The ids of the images that are mounted, by position; empty for other mounts.
///
/// # Errors
/// `NotFound` for an image that isn't here.
pub fn resolve(rooms: &Rooms, mounts: &[cri::Mount]) -> Result<Vec<String>> {
    let id = |mount: &cri::Mount| {
        let Some(image) = &mount.image else { return Ok(String::new()) };
        let found = rooms.images.find(&image.image).map(|found| found.id);
        found.ok_or_else(|| {
            let why = Cause(format!("{PREFIX}: there is no image {:?}", image.image));
            Error::new(crate::Kind::NotFound, OP, &mount.container_path)
                .because(why)
                .hint(format!("pull it first: berth pull {}", image.image))
        })
    };
    mounts.iter().map(id).collect()
}

/// Holds the layers of each until `release`. `empty` is a directory without content, made here: an overlay needs two.
pub fn hold(
    rooms: &Rooms,
    id: &ContainerId,
    record: &ContainerRecord,
    empty: &Path,
) -> Result<BTreeMap<usize, Vec<PathBuf>>> {
    let mut held = BTreeMap::new();
    for (n, image) in images(record) {
        place::make(empty)?;
        let mut lowers = rooms.images.hold(image, &holder(id, n))?.lowers;
        lowers.push(empty.to_owned());
        held.insert(n, lowers);
    }
    Ok(held)
}

/// A hold on layers is on the disk when its image is removed: a power cut before that may have taken it, or half of it.
pub async fn hold_again(rooms: &Rooms, containers: &[(ContainerId, ContainerRecord)]) -> Result<()> {
    let made = containers.iter().filter(|(_, record)| record.phase() != Phase::Making);
    let uses = made.flat_map(|(id, record)| holders(id, record));
    let lost: Vec<_> = uses.filter(|(holder, _)| !rooms.images.is_held(holder)).collect();
    let images = rooms.images.clone();
    blocking("hold layers again", move || {
        for (holder, image) in lost {
            match images.hold(&image, &holder) {
                Ok(_) => info!(holder, image, "its hold on an image was lost or torn: it is held again"),
                Err(error) => warn!(holder, error = error.chain(), "its hold on an image was lost"),
            }
        }
        Ok(())
    })
    .await
}

/// By whom what is held for a container: its own image, and those that are mounted.
fn holders(id: &ContainerId, record: &ContainerRecord) -> Vec<(String, String)> {
    let own = (id.to_string(), record.image_id.clone());
    std::iter::once(own).chain(images(record).map(|(n, image)| (holder(id, n), image.to_owned()))).collect()
}

/// Lets them go; those that never were held are success. Goes on after an error; gives the first.
pub fn release(rooms: &Rooms, id: &ContainerId, record: &ContainerRecord) -> Result<()> {
    images(record).map(|(n, _)| rooms.images.release(&holder(id, n))).fold(Ok(()), Result::and)
}

/// What a failed launch means where the mount that failed is an image: the kubelet tells it apart by its first word.
pub fn explain(error: Error, failure: &Failure, mounts: &[cri::Mount]) -> Error {
    let about = matches!(failure.step(), Step::Mount | Step::Overlay | Step::BindSource);
    let image = mounts.iter().filter(|mount| mount.image.is_some());
    match image.map(|mount| &mount.container_path).find(|at| about && **at == failure.object) {
        Some(at) => Error::new(error.kind, OP, at).because(Cause(format!("{PREFIX}: {}", error.chain()))),
        None => error,
    }
}

fn images(record: &ContainerRecord) -> impl Iterator<Item = (usize, &str)> {
    let ids = record.volume_images.iter().map(String::as_str).enumerate();
    ids.filter(|(_, id)| !id.is_empty())
}

fn holder(id: &ContainerId, n: usize) -> String {
    format!("{id}-volume-{n}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn only_the_failure_of_an_images_mount_has_the_kubelets_word() {
        let mounts = [
            cri::Mount {
                container_path: "/image".into(),
                image: Some(cri::ImageSpec::default()),
                ..Default::default()
            },
            cri::Mount { container_path: "/volume".into(), ..Default::default() },
        ];
        let failure = |step: Step, object: &str| Failure {
            step: step.into(),
            object: object.into(),
            ..Default::default()
        };
        let rows = [
            (failure(Step::Mount, "/image"), true),
            (failure(Step::Overlay, "/image"), true),
            (failure(Step::Mount, "/volume"), false),
            (failure(Step::Workdir, "/image"), false),
        ];
        for (failure, told) in rows {
            let error = explain(Error::new(Kind::Internal, "mount on", &failure.object), &failure, &mounts);
            assert_eq!(error.chain().contains("ImageVolumeMountFailed: "), told, "{failure:?}");
        }
    }
}
