//! `list`.

use super::{
    Globals,
    line::{Line, wrong},
    state,
};
use crate::Result;

pub fn list(globals: &Globals, line: &Line) -> Result<u8> {
    let all = globals.home.all()?;
    if line.has("quiet") {
        all.iter().for_each(|container| say!("{}", container.state.id));
        return Ok(0);
    }
    match line.last("format") {
        None | Some("table" | "") => {
            say!("{:<24} {:>8} {:<9} {:<40} {:<32} OWNER", "ID", "PID", "STATUS", "BUNDLE", "CREATED");
            for container in &all {
                let (known, status) = (&container.state, container.status()?);
                let pid = if status == state::Status::Stopped { 0 } else { known.init.pid };
                say!(
                    "{:<24} {pid:>8} {:<9} {:<40} {:<32} {}",
                    known.id,
                    status.word(),
                    known.bundle.display(),
                    known.created,
                    state::owner_name(known.owner)
                );
            }
        }
        Some("json") => {
            let listed: Vec<_> = all.iter().map(state::listed).collect::<Result<_>>()?;
            say!("{}", serde_json::Value::Array(listed));
        }
        Some(other) => return Err(wrong("--format", format!("{other:?} is neither table nor json"))),
    }
    Ok(0)
}
