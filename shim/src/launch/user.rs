//! Who the container runs as: names and numbers looked up in its own /etc/passwd and /etc/group, `passwd(5)`,
//! `group(5)`. Both are image content: a line that doesn't parse is nobody's.

use std::{io::Read, path::Path};

use berth_launch::v1::{Step, User, user};
use rustix::fs::OFlags;

use super::{
    failure::{Result, fail},
    root::Root,
};

/// More of a file is not read: a passwd of that size is an attack.
const FILE_BYTES: u64 = 4 << 20;

/// A user as numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resolved {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// Resolves a plan's user below a root.
pub fn resolve(root: &Root, user: &User) -> Result<Resolved> {
    decide(user, &read(root, "/etc/passwd"), &read(root, "/etc/group"))
}

/// Resolves a user in the texts of the two files.
fn decide(user: &User, passwd: &str, group: &str) -> Result<Resolved> {
    let entry = match &user.user {
        Some(user::User::UserName(name)) => Some(
            entries(passwd)
                .find(|entry| entry.name == name)
                .ok_or_else(|| fail(Step::User, name, 0, "the image's /etc/passwd has no such user"))?,
        ),
        Some(user::User::Uid(uid)) => entries(passwd).find(|entry| entry.uid == *uid),
        None => entries(passwd).find(|entry| entry.uid == 0),
    };
    let uid = match &user.user {
        Some(user::User::Uid(uid)) => *uid,
        _ => entry.as_ref().map_or(0, |entry| entry.uid),
    };
    let gid = match &user.group {
        Some(user::Group::Gid(gid)) => *gid,
        Some(user::Group::GroupName(name)) => groups(group)
            .find(|entry| entry.name == name)
            .map(|entry| entry.gid)
            .ok_or_else(|| fail(Step::User, name, 0, "the image's /etc/group has no such group"))?,
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut all = vec![gid];
    if let (true, Some(entry)) = (user.image_groups, &entry) {
        all.extend(groups(group).filter(|group| group.has(entry.name)).map(|group| group.gid));
    }
    all.extend(&user.additional_gids);
    let mut groups = Vec::with_capacity(all.len());
    for gid in all {
        if !groups.contains(&gid) {
            groups.push(gid);
        }
    }
    let home = entry.map(|entry| entry.home).filter(|home| !home.is_empty()).unwrap_or("/").to_owned();
    Ok(Resolved { uid, gid, groups, home })
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Group<'_> {
    fn has(&self, user: &str) -> bool {
        self.members.split(',').any(|member| member == user)
    }
}

fn entries(passwd: &str) -> impl Iterator<Item = Entry<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let (uid, gid) = (number(fields.nth(1)?)?, number(fields.next()?)?);
        Some(Entry { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some(Group { name, gid: number(fields.nth(1)?)?, members: fields.next().unwrap_or_default() })
    })
}

/// Digits only: no sign, no blank, nothing that overflows; -1 is no id.
fn number(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|&id| id != u32::MAX)
}

/// The file's text, empty where there is none to be read: a numeric user needs no passwd.
fn read(root: &Root, path: &str) -> String {
    let Ok(file) = root.open(Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) else {
        return String::new();
    };
    let file = std::fs::File::from(file);
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return String::new();
    }
    let mut bytes = Vec::new();
    match file.take(FILE_BYTES).read_to_end(&mut bytes) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbad line\nweb:x:33:44:w:/srv:/bin/sh\nneg:x:-1:0::/:\n1000:x:7:7::/seven:\n";
    const GROUP: &str = "root:x:0:\nweb:x:44:\nlogs:x:50:other,web\nhuge:x:99999999999:web\n";

    fn named(name: &str) -> User {
        User { user: Some(user::User::UserName(name.into())), image_groups: true, ..User::default() }
    }

    #[test]
    fn a_name_gives_its_ids_home_and_the_groups_that_list_it() {
        let who = decide(&User { additional_gids: vec![7, 50], ..named("web") }, PASSWD, GROUP).unwrap();
        assert_eq!(who, Resolved { uid: 33, gid: 44, groups: vec![44, 50, 7], home: "/srv".into() });
    }

    #[test]
    fn a_number_needs_no_entry_and_a_numeric_name_is_not_a_number() {
        let user = User { user: Some(user::User::Uid(1000)), image_groups: true, ..User::default() };
        let who = decide(&user, PASSWD, GROUP).unwrap();
        assert_eq!((who.uid, who.gid, who.home.as_str()), (1000, 0, "/"));
    }

    #[test]
    fn unknown_names_and_unparsable_lines_are_nobody() {
        for name in ["nobody", "neg", "bad line", ""] {
            assert_eq!(decide(&named(name), PASSWD, GROUP).unwrap_err().step(), Step::User, "{name}");
        }
    }
}
