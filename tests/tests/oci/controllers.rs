//! Limits of controllers that not every host has: of block devices, of huge pages, of RDMA.

use std::{
    fs,
    path::{Path, PathBuf},
};

use berth_tests::{
    oci::{Oci, text},
    skip,
};
use serde_json::{Value, json};

/// The container's directory in v1's hierarchy of a controller, or in v2's.
fn directory(oci: &Oci, controller: &str) -> PathBuf {
    let group = oci.cgroup("c1");
    let v1 = PathBuf::from(format!("/sys/fs/cgroup/{controller}{group}"));
    if v1.exists() { v1 } else { format!("/sys/fs/cgroup{group}").into() }
}

fn is_v1(directory: &Path, file: &str) -> bool {
    directory.join(file).exists()
}

fn holds(directory: &Path, file: &str, line: &str) {
    let text = fs::read_to_string(directory.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    assert!(text.lines().any(|one| one.trim() == line), "{file}: {line:?} is none of {text:?}");
}

#[test]
fn each_kind_of_limit_of_a_block_device_is_set_and_a_new_one_replaces_it() {
    const TEST: &str = "each_kind_of_limit_of_a_block_device_is_set_and_a_new_one_replaces_it";
    let Some((_, number)) = berth_tests::block_device() else {
        return skip(TEST, "no block device in /dev");
    };
    let (major, minor) = number.split_once(':').unwrap();
    let (major, minor): (u32, u32) = (major.parse().unwrap(), minor.parse().unwrap());
    let rate = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
    let limits = |scale: u64| {
        json!({"blockIO": {
            "throttleReadBpsDevice": rate(1_048_576 * scale), "throttleWriteBpsDevice": rate(2_097_152 * scale),
            "throttleReadIOPSDevice": rate(300 * scale), "throttleWriteIOPSDevice": rate(400 * scale),
        }})
    };
    let oci = Oci::new();
    let mut config = oci.config("c1", &["sleep", "1000"]);
    config["linux"]["resources"] = limits(1);
    oci.start("c1", &config);
    let there = directory(&oci, "blkio");
    let hold = |scale: u64| {
        let [rbps, wbps, riops, wiops] = [1_048_576, 2_097_152, 300, 400].map(|rate: u64| rate * scale);
        if is_v1(&there, "blkio.throttle.read_bps_device") {
            for (kind, rate) in
                [("read_bps", rbps), ("write_bps", wbps), ("read_iops", riops), ("write_iops", wiops)]
            {
                holds(&there, &format!("blkio.throttle.{kind}_device"), &format!("{number} {rate}"));
            }
        } else {
            holds(&there, "io.max", &format!("{number} rbps={rbps} wbps={wbps} riops={riops} wiops={wiops}"));
        }
    };
    hold(1);
    update(&oci, &limits(2));
    hold(2);
}

#[test]
fn a_weight_of_block_io_is_set_where_a_scheduler_has_weights_and_refused_elsewhere() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["sleep", "1000"]);
    // A limit of any kind, so that v2 has the controller on.
    config["linux"]["resources"] = json!({"pids": {"limit": 100}});
    oci.start("c1", &config);
    let there = directory(&oci, "blkio");
    let files = [
        ("blkio.weight", "300"),
        ("blkio.bfq.weight", "300"),
        ("io.bfq.weight", "300"),
        ("io.weight", "2930"),
    ];
    let found = files.into_iter().find(|(file, _)| there.join(file).exists());
    let asked = json!({"blockIO": {"weight": 300}});
    let Some((file, value)) = found else {
        fs::write(oci.dir().join("limits"), asked.to_string()).unwrap();
        let said = oci.refused(&["update", "--resources", text(&oci.dir().join("limits")), "c1"]);
        assert!(said.contains("blockIO.weight") && said.contains("no controller"), "{said}");
        return skip(
            "a_weight_of_block_io_is_set_where_a_scheduler_has_weights_and_refused_elsewhere",
            "no file of a block device controller takes weights",
        );
    };
    update(&oci, &asked);
    let text = fs::read_to_string(there.join(file)).unwrap();
    assert!(text.split_whitespace().any(|word| word == value), "{file}: {text:?}");
}

fn update(oci: &Oci, resources: &Value) {
    let path = oci.dir().join("limits");
    fs::write(&path, resources.to_string()).unwrap();
    oci.ok(&["update", "--resources", text(&path), "c1"]);
}

#[test]
fn huge_pages_are_limited_where_they_are_counted_and_refused_elsewhere() {
    const TEST: &str = "huge_pages_are_limited_where_they_are_counted_and_refused_elsewhere";
    let oci = Oci::new();
    let mut config = oci.config("c1", &["sleep", "1000"]);
    let asked = |bytes: u64| json!({"hugepageLimits": [{"pageSize": "2MB", "limit": bytes}]});
    oci.start("c1", &config);
    // Beside v1's controllers this one may be v2's.
    let group = oci.cgroup("c1");
    let places =
        ["hugetlb", "", "unified"].map(|root| PathBuf::from(format!("/sys/fs/cgroup/{root}{group}")));
    let found = places.iter().find_map(|dir| {
        let v1 = ["hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.rsvd.limit_in_bytes"];
        let files = [v1, ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"]];
        files
            .into_iter()
            .find(|files| dir.join(files[0]).exists())
            .map(|files| files.map(|file| dir.join(file)))
    });
    let Some(files) = found else {
        oci.ok(&["delete", "--force", "c1"]);
        oci.reap("c1");
        config["linux"]["resources"] = asked(4 << 20);
        oci.write(&config);
        let said = oci.refused(&["create", "c1"]);
        assert!(said.contains("2MB") && said.contains("hugetlb"), "{said}");
        return skip(TEST, "no hugetlb controller has pages of 2 MiB");
    };
    // What is used, and what is reserved.
    let hold = |bytes: u64| {
        for file in &files {
            assert_eq!(fs::read_to_string(file).unwrap().trim(), bytes.to_string(), "{}", file.display());
        }
    };
    update(&oci, &asked(4 << 20));
    hold(4 << 20);
    oci.ok(&["delete", "--force", "c1"]);
    oci.reap("c1");
    config["linux"]["resources"] = asked(8 << 20);
    oci.start("c1", &config);
    hold(8 << 20);
}

#[test]
fn handles_of_rdma_are_limited_where_there_is_a_device_and_refused_elsewhere() {
    const TEST: &str = "handles_of_rdma_are_limited_where_there_is_a_device_and_refused_elsewhere";
    let oci = Oci::new();
    let device = fs::read_dir("/sys/class/infiniband").ok().and_then(|mut devices| devices.next()?.ok());
    let name =
        device.map_or("nosuch0".to_owned(), |device| device.file_name().to_string_lossy().into_owned());
    let mut config = oci.config("c1", &["sleep", "1000"]);
    config["linux"]["resources"] = json!({"rdma": {name.clone(): {"hcaHandles": 3, "hcaObjects": 10}}});
    oci.write(&config);
    if name == "nosuch0" {
        let said = oci.refused(&["create", "c1"]);
        assert!(said.contains("rdma"), "{said}");
        assert!(oci.refused(&["state", "c1"]).contains("does not exist"));
        return skip(TEST, "no RDMA device");
    }
    oci.start("c1", &config);
    holds(&directory(&oci, "rdma"), "rdma.max", &format!("{name} hca_handle=3 hca_object=10"));
}

#[test]
fn labels_of_selinux_are_refused_where_the_kernel_has_none() {
    const TEST: &str = "labels_of_selinux_are_refused_where_the_kernel_has_none";
    if Path::new("/sys/fs/selinux/enforce").exists() {
        return skip(TEST, "SELinux is enabled");
    }
    let oci = Oci::new();
    let mut config = oci.config("c1", &["true"]);
    config["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0:c1,c2");
    oci.write(&config);
    let said = oci.refused(&["create", "c1"]);
    assert!(said.contains("SELinux") || said.contains("selinux"), "{said}");
    assert!(oci.refused(&["state", "c1"]).contains("does not exist"));
    let features: Value = serde_json::from_str(&oci.ok(&["features"])).unwrap();
    assert_eq!(features["linux"]["selinux"]["enabled"], false);
}
