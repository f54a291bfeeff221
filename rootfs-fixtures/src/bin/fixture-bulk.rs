//! Writes a large image as an OCI layout: `fixture-bulk DIRECTORY NAME LAYERS FILES MIB SEED gzip|zstd|none`. For what
//! measures pulls.

use std::{path::Path, process::ExitCode};

use berth_fixtures::{
    Compression,
    bulk::{self, Shape},
};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some((directory, name, shape)) = asked(&words) else {
        eprintln!("usage: fixture-bulk DIRECTORY NAME LAYERS FILES MIB SEED gzip|zstd|none");
        return ExitCode::from(2);
    };
    match bulk::write(Path::new(directory), name, &shape) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fixture-bulk: {directory}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn asked(words: &[String]) -> Option<(&str, &str, Shape)> {
    let [directory, name, layers, files, mib, seed, compression] = words else { return None };
    let compression = match compression.as_str() {
        "gzip" => Compression::Gzip,
        "zstd" => Compression::Zstd,
        "none" => Compression::None,
        _ => return None,
    };
    let shape = Shape {
        layers: layers.parse().ok().filter(|layers| *layers > 0)?,
        files: files.parse().ok()?,
        bytes: mib.parse::<u64>().ok()? << 20,
        seed: seed.parse().ok()?,
        compression,
    };
    Some((directory, name, shape))
}
