//! What `berth` prints: tables as docker's, protobuf JSON, or the same as YAML. A reader that has enough is no error.

use std::{
    io::{self, ErrorKind, Write},
    sync::LazyLock,
};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

use super::failure::{Failure, Result};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Columns for people
    #[default]
    Table,
    /// Protobuf JSON for programs
    Json,
    /// The same as YAML
    Yaml,
}

static DESCRIPTORS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(berth_cri::DESCRIPTORS).expect("the build made the descriptors with the messages")
});

/// Prints to standard output, all of it or not at all as far as the reader is concerned.
pub(super) fn print(bytes: impl AsRef<[u8]>) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes.as_ref()).and_then(|()| stdout.flush());
    written.map_err(|error| unprinted(&error))
}

/// Likewise to standard error: what the container wrote there.
pub(super) fn print_error(bytes: impl AsRef<[u8]>) -> Result<()> {
    io::stderr().write_all(bytes.as_ref()).map_err(|error| unprinted(&error))
}

fn unprinted(error: &io::Error) -> Failure {
    match error.kind() {
        ErrorKind::BrokenPipe => Failure::nobody_reads(),
        _ => Failure::io("write output", error),
    }
}

pub(super) fn print_line(text: impl AsRef<str>) -> Result<()> {
    print(format!("{}\n", text.as_ref()))
}

/// Columns without borders, three blanks apart.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for row in rows {
        // A cell is one line, whatever a name or a command holds.
        table.add_row(row.map(|cell| cell.replace(|c: char| c.is_control(), " ")));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.trim_fmt() + "\n"
}

/// How a document without columns is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notation {
    Json,
    Yaml,
}

impl Format {
    /// The notation asked for; none where columns are.
    pub(super) fn notation(self) -> Option<Notation> {
        match self {
            Self::Table => None,
            Self::Json => Some(Notation::Json),
            Self::Yaml => Some(Notation::Yaml),
        }
    }
}

/// A message by protobuf's rules for JSON, every field of it; `name` is its full one.
pub(super) fn document(notation: Notation, name: &str, message: &impl Message) -> Result<String> {
    let failed = |cause: String| Failure::new(format!("print {name}: {cause}"));
    let descriptor = DESCRIPTORS.get_message_by_name(name).ok_or_else(|| failed("no such message".into()))?;
    let message = DynamicMessage::decode(descriptor, &message.encode_to_vec()[..])
        .map_err(|error| failed(error.to_string()))?;
    let all = SerializeOptions::new().skip_default_fields(false);
    match notation {
        // Straight to text, in the message's own order.
        Notation::Json => {
            let mut text = Vec::new();
            message
                .serialize_with_options(&mut serde_json::Serializer::pretty(&mut text), &all)
                .map_err(|error| failed(error.to_string()))?;
            text.push(b'\n');
            String::from_utf8(text).map_err(|error| failed(error.to_string()))
        }
        Notation::Yaml => {
            let value = message
                .serialize_with_options(serde_json::value::Serializer, &all)
                .map_err(|error| failed(error.to_string()))?;
            write(notation, &value)
        }
    }
}

/// A value as a document of its own, which ends with a line's end.
pub(super) fn write(notation: Notation, value: &serde_json::Value) -> Result<String> {
    let failed = |cause: String| Failure::new(format!("print as {notation:?}: {cause}"));
    match notation {
        Notation::Json => Ok(format!("{value:#}\n")),
        Notation::Yaml => {
            let text = serde_saphyr::to_string(value).map_err(|error| failed(error.to_string()))?;
            Ok(format!("---\n{}\n", text.trim_end_matches('\n')))
        }
    }
}

/// Prints a message in the format asked for; the table is made only if it is.
pub(super) fn show(
    format: Format,
    name: &str,
    message: &impl Message,
    table: impl FnOnce() -> String,
) -> Result<()> {
    print(match format.notation() {
        None => table(),
        Some(notation) => document(notation, name, message)?,
    })
}

#[cfg(test)]
mod tests {
    use berth_cri::{berth as api, v1 as cri};

    use super::*;

    #[test]
    fn a_table_has_no_borders_and_no_blanks_at_its_lines_ends() {
        let rows = [["abc".into(), "x\ny".into()], ["a".into(), String::new()]];
        assert_eq!(table(["ID", "NAME"], rows), "ID    NAME\nabc   x y\na\n");
    }

    #[test]
    fn json_has_every_field_by_its_protobuf_name() {
        let message = api::ListResponse {
            containers: vec![api::Container { id: "c1".into(), created_at: 5, ..Default::default() }],
        };
        let value: serde_json::Value =
            serde_json::from_str(&document(Notation::Json, "berth.v1.ListResponse", &message).unwrap())
                .unwrap();
        let container = &value["containers"][0];
        assert_eq!((&container["id"], &container["createdAt"]), (&"c1".into(), &"5".into()));
        assert_eq!(container["state"], "UNKNOWN");
        assert_eq!(container["name"], "");
    }

    #[test]
    fn yaml_says_what_json_says() {
        let value =
            serde_json::json!({"a": ["1", 1, "yes", "a: b", "x\ny"], "b": {"c": null, "d": ""}, "e": []});
        let yaml = write(Notation::Yaml, &value).unwrap();
        assert!(yaml.starts_with("---\n") && yaml.ends_with('\n'), "{yaml}");
        // Words that YAML takes for something else stay words.
        let read: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(read, value, "{yaml}");
    }

    #[test]
    fn every_message_that_verbs_print_has_its_descriptor() {
        let none = cri::ListPodSandboxResponse::default();
        assert!(document(Notation::Json, "runtime.v1.ListPodSandboxResponse", &none).is_ok());
        for name in ["runtime.v1.ListImagesResponse", "berth.v1.StatsResponse", "berth.v1.InfoResponse"] {
            assert!(DESCRIPTORS.get_message_by_name(name).is_some(), "{name}");
        }
    }
}
