//! Seccomp profiles: the default one, and the compiler from profile to classic BPF. `seccomp(2)`, `bpf` of
//! linux/filter.h.
//!
//! ```text
//! load arch; not ours ─> ENOSYS        x32 bit ─> ENOSYS
//! load nr
//! for each range of numbers with one outcome:  nr > last ? next range : outcome
//! outcome with argument rules:  rule 1 all true ? action 1 : rule 2 ... : default
//! ```
//! The kernel caches which numbers are always allowed (5.11), so the walk is paid only by those that aren't.

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator};
use serde_json::{Value, json};

use super::{
    capabilities,
    kept::Kept,
    syscalls::{self, Number},
};
use crate::{Error, Kind, Result};

/// The address families of sockets, as masks and what they leave: 0 to 45, but AF_ALG (38), whose code in the kernel is
/// reached by nobody who needs it, and AF_VSOCK (40), which reaches the host past all network rules. socket(2) takes an
/// int: the upper half of the register is not looked at, by the kernel or here.
const FAMILIES: [(u64, u64); 7] = [
    (0xffff_ffe0, 0),
    (0xffff_fffc, 32),
    (0xffff_fffe, 36),
    (0xffff_ffff, 39),
    (0xffff_ffff, 41),
    (0xffff_fffe, 42),
    (0xffff_fffe, 44),
];

/// The profile of `RuntimeDefault` for a container with these capabilities: what peers' default allows, and what a
/// capability that it has is good for.
pub fn default_profile(capabilities: u64) -> Result<LinuxSeccomp> {
    static MADE: Kept<u64, LinuxSeccomp> = Kept::new();
    MADE.or_make(&capabilities, |capabilities| made_for(*capabilities))
}

fn made_for(capabilities: u64) -> Result<LinuxSeccomp> {
    let has = |name: &str| capabilities::bit(name).is_ok_and(|bit| capabilities & bit != 0);
    let allow = |names: &[&str]| json!({"names": names, "action": "SCMP_ACT_ALLOW"});
    let allow_if =
        |name: &str, args: Value| json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": args});
    let mut rules = vec![allow(&syscalls::HARMLESS)];
    for persona in [0x0u64, 0x8, 0x20000, 0x20008, 0xffff_ffff] {
        rules.push(allow_if("personality", json!([{"index": 0, "value": persona, "op": "SCMP_CMP_EQ"}])));
    }
    for (mask, family) in FAMILIES {
        let masked = json!([{"index": 0, "value": mask, "valueTwo": family, "op": "SCMP_CMP_MASKED_EQ"}]);
        rules.push(allow_if("socket", masked));
    }
    for (capability, names) in syscalls::BY_CAPABILITY {
        if has(capability) {
            rules.push(allow(names));
        }
    }
    if !has("SYS_ADMIN") {
        // CLONE_NEW* of all kinds but time; clone3's flags are behind a pointer, so libc is told to use clone.
        rules.push(allow_if(
            "clone",
            json!([{"index": 0, "value": 0x7e02_0000u64, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]),
        ));
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}));
    }
    let profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::EPERM,
        "architectures": [if cfg!(target_arch = "x86_64") { "SCMP_ARCH_X86_64" } else { "SCMP_ARCH_AARCH64" }],
        "syscalls": rules,
    });
    serde_json::from_value(profile)
        .map_err(|error| Error::new(Kind::Internal, "write", "default seccomp profile").because(error))
}

/// Whether a profile asks somebody at its listener.
pub fn notifies(profile: &LinuxSeccomp) -> bool {
    const NOTIFY: LinuxSeccompAction = LinuxSeccompAction::ScmpActNotify;
    let mut rules = profile.syscalls().iter().flatten();
    profile.default_action() == NOTIFY || rules.any(|rule| rule.action() == NOTIFY)
}

/// Compiles a profile into an array of `struct sock_filter`.
///
/// # Errors
/// `Invalid` for a program the kernel would refuse.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<u8>> {
    let default = action(profile.default_action(), profile.default_errno_ret());
    let mut rules: Vec<(Number, Rule<'_>)> = Vec::new();
    for (order, syscall) in profile.syscalls().iter().flatten().enumerate() {
        let action = action(syscall.action(), syscall.errno_ret());
        let args = syscall.args().as_deref().unwrap_or_default();
        if args.iter().any(|arg| arg.index() > 5) {
            return Err(refused("an argument's index is over 5"));
        }
        // A name this kernel or machine does not know has no number to filter.
        for number in syscall.names().iter().filter_map(|name| syscalls::number(name)) {
            rules.push((number, Rule { order, action, args }));
        }
    }
    rules.sort_by_key(|(number, rule)| (*number, rule.order));
    let mut program = Program(Vec::new());
    program.head();
    for range in ranges(&rules, default) {
        program.range(&range, default)?;
    }
    program.ret(default);
    if program.0.len() > 4096 {
        return Err(refused("it compiles to more than 4096 instructions"));
    }
    Ok(program.bytes())
}

#[derive(Debug, Clone, Copy)]
struct Rule<'a> {
    order: usize,
    action: u32,
    args: &'a [LinuxSeccompArg],
}

/// Numbers up to `last` with one outcome.
#[derive(Debug)]
struct Range<'a> {
    last: u32,
    rules: Vec<Rule<'a>>,
}

/// All numbers from 0 up to the last one with a rule, in ranges. Sorted input.
fn ranges<'a>(rules: &[(Number, Rule<'a>)], default: u32) -> Vec<Range<'a>> {
    let mut ranges: Vec<Range<'a>> = Vec::new();
    let mut push = |last: u32, rules: Vec<Rule<'a>>| {
        let simple = |rules: &[Rule<'_>]| match rules {
            [] => Some(default),
            [first, ..] if first.args.is_empty() => Some(first.action),
            _ => None,
        };
        match ranges.last_mut() {
            Some(before) if simple(&before.rules).is_some() && simple(&before.rules) == simple(&rules) => {
                before.last = last;
            }
            _ => ranges.push(Range { last, rules }),
        }
    };
    let mut next = 0;
    for group in rules.chunk_by(|one, other| one.0 == other.0) {
        let number = group[0].0;
        if number > next {
            push(number - 1, Vec::new());
        }
        push(number, group.iter().map(|(_, rule)| *rule).collect());
        next = number + 1;
    }
    ranges
}

const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_KILL_THREAD: u32 = 0;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> u32 {
    let data = errno.unwrap_or(libc::EPERM.unsigned_abs()) & 0xffff;
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => RET_KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => RET_TRAP,
        LinuxSeccompAction::ScmpActErrno => RET_ERRNO | data,
        LinuxSeccompAction::ScmpActTrace => RET_TRACE | data,
        LinuxSeccompAction::ScmpActLog => RET_LOG,
        LinuxSeccompAction::ScmpActAllow => RET_ALLOW,
        LinuxSeccompAction::ScmpActNotify => RET_USER_NOTIF,
    }
}

fn refused(cause: &str) -> Error {
    Error::invalid("compile", "seccomp profile", cause)
}

const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;
/// struct seccomp_data.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    k: u32,
}

#[derive(Debug)]
struct Program(Vec<Instruction>);

impl Program {
    fn push(&mut self, code: u16, if_true: u8, if_false: u8, k: u32) {
        self.0.push(Instruction { code, if_true, if_false, k });
    }

    fn ret(&mut self, action: u32) {
        self.push(RETURN, 0, 0, action);
    }

    fn head(&mut self) {
        let enosys = RET_ERRNO | libc::ENOSYS.unsigned_abs();
        self.push(LOAD, 0, 0, ARCH);
        self.push(JUMP_EQUAL, 1, 0, syscalls::AUDIT_ARCH);
        self.ret(enosys);
        self.push(LOAD, 0, 0, NR);
        // x32 calls have this bit on the same architecture.
        self.push(JUMP_GREATER_EQUAL, 0, 1, 0x4000_0000);
        self.ret(enosys);
    }

    fn range(&mut self, range: &Range<'_>, default: u32) -> Result<()> {
        let mut body = Program(Vec::new());
        let mut certain = false;
        for rule in &range.rules {
            body.rule(rule)?;
            if rule.args.is_empty() {
                certain = true;
                break;
            }
        }
        if !certain {
            body.ret(default);
        }
        let skip = u8::try_from(body.0.len()).map_err(|_| refused("too many rules for one system call"))?;
        self.push(JUMP_GREATER, skip, 0, range.last);
        self.0.extend(body.0);
        // The arguments' loads have taken the number away; what follows is reached by the jump alone.
        Ok(())
    }

    /// All conditions true: the action. Else on to what follows.
    fn rule(&mut self, rule: &Rule<'_>) -> Result<()> {
        let mut body: Vec<Instruction> =
            vec![Instruction { code: RETURN, if_true: 0, if_false: 0, k: rule.action }];
        for arg in rule.args.iter().rev() {
            body = condition(arg, body)?;
        }
        self.0.extend(body);
        Ok(())
    }
}

/// Puts a condition before `then`: false jumps over it.
fn condition(arg: &LinuxSeccompArg, then: Vec<Instruction>) -> Result<Vec<Instruction>> {
    let over = u8::try_from(then.len()).ok().filter(|over| *over < 250);
    let over = over.ok_or_else(|| refused("too many conditions in one rule"))?;
    // Little endian: the low word comes first.
    let low = ARGS + 8 * arg.index() as u32;
    let (value, second) = (arg.value(), arg.value_two().unwrap_or(0));
    let (value_high, value_low) = ((value >> 32) as u32, value as u32);
    let step = |code, if_true, if_false, k| Instruction { code, if_true, if_false, k };
    let load_high = step(LOAD, 0, 0, low + 4);
    let load_low = step(LOAD, 0, 0, low);
    let mut block = match arg.op() {
        LinuxSeccompOperator::ScmpCmpEq => vec![
            load_high,
            step(JUMP_EQUAL, 0, over + 2, value_high),
            load_low,
            step(JUMP_EQUAL, 0, over, value_low),
        ],
        LinuxSeccompOperator::ScmpCmpNe => vec![
            load_high,
            step(JUMP_EQUAL, 0, 2, value_high),
            load_low,
            step(JUMP_EQUAL, over, 0, value_low),
        ],
        LinuxSeccompOperator::ScmpCmpMaskedEq => vec![
            load_high,
            step(AND, 0, 0, value_high),
            step(JUMP_EQUAL, 0, over + 3, (second >> 32) as u32),
            load_low,
            step(AND, 0, 0, value_low),
            step(JUMP_EQUAL, 0, over, second as u32),
        ],
        // Greater in the high word decides, equal leaves it to the low one.
        LinuxSeccompOperator::ScmpCmpGt => vec![
            load_high,
            step(JUMP_GREATER, 3, 0, value_high),
            step(JUMP_EQUAL, 0, over + 2, value_high),
            load_low,
            step(JUMP_GREATER, 0, over, value_low),
        ],
        LinuxSeccompOperator::ScmpCmpGe => vec![
            load_high,
            step(JUMP_GREATER, 3, 0, value_high),
            step(JUMP_EQUAL, 0, over + 2, value_high),
            load_low,
            step(JUMP_GREATER_EQUAL, 0, over, value_low),
        ],
        LinuxSeccompOperator::ScmpCmpLt => vec![
            load_high,
            step(JUMP_GREATER, over + 3, 0, value_high),
            step(JUMP_EQUAL, 0, 2, value_high),
            load_low,
            step(JUMP_GREATER_EQUAL, over, 0, value_low),
        ],
        LinuxSeccompOperator::ScmpCmpLe => vec![
            load_high,
            step(JUMP_GREATER, over + 3, 0, value_high),
            step(JUMP_EQUAL, 0, 2, value_high),
            load_low,
            step(JUMP_GREATER, over, 0, value_low),
        ],
    };
    block.extend(then);
    Ok(block)
}

impl Program {
    fn bytes(&self) -> Vec<u8> {
        let words = |instruction: &Instruction| {
            let [c0, c1] = instruction.code.to_ne_bytes();
            let [k0, k1, k2, k3] = instruction.k.to_ne_bytes();
            [c0, c1, instruction.if_true, instruction.if_false, k0, k1, k2, k3]
        };
        self.0.iter().flat_map(words).collect()
    }
}

/// For the tests of this file: what the kernel's interpreter would say.
#[cfg(test)]
fn evaluate(program: &[u8], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(nr.to_le_bytes());
    data.extend(arch.to_le_bytes());
    data.extend([0; 8]);
    data.extend(args.iter().flat_map(|arg| arg.to_le_bytes()));
    let (mut at, mut accumulator) = (0usize, 0u32);
    loop {
        let bytes = &program[at * 8..at * 8 + 8];
        let code = u16::from_ne_bytes([bytes[0], bytes[1]]);
        let k = u32::from_ne_bytes(bytes[4..8].try_into().unwrap());
        let jump = |taken: bool| usize::from(if taken { bytes[2] } else { bytes[3] });
        at += 1;
        match code {
            LOAD => accumulator = u32::from_le_bytes(data[k as usize..k as usize + 4].try_into().unwrap()),
            AND => accumulator &= k,
            JUMP_EQUAL => at += jump(accumulator == k),
            JUMP_GREATER => at += jump(accumulator > k),
            JUMP_GREATER_EQUAL => at += jump(accumulator >= k),
            RETURN => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const X86_64: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
    const EPERM: u32 = RET_ERRNO | 1;

    fn outcome(profile: &LinuxSeccomp, name: &str, args: [u64; 6]) -> u32 {
        evaluate(&compile(profile).unwrap(), X86_64, syscalls::number(name).unwrap(), args)
    }

    #[test]
    fn the_default_profile_allows_programs_and_refuses_what_is_the_nodes() {
        let docker = default_profile(0xa804_25fb).unwrap();
        for name in
            ["read", "execve", "openat", "futex", "mmap", "exit_group", "chroot", "statx", "getrandom"]
        {
            assert_eq!(outcome(&docker, name, [0; 6]), RET_ALLOW, "{name}");
        }
        for name in
            ["mount", "reboot", "kexec_load", "init_module", "bpf", "setns", "unshare", "keyctl", "ptrace_x"]
        {
            let Some(number) = syscalls::number(name) else { continue };
            assert_eq!(evaluate(&compile(&docker).unwrap(), X86_64, number, [0; 6]), EPERM, "{name}");
        }
        assert_eq!(outcome(&docker, "clone", [0x1000_0000, 0, 0, 0, 0, 0]), EPERM);
        assert_eq!(outcome(&docker, "clone", [0x11, 0, 0, 0, 0, 0]), RET_ALLOW);
        assert_eq!(outcome(&docker, "clone3", [0; 6]), RET_ERRNO | 38);
        let admin = default_profile(u64::MAX).unwrap();
        for name in ["mount", "setns", "clone3", "bpf"] {
            assert_eq!(outcome(&admin, name, [0; 6]), RET_ALLOW, "{name}");
        }
    }

    #[test]
    fn a_socket_has_a_family_that_is_allowed_whatever_the_upper_half_of_the_register_says() {
        let docker = default_profile(0xa804_25fb).unwrap();
        for family in 0..64u64 {
            let allowed = family < 46 && family != 38 && family != 40;
            let expected = if allowed { RET_ALLOW } else { EPERM };
            for upper in [0, 1 << 32, 0xffff_ffff << 32] {
                assert_eq!(outcome(&docker, "socket", [upper | family, 0, 0, 0, 0, 0]), expected, "{family}");
            }
        }
        for family in [u64::from(u32::MAX), 1 << 31, 128, 40 | 1 << 31] {
            assert_eq!(outcome(&docker, "socket", [family, 0, 0, 0, 0, 0]), EPERM, "{family}");
        }
    }

    #[test]
    fn other_architectures_are_told_there_is_no_such_call() {
        let program = compile(&default_profile(0).unwrap()).unwrap();
        assert_eq!(evaluate(&program, 0x4000_0003, 4, [0; 6]), RET_ERRNO | 38);
        assert_eq!(evaluate(&program, X86_64, 0x4000_0000, [0; 6]), RET_ERRNO | 38);
        assert_eq!(evaluate(&program, X86_64, 0x3fff_ffff, [0; 6]), EPERM);
    }

    #[test]
    fn a_rule_may_ask_a_listener() {
        let profile: LinuxSeccomp = serde_json::from_value(json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}))
        .unwrap();
        assert!(notifies(&profile));
        assert_eq!(outcome(&profile, "mkdir", [0; 6]), RET_USER_NOTIF);
        assert!(!notifies(&default_profile(0).unwrap()));
    }

    proptest! {
        #[test]
        fn conditions_compare_all_64_bits(
            op in 1u32..=7, value: u64, second: u64, arg: u64, near in 0u8..4, index in 0usize..6
        ) {
            let arg = match near { 0 => arg, 1 => value, 2 => value.wrapping_add(1), _ => value ^ (1 << 40) };
            let names = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
            let name = names[op as usize - 1];
            let profile: LinuxSeccomp = serde_json::from_value(json!({
                "defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [
                    {"index": index, "value": value, "valueTwo": second, "op": format!("SCMP_CMP_{name}")}]}],
            })).unwrap();
            let holds = match name {
                "NE" => arg != value, "LT" => arg < value, "LE" => arg <= value, "EQ" => arg == value,
                "GE" => arg >= value, "GT" => arg > value, _ => arg & value == second,
            };
            let mut args = [0; 6];
            args[index] = arg;
            prop_assert_eq!(outcome(&profile, "read", args), if holds { RET_ALLOW } else { EPERM });
        }

        #[test]
        fn each_number_has_just_the_outcome_of_its_rule(numbers in prop::collection::btree_set(0u32..450, 0..80)) {
            let names: Vec<_> = numbers.iter().filter_map(|number| syscalls::name(*number)).collect();
            let profile: LinuxSeccomp = serde_json::from_value(json!({
                "defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [{"names": names, "action": "SCMP_ACT_LOG"}],
            })).unwrap();
            let program = compile(&profile).unwrap();
            for number in 0..460 {
                let ours = numbers.contains(&number) && syscalls::name(number).is_some();
                let expected = if ours { RET_LOG } else { EPERM };
                prop_assert_eq!(evaluate(&program, X86_64, number, [0; 6]), expected);
            }
        }
    }
}
