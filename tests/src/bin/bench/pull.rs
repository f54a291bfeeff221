//! Pulls: all images at once, until the last one is there.

use std::time::{Duration, Instant};

use berth_cri::v1::{ImageSpec, PullImageRequest, image_service_client::ImageServiceClient};

use crate::{
    Report, Runtime,
    kubelet::{Result, done},
    turns::ms,
};

/// Longer than the largest may take.
pub const LONGEST: Duration = Duration::from_secs(600);

pub async fn all(runtimes: &mut [Runtime], images: &[String], report: &mut Report) -> Result<()> {
    for runtime in runtimes {
        let began = Instant::now();
        let mut tasks = Vec::new();
        for image in images {
            let (mut client, image) =
                (ImageServiceClient::new(runtime.kubelet.channel.clone()), image.clone());
            tasks.push(tokio::spawn(async move {
                let image = Some(ImageSpec { image, ..Default::default() });
                let request = PullImageRequest { image, ..Default::default() };
                done("PullImage", client.pull_image(request).await).map(drop)
            }));
        }
        let mut pulled = Ok(());
        for task in tasks {
            pulled = pulled.and(task.await.map_err(|error| format!("a pull: {error}")).and_then(|done| done));
        }
        match pulled {
            Ok(()) => report.samples("pull", &runtime.name, "ms", vec![ms(began)]),
            Err(error) => report.failed("pull", &runtime.name, &error),
        }
    }
    Ok(())
}
