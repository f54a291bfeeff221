//! logs: what a container wrote, to where it wrote it.

use std::time::SystemTime;

use berth_cri::berth::{LogEntry, LogsRequest};
use clap::Args;
use jiff::Timestamp;

use super::{
    connect::Daemon,
    failure::Result,
    output::{self, Format},
    parse,
};

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Go on until it has ended
    #[arg(short, long)]
    follow: bool,
    /// Only the last so many lines; "all" for all
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all", value_parser = last)]
    tail: Last,
    /// Put the time before each line
    #[arg(short, long)]
    timestamps: bool,
    /// Not what is older: 10m, 1h30m or 2026-01-02T03:04:05Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    container: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Last(Option<u64>);

fn last(text: &str) -> Result<Last, String> {
    match text {
        "all" | "-1" => Ok(Last(None)),
        count => count
            .parse()
            .map(|count| Last(Some(count)))
            .map_err(|_| format!("{count:?} is no number of lines")),
    }
}

pub(super) async fn logs(daemon: &Daemon, flags: Flags, format: Format) -> Result<u8> {
    let since = flags.since.as_deref().map_or(Ok(0), |text| parse::since(text, now()))?;
    let request = LogsRequest { container: flags.container, follow: flags.follow, tail: flags.tail.0, since };
    let mut entries = daemon.containers().logs(request).await?.into_inner();
    while let Some(entry) = entries.message().await? {
        match format.notation() {
            Some(notation) => output::print(output::document(notation, "berth.v1.LogEntry", &entry)?)?,
            None => {
                let text = if flags.timestamps { stamped(&entry) } else { entry.content.to_vec() };
                if entry.stderr { output::print_error(text)? } else { output::print(text)? }
            }
        }
    }
    Ok(0)
}

fn stamped(entry: &LogEntry) -> Vec<u8> {
    let at = Timestamp::from_nanosecond(entry.at.into()).unwrap_or(Timestamp::UNIX_EPOCH);
    [format!("{at:.9} ").as_bytes(), &entry.content].concat()
}

/// Unix nanoseconds.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_has_nine_digits_as_dockers() {
        let entry = LogEntry { at: 1_000_000_020, stderr: false, content: b"x\n".to_vec().into() };
        assert_eq!(stamped(&entry), b"1970-01-01T00:00:01.000000020Z x\n");
    }

    #[test]
    fn tail_is_a_number_or_all() {
        assert_eq!(last("all"), Ok(Last(None)));
        assert_eq!(last("0"), Ok(Last(Some(0))));
        assert!(last("-5").is_err() && last("x").is_err());
    }
}
