//! Why an execve failed, in words: ENOENT may be a missing program, a missing interpreter or a DOS line ending.

use std::{
    ffi::OsStr,
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::Path,
};

/// Says what is wrong with a program that could not be executed; empty where the errno says it all.
pub fn diagnose(program: &Path, errno: i32) -> String {
    let metadata = match std::fs::metadata(program) {
        Ok(metadata) => metadata,
        Err(_) => return String::new(),
    };
    if metadata.is_dir() {
        return "it is a directory".into();
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return "it has no exec permission bit".into();
    }
    let mut head = [0u8; 256];
    let mut file = match File::open(program) {
        Ok(file) => file,
        Err(_) => return String::new(),
    };
    let length = file.read(&mut head).unwrap_or(0);
    let head = &head[..length];
    match errno {
        libc::EACCES if noexec(&file) => "it is on a file system mounted noexec".into(),
        _ if head.starts_with(b"#!") => shebang(head).unwrap_or_default(),
        _ if head.starts_with(b"\x7fELF") => elf(head, &mut file).unwrap_or_default(),
        libc::ENOEXEC if head.is_empty() => "it is an empty file".into(),
        libc::ENOEXEC => "it is neither an ELF program nor a script that begins with #!".into(),
        _ => String::new(),
    }
}

fn noexec(file: &File) -> bool {
    rustix::fs::fstatvfs(file).is_ok_and(|fs| fs.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC))
}

fn shebang(head: &[u8]) -> Option<String> {
    let line = head[2..].split(|&byte| byte == b'\n').next()?;
    let interpreter = line.trim_ascii_start().split(|byte| b" \t".contains(byte)).next()?;
    if interpreter.ends_with(b"\r") {
        return Some(
            "its first line ends with a DOS line ending (CRLF), which becomes part of the interpreter's name"
                .into(),
        );
    }
    let path = Path::new(OsStr::from_bytes(interpreter));
    (!path.exists()).then(|| format!("its interpreter {} is missing", path.display()))
}

fn elf(head: &[u8], file: &mut File) -> Option<String> {
    const MACHINE: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    let machine = u16::from_le_bytes(head.get(18..20)?.try_into().ok()?);
    // x86_64 runs i386 (3) too, aarch64 runs ARM (40) where the kernel was built so.
    if machine != MACHINE && machine != 3 && machine != 40 {
        return Some(format!(
            "it is built for {}, this machine is {}",
            architecture(machine),
            architecture(MACHINE)
        ));
    }
    let interpreter = interpreter(head, file)?;
    (!Path::new(&interpreter).exists()).then(|| {
        format!(
            "its ELF interpreter {interpreter} is missing: the image lacks the C library it was linked with"
        )
    })
}

/// The path in the PT_INTERP segment of a 64-bit little-endian ELF file, `elf(5)`.
fn interpreter(head: &[u8], file: &mut File) -> Option<String> {
    const PT_INTERP: u32 = 3;
    let word = |bytes: &[u8], at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    if head.get(4) != Some(&2) || head.get(5) != Some(&1) {
        return None;
    }
    let table = word(head, 32)?;
    let entry_bytes = u16::from_le_bytes(head.get(54..56)?.try_into().ok()?);
    let entries = u16::from_le_bytes(head.get(56..58)?.try_into().ok()?);
    if usize::from(entry_bytes) != 56 {
        return None;
    }
    for n in 0..u64::from(entries.min(64)) {
        let mut entry = [0u8; 56];
        file.seek(SeekFrom::Start(table.checked_add(n * 56)?)).ok()?;
        file.read_exact(&mut entry).ok()?;
        if u32::from_le_bytes(entry[..4].try_into().ok()?) == PT_INTERP {
            let mut name = vec![0u8; usize::try_from(word(&entry, 32)?.min(4096)).ok()?];
            file.seek(SeekFrom::Start(word(&entry, 8)?)).ok()?;
            file.read_exact(&mut name).ok()?;
            let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
            return Some(String::from_utf8_lossy(&name[..end]).into_owned());
        }
    }
    None
}

/// Names of `e_machine` that containers are met with.
fn architecture(machine: u16) -> String {
    match machine {
        3 => "i386".into(),
        21 => "ppc64".into(),
        22 => "s390x".into(),
        40 => "arm".into(),
        62 => "x86_64".into(),
        183 => "aarch64".into(),
        243 => "riscv64".into(),
        other => format!("machine {other}"),
    }
}
