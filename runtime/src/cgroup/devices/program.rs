//! Device rules as a program of type `BPF_PROG_TYPE_CGROUP_DEVICE`. The kernel asks it at each mknod(2) and open(2), with a
//! `struct bpf_cgroup_dev_ctx`; 1 allows, 0 is EPERM.
//!
//! ```text
//!   wanted = the accesses that are asked for
//!   for each rule, last first:   it is about another device            -> next
//!                                Deny:   wanted meets its accesses     -> 0
//!                                Allow:  wanted loses its accesses, none is left -> 1
//!   wanted is empty
//! ```
//!
//! Conditional jumps lead to the next rule only, so no number of rules is too far. One that allows all accesses ends the
//! program for its device: a verifier that follows both sides of each jump has little to remember.

use super::{Access, Rule, Verdict};

/// eBPF registers: the answer, the context, and what was read from it.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const WANTED: u8 = 2;
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Operations, all on 32 bits.
const LOAD: u8 = 0x61;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP: u8 = 0x05;
const JUMP_UNLESS_EQUAL: u8 = 0x56;
const JUMP_IF_ANY: u8 = 0x46;
const EXIT: u8 = 0x95;

/// One `struct bpf_insn`.
#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u8,
    to: u8,
    from: u8,
    offset: i16,
    value: i32,
}

/// Compiles rules, the last of which that says something about a device and an access holds.
pub fn of(rules: &[Rule]) -> Vec<u8> {
    let mut program = vec![
        // access_type: accesses above, kind of device below.
        load(WANTED, 0),
        Instruction { code: MOVE_REGISTER, to: KIND, from: WANTED, offset: 0, value: 0 },
        on(AND, KIND, 0xffff),
        on(SHIFT_RIGHT, WANTED, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules.iter().rev() {
        program.extend(one(rule));
        if rule.is_everything() && rule.verdict == Verdict::Allow {
            // Nothing comes here any more, and the kernel refuses a program with a part that is never reached.
            return encoded(&program);
        }
    }
    program.push(jump(JUMP_UNLESS_EQUAL, WANTED, 0, 2));
    program.extend(answer(1));
    program.extend(answer(0));
    encoded(&program)
}

fn encoded(program: &[Instruction]) -> Vec<u8> {
    program.iter().flat_map(bytes).collect()
}

fn one(rule: &Rule) -> Vec<Instruction> {
    let verdict: Vec<Instruction> = match rule.verdict {
        Verdict::Deny => [
            vec![
                jump(JUMP_IF_ANY, WANTED, i32::from(rule.access.0), 1),
                Instruction { code: JUMP, to: 0, from: 0, offset: 2, value: 0 },
            ],
            answer(0),
        ]
        .concat(),
        Verdict::Allow if rule.access == Access::ALL => answer(1),
        Verdict::Allow => [
            vec![on(AND, WANTED, !i32::from(rule.access.0)), jump(JUMP_UNLESS_EQUAL, WANTED, 0, 2)],
            answer(1),
        ]
        .concat(),
    };
    // As the kernel compares: 32 bits, whatever the sign.
    let kind = rule.on.kind.map(|kind| (KIND, kind as i32));
    let major = rule.on.major.map(|major| (MAJOR, major.cast_signed()));
    let minor = rule.on.minor.map(|minor| (MINOR, minor.cast_signed()));
    let tests: Vec<(u8, i32)> = [kind, major, minor].into_iter().flatten().collect();
    let mut rule = Vec::new();
    for (n, (register, value)) in tests.iter().enumerate() {
        let after = tests.len() - n - 1 + verdict.len();
        rule.push(jump(JUMP_UNLESS_EQUAL, *register, *value, after as i16));
    }
    rule.extend(verdict);
    rule
}

fn load(to: u8, offset: i16) -> Instruction {
    Instruction { code: LOAD, to, from: CONTEXT, offset, value: 0 }
}

fn on(code: u8, to: u8, value: i32) -> Instruction {
    Instruction { code, to, from: 0, offset: 0, value }
}

fn jump(code: u8, register: u8, value: i32, over: i16) -> Instruction {
    Instruction { code, to: register, from: 0, offset: over, value }
}

fn answer(value: i32) -> Vec<Instruction> {
    vec![on(MOVE, ANSWER, value), on(EXIT, 0, 0)]
}

/// As a little-endian kernel has it, which all of ours are.
fn bytes(instruction: &Instruction) -> [u8; 8] {
    let Instruction { code, to, from, offset, value } = instruction;
    let ([low, high], [a, b, c, d]) = (offset.to_le_bytes(), value.to_le_bytes());
    [*code, from << 4 | to, low, high, a, b, c, d]
}
