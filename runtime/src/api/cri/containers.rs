//! The container calls, ExecSync and stats aside.

use std::{collections::HashMap, time::Duration};

use berth_cri::{Items, v1 as cri};

use super::{check, filled, labelled, required, view};
use crate::{
    Result,
    api::{Door, find},
    pod::{Client, ContainerView, CreateContainer, Options},
};

impl Door {
    pub(super) async fn create_in_pod(
        &self,
        request: cri::CreateContainerRequest,
    ) -> Result<cri::CreateContainerResponse> {
        let (pod, asked) = asked(request)?;
        let pod = find::pod(&self.pods, &pod)?;
        let id = self.pods.create(&pod.id, asked).await?;
        Ok(cri::CreateContainerResponse { container_id: id.to_string() })
    }

    pub(super) async fn start(&self, text: &str) -> Result<()> {
        let id = find::container(&self.pods, text)?.id;
        self.pods.start(&id).await
    }

    pub(super) async fn stop(&self, request: &cri::StopContainerRequest) -> Result<()> {
        // Zero means now.
        let grace = Duration::from_secs(check::seconds("stop container", "timeout", request.timeout)?);
        let stopped = async {
            let id = find::container(&self.pods, &request.container_id)?.id;
            self.pods.stop_container(&id, Some(grace)).await
        };
        find::absent_is_done(stopped.await)
    }

    pub(super) async fn remove(&self, text: &str) -> Result<()> {
        let removed = async {
            let id = find::container(&self.pods, text)?.id;
            self.pods.remove_container(&id).await
        };
        find::absent_is_done(removed.await)
    }

    pub(super) fn list_of_cri(&self, filter: &cri::ContainerFilter) -> Result<Items> {
        check::container_state("list containers", filter)?;
        let rows = self.lists.rows(&self.pods.list());
        let all = rows.iter().flat_map(|rows| rows.view.containers.iter().zip(&rows.containers));
        let items =
            all.filter(|(container, _)| passes(container, filter)).map(|(_, row)| row.clone()).collect();
        Ok(Items { items })
    }

    pub(super) fn status_of(
        &self,
        request: &cri::ContainerStatusRequest,
    ) -> Result<cri::ContainerStatusResponse> {
        let container = find::container(&self.pods, &request.container_id)?;
        Ok(cri::ContainerStatusResponse {
            status: Some(view::container_status(&container)),
            info: if request.verbose { view::container_info(&container) } else { HashMap::new() },
        })
    }

    pub(super) async fn update(&self, request: cri::UpdateContainerResourcesRequest) -> Result<()> {
        const OP: &str = "update container";
        let id = find::container(&self.pods, &request.container_id)?.id;
        let linux = required(OP, "linux", request.linux)?;
        check::resources(OP, "linux", &linux)?;
        self.pods.update(&id, linux).await
    }

    pub(super) async fn reopen_log(&self, text: &str) -> Result<()> {
        let id = find::container(&self.pods, text)?.id;
        self.pods.reopen_log(&id).await
    }
}

/// The pod's id and what is to be made in it, once nothing is missing.
fn asked(request: cri::CreateContainerRequest) -> Result<(String, CreateContainer)> {
    const OP: &str = "create container";
    let config = required(OP, "config", request.config)?;
    let metadata = required(OP, "config.metadata", config.metadata.as_ref())?;
    filled(OP, "config.metadata.name", &metadata.name)?;
    let image = required(OP, "config.image", config.image.as_ref())?;
    filled(OP, "config.image.image", &image.image)?;
    check::container(OP, &config)?;
    let asked = CreateContainer {
        config,
        sandbox: request.sandbox_config.unwrap_or_default(),
        options: Options { create_bind_sources: true, ..Options::default() },
        id: None,
        keep_layer: false,
        standalone: None,
    };
    Ok((request.pod_sandbox_id, asked))
}

/// A kubelet's containers that match all that the filter says; its ids may be prefixes.
fn passes(container: &ContainerView, filter: &cri::ContainerFilter) -> bool {
    container.client == Client::Cri
        && container.id.as_str().starts_with(&filter.id)
        && container.pod.as_str().starts_with(&filter.pod_sandbox_id)
        && filter.state.is_none_or(|wanted| wanted.state() == view::container_state(container.state))
        && labelled(&container.config.labels, &filter.label_selector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn what_is_missing_in_a_request_is_named() {
        let full = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "c".into(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: "busybox".into(), ..Default::default() }),
            ..Default::default()
        };
        let request = |config| cri::CreateContainerRequest { config, ..Default::default() };
        let rows = [
            (None, "config: "),
            (Some(cri::ContainerConfig { metadata: None, ..full.clone() }), "config.metadata: "),
            (
                Some(cri::ContainerConfig { metadata: Some(Default::default()), ..full.clone() }),
                "config.metadata.name: ",
            ),
            (Some(cri::ContainerConfig { image: None, ..full.clone() }), "config.image: "),
            (
                Some(cri::ContainerConfig { image: Some(Default::default()), ..full.clone() }),
                "config.image.image: ",
            ),
        ];
        for (config, expected) in rows {
            let error = asked(request(config)).unwrap_err();
            assert_eq!(error.kind, Kind::Invalid);
            assert!(error.chain().starts_with(&format!("create container {expected}")), "{}", error.chain());
        }
        assert!(asked(request(Some(full))).is_ok());
    }

    #[test]
    fn a_filter_means_all_of_what_it_says() {
        let container = view::tests::container();
        let id = container.id.to_string();
        let pod = container.pod.to_string();
        let state = |state: cri::ContainerState| Some(cri::ContainerStateValue { state: state.into() });
        let filter = |id: &str, pod: &str, state, label: &str| cri::ContainerFilter {
            id: id.into(),
            state,
            pod_sandbox_id: pod.into(),
            label_selector: HashMap::from([("io.kubernetes.container.name".to_owned(), label.to_owned())]),
        };
        let running = || state(cri::ContainerState::ContainerRunning);
        assert!(passes(&container, &cri::ContainerFilter::default()));
        assert!(passes(&container, &filter(&id, &pod, running(), "c")));
        assert!(passes(&container, &filter(&id[..7], &pod[..7], None, "c")));
        assert!(!passes(&container, &filter("zz", &pod, None, "c")));
        assert!(!passes(&container, &filter(&id, "zz", None, "c")));
        assert!(!passes(&container, &filter(&id, &pod, state(cri::ContainerState::ContainerExited), "c")));
        assert!(!passes(&container, &filter(&id, &pod, running(), "d")));
    }
}
