//! Pulls from registries that behave and from those that don't.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

use super::{
    fixture::{Made, Place, app, blob, request},
    server::{Fault, Request, Server},
};
use crate::{
    Kind,
    image::{
        Auth, Phase, Progress, PullRequest,
        digest::Digest,
        document::{OCI_INDEX, OCI_MANIFEST, host_architecture},
    },
};

#[tokio::test]
async fn an_image_is_pulled_by_tag_by_digest_and_through_an_index() {
    let (place, server, mut made) = (Place::new().await, Server::new().await, app());
    let index = made.index();
    let reference = server.offer(&made, "v1");
    let image = place.store.pull(request(&reference)).await.unwrap();
    let repository = format!("{}/app", server.address);
    assert_eq!((&image.id, image.size_bytes), (&made.id.to_string(), 20_005));
    assert_eq!(
        (&image.tags[..], &image.digests[..]),
        (&[reference.clone()][..], &[format!("{repository}@{}", made.manifest)][..])
    );

    let fetched = server.asked(&blob(&made.layers[0])).len();
    let by_index = format!("{repository}@{index}");
    let again = place.store.pull(request(&by_index)).await.unwrap();
    assert_eq!((&again.id, again.tags.len()), (&image.id, 1));
    assert_eq!(again.digests, [format!("{repository}@{}", made.manifest), by_index.clone()]);
    assert_eq!(place.store.find(&by_index).unwrap().id, image.id);
    assert_eq!(server.asked(&blob(&made.layers[0])).len(), fetched, "present layers are not fetched again");

    let other = Place::new().await;
    let image = other.store.pull(request(&by_index)).await.unwrap();
    assert_eq!((image.tags.len(), &image.digests[..]), (0, &[by_index][..]));
    // The same image from another registry has the same id.
    let second = Server::new().await;
    let elsewhere = other.store.pull(request(&second.offer(&made, "x"))).await.unwrap();
    assert_eq!((elsewhere.id, elsewhere.digests.len()), (image.id, 2));
}

/// An index of what is described.
fn index_of(entries: &[Value]) -> Vec<u8> {
    json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries }).to_string().into_bytes()
}

fn entry(media_type: &str, bytes: &[u8], platform: Option<Value>) -> Value {
    let mut entry = json!({ "mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len() });
    if let Some(platform) = platform {
        entry["platform"] = platform;
    }
    entry
}

#[tokio::test]
async fn an_index_may_be_within_another_but_not_without_end() {
    let (place, server, made) = (Place::new().await, Server::new().await, app());
    server.offer(&made, "v1");
    let mut inner = index_of(&[entry(OCI_MANIFEST, &made.blobs[&made.manifest], None)]);
    let mut found = Vec::new();
    for depth in 1..=9 {
        let outer = index_of(&[entry(OCI_INDEX, &inner, None)]);
        {
            let answers = &mut server.shelf.lock().unwrap().answers;
            answers.insert(format!("/v2/app/manifests/{}", Digest::of(&inner)), inner);
            answers.insert(format!("/v2/app/manifests/deep{depth}"), outer.clone());
        }
        found.push(place.store.pull(request(&format!("{}/app:deep{depth}", server.address))).await);
        inner = outer;
    }
    assert_eq!(found[0].as_ref().unwrap().id, made.id.to_string());
    let refused = found.pop().unwrap().unwrap_err();
    assert!(refused.chain().contains("indexes within indexes"), "{}", refused.chain());
}

#[tokio::test]
async fn the_variant_that_every_machine_runs_is_chosen() {
    let (place, server) = (Place::new().await, Server::new().await);
    let newer = Made::new("newer", &[&[("x", "newer")]]);
    let (plain, architecture) = (app(), host_architecture());
    server.offer(&newer, "newer");
    server.offer(&plain, "plain");
    let of = |made: &Made, variant: &str| {
        let platform = json!({ "os": "linux", "architecture": architecture, "variant": variant });
        entry(OCI_MANIFEST, &made.blobs[&made.manifest], Some(platform))
    };
    let usual = if architecture == "arm64" { "v8" } else { "v1" };
    let both = index_of(&[of(&newer, "v99"), of(&plain, usual)]);
    server.shelf.lock().unwrap().answers.insert("/v2/app/manifests/both".into(), both);
    let image = place.store.pull(request(&format!("{}/app:both", server.address))).await.unwrap();
    assert_eq!(image.id, plain.id.to_string());
}

#[tokio::test]
async fn what_is_no_container_image_is_told() {
    let (place, server) = (Place::new().await, Server::new().await);
    let (config, chart) = (b"{}".to_vec(), b"a chart".to_vec());
    let artifact = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.example.chart",
        "config": entry("application/vnd.oci.empty.v1+json", &config, None),
        "layers": [entry("application/vnd.example.chart.tar", &chart, None)] });
    {
        let answers = &mut server.shelf.lock().unwrap().answers;
        answers.insert(blob(&Digest::of(&config)), config);
        answers.insert(blob(&Digest::of(&chart)), chart);
        answers.insert("/v2/app/manifests/chart".into(), artifact.to_string().into_bytes());
    }
    let refused = place.store.pull(request(&format!("{}/app:chart", server.address))).await.unwrap_err();
    assert!(refused.chain().contains("container image"), "{}", refused.chain());
    assert_eq!((place.count("layers"), place.count("blobs")), (0, 0));
}

#[tokio::test]
async fn pulls_at_once_are_one_and_progress_is_told() {
    let (place, server, made) = (Place::new().await, Server::new().await, app());
    let reference = server.offer(&made, "v1");
    let (sender, mut receiver) = mpsc::channel(1000);
    let pulls = (0..5)
        .map(|_| place.store.pull(PullRequest { progress: Some(sender.clone()), ..request(&reference) }));
    for pulled in futures_util::future::join_all(pulls).await {
        pulled.unwrap();
    }
    assert_eq!(server.asked("/v2/app/manifests/v1").len(), 1);
    assert_eq!(server.asked(&blob(&made.layers[0])).len(), 1);
    drop(sender);
    let mut told = Vec::new();
    while let Some(progress) = receiver.recv().await {
        told.push(progress);
    }
    assert!(told.contains(&Progress::Resolved { digest: made.manifest.to_string() }));
    for layer in &made.layers {
        let total = made.blobs[layer].len() as u64;
        let digest = layer.to_string();
        assert!(told.contains(&Progress::Layer { digest, bytes: total, total, phase: Phase::Done }));
    }
    // Two references that share layers fetch them once, too.
    let both = [server.offer(&made, "a"), server.offer(&made, "b")];
    let other = Place::new().await;
    for pulled in futures_util::future::join_all(both.iter().map(|r| other.store.pull(request(r)))).await {
        pulled.unwrap();
    }
    assert_eq!(server.asked(&blob(&made.layers[0])).len(), 2);
    assert_eq!(other.store.list()[0].tags.len(), 2);
}

#[tokio::test]
async fn a_pull_goes_on_when_its_caller_leaves() {
    let (place, server, made) = (Place::new().await, Server::new().await, app());
    let reference = server.offer(&made, "v1");
    server.fault("/v2/app/manifests/v1".into(), &[Fault::Wait(Duration::from_millis(200))]);
    let left = tokio::time::timeout(Duration::from_millis(50), place.store.pull(request(&reference))).await;
    assert!(left.is_err());
    place.store.pull(request(&reference)).await.unwrap();
    assert_eq!(server.asked("/v2/app/manifests/v1").len(), 1, "the second caller joins the first one's pull");
}

#[tokio::test]
async fn cuts_and_errors_on_the_way_are_overcome_by_ranges() {
    let made = app();
    let path = blob(&made.layers[0]);
    let ranges = |log: Vec<Request>| log.iter().map(|request| request.range).collect::<Vec<_>>();
    let cases: [(&[Fault], &[Option<usize>]); 3] = [
        (&[Fault::CutAfter(1000), Fault::CutAfter(500)], &[None, Some(1000), Some(1500)]),
        (
            &[Fault::CutAfter(1000), Fault::Status("503 Busy"), Fault::NoRanges],
            &[None, Some(1000), Some(1000)],
        ),
        (&[Fault::StallAfter(1000)], &[None, Some(1000)]),
    ];
    for (faults, expected) in cases {
        let (place, server) = (Place::new().await, Server::new().await);
        let reference = server.offer(&made, "v1");
        server.fault(path.clone(), faults);
        place.store.pull(request(&reference)).await.unwrap();
        assert_eq!(ranges(server.asked(&path))[..expected.len()], *expected, "{faults:?}");
        assert_eq!(place.count("tmp"), 0);
    }
}

/// An image of one layer that is worth pieces: 18 MiB that don't compress.
fn big() -> Made {
    let mut state = 1u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(32 + (state >> 58) as u8)
    });
    let noise: String = noise.take(24 << 20).collect();
    Made::new("big", &[&[("big", &noise)]])
}

#[tokio::test]
async fn a_big_layer_comes_in_pieces_and_in_one_stream_where_they_fail() {
    let made = big();
    let (path, size) = (blob(&made.layers[0]), made.blobs[&made.layers[0]].len());
    let piece = 4 << 20;
    let honest = Fault::Wait(Duration::ZERO);
    assert!(size > 4 * piece, "{size}");
    let pull = async |faults: &[Fault]| {
        let (place, server) = (Place::new().await, Server::new().await);
        let reference = server.offer(&made, "v1");
        server.fault(path.clone(), faults);
        let image = place.store.pull(request(&reference)).await.unwrap();
        assert_eq!(image.size_bytes, 24 << 20);
        assert_eq!((place.count("tmp"), place.count("partial")), (0, 0));
        server.asked(&path).iter().map(|request| (request.range, request.range_end)).collect::<Vec<_>>()
    };
    let mut asked = pull(&[]).await;
    asked.sort_unstable();
    let ends = (0..size).step_by(piece).map(|from| (Some(from), Some((from + piece).min(size) - 1)));
    assert_eq!(asked, ends.collect::<Vec<_>>());
    // All of it, at once.
    assert_eq!(pull(&[Fault::NoRanges]).await, [(Some(0), Some(piece - 1))]);
    // It knows ranges only with an open end.
    let refused = [Fault::Status("416 Range Not Satisfiable")];
    assert_eq!(pull(&refused).await, [(Some(0), Some(piece - 1)), (None, None)]);
    // What came of a piece that was cut, and of those before it, is not fetched again.
    let asked = pull(&[honest.clone(), Fault::CutAfter(100_000)]).await;
    let cut = asked.iter().skip(1).map(|(from, _)| from.unwrap()).min().unwrap() + 100_000;
    assert!(asked.contains(&(Some(cut), None)) || asked.last().unwrap().1.is_none(), "{asked:?}");
    // A piece of another place, or of something else, is no piece.
    let (place, server) = (Place::new().await, Server::new().await);
    let reference = server.offer(&made, "v1");
    server.shelf.lock().unwrap().answers.get_mut(&path).unwrap().truncate(size - 1);
    let error = place.store.pull(request(&reference)).await.unwrap_err();
    assert!(error.chain().contains("the manifest says"), "{}", error.chain());
}

#[tokio::test]
async fn a_layer_that_another_pull_waits_for_is_not_kept_back_for_the_rest() {
    let (place, server) = (Place::new().await, Server::new().await);
    let slow = Made::new("slow", &[&[("base", "base")], &[("slow", "slow")]]);
    let quick = Made::new("quick", &[&[("base", "base")], &[("quick", "quick")]]);
    let (first, second) = (server.offer(&slow, "slow"), server.offer(&quick, "quick"));
    let told = Arc::new(Notify::new());
    server.fault(blob(&slow.layers[1]), &[Fault::Until(Arc::clone(&told))]);
    let (sender, mut receiver) = mpsc::channel(1000);
    let store = place.store.clone();
    let going =
        tokio::spawn(
            async move { store.pull(PullRequest { progress: Some(sender), ..request(&first) }).await },
        );
    let base = slow.layers[0].to_string();
    while let Some(progress) = receiver.recv().await {
        if matches!(&progress, Progress::Layer { digest, phase: Phase::Done, .. } if *digest == base) {
            break;
        }
    }
    place.store.pull(request(&second)).await.unwrap();
    assert_eq!(server.asked(&blob(&slow.layers[0])).len(), 1, "it is fetched once");
    assert!(!going.is_finished());
    told.notify_one();
    going.await.unwrap().unwrap();
    assert_eq!(place.count("layers"), 3);
}

#[tokio::test]
async fn broken_registries_give_clear_errors_in_bounded_time_and_leave_nothing() {
    let made = app();
    let (manifest, layer) = ("/v2/app/manifests/v1".to_owned(), blob(&made.layers[0]));
    let config = blob(&made.id);
    let stall = Fault::StallAfter(10);
    let busy = [
        Fault::Status("500 Oops"),
        Fault::Status("500 Oops"),
        Fault::Status("500 Oops"),
        Fault::Status("500 Oops"),
    ];
    let rows: [(&String, &[Fault], Kind, &str); 9] = [
        (&manifest, &[Fault::Endless], Kind::Invalid, "bigger than"),
        (&manifest, &[Fault::Announce(2 << 30)], Kind::Invalid, "bigger than"),
        (&manifest, std::slice::from_ref(&stall), Kind::Unavailable, "stalled: no byte for 1 s"),
        (&config, std::slice::from_ref(&stall), Kind::Unavailable, "stalled"),
        (&layer, &[stall.clone(), stall.clone()], Kind::Unavailable, "stalled"),
        (&layer, &[Fault::StallAfter(0)], Kind::Unavailable, "stalled"),
        (&manifest, &busy, Kind::Unavailable, "500"),
        (&manifest, &[Fault::Status("403 No")], Kind::Denied, "403"),
        (&layer, &[Fault::Announce(7)], Kind::Invalid, "the registry has 7 bytes"),
    ];
    for (path, faults, kind, cause) in rows {
        let (place, server) = (Place::new().await, Server::new().await);
        let reference = server.offer(&made, "v1");
        server.fault(path.clone(), faults);
        let start = Instant::now();
        let error = place.store.pull(request(&reference)).await.unwrap_err();
        assert_eq!(error.kind, kind, "{faults:?}: {}", error.chain());
        assert!(error.chain().contains(cause), "{faults:?}: {}", error.chain());
        assert!(start.elapsed() < Duration::from_secs(15), "{faults:?}");
        if kind == Kind::Unavailable {
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.starts_with("RegistryUnavailable: "), "{source}");
        }
        assert!(place.store.list().is_empty());
        assert_eq!((place.count("layers"), place.count("blobs")), (0, 0), "{faults:?}");
    }
}

#[tokio::test]
async fn wrong_content_is_refused() {
    let made = app();
    let other = b"something else".to_vec();
    for (path, cause) in [
        (blob(&made.layers[1]), "the manifest says"),
        (blob(&made.id), "digest"),
        (format!("/v2/app/manifests/{}", made.manifest), "digest"),
    ] {
        let (place, server) = (Place::new().await, Server::new().await);
        server.offer(&made, "v1");
        server.shelf.lock().unwrap().answers.insert(path.clone(), other.clone());
        let reference = format!("{}/app@{}", server.address, made.manifest);
        let error = place.store.pull(request(&reference)).await.unwrap_err();
        assert_eq!(error.kind, Kind::Invalid, "{path}");
        assert!(error.chain().contains(cause), "{path}: {}", error.chain());
        assert_eq!(place.count("layers"), 0);
    }
    // Same length, one bit off.
    let (place, server) = (Place::new().await, Server::new().await);
    let reference = server.offer(&made, "v1");
    server.shelf.lock().unwrap().answers.get_mut(&blob(&made.layers[0])).unwrap()[100] ^= 1;
    let error = place.store.pull(request(&reference)).await.unwrap_err();
    assert!(error.chain().contains("its content has the digest"), "{}", error.chain());
}

#[tokio::test]
async fn who_is_not_there_is_told_apart() {
    let (place, server) = (Place::new().await, Server::new().await);
    let error = place.store.pull(request(&format!("{}/app:v9", server.address))).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
    assert!(
        error.chain().contains("MANIFEST_UNKNOWN") && error.chain().contains("check the name"),
        "{}",
        error.chain()
    );
    let gone = server.address.clone();
    drop(server);
    // The listener closes with its task.
    while tokio::net::TcpStream::connect(&gone).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let error = place.store.pull(request(&format!("{gone}/app"))).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.starts_with("RegistryUnavailable: ") && source.contains("refused"), "{source}");
    assert_eq!(place.store.pull(request("../x")).await.unwrap_err().kind, Kind::Invalid);
}

#[tokio::test]
async fn basic_credentials_are_sent_when_asked_for_and_not_to_other_hosts() {
    let (place, server, made) = (Place::new().await, Server::new().await, app());
    let reference = server.offer(&made, "v1");
    // joe:secret
    let basic = "Basic am9lOnNlY3JldA==".to_owned();
    server.shelf.lock().unwrap().wants = Some((basic.clone(), "Basic realm=\"x\"".into()));
    let error = place.store.pull(request(&reference)).await.unwrap_err();
    assert_eq!(error.kind, Kind::Denied);
    assert!(error.chain().contains("log in"), "{}", error.chain());
    let auth =
        |password: &str| Some(Auth { username: "joe".into(), password: password.into(), ..Auth::default() });
    let error =
        place.store.pull(PullRequest { auth: auth("wrong"), ..request(&reference) }).await.unwrap_err();
    assert_eq!(error.kind, Kind::Denied);
    assert!(!error.chain().contains("wrong\""));
    // The layers are on a host that must not see the password.
    let elsewhere = Server::new().await;
    elsewhere.offer(&made, "v1");
    let path = blob(&made.layers[0]);
    server.fault(path.clone(), &[Fault::Redirect(format!("http://{}{path}", elsewhere.address))]);
    place.store.pull(PullRequest { auth: auth("secret"), ..request(&reference) }).await.unwrap();
    assert_eq!(server.asked(&path)[0].authorization.as_deref(), Some(&*basic));
    assert_eq!(elsewhere.asked(&path).len(), 1);
    assert_eq!(elsewhere.asked(&path)[0].authorization, None);
}

#[tokio::test]
async fn a_token_is_fetched_with_the_credentials_and_used() {
    let (place, server, made) = (Place::new().await, Server::new().await, app());
    let reference = server.offer(&made, "v1");
    {
        let mut shelf = server.shelf.lock().unwrap();
        let challenge = format!("Bearer realm=\"http://{}/token\",service=\"reg\"", server.address);
        shelf.wants = Some(("Bearer t0k".into(), challenge));
        shelf.answers.insert("/token".into(), br#"{"token":"t0k"}"#.to_vec());
    }
    let auth = Some(Auth { auth: "am9lOnNlY3JldA==".into(), ..Auth::default() });
    place.store.pull(PullRequest { auth, ..request(&reference) }).await.unwrap();
    let asked = server.asked("/token?scope=repository%3Aapp%3Apull&service=reg&account=joe");
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].authorization.as_deref(), Some("Basic am9lOnNlY3JldA=="));
}
