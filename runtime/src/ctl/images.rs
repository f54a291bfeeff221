//! images, rmi, load, save.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use berth_cri::{
    berth::{LoadRequest, SaveChunk, SaveRequest, load_request::Message},
    v1 as cri,
};
use clap::Args;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    command::Shape,
    connect::Daemon,
    failure::{Failure, Result},
    human, lifecycle,
    output::{self, Format},
    terminal,
};

/// Of an archive, in one message.
const PIECE_BYTES: usize = 256 * 1024;

#[derive(Debug, Args)]
pub(super) struct List {
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    shape: Shape,
}

#[derive(Debug, Args)]
pub(super) struct Rmi {
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Load {
    /// The archive; standard input otherwise
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// What to call an image that the archive names not
    #[arg(long, value_name = "REFERENCE")]
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Save {
    /// Where to; standard output otherwise
    #[arg(short, long, value_name = "FILE", id = "file")]
    pub(super) output: Option<PathBuf>,
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

pub(super) async fn images(daemon: &Daemon, flags: List, format: Format) -> Result<u8> {
    let listed = daemon.cri_images().list_images(cri::ListImagesRequest::default()).await?.into_inner();
    if flags.quiet {
        let ids: String =
            listed.images.iter().map(|image| human::short_id(&image.id).to_owned() + "\n").collect();
        output::print(ids)?;
        return Ok(0);
    }
    output::show(flags.shape.or(format), "runtime.v1.ListImagesResponse", &listed, || {
        output::table(["REPOSITORY", "TAG", "IMAGE ID", "SIZE"], listed.images.iter().flat_map(rows))
    })?;
    Ok(0)
}

/// A row per tag; an image without one has a row all the same.
fn rows(image: &cri::Image) -> Vec<[String; 4]> {
    const NONE: &str = "<none>";
    let row = |repository: &str, tag: &str| {
        let id = human::short_id(&image.id).to_owned();
        [repository.to_owned(), tag.to_owned(), id, human::decimal_bytes(image.size)]
    };
    if image.repo_tags.is_empty() {
        let digest = image.repo_digests.first().map(String::as_str).unwrap_or_default();
        let repository = digest.split_once('@').map_or(NONE, |(repository, _)| repository);
        return vec![row(repository, NONE)];
    }
    // A port has a colon, too, but a slash behind it.
    let split = |tag: &str| match tag.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => row(repository, tag),
        _ => row(tag, NONE),
    };
    image.repo_tags.iter().map(|tag| split(tag)).collect()
}

pub(super) async fn rmi(daemon: &Daemon, flags: Rmi, format: Format) -> Result<u8> {
    lifecycle::each(flags.images, async |name| {
        let image = Some(cri::ImageSpec { image: name.to_owned(), ..Default::default() });
        // CRI calls what is absent removed; a person mistyped it.
        let asked = cri::ImageStatusRequest { image: image.clone(), verbose: false };
        if daemon.cri_images().image_status(asked).await?.into_inner().image.is_none() {
            return Err(Failure::new(format!("remove image {name}: not found; `berth images` lists them")));
        }
        let removed = daemon.cri_images().remove_image(cri::RemoveImageRequest { image }).await?.into_inner();
        output::show(format, "runtime.v1.RemoveImageResponse", &removed, || format!("{name}\n"))
    })
    .await
}

pub(super) async fn load(daemon: &Daemon, flags: Load, format: Format) -> Result<u8> {
    let mut source: Box<dyn Read + Send> = match &flags.input {
        Some(path) => Box::new(File::open(path).map_err(|error| Failure::io(&shown("open", path), &error))?),
        None if terminal::is_terminal(io::stdin()) => {
            return Err(Failure::new("standard input is a terminal; name the archive with -i"));
        }
        None => Box::new(io::stdin()),
    };
    let (sender, receiver) = mpsc::channel(4);
    let (broke, broken) = oneshot::channel();
    let name = flags.name;
    std::thread::spawn(move || {
        if let Err(error) = send(&mut source, name, &sender) {
            // With the sender, so that the stream does not end: the daemon must not take half an archive for a whole
            // one. Nobody takes it where the call has failed already.
            broke.send((error, sender)).ok();
        }
    });
    let mut images = daemon.images();
    let loaded = tokio::select! {
        biased;
        Ok((error, _unended)) = broken => return Err(Failure::io("read the archive", &error)),
        loaded = images.load(ReceiverStream::new(receiver)) => loaded?.into_inner(),
    };
    output::show(format, "berth.v1.LoadResponse", &loaded, || {
        let line = |image: &berth_cri::berth::PulledImage| match image.reference.as_str() {
            "" => format!("{}\n", image.id),
            reference => format!("{reference}\n"),
        };
        loaded.images.iter().map(line).collect()
    })?;
    Ok(0)
}

/// Sends the archive in pieces; a daemon that wants no more has answered.
fn send(source: &mut dyn Read, name: Option<String>, sender: &mpsc::Sender<LoadRequest>) -> io::Result<()> {
    let give = |message| sender.blocking_send(LoadRequest { message: Some(message) }).is_ok();
    if let Some(name) = name
        && !give(Message::Name(name))
    {
        return Ok(());
    }
    loop {
        let mut piece = vec![0; PIECE_BYTES];
        let taken = match source.read(&mut piece) {
            Ok(taken) => taken,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        piece.truncate(taken);
        if taken == 0 || !give(Message::Chunk(piece.into())) {
            return Ok(());
        }
    }
}

pub(super) async fn save(daemon: &Daemon, flags: Save) -> Result<u8> {
    if flags.output.is_none() && terminal::is_terminal(io::stdout()) {
        return Err(Failure::new("standard output is a terminal; name the archive with -o"));
    }
    let request = SaveRequest { images: flags.images };
    let chunks = daemon.images().save(request).await?.into_inner();
    match &flags.output {
        None => receive(chunks, output::print).await?,
        Some(path) => save_to(chunks, path).await?,
    }
    Ok(0)
}

/// Writes the archive beside its place and puts it there whole.
async fn save_to(chunks: Streaming<SaveChunk>, path: &Path) -> Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let written = async {
        let mut file = File::create(&part).map_err(|error| Failure::io(&shown("make", &part), &error))?;
        receive(chunks, |chunk| {
            file.write_all(&chunk).map_err(|error| Failure::io(&shown("write", &part), &error))
        })
        .await?;
        fs::rename(&part, path).map_err(|error| Failure::io(&shown("name", path), &error))
    };
    let written = written.await;
    if written.is_err() {
        // The first failure is the one to tell.
        fs::remove_file(&part).ok();
    }
    written
}

async fn receive(
    mut chunks: Streaming<SaveChunk>,
    mut write: impl FnMut(prost::bytes::Bytes) -> Result<()>,
) -> Result<()> {
    while let Some(SaveChunk { chunk }) = chunks.message().await? {
        write(chunk)?;
    }
    Ok(())
}

fn shown(op: &str, path: &Path) -> String {
    format!("{op} {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_a_row_per_tag() {
        let image = |tags: &[&str], digests: &[&str]| cri::Image {
            id: "sha256:0123456789abcdef".into(),
            repo_tags: tags.iter().map(ToString::to_string).collect(),
            repo_digests: digests.iter().map(ToString::to_string).collect(),
            size: 1_500_000,
            ..Default::default()
        };
        let row = |repository: &str, tag: &str| {
            [repository.to_owned(), tag.to_owned(), "0123456789ab".into(), "1.50MB".into()]
        };
        let rows = |image| rows(&image);
        assert_eq!(
            rows(image(&["docker.io/library/busybox:1", "localhost:5000/x:2"], &[])),
            [row("docker.io/library/busybox", "1"), row("localhost:5000/x", "2")]
        );
        assert_eq!(rows(image(&["localhost:5000/x"], &[])), [row("localhost:5000/x", "<none>")]);
        assert_eq!(rows(image(&[], &["quay.io/a@sha256:01"])), [row("quay.io/a", "<none>")]);
        assert_eq!(rows(image(&[], &[])), [row("<none>", "<none>")]);
    }

    #[tokio::test]
    async fn an_archive_is_sent_whole_after_its_name() {
        let (sender, mut receiver) = mpsc::channel(4);
        let content: Vec<u8> = (0..PIECE_BYTES * 2 + 5).map(|n| n as u8).collect();
        let source = content.clone();
        std::thread::spawn(move || send(&mut &source[..], Some("x:1".into()), &sender).unwrap());
        let first = receiver.recv().await.unwrap().message;
        assert_eq!(first, Some(Message::Name("x:1".into())));
        let mut got = Vec::new();
        while let Some(request) = receiver.recv().await {
            let Some(Message::Chunk(chunk)) = request.message else { panic!("no chunk") };
            got.extend_from_slice(&chunk);
        }
        assert!(got == content);
    }
}
