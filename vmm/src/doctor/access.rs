//! Who we are, who owns a device, and how the two come together.
//!
//! Invariant: pure but for [`Me::of_process`] and [`Node::of`].

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The user and groups of this process.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Me {
    pub(super) uid: u32,
    pub(super) user: Option<String>,
    pub(super) groups: Vec<(u32, Option<String>)>,
}

impl Me {
    pub(super) fn of_process() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self::parse(&read("/proc/self/status"), &read("/etc/passwd"), &read("/etc/group"))
    }

    /// Reads `/proc/self/status`, `/etc/passwd` and `/etc/group`.
    fn parse(status: &str, passwd: &str, group: &str) -> Self {
        // "Uid:" and "Gid:" give the real, effective, saved and file system ids: what is opened goes by the last.
        let ids = |key: &str| -> Vec<u32> {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            line.split_ascii_whitespace().filter_map(|id| id.parse().ok()).collect()
        };
        let uid = ids("Uid:").get(3).copied().unwrap_or_default();
        let mut gids: Vec<u32> = ids("Gid:").get(3).copied().into_iter().collect();
        gids.extend(ids("Groups:"));
        gids.sort_unstable();
        gids.dedup();
        Self {
            uid,
            user: name_of(passwd, uid),
            groups: gids.into_iter().map(|gid| (gid, name_of(group, gid))).collect(),
        }
    }

    /// "uid 1000 (alice), groups alice, docker".
    pub(super) fn describe(&self) -> String {
        let groups: Vec<_> =
            self.groups.iter().map(|(gid, name)| named(*gid, name.as_deref())).collect();
        let user = self.user.as_ref().map_or_else(String::new, |user| format!(" ({user})"));
        format!("uid {}{user}, groups {}", self.uid, groups.join(", "))
    }
}

/// Owner and mode of a device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) uid: u32,
    pub(super) owner: Option<String>,
    pub(super) gid: u32,
    pub(super) group: Option<String>,
    pub(super) mode: u32,
}

impl Node {
    pub(super) fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Some(Self {
            uid: found.uid(),
            owner: name_of(&read("/etc/passwd"), found.uid()),
            gid: found.gid(),
            group: name_of(&read("/etc/group"), found.gid()),
            mode: found.mode() & 0o7777,
        })
    }

    /// "root:kvm 0660".
    pub(super) fn describe(&self) -> String {
        let owner = named(self.uid, self.owner.as_deref());
        format!("{owner}:{} {:04o}", named(self.gid, self.group.as_deref()), self.mode)
    }

    /// What gives `me` read and write access, with the least that is needed.
    pub(super) fn fix(&self, path: &Path, me: &Me) -> String {
        let path = path.display();
        let user = me.user.clone().unwrap_or_else(|| me.uid.to_string());
        let member = me.groups.iter().any(|(gid, _)| *gid == self.gid);
        match &self.group {
            // To join root's group would give much more than this device.
            Some(group) if self.mode & 0o060 == 0o060 && self.gid != 0 && !member => {
                format!("sudo usermod -aG {group} {user}, then log in again")
            }
            _ => format!("sudo setfacl -m u:{user}:rw {path}   (until the device is made again)"),
        }
    }
}

fn named(id: u32, name: Option<&str>) -> String {
    name.map_or_else(|| id.to_string(), str::to_owned)
}

/// The name of `id` in a file of lines "name:password:id:...".
fn name_of(file: &str, id: u32) -> Option<String> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str =
        "Name:\tx\nUid:\t0\t1000\t1000\t1000\nGid:\t1000\t1000\t1000\t1000\nGroups:\t27 1000 \n";
    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:alice\nkvm:x:108:\n";

    fn node(gid: u32, group: Option<&str>, mode: u32) -> Node {
        let (owner, group) = (Some("root".to_owned()), group.map(str::to_owned));
        Node { uid: 0, owner, gid, group, mode }
    }

    #[test]
    fn a_user_is_described_by_what_access_goes_by() {
        let me = Me::parse(STATUS, PASSWD, GROUP);
        assert_eq!(me.describe(), "uid 1000 (alice), groups sudo, 1000");
        assert_eq!(Me::parse("", "", "").describe(), "uid 0, groups ");
    }

    #[test]
    fn the_fix_gives_no_more_than_is_needed() {
        let me = Me::parse(STATUS, PASSWD, GROUP);
        let path = Path::new("/dev/kvm");
        let acl = "sudo setfacl -m u:alice:rw /dev/kvm   (until the device is made again)";
        for (node, described, fix) in [
            (
                node(108, Some("kvm"), 0o660),
                "root:kvm 0660",
                "sudo usermod -aG kvm alice, then log in again",
            ),
            (node(0, Some("root"), 0o660), "root:root 0660", acl),
            (node(108, Some("kvm"), 0o600), "root:kvm 0600", acl),
            (node(27, Some("sudo"), 0o660), "root:sudo 0660", acl),
            (node(999, None, 0o660), "root:999 0660", acl),
        ] {
            assert_eq!(node.describe(), described);
            assert_eq!(node.fix(path, &me), fix, "{described}");
        }
    }
}
