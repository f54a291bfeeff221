//! CDI: devices that their vendors describe in files, by what has to be in a container that is given one. Pure: texts
//! and names in, edits out; whoever calls reads the files. Container Device Interface specification 1.0.
//!
//! ```text
//! texts by directory ── parse ──> Document ── resolve(names) ──> Edits ──> spec, devices, mounts, environment, groups
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, error::Cause};

const OP: &str = "find CDI device";
/// Annotations that ask for devices, from before CRI had a field for it.
const ANNOTATION: &str = "cdi.k8s.io/";

/// A file, as its directory's rank (the later directory wins), its name and its text.
#[derive(Debug, Clone)]
pub struct Text {
    pub rank: usize,
    pub path: PathBuf,
    pub text: String,
}

/// What is changed in a container for the sake of its devices.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Edits {
    pub env: Vec<String>,
    pub device_nodes: Vec<Node>,
    pub mounts: Vec<Mount>,
    pub hooks: Vec<Hook>,
    #[serde(rename = "additionalGIDs", alias = "additionalGids")]
    pub additional_gids: Vec<u32>,
    net_devices: Vec<serde_json::Value>,
    intel_rdt: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    pub path: String,
    /// Empty: the same as in the container.
    pub host_path: String,
    /// b, c, u or p; empty: as the host's is.
    pub r#type: String,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub file_mode: Option<u32>,
    pub permissions: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    pub host_path: String,
    pub container_path: String,
    pub options: Vec<String>,
    pub r#type: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    pub hook_name: String,
    pub path: String,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub timeout: Option<i64>,
}

/// One file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    cdi_version: String,
    kind: String,
    #[serde(default)]
    #[expect(dead_code, reason = "part of the format, of no meaning to a runtime")]
    annotations: BTreeMap<String, String>,
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Device {
    name: String,
    #[serde(default)]
    #[expect(dead_code, reason = "part of the format, of no meaning to a runtime")]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    container_edits: Edits,
}

/// The devices that a container asks for: CRI's field first, then its annotations, each name once.
pub fn asked(config: &berth_cri::v1::ContainerConfig) -> Vec<String> {
    let field = config.cdi_devices.iter().map(|device| device.name.clone());
    let mut annotations: Vec<_> =
        config.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION)).collect();
    annotations.sort();
    let noted = annotations.into_iter().flat_map(|(_, names)| names.split(',').map(str::to_owned));
    let mut seen = BTreeSet::new();
    field.chain(noted).filter(|name| seen.insert(name.clone())).collect()
}

/// The edits that these devices need, in the order of their names; a file's own edits once, before those of its devices.
///
/// # Errors
/// `NotFound` for a device that no file describes, with what is wrong in files that can't be read; `Invalid` for a name
/// that is none, and for one that two files of one directory describe.
pub fn resolve(texts: &[Text], names: &[String]) -> Result<Edits> {
    let mut wrong = Vec::new();
    let mut documents = Vec::new();
    for text in texts {
        match parse(&text.text) {
            Ok(document) => documents.push((text, document)),
            Err(why) => wrong.push(format!("{}: {why}", text.path.display())),
        }
    }
    let mut edits = Edits::default();
    let mut of_files = BTreeSet::new();
    for name in names {
        let (kind, device) = split(name)?;
        let found: Vec<_> = documents
            .iter()
            .enumerate()
            .filter(|(_, (_, document))| document.kind == kind)
            .filter_map(|(n, (text, document))| {
                let device = document.devices.iter().find(|there| there.name == device)?;
                Some((text.rank, n, device))
            })
            .collect();
        let best = found.iter().map(|(rank, ..)| *rank).max();
        let mut there = found.into_iter().filter(|(rank, ..)| Some(*rank) == best);
        match (there.next(), there.next()) {
            (Some((_, n, device)), None) => {
                if of_files.insert(n) {
                    edits.add(&documents[n].1.container_edits);
                }
                edits.add(&device.container_edits);
            }
            (Some((_, one, _)), Some((_, other, _))) => {
                let paths = [one, other].map(|n| documents[n].0.path.display().to_string());
                return Err(Error::invalid(OP, name, format!("{} both describe it", paths.join(" and ")))
                    .hint("remove one of the two"));
            }
            (None, _) => {
                let mut why = "no file of the CDI directories describes it".to_owned();
                if !wrong.is_empty() {
                    why.push_str(&format!("; of no use are {}", wrong.join(", ")));
                }
                return Err(Error::new(crate::Kind::NotFound, OP, name).because(Cause(why)));
            }
        }
    }
    if !edits.net_devices.is_empty() || edits.intel_rdt.is_some() || !edits.hooks.is_empty() {
        return Err(Error::new(crate::Kind::Unimplemented, OP, names.join(", "))
            .because(Cause("its description asks for hooks, network devices or cache allocation".into())));
    }
    Ok(edits)
}

impl Edits {
    fn add(&mut self, more: &Self) {
        self.env.extend(more.env.iter().cloned());
        self.device_nodes.extend(more.device_nodes.iter().cloned());
        self.mounts.extend(more.mounts.iter().cloned());
        self.hooks.extend(more.hooks.iter().cloned());
        self.additional_gids.extend(more.additional_gids.iter().filter(|gid| **gid != 0));
        self.net_devices.extend(more.net_devices.iter().cloned());
        self.intel_rdt = more.intel_rdt.clone().or(self.intel_rdt.take());
    }
}

/// JSON is YAML too, so one parser reads both.
fn parse(text: &str) -> Result<Document, String> {
    let document: Document = serde_saphyr::from_str(text).map_err(|error| {
        // Its own text draws the place over several lines.
        error.to_string().lines().next().unwrap_or_default().to_owned()
    })?;
    match document.cdi_version.split('.').next() {
        Some("0" | "1") => Ok(document),
        _ => Err(format!("its version {:?} is none that is known", document.cdi_version)),
    }
}

/// `vendor/class=name`.
fn split(name: &str) -> Result<(&str, &str)> {
    let letters = |text: &str, more: &[u8]| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte) || more.contains(&byte);
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        text.bytes().all(inner) && edge(text.as_bytes().first()) && edge(text.as_bytes().last())
    };
    let parts = name.split_once('=').and_then(|(kind, device)| Some((kind, kind.split_once('/')?, device)));
    match parts {
        Some((kind, (vendor, class), device))
            if letters(vendor, b"") && letters(class, b"") && letters(device, b":") =>
        {
            Ok((kind, device))
        }
        _ => Err(Error::invalid(OP, format!("{name:?}"), "it is not of the form vendor/class=name")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Kind;

    fn text(rank: usize, path: &str, text: &str) -> Text {
        Text { rank, path: path.into(), text: text.into() }
    }

    fn resolved(texts: &[Text], names: &[&str]) -> Result<Edits> {
        resolve(texts, &names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    const JSON: &str = r#"{"cdiVersion": "0.6.0", "kind": "acme.com/gpu",
        "containerEdits": {"env": ["ALL=1"]},
        "devices": [
            {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/gpu0", "fileMode": 438}]}},
            {"name": "1", "containerEdits": {"mounts": [{"hostPath": "/opt", "containerPath": "/opt"}]}}
        ]}"#;
    const YAML: &str = "cdiVersion: 0.8.0\nkind: acme.com/gpu\ndevices:\n- name: '0'\n  containerEdits:\n    \
        env: [NEWER=1]\n    additionalGids: [0, 27]\n";

    #[test]
    fn a_devices_edits_come_with_those_of_its_file_once() {
        let edits =
            resolved(&[text(0, "/etc/cdi/a.json", JSON)], &["acme.com/gpu=1", "acme.com/gpu=0"]).unwrap();
        assert_eq!(edits.env, ["ALL=1"]);
        assert_eq!((edits.mounts.len(), edits.device_nodes.len()), (1, 1));
        assert_eq!(edits.device_nodes[0].file_mode, Some(0o666));
    }

    #[test]
    fn the_later_directory_wins_and_two_of_one_are_no_choice() {
        let (old, new) = (text(0, "/etc/cdi/a.json", JSON), text(1, "/var/run/cdi/a.yaml", YAML));
        let edits = resolved(&[old.clone(), new.clone()], &["acme.com/gpu=0"]).unwrap();
        assert_eq!((edits.env, edits.additional_gids), (vec!["NEWER=1".to_owned()], vec![27]));
        let both = [text(1, "/var/run/cdi/b.yaml", YAML), new];
        let error = resolved(&both, &["acme.com/gpu=0"]).unwrap_err();
        assert_eq!(error.kind, Kind::Invalid);
        assert!(error.chain().contains("/var/run/cdi/b.yaml and /var/run/cdi/a.yaml"), "{}", error.chain());
    }

    #[test]
    fn what_is_not_there_is_told_with_the_files_that_say_nothing() {
        let texts = [text(0, "/etc/cdi/a.json", JSON), text(0, "/etc/cdi/broken.json", "{")];
        let error = resolved(&texts, &["acme.com/gpu=9"]).unwrap_err();
        assert_eq!(error.kind, Kind::NotFound);
        assert!(error.chain().contains("/etc/cdi/broken.json: "), "{}", error.chain());
        for name in ["", "gpu", "acme.com/gpu", "acme.com=0", "a/b=../x", "a/b=", "-a/b=c", "a/b=c d"] {
            assert_eq!(resolved(&texts, &[name]).unwrap_err().kind, Kind::Invalid, "{name}");
        }
        let later = r#"{"cdiVersion": "2.0.0", "kind": "a/b", "devices": []}"#;
        assert!(parse(later).is_err());
        let unknown = r#"{"cdiVersion": "1.0.0", "kind": "a/b", "devices": [{"name": "c", "magic": 1}]}"#;
        assert!(parse(unknown).is_err());
    }

    #[test]
    fn devices_are_asked_for_by_the_field_and_by_annotations_once_each() {
        let device = |name: &str| berth_cri::v1::CdiDevice { name: name.into() };
        let config = berth_cri::v1::ContainerConfig {
            cdi_devices: vec![device("a/b=1")],
            annotations: [
                ("cdi.k8s.io/x".to_owned(), "a/b=2,a/b=1".to_owned()),
                ("other".to_owned(), "a/b=3".to_owned()),
            ]
            .into(),
            ..Default::default()
        };
        assert_eq!(asked(&config), ["a/b=1", "a/b=2"]);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(bytes in "\\PC{0,200}") {
            parse(&bytes).ok();
        }
    }
}
