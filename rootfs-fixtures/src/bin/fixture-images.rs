//! Writes the ready-made images as OCI layout archives into a directory: `fixture-images DIRECTORY`. For people, and
//! for tools that load archives; tests use the library.

use std::{io, path::Path, process::ExitCode};

use berth_fixtures::{Compression, Image, Layout, busybox_image, fixture_image, layered_image, program_path};

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1) else {
        eprintln!("usage: fixture-images DIRECTORY");
        return ExitCode::from(2);
    };
    match write_all(Path::new(&directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fixture-images: {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

fn write_all(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let program = program_path()?;
    let images: [(&str, Image); 3] = [
        ("fixture", fixture_image(&program)?),
        ("layered", layered_image(&program)?),
        ("busybox", busybox_image()?),
    ];
    for (name, image) in images {
        let path = directory.join(format!("{name}.tar"));
        Layout::of(&format!("docker.io/library/{name}:latest"), &image)?
            .write_tar(&path, Compression::None)?;
        println!("{}", path.display());
    }
    Ok(())
}
