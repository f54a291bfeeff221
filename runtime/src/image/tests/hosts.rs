//! Mirrors, credentials of the node, redirects, and transfers that are slow or break off.

use std::fs;

use super::{
    fixture::{Place, app, blob, request},
    server::{Fault, Server},
};
use crate::{
    Kind,
    image::{Auth, PullRequest},
};

#[tokio::test]
async fn mirrors_are_asked_in_order_and_told_whose_images_they_have() {
    let (place, broken, good, made) = (Place::new().await, Server::new().await, Server::new().await, app());
    good.offer(&made, "v1");
    let text = format!(
        "[host.\"http://{}\"]\n[host.\"http://{}\"]\n[host.\"http://{}\".header]\nx-team = \"blue\"\n",
        broken.address, good.address, good.address
    );
    place.hosts("r.invalid", &text);
    // The server keys its answers by the path without the query.
    let image = place.store.pull(request("r.invalid/app:v1")).await.unwrap();
    assert_eq!(image.tags, ["r.invalid/app:v1"]);
    assert_eq!(broken.asked("/v2/app/manifests/v1?ns=r.invalid").len(), 1);
    let asked = good.asked("/v2/app/manifests/v1?ns=r.invalid");
    assert!(asked[0].head.contains("x-team: blue"), "{}", asked[0].head);
    assert_eq!(good.asked(&format!("{}?ns=r.invalid", blob(&made.layers[0]))).len(), 1);
}

#[tokio::test]
async fn a_file_that_changed_counts_at_the_next_pull_and_all_attempts_are_told() {
    let (place, one, two, made) = (Place::new().await, Server::new().await, Server::new().await, app());
    let hosts = |first: &str, second: &str| {
        format!(
            "server = \"http://{second}\"\n[host.\"http://{first}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        )
    };
    place.hosts("r.invalid", &hosts(&one.address, &two.address));
    one.fault("/v2/app/manifests/v1?ns=r.invalid".into(), &[Fault::Status("403 No")]);
    let error = place.store.pull(request("r.invalid/app:v1")).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound, "{}", error.chain());
    let told = error.chain();
    for part in [
        format!("[{}] ask registry manifests/v1: 403", one.address),
        "log in".to_owned(),
        format!("[{}] ask registry manifests/v1: 404", two.address),
        "check the name".to_owned(),
    ] {
        assert!(told.contains(&part), "{told} has no {part}");
    }
    one.offer(&made, "v1");
    place.store.pull(request("r.invalid/app:v1")).await.unwrap();
    place.hosts("r.invalid", "[host.\"ftp://x\"]");
    let error = place.store.pull(request("r.invalid/app:v1")).await.unwrap_err();
    assert!(error.chain().contains("hosts.toml"), "{}", error.chain());
}

#[tokio::test]
async fn who_may_only_pull_is_not_asked_what_a_tag_means_and_bad_content_is_had_elsewhere() {
    let (place, mirror, server, made) = (Place::new().await, Server::new().await, Server::new().await, app());
    server.offer(&made, "v1");
    mirror.offer(&made, "v1");
    let layer = blob(&made.layers[0]);
    mirror.shelf.lock().unwrap().answers.get_mut(&layer).unwrap()[100] ^= 1;
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        server.address, mirror.address
    );
    place.hosts("r.invalid", &text);
    place.store.pull(request("r.invalid/app:v1")).await.unwrap();
    assert!(mirror.asked("/v2/app/manifests/v1?ns=r.invalid").is_empty());
    assert_eq!(mirror.asked(&format!("{layer}?ns=r.invalid")).len(), 1);
    assert_eq!(server.asked(&layer).len(), 1, "the mirror's was damaged");
    assert!(server.asked(&blob(&made.layers[1])).is_empty());
    assert_eq!(place.count("partial"), 0);
}

#[tokio::test]
async fn the_nodes_credentials_are_used_and_a_mirror_gets_only_its_own() {
    let (place, mirror, server, made) = (Place::new().await, Server::new().await, Server::new().await, app());
    server.offer(&made, "v1");
    mirror.offer(&made, "v1");
    // joe:secret and ann:other
    let (joe, ann) = ("Basic am9lOnNlY3JldA==", "Basic YW5uOm90aGVy");
    server.shelf.lock().unwrap().wants = Some((joe.into(), "Basic realm=\"x\"".into()));
    mirror.shelf.lock().unwrap().wants = Some((ann.into(), "Basic realm=\"x\"".into()));
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", server.address, mirror.address);
    place.hosts("r.invalid", &text);
    fs::write(place.path("config.json"), r#"{"auths": {"r.invalid/app": {"auth": "am9lOnNlY3JldA=="}}}"#)
        .unwrap();
    place.store.pull(request("r.invalid/app:v1")).await.unwrap();
    let seen = |at: &Server, path: &str| {
        at.asked(path).into_iter().filter_map(|r| r.authorization).collect::<Vec<_>>()
    };
    let ours = "/v2/app/manifests/v1";
    let theirs = "/v2/app/manifests/v1?ns=r.invalid";
    assert_eq!((seen(&server, ours), seen(&mirror, theirs)), (vec![joe.to_owned()], vec![]));
    // The pull's own come first; the mirror's are found under its name.
    let text = format!(
        r#"{{"auths": {{"r.invalid": {{"username": "old"}}, "{}": {{"auth": "YW5uOm90aGVy"}}}}}}"#,
        mirror.address
    );
    fs::write(place.path("config.json"), text).unwrap();
    let auth = Some(Auth { username: "joe".into(), password: "secret".into(), ..Auth::default() });
    place.store.pull(PullRequest { auth, ..request("r.invalid/app:v1") }).await.unwrap();
    assert_eq!(seen(&mirror, theirs), [ann]);
}

#[tokio::test]
async fn an_identity_token_is_exchanged_and_goes_nowhere_else() {
    let (place, server, made) = (Place::new().await, Server::new().await, app());
    let reference = server.offer(&made, "v1");
    {
        let mut shelf = server.shelf.lock().unwrap();
        let challenge = format!("Bearer realm=\"http://{}/token\",service=\"reg\"", server.address);
        shelf.wants = Some(("Bearer t0k".into(), challenge));
        shelf.answers.insert("/token".into(), br#"{"access_token":"t0k"}"#.to_vec());
    }
    let text = format!(r#"{{"auths": {{"{}": {{"identitytoken": "refresh-me"}}}}}}"#, server.address);
    fs::write(place.path("config.json"), text).unwrap();
    place.store.pull(request(&reference)).await.unwrap();
    let asked = server.asked("/token");
    assert!(asked[0].head.starts_with("POST "), "{}", asked[0].head);
    for part in ["grant_type=refresh_token", "refresh_token=refresh-me", "scope=repository%3Aapp%3Apull"] {
        assert!(asked[0].body.contains(part), "{}", asked[0].body);
    }
    // A realm that sends us on gets no second chance to see it.
    let elsewhere = Server::new().await;
    let other = Place::new().await;
    fs::copy(place.path("config.json"), other.path("config.json")).unwrap();
    server.fault("/token".into(), &[Fault::Redirect(format!("http://{}/token", elsewhere.address))]);
    other.store.pull(request(&reference)).await.unwrap_err();
    assert!(elsewhere.asked("/token").is_empty());
}

#[tokio::test]
async fn a_wait_that_the_registry_asks_for_is_kept_unless_it_is_too_long() {
    let (place, server, made) = (Place::new().await, Server::new().await, app());
    let reference = server.offer(&made, "v1");
    server.fault("/v2/app/manifests/v1".into(), &[Fault::Status("429 Slow\r\nRetry-After: 1")]);
    server.fault(blob(&made.layers[0]), &[Fault::Status("503 Busy\r\nRetry-After: 1")]);
    place.store.pull(request(&reference)).await.unwrap();
    assert_eq!(server.asked("/v2/app/manifests/v1").len(), 2);
    server.fault("/v2/app/manifests/v1".into(), &[Fault::Status("429 Slow\r\nRetry-After: 86400")]);
    let error = place.store.pull(request(&reference)).await.unwrap_err();
    assert_eq!(server.asked("/v2/app/manifests/v1").len(), 3, "one more, not four");
    assert!(error.chain().contains("left alone for 86400 s"), "{}", error.chain());
}

#[tokio::test]
async fn a_trickle_is_a_stall() {
    let (place, server, made) = (Place::new().await, Server::new().await, app());
    let reference = server.offer(&made, "v1");
    server.fault(blob(&made.layers[0]), &[Fault::Trickle]);
    place.store.pull(request(&reference)).await.unwrap();
    let from = server.asked(&blob(&made.layers[0]))[1].range.unwrap();
    assert!(from > 0 && from < 200, "given up and gone on with from {from}");
    let (place, server) = (Place::new().await, Server::new().await);
    let reference = server.offer(&made, "v1");
    server.fault(blob(&made.layers[0]), &[Fault::Trickle, Fault::Trickle]);
    let error = place.store.pull(request(&reference)).await.unwrap_err();
    assert!(error.chain().contains("bytes in 1 s"), "{}", error.chain());
}

#[tokio::test]
async fn a_layer_goes_on_where_an_earlier_daemon_left_it() {
    let (place, server, made) = (Place::new().await, Server::new().await, app());
    let reference = server.offer(&made, "v1");
    let path = blob(&made.layers[0]);
    server.fault(path.clone(), &[Fault::CutAfter(1000), Fault::Status("400 Gone")]);
    place.store.pull(request(&reference)).await.unwrap_err();
    // A failure that no other try mends takes it along; one of the network leaves it.
    let busy = [
        Fault::Status("503 Busy"),
        Fault::Status("503 Busy"),
        Fault::Status("503 Busy"),
        Fault::Status("503 Busy"),
    ];
    let mut faults = vec![Fault::CutAfter(1000)];
    faults.extend(busy);
    server.fault(path.clone(), &faults);
    place.store.pull(request(&reference)).await.unwrap_err();
    assert_eq!(place.count("partial"), 1);
    let place = place.reopen().await;
    assert_eq!(place.count("partial"), 1);
    let before = server.asked(&path).len();
    place.store.pull(request(&reference)).await.unwrap();
    assert_eq!(server.asked(&path)[before].range, Some(1000));
    assert_eq!(place.count("partial"), 0);
}

#[tokio::test]
async fn what_an_earlier_pull_left_damaged_is_fetched_anew() {
    let (place, server, made) = (Place::new().await, Server::new().await, app());
    let reference = server.offer(&made, "v1");
    let name = format!("{}-{}", made.layers[0].hex(), &made.diff_ids[0].hex()[..16]);
    fs::write(place.path("images/partial").join(name), vec![0; 500]).unwrap();
    place.store.pull(request(&reference)).await.unwrap();
    let ranges: Vec<_> = server.asked(&blob(&made.layers[0])).iter().map(|request| request.range).collect();
    assert_eq!(ranges, [Some(500), None]);
    assert_eq!(place.count("partial"), 0);
}
