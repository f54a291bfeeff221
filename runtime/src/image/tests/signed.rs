//! Pulls under a policy: signatures found as tags and as referrers, and refused for every reason.

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{KeyPair, SigningKey};
use serde_json::{Value, json};

use super::{
    fixture::{Made, Place, app, blob, request},
    server::Server,
};
use crate::{
    Kind,
    image::{
        PullRequest,
        cosign::{ARTIFACT, SIGNATURE_ANNOTATION, SIMPLE_SIGNING},
        digest::Digest,
        document::{OCI_INDEX, OCI_MANIFEST},
    },
};

/// Where a signature lies in the registry.
#[derive(Debug, Clone, Copy)]
enum Where {
    Tag,
    Referrers,
    ReferrersTag,
}

/// What is signed, how, and by whom.
struct Signing<'a> {
    key: &'a KeyPair,
    /// Beside which it is put.
    of: &'a Digest,
    digest: &'a Digest,
    reference: &'a str,
}

fn put(server: &Server, at: Where, signing: &Signing<'_>) {
    let payload = json!({ "critical": { "identity": { "docker-reference": signing.reference },
        "image": { "docker-manifest-digest": signing.digest }, "type": "cosign container image signature" },
        "optional": Value::Null })
    .to_string()
    .into_bytes();
    let signature = STANDARD.encode(signing.key.sign(&payload).unwrap());
    let config = b"{}".to_vec();
    let manifest = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config), "size": 2 },
        "layers": [{ "mediaType": SIMPLE_SIGNING, "digest": Digest::of(&payload), "size": payload.len(),
            "annotations": { SIGNATURE_ANNOTATION: signature } }] })
    .to_string()
    .into_bytes();
    let digest = Digest::of(&manifest);
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        { "mediaType": OCI_MANIFEST, "digest": Digest::of(b"sbom"), "size": 9, "artifactType": "application/spdx+json" },
        { "mediaType": OCI_MANIFEST, "digest": digest, "size": manifest.len(), "artifactType": ARTIFACT },
    ]})
    .to_string()
    .into_bytes();
    let of = signing.of;
    let mut shelf = server.shelf.lock().unwrap();
    let answers = &mut shelf.answers;
    answers.insert(blob(&Digest::of(&payload)), payload);
    answers.insert(format!("/v2/app/manifests/{digest}"), manifest.clone());
    match at {
        Where::Tag => answers.insert(format!("/v2/app/manifests/sha256-{}.sig", of.hex()), manifest),
        Where::Referrers => answers.insert(format!("/v2/app/referrers/{of}"), index),
        Where::ReferrersTag => answers.insert(format!("/v2/app/manifests/sha256-{}", of.hex()), index),
    };
}

/// A place whose policy wants the key's signature of everything.
async fn strict(key: &KeyPair, identity: &str) -> Place {
    let data = STANDARD.encode(key.public_key_pem());
    let rule = json!({ "type": "sigstoreSigned", "keyData": data, "signedIdentity": { "type": identity } });
    with_policy(&json!({ "default": [rule] })).await
}

async fn with_policy(policy: &Value) -> Place {
    let place = Place::with(|settings| {
        let root = settings.auth_file.parent().unwrap().to_owned();
        settings.policy = root.join("policy.json");
        settings.policy_dir = root.join("policies");
    })
    .await;
    std::fs::write(place.path("policy.json"), policy.to_string()).unwrap();
    place
}

async fn refused(place: &Place, reference: &str) -> String {
    let error = place.store.pull(request(reference)).await.unwrap_err();
    assert_eq!(error.kind, Kind::Denied, "{}", error.chain());
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.starts_with("SignatureValidationFailed: "), "{source}");
    assert!(place.store.list().is_empty());
    assert_eq!((place.count("layers"), place.count("blobs"), place.count("partial")), (0, 0, 0));
    source
}

#[tokio::test]
async fn a_signature_is_found_wherever_cosign_puts_it() {
    let key = KeyPair::generate().unwrap();
    for at in [Where::Tag, Where::Referrers, Where::ReferrersTag] {
        let (server, made) = (Server::new().await, app());
        let place = strict(&key, "matchRepository").await;
        let reference = server.offer(&made, "v1");
        let repository = format!("{}/app", server.address);
        let why = refused(&place, &reference).await;
        assert!(why.contains("has no signature") && why.contains("rule default (sigstoreSigned)"), "{why}");
        assert!(why.contains("policy.json"), "{why}");
        put(
            &server,
            at,
            &Signing { key: &key, of: &made.manifest, digest: &made.manifest, reference: &repository },
        );
        let image =
            place.store.pull(request(&reference)).await.unwrap_or_else(|e| panic!("{at:?}: {}", e.chain()));
        assert_eq!(image.id, made.id.to_string());
    }
}

#[tokio::test]
async fn a_signed_index_vouches_for_what_it_names() {
    let key = KeyPair::generate().unwrap();
    let (server, mut made) = (Server::new().await, app());
    let index = made.index();
    server.offer(&made, "v1");
    let reference = format!("{}/app@{index}", server.address);
    let place = strict(&key, "matchRepository").await;
    let repository = format!("{}/app", server.address);
    put(&server, Where::Tag, &Signing { key: &key, of: &index, digest: &index, reference: &repository });
    place.store.pull(request(&reference)).await.unwrap();
}

#[tokio::test]
async fn a_signature_by_another_or_of_another_does_not_count() {
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let made = app();
    let elsewhere = Made::new("elsewhere", &[&[("x", "x")]]);
    let server = Server::new().await;
    let reference = server.offer(&made, "v1");
    let repository = format!("{}/app", server.address);
    let rows: [(&KeyPair, &Digest, &str, &str, &str); 5] = [
        (&other, &made.manifest, &repository, "matchRepository", "made by another key"),
        (&key, &elsewhere.manifest, &repository, "matchRepository", "is for sha256:"),
        (&key, &made.manifest, "r.io/app", "matchRepository", "signed as \"r.io/app\""),
        (&key, &made.manifest, &repository, "matchRepoDigestOrExact", "matchRepository"),
        (&key, &made.manifest, "", "matchRepository", "signed as \"\""),
    ];
    for (by, digest, signed, identity, cause) in rows {
        let place = strict(&key, identity).await;
        put(&server, Where::Tag, &Signing { key: by, of: &made.manifest, digest, reference: signed });
        let why = refused(&place, &reference).await;
        assert!(why.contains(cause), "{cause}: {why}");
        assert!(server.asked(&blob(&made.layers[0])).is_empty(), "nothing is fetched before");
    }
    put(
        &server,
        Where::Tag,
        &Signing { key: &key, of: &made.manifest, digest: &made.manifest, reference: &reference },
    );
    strict(&key, "matchRepoDigestOrExact").await.store.pull(request(&reference)).await.unwrap();
}

#[tokio::test]
async fn what_a_policy_asks_for_and_we_do_not_check_lets_nothing_through() {
    let (server, made) = (Server::new().await, app());
    let reference = server.offer(&made, "v1");
    let host = server.address.clone();
    let rows = [
        (json!({ "default": [{ "type": "reject" }] }), "rule default (reject)"),
        (
            json!({ "default": [{ "type": "insecureAcceptAnything" }],
                "transports": { "docker": { host: [{ "type": "reject" }] } } }),
            "rule docker:127.0.0.1",
        ),
        (json!({ "default": [{ "type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k" }] }), "GPG"),
        (json!({ "default": [{ "type": "sigstoreSigned", "fulcio": {} }] }), "fulcio is not checked"),
        (
            json!({ "default": [{ "type": "sigstoreSigned", "keyPath": "/k", "rekorPublicKeyPath": "/r" }] }),
            "rekorPublicKeyPath is not checked",
        ),
        (json!({ "default": [{ "type": "sigstoreSigned", "keyPath": "/nosuch.pub" }] }), "/nosuch.pub"),
        (json!({ "default": [{ "type": "sigstoreSigned", "keyData": "aGk=" }] }), "no public key"),
        (json!({ "default": [] }), "is empty"),
        (json!("hello"), "read policy"),
    ];
    for (policy, cause) in rows {
        let place = with_policy(&policy).await;
        let why = refused(&place, &reference).await;
        assert!(why.contains(cause), "{policy}: {why}");
    }
    let place = with_policy(&json!({ "default": [{ "type": "insecureAcceptAnything" }] })).await;
    place.store.pull(request(&reference)).await.unwrap();
    std::fs::remove_file(place.path("policy.json")).unwrap();
    let error = place.store.pull(request(&reference)).await.unwrap_err();
    assert!(error.chain().contains("policy.json"), "{}", error.chain());
}

#[tokio::test]
async fn a_namespace_has_its_own_policy() {
    let (server, made) = (Server::new().await, app());
    let reference = server.offer(&made, "v1");
    let place = with_policy(&json!({ "default": [{ "type": "insecureAcceptAnything" }] })).await;
    std::fs::create_dir(place.path("policies")).unwrap();
    std::fs::write(place.path("policies/strict.json"), r#"{"default":[{"type":"reject"}]}"#).unwrap();
    let of = |namespace: &str| PullRequest { namespace: Some(namespace.into()), ..request(&reference) };
    // At once: neither joins the other's pull.
    let (strict, lax) = tokio::join!(place.store.pull(of("strict")), place.store.pull(of("lax")));
    lax.unwrap();
    assert!(strict.unwrap_err().chain().contains("strict.json"));
}

#[tokio::test]
async fn a_name_stands_for_listed_content_only() {
    let (server, made) = (Server::new().await, app());
    let reference = server.offer(&made, "v1");
    let place = Place::with(|settings| settings.digests = settings.auth_file.with_file_name("digests")).await;
    let list = place.path("digests");
    std::fs::write(&list, format!("{reference} {}\n", Digest::of(b"another"))).unwrap();
    let why = refused(&place, &reference).await;
    assert!(why.contains("digests does not list"), "{why}");
    std::fs::write(&list, "nonsense\n").unwrap();
    assert!(refused(&place, &reference).await.contains("digests:1"));
    std::fs::write(&list, format!("{reference} {}\n", made.manifest)).unwrap();
    place.store.pull(request(&reference)).await.unwrap();
}
