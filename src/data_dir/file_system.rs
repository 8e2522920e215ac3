//! What the file system of a folder guarantees if several hosts use it. See docs/specification.md, section 9.

use rustix::fs::{FsWord, fstatfs};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// The hosts that work on a data folder on a shared file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Hosts {
    /// Several may, on the same device, so that locks must reach all of them.
    #[default]
    Several,
    /// Several, but each only on the companies of its shard. All may write uploads.
    Sharded,
    /// This one only, so that everything holds as on a local file system.
    One,
}

/// A file system that several hosts may share, or that a program provides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SharedFileSystem {
    name: &'static str,
    /// Whether a read lease is granted only if no host has the file open for writing.
    leases_reach_hosts: bool,
}

/// Mount options with which locks are kept by this host alone: those of NFS, SMB, OCFS2 and GFS2, and Lustre.
const LOCAL_LOCK_OPTIONS: [&str; 6] = [
    "local_lock=all",
    "local_lock=flock",
    "nolock",
    "nobrl",
    "localflocks",
    "localflock",
];

impl SharedFileSystem {
    /// The file system of an open file or folder. `None` if it is a local one.
    pub(crate) fn of(fd: impl AsFd) -> io::Result<Option<Self>> {
        Ok(Self::of_type(fstatfs(fd)?.f_type))
    }

    /// A file system by the `f_type` of `statfs`.
    fn of_type(magic: FsWord) -> Option<Self> {
        // The type has a sign on some platforms; all values have 32 bits.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "32 bits"
        )]
        let magic = magic as u32;
        let name = match magic {
            0x6969 => "NFS",
            0x517b | 0xff53_4d42 | 0xfe53_4d42 => "SMB (CIFS)",
            0x6573_5546 => "FUSE",
            0x0102_1997 => "9P",
            0x00c3_6400 => "Ceph",
            0x5346_414f | 0x6b41_4653 => "AFS",
            0x0bd0_0bd0 => "Lustre",
            0x0116_1970 => "GFS2",
            0x7461_636f => "OCFS2",
            0x7375_7245 => "Coda",
            _ => return None,
        };
        // Linux grants a lease on NFS only with a delegation of the server, and on SMB only with an oplock. On the others,
        // it is granted without asking other hosts, or not at all.
        let leases_reach_hosts = matches!(name, "NFS" | "SMB (CIFS)");
        Some(Self {
            name,
            leases_reach_hosts,
        })
    }

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        self.name
    }

    /// Whether a read lease may prove that no host has a file open for writing.
    pub(crate) fn leases_reach_hosts(self) -> bool {
        self.leases_reach_hosts
    }

    /// Whether a read lease on a file that was opened there proves that no host has it open for writing.
    pub(crate) fn lease_excludes_other_hosts(self, fd: impl AsFd) -> bool {
        // SMB has an option that grants leases without the server.
        self.leases_reach_hosts && Mount::of(fd).is_ok_and(|mount| !mount.has_option("locallease"))
    }

    /// Why other hosts do not see the lock that this process holds on an open file, or may not see it. `None` if nothing is
    /// known against it.
    pub(crate) fn reason_of_local_lock(self, locked: impl AsFd) -> Option<LocalLock> {
        let Ok(mount) = Mount::of(locked) else {
            return Some(LocalLock::Unknown);
        };
        let option = LOCAL_LOCK_OPTIONS
            .into_iter()
            .find(|option| mount.has_option(option));
        match option {
            Some(option) => Some(LocalLock::Option(option)),
            // The kernel itself keeps a lock only if the program behind FUSE does not.
            None if self.name == "FUSE" && mount.has_lock => Some(LocalLock::Fuse),
            None => None,
        }
    }
}

/// Why other hosts do not see a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LocalLock {
    /// A mount option keeps locks local.
    Option(&'static str),
    /// The program behind FUSE does not support locks, so the kernel keeps them.
    Fuse,
    /// The mount cannot be examined, because `/proc` is missing or does not list it.
    Unknown,
}

impl LocalLock {
    /// Completes "a lock is" or "locks are" with what other hosts do not do, as far as it is known.
    pub(crate) fn not(self, be: &str) -> String {
        match self {
            Self::Option(_) | Self::Fuse => format!("{be} not"),
            Self::Unknown => "may not be".to_owned(),
        }
    }
}

impl fmt::Display for LocalLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option(option) => write!(f, "it is mounted with {option}"),
            Self::Fuse => f.write_str("the program behind FUSE passes no locks on"),
            Self::Unknown => f.write_str(
                "/proc is missing or does not list its mount, as in a chroot, so that the options of the mount are not known",
            ),
        }
    }
}

/// How the file system of an open file is mounted.
struct Mount {
    /// The options of the mount and of the file system.
    options: String,
    /// Whether the kernel keeps a lock on the open file.
    has_lock: bool,
}

impl Mount {
    fn of(fd: impl AsFd) -> io::Result<Self> {
        let info = fd_info(fd)?;
        let id = info
            .lines()
            .find_map(|line| line.strip_prefix("mnt_id:"))
            .unwrap_or_default()
            .trim();
        // The names of mounted folders may have any bytes.
        let mounts = std::fs::read("/proc/self/mountinfo")?;
        let options =
            options_of(&String::from_utf8_lossy(&mounts), id).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self {
            options,
            has_lock: has_lock(&info),
        })
    }

    fn has_option(&self, wanted: &str) -> bool {
        self.options.split(',').any(|option| option == wanted)
    }
}

/// What the kernel says of an open file.
fn fd_info(fd: impl AsFd) -> io::Result<String> {
    let number = fd.as_fd().as_raw_fd();
    std::fs::read_to_string(format!("/proc/self/fdinfo/{number}"))
}

/// Whether the kernel keeps a lock on the open file.
fn has_lock(info: &str) -> bool {
    info.lines().any(|line| line.starts_with("lock:"))
}

/// The options of the mount with this id in the text of `/proc/self/mountinfo`, those of the mount before those of the file
/// system.
///
/// A line reads `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`.
fn options_of(mounts: &str, id: &str) -> Option<String> {
    let line = mounts
        .lines()
        .find(|line| line.split(' ').next() == Some(id))?;
    let (mount, file_system) = line.split_once(" - ")?;
    let of_mount = mount.split(' ').nth(5)?;
    let of_file_system = file_system.split(' ').next_back()?;
    Some(format!("{of_mount},{of_file_system}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_on_a_network_are_known_and_local_ones_are_not_reported() {
        // The values are those of linux/magic.h and statfs(2).
        for (magic, expected) in [
            (0x6969, Some(("NFS", true))),
            (0xff53_4d42, Some(("SMB (CIFS)", true))),
            (0xfe53_4d42, Some(("SMB (CIFS)", true))),
            (0x6573_5546, Some(("FUSE", false))),
            (0x00c3_6400, Some(("Ceph", false))),
            (0x0116_1970, Some(("GFS2", false))),
            (0xef53, None),      // ext4
            (0x5846_5342, None), // XFS
            (0x9123_683e, None), // Btrfs
            (0x0102_1994, None), // tmpfs
            (0x2fc1_2fc1, None), // ZFS
            (0x794c_7630, None), // overlayfs
        ] {
            let found = SharedFileSystem::of_type(magic);
            let found = found.map(|found| (found.name, found.leases_reach_hosts));
            assert_eq!(found, expected, "{magic:x}");
        }
    }

    #[test]
    fn the_options_of_a_mount_are_found_by_its_id() {
        let mounts = "36 35 98:0 / /data rw,noatime shared:1 - nfs4 server:/data rw,vers=4.2,local_lock=none\n\
                      3 35 98:0 / /other rw - nfs server:/o\\040(x) ro,vers=3,local_lock=all\n";
        assert_eq!(
            options_of(mounts, "36").as_deref(),
            Some("rw,noatime,rw,vers=4.2,local_lock=none")
        );
        assert_eq!(
            options_of(mounts, "3").as_deref(),
            Some("rw,ro,vers=3,local_lock=all")
        );
        assert_eq!(options_of(mounts, "35"), None);
        let mount = Mount {
            options: "rw,ro,vers=3,local_lock=all".to_owned(),
            has_lock: false,
        };
        assert!(mount.has_option("local_lock=all"));
        assert!(!mount.has_option("local_lock"));
    }

    #[test]
    fn a_lock_that_the_kernel_keeps_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("x")).unwrap();
        assert!(!has_lock(&fd_info(&file).unwrap()));
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        assert!(has_lock(&fd_info(&file).unwrap()));
    }
}
