//! An ordinary user's containers: `berth oci` without root's rights.

use berth_tests::{
    oci::{Oci, text},
    required,
};
use serde_json::{Value, json};

use crate::person::{Account, NOBODYS, Person};

#[test]
fn an_ordinary_user_runs_a_container_as_its_root_with_one_id() {
    if !required("an_ordinary_user_runs_a_container_as_its_root_with_one_id", &["setpriv"]) {
        return;
    }
    let oci = Oci::new();
    let person = Person::new(&oci, (NOBODYS, NOBODYS));
    oci.write(&person.config(&["info"]));
    let info: Value = serde_json::from_str(&person.ok(&["run", "c1"])).unwrap();
    assert_eq!((&info["uid"], &info["gid"], &info["pid"]), (&json!(0), &json!(0), &json!(1)), "{info}");
    let map: Vec<&str> = info["uid_map"].as_str().unwrap().split_whitespace().collect();
    assert_eq!(map, ["0", "64123", "1"]);
    assert_eq!(info["hostname"], "berth");
    oci.write(&person.config(&["exit", "9"]));
    assert_eq!(person.run(&["run", "c1"]).code, 9);
    assert_eq!(person.ok(&["list", "--quiet"]), "");
}

#[test]
fn an_ordinary_user_has_all_verbs_but_those_of_cgroups() {
    if !required("an_ordinary_user_has_all_verbs_but_those_of_cgroups", &["setpriv"]) {
        return;
    }
    let oci = Oci::new();
    let person = Person::new(&oci, (NOBODYS, NOBODYS));
    oci.write(&person.config(&["sleep", "1000"]));
    let pid_file = person.root().join("pid");
    person.ok(&["run", "--detach", "--pid-file", text(&pid_file), "c1"]);
    oci.adopt("c1", &pid_file);
    assert!(person.ok(&["state", "c1"]).contains("running"));
    assert!(person.ok(&["exec", "c1", "id"]).starts_with("uid=0 gid=0"));
    assert_eq!(person.run(&["exec", "c1", "exit", "3"]).code, 3);
    assert!(person.run(&["pause", "c1"]).stderr.contains("no freezer"));
    person.ok(&["kill", "c1", "KILL"]);
    assert_eq!(oci.reap("c1"), 128 + 9);
    person.ok(&["delete", "c1"]);
}

#[test]
fn what_an_ordinary_user_may_not_is_refused_with_its_reason() {
    if !required("what_an_ordinary_user_may_not_is_refused_with_its_reason", &["setpriv"]) {
        return;
    }
    let oci = Oci::new();
    let person = Person::new(&oci, (NOBODYS, NOBODYS));
    let refused = |config: &Value, why: &str| {
        oci.write(config);
        let finished = person.run(&["run", "c1"]);
        assert!(finished.code != 0 && finished.stderr.contains(why), "{why}: {finished:?}");
    };
    let begun = person.config(&["true"]);
    let mut config = begun.clone();
    config["linux"]["resources"] = json!({"pids": {"limit": 5}});
    refused(&config, "Permission denied");
    let mut config = begun.clone();
    config["process"]["user"]["additionalGids"] = json!([5]);
    refused(&config, "no other groups");
    let mut config = begun.clone();
    config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "user");
    config["linux"].as_object_mut().unwrap().retain(|key, _| !key.ends_with("Mappings"));
    refused(&config, "needs a user namespace");
    // What is nobody's session has no systemd.
    let mut config = begun.clone();
    config["linux"]["cgroupsPath"] = json!("user.slice:berth:c1");
    oci.write(&config);
    let finished = person.run(&["--systemd-cgroup", "run", "c1"]);
    assert!(finished.code != 0 && finished.stderr.contains("--systemd-cgroup"), "{finished:?}");
    // Ids that nobody gave to this user.
    let mut config = begun;
    config["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": NOBODYS, "size": 2}]);
    refused(&config, "newuidmap");
}

#[test]
fn a_user_with_ranges_of_ids_maps_them_by_newuidmap() {
    let test = "a_user_with_ranges_of_ids_maps_them_by_newuidmap";
    if !required(test, &["setpriv", "newuidmap", "newgidmap"]) {
        return;
    }
    let oci = Oci::new();
    let account = Account::new();
    let (uid, gid) = account.ids();
    let [first, first_group] = account.ranges();
    let person = Person::new(&oci, (uid, gid));
    let mut config = person.config(&["info"]);
    let maps = |own: u32, first: u32| json!([{"containerID": 0, "hostID": own, "size": 1}, {"containerID": 1, "hostID": first, "size": 1000}]);
    config["linux"]["uidMappings"] = maps(uid, first);
    config["linux"]["gidMappings"] = maps(gid, first_group);
    config["process"]["user"] = json!({"uid": 5, "gid": 6, "additionalGids": [7]});
    oci.write(&config);
    let info: Value = serde_json::from_str(&person.ok(&["run", "c1"])).unwrap();
    assert_eq!((&info["uid"], &info["gid"], &info["groups"]), (&json!(5), &json!(6), &json!([6, 7])));
    assert!(info["uid_map"].as_str().unwrap().contains(&first.to_string()), "{}", info["uid_map"]);
}
