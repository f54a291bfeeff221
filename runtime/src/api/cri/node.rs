//! Version, Status, RuntimeConfig: what the node is and whether it can take pods.

use std::collections::HashMap;

use berth_cri::v1 as cri;

use crate::api::{Door, VERSION};

/// The names of the handler that Berth itself is; CRI wants the default one listed as "".
pub(super) const HANDLERS: [&str; 2] = ["", "berth"];

impl Door {
    pub(super) fn version(&self) -> cri::VersionResponse {
        cri::VersionResponse {
            // Of the kubelet's own protocol; it accepts no other.
            version: "0.1.0".into(),
            runtime_name: "berth".into(),
            runtime_version: VERSION.into(),
            runtime_api_version: "v1".into(),
        }
    }

    pub(super) fn node_status(&self, request: &cri::StatusRequest) -> cri::StatusResponse {
        let network = self.rooms.network.ready();
        let runtime = condition("RuntimeReady", Ok(()), "");
        let network = condition("NetworkReady", network, "NetworkNotReady");
        cri::StatusResponse {
            status: Some(cri::RuntimeStatus { conditions: vec![runtime, network] }),
            info: if request.verbose { self.node_info() } else { HashMap::new() },
            runtime_handlers: HANDLERS.map(handler).into(),
            features: Some(cri::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
                mount_options: false,
            }),
        }
    }

    pub(super) fn cgroup_driver(&self) -> cri::RuntimeConfigResponse {
        let cgroup_driver = cri::CgroupDriver::Cgroupfs.into();
        cri::RuntimeConfigResponse { linux: Some(cri::LinuxRuntimeConfiguration { cgroup_driver }) }
    }

    fn node_info(&self) -> HashMap<String, String> {
        let daemon = &self.config.daemon;
        let config = serde_json::json!({
            "rootDir": daemon.root,
            "stateDir": daemon.state,
            "listen": daemon.listen,
            "cgroups": format!("{:?}", self.rooms.cgroups.mode).to_lowercase(),
            "network": self.rooms.network.describe(),
        });
        HashMap::from([("config".into(), config.to_string())])
    }
}

fn handler(name: &str) -> cri::RuntimeHandler {
    let features = cri::RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: false };
    cri::RuntimeHandler { name: name.into(), features: Some(features) }
}

fn condition(kind: &str, ready: Result<(), String>, reason: &str) -> cri::RuntimeCondition {
    match ready {
        Ok(()) => cri::RuntimeCondition { r#type: kind.into(), status: true, ..Default::default() },
        Err(message) => {
            cri::RuntimeCondition { r#type: kind.into(), status: false, reason: reason.into(), message }
        }
    }
}
