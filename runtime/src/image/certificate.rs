//! Whether a certificate for signing code comes from an authority, and whose it is. Pure.

use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime, pem::PemObject};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

use super::cosign::PublicKey;
use crate::{Error, Result};

/// id-kp-codeSigning (RFC 5280, 4.2.1.12), as webpki takes it: without tag and length.
const CODE_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 3];
/// Who told Fulcio of the subject: as bare text, and since its 1.0 as a UTF8String.
const ISSUER: &str = "1.3.6.1.4.1.57264.1.1";
const ISSUER_V2: &str = "1.3.6.1.4.1.57264.1.8";
const UTF8_STRING: u8 = 0x0c;

/// Whose a certificate must be; what is not given is not asked.
#[derive(Debug, Clone, Default)]
pub(super) struct Subject {
    pub(super) issuer: Option<String>,
    pub(super) email: Option<String>,
    pub(super) hostname: Option<String>,
}

/// Roots, what may lie between them and a certificate, and whom they vouch for.
#[derive(Debug)]
pub(super) struct Authority {
    anchors: Vec<TrustAnchor<'static>>,
    intermediates: Vec<CertificateDer<'static>>,
    subject: Subject,
}

/// The certificates of a PEM file.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("it is no certificate in PEM: {error}"))?;
    if all.is_empty() { Err("it has no certificate in PEM".into()) } else { Ok(all) }
}

impl Authority {
    /// # Errors
    /// Where a root is none.
    pub(super) fn new(
        roots: Vec<CertificateDer<'static>>,
        intermediates: Vec<CertificateDer<'static>>,
        subject: Subject,
    ) -> Result<Self> {
        let anchor =
            |root: &CertificateDer<'_>| anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned());
        let anchors = roots.iter().map(anchor).collect::<Result<Vec<_>, _>>();
        let anchors =
            anchors.map_err(|error| Error::invalid("read certificates", "the roots", error.to_string()))?;
        Ok(Self { anchors, intermediates, subject })
    }

    /// The key of a certificate that was good at that time and is the subject's. `chain` is what the signer gives with it.
    pub(super) fn key_of(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        at: UnixTime,
    ) -> Result<PublicKey, String> {
        let wrong = |error: webpki::Error| format!("its certificate does not count: {error}");
        let leaf = EndEntityCert::try_from(certificate).map_err(wrong)?;
        let between: Vec<CertificateDer<'_>> = self.intermediates.iter().chain(chain).cloned().collect();
        // Authorities of people's own often name no usage at all, and then it is for any.
        let usage = KeyUsage::required_if_present(CODE_SIGNING);
        leaf.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &self.anchors, &between, at, usage, None, None)
            .map_err(wrong)?;
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|error| format!("its certificate is not understood: {error}"))?;
        if let Some(wanted) = &self.subject.issuer {
            let found = issuer(&parsed)?;
            if found != *wanted {
                return Err(format!("its certificate is for whom {found:.200?} knows, not {wanted:?}"));
            }
        }
        if let Some(wanted) = &self.subject.email {
            let found = emails(&parsed)?;
            if !found.contains(&wanted.as_str()) {
                return Err(format!("its certificate is that of {found:.200?}, not of {wanted:?}"));
            }
        }
        if let Some(wanted) = &self.subject.hostname {
            let name = ServerName::try_from(wanted.as_str())
                .map_err(|_| format!("subjectHostname {wanted:?} is no host name"))?;
            leaf.verify_is_valid_for_subject_name(&name)
                .map_err(|error| format!("its certificate is not that of {wanted}: {error}"))?;
        }
        PublicKey::parse_der(parsed.public_key().raw)
    }
}

fn emails<'a>(certificate: &'a X509Certificate<'_>) -> Result<Vec<&'a str>, String> {
    let names = certificate.subject_alternative_name();
    let names = names.map_err(|error| format!("the names of its certificate are not understood: {error}"))?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let email = |name: &'a GeneralName<'_>| match name {
        GeneralName::RFC822Name(email) => Some(*email),
        _ => None,
    };
    Ok(names.filter_map(email).collect())
}

fn issuer(certificate: &X509Certificate<'_>) -> Result<String, String> {
    let of = |oid: &str| {
        let mut found = certificate.extensions().iter().filter(|one| one.oid.to_id_string() == oid);
        let first = found.next();
        if found.next().is_some() { Err("its certificate names two issuers".to_owned()) } else { Ok(first) }
    };
    let text = match (of(ISSUER)?, of(ISSUER_V2)?) {
        (Some(bare), _) => bare.value,
        (None, Some(tagged)) => match tagged.value {
            // Longer ones would have a length of more bytes.
            [UTF8_STRING, length @ 0..=0x7f, text @ ..] if usize::from(*length) == text.len() => text,
            _ => return Err("the issuer in its certificate is not understood".into()),
        },
        (None, None) => return Err("its certificate names no issuer: it is not Fulcio's".into()),
    };
    String::from_utf8(text.to_vec()).map_err(|_| "the issuer in its certificate is no text".into())
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        SanType,
    };

    use super::*;

    /// What one test changes about a certificate.
    struct Made {
        emails: &'static [&'static str],
        hosts: &'static [&'static str],
        usage: ExtendedKeyUsagePurpose,
        extensions: Vec<CustomExtension>,
    }

    fn usual() -> Made {
        Made {
            emails: &["builder@example.com"],
            hosts: &["build.example.com"],
            usage: ExtendedKeyUsagePurpose::CodeSigning,
            extensions: Vec::new(),
        }
    }

    fn ca(name: &str) -> (CertificateParams, KeyPair) {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params, KeyPair::generate().unwrap())
    }

    struct Tree {
        root: CertificateDer<'static>,
        between: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
        key: KeyPair,
    }

    impl Tree {
        fn new() -> Self {
            let (params, root_key) = ca("root");
            let root = params.self_signed(&root_key).unwrap();
            let root_issuer = Issuer::new(params, root_key);
            let (params, key) = ca("between");
            let between = params.signed_by(&key, &root_issuer).unwrap();
            Self {
                root: root.der().clone(),
                between: between.der().clone(),
                issuer: Issuer::new(params, key),
                key: KeyPair::generate().unwrap(),
            }
        }

        fn leaf(&self, made: Made) -> CertificateDer<'static> {
            let mut params = CertificateParams::new([]).unwrap();
            let email = |text: &&str| SanType::Rfc822Name((*text).try_into().unwrap());
            let host = |text: &&str| SanType::DnsName((*text).try_into().unwrap());
            params.subject_alt_names =
                made.emails.iter().map(email).chain(made.hosts.iter().map(host)).collect();
            params.extended_key_usages = vec![made.usage];
            params.custom_extensions = made.extensions;
            params.signed_by(&self.key, &self.issuer).unwrap().der().clone()
        }

        fn authority(&self, subject: Subject) -> Authority {
            Authority::new(vec![self.root.clone()], Vec::new(), subject).unwrap()
        }
    }

    fn by_email(email: &str) -> Subject {
        Subject { email: Some(email.into()), ..Subject::default() }
    }

    fn issuer_extension(oid: &[u64], content: &[u8]) -> CustomExtension {
        CustomExtension::from_oid_content(oid, content.to_vec())
    }

    const V1: &[u64] = &[1, 3, 6, 1, 4, 1, 57264, 1, 1];
    const V2: &[u64] = &[1, 3, 6, 1, 4, 1, 57264, 1, 8];

    #[test]
    fn a_certificate_counts_for_whom_it_names_below_its_root_and_in_its_time() {
        let tree = Tree::new();
        let (chain, now) = ([tree.between.clone()], UnixTime::now());
        let key = tree.authority(by_email("builder@example.com")).key_of(&tree.leaf(usual()), &chain, now);
        assert_eq!(key.unwrap().der(), PublicKey::parse(tree.key.public_key_pem().as_bytes()).unwrap().der());
        let host = Subject { hostname: Some("build.example.com".into()), ..Subject::default() };
        tree.authority(host).key_of(&tree.leaf(usual()), &chain, now).unwrap();
        // Given by the policy, the signer may leave it away.
        let held = Authority::new(
            vec![tree.root.clone()],
            vec![tree.between.clone()],
            by_email("builder@example.com"),
        );
        held.unwrap().key_of(&tree.leaf(usual()), &[], now).unwrap();

        let server = Made { usage: ExtendedKeyUsagePurpose::ServerAuth, ..usual() };
        let nobody = Made { emails: &[], ..usual() };
        let other_host = Subject { hostname: Some("example.com".into()), ..Subject::default() };
        let no_host = Subject { hostname: Some("a b".into()), ..Subject::default() };
        let early = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1));
        let wanted = || by_email("builder@example.com");
        let other = Tree::new();
        let rows = [
            (tree.authority(by_email("other@example.com")), tree.leaf(usual()), now, "not of \"other@"),
            (tree.authority(wanted()), tree.leaf(nobody), now, "that of []"),
            (tree.authority(other_host), tree.leaf(usual()), now, "not that of example.com"),
            (tree.authority(no_host), tree.leaf(usual()), now, "no host name"),
            (tree.authority(wanted()), tree.leaf(server), now, "does not count"),
            (tree.authority(wanted()), tree.leaf(usual()), early, "does not count"),
            (other.authority(wanted()), tree.leaf(usual()), now, "does not count"),
            (tree.authority(wanted()), other.leaf(usual()), now, "does not count"),
        ];
        for (authority, leaf, at, cause) in rows {
            let told = authority.key_of(&leaf, &chain, at).unwrap_err();
            assert!(told.contains(cause), "{cause}: {told}");
        }
        assert!(tree.authority(wanted()).key_of(&tree.leaf(usual()), &[], now).is_err(), "nothing between");
    }

    #[test]
    fn fulcio_says_who_knows_the_subject() {
        let tree = Tree::new();
        let (chain, now) = ([tree.between.clone()], UnixTime::now());
        let authority =
            tree.authority(Subject { issuer: Some("https://i".into()), ..by_email("builder@example.com") });
        let with = |extensions| tree.leaf(Made { extensions, ..usual() });
        let tagged = b"\x0c\x09https://i";
        for extensions in [vec![issuer_extension(V1, b"https://i")], vec![issuer_extension(V2, tagged)]] {
            authority.key_of(&with(extensions), &chain, now).unwrap();
        }
        let rows = [
            (vec![], "not Fulcio's"),
            (vec![issuer_extension(V1, b"https://j")], "\"https://j\" knows"),
            (vec![issuer_extension(V1, b"https://j"), issuer_extension(V2, tagged)], "\"https://j\" knows"),
            (vec![issuer_extension(V2, b"https://i")], "not understood"),
            (vec![issuer_extension(V2, b"\x0c\x08https://i")], "not understood"),
            (vec![issuer_extension(V1, b"\xff")], "no text"),
        ];
        for (extensions, cause) in rows {
            let told = authority.key_of(&with(extensions), &chain, now).unwrap_err();
            assert!(told.contains(cause), "{cause}: {told}");
        }
    }

    #[test]
    fn a_certificate_that_was_changed_anywhere_does_not_count() {
        let tree = Tree::new();
        let (leaf, chain, now) = (tree.leaf(usual()), [tree.between.clone()], UnixTime::now());
        let authority = tree.authority(by_email("builder@example.com"));
        for at in 0..leaf.len() {
            let mut changed = leaf.to_vec();
            changed[at] ^= 0x15;
            assert!(authority.key_of(&changed.into(), &chain, now).is_err(), "byte {at}");
            assert!(authority.key_of(&leaf[..at].to_vec().into(), &chain, now).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_told() {
        for bad in ["", "hello", "-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n"] {
            assert!(certificates(bad.as_bytes()).unwrap_err().contains("certificate"), "{bad}");
        }
        let none = vec![CertificateDer::from(vec![1, 2, 3])];
        assert!(Authority::new(none.clone(), Vec::new(), Subject::default()).is_err());
        let told = Tree::new().authority(Subject::default()).key_of(&none[0], &[], UnixTime::now());
        assert!(told.unwrap_err().contains("does not count"));
    }
}
