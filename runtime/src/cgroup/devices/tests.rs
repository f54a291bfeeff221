//! The rules against a plain reading of them: the program by an evaluator of eBPF, the list by what the kernel does with one.

use oci_spec::runtime::LinuxDeviceCgroup;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn asked(rules: &Value) -> Vec<LinuxDeviceCgroup> {
    serde_json::from_value(rules.clone()).unwrap()
}

fn rules(of: &Value) -> Rules {
    Rules::of(&asked(of)).unwrap()
}

/// A device and what is asked of it.
#[derive(Debug, Clone, Copy)]
struct Question {
    kind: Kind,
    major: u32,
    minor: u32,
    access: Access,
}

fn question(kind: Kind, major: u32, minor: u32, access: &str) -> Question {
    Question { kind, major, minor, access: Access::parse(access).unwrap() }
}

/// What the rules say: each access by itself, by the last rule that is about it.
fn read_plainly(rules: &Rules, question: &Question) -> bool {
    [1, 2, 4].into_iter().filter(|bit| question.access.0 & bit != 0).all(|bit| {
        let about = |rule: &&Rule| {
            rule.on.kind.is_none_or(|kind| kind == question.kind)
                && rule.on.major.is_none_or(|major| major == question.major)
                && rule.on.minor.is_none_or(|minor| minor == question.minor)
                && rule.access.0 & bit != 0
        };
        rules.0.iter().rev().find(about).is_some_and(|rule| rule.verdict == Verdict::Allow)
    })
}

/// Runs a program as the kernel does, instruction by instruction; panics at what its verifier would refuse.
fn run(program: &[u8], question: &Question) -> bool {
    let context = [u32::from(question.access.0) << 16 | question.kind as u32, question.major, question.minor];
    let mut registers: [Option<u32>; 10] = [None; 10];
    let mut at = 0;
    loop {
        let instruction: [u8; 8] = program[at * 8..at * 8 + 8].try_into().unwrap();
        let [code, places, low, high, value @ ..] = instruction;
        let (to, from) = (usize::from(places & 0xf), usize::from(places >> 4));
        let (offset, value) = (i16::from_le_bytes([low, high]), i32::from_le_bytes(value).cast_unsigned());
        let of = |register: usize| registers[register].expect("a register is written before it is read");
        let mut over = 0;
        match code {
            0x61 => {
                assert!(from == 1 && offset % 4 == 0, "a load from elsewhere than the context");
                registers[to] = Some(context[offset as usize / 4]);
            }
            0xb4 => registers[to] = Some(value),
            0xbc => registers[to] = Some(of(from)),
            0x54 => registers[to] = Some(of(to) & value),
            0x74 => registers[to] = Some(of(to) >> value),
            0x05 => over = offset,
            0x56 => over = if of(to) == value { 0 } else { offset },
            0x46 => over = if of(to) & value == 0 { 0 } else { offset },
            0x95 => {
                let answer = of(0);
                assert!(answer <= 1, "an answer is 0 or 1");
                return answer == 1;
            }
            other => panic!("{other:#x} is no instruction of ours"),
        }
        assert!(over >= 0, "a jump backwards");
        at += 1 + over as usize;
    }
}

/// Whether each instruction is one that some path comes to: the kernel's verifier refuses a program with others.
fn is_reached_everywhere(program: &[u8]) -> bool {
    let count = program.len() / 8;
    let mut reached = vec![false; count];
    let mut open = vec![0];
    while let Some(at) = open.pop() {
        assert!(at < count, "a path runs over the end");
        if std::mem::replace(&mut reached[at], true) {
            continue;
        }
        let (code, offset) =
            (program[at * 8], i16::from_le_bytes([program[at * 8 + 2], program[at * 8 + 3]]));
        let target = at + 1 + usize::try_from(offset).expect("no jump is backwards");
        match code {
            0x95 => {}
            0x05 => open.push(target),
            0x56 | 0x46 => open.extend([at + 1, target]),
            _ => open.push(at + 1),
        }
    }
    reached.iter().all(|reached| *reached)
}

/// A v1 group as Linux has it, security/device_cgroup.c: written to by lines, asked by one exception at a time.
#[derive(Debug, Default)]
struct Controller {
    allows: bool,
    exceptions: Vec<(Numbers, Access)>,
}

impl Controller {
    fn write(&mut self, file: &str, line: &str) {
        let allow = file == "devices.allow";
        if line == "a" {
            *self = Self { allows: allow, exceptions: Vec::new() };
            return;
        }
        let (on, access) = list::exception(line).expect("a line is as the kernel writes them");
        let there = self.exceptions.iter_mut().find(|(place, _)| *place == on);
        match (allow == self.allows, there) {
            (true, Some((_, has))) => *has = has.without(access),
            (true, None) => {}
            (false, Some((_, has))) => *has = has.with(access),
            (false, None) => self.exceptions.push((on, access)),
        }
        self.exceptions.retain(|(_, access)| !access.is_none());
    }

    fn list(&self) -> String {
        match self.allows {
            true => "a *:* rwm\n".to_owned(),
            false => self.exceptions.iter().map(|(on, access)| list::line(*on, *access) + "\n").collect(),
        }
    }

    fn answers(&self, question: &Question) -> bool {
        let device =
            Numbers { kind: Some(question.kind), major: Some(question.major), minor: Some(question.minor) };
        let mut about = self.exceptions.iter().filter(|(on, _)| on.cover(&device));
        match self.allows {
            true => !about.any(|(_, access)| !access.both(question.access).is_none()),
            false => about.any(|(_, access)| question.access.without(*access).is_none()),
        }
    }
}

fn written(list: &List, controller: &mut Controller) {
    let now = controller.list();
    list.lines(&now).iter().for_each(|(file, line)| controller.write(file, line));
}

fn some_number() -> impl Strategy<Value = i64> {
    prop_oneof![Just(-1), 0..4_i64, Just(i64::from(u32::MAX)), Just(136)]
}

fn some_rule() -> impl Strategy<Value = Value> {
    let kind = prop_oneof![Just(Value::Null), Just(json!("a")), Just(json!("b")), Just(json!("c"))];
    let access = prop_oneof![Just("rwm"), Just("r"), Just("w"), Just("m"), Just("rw"), Just("wm"), Just("")];
    (any::<bool>(), kind, some_number(), some_number(), access).prop_map(|(allow, kind, major, minor, access)| {
        json!({"allow": allow, "type": kind, "major": major, "minor": minor, "access": access})
    })
}

fn some_question() -> impl Strategy<Value = Question> {
    let number = || some_number().prop_map(|number| u32::try_from(number).unwrap_or(7));
    // What the kernel asks: mknod(2) alone, or what an open is for.
    let access = prop_oneof![Just(1_u8), Just(2), Just(4), Just(6)];
    (any::<bool>(), number(), number(), access).prop_map(|(block, major, minor, access)| Question {
        kind: if block { Kind::Block } else { Kind::Char },
        major,
        minor,
        access: Access(access),
    })
}

proptest! {
    #[test]
    fn the_program_says_what_the_rules_say(
        of in prop::collection::vec(some_rule(), 0..12),
        questions in prop::collection::vec(some_question(), 1..40),
    ) {
        let rules = rules(&Value::Array(of));
        let program = rules.program();
        prop_assert!(is_reached_everywhere(&program));
        for question in &questions {
            prop_assert_eq!(run(&program, question), read_plainly(&rules, question), "{:?}", question);
        }
    }

    #[test]
    fn a_list_says_what_the_rules_say_or_is_refused(
        of in prop::collection::vec(some_rule(), 0..6),
        then in prop::collection::vec(some_rule(), 0..6),
        questions in prop::collection::vec(some_question(), 1..40),
    ) {
        let mut controller = Controller { allows: true, exceptions: Vec::new() };
        // The second is an update of the first.
        for rules in [rules(&Value::Array(of)), rules(&Value::Array(then))] {
            let Ok(list) = List::of(&rules) else { continue };
            written(&list, &mut controller);
            for question in &questions {
                prop_assert_eq!(controller.answers(question), read_plainly(&rules, question), "{:?}", question);
            }
            prop_assert_eq!(controller.allows, list.lines("a *:* rwm\n")[0].0 == "devices.allow");
        }
    }
}

#[test]
fn the_disk_is_made_and_not_opened_the_null_device_is_both() {
    let plain = Rules::default();
    let disk = |access: &str| question(Kind::Block, 8, 0, access);
    let null = |access: &str| question(Kind::Char, 1, 3, access);
    let program = plain.program();
    assert!(run(&program, &disk("m")) && run(&program, &null("m")));
    assert!(!run(&program, &disk("r")) && !run(&program, &disk("w")) && !run(&program, &disk("rw")));
    assert!(run(&program, &null("rw")) && run(&program, &question(Kind::Char, 136, 44, "rw")));
    // The same numbers as the null device's, of a disk.
    assert!(!run(&program, &question(Kind::Block, 1, 3, "r")));
    let asked = rules(
        &json!([{"allow": false}, {"allow": true, "type": "b", "major": 8, "minor": 0, "access": "r"}]),
    );
    assert!(run(&asked.program(), &disk("r")) && !run(&asked.program(), &disk("rw")));
    let all = rules(&json!([{"allow": false}, {"allow": true, "access": "rwm"}])).program();
    assert!(run(&all, &disk("rw")) && is_reached_everywhere(&all));
    // A deny of one access is no way around for who asks for two.
    let partly = rules(&json!([{"allow": true}, {"allow": false, "type": "b", "major": 8, "access": "w"}]));
    assert!(run(&partly.program(), &disk("r")) && !run(&partly.program(), &disk("rw")));
}

#[test]
fn a_list_is_written_by_its_differences() {
    let usual = List::of(&Rules::default()).unwrap();
    let first = usual.lines("a *:* rwm\n");
    assert_eq!(
        first[..3],
        [
            ("devices.deny", "a".to_owned()),
            ("devices.allow", "b *:* m".to_owned()),
            ("devices.allow", "c *:* m".to_owned())
        ]
    );
    let mut controller = Controller { allows: true, exceptions: Vec::new() };
    written(&usual, &mut controller);
    assert_eq!(usual.lines(&controller.list()), []);
    let more = rules(&json!([{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}]));
    let more = List::of(&more).unwrap();
    assert_eq!(more.lines(&controller.list()), [("devices.allow", "c 10:229 rw".to_owned())]);
    written(&more, &mut controller);
    assert_eq!(usual.lines(&controller.list()), [("devices.deny", "c 10:229 rw".to_owned())]);
}

#[test]
fn what_v1_cannot_say_is_refused_with_both_rules() {
    let hole = rules(&json!([
        {"allow": true, "type": "c", "major": 10},
        {"allow": false, "type": "c", "major": 10, "minor": 229}
    ]));
    let error = List::of(&hole).unwrap_err();
    assert_eq!(error.kind, crate::Kind::Precondition);
    assert!(
        error.chain().contains("c 10:229 rwm") && error.chain().contains("c 10:* rwm"),
        "{}",
        error.chain()
    );
    // On v2 it is as it was asked for.
    let program = hole.program();
    assert!(run(&program, &question(Kind::Char, 10, 1, "rw")));
    assert!(!run(&program, &question(Kind::Char, 10, 229, "r")));
}

#[test]
fn a_rule_that_no_device_has_is_refused_by_name() {
    for wrong in [
        json!([{"allow": true, "access": "rx"}]),
        json!([{"allow": true, "type": "c", "major": 1_i64 << 32}]),
        json!([{"allow": false, "type": "b", "major": 8, "minor": i64::MAX}]),
    ] {
        let error = Rules::of(&asked(&wrong)).unwrap_err();
        assert_eq!(error.kind, crate::Kind::Invalid, "{wrong}");
    }
    // A pipe is no device: its rule says nothing.
    assert_eq!(rules(&json!([{"allow": true, "type": "p"}])), Rules::default());
}
