//! Pulls: one for all who ask for the same at the same time, and it goes on when they leave.

use std::{
    collections::{HashMap, hash_map},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tracing::{Instrument, info};

use super::{
    Auth, Image, Progress, PullRequest,
    digest::Digest,
    install::{self, Offer, Source, Watchers},
    reference::{Reference, Version},
    route::Route,
    store::Inner,
    told, verify,
};
use crate::{Error, Kind, Result, error::Cause};

const UNAVAILABLE: &str = "RegistryUnavailable: ";

type Outcome = Shared<BoxFuture<'static, Result<Image, Arc<Error>>>>;

/// The pulls under way.
#[derive(Debug, Default)]
pub(super) struct Pulls(Mutex<HashMap<Key, Running>>);

/// What makes two pulls the same. Other credentials are another pull: they may see something else, or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    reference: Reference,
    auth: Option<Auth>,
    plain_http: bool,
    /// What another namespace may have is no answer for this one.
    policy: PathBuf,
}

#[derive(Debug, Clone)]
struct Running {
    outcome: Outcome,
    watchers: Watchers,
}

/// Pulls, or joins who does already. Dropping the future leaves the pull running.
pub(super) async fn pull(inner: &Arc<Inner>, request: PullRequest) -> Result<Image> {
    let reference = Reference::parse(&request.reference, &inner.config.short_name_prefix)?;
    let (here, namespace) = (Arc::clone(inner), request.namespace.clone());
    let policy =
        install::blocking("find policy", move || Ok(verify::policy_of(namespace.as_deref(), &here.config)))
            .await?;
    let key = Key { reference, auth: request.auth.clone(), plain_http: request.plain_http, policy };
    let running = join_or_start(inner, key, &request);
    if let Some(progress) = request.progress {
        running.watchers.add(progress);
    }
    running.outcome.await.map_err(|error| copy(&error))
}

fn join_or_start(inner: &Arc<Inner>, key: Key, request: &PullRequest) -> Running {
    let mut pulls = inner.pulls.0.lock().unwrap_or_else(PoisonError::into_inner);
    match pulls.entry(key) {
        hash_map::Entry::Occupied(running) => running.get().clone(),
        hash_map::Entry::Vacant(place) => {
            let watchers = Watchers::default();
            let key = place.key().clone();
            let request = PullRequest { progress: None, ..request.clone() };
            let task =
                tokio::spawn(work(Arc::clone(inner), key, request, watchers.clone()).in_current_span());
            let outcome = task.map(|ended| match ended {
                Ok(outcome) => outcome.map_err(Arc::new),
                Err(error) => Err(Arc::new(Error::new(Kind::Internal, "pull image", "").because(error))),
            });
            place.insert(Running { outcome: outcome.boxed().shared(), watchers }).clone()
        }
    }
}

/// Takes the pull off the list, however it ends.
struct Listed<'a>(&'a Inner, &'a Key);

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.0.pulls.0.lock().unwrap_or_else(PoisonError::into_inner).remove(self.1);
    }
}

async fn work(inner: Arc<Inner>, key: Key, request: PullRequest, watchers: Watchers) -> Result<Image> {
    let _listed = Listed(&inner, &key);
    let start = Instant::now();
    let pulled = tokio::select! {
        pulled = fetch(&inner, &key, &request, &watchers) => pulled,
        never = told::tell(&key.reference, &watchers) => match never {},
    };
    let image = pulled.map_err(|error| outer(&key.reference, error))?;
    let elapsed_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    info!(image = %image.id, reference = %key.reference, bytes = image.size_bytes, elapsed_ms, "image pulled");
    Ok(image)
}

async fn fetch(inner: &Arc<Inner>, key: &Key, request: &PullRequest, watchers: &Watchers) -> Result<Image> {
    let reference = &key.reference;
    let route = Arc::new(Route::new(reference, request, &inner.config).await?);
    let resolved = route.resolve().await?;
    verify::verify(&key.policy, reference, &route, &resolved, &inner.config).await?;
    watchers.tell(&Progress::Resolved { digest: resolved.digest.to_string() });
    let config = match present_config(inner, &resolved.manifest.config.digest).await {
        Some(bytes) => bytes,
        None => route.config(&resolved.manifest.config).await?,
    };
    let mut offer = Offer::new(resolved.bytes, resolved.manifest, config)?;
    if let Version::Tag(_) = &reference.version {
        offer.tags.push(reference.to_string());
    }
    offer.digests.push(reference.with_digest(&resolved.digest));
    install::install(inner, offer, Source::Registry(route), watchers).await
}

/// The config, if an image that is here has it.
async fn present_config(inner: &Arc<Inner>, id: &Digest) -> Option<Vec<u8>> {
    let path = inner.blob(id);
    let bytes = tokio::fs::read(path).await.ok()?;
    (Digest::of(&bytes) == *id).then_some(bytes)
}

/// The first cause begins with the name that the API looks for, and so does the kubelet.
fn outer(reference: &Reference, error: Error) -> Error {
    let (kind, object) = (error.kind, reference.to_string());
    let cause = error.source.as_ref().map(ToString::to_string).unwrap_or_default();
    let given = [UNAVAILABLE, verify::PREFIX].into_iter().find(|name| cause.starts_with(name));
    let Some(name) = given.or_else(|| (kind == Kind::Unavailable).then_some(UNAVAILABLE)) else {
        return Error::new(kind, "pull image", object).because(error);
    };
    let cause = cause.strip_prefix(name).unwrap_or(&cause);
    let cause = match error.object == object {
        true => format!("{name}{cause}"),
        false => format!("{name}{}: {cause}", error.object),
    };
    Error { hint: error.hint, ..Error::new(kind, "pull image", object).because(Cause(cause)) }
}

/// An error for each who waited, the same words.
fn copy(error: &Error) -> Error {
    let whole = error.chain();
    let head = format!("{} {}", error.op, error.object);
    let cause = whole.strip_prefix(&head).and_then(|rest| rest.strip_prefix(": "));
    let copy = Error::new(error.kind, error.op, error.object.clone());
    match cause {
        // The chain ends with the hints already.
        Some(cause) => copy.because(Cause(cause.to_owned())),
        None => Error { hint: error.hint.clone(), ..copy },
    }
}
