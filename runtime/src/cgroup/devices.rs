//! Which device nodes a group's processes may make, read and write: the rules of a spec, and what every container may do
//! besides. Pure; `list` says them as the v1 controller's files do, `program` as the eBPF that v2 asks.
//!
//! ```text
//!   linux.resources.devices + DEFAULT ── of ──> Rules ─┬─ List::of ──> lines of devices.allow, devices.deny   v1
//!                                                      └─ program ───> struct bpf_insn[], for the shim        v2
//! ```
//!
//! Nothing is allowed at first. Of the rules for a device and one of the three accesses the last one holds, and what asks
//! for several (an open for reading and writing) needs all of them. So a later "deny writing" also stops those who would
//! read and write, and no rule is weakened by where it stands beside others.

mod list;
mod program;
#[cfg(test)]
mod tests;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

pub use self::list::List;
use crate::{Error, Result};

const OP: &str = "read device rule";

/// What every container may do after all its own rules, as runc and crun have it: make any node, open the harmless ones
/// and its own terminals.
const DEFAULT: [(Kind, Option<u32>, Option<u32>, Access); 11] = [
    (Kind::Block, None, None, Access::MAKE),
    (Kind::Char, None, None, Access::MAKE),
    (Kind::Char, Some(1), Some(3), Access::ALL), // null
    (Kind::Char, Some(1), Some(5), Access::ALL), // zero
    (Kind::Char, Some(1), Some(7), Access::ALL), // full
    (Kind::Char, Some(1), Some(8), Access::ALL), // random
    (Kind::Char, Some(1), Some(9), Access::ALL), // urandom
    (Kind::Char, Some(5), Some(0), Access::ALL), // tty
    (Kind::Char, Some(5), Some(1), Access::ALL), // console
    (Kind::Char, Some(5), Some(2), Access::ALL), // ptmx
    (Kind::Char, Some(136), None, Access::ALL),  // pts
];

/// Rules in their order, the default ones last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    verdict: Verdict,
    on: Numbers,
    access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    Deny,
}

/// The devices that a rule is about; `None` is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Numbers {
    kind: Option<Kind>,
    major: Option<u32>,
    minor: Option<u32>,
}

/// As the kernel numbers them, `BPF_DEVCG_DEV_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Block = 1,
    Char = 2,
}

/// A set of accesses, as the kernel numbers them, `BPF_DEVCG_ACC_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Access(u8);

impl Rules {
    /// The rules of a spec with the default ones after them; none of a spec's own are the default ones alone.
    ///
    /// # Errors
    /// `Invalid` for a number or an access that no device has.
    pub fn of(asked: &[LinuxDeviceCgroup]) -> Result<Self> {
        let own = asked.iter().filter_map(|rule| Rule::of(rule).transpose());
        let default = DEFAULT.map(|(kind, major, minor, access)| {
            Ok(Rule { verdict: Verdict::Allow, on: Numbers { kind: Some(kind), major, minor }, access })
        });
        own.chain(default).collect::<Result<_>>().map(Self)
    }

    /// The program that decides by these rules.
    pub fn program(&self) -> Vec<u8> {
        program::of(&self.0)
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self::of(&[]).expect("no rule of a spec is wrong where there is none")
    }
}

impl Rule {
    /// `None` for a rule about pipes, which are no devices.
    fn of(asked: &LinuxDeviceCgroup) -> Result<Option<Self>> {
        let kind = match asked.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(LinuxDeviceType::B) => Some(Kind::Block),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(Kind::Char),
            Some(LinuxDeviceType::P) => return Ok(None),
        };
        Ok(Some(Self {
            verdict: if asked.allow() { Verdict::Allow } else { Verdict::Deny },
            on: Numbers { kind, major: number(asked.major())?, minor: number(asked.minor())? },
            access: Access::parse(asked.access().as_deref().unwrap_or_default())?,
        }))
    }

    fn is_everything(&self) -> bool {
        self.on == Numbers { kind: None, major: None, minor: None } && self.access == Access::ALL
    }
}

impl Numbers {
    /// Whether all devices of the other are among these.
    fn cover(&self, other: &Self) -> bool {
        fn covers<T: PartialEq>(wide: Option<T>, narrow: Option<T>) -> bool {
            wide.is_none() || wide == narrow
        }
        covers(self.kind, other.kind) && covers(self.major, other.major) && covers(self.minor, other.minor)
    }

    /// The devices that are among both.
    fn shared(&self, other: &Self) -> Option<Self> {
        /// Of two of which one may be any; nothing where they differ.
        fn meet<T: PartialEq + Copy>(one: Option<T>, other: Option<T>) -> Option<Option<T>> {
            match (one, other) {
                (Some(one), Some(other)) if one != other => None,
                (one, other) => Some(one.or(other)),
            }
        }
        Some(Self {
            kind: meet(self.kind, other.kind)?,
            major: meet(self.major, other.major)?,
            minor: meet(self.minor, other.minor)?,
        })
    }
}

impl Access {
    const MAKE: Self = Self(1);
    const READ: Self = Self(2);
    const WRITE: Self = Self(4);
    const ALL: Self = Self(7);

    /// "rwm" in any order; empty is all, as runc has it.
    fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::ALL);
        }
        let mut set = Self(0);
        for letter in text.chars() {
            set = set.with(match letter {
                'm' => Self::MAKE,
                'r' => Self::READ,
                'w' => Self::WRITE,
                _ => return Err(Error::invalid(OP, format!("access {text:?}"), "it is made of r, w and m")),
            });
        }
        Ok(set)
    }

    fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// Nothing and what is below nought is any, as runc has it.
fn number(asked: Option<i64>) -> Result<Option<u32>> {
    match asked.filter(|number| *number >= 0) {
        None => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| Error::invalid(OP, number.to_string(), "it is no number of a device")),
    }
}
