//! Who a process runs as: an image's `User` looked up in the guest's `/etc/passwd` and `/etc/group`.
//!
//! Lines that make no sense are passed over, as the C library does. A number needs no line.

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
    /// Login shell; empty when the account names none.
    pub shell: String,
}

/// Looks up `user`, `uid`, `user:group`, `uid:gid` or any mixture; root when `spec` is empty. `extra` are further groups.
///
/// # Errors
/// With the name that there is not.
pub fn resolve(
    spec: &str,
    extra: &[String],
    passwd: &str,
    group: &str,
) -> Result<Identity, String> {
    let (user, chosen) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = user.parse().ok();
    let account = accounts(passwd).find(|account| account.name == user).or_else(|| {
        let uid = number?;
        accounts(passwd).find(|account| account.uid == uid)
    });
    let uid = match (&account, number) {
        (Some(account), _) => account.uid,
        (None, Some(uid)) => uid,
        (None, None) => return Err(format!("no user {user:?} in /etc/passwd")),
    };
    let gid = match chosen.filter(|group| !group.is_empty()) {
        Some(name) => group_id(name, group)?,
        None => account.as_ref().map_or(0, |account| account.gid),
    };
    let mut supplementary = Vec::new();
    if let Some(account) = account.as_ref().filter(|_| chosen.is_none()) {
        let member = |group: &Group<'_>| group.members.split(',').any(|name| name == account.name);
        supplementary.extend(groups(group).filter(member).map(|group| group.gid));
    }
    for name in extra {
        supplementary.push(group_id(name, group)?);
    }
    supplementary.sort_unstable();
    supplementary.dedup();
    supplementary.retain(|group| *group != gid);
    let shell = account.as_ref().map_or("", |account| account.shell).to_owned();
    let home = account.map(|account| account.home).filter(|home| home.starts_with('/'));
    Ok(Identity { uid, gid, groups: supplementary, home: home.unwrap_or("/").to_owned(), shell })
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Account { name, uid, gid, home, shell: fields.next().unwrap_or_default() })
    })
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

fn group_id(name: &str, group: &str) -> Result<u32, String> {
    let found = groups(group).find(|group| group.name == name).map(|group| group.gid);
    let number = || name.parse().ok();
    found.or_else(number).ok_or_else(|| format!("no group {name:?} in /etc/group"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nodd\nbad:x:y:z\n\
        sandbox:x:10001:10002::/sandbox:/bin/sh\n1000:x:7:8::/named:/bin/sh\nlost:x:9:9::relative:\n";
    const GROUP: &str =
        "root:x:0:\nwheel:x:10:root,sandbox\nsandbox:x:10002:\nodd:x\ndocker:x:999:other,sandbox\n";

    #[track_caller]
    fn check(spec: &str, extra: &[&str], expected: (u32, u32, &[u32], &str)) {
        let extra: Vec<String> = extra.iter().map(|&name| name.to_owned()).collect();
        let identity = resolve(spec, &extra, PASSWD, GROUP).unwrap();
        let Identity { uid, gid, groups, home, .. } = &identity;
        assert_eq!((*uid, *gid, groups.as_slice(), home.as_str()), expected, "{spec}");
    }

    #[test]
    fn users_and_groups_are_looked_up() {
        check("", &[], (0, 0, &[10], "/root"));
        check("root", &[], (0, 0, &[10], "/root"));
        check("sandbox", &[], (10001, 10002, &[10, 999], "/sandbox"));
        check("10001", &[], (10001, 10002, &[10, 999], "/sandbox"));
        check("sandbox:wheel", &[], (10001, 10, &[], "/sandbox"));
        check("sandbox:10", &["docker", "5"], (10001, 10, &[5, 999], "/sandbox"));
        check("4711", &[], (4711, 0, &[], "/"));
        check("4711:4712", &[], (4711, 4712, &[], "/"));
        check(":wheel", &[], (0, 10, &[], "/root"));
        // A name that is a number counts before the number.
        check("1000", &[], (7, 8, &[], "/named"));
        check("lost", &[], (9, 9, &[], "/"));
    }

    #[test]
    fn the_shell_is_the_accounts() {
        let shell = |spec| resolve(spec, &[], PASSWD, GROUP).unwrap().shell;
        assert_eq!(
            (shell("sandbox"), shell("lost"), shell("4711")),
            ("/bin/sh".into(), String::new(), String::new())
        );
    }

    #[test]
    fn what_there_is_not_is_named() {
        for (spec, expected) in [("nobody", "\"nobody\""), ("0:none", "\"none\""), ("-1", "\"-1\"")]
        {
            let message = resolve(spec, &[], PASSWD, GROUP).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
        assert!(resolve("", &["none".to_owned()], PASSWD, GROUP).is_err());
    }

    proptest! {
        #[test]
        fn any_files_are_read(spec in ".{0,20}", passwd in ".{0,200}", group in ".{0,200}") {
            drop(resolve(&spec, &[], &passwd, &group));
        }

        #[test]
        fn a_written_account_is_found(name in "[a-z]{1,8}", uid in any::<u32>(), gid in any::<u32>()) {
            let passwd = format!("{name}:x:{uid}:{gid}::/h:/bin/sh");
            let identity = resolve(&name, &[], &passwd, "").unwrap();
            prop_assert_eq!((identity.uid, identity.gid, identity.home.as_str()), (uid, gid, "/h"));
        }
    }
}
