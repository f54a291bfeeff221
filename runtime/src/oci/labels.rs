//! What the kernel's security modules know a container by: an AppArmor profile, an SELinux label. Which are asked for is
//! decided here; whether the host has them is for the caller to find out. Pure.

use berth_cri::v1::{self as cri, security_profile::ProfileType};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Berth's own profile, under the name it is loaded by.
pub const DEFAULT_PROFILE: &str = "berth-default";

/// The profile that a container is to run under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Apparmor {
    Unconfined,
    /// Berth's own where the host has AppArmor: nobody said anything.
    IfThere,
    /// Berth's own, or the container is refused.
    Default,
    /// A profile that somebody has loaded.
    Named(String),
}

/// CRI's structured field goes before the deprecated text. A privileged container has only what it names.
///
/// # Errors
/// `Invalid` for a text that is no profile.
pub fn apparmor(security: &cri::LinuxContainerSecurityContext) -> Result<Apparmor> {
    let named = |text: &str| Apparmor::Named(text.strip_prefix("localhost/").unwrap_or(text).to_owned());
    let wanted = match (&security.apparmor, deprecated_text(security)) {
        (Some(profile), _) => match profile.profile_type() {
            ProfileType::RuntimeDefault => Apparmor::Default,
            ProfileType::Unconfined => Apparmor::Unconfined,
            ProfileType::Localhost => named(&profile.localhost_ref),
        },
        (None, "") => Apparmor::IfThere,
        (None, "runtime/default") => Apparmor::Default,
        (None, "unconfined") => Apparmor::Unconfined,
        (None, text) if text.starts_with("localhost/") => named(text),
        (None, other) => {
            return Err(Error::invalid("read AppArmor profile", format!("{other:?}"), "it is no profile")
                .hint("write runtime/default, unconfined or localhost/NAME"));
        }
    };
    Ok(match (wanted, security.privileged) {
        (Apparmor::Default | Apparmor::IfThere, true) => Apparmor::Unconfined,
        (wanted, _) => wanted,
    })
}

/// The label of a container's processes on a host with SELinux; none for a privileged one without a wish of its own.
/// A pod without a level gets two categories of its own, so that no pod reaches into another's files.
pub fn selinux(
    security: &cri::LinuxContainerSecurityContext,
    sandbox: &cri::PodSandboxConfig,
) -> Option<String> {
    let of_pod = sandbox.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let asked = security.selinux_options.as_ref().or(of_pod.and_then(|pod| pod.selinux_options.as_ref()));
    if security.privileged && asked.is_none() {
        return None;
    }
    let none = cri::SeLinuxOption::default();
    let asked = asked.unwrap_or(&none);
    let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
    let level = match asked.level.as_str() {
        "" => {
            let (one, other) = categories(sandbox);
            format!("s0:c{one},c{other}")
        }
        level => level.to_owned(),
    };
    let (user, role, kind) =
        (or(&asked.user, "system_u"), or(&asked.role, "system_r"), or(&asked.r#type, "container_t"));
    Some(format!("{user}:{role}:{kind}:{level}"))
}

/// The label of the files that processes of that label may use: the same level.
pub fn selinux_of_files(label: &str) -> Option<String> {
    let level = label.splitn(4, ':').nth(3)?;
    Some(format!("system_u:object_r:container_file_t:{level}"))
}

/// Two different numbers of 1024, the lower first; the same for a pod's every container and over restarts.
fn categories(sandbox: &cri::PodSandboxConfig) -> (u16, u16) {
    let metadata = sandbox.metadata.clone().unwrap_or_default();
    let hash = Sha256::digest(format!("{}/{}/{}", metadata.namespace, metadata.name, metadata.uid));
    let number = |n: usize| u16::from_be_bytes([hash[n], hash[n + 1]]) % 1024;
    let (one, other) = (number(0), number(2));
    let other = if one == other { (other + 1) % 1024 } else { other };
    (one.min(other), one.max(other))
}

#[expect(deprecated, reason = "kubelets before 1.30 and other clients send only this one")]
fn deprecated_text(security: &cri::LinuxContainerSecurityContext) -> &str {
    &security.apparmor_profile
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(deprecated, reason = "that is what is tested")]
    fn the_structured_field_goes_before_the_text_and_privileged_has_only_what_it_names() {
        let field = |kind: ProfileType, name: &str| {
            Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref: name.into() })
        };
        let named = |name: &str| Apparmor::Named(name.into());
        let rows = [
            (None, "", false, Apparmor::IfThere),
            (None, "", true, Apparmor::Unconfined),
            (None, "runtime/default", false, Apparmor::Default),
            (None, "localhost/mine", false, named("mine")),
            (None, "localhost/mine", true, named("mine")),
            (None, "unconfined", false, Apparmor::Unconfined),
            (field(ProfileType::Localhost, "localhost/new"), "localhost/old", false, named("new")),
            (field(ProfileType::Localhost, "new"), "", false, named("new")),
            (field(ProfileType::RuntimeDefault, ""), "unconfined", false, Apparmor::Default),
            (field(ProfileType::RuntimeDefault, ""), "", true, Apparmor::Unconfined),
            (field(ProfileType::Unconfined, ""), "localhost/old", false, Apparmor::Unconfined),
        ];
        for (profile, text, privileged, expected) in rows {
            let security = cri::LinuxContainerSecurityContext {
                apparmor: profile.clone(),
                apparmor_profile: text.into(),
                privileged,
                ..Default::default()
            };
            assert_eq!(apparmor(&security).unwrap(), expected, "{profile:?} {text} {privileged}");
        }
        let odd = cri::LinuxContainerSecurityContext { apparmor_profile: "odd".into(), ..Default::default() };
        assert!(apparmor(&odd).is_err());
    }

    #[test]
    fn a_label_has_the_wishes_in_it_and_else_the_pods_own_categories() {
        let security = |level: &str, privileged| cri::LinuxContainerSecurityContext {
            selinux_options: (!level.is_empty())
                .then(|| cri::SeLinuxOption { level: level.into(), ..Default::default() }),
            privileged,
            ..Default::default()
        };
        let pod = |name: &str| cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata { name: name.into(), ..Default::default() }),
            ..Default::default()
        };
        let label = selinux(&security("s0:c1,c2", false), &pod("a")).unwrap();
        assert_eq!(label, "system_u:system_r:container_t:s0:c1,c2");
        assert_eq!(selinux_of_files(&label).unwrap(), "system_u:object_r:container_file_t:s0:c1,c2");
        assert_eq!(selinux(&security("", true), &pod("a")), None);
        let own = |name| selinux(&security("", false), &pod(name)).unwrap();
        assert_eq!(own("a"), own("a"));
        assert_ne!(own("a"), own("b"));
        for n in 0..2000 {
            let (one, other) = categories(&pod(&n.to_string()));
            assert!(one < other && other < 1024);
        }
    }
}
