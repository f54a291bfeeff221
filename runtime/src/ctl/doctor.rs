//! doctor: what the daemon finds orphaned or damaged, and what this host lacks, which takes no daemon.

use berth_cri::berth::{
    DoctorRequest, DoctorResponse, Finding, HostCheck, finding::Outcome, host_check::Level,
};
use clap::Args;

use super::{
    command::Shape,
    connect::Daemon,
    failure::{Failure, Result},
    output::{self, Format},
};
use crate::host;

/// What is wrong and stays so.
const WRONG: u8 = 1;

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Remove what is orphaned, by the same code as a start of the daemon does
    #[arg(long)]
    fix: bool,
    #[command(flatten)]
    shape: Shape,
}

/// Asks the daemon where there is one, and looks at the host in any case.
pub(super) async fn doctor(daemon: Result<Daemon>, flags: &Flags, format: Format) -> Result<u8> {
    let asked = async {
        Ok::<_, Failure>(daemon?.daemon().doctor(DoctorRequest { fix: flags.fix }).await?.into_inner())
    };
    let mut report = match asked.await {
        Ok(report) => report,
        Err(Failure { text, .. }) => DoctorResponse { unreachable: text, ..Default::default() },
    };
    report.host = host::checks(&places(&report)).into_iter().map(message).collect();
    output::show(flags.shape.or(format), "berth.v1.DoctorResponse", &report, || told(&report))?;
    Ok(if is_sound(&report) { 0 } else { WRONG })
}

/// Where the daemon has its things, else where it has them unless told otherwise.
fn places(report: &DoctorResponse) -> host::Places {
    if !report.unreachable.is_empty() {
        return host::Places::default();
    }
    host::Places {
        root: report.root.clone().into(),
        state: report.state.clone().into(),
        conf_dir: report.cni_conf_dir.clone().into(),
        bin_dirs: report.cni_bin_dirs.iter().map(Into::into).collect(),
    }
}

fn message(found: host::Check) -> HostCheck {
    let level = match found.level {
        host::Level::Good => Level::Good,
        host::Level::Note => Level::Note,
        host::Level::Wrong => Level::Wrong,
    };
    HostCheck { name: found.name.into(), level: level.into(), found: found.found, remedy: found.remedy }
}

fn is_sound(report: &DoctorResponse) -> bool {
    report.unreachable.is_empty()
        && report.findings.iter().all(|finding| finding.outcome() == Outcome::Fixed)
        && report.host.iter().all(|check| check.level() != Level::Wrong)
}

fn told(report: &DoctorResponse) -> String {
    let mut text = String::from("HOST\n");
    report.host.iter().for_each(|check| text += &line(check));
    text += "\nPODS AND CONTAINERS\n";
    if !report.unreachable.is_empty() {
        text += &format!("  not looked at: {}\n", report.unreachable);
        return text;
    }
    if report.findings.is_empty() {
        text += "  all is as the records say\n";
    }
    report.findings.iter().for_each(|finding| text += &paragraph(finding));
    if report.findings.iter().any(|finding| finding.outcome() == Outcome::Mendable) {
        text += "`berth doctor --fix` does what is marked with a star\n";
    }
    text
}

fn line(check: &HostCheck) -> String {
    let (mark, remedy) = match check.level() {
        Level::Good => ("ok", String::new()),
        Level::Note => ("note", format!("; {}", check.remedy)),
        Level::Wrong => ("WRONG", format!("; {}", check.remedy)),
    };
    format!("  {mark:<6}{:<12}{}{remedy}\n", check.name, check.found)
}

fn paragraph(finding: &Finding) -> String {
    let Finding { kind, object, why, remedy, message, .. } = finding;
    let end = match finding.outcome() {
        Outcome::Mendable => format!("* {remedy}"),
        Outcome::Fixed => format!("fixed: {remedy}"),
        Outcome::NotFixed => format!("not fixed: {message}"),
        Outcome::Told => remedy.clone(),
    };
    format!("  {kind} {object}\n    {why}\n    {end}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(outcome: Outcome) -> Finding {
        Finding {
            kind: "link".into(),
            object: "bth01".into(),
            why: "no lease".into(),
            remedy: "delete it".into(),
            outcome: outcome.into(),
            message: "EBUSY".into(),
        }
    }

    #[test]
    fn a_finding_says_what_became_of_it_and_only_what_is_fixed_is_sound() {
        let rows = [
            (Outcome::Mendable, "* delete it", false),
            (Outcome::Fixed, "fixed: delete it", true),
            (Outcome::NotFixed, "not fixed: EBUSY", false),
            (Outcome::Told, "    delete it", false),
        ];
        for (outcome, end, sound) in rows {
            let report = DoctorResponse { findings: vec![finding(outcome)], ..Default::default() };
            assert!(told(&report).contains(end), "{}", told(&report));
            assert_eq!(is_sound(&report), sound, "{outcome:?}");
        }
    }

    #[test]
    fn notes_are_no_findings_and_a_daemon_that_is_away_is_one() {
        let check = |level: Level| HostCheck {
            name: "kernel".into(),
            level: level.into(),
            found: "old".into(),
            remedy: "boot another".into(),
        };
        let report = |level| DoctorResponse { host: vec![check(level)], ..Default::default() };
        assert!(is_sound(&report(Level::Note)) && !is_sound(&report(Level::Wrong)));
        assert!(told(&report(Level::Wrong)).contains("  WRONG kernel      old; boot another\n"));
        let away = DoctorResponse { unreachable: "nobody listens".into(), ..Default::default() };
        assert!(!is_sound(&away) && told(&away).contains("not looked at: nobody listens"));
    }
}
