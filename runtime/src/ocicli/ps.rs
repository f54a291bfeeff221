//! `ps`: the processes in a container's cgroup.

use std::process::Command;

use super::{
    Globals, groups,
    line::{Line, wrong},
};
use crate::{Error, Kind, Result, error::Cause};

pub fn ps(globals: &Globals, line: &Line) -> Result<u8> {
    let Some((id, flags)) = line.words.split_first() else {
        return Err(wrong("container", "its id is missing".into()));
    };
    let container = globals.home.find(id)?;
    let pids = groups::pids(&container.state.group())?;
    match line.last("format") {
        Some("json") => say!("{}", serde_json::json!(pids)),
        None | Some("table" | "") => {
            let flags: Vec<String> = if flags.is_empty() { vec!["-ef".into()] } else { flags.to_vec() };
            let output =
                Command::new("ps").args(&flags).output().map_err(|error| Error::io("run", "ps", error))?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Err(Error::new(Kind::Invalid, "run", format!("ps {}", flags.join(" ")))
                    .because(Cause(format!("it left with {}: {said}", output.status))));
            }
            let text = String::from_utf8_lossy(&output.stdout);
            let mut lines = text.lines();
            let head = lines.next().unwrap_or_default();
            let column = head.split_whitespace().position(|name| name == "PID").ok_or_else(|| {
                Error::new(Kind::Invalid, "run", format!("ps {}", flags.join(" "))).because(Cause(format!(
                    "no PID in its table: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                )))
            })?;
            say!("{head}");
            for row in lines {
                let pid = row.split_whitespace().nth(column).and_then(|word| word.parse::<i32>().ok());
                if pid.is_some_and(|pid| pids.contains(&pid)) {
                    say!("{row}");
                }
            }
        }
        Some(other) => return Err(wrong("--format", format!("{other:?} is neither table nor json"))),
    }
    Ok(0)
}
