//! Mutated layers and documents: an answer, never a panic, and nothing outside of the layer's own directory.

use std::{fs, io::Read};

use proptest::{prelude::*, sample::Index};

use super::fixture::{app, config_of};
use crate::image::{
    cosign::Signature,
    digest::Digest,
    document,
    policy::Policy,
    rekor::{Entry, Receipt},
    tape::Replay,
    unpack,
};

/// A layer of every kind of entry, and where its headers are.
fn layer() -> (Vec<u8>, Vec<usize>) {
    let mut builder = tar::Builder::new(Vec::new());
    let rows: [(&str, tar::EntryType, &str, &[u8]); 10] = [
        ("dir/", tar::EntryType::Directory, "", b""),
        ("dir/file", tar::EntryType::Regular, "", b"content"),
        ("dir/hard", tar::EntryType::Link, "dir/file", b""),
        ("link", tar::EntryType::Symlink, "../victim", b""),
        ("link/below", tar::EntryType::Regular, "", b"x"),
        ("pipe", tar::EntryType::Fifo, "", b""),
        ("dir/.wh.gone", tar::EntryType::Regular, "", b""),
        ("pax", tar::EntryType::XHeader, "", b"14 path=a/b/c\n"),
        ("x", tar::EntryType::Regular, "", b"deep"),
        ("dir", tar::EntryType::Regular, "", b"replaced"),
    ];
    let (mut headers, mut at) = (Vec::new(), 0);
    for (name, kind, link, content) in rows {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).unwrap();
        headers.push(at);
        at += 512 + content.len().next_multiple_of(512);
    }
    (builder.into_inner().unwrap(), headers)
}

/// Makes a changed header one that is read all the same.
fn sum_up(tar: &mut [u8], headers: &[usize]) {
    for at in headers {
        let header = &mut tar[*at..at + 512];
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

fn changed(mut bytes: Vec<u8>, changes: &[(Index, u8)]) -> Vec<u8> {
    for (index, byte) in changes {
        let at = index.index(bytes.len());
        bytes[at] = *byte;
    }
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(Index, u8)>> {
    // What means something in a tar is more often something.
    let byte = prop_oneof![any::<u8>(), prop::sample::select(b"/.\0 01257xgLKS=-".to_vec())];
    prop::collection::vec((any::<Index>(), byte), 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mutated_layer_is_unpacked_or_refused_and_stays_inside(changes in changes()) {
        let (tar, headers) = layer();
        let mut tar = changed(tar, &changes);
        sum_up(&mut tar, &headers);
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("layer");
        fs::create_dir(&directory).unwrap();
        fs::write(place.path().join("victim"), "untouched").unwrap();
        fs::write(directory.join("blob"), &tar).unwrap();
        let blob = directory.join("blob");
        match unpack::unpack(&blob, &Digest::of(&tar), &directory, 1 << 24, unpack::Keep::Tape) {
            Err(error) => prop_assert!(!error.chain().is_empty()),
            Ok(unpacked) => {
                if let Some(tape) = unpacked.tape {
                    let mut again = Vec::new();
                    Replay::open(&directory).unwrap().read_to_end(&mut again).unwrap();
                    prop_assert_eq!(again.len() as u64, tape.tar_bytes);
                    prop_assert!(again == tar, "the tape gives another tar");
                }
            }
        }
        prop_assert_eq!(fs::read_to_string(place.path().join("victim")).unwrap(), "untouched");
        prop_assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_mutated_document_is_read_or_refused(changes in changes()) {
        let made = app();
        let manifest = changed(made.blobs[&made.manifest].clone(), &changes);
        document::Document::parse(&manifest, "x").ok();
        let config = changed(config_of("x", &made.diff_ids), &changes);
        document::parse_config(&config, 2, "x").ok();
        let policy = br#"{"default":[{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"matchExact"}}]}"#;
        Policy::parse(&changed(policy.to_vec(), &changes), "x").ok();
        let text = String::from_utf8_lossy(&changed(b"MEUCIQDq".to_vec(), &changes)).into_owned();
        let claimed = Signature { payload: manifest, signature: text, ..Signature::default() }.claim(&[]);
        prop_assert!(claimed.is_err());
        let receipt = br#"{"SignedEntryTimestamp":"MEUCIQDq","Payload":{"body":"e30=","integratedTime":1,"logIndex":2,"logID":"c0"}}"#;
        let receipt = String::from_utf8_lossy(&changed(receipt.to_vec(), &changes)).into_owned();
        let entry = Entry { by: b"", signature: b"", payload: b"" };
        let vouched = Receipt::parse(&receipt).and_then(|receipt| receipt.vouches(&[], &entry));
        prop_assert!(vouched.is_err());
    }
}
