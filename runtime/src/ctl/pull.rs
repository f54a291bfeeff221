//! pull: a bar per layer where somebody watches, plain lines else. Progress goes to standard error.

use std::{collections::BTreeMap, io};

use berth_cri::berth::{
    LayerProgress, PullRequest, PulledImage, layer_progress::Phase, pull_progress::Event,
};
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{
    connect::Daemon,
    failure::{Failure, Result},
    human,
    output::{self, Format},
    terminal,
};

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// For the registry; seen by others in the list of processes
    #[arg(long, value_name = "USER:PASSWORD")]
    creds: Option<String>,
    /// Speak HTTP without TLS
    #[arg(long)]
    plain_http: bool,
    /// Print nothing but the image's id
    #[arg(short, long)]
    quiet: bool,
    image: String,
}

pub(super) async fn pull(daemon: &Daemon, flags: Flags, format: Format) -> Result<u8> {
    let asked =
        PullRequest { plain_http: flags.plain_http, ..request(&flags.image, flags.creds.as_deref())? };
    let image = if flags.quiet { silent(daemon, asked).await? } else { fetch(daemon, asked).await? };
    output::show(format, "berth.v1.PulledImage", &image, || match flags.quiet {
        true => format!("{}\n", image.id),
        false => format!("{}\n", image.reference),
    })?;
    Ok(0)
}

pub(super) fn request(image: &str, creds: Option<&str>) -> Result<PullRequest> {
    let (username, password) = match creds {
        None => ("", ""),
        Some(creds) => creds
            .split_once(':')
            .filter(|(user, _)| !user.is_empty())
            .ok_or_else(|| Failure::new("--creds is written USER:PASSWORD"))?,
    };
    Ok(PullRequest {
        reference: image.to_owned(),
        username: username.to_owned(),
        password: password.to_owned(),
        plain_http: false,
    })
}

/// Pulls and shows how far it is.
pub(super) async fn fetch(daemon: &Daemon, request: PullRequest) -> Result<PulledImage> {
    let mut shown = match terminal::is_terminal(io::stderr()) {
        true => Shown::Bars(MultiProgress::new(), BTreeMap::new()),
        false => Shown::Lines(BTreeMap::new()),
    };
    shown.say(&format!("pulling {}", request.reference));
    follow(daemon, request, |event| shown.event(event)).await
}

async fn silent(daemon: &Daemon, request: PullRequest) -> Result<PulledImage> {
    follow(daemon, request, |_| {}).await
}

async fn follow(daemon: &Daemon, request: PullRequest, mut see: impl FnMut(&Event)) -> Result<PulledImage> {
    let mut events = daemon.images().pull(request).await?.into_inner();
    while let Some(progress) = events.message().await? {
        if let Some(event) = &progress.event {
            see(event);
        }
        if let Some(Event::Done(image)) = progress.event {
            return Ok(image);
        }
    }
    Err(Failure::new("the daemon ended the pull without a word"))
}

/// Where progress goes.
enum Shown {
    Bars(MultiProgress, BTreeMap<String, ProgressBar>),
    /// The last phase of each layer that a line was printed for.
    Lines(BTreeMap<String, Phase>),
}

impl Shown {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Resolved(digest) => self.say(&format!("digest {digest}")),
            Event::Layer(layer) => self.layer(layer),
            Event::Done(image) => {
                self.say(&format!(
                    "image {} ({})",
                    human::short_id(&image.id),
                    human::decimal_bytes(image.size_bytes)
                ));
            }
        }
    }

    fn say(&self, line: &str) {
        match self {
            // A terminal that takes no line takes no bar either.
            Self::Bars(bars, _) => bars.println(line).unwrap_or_default(),
            Self::Lines(_) => eprintln!("{line}"),
        }
    }

    fn layer(&mut self, layer: &LayerProgress) {
        let id = human::short_id(&layer.digest);
        match self {
            Self::Bars(bars, known) => {
                let bar = known.entry(layer.digest.clone()).or_insert_with(|| {
                    bars.add(ProgressBar::new(layer.total).with_style(style()).with_prefix(id.to_owned()))
                });
                bar.set_length(layer.total);
                bar.set_position(layer.bytes);
                bar.set_message(words(layer.phase()));
                if matches!(layer.phase(), Phase::Done | Phase::Present) {
                    bar.set_position(layer.total);
                    bar.abandon();
                }
            }
            Self::Lines(known) => {
                if known.insert(layer.digest.clone(), layer.phase()) != Some(layer.phase()) {
                    eprintln!("{id} {} {}", words(layer.phase()), human::decimal_bytes(layer.total));
                }
            }
        }
    }
}

fn words(phase: Phase) -> &'static str {
    match phase {
        Phase::Waiting => "waiting",
        Phase::Fetching => "fetching",
        Phase::Unpacking => "unpacking",
        Phase::Done => "done",
        Phase::Present => "here already",
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix} {msg:12} [{bar:40}] {bytes:>10}/{total_bytes:10} {bytes_per_sec}")
        .expect("the template is a constant that the tests make")
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_a_user_and_all_behind_the_first_colon() {
        let given =
            |creds| request("busybox", creds).map(|request| (request.username, request.password)).ok();
        assert_eq!(given(None), Some((String::new(), String::new())));
        assert_eq!(given(Some("me:a:b")), Some(("me".into(), "a:b".into())));
        assert_eq!(given(Some("me:")), Some(("me".into(), String::new())));
        assert_eq!((given(Some("me")), given(Some(":x"))), (None, None));
    }

    #[test]
    fn a_line_is_printed_per_layer_and_phase_and_a_bar_can_be_made() {
        style();
        let mut shown = Shown::Lines(BTreeMap::new());
        let layer =
            |phase: Phase| LayerProgress { digest: "d".into(), phase: phase.into(), ..Default::default() };
        for phase in [Phase::Waiting, Phase::Fetching, Phase::Fetching, Phase::Done] {
            shown.layer(&layer(phase));
        }
        let Shown::Lines(known) = shown else { panic!("no lines") };
        assert_eq!(known["d"], Phase::Done);
    }
}
