//! `pause` and `resume`.

use super::{Globals, groups, line::Line, state::Status};
use crate::{Error, Kind, Result, error::Cause};

pub fn pause(globals: &Globals, line: &Line) -> Result<u8> {
    let container = globals.home.find(line.id()?)?;
    match container.status()? {
        Status::Running | Status::Created => groups::freeze(&container.state.group())?,
        other => return Err(refused("pause container", &container.state.id, "container not running", other)),
    }
    Ok(0)
}

pub fn resume(globals: &Globals, line: &Line) -> Result<u8> {
    let container = globals.home.find(line.id()?)?;
    let group = container.state.group();
    match container.status()? {
        Status::Paused => groups::thaw(&group)?,
        Status::Created if groups::is_frozen(&group)? => groups::thaw(&group)?,
        other => return Err(refused("resume container", &container.state.id, "container not paused", other)),
    }
    Ok(0)
}

fn refused(op: &'static str, id: &str, why: &str, status: Status) -> Error {
    Error::new(Kind::Precondition, op, id).because(Cause(format!("{why}: it is {}", status.word())))
}
