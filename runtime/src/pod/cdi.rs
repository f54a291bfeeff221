//! The files that describe CDI devices. They are read whenever a container asks for a device, so that what a vendor's
//! tool writes or removes counts at once; nothing is kept, nothing can be stale.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use berth_cri::v1 as cri;

use crate::{Error, Kind, Result, oci};

/// A description that is larger is none.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// What the container's CDI devices change in it. Blocks.
///
/// # Errors
/// `NotFound` for a device that no file describes, and for one that the host does not have.
pub fn edits(directories: &[PathBuf], config: &cri::ContainerConfig) -> Result<oci::Edits> {
    let names = oci::cdi_devices(config);
    if names.is_empty() {
        return Ok(oci::Edits::default());
    }
    let mut texts = Vec::new();
    for (rank, directory) in directories.iter().enumerate() {
        read(rank, directory, &mut texts)?;
    }
    let mut edits = oci::resolve_cdi(&texts, &names)?;
    edits.device_nodes.iter_mut().try_for_each(complete)?;
    Ok(edits)
}

fn read(rank: usize, directory: &Path, texts: &mut Vec<oci::CdiText>) -> Result<()> {
    let failed = |path: &Path, error| Error::io("read", path.display().to_string(), error);
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|error| failed(directory, error))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| failed(directory, error))?.path();
        let kind = path.extension().and_then(|extension| extension.to_str());
        if matches!(kind, Some("json" | "yaml" | "yml")) {
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        // A file that goes, or can't be read, describes nothing; the name that is looked for decides what that means.
        let small = fs::metadata(&path).is_ok_and(|file| file.is_file() && file.len() <= MAX_FILE_BYTES);
        let text = if small { fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
        texts.push(oci::CdiText { rank, path, text });
    }
    Ok(())
}

/// A description may leave out what the host's device says of itself.
fn complete(node: &mut oci::CdiNode) -> Result<()> {
    if node.host_path.is_empty() {
        node.host_path.clone_from(&node.path);
    }
    if node.major.is_some() && node.minor.is_some() && !node.r#type.is_empty() {
        return Ok(());
    }
    let found = fs::metadata(&node.host_path).map_err(|error| {
        Error::new(Kind::NotFound, "find CDI device's node", &node.host_path).because(error)
    })?;
    let kind = found.file_type();
    let letter = match (kind.is_block_device(), kind.is_char_device(), kind.is_fifo()) {
        (true, ..) => "b",
        (_, true, _) => "c",
        (.., true) => "p",
        _ => return Err(Error::invalid("find CDI device's node", &node.host_path, "it is no device")),
    };
    letter.clone_into(&mut node.r#type);
    node.major.get_or_insert(rustix::fs::major(found.rdev()));
    node.minor.get_or_insert(rustix::fs::minor(found.rdev()));
    node.file_mode.get_or_insert(found.mode() & 0o777);
    Ok(())
}
