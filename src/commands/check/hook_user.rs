//! The user of the hook, whose rights are checked if root runs `powerview check`.

use crate::data_dir::{DeviceItem, Dir, devices};
use crate::sanitize::sanitize;
use rustix::fs::Gid;
use rustix::process::{Uid, geteuid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

/// A user with its groups.
#[derive(Debug)]
pub(super) struct HookUser {
    uid: u32,
    gid: u32,
    /// The groups in which /etc/group lists the user.
    groups: Vec<u32>,
    /// The name, if /etc/passwd has one.
    name: Option<String>,
}

impl HookUser {
    /// The owner of the data folder, or if that is root, of the first device folder that belongs to another user. `None` if
    /// this process does not run as root or there is no such user.
    pub(super) fn find(data: &Path) -> Option<Self> {
        if !geteuid().is_root() {
            return None;
        }
        let owner = |path: &Path| {
            let folder = path.metadata().ok()?;
            (folder.uid() != 0).then(|| (folder.uid(), folder.gid()))
        };
        let (uid, gid) = owner(data).or_else(|| {
            let folder = Arc::new(Dir::open(data).ok()?);
            devices(&folder).find_map(|item| match item {
                DeviceItem::Device(device) => owner(&data.join(device)),
                _ => None,
            })
        })?;
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Some(Self::of(
            uid,
            gid,
            &read("/etc/passwd"),
            &read("/etc/group"),
        ))
    }

    /// The user `uid` in the files of users and groups. A user who is not in them has only the group `gid`.
    fn of(uid: u32, gid: u32, passwd: &str, group: &str) -> Self {
        let user = passwd.lines().find_map(|line| {
            let fields: Vec<_> = line.split(':').collect();
            let is_user = fields.get(2)?.parse() == Ok(uid);
            is_user.then(|| Some((fields[0].to_owned(), fields.get(3)?.parse().ok()?)))?
        });
        let Some((name, gid)) = user else {
            return Self {
                uid,
                gid,
                groups: vec![gid],
                name: None,
            };
        };
        let others = group.lines().filter_map(|line| {
            let fields: Vec<_> = line.split(':').collect();
            let is_member = fields.get(3)?.split(',').any(|member| member == name);
            is_member.then(|| fields[2].parse().ok())?
        });
        Self {
            uid,
            gid,
            groups: others.chain([gid]).collect(),
            name: Some(name),
        }
    }

    /// Does something with the rights of this user, in a thread of its own. Other threads keep theirs.
    pub(super) fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, || {
                let groups: Vec<_> = self.groups.iter().map(|id| Gid::from_raw(*id)).collect();
                let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
                set_thread_groups(&groups)?;
                set_thread_res_gid(gid, gid, gid)?;
                set_thread_res_uid(uid, uid, uid)?;
                Ok(action())
            })?;
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl fmt::Display for HookUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(&sanitize(name)),
            None => write!(f, "with the id {}", self.uid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_of_a_user_are_those_of_both_files() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nsftpgo:x:998:997::/srv/sftpgo:/usr/sbin/nologin\n";
        let group =
            "root:x:0:\nsftpgo:x:997:\nloggers:x:50:anna,sftpgo\nothers:x:51:sftpgo2\nbroken\n";
        let user = HookUser::of(998, 5, passwd, group);
        assert_eq!((user.gid, &user.groups[..]), (997, &[50, 997][..]));
        assert_eq!(user.to_string(), "sftpgo");
        let unknown = HookUser::of(12345, 5, passwd, group);
        assert_eq!((unknown.gid, &unknown.groups[..]), (5, &[5][..]));
        assert_eq!(unknown.to_string(), "with the id 12345");
    }
}
