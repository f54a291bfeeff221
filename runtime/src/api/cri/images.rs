//! CRI's ImageService: the table of the six calls and what they say.

use std::collections::HashMap;

use berth_cri::v1::{self as cri, image_service_server::ImageService};
use tonic::{Request, Response, Status};
use tracing::info_span;

use super::{
    filled,
    lists::{Pieces, pieces},
    required,
};
use crate::{
    Error, Kind, Result,
    api::{Door, now, status::call},
    image,
};

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ImageService for Door {
    async fn list_images(&self, request: Request<cri::ListImagesRequest>) -> Answer<cri::ListImagesResponse> {
        let filter = request.into_inner().filter;
        call(info_span!("rpc", op = "ListImages"), async {
            Ok(cri::ListImagesResponse { images: self.listed_images(filter) })
        })
        .await
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Answer<cri::ImageStatusResponse> {
        let request = request.into_inner();
        let span = info_span!("rpc", op = "ImageStatus", image = name_in(request.image.as_ref()));
        let status = async {
            let image = named("look at image", request.image)?;
            // Absent is no error: the kubelet asks before it pulls.
            let found = self.images.find(&image.image);
            let info = match &found {
                Some(found) if request.verbose => details(found)?,
                _ => HashMap::new(),
            };
            Ok(cri::ImageStatusResponse { image: found.as_ref().map(message), info })
        };
        call(span, status).await
    }

    async fn pull_image(&self, request: Request<cri::PullImageRequest>) -> Answer<cri::PullImageResponse> {
        let request = request.into_inner();
        let span = info_span!("rpc", op = "PullImage", image = name_in(request.image.as_ref()));
        let pulled = async {
            let reference = named("pull image", request.image)?.image;
            let auth = request.auth.map(credentials);
            let namespace = request.sandbox_config.and_then(|config| config.metadata);
            let namespace = namespace.map(|metadata| metadata.namespace).filter(|name| !name.is_empty());
            let asked = image::PullRequest { reference, auth, plain_http: false, namespace, progress: None };
            let image = self.images.pull(asked).await?;
            Ok(cri::PullImageResponse { image_ref: image.id })
        };
        call(span, pulled).await
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Answer<cri::RemoveImageResponse> {
        let image = request.into_inner().image;
        let span = info_span!("rpc", op = "RemoveImage", image = name_in(image.as_ref()));
        let removed = async {
            self.images.remove(&named("remove image", image)?.image).await?;
            Ok(cri::RemoveImageResponse {})
        };
        call(span, removed).await
    }

    async fn image_fs_info(&self, _: Request<cri::ImageFsInfoRequest>) -> Answer<cri::ImageFsInfoResponse> {
        let images = self.images.clone();
        let told = async {
            let usage = tokio::task::spawn_blocking(move || images.usage())
                .await
                .map_err(|error| Error::new(Kind::Internal, "measure", "image store").because(error))??;
            let usage = cri::FilesystemUsage {
                timestamp: now(),
                fs_id: Some(cri::FilesystemIdentifier { mountpoint: usage.mountpoint.display().to_string() }),
                used_bytes: Some(cri::UInt64Value { value: usage.used_bytes }),
                inodes_used: Some(cri::UInt64Value { value: usage.inodes_used }),
            };
            let writable = self.writable_layers().display().to_string();
            let same = usage.fs_id.as_ref().is_some_and(|id| id.mountpoint == writable);
            // On a disk of their own the writable layers come to what the last walks found.
            let container_filesystems =
                if same { vec![usage.clone()] } else { vec![self.layers.whole(self.writable_layers())] };
            Ok(cri::ImageFsInfoResponse { image_filesystems: vec![usage], container_filesystems })
        };
        call(info_span!("rpc", op = "ImageFsInfo"), told).await
    }

    type StreamImagesStream = Pieces<cri::StreamImagesResponse>;
    async fn stream_images(
        &self,
        request: Request<cri::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        let filter = request.into_inner().filter;
        call(info_span!("rpc", op = "StreamImages"), async {
            Ok(pieces(self.listed_images(filter), |images| cri::StreamImagesResponse { images }))
        })
        .await
    }
}

impl Door {
    fn listed_images(&self, filter: Option<cri::ImageFilter>) -> Vec<cri::Image> {
        let wanted = filter.and_then(|filter| filter.image).unwrap_or_default().image;
        let found = match wanted.as_str() {
            "" => self.images.list(),
            name => self.images.find(name).into_iter().collect(),
        };
        found.iter().map(message).collect()
    }
}

fn named(op: &'static str, image: Option<cri::ImageSpec>) -> Result<cri::ImageSpec> {
    let image = required(op, "image", image)?;
    filled(op, "image.image", &image.image)?;
    Ok(image)
}

fn name_in(image: Option<&cri::ImageSpec>) -> &str {
    image.map_or("", |image| image.image.as_str())
}

fn credentials(auth: cri::AuthConfig) -> image::Auth {
    image::Auth {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
        server_address: auth.server_address,
    }
}

fn message(image: &image::Image) -> cri::Image {
    let user = image.config.config().as_ref().and_then(|config| config.user().as_deref()).unwrap_or("");
    let (uid, username) = user_of(user);
    cri::Image {
        id: image.id.clone(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size_bytes,
        uid: uid.map(|value| cri::Int64Value { value }),
        username,
        spec: Some(cri::ImageSpec { image: image.id.clone(), ..Default::default() }),
        pinned: image.pinned,
    }
}

/// The image's USER without its group: a number, else a name.
fn user_of(user: &str) -> (Option<i64>, String) {
    let user = user.split_once(':').map_or(user, |(user, _)| user);
    match user.parse() {
        Ok(uid) => (Some(uid), String::new()),
        Err(_) => (None, user.to_owned()),
    }
}

fn details(image: &image::Image) -> Result<HashMap<String, String>> {
    let spec = serde_json::to_value(&image.config)
        .map_err(|error| Error::new(Kind::Internal, "print image", &image.id).because(error))?;
    Ok(HashMap::from([("info".into(), serde_json::json!({ "imageSpec": spec }).to_string())]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_numeric_user_is_a_uid_and_any_other_a_name() {
        let rows = [
            ("", (None, "")),
            ("0", (Some(0), "")),
            ("1000:1000", (Some(1000), "")),
            ("www-data", (None, "www-data")),
            ("www-data:33", (None, "www-data")),
        ];
        for (user, (uid, name)) in rows {
            assert_eq!(user_of(user), (uid, name.to_owned()), "{user}");
        }
    }

    #[test]
    fn an_image_must_be_named() {
        assert_eq!(named("pull image", None).unwrap_err().chain(), "pull image image: the field is missing");
        let empty = Some(cri::ImageSpec::default());
        assert_eq!(
            named("pull image", empty).unwrap_err().chain(),
            "pull image image.image: the field is missing"
        );
    }
}
