//! explain: the steps of a pod or a container in the order of their times.

use berth_cri::berth::{ExplainRequest, ExplainResponse, Step, Story};
use clap::Args;

use super::{
    command::Shape,
    connect::Daemon,
    failure::Result,
    human, inspect,
    logs::now,
    output::{self, Format},
};

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// A name, an id, or the beginning of one
    #[arg(value_name = "POD|CONTAINER")]
    subject: String,
    #[command(flatten)]
    shape: Shape,
}

pub(super) async fn explain(daemon: &Daemon, flags: Flags, format: Format) -> Result<u8> {
    let told = daemon.daemon().explain(ExplainRequest { subject: flags.subject }).await?.into_inner();
    output::show(flags.shape.or(format), "berth.v1.ExplainResponse", &told, || text(&told, now()))?;
    Ok(0)
}

fn text(told: &ExplainResponse, now: i64) -> String {
    let mut text: String = told.stories.iter().take(1).map(|story| title(story, now)).collect();
    let mut steps: Vec<(&Story, &Step)> =
        told.stories.iter().flat_map(|story| story.steps.iter().map(move |step| (story, step))).collect();
    steps.sort_by_key(|(_, step)| step.at);
    let rows = steps.into_iter().map(|(story, step)| row(story, step));
    text += &output::table(["TIME", "TOOK", "OF", "WHAT", "DETAIL"], rows);
    for story in told.stories.iter().filter(|story| story.left_out > 0) {
        text += &format!("{} steps of {} are not kept\n", story.left_out, whose(story));
    }
    if !told.others.is_empty() {
        let ids: Vec<_> = told.others.iter().map(|id| human::short_id(id)).collect();
        text += &format!("there are more of that name: {}\n", ids.join(", "));
    }
    text
}

fn title(story: &Story, now: i64) -> String {
    let kind = if story.pod_id.is_empty() { "pod" } else { "container" };
    let gone = match story.gone_at {
        0 => String::new(),
        at => format!(", gone {} ago", human::span(now - at)),
    };
    let name = if story.name.is_empty() { String::new() } else { format!(" {}", story.name) };
    format!("{kind}{name} {}{gone}\n", human::short_id(&story.id))
}

fn whose(story: &Story) -> String {
    match (story.pod_id.as_str(), story.name.as_str()) {
        ("", _) => "pod".into(),
        (_, "") => human::short_id(&story.id).into(),
        (_, name) => name.into(),
    }
}

fn row(story: &Story, step: &Step) -> [String; 5] {
    let took = step.took_us.map(|us| format!("{}.{:03} ms", us / 1000, us % 1000)).unwrap_or_default();
    let detail = match (step.detail.as_str(), step.error.as_str()) {
        (detail, "") => detail.to_owned(),
        ("", error) => format!("FAILED: {error}"),
        (detail, error) => format!("{detail}; FAILED: {error}"),
    };
    [inspect::time(step.at), took, whose(story), step.what.clone(), detail]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_a_pod_and_its_containers_are_told_in_the_order_of_their_times() {
        const SECOND: i64 = 1_000_000_000;
        let step = |at: i64, what: &str, error: &str| Step {
            at: at * SECOND,
            took_us: Some(1500),
            what: what.into(),
            error: error.into(),
            ..Default::default()
        };
        let pod = Story {
            id: "ab".repeat(32),
            name: "default/web".into(),
            gone_at: 5 * SECOND,
            steps: vec![step(1, "take addresses", ""), step(4, "removed", "")],
            ..Default::default()
        };
        let container = Story {
            id: "cd".repeat(32),
            name: "app".into(),
            pod_id: pod.id.clone(),
            steps: vec![step(2, "launch", "mount /x: no such file")],
            left_out: 3,
            ..Default::default()
        };
        let told = ExplainResponse { stories: vec![pod, container], others: vec!["ef".repeat(32)] };
        let text = text(&told, 65 * SECOND);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "pod default/web abababababab, gone About a minute ago");
        assert!(lines[2].contains("1970-01-01T00:00:01Z") && lines[2].contains("take addresses"), "{text}");
        assert!(lines[3].contains("app") && lines[3].contains("FAILED: mount /x: no such file"), "{text}");
        assert!(lines[4].contains("removed") && lines[4].contains("1.500 ms"), "{text}");
        assert_eq!(lines[5], "3 steps of app are not kept");
        assert_eq!(lines[6], "there are more of that name: efefefefefef");
    }
}
