//! What no request may say, whoever sends it: numbers that name nothing, paths that climb, notes without bound, times
//! before now. Each refusal names the field. Pure.
//!
//! What only part of the daemon can judge (a capability's name, a sysctl, an image) is judged there.

use std::collections::HashMap;

use berth_cri::v1 as cri;

use crate::{Error, Result};

/// Of labels, annotations, sysctls: so many are no notes any more. A kubelet's pods have some twenty.
const MAX_PAIRS: usize = 4096;
/// Of all of them together; the kubelet's API server takes 256 KiB of annotations.
const MAX_PAIR_BYTES: usize = 4 << 20;
/// Mounts, devices, variables, words of a command.
const MAX_ITEMS: usize = 16 * 1024;
/// Names that go into paths, records and messages.
const MAX_NAME_BYTES: usize = 1024;
/// PATH_MAX of `limits.h`, less the final zero.
const MAX_PATH_BYTES: usize = 4095;

/// Checks what makes a pod.
///
/// # Errors
/// `Invalid` names the first field that can't be right.
pub(super) fn pod(op: &'static str, config: &cri::PodSandboxConfig) -> Result<()> {
    let at = Check(op);
    let metadata = config.metadata.clone().unwrap_or_default();
    at.name("config.metadata.name", &metadata.name)?;
    at.name("config.metadata.uid", &metadata.uid)?;
    at.name("config.metadata.namespace", &metadata.namespace)?;
    at.path_or_empty("config.log_directory", &config.log_directory)?;
    at.pairs("config.labels", &config.labels)?;
    at.pairs("config.annotations", &config.annotations)?;
    at.count("config.port_mappings", config.port_mappings.len())?;
    for (n, port) in config.port_mappings.iter().enumerate() {
        let field = |name: &str| format!("config.port_mappings[{n}].{name}");
        at.known::<cri::Protocol>(&field("protocol"), port.protocol)?;
        at.port(&field("host_port"), port.host_port)?;
        at.port(&field("container_port"), port.container_port)?;
    }
    if let Some(dns) = &config.dns_config {
        for (field, lines) in
            [("servers", &dns.servers), ("searches", &dns.searches), ("options", &dns.options)]
        {
            let field = format!("config.dns_config.{field}");
            at.count(&field, lines.len())?;
            at.each_one_line(&field, lines)?;
        }
    }
    let Some(linux) = &config.linux else { return Ok(()) };
    at.cgroup("config.linux.cgroup_parent", &linux.cgroup_parent)?;
    at.pairs("config.linux.sysctls", &linux.sysctls)?;
    if linux.sysctls.contains_key("") {
        return Err(at.refuse("config.linux.sysctls", "a sysctl has no name"));
    }
    for (field, resources) in [("overhead", &linux.overhead), ("resources", &linux.resources)] {
        if let Some(resources) = resources {
            at.resources(&format!("config.linux.{field}"), resources)?;
        }
    }
    let Some(security) = &linux.security_context else { return Ok(()) };
    at.security(&Security {
        namespaces: security.namespace_options.as_ref(),
        groups: security.supplemental_groups_policy,
        seccomp: security.seccomp.as_ref(),
        apparmor: security.apparmor.as_ref(),
    })
}

/// Checks what makes a container.
///
/// # Errors
/// `Invalid` names the first field that can't be right.
pub(super) fn container(op: &'static str, config: &cri::ContainerConfig) -> Result<()> {
    let at = Check(op);
    at.name("config.metadata.name", &config.metadata.clone().unwrap_or_default().name)?;
    at.log_path("config.log_path", &config.log_path)?;
    at.pairs("config.labels", &config.labels)?;
    at.pairs("config.annotations", &config.annotations)?;
    at.known::<cri::Signal>("config.stop_signal", config.stop_signal)?;
    for (field, count) in [
        ("config.command", config.command.len()),
        ("config.args", config.args.len()),
        ("config.envs", config.envs.len()),
        ("config.mounts", config.mounts.len()),
        ("config.devices", config.devices.len()),
        ("config.CDI_devices", config.cdi_devices.len()),
    ] {
        at.count(field, count)?;
    }
    for (n, mount) in config.mounts.iter().enumerate() {
        let field = |name: &str| format!("config.mounts[{n}].{name}");
        at.path(&field("container_path"), &mount.container_path)?;
        at.known::<cri::MountPropagation>(&field("propagation"), mount.propagation)?;
        match &mount.image {
            None => at.path(&field("host_path"), &mount.host_path)?,
            Some(_) => at.relative_or_empty(&field("image_sub_path"), &mount.image_sub_path)?,
        }
    }
    for (n, device) in config.devices.iter().enumerate() {
        let field = |name: &str| format!("config.devices[{n}].{name}");
        at.path(&field("host_path"), &device.host_path)?;
        at.path(&field("container_path"), &device.container_path)?;
        if device.permissions.bytes().any(|letter| !b"rwm".contains(&letter)) {
            return Err(at.refuse(&field("permissions"), "they are of the letters r, w and m"));
        }
    }
    let Some(linux) = &config.linux else { return Ok(()) };
    if let Some(resources) = &linux.resources {
        at.resources("config.linux.resources", resources)?;
    }
    let Some(security) = &linux.security_context else { return Ok(()) };
    let field = Security::field;
    at.security(&Security {
        namespaces: security.namespace_options.as_ref(),
        groups: security.supplemental_groups_policy,
        seccomp: security.seccomp.as_ref(),
        apparmor: security.apparmor.as_ref(),
    })?;
    for (name, paths) in
        [("masked_paths", &security.masked_paths), ("readonly_paths", &security.readonly_paths)]
    {
        at.count(&field(name), paths.len())?;
        paths.iter().enumerate().try_for_each(|(n, path)| at.path(&format!("{}[{n}]", field(name)), path))?;
    }
    Ok(())
}

/// Checks what an update of a container or a pod says.
pub(super) fn resources(
    op: &'static str,
    field: &str,
    resources: &cri::LinuxContainerResources,
) -> Result<()> {
    Check(op).resources(field, resources)
}

/// Checks the state that a list is filtered by.
pub(super) fn pod_state(op: &'static str, filter: &cri::PodSandboxFilter) -> Result<()> {
    let at = Check(op);
    at.pairs("filter.label_selector", &filter.label_selector)?;
    let state = filter.state.as_ref().map_or(0, |state| state.state);
    at.known::<cri::PodSandboxState>("filter.state", state)
}

/// Checks the state that a list is filtered by.
pub(super) fn container_state(op: &'static str, filter: &cri::ContainerFilter) -> Result<()> {
    let at = Check(op);
    at.pairs("filter.label_selector", &filter.label_selector)?;
    let state = filter.state.as_ref().map_or(0, |state| state.state);
    at.known::<cri::ContainerState>("filter.state", state)
}

/// A time from now on, in seconds.
pub(super) fn seconds(op: &'static str, field: &'static str, value: i64) -> Result<u64> {
    u64::try_from(value).map_err(|_| Check(op).refuse(field, &format!("{value} s lie before now")))
}

/// What the security contexts of pods and containers have in common.
struct Security<'a> {
    namespaces: Option<&'a cri::NamespaceOption>,
    groups: i32,
    seccomp: Option<&'a cri::SecurityProfile>,
    apparmor: Option<&'a cri::SecurityProfile>,
}

impl Security<'_> {
    fn field(name: &str) -> String {
        format!("config.linux.security_context.{name}")
    }
}

/// The call for whose sake something is checked.
struct Check(&'static str);

impl Check {
    fn refuse(&self, field: &str, why: &str) -> Error {
        Error::invalid(self.0, field, why)
    }

    /// A number of a message that this enumeration has a name for.
    fn known<E: TryFrom<i32>>(&self, field: &str, number: i32) -> Result<()> {
        match E::try_from(number) {
            Ok(_) => Ok(()),
            Err(_) => Err(self.refuse(field, &format!("nothing has the number {number}"))),
        }
    }

    fn name(&self, field: &str, text: &str) -> Result<()> {
        if text.len() > MAX_NAME_BYTES {
            return Err(self.refuse(field, &format!("it has more than {MAX_NAME_BYTES} bytes")));
        }
        match text.contains(['/', '\0', '\n']) {
            true => Err(self.refuse(field, "a name has no slash, no line break and no zero byte")),
            false => Ok(()),
        }
    }

    fn pairs(&self, field: &str, pairs: &HashMap<String, String>) -> Result<()> {
        if pairs.len() > MAX_PAIRS {
            return Err(self.refuse(field, &format!("{} entries are more than {MAX_PAIRS}", pairs.len())));
        }
        let bytes: usize = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
        match bytes > MAX_PAIR_BYTES {
            true => Err(self.refuse(field, &format!("{bytes} bytes are more than {MAX_PAIR_BYTES}"))),
            false => Ok(()),
        }
    }

    fn count(&self, field: &str, count: usize) -> Result<()> {
        match count > MAX_ITEMS {
            true => Err(self.refuse(field, &format!("{count} entries are more than {MAX_ITEMS}"))),
            false => Ok(()),
        }
    }

    fn each_one_line(&self, field: &str, lines: &[String]) -> Result<()> {
        match lines.iter().position(|line| line.contains(['\n', '\0'])) {
            Some(n) => Err(self.refuse(&format!("{field}[{n}]"), "it is more than one line")),
            None => Ok(()),
        }
    }

    fn path(&self, field: &str, path: &str) -> Result<()> {
        match path.starts_with('/') {
            true => self.no_climb(field, path),
            false => Err(self.refuse(field, &format!("{path:?} is not absolute"))),
        }
    }

    fn path_or_empty(&self, field: &str, path: &str) -> Result<()> {
        if path.is_empty() { Ok(()) } else { self.path(field, path) }
    }

    fn relative_or_empty(&self, field: &str, path: &str) -> Result<()> {
        match path.starts_with('/') {
            true => Err(self.refuse(field, &format!("{path:?} is absolute"))),
            false => self.no_climb(field, path),
        }
    }

    /// Below the pod's directory of logs, wherever that is.
    fn log_path(&self, field: &str, path: &str) -> Result<()> {
        self.relative_or_empty(field, path.trim_start_matches('/'))
    }

    /// cgroupfs' path, or the name of systemd's slice.
    fn cgroup(&self, field: &str, path: &str) -> Result<()> {
        self.no_climb(field, path)
    }

    fn no_climb(&self, field: &str, path: &str) -> Result<()> {
        if path.len() > MAX_PATH_BYTES || path.contains('\0') {
            return Err(
                self.refuse(field, &format!("a path has at most {MAX_PATH_BYTES} bytes, none of them zero"))
            );
        }
        match path.split('/').any(|part| part == "..") {
            true => Err(self.refuse(field, &format!("{path:?} has a part `..`"))),
            false => Ok(()),
        }
    }

    fn port(&self, field: &str, port: i32) -> Result<()> {
        match u16::try_from(port) {
            Ok(_) => Ok(()),
            Err(_) => Err(self.refuse(field, &format!("{port} is no port"))),
        }
    }

    fn profile(&self, field: &str, profile: Option<&cri::SecurityProfile>) -> Result<()> {
        use cri::security_profile::ProfileType;
        let Some(profile) = profile else { return Ok(()) };
        self.known::<ProfileType>(&format!("{field}.profile_type"), profile.profile_type)?;
        match (profile.profile_type(), profile.localhost_ref.is_empty()) {
            (ProfileType::Localhost, true) => {
                Err(self.refuse(&format!("{field}.localhost_ref"), "the field is missing"))
            }
            (ProfileType::Localhost, false) => {
                self.no_climb(&format!("{field}.localhost_ref"), &profile.localhost_ref)
            }
            (ProfileType::RuntimeDefault | ProfileType::Unconfined, _) => Ok(()),
        }
    }

    fn security(&self, security: &Security<'_>) -> Result<()> {
        let field = Security::field;
        self.namespaces(&field("namespace_options"), security.namespaces)?;
        self.known::<cri::SupplementalGroupsPolicy>(&field("supplemental_groups_policy"), security.groups)?;
        self.profile(&field("seccomp"), security.seccomp)?;
        self.profile(&field("apparmor"), security.apparmor)
    }

    fn namespaces(&self, field: &str, options: Option<&cri::NamespaceOption>) -> Result<()> {
        let Some(options) = options else { return Ok(()) };
        for (name, mode) in [("network", options.network), ("pid", options.pid), ("ipc", options.ipc)] {
            self.known::<cri::NamespaceMode>(&format!("{field}.{name}"), mode)?;
        }
        if let Some(users) = &options.userns_options {
            self.known::<cri::NamespaceMode>(&format!("{field}.userns_options.mode"), users.mode)?;
        }
        Ok(())
    }

    fn resources(&self, field: &str, resources: &cri::LinuxContainerResources) -> Result<()> {
        let of = |name: &str| format!("{field}.{name}");
        // Shares and periods have no "unlimited" to say with a negative one.
        for (name, value) in [("cpu_period", resources.cpu_period), ("cpu_shares", resources.cpu_shares)] {
            if value < 0 {
                return Err(self.refuse(&of(name), &format!("{value} is negative")));
            }
        }
        for (name, value) in [
            ("cpu_quota", resources.cpu_quota),
            ("memory_limit_in_bytes", resources.memory_limit_in_bytes),
            ("memory_swap_limit_in_bytes", resources.memory_swap_limit_in_bytes),
        ] {
            if value < -1 {
                return Err(self.refuse(&of(name), &format!("{value} is neither a limit nor -1 for none")));
            }
        }
        let (memory, both) = (resources.memory_limit_in_bytes, resources.memory_swap_limit_in_bytes);
        if memory > 0 && (1..memory).contains(&both) {
            let why = format!(
                "{both} is of memory and swap together, and less than memory_limit_in_bytes, {memory}"
            );
            return Err(self.refuse(&of("memory_swap_limit_in_bytes"), &why));
        }
        if !(-1000..=1000).contains(&resources.oom_score_adj) {
            let why = format!("{} is not between -1000 and 1000", resources.oom_score_adj);
            return Err(self.refuse(&of("oom_score_adj"), &why));
        }
        self.pairs(&of("unified"), &resources.unified)?;
        match resources.unified.keys().find(|name| name.contains(['/', '\0']) || name.contains("..")) {
            Some(name) => Err(self.refuse(&of("unified"), &format!("{name:?} is no file of a cgroup"))),
            None => self.count(&of("hugepage_limits"), resources.hugepage_limits.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::Kind;

    fn refused(checked: Result<()>, field: &str) {
        let error = checked.unwrap_err();
        assert_eq!((error.kind, error.object.as_str()), (Kind::Invalid, field));
    }

    fn secured(security: cri::LinuxContainerSecurityContext) -> cri::ContainerConfig {
        cri::ContainerConfig {
            linux: Some(cri::LinuxContainerConfig { security_context: Some(security), resources: None }),
            ..Default::default()
        }
    }

    #[test]
    fn a_number_that_names_nothing_is_refused_by_its_field() {
        let options = cri::NamespaceOption { pid: 9, ..Default::default() };
        let security =
            cri::LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
        refused(container("do", &secured(security)), "config.linux.security_context.namespace_options.pid");
        let config = cri::ContainerConfig { stop_signal: 999, ..Default::default() };
        refused(container("do", &config), "config.stop_signal");
        let mount = cri::Mount { container_path: "/x".into(), propagation: -1, ..Default::default() };
        let config = cri::ContainerConfig { mounts: vec![mount], ..Default::default() };
        refused(container("do", &config), "config.mounts[0].propagation");
        let port = cri::PortMapping { protocol: 7, ..Default::default() };
        let config = cri::PodSandboxConfig { port_mappings: vec![port], ..Default::default() };
        refused(pod("do", &config), "config.port_mappings[0].protocol");
        let state = Some(cri::PodSandboxStateValue { state: 5 });
        refused(pod_state("do", &cri::PodSandboxFilter { state, ..Default::default() }), "filter.state");
    }

    #[test]
    fn a_path_that_climbs_is_refused_and_one_with_dots_in_its_names_is_not() {
        let mount = |host: &str, at: &str| cri::ContainerConfig {
            mounts: vec![cri::Mount {
                host_path: host.into(),
                container_path: at.into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        assert!(container("do", &mount("/a/..b/c..", "/x")).is_ok());
        refused(container("do", &mount("/a/../b", "/x")), "config.mounts[0].host_path");
        refused(container("do", &mount("/a", "/x/..")), "config.mounts[0].container_path");
        refused(container("do", &mount("a", "/x")), "config.mounts[0].host_path");
        let log = |path: &str| cri::ContainerConfig { log_path: path.into(), ..Default::default() };
        assert!(container("do", &log("c/0.log")).is_ok());
        refused(container("do", &log("../../etc/cron.d/x")), "config.log_path");
        let parent = cri::LinuxPodSandboxConfig { cgroup_parent: "/a/../..".into(), ..Default::default() };
        let config = cri::PodSandboxConfig { linux: Some(parent), ..Default::default() };
        refused(pod("do", &config), "config.linux.cgroup_parent");
    }

    #[test]
    fn ten_thousand_labels_are_too_many_and_a_thousand_are_not() {
        let config = |count: usize| cri::PodSandboxConfig {
            labels: (0..count).map(|n| (format!("k{n}"), String::new())).collect(),
            ..Default::default()
        };
        assert!(pod("do", &config(1000)).is_ok());
        refused(pod("do", &config(10_000)), "config.labels");
    }

    #[test]
    fn times_and_limits_have_their_ranges() {
        assert_eq!(seconds("do", "timeout", 5).unwrap(), 5);
        refused(seconds("do", "timeout", -1).map(drop), "timeout");
        let of = |change: fn(&mut cri::LinuxContainerResources)| {
            let mut asked = cri::LinuxContainerResources::default();
            change(&mut asked);
            resources("do", "linux", &asked)
        };
        assert!(of(|asked| asked.cpu_quota = -1).is_ok());
        refused(of(|asked| asked.cpu_quota = -2), "linux.cpu_quota");
        refused(of(|asked| asked.cpu_shares = -1), "linux.cpu_shares");
        refused(of(|asked| asked.oom_score_adj = 1001), "linux.oom_score_adj");
        refused(of(|asked| drop(asked.unified.insert("../x".into(), "1".into()))), "linux.unified");
    }

    proptest! {
        // What comes over the wire is any bytes that prost takes for the message.
        #[test]
        fn no_bytes_make_the_checks_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            if let Ok(config) = cri::PodSandboxConfig::decode(bytes.as_slice()) {
                pod("do", &config).ok();
            }
            if let Ok(config) = cri::ContainerConfig::decode(bytes.as_slice()) {
                container("do", &config).ok();
            }
        }
    }
}
