//! The pod calls.

use std::collections::HashMap;

use berth_cri::{Items, v1 as cri};

use super::{check, filled, labelled, required, view};
use crate::{
    Result,
    api::{Door, find},
    pod::{Client, PodView, RunPod},
};

impl Door {
    pub(super) async fn run_pod(
        &self,
        request: cri::RunPodSandboxRequest,
    ) -> Result<cri::RunPodSandboxResponse> {
        let asked = asked(request)?;
        let id = self.pods.run(asked).await?;
        Ok(cri::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
    }

    pub(super) async fn stop_pod(&self, text: &str) -> Result<()> {
        find::absent_is_done(async { self.pods.stop(&find::pod(&self.pods, text)?.id).await }.await)
    }

    pub(super) async fn remove_pod(&self, text: &str) -> Result<()> {
        find::absent_is_done(async { self.pods.remove(&find::pod(&self.pods, text)?.id).await }.await)
    }

    /// The pod's cgroup is the client's, and it has changed it already: what it says is noted, and told in `info`.
    pub(super) async fn resize_pod(&self, request: cri::UpdatePodSandboxResourcesRequest) -> Result<()> {
        const OP: &str = "update pod";
        for (field, resources) in [("overhead", &request.overhead), ("resources", &request.resources)] {
            resources.as_ref().map_or(Ok(()), |resources| check::resources(OP, field, resources))?;
        }
        let pod = find::pod(&self.pods, &request.pod_sandbox_id)?;
        self.pods.resize_pod(&pod.id, request.overhead, request.resources).await
    }

    pub(super) fn pod_status(
        &self,
        request: &cri::PodSandboxStatusRequest,
    ) -> Result<cri::PodSandboxStatusResponse> {
        let pod = find::pod(&self.pods, &request.pod_sandbox_id)?;
        Ok(cri::PodSandboxStatusResponse {
            status: Some(view::pod_status(&pod)),
            info: if request.verbose { view::pod_info(&pod) } else { HashMap::new() },
            // Nothing of its containers: a kubelet that follows events (EventedPLEG) and is told them here, with a time, takes
            // none of them for one of the pod's present sandbox, and runs init containers again that are done (1.37).
            containers_statuses: Vec::new(),
            timestamp: 0,
        })
    }

    pub(super) fn list_pods(&self, filter: &cri::PodSandboxFilter) -> Result<Items> {
        check::pod_state("list pods", filter)?;
        let rows = self.lists.rows(&self.pods.list());
        let items =
            rows.iter().filter(|rows| passes(&rows.view, filter)).map(|rows| rows.pod.clone()).collect();
        Ok(Items { items })
    }
}

/// What a request asks for, once nothing is missing in it.
fn asked(request: cri::RunPodSandboxRequest) -> Result<RunPod> {
    const OP: &str = "run pod";
    let config = required(OP, "config", request.config)?;
    let metadata = required(OP, "config.metadata", config.metadata.as_ref())?;
    // A kubelet's client refuses a whole status without these, so nothing could be learnt of such a pod.
    filled(OP, "config.metadata.name", &metadata.name)?;
    filled(OP, "config.metadata.uid", &metadata.uid)?;
    filled(OP, "config.metadata.namespace", &metadata.namespace)?;
    check::pod(OP, &config)?;
    Ok(RunPod { config, handler: request.runtime_handler, client: Client::Cri })
}

/// A kubelet's pods that match all that the filter says; its id may be a prefix.
fn passes(pod: &PodView, filter: &cri::PodSandboxFilter) -> bool {
    pod.client == Client::Cri
        && pod.id.as_str().starts_with(&filter.id)
        && filter.state.is_none_or(|wanted| wanted.state() == view::pod_state(pod.state))
        && labelled(&pod.config.labels, &filter.label_selector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn what_is_missing_in_a_request_is_named() {
        let metadata = |name: &str, uid: &str, namespace: &str| cri::PodSandboxMetadata {
            name: name.into(),
            uid: uid.into(),
            namespace: namespace.into(),
            attempt: 0,
        };
        let request = |metadata| cri::RunPodSandboxRequest {
            config: Some(cri::PodSandboxConfig { metadata, ..Default::default() }),
            runtime_handler: String::new(),
        };
        let rows = [
            (cri::RunPodSandboxRequest::default(), "run pod config: "),
            (request(None), "run pod config.metadata: "),
            (request(Some(metadata("", "u", "n"))), "run pod config.metadata.name: "),
            (request(Some(metadata("p", "", "n"))), "run pod config.metadata.uid: "),
            (request(Some(metadata("p", "u", ""))), "run pod config.metadata.namespace: "),
        ];
        for (request, expected) in rows {
            let error = asked(request).unwrap_err();
            assert_eq!(error.kind, Kind::Invalid);
            assert!(error.chain().starts_with(expected), "{}", error.chain());
        }
        assert!(asked(request(Some(metadata("p", "u", "n")))).is_ok());
    }

    #[test]
    fn a_filter_means_all_of_what_it_says() {
        let pod = view::tests::pod();
        let id = pod.id.to_string();
        let state = |state: cri::PodSandboxState| Some(cri::PodSandboxStateValue { state: state.into() });
        let labels = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
        let filter =
            |id: &str, state, label_selector| cri::PodSandboxFilter { id: id.into(), state, label_selector };
        let rows = [
            (filter("", None, HashMap::new()), true),
            (filter(&id, state(cri::PodSandboxState::SandboxReady), labels("app", "web")), true),
            (filter(&id[..5], None, HashMap::new()), true),
            (filter("zz", None, HashMap::new()), false),
            (filter(&id, state(cri::PodSandboxState::SandboxNotready), HashMap::new()), false),
            (filter(&id, None, labels("app", "db")), false),
            (filter(&id, None, labels("tier", "")), false),
        ];
        for (filter, expected) in rows {
            assert_eq!(passes(&pod, &filter), expected, "{filter:?}");
        }
        let standalone = PodView { client: Client::Standalone, ..pod };
        assert!(!passes(&standalone, &cri::PodSandboxFilter::default()));
    }
}
