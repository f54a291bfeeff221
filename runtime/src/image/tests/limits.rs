//! Bounds: what is too big, too many or too often is refused by name, and nothing is left.

use serde_json::json;

use super::{
    fixture::{Made, Place, app, blob, gzip, request},
    server::{Fault, Server},
};
use crate::{Kind, image::digest::Digest};

#[tokio::test]
async fn a_manifest_beyond_the_bound_or_with_ten_thousand_layers_is_refused() {
    let made = app();
    let layer = json!({ "digest": made.layers[0], "size": 1 });
    let many = vec![layer; 10_000];
    let big = "x".repeat(9 << 20);
    let config = json!({ "digest": made.id, "size": made.blobs[&made.id].len() });
    let rows = [
        (json!({ "schemaVersion": 2, "config": config, "layers": [], "annotations": { "x": big } }), "8 MiB"),
        (
            json!({ "schemaVersion": 2, "config": config, "layers": many }),
            "10000 layers; overlayfs takes 500",
        ),
    ];
    for (manifest, cause) in rows {
        let (place, server) = (Place::new().await, Server::new().await);
        let reference = server.offer(&made, "v1");
        let path = "/v2/app/manifests/v1".to_owned();
        server.shelf.lock().unwrap().answers.insert(path, manifest.to_string().into_bytes());
        let error = place.store.pull(request(&reference)).await.unwrap_err();
        assert_eq!(error.kind, Kind::Invalid);
        assert!(error.chain().contains(cause), "{cause}: {:.400}", error.chain());
        assert_eq!((place.count("layers"), place.count("blobs"), place.count("partial")), (0, 0, 0));
    }
}

#[tokio::test]
async fn a_bomb_goes_no_further_than_the_bound() {
    let mut bombs = Vec::new();
    // One big file, and zeros behind an archive's end.
    let zeros = "\0".repeat(4 << 20);
    bombs.push(super::fixture::tar_of(&[("zeros", &zeros)]));
    bombs.push([super::fixture::tar_of(&[("small", "x")]), zeros.into_bytes()].concat());
    for tar in bombs {
        let made = Made::packed("bomb", vec![Digest::of(&tar)], vec![gzip(&tar)]);
        let server = Server::new().await;
        let reference = server.offer(&made, "v1");
        let place = Place::with(|settings| settings.layer_max_bytes = 1 << 20).await;
        let error = place.store.pull(request(&reference)).await.unwrap_err();
        assert_eq!(error.kind, Kind::Invalid, "{}", error.chain());
        assert!(error.chain().contains("registry.layer_max_bytes (1048576 bytes)"), "{}", error.chain());
        assert_eq!((place.count("layers"), place.count("tmp"), place.count("partial")), (0, 0, 0));
        Place::new().await.store.pull(request(&reference)).await.unwrap();
    }
}

#[tokio::test]
async fn a_registry_that_is_content_with_no_token_is_given_up() {
    let (place, server, made) = (Place::new().await, Server::new().await, app());
    let reference = server.offer(&made, "v1");
    {
        let mut shelf = server.shelf.lock().unwrap();
        let challenge = format!("Bearer realm=\"http://{}/token\",service=\"reg\"", server.address);
        shelf.wants = Some(("Bearer never".into(), challenge));
        shelf.answers.insert("/token".into(), br#"{"token":"t0k"}"#.to_vec());
    }
    let error = place.store.pull(request(&reference)).await.unwrap_err();
    assert_eq!(error.kind, Kind::Denied);
    assert!(error.chain().contains("401") && error.chain().contains("log in"), "{}", error.chain());
    assert!(server.asked("/v2/app/manifests/v1").len() <= 2);
}

#[tokio::test]
async fn every_try_is_told_and_a_registry_that_always_cuts_is_given_up_with_what_came_kept() {
    let mut state = 1u64;
    let noise: String = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(33 + (state & 63) as u8)
    })
    .take(3 << 20)
    .collect();
    let made = Made::new("cut", &[&[("noise", &noise)]]);
    let (place, server) = (Place::new().await, Server::new().await);
    let reference = server.offer(&made, "v1");
    let path = blob(&made.layers[0]);
    assert!(made.blobs[&made.layers[0]].len() > 21 * 65_536);
    server.fault(path.clone(), &vec![Fault::CutAfter(65_536); 20]);
    let error = place.store.pull(request(&reference)).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    let told = error.chain();
    assert!(told.contains("tried 20 times: ") && told.contains(&server.address), "{told}");
    assert_eq!(place.count("partial"), 1);
    place.store.pull(request(&reference)).await.unwrap();
    assert_eq!(server.asked(&path).last().unwrap().range, Some(20 * 65_536));
}
