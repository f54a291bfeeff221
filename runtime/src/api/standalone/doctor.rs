//! Doctor: findings -> berth.v1 messages.

use berth_cri::berth::{self as api, finding};

use crate::{
    Result,
    api::Door,
    pod::{Finding, Mending, Outcome},
};

pub(super) async fn doctor(door: &Door, request: &api::DoctorRequest) -> Result<api::DoctorResponse> {
    let mending = if request.fix { Mending::Mend } else { Mending::Tell };
    let findings = door.pods.examine(mending).await?;
    let text = |path: &std::path::PathBuf| path.display().to_string();
    Ok(api::DoctorResponse {
        findings: findings.into_iter().map(message).collect(),
        root: text(&door.config.daemon.root),
        state: text(&door.config.daemon.state),
        cni_conf_dir: text(&door.config.network.conf_dir),
        cni_bin_dirs: door.config.network.bin_dirs.iter().map(text).collect(),
        ..api::DoctorResponse::default()
    })
}

fn message(found: Finding) -> api::Finding {
    let Finding { kind, object, why, remedy, outcome } = found;
    let (outcome, message) = match outcome {
        Outcome::Mendable => (finding::Outcome::Mendable, String::new()),
        Outcome::Mended => (finding::Outcome::Fixed, String::new()),
        Outcome::NotMended(why) => (finding::Outcome::NotFixed, why),
        Outcome::Told => (finding::Outcome::Told, String::new()),
    };
    api::Finding { kind: kind.into(), object, why, remedy, outcome: outcome.into(), message }
}
