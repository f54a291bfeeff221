//! `update`: other limits for a container that is there.

use std::io::Read;

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use super::{
    Globals, extras, groups, limits,
    line::{Flag, Line, value, wrong},
    shim,
    state::{Status, read},
};
use crate::{Error, Kind, Result, error::Cause};

pub const FLAGS: &[Flag] = &[
    value("resources", "r", "a file with linux.resources as JSON, or - for standard input"),
    value("cpu-period", "", "microseconds"),
    value("cpu-quota", "", "microseconds per period, -1 for no limit"),
    value("cpu-burst", "", "microseconds"),
    value("cpu-share", "", "weight against others, 1024 is usual"),
    value("cpu-idle", "", "1 for SCHED_IDLE"),
    value("cpuset-cpus", "", "list of CPUs"),
    value("cpuset-mems", "", "list of memory nodes"),
    value("memory", "", "limit in bytes"),
    value("memory-reservation", "", "soft limit in bytes"),
    value("memory-swap", "", "memory plus swap in bytes, -1 for no limit"),
    value("pids-limit", "", "most processes, -1 for no limit"),
];

pub fn update(globals: &Globals, line: &Line) -> Result<u8> {
    let container = globals.home.find(line.id()?)?;
    if container.status()? == Status::Stopped {
        return Err(Error::new(Kind::Precondition, "update container", container.state.id.clone())
            .because(Cause("container not running".into())));
    }
    let resources = match line.last("resources") {
        Some("-") => {
            let mut text = Vec::new();
            let input = std::io::stdin().take(1 << 20).read_to_end(&mut text);
            input.map_err(|error| Error::io("read", "standard input", error))?;
            parse(&text)?
        }
        Some(path) => parse(&read(path.as_ref())?)?,
        None => of_flags(line)?,
    };
    let group = container.state.group();
    limits::tell_obsolete(globals, &resources);
    limits::leave_room(&group, &resources)?;
    group.update(&limits::limits(&resources))?;
    extras::write(&group, &resources)?;
    // Who says nothing of devices leaves them as they are.
    if resources.devices().as_ref().is_some_and(|rules| !rules.is_empty()) {
        let program = groups::devices(globals, &group, &resources)?;
        if let Some(dir) = group.v2.as_ref().filter(|_| !program.is_empty()) {
            shim::set_devices(dir, &program)?;
        }
    }
    Ok(0)
}

fn parse(text: &[u8]) -> Result<LinuxResources> {
    serde_json::from_slice(text).map_err(|error| Error::invalid("read", "resources", error.to_string()))
}

fn of_flags(line: &Line) -> Result<LinuxResources> {
    let numbers = [
        ("cpu-period", "cpu", "period"),
        ("cpu-quota", "cpu", "quota"),
        ("cpu-burst", "cpu", "burst"),
        ("cpu-share", "cpu", "shares"),
        ("cpu-idle", "cpu", "idle"),
        ("memory", "memory", "limit"),
        ("memory-reservation", "memory", "reservation"),
        ("memory-swap", "memory", "swap"),
        ("pids-limit", "pids", "limit"),
    ];
    let mut parts: Map<String, Value> = Map::new();
    let mut put = |part: &str, key: &str, value: Value| {
        let object = parts.entry(part).or_insert_with(|| json!({}));
        object[key] = value;
    };
    for (flag, part, key) in numbers {
        if let Some(number) = line.number::<i64>(flag)? {
            put(part, key, json!(number));
        }
    }
    for (flag, key) in [("cpuset-cpus", "cpus"), ("cpuset-mems", "mems")] {
        if let Some(text) = line.last(flag) {
            put("cpu", key, json!(text));
        }
    }
    serde_json::from_value(Value::Object(parts)).map_err(|error| wrong("limits", error.to_string()))
}
