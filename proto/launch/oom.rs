//! What the kernel's log says of a process that was killed for want of memory: who, in which cgroup, by whose limit. Pure.
//!
//! ```text
//! 4,1234,5678,-;oom-kill:constraint=CONSTRAINT_MEMCG,…,oom_memcg=/pods/p,task_memcg=/pods/p/c,task=eat,pid=12,uid=0
//! ```

/// One such kill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    /// The process's name, as far as the kernel keeps it.
    pub name: String,
    /// As the host counts.
    pub pid: i32,
    /// Its cgroup, from the root of the hierarchy that counts memory.
    pub group: String,
    /// The cgroup whose limit was reached; none where the machine itself had no more.
    pub limited: Option<String>,
}

/// Whose limit it was, seen from a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose<'a> {
    Container,
    /// The cgroup that the container's is in.
    Pod,
    Above(&'a str),
    Node,
}

/// Takes a record of the kernel's log apart; none where it tells of something else. A name that holds `,pid=` is the
/// program's own doing, and what follows the last one is the kernel's.
pub fn parse(record: &str) -> Option<Kill> {
    let (_, facts) = record.split_once(";oom-kill:constraint=")?;
    let facts = facts.lines().next()?;
    let (before, rest) = facts.rsplit_once(",pid=")?;
    let pid = rest.split(',').next()?.parse().ok()?;
    let (before, name) = before.split_once(",task=")?;
    let (before, group) = before.split_once(",task_memcg=")?;
    let limited = before.split_once(",oom_memcg=").map(|(_, limited)| limited.to_owned());
    Some(Kill { name: name.to_owned(), pid, group: group.to_owned(), limited })
}

impl Kill {
    /// The cgroup of the container of this id, if the process was in it or below.
    pub fn container(&self, id: &str) -> Option<&str> {
        if id.is_empty() {
            return None;
        }
        let at = self.group.find(id)?;
        let end = self.group[at..].find('/').map_or(self.group.len(), |length| at + length);
        Some(&self.group[..end])
    }

    /// Whose limit it was; `container` as `container` gives it.
    pub fn whose(&self, container: &str) -> Whose<'_> {
        match &self.limited {
            None => Whose::Node,
            Some(limited) if limited.starts_with(container) => Whose::Container,
            Some(limited) if container.rsplit_once('/').is_some_and(|(pod, _)| pod == limited) => Whose::Pod,
            Some(limited) => Whose::Above(limited),
        }
    }

    /// The same in words; `bytes` is the limit, where it is known.
    pub fn told(&self, container: &str, bytes: Option<u64>) -> String {
        let of = bytes.map(|bytes| format!(" of {} KiB", bytes / 1024)).unwrap_or_default();
        let why = match self.whose(container) {
            Whose::Container => format!("the container's limit{of} was reached"),
            Whose::Pod => format!("its pod's limit{of} was reached"),
            Whose::Above(group) => format!("the limit{of} of the cgroup {group} was reached"),
            Whose::Node => "the node had no more".to_owned(),
        };
        format!("its process {} ({}) was killed for want of memory: {why}", self.pid, self.name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD: &str =
        "4,1017,11635484704,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0";

    #[test]
    fn a_kill_is_told_with_its_victim_and_its_limit() {
        let line = |limited: &str| {
            format!("{HEAD}{limited},task_memcg=/k/pod1/c0ffee/exec-1,task=eat,pid=12,uid=0\n SUBSYSTEM=x\n")
        };
        let kill = parse(&line(",oom_memcg=/k/pod1/c0ffee")).unwrap();
        assert_eq!(
            (kill.name.as_str(), kill.pid, kill.container("c0ffee")),
            ("eat", 12, Some("/k/pod1/c0ffee"))
        );
        assert_eq!(kill.container("c0ffef"), None);
        for (limited, whose) in [
            (",oom_memcg=/k/pod1/c0ffee", Whose::Container),
            (",oom_memcg=/k/pod1/c0ffee/exec-1", Whose::Container),
            (",oom_memcg=/k/pod1", Whose::Pod),
            (",oom_memcg=/k", Whose::Above("/k")),
            ("", Whose::Node),
            (",global_oom", Whose::Node),
        ] {
            assert_eq!(parse(&line(limited)).unwrap().whose("/k/pod1/c0ffee"), whose, "{limited}");
        }
        let told = kill.told("/k/pod1/c0ffee", Some(32 << 20));
        assert_eq!(
            told,
            "its process 12 (eat) was killed for want of memory: the container's limit of 32768 KiB was reached"
        );
        assert_eq!(parse("4,1,2,-;Memory cgroup out of memory: Killed process 12 (eat)"), None);
    }

    #[test]
    fn a_scope_of_systemds_is_a_container_too() {
        let line =
            format!("{HEAD},oom_memcg=/a.slice,task_memcg=/a.slice/berth-c0ffee.scope,task=x,pid=1,uid=0");
        let kill = parse(&line).unwrap();
        assert_eq!(kill.container("c0ffee"), Some("/a.slice/berth-c0ffee.scope"));
        assert_eq!(kill.whose("/a.slice/berth-c0ffee.scope"), Whose::Pod);
    }

    proptest! {
        #[test]
        fn no_record_and_no_name_brings_it_down(text in any::<String>(), name in "[,a-z=;/]{0,15}") {
            parse(&text);
            parse(&format!("{HEAD}{text}"));
            let line = format!("{HEAD},task_memcg=/c,task={name},pid=77,uid=0");
            prop_assert_eq!(parse(&line).map(|kill| kill.pid), Some(77));
        }
    }
}
