//! Pulls under a policy: signatures found as tags and as referrers, and refused for every reason.

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType, SigningKey, date_time_ymd,
};
use serde_json::{Value, json};

use super::{
    fixture::{Made, Place, app, blob, request},
    server::Server,
};
use crate::{
    Kind,
    image::{
        PullRequest,
        cosign::{ARTIFACT, BUNDLE_ANNOTATION, CERTIFICATE_ANNOTATION, SIGNATURE_ANNOTATION, SIMPLE_SIGNING},
        digest::Digest,
        document::{OCI_INDEX, OCI_MANIFEST},
        rekor::tests as rekor,
    },
};

/// Where a signature lies in the registry.
#[derive(Debug, Clone, Copy)]
enum Where {
    Tag,
    Referrers,
    ReferrersTag,
}

/// Annotations beside a signature, given it and its payload.
type Beside<'a> = &'a dyn Fn(&[u8], &[u8]) -> Vec<(&'static str, String)>;

/// What is signed, how, and by whom.
struct Signing<'a> {
    key: &'a KeyPair,
    /// Beside which it is put.
    of: &'a Digest,
    digest: &'a Digest,
    reference: &'a str,
    /// What else is told of the signature.
    beside: Beside<'a>,
}

fn nothing(_: &[u8], _: &[u8]) -> Vec<(&'static str, String)> {
    Vec::new()
}

fn put(server: &Server, at: Where, signing: &Signing<'_>) {
    let payload = json!({ "critical": { "identity": { "docker-reference": signing.reference },
        "image": { "docker-manifest-digest": signing.digest }, "type": "cosign container image signature" },
        "optional": Value::Null })
    .to_string()
    .into_bytes();
    let signature = signing.key.sign(&payload).unwrap();
    let mut annotations = json!({ SIGNATURE_ANNOTATION: STANDARD.encode(&signature) });
    for (name, text) in (signing.beside)(&signature, &payload) {
        annotations[name] = text.into();
    }
    let config = b"{}".to_vec();
    let manifest = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config), "size": 2 },
        "layers": [{ "mediaType": SIMPLE_SIGNING, "digest": Digest::of(&payload), "size": payload.len(),
            "annotations": annotations }] })
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
            &Signing {
                key: &key,
                of: &made.manifest,
                digest: &made.manifest,
                reference: &repository,
                beside: &nothing,
            },
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
    put(
        &server,
        Where::Tag,
        &Signing { key: &key, of: &index, digest: &index, reference: &repository, beside: &nothing },
    );
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
        put(
            &server,
            Where::Tag,
            &Signing { key: by, of: &made.manifest, digest, reference: signed, beside: &nothing },
        );
        let why = refused(&place, &reference).await;
        assert!(why.contains(cause), "{cause}: {why}");
        assert!(server.asked(&blob(&made.layers[0])).is_empty(), "nothing is fetched before");
    }
    put(
        &server,
        Where::Tag,
        &Signing {
            key: &key,
            of: &made.manifest,
            digest: &made.manifest,
            reference: &reference,
            beside: &nothing,
        },
    );
    strict(&key, "matchRepoDigestOrExact").await.store.pull(request(&reference)).await.unwrap();
}

/// A certificate for signing code as that address has it from a Fulcio, its key, and its authority; PEM.
fn issued(email: &str) -> (KeyPair, String, String) {
    let (mut params, root_key) = (CertificateParams::new([]).unwrap(), KeyPair::generate().unwrap());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&root_key).unwrap().pem();
    let (mut leaf, key) = (CertificateParams::new([]).unwrap(), KeyPair::generate().unwrap());
    leaf.subject_alt_names = vec![SanType::Rfc822Name(email.try_into().unwrap())];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    let issuer = [1, 3, 6, 1, 4, 1, 57264, 1, 1];
    leaf.custom_extensions = vec![CustomExtension::from_oid_content(&issuer, b"https://issuer".to_vec())];
    (leaf.not_before, leaf.not_after) = (date_time_ymd(2023, 11, 14), date_time_ymd(2023, 11, 15));
    let short = leaf.signed_by(&key, &Issuer::new(params, root_key)).unwrap().pem();
    (key, short, root)
}

#[tokio::test]
async fn a_certificate_counts_for_when_rekor_has_its_signature() {
    let (key, certificate, root) = issued("builder@example.com");
    let log = KeyPair::generate().unwrap();
    let made = app();
    let server = Server::new().await;
    let reference = server.offer(&made, "v1");
    let repository = format!("{}/app", server.address);
    let data = |pem: &str| STANDARD.encode(pem);
    let fulcio = |email: &str| {
        json!({ "default": [{ "type": "sigstoreSigned", "rekorPublicKeyData": data(&log.public_key_pem()),
            "fulcio": { "caData": data(&root), "oidcIssuer": "https://issuer", "subjectEmail": email },
            "signedIdentity": { "type": "matchRepository" } }] })
    };
    // A day in the middle of 2023-11-14, and one after it.
    let (during, after) = (1_700_000_000, 1_700_900_000);
    let at = |seconds: u64| {
        let (certificate, log) = (&certificate, &log);
        move |signature: &[u8], payload: &[u8]| {
            let bundle = rekor::receipt(log, &rekor::body(certificate, signature, payload), seconds);
            vec![(CERTIFICATE_ANNOTATION, certificate.clone()), (BUNDLE_ANNOTATION, bundle.to_string())]
        }
    };
    let bare = |_: &[u8], _: &[u8]| vec![(CERTIFICATE_ANNOTATION, certificate.clone())];
    let signed = |beside: Beside<'_>| {
        let of = &made.manifest;
        put(&server, Where::Tag, &Signing { key: &key, of, digest: of, reference: &repository, beside });
    };
    let rows: [(Beside<'_>, &str, &str); 4] = [
        (&nothing, "builder@example.com", "no certificate"),
        (&bare, "builder@example.com", "no receipt of Rekor's"),
        (&at(after), "builder@example.com", "certificate does not count"),
        (&at(during), "other@example.com", "not of \"other@example.com\""),
    ];
    for (beside, email, cause) in rows {
        signed(beside);
        let why = refused(&with_policy(&fulcio(email)).await, &reference).await;
        assert!(why.contains(cause), "{cause}: {why}");
    }
    signed(&at(during));
    with_policy(&fulcio("builder@example.com")).await.store.pull(request(&reference)).await.unwrap();
    // Without Rekor now is what counts, and that certificate was for a day.
    let pki = json!({ "default": [{ "type": "sigstoreSigned", "signedIdentity": { "type": "matchRepository" },
        "pki": { "caRootsData": data(&root), "subjectEmail": "builder@example.com" } }] });
    let why = refused(&with_policy(&pki).await, &reference).await;
    assert!(why.contains("certificate does not count"), "{why}");
}

#[tokio::test]
async fn a_key_may_have_to_be_logged_too() {
    let (key, log) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let made = app();
    let server = Server::new().await;
    let reference = server.offer(&made, "v1");
    let repository = format!("{}/app", server.address);
    let rule = json!({ "type": "sigstoreSigned", "keyData": STANDARD.encode(key.public_key_pem()),
        "rekorPublicKeyData": STANDARD.encode(log.public_key_pem()), "signedIdentity": { "type": "matchRepository" } });
    let place = with_policy(&json!({ "default": [rule] })).await;
    let logged = |signature: &[u8], payload: &[u8]| {
        let body = rekor::body(&key.public_key_pem(), signature, payload);
        vec![(BUNDLE_ANNOTATION, rekor::receipt(&log, &body, 1).to_string())]
    };
    let of = &made.manifest;
    put(
        &server,
        Where::Tag,
        &Signing { key: &key, of, digest: of, reference: &repository, beside: &nothing },
    );
    assert!(refused(&place, &reference).await.contains("no receipt of Rekor's"));
    put(&server, Where::Tag, &Signing { key: &key, of, digest: of, reference: &repository, beside: &logged });
    place.store.pull(request(&reference)).await.unwrap();
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
        (json!({ "default": [{ "type": "sigstoreSigned", "fulcio": {} }] }), "Rekor says when"),
        (
            json!({ "default": [{ "type": "sigstoreSigned", "pki": { "caRootsData": "aGk=", "subjectEmail": "a" } }] }),
            "no certificate",
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
