//! What a kubelet asks of a node where nothing happens: it is asked as often as the real one does.
//!
//! Kubernetes v1.37, pkg/kubelet: lists of pods and containers each second (pleg/generic.go), the runtime's status each
//! five (kubelet.go), the image file system each ten (eviction), images each thirty (images/image_gc_manager.go), and each
//! pod's and its container's status once a minute, as each pod is synced.

use std::time::{Duration, Instant};

use berth_cri::v1::{
    ImageFsInfoRequest, ListImagesRequest, StatusRequest, image_service_client::ImageServiceClient,
};

use crate::{
    Report, Runtime, fleet,
    kubelet::{Kubelet, Result, done, timed},
};

const SYNCED_WITHIN_SECONDS: usize = 60;

pub async fn ask(runtimes: &mut [Runtime], seconds: usize, report: &mut Report) {
    for runtime in runtimes {
        match node(&mut runtime.kubelet, seconds).await {
            Ok(took_ms) => report.samples("a kubelet's second", &runtime.name, "ms", took_ms),
            Err(error) => report.failed("a kubelet's questions", &runtime.name, &error),
        }
    }
}

async fn node(kubelet: &mut Kubelet, seconds: usize) -> Result<Vec<f64>> {
    let (pods, containers) = (kubelet.pods().await?, fleet::running(kubelet).await?);
    let began = Instant::now();
    let mut took_ms = Vec::with_capacity(seconds);
    for second in 0..seconds {
        tokio::time::sleep_until((began + Duration::from_secs(second as u64)).into()).await;
        took_ms.push(timed(questions(kubelet, second, (&pods, &containers))).await?.1);
    }
    tokio::time::sleep_until((began + Duration::from_secs(seconds as u64)).into()).await;
    Ok(took_ms)
}

async fn questions(
    kubelet: &mut Kubelet,
    second: usize,
    (pods, containers): (&[String], &[String]),
) -> Result<()> {
    kubelet.pods().await?;
    kubelet.containers().await?;
    for pod in due(pods, second) {
        kubelet.pod_status(pod).await?;
    }
    for container in due(containers, second) {
        kubelet.container_status(container).await?;
    }
    if second.is_multiple_of(5) {
        done("Status", kubelet.runtime.status(StatusRequest { verbose: false }).await)?;
    }
    let mut images = ImageServiceClient::new(kubelet.channel.clone());
    if second.is_multiple_of(10) {
        done("ImageFsInfo", images.image_fs_info(ImageFsInfoRequest {}).await)?;
    }
    if second.is_multiple_of(30) {
        done("ListImages", images.list_images(ListImagesRequest { filter: None }).await)?;
    }
    Ok(())
}

/// Those whose turn it is in this second of each minute.
fn due(all: &[String], second: usize) -> impl Iterator<Item = &String> {
    all.iter().skip(second % SYNCED_WITHIN_SECONDS).step_by(SYNCED_WITHIN_SECONDS)
}
