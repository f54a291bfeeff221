//! Explain: timelines -> berth.v1 messages.

use berth_cri::berth as api;

use crate::{
    Error, Result,
    api::Door,
    pod::{Step, Story},
};

pub(super) fn explain(door: &Door, request: &api::ExplainRequest) -> Result<api::ExplainResponse> {
    let timelines = door.pods.timelines();
    let mut found = timelines.find(&request.subject).into_iter();
    let Some(story) = found.next() else {
        return Err(Error::not_found("explain", &request.subject).hint(
            "`berth ps -a --all-clients` and `berth pods` list what is there; what went is kept for an hour",
        ));
    };
    let others = found.map(|story| story.id).collect();
    let family = match story.pod.as_str() {
        "" => timelines.of_pod(&story.id),
        pod => timelines.find(pod),
    };
    let stories = std::iter::once(story).chain(family).map(message).collect();
    Ok(api::ExplainResponse { stories, others })
}

fn message(story: Story) -> api::Story {
    let steps = story.steps().map(step).collect();
    let Story { id, name, pod, left_out, gone_at, .. } = story;
    api::Story { id, name, pod_id: pod, gone_at, steps, left_out }
}

fn step(step: &Step) -> api::Step {
    api::Step {
        at: step.at,
        took_us: step.took.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
        what: step.what.to_string(),
        detail: step.detail.clone(),
        error: step.error.clone(),
    }
}
