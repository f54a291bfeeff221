//! PSI: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same with `full`. The parsing is pure.

use super::{Group, Pressure, Stall};

/// `None` for whatever reason: kernels without PSI have no file, and those where it is off refuse the read.
pub fn read(group: &Group, name: &str) -> Option<Pressure> {
    let text = std::fs::read_to_string(group.v2.as_ref()?.join(name)).ok()?;
    parse(&text)
}

fn parse(text: &str) -> Option<Pressure> {
    let line = |start: &str| text.lines().find_map(|line| line.strip_prefix(start)).map(stall);
    // Kernels before 5.13 have no `full` for the processor.
    Some(Pressure { some: line("some ")?, full: line("full ").unwrap_or_default() })
}

fn stall(line: &str) -> Stall {
    let value =
        |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    let percent = |key| value(key).and_then(|text| text.parse().ok()).unwrap_or_default();
    Stall {
        avg10: percent("avg10"),
        avg60: percent("avg60"),
        avg300: percent("avg300"),
        total_us: value("total").and_then(|text| text.parse().ok()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lines_are_read_and_an_old_kernels_one_too() {
        let some = Stall { avg10: 1.5, avg60: 0.25, avg300: 0.0, total_us: 77 };
        let full = Stall { avg10: 0.5, ..Stall::default() };
        let first = "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\n";
        let rows = [
            (first.to_owned(), Some(Pressure { some, full: Stall::default() })),
            (format!("{first}full avg10=0.50 avg60=0 avg300=x total=\n"), Some(Pressure { some, full })),
            (String::new(), None),
            ("garbage\n".to_owned(), None),
        ];
        for (text, expected) in rows {
            assert_eq!(parse(&text), expected, "{text}");
        }
        let group = Group { v2: Some("/nonexistent/berth".into()), v1: Vec::new() };
        assert_eq!(read(&group, "cpu.pressure"), None);
    }
}
