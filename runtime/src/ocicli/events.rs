//! `events`: statistics once, or as lines for as long as the container runs, with what ran out of memory.

use std::{thread, time::Duration};

use serde_json::{Value, json};

use super::{
    Globals,
    line::{Line, wrong},
    state::{Container, Status},
    stats,
};
use crate::{Error, Kind, Result, error::Cause};

pub fn events(globals: &Globals, line: &Line) -> Result<u8> {
    let container = globals.home.find(line.id()?)?;
    let id = container.state.id.clone();
    if container.status()? == Status::Stopped {
        return Err(Error::new(Kind::Precondition, "read statistics of container", id)
            .because(Cause("container not running".into())));
    }
    if line.has("stats") {
        say("stats", &id, Some(stats::read(&container.state.group())?));
        return Ok(0);
    }
    follow(&container, interval(line.last("interval").unwrap_or("5s"))?)
}

fn follow(container: &Container, every: Duration) -> Result<u8> {
    let (id, group) = (&container.state.id, container.state.group());
    let kills = || group.detail().ok().and_then(|detail| detail.oom_kills).unwrap_or(0);
    let mut seen = kills();
    while container.status()? != Status::Stopped {
        say("stats", id, Some(stats::read(&group)?));
        thread::sleep(every);
        let now = kills();
        if now > seen {
            say("oom", id, None);
        }
        seen = seen.max(now);
    }
    Ok(0)
}

fn say(kind: &str, id: &str, data: Option<Value>) {
    let mut event = json!({"type": kind, "id": id});
    if let Some(data) = data {
        event["data"] = data;
    }
    say!("{event}");
}

/// Go's durations, as far as one number and one unit go.
fn interval(text: &str) -> Result<Duration> {
    let bad = || wrong("--interval", format!("{text:?} is no duration such as 5s or 500ms, or it is 0"));
    let at = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(bad)?;
    let number: f64 = text[..at].parse().map_err(|_| bad())?;
    let unit = match &text[at..] {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(bad()),
    };
    Duration::try_from_secs_f64(number * unit).ok().filter(|every| !every.is_zero()).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_gos() {
        assert_eq!(interval("5s").unwrap(), Duration::from_secs(5));
        assert_eq!(interval("1.5m").unwrap(), Duration::from_secs(90));
        for bad in ["", "5", "0s", "-1s", "s", "5d", "infs"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
