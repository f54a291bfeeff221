//! Seccomp: what becomes of a call is what the filter's action says, by the call's arguments.

use std::{fs, path::Path, process::Command};

use berth_tests::{Finished, oci::Oci, required, skip};
use serde_json::{Value, json};

/// SIGSYS, by which the kernel ends who calls what is denied.
const KILLED: i32 = 128 + 31;

/// Makes a FIFO's or a device's node under these rules; what mknod's applet comes to.
fn mknod(oci: &Oci, number: &str, filter: Value) -> Finished {
    let mut config = oci.config("c1", &["mknod", "/dev/node", "c", number]);
    for set in ["bounding", "effective", "permitted"] {
        config["process"]["capabilities"][set] = json!(["CAP_MKNOD"]);
    }
    config["linux"]["seccomp"] = filter;
    oci.write(&config);
    oci.run(&["run", "c1"])
}

fn of(rules: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})
}

#[test]
fn each_action_does_to_a_call_what_it_says() {
    let oci = Oci::new();
    let by = |action: &str| {
        let mut rule = json!({"names": ["mknod", "mknodat"], "action": action});
        if action == "SCMP_ACT_ERRNO" {
            rule["errnoRet"] = json!(95);
        }
        mknod(&oci, "1:3", of(json!([rule])))
    };
    for (action, code) in [
        ("SCMP_ACT_ALLOW", 0),
        ("SCMP_ACT_LOG", 0),
        ("SCMP_ACT_KILL", KILLED),
        ("SCMP_ACT_KILL_THREAD", KILLED),
        ("SCMP_ACT_KILL_PROCESS", KILLED),
        ("SCMP_ACT_TRAP", KILLED),
    ] {
        let ran = by(action);
        assert_eq!(ran.code, code, "{action}: {ran:?}");
    }
    let ran = by("SCMP_ACT_ERRNO");
    assert!(ran.code == 1 && ran.stderr.contains("Operation not supported"), "{ran:?}");
    // With nobody who traces there is no such call.
    let ran = by("SCMP_ACT_TRACE");
    assert!(ran.code == 1 && ran.stderr.contains("not implemented"), "{ran:?}");
}

#[test]
fn an_operator_looks_at_one_argument_and_all_of_a_rule_have_to_hold() {
    let oci = Oci::new();
    // mknodat(2)'s fourth is the device: 1:3 is 0x103, 1:5 is 0x105.
    let with = |conditions: Value| {
        let rule =
            json!({"names": ["mknodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95, "args": conditions});
        let denied = |number: &str| mknod(&oci, number, of(json!([rule]))).code != 0;
        (denied("1:3"), denied("1:5"))
    };
    let one = |op: &str, value: u64| with(json!([{"index": 3, "op": op, "value": value}]));
    assert_eq!(one("SCMP_CMP_EQ", 0x103), (true, false));
    assert_eq!(one("SCMP_CMP_NE", 0x103), (false, true));
    assert_eq!(one("SCMP_CMP_LT", 0x105), (true, false));
    assert_eq!(one("SCMP_CMP_LE", 0x103), (true, false));
    assert_eq!(one("SCMP_CMP_GT", 0x103), (false, true));
    assert_eq!(one("SCMP_CMP_GE", 0x105), (false, true));
    let masked = json!([{"index": 3, "op": "SCMP_CMP_MASKED_EQ", "value": 0x0f, "valueTwo": 0x05}]);
    assert_eq!(with(masked), (false, true));
    let both = |kind: u64| {
        with(json!([
            {"index": 3, "op": "SCMP_CMP_EQ", "value": 0x103},
            {"index": 2, "op": "SCMP_CMP_MASKED_EQ", "value": 0o170_000, "valueTwo": kind},
        ]))
    };
    assert_eq!((both(0o020_000), both(0o060_000)), ((true, false), (false, false)));
}

#[test]
fn a_profile_of_apparmor_holds_for_a_process_and_for_an_exec() {
    const TEST: &str = "a_profile_of_apparmor_holds_for_a_process_and_for_an_exec";
    let oci = Oci::new();
    let mut config = oci.config("c1", &["sleep", "1000"]);
    let name = oci.cgroup("profile").trim_matches('/').replace('/', "-");
    config["process"]["apparmorProfile"] = json!(name);
    let has =
        fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'));
    oci.write(&config);
    // One that nobody has loaded is refused at the start, and all are where the kernel has none.
    let told = oci.refused(&["run", "c1"]);
    assert!(told.contains(&name) || told.to_lowercase().contains("apparmor"), "{told}");
    if !has {
        return skip(TEST, "AppArmor is disabled");
    }
    if !required(TEST, &["apparmor_parser"]) {
        return;
    }
    let path = oci.dir().join("profile");
    let text = format!(
        "profile {name} flags=(attach_disconnected,mediate_deleted) {{\n  file,\n  signal,\n  deny /denied w,\n}}\n"
    );
    fs::write(&path, text).unwrap();
    let _loaded = Loaded::new(&path);
    oci.start("c1", &config);
    let current = |pid: i32| fs::read_to_string(format!("/proc/{pid}/attr/current")).unwrap();
    assert_eq!(current(oci.pid("c1")).trim(), format!("{name} (enforce)"));
    let denied = oci.run(&["exec", "c1", "write", "/denied", "x"]);
    assert!(denied.code != 0 && denied.stderr.contains("Permission denied"), "{denied:?}");
    oci.ok(&["exec", "--apparmor", "unconfined", "c1", "write", "/denied", "x"]);
}

/// A profile in the kernel, for as long as a test takes.
struct Loaded<'a>(&'a Path);

impl<'a> Loaded<'a> {
    fn new(path: &'a Path) -> Self {
        let said =
            Command::new("apparmor_parser").args(["--replace", "--skip-cache"]).arg(path).output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        Self(path)
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        // It goes with the machine otherwise.
        Command::new("apparmor_parser").arg("--remove").arg(self.0).output().ok();
    }
}
