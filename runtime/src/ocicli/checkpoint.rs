//! `checkpoint` and `restore`: there are none.

use super::{Globals, line::Line};
use crate::{Error, Kind, Result, error::Cause};

pub fn refuse(_: &Globals, _: &Line) -> Result<u8> {
    Err(Error::new(Kind::Unimplemented, "checkpoint", "container")
        .because(Cause("Berth does not drive CRIU: a process can't be saved and brought back".into())))
}
