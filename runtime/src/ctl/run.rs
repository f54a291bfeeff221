//! run and create.

use std::future::Future;

use berth_cri::{
    berth::{ContainerSpec, CreateRequest, KillRequest, RemoveRequest, StartRequest},
    v1 as cri,
};
use tonic::Status;

use super::{
    attach,
    connect::Daemon,
    failure::{Failure, Result},
    flags, output, pull,
    session::{Forward, Typing},
    terminal,
};

pub(super) async fn create(daemon: &Daemon, flags: flags::Create) -> Result<u8> {
    let (id, _) = made(daemon, flags).await?;
    output::print_line(id)?;
    Ok(0)
}

/// In front: attached before the start, so that no byte is lost; the exit code is the container's.
pub(super) async fn run(daemon: &Daemon, flags: flags::Run) -> Result<u8> {
    let (interactive, tty) = (flags.create.interactive, flags.create.tty);
    if !flags.detach {
        terminal::demand(interactive, tty)?;
    }
    let (id, spec) = made(daemon, flags.create).await?;
    if flags.detach {
        removed_on_failure(daemon, &spec, &id, start(daemon, &id)).await?;
        output::print_line(&id)?;
        return Ok(0);
    }
    let typing = Typing::of(interactive, tty);
    let begun = attach::open_and_start(daemon, &id, typing, tty);
    let session = removed_on_failure(daemon, &spec, &id, begun).await?;
    attach::finish(daemon, &id, session).await
}

async fn made(daemon: &Daemon, flags: flags::Create) -> Result<(String, ContainerSpec)> {
    let image = flags.image().to_owned();
    let wanted = match flags.pull {
        flags::Pull::Always => true,
        flags::Pull::Missing => !present(daemon, &image).await?,
        flags::Pull::Never => false,
    };
    // What is wrong with the flags is said before anything is fetched.
    let spec = flags.spec()?;
    if wanted {
        pull::fetch(daemon, pull::request(&image, None)?).await?;
    }
    let request = CreateRequest { spec: Some(spec.clone()), start: false };
    let created = daemon.containers().create(request).await?.into_inner();
    for warning in created.warnings {
        eprintln!("berth: {warning}");
    }
    Ok((created.id, spec))
}

async fn present(daemon: &Daemon, image: &str) -> Result<bool> {
    let image = Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() });
    let request = cri::ImageStatusRequest { image, verbose: false };
    Ok(daemon.cri_images().image_status(request).await?.into_inner().image.is_some())
}

pub(super) async fn start(daemon: &Daemon, id: &str) -> Result<()> {
    let request = StartRequest { container: id.to_owned() };
    let started = daemon.containers().start(request).await;
    started.map(|_| ()).map_err(|status: Status| Failure::of_program(&status))
}

/// Does it; a container of --rm does not stay where it did not come to run.
async fn removed_on_failure<T>(
    daemon: &Daemon,
    spec: &ContainerSpec,
    id: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let done = work.await;
    if done.is_err() && spec.auto_remove {
        let request = RemoveRequest { container: id.to_owned(), force: true };
        // The first failure is the one to tell; the daemon may have removed it itself.
        daemon.containers().remove(request).await.ok();
    }
    done
}

/// Hands signals on to the container.
pub(super) fn forward(daemon: &Daemon, id: &str) -> Forward {
    let (daemon, id) = (daemon.clone(), id.to_owned());
    Box::new(move |signal| {
        let (daemon, container) = (daemon.clone(), id.clone());
        Box::pin(async move {
            let request = KillRequest { container, signal: signal.to_owned() };
            if let Err(status) = daemon.containers().kill(request).await {
                eprintln!("berth: send SIG{signal}: {}", Failure::from(status).text);
            }
        })
    })
}
