//! The CRI that Berth is built from against the CRI that Kubernetes publishes: nothing missing, nothing renumbered.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use berth_tests::{required, skip};
use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::Label,
};

/// The version that `cri.proto` follows.
const MODULE: &str = "k8s.io/cri-api@v0.37.2";
const PACKAGE: &str = "runtime.v1";

#[test]
fn cri_is_word_for_word_that_of_kubernetes() {
    let test = "cri_is_word_for_word_that_of_kubernetes";
    let Some(directory) = published(test) else { return };
    let api = directory.join("pkg/apis/runtime/v1");
    let theirs = protox::compile(["api.proto"], [&api]).expect("compile the published api.proto");
    let theirs = facts(file_of(&theirs));
    let ours = FileDescriptorSet::decode(berth_cri::DESCRIPTORS).expect("the build made the descriptors");
    let ours = facts(file_of(&ours));
    assert!(theirs.len() > 700, "only {} facts in the published file", theirs.len());
    let missing = theirs.iter().filter(|(name, fact)| ours.get(*name) != Some(*fact));
    let missing: Vec<String> = missing
        .map(|(name, fact)| match ours.get(name) {
            None => format!("missing: {name}: {fact}"),
            Some(found) => format!("differs: {name}: {found}, published: {fact}"),
        })
        .collect();
    let more = ours.iter().filter(|(name, _)| !theirs.contains_key(*name));
    let more: Vec<String> =
        more.map(|(name, fact)| format!("not in the published file: {name}: {fact}")).collect();
    let wrong = [missing, more].concat();
    assert!(wrong.is_empty(), "{} differences from {MODULE}:\n{}", wrong.len(), wrong.join("\n"));
}

/// A shim of yesterday talks to the daemon of today, a script's client of last year to its socket.
#[test]
fn what_was_once_sent_keeps_its_name_and_number() {
    for (name, directory) in [("launch", "../proto/launch"), ("berth", "../proto/cri")] {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
        let file = format!("{name}.proto");
        let set = protox::compile([&file], [&directory]).expect("compile our own file");
        let ours = set.file.iter().find(|found| found.name() == file).expect("the set has the file");
        let found: BTreeSet<String> =
            facts(ours).into_iter().map(|(name, fact)| format!("{name}: {fact}")).collect();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"));
        if std::env::var_os("UPDATE").is_some() {
            let lines: String = found.iter().map(|fact| format!("{fact}\n")).collect();
            fs::write(&path, lines).expect("write the golden file");
            continue;
        }
        let golden = fs::read_to_string(&path).expect("read the golden file");
        let golden: BTreeSet<String> = golden.lines().map(str::to_owned).collect();
        assert!(golden.len() > 100, "{} is all but empty", path.display());
        let gone: Vec<_> = golden.difference(&found).collect();
        assert!(gone.is_empty(), "{file} breaks with what was sent before: {gone:#?}");
        let come: Vec<_> = found.difference(&golden).collect();
        assert!(come.is_empty(), "new in {file}: UPDATE=1 adds it where it is right: {come:#?}");
    }
}

#[test]
fn the_facts_of_a_file_are_all_there() {
    let ours = FileDescriptorSet::decode(berth_cri::DESCRIPTORS).expect("the build made the descriptors");
    let facts = facts(file_of(&ours));
    let of = |name: &str| facts.get(name).map_or("", String::as_str);
    assert_eq!(of("RuntimeService.RunPodSandbox"), "RunPodSandboxRequest -> RunPodSandboxResponse");
    assert!(of("RuntimeService.GetContainerEvents").ends_with("-> stream ContainerEventResponse"));
    assert_eq!(of("KeyValue.value"), "2 optional bytes");
    assert_eq!(of("PodSandboxConfig.labels"), "6 map<string, string>");
    assert_eq!(of("SecurityProfile.ProfileType.Localhost"), "2");
    assert_eq!(of("ContainerState.CONTAINER_EXITED"), "2");
    // 37 of the runtime, 6 of the images (StreamImages among them).
    let calls = facts.keys().filter(|name| name.contains("Service.")).count();
    assert_eq!(calls, 43, "{:?}", facts.keys().filter(|name| name.contains("Service.")).collect::<Vec<_>>());
}

/// What `berth_cri::Items` is sent for has one field, a list, of that number: nothing that a later CRI adds is left out.
#[test]
fn the_lists_that_are_sent_as_bytes_hold_one_list_and_nothing_else() {
    let ours = FileDescriptorSet::decode(berth_cri::DESCRIPTORS).expect("the build made the descriptors");
    let rows = [
        ("ListContainersResponse", ".runtime.v1.Container"),
        ("ListPodSandboxResponse", ".runtime.v1.PodSandbox"),
        ("StreamContainersResponse", ".runtime.v1.Container"),
        ("StreamPodSandboxesResponse", ".runtime.v1.PodSandbox"),
    ];
    for (name, item) in rows {
        let message = file_of(&ours).message_type.iter().find(|message| message.name() == name);
        let fields = &message.expect("the file has the message").field;
        let fields: Vec<_> =
            fields.iter().map(|field| (field.number(), field.label(), field.type_name())).collect();
        assert_eq!(fields, [(1, Label::Repeated, item)], "{name}");
    }
}

/// The module's directory in Go's cache, fetched by Go's own client if it is not there yet.
fn published(test: &str) -> Option<PathBuf> {
    if !required(test, &["go"]) {
        return None;
    }
    // Outside of any module, so that no go.mod has a say.
    let output = Command::new("go")
        .args(["mod", "download", "-json", MODULE])
        .env("GOWORK", "off")
        .current_dir(std::env::temp_dir())
        .output()
        .expect("run go");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    match answer["Dir"].as_str() {
        Some(directory) if output.status.success() => Some(PathBuf::from(directory)),
        _ => {
            let why = answer["Error"]
                .as_str()
                .map_or_else(|| String::from_utf8_lossy(&output.stderr).trim().to_owned(), str::to_owned);
            skip(test, &format!("{MODULE} can't be had: {why}"));
            None
        }
    }
}

fn file_of(set: &FileDescriptorSet) -> &FileDescriptorProto {
    set.file.iter().find(|file| file.package() == PACKAGE).expect("the set has CRI's file")
}

/// Every call, field and enum value by its name, and what is to be said of it.
fn facts(file: &FileDescriptorProto) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    for service in &file.service {
        for method in &service.method {
            let stream = |streaming| if streaming { "stream " } else { "" };
            let fact = format!(
                "{}{} -> {}{}",
                stream(method.client_streaming()),
                local(method.input_type()),
                stream(method.server_streaming()),
                local(method.output_type())
            );
            facts.insert(format!("{}.{}", service.name(), method.name()), fact);
        }
    }
    file.enum_type.iter().for_each(|values| enumerated(&mut facts, "", values));
    file.message_type.iter().for_each(|message| fields(&mut facts, "", message));
    facts
}

fn enumerated(facts: &mut BTreeMap<String, String>, within: &str, values: &EnumDescriptorProto) {
    for value in &values.value {
        facts.insert(format!("{within}{}.{}", values.name(), value.name()), value.number().to_string());
    }
}

fn fields(facts: &mut BTreeMap<String, String>, within: &str, message: &DescriptorProto) {
    let name = format!("{within}{}", message.name());
    facts.insert(name.clone(), "message".to_owned());
    for field in &message.field {
        let kind = match field.type_name() {
            "" => format!("{:?}", field.r#type()).to_lowercase(),
            kind => local(kind).to_owned(),
        };
        let entry = message.nested_type.iter().find(|nested| {
            nested.options.as_ref().is_some_and(|options| options.map_entry())
                && field.type_name().ends_with(&format!(".{}.{}", message.name(), nested.name()))
        });
        let oneof = field.oneof_index.filter(|_| !field.proto3_optional()).and_then(|index| {
            message.oneof_decl.get(usize::try_from(index).ok()?).map(|oneof| format!(" of {}", oneof.name()))
        });
        let fact = match entry {
            Some(entry) => format!("{} map<{}>", field.number(), types(entry)),
            None => format!("{} {} {kind}", field.number(), format!("{:?}", field.label()).to_lowercase()),
        };
        facts.insert(format!("{name}.{}", field.name()), fact + &oneof.unwrap_or_default());
    }
    let within = format!("{name}.");
    message.enum_type.iter().for_each(|values| enumerated(facts, &within, values));
    let nested =
        message.nested_type.iter().filter(|nested| !nested.options.as_ref().is_some_and(|o| o.map_entry()));
    nested.for_each(|nested| fields(facts, &within, nested));
}

fn types(entry: &DescriptorProto) -> String {
    let of = |field: &prost_types::FieldDescriptorProto| match field.type_name() {
        "" => format!("{:?}", field.r#type()).to_lowercase(),
        kind => local(kind).to_owned(),
    };
    entry.field.iter().map(of).collect::<Vec<_>>().join(", ")
}

fn local(name: &str) -> &str {
    name.trim_start_matches('.').trim_start_matches(PACKAGE).trim_start_matches('.')
}
