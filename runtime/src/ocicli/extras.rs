//! What `Limits` has no field for: control files that are written as a spec says it, wherever this host has them. A limit
//! that no controller here takes is refused with its name.

use oci_spec::runtime::{LinuxBlockIo, LinuxResources, LinuxThrottleDevice};

use super::groups;
use crate::{Error, Kind, Result, cgroup::Group, error::Cause};

/// One limit, and what each file that may take it is told: the first that is there gets it.
#[derive(Debug, PartialEq)]
struct Extra {
    what: &'static str,
    v1: Vec<(&'static str, String)>,
    v2: Vec<(&'static str, String)>,
}

/// # Errors
/// `Precondition` where no controller takes one.
pub fn write(group: &Group, resources: &LinuxResources) -> Result<()> {
    all(resources).iter().try_for_each(|extra| extra.write(group))
}

impl Extra {
    fn write(&self, group: &Group) -> Result<()> {
        let v1 = self.v1.iter().flat_map(|file| group.v1.iter().map(move |dir| (dir, file)));
        let v2 = self.v2.iter().flat_map(|file| group.v2.iter().map(move |dir| (dir, file)));
        let mut places = v1.chain(v2).map(|(dir, (name, value))| (dir.join(name), value));
        match places.find(|(path, _)| path.exists()) {
            Some((path, value)) => groups::write(&path, value)
                .map_err(|error| error.hint(format!("linux.resources.{} asks for that", self.what))),
            None => {
                let files: Vec<&str> = self.v1.iter().chain(&self.v2).map(|(name, _)| *name).collect();
                Err(Error::new(Kind::Precondition, "limit cgroup", format!("linux.resources.{}", self.what))
                    .because(Cause(format!("no controller of this host has {}", files.join(" or ")))))
            }
        }
    }
}

fn all(resources: &LinuxResources) -> Vec<Extra> {
    let mut all = Vec::new();
    let mut add = |what, v1: &[&'static str], v2: &[&'static str], value: String| {
        let each = |names: &[&'static str]| names.iter().map(|name| (*name, value.clone())).collect();
        all.push(Extra { what, v1: each(v1), v2: each(v2) });
    };
    if let Some(memory) = resources.memory() {
        // Below 0 is none, which is what a new group has.
        if let Some(bytes) = memory.reservation().filter(|bytes| *bytes > 0) {
            add("memory.reservation", &["memory.soft_limit_in_bytes"], &["memory.low"], bytes.to_string());
        }
        if let Some(swappiness) = memory.swappiness() {
            add("memory.swappiness", &["memory.swappiness"], &[], swappiness.to_string());
        }
        if memory.disable_oom_killer() == Some(true) {
            add("memory.disableOOMKiller", &["memory.oom_control"], &[], "1".into());
        }
    }
    if let Some(cpu) = resources.cpu() {
        if let Some(burst) = cpu.burst() {
            add("cpu.burst", &["cpu.cfs_burst_us"], &["cpu.max.burst"], burst.to_string());
        }
        if let Some(idle) = cpu.idle() {
            add("cpu.idle", &["cpu.idle"], &["cpu.idle"], idle.to_string());
        }
        if let Some(us) = cpu.realtime_period().filter(|us| *us != 0) {
            add("cpu.realtimePeriod", &["cpu.rt_period_us"], &[], us.to_string());
        }
        if let Some(us) = cpu.realtime_runtime().filter(|us| *us != 0) {
            add("cpu.realtimeRuntime", &["cpu.rt_runtime_us"], &[], us.to_string());
        }
    }
    let mut hcas: Vec<_> = resources.rdma().iter().flatten().collect();
    hcas.sort_by_key(|(name, _)| *name);
    for (name, limit) in hcas {
        let part =
            |key: &str, limit: Option<u32>| limit.map(|limit| format!(" {key}={limit}")).unwrap_or_default();
        let parts = part("hca_handle", limit.hca_handles()) + &part("hca_object", limit.hca_objects());
        add("rdma", &["rdma.max"], &["rdma.max"], format!("{name}{parts}"));
    }
    if let Some(network) = resources.network() {
        if let Some(class) = network.class_id() {
            add("network.classID", &["net_cls.classid"], &[], class.to_string());
        }
        for priority in network.priorities().iter().flatten() {
            let line = format!("{} {}", priority.name(), priority.priority());
            add("network.priorities", &["net_prio.ifpriomap"], &[], line);
        }
    }
    all.extend(resources.block_io().iter().flat_map(block));
    all
}

fn block(io: &LinuxBlockIo) -> Vec<Extra> {
    let mut all = Vec::new();
    let weights = |what, device: &str, weight: u16| Extra {
        what,
        v1: match device {
            "" => ["blkio.weight", "blkio.bfq.weight"],
            _ => ["blkio.weight_device", "blkio.bfq.weight_device"],
        }
        .map(|name| (name, format!("{device}{weight}")))
        .into(),
        v2: vec![
            ("io.bfq.weight", format!("{device}{weight}")),
            ("io.weight", format!("{device}{}", io_weight(weight))),
        ],
    };
    let leaf = |what, name, device: &str, weight: u16| Extra {
        what,
        v1: vec![(name, format!("{device}{weight}"))],
        v2: Vec::new(),
    };
    // A weight of nought is none.
    let said = |weight: Option<u16>| weight.filter(|weight| *weight != 0);
    all.extend(said(io.weight()).map(|weight| weights("blockIO.weight", "", weight)));
    all.extend(
        said(io.leaf_weight()).map(|weight| leaf("blockIO.leafWeight", "blkio.leaf_weight", "", weight)),
    );
    for of in io.weight_device().iter().flatten() {
        let device = format!("{}:{} ", of.major(), of.minor());
        all.extend(said(of.weight()).map(|weight| weights("blockIO.weightDevice", &device, weight)));
        let leaf = |weight| leaf("blockIO.weightDevice", "blkio.leaf_weight_device", &device, weight);
        all.extend(said(of.leaf_weight()).map(leaf));
    }
    let throttles = [
        (
            "blockIO.throttleReadBpsDevice",
            "blkio.throttle.read_bps_device",
            "rbps",
            io.throttle_read_bps_device(),
        ),
        (
            "blockIO.throttleWriteBpsDevice",
            "blkio.throttle.write_bps_device",
            "wbps",
            io.throttle_write_bps_device(),
        ),
        (
            "blockIO.throttleReadIOPSDevice",
            "blkio.throttle.read_iops_device",
            "riops",
            io.throttle_read_iops_device(),
        ),
        (
            "blockIO.throttleWriteIOPSDevice",
            "blkio.throttle.write_iops_device",
            "wiops",
            io.throttle_write_iops_device(),
        ),
    ];
    for (what, v1, v2, devices) in throttles {
        all.extend(devices.iter().flatten().map(|device| throttle(what, v1, v2, device)));
    }
    all
}

/// A rate of nought is none: v1 takes it as that, v2 has a word.
fn throttle(what: &'static str, v1: &'static str, v2: &str, of: &LinuxThrottleDevice) -> Extra {
    let (device, rate) = (format!("{}:{}", of.major(), of.minor()), of.rate());
    let most = if rate == 0 { "max".to_owned() } else { rate.to_string() };
    Extra {
        what,
        v1: vec![(v1, format!("{device} {rate}"))],
        v2: vec![("io.max", format!("{device} {v2}={most}"))],
    }
}

/// A weight of v1 (10 to 1000) on v2's scale (1 to 10000), as runc and crun have it.
fn io_weight(weight: u16) -> u32 {
    1 + u32::from(weight.saturating_sub(10)) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(value: serde_json::Value) -> LinuxResources {
        serde_json::from_value(value).unwrap()
    }

    fn group() -> (tempfile::TempDir, Group) {
        let dir = tempfile::tempdir().unwrap();
        let (v1, v2) = (dir.path().join("blkio"), dir.path().join("unified"));
        std::fs::create_dir(&v1).unwrap();
        std::fs::create_dir(&v2).unwrap();
        (dir, Group { v1: vec![v1], v2: Some(v2) })
    }

    #[test]
    fn a_limit_goes_where_its_file_is_and_is_refused_by_name_elsewhere() {
        let resources = of(json!({"blockIO": {"weight": 1000,
            "throttleReadBpsDevice": [{"major": 8, "minor": 16, "rate": 1_048_576}]}}));
        let (_dir, group) = group();
        let refused = write(&group, &resources).unwrap_err();
        assert_eq!(refused.kind, Kind::Precondition);
        assert!(refused.chain().contains("blockIO.weight"), "{}", refused.chain());
        let v2 = group.v2.clone().unwrap();
        for name in ["io.weight", "io.max"] {
            std::fs::write(v2.join(name), "").unwrap();
        }
        write(&group, &resources).unwrap();
        let says = |dir: &std::path::Path, name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
        assert_eq!(
            (says(&v2, "io.weight"), says(&v2, "io.max")),
            ("10000".into(), "8:16 rbps=1048576".into())
        );
        // v1's goes before: on hybrid hosts the controller is there.
        std::fs::write(group.v1[0].join("blkio.throttle.read_bps_device"), "").unwrap();
        write(&group, &resources).unwrap();
        assert_eq!(says(&group.v1[0], "blkio.throttle.read_bps_device"), "8:16 1048576");
    }

    #[test]
    fn limits_are_said_as_the_kernel_reads_them() {
        let lines = |value| -> Vec<(&'static str, String)> {
            all(&of(value)).into_iter().flat_map(|extra| extra.v2.into_iter().chain(extra.v1)).collect()
        };
        assert_eq!(
            lines(json!({"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10}}})),
            [
                ("rdma.max", "mlx5_1 hca_handle=3 hca_object=10".to_owned()),
                ("rdma.max", "mlx5_1 hca_handle=3 hca_object=10".to_owned())
            ]
        );
        assert_eq!(
            lines(json!({"network": {"classID": 4097, "priorities": [{"name": "eth0", "priority": 5}]}})),
            [("net_cls.classid", "4097".to_owned()), ("net_prio.ifpriomap", "eth0 5".to_owned())]
        );
        let throttle = json!({"throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 0}]});
        assert_eq!(lines(json!({"blockIO": throttle}))[0], ("io.max", "8:0 wiops=max".to_owned()));
        assert_eq!(lines(json!({"blockIO": {"weight": 0}, "rdma": {}, "network": {}, "cpu": {}})), []);
        assert_eq!(lines(json!({"cpu": {"realtimeRuntime": 95}})), [("cpu.rt_runtime_us", "95".to_owned())]);
        assert_eq!([10, 500, 1000].map(io_weight), [1, 4950, 10_000]);
    }
}
