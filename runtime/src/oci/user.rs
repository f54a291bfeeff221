//! Who a container runs as, and by which signal it is asked to stop.

use berth_cri::v1 as cri;
use berth_launch::v1::{self as launch, user};

use super::Request;
use crate::{Error, Result};

/// The plan's user: the person's `user[:group]`, else CRI's security context, else the image's USER.
///
/// # Errors
/// `Invalid` for a group without a user (CRI demands that) and for ids that don't fit.
pub fn user(request: &Request<'_>) -> Result<launch::User> {
    let none = cri::LinuxContainerSecurityContext::default();
    let security = security(request).unwrap_or(&none);
    let image = request.image.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let mut user = match (&request.options.user, &security.run_as_user) {
        (Some(text), _) => parse(text)?,
        (None, Some(uid)) => {
            let uid = id("run_as_user", uid.value)?;
            launch::User { user: Some(user::User::Uid(uid)), ..launch::User::default() }
        }
        (None, None) if !security.run_as_username.is_empty() => launch::User {
            user: Some(user::User::UserName(security.run_as_username.clone())),
            ..launch::User::default()
        },
        (None, None) => parse(&image)?,
    };
    if let Some(gid) = &security.run_as_group {
        if security.run_as_user.is_none() && security.run_as_username.is_empty() {
            return Err(Error::invalid("read user", "run_as_group", "it is given without a user")
                .hint("set run_as_user or run_as_username too"));
        }
        user.group = Some(user::Group::Gid(id("run_as_group", gid.value)?));
    }
    user.additional_gids = security
        .supplemental_groups
        .iter()
        .map(|gid| id("supplemental_groups", *gid))
        .collect::<Result<_>>()?;
    user.additional_gids.extend(&request.place.cdi.additional_gids);
    user.image_groups = security.supplemental_groups_policy() == cri::SupplementalGroupsPolicy::Merge;
    Ok(user)
}

/// docker's `user[:group]`, names or numbers; empty: root.
pub fn parse(text: &str) -> Result<launch::User> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    if text.contains(['\n', '\0']) || group.is_some_and(|group| group.contains(':')) {
        return Err(Error::invalid("read user", format!("{text:?}"), "it is not of the form user[:group]"));
    }
    let user = match user.parse() {
        Ok(uid) => Some(user::User::Uid(uid)),
        Err(_) if user.is_empty() => None,
        Err(_) => Some(user::User::UserName(user.to_owned())),
    };
    let group = group.filter(|group| !group.is_empty()).map(|group| match group.parse() {
        Ok(gid) => user::Group::Gid(gid),
        Err(_) => user::Group::GroupName(group.to_owned()),
    });
    Ok(launch::User { user, group, additional_gids: Vec::new(), image_groups: true })
}

pub fn security<'a>(request: &Request<'a>) -> Option<&'a cri::LinuxContainerSecurityContext> {
    request.config.linux.as_ref()?.security_context.as_ref()
}

fn id(field: &'static str, value: i64) -> Result<u32> {
    u32::try_from(value)
        .map_err(|_| Error::invalid("read user", field, format!("{value} is not between 0 and {}", u32::MAX)))
}

/// A signal's number from its name, with or without `SIG`, or from digits; `RTMIN+n` and `RTMAX-n` too. `signal(7)`.
///
/// # Errors
/// `Invalid` for what is none.
pub fn parse_signal(text: &str) -> Result<u32> {
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match name.parse::<u32>() {
        Ok(number) => Some(number),
        Err(_) => by_name(name),
    };
    number.filter(|number| (1..=64).contains(number)).ok_or_else(|| {
        Error::invalid("read signal", format!("{text:?}"), "there is no such signal")
            .hint("give a name as TERM or SIGTERM, or a number from 1 to 64")
    })
}

fn by_name(name: &str) -> Option<u32> {
    const RTMIN: u32 = 34;
    const RTMAX: u32 = 64;
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return RTMIN.checked_add(offset(rest, '+')?);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return RTMAX.checked_sub(offset(rest, '-')?);
    }
    let alias = match name {
        "CLD" => "CHLD",
        "POLL" => "IO",
        "IOT" => "ABRT",
        "UNUSED" => "SYS",
        name => name,
    };
    let found = nix::sys::signal::Signal::iterator().find(|signal| signal.as_str()[3..] == *alias)?;
    u32::try_from(found as i32).ok()
}

fn offset(rest: &str, sign: char) -> Option<u32> {
    match rest {
        "" => Some(0),
        rest => rest.strip_prefix(sign)?.parse().ok(),
    }
}

/// CRI's stop signal, if one is asked for.
pub fn cri_signal(signal: cri::Signal) -> Option<u32> {
    let name = signal.as_str_name().strip_prefix("SIGNAL_")?;
    match name {
        "RUNTIME_DEFAULT" => None,
        // CRI writes RTMINPLUS3 and RTMAXMINUS2.
        name => parse_signal(&name.replace("PLUS", "+").replace("MINUS", "-")).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        let rows =
            [("TERM", 15), ("SIGKILL", 9), ("sigusr1", 10), ("3", 3), ("RTMIN+3", 37), ("SIGRTMAX-1", 63)];
        for (text, number) in rows {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for text in ["", "0", "65", "NOPE", "RTMIN+40", "-1"] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_signal_of_cri_has_a_number() {
        for number in 0..=256 {
            let Ok(signal) = cri::Signal::try_from(number) else { continue };
            let known = cri_signal(signal).is_some();
            assert_eq!(known, signal != cri::Signal::RuntimeDefault, "{}", signal.as_str_name());
        }
    }

    #[test]
    fn dockers_user_is_names_or_numbers() {
        let user = parse("1000:www").unwrap();
        assert_eq!(user.user, Some(user::User::Uid(1000)));
        assert_eq!(user.group, Some(user::Group::GroupName("www".into())));
        assert_eq!(parse("").unwrap().user, None);
        assert_eq!(parse("app").unwrap().user, Some(user::User::UserName("app".into())));
        assert!(parse("a:b:c").is_err());
    }
}
