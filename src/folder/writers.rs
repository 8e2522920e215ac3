//! Who has a file open for writing. Source: SPEC section 7: a file that is still being uploaded stays.

use super::{Folder, Inode};
use rustix::fs::{AtFlags, FileType, RawDir, statat};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs;
use std::mem::MaybeUninit;
use std::path::Path;

/// The files that other processes had open for writing at one moment.
#[derive(Debug, Default)]
pub struct Writers {
    open: HashMap<Inode, Vec<u32>>,
    /// The users whose processes could not all be looked into; none where it is not even known whose they are.
    hidden: HashSet<Option<u32>>,
}

impl Writers {
    /// Looks through `/proc/*/fd`, for all files.
    pub fn now() -> Self {
        Self::look(|_| true)
    }

    /// Looks through `/proc/*/fd`, for these files.
    pub fn now_of(files: &[Inode]) -> Self {
        Self::look(|inode| files.contains(&inode))
    }

    fn look(wanted: impl Fn(Inode) -> bool) -> Self {
        let mut found = Self::default();
        let Ok(processes) = Folder::open(Path::new("/proc")) else {
            found.hidden.insert(None);
            return found;
        };
        let own = std::process::id();
        for pid in names_in(&processes) {
            let pid = pid.to_str().ok().and_then(|name| name.parse().ok());
            if let Some(pid) = pid.filter(|pid| *pid != own) {
                found.look_into(pid, &wanted);
            }
        }
        found
    }

    fn look_into(&mut self, pid: u32, wanted: &impl Fn(Inode) -> bool) {
        let folder = match Folder::open(Path::new(&format!("/proc/{pid}/fd"))) {
            Ok(folder) => folder,
            Err(error) => {
                // Gone meanwhile, or a thread of the kernel, which has no command line and opens no file.
                let is_kernels =
                    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.is_empty());
                if error.kind() == std::io::ErrorKind::PermissionDenied && !is_kernels {
                    self.hidden.insert(user_of(pid));
                }
                return;
            }
        };
        for descriptor in names_in(&folder) {
            // There are thousands of descriptors, and few are files: this one call is all that most of them cost.
            let file = match statat(&folder.fd, &descriptor, AtFlags::empty()) {
                Ok(file) => file,
                // So it is with all of this process.
                Err(Errno::ACCESS) => return,
                Err(_) => continue,
            };
            let inode = (file.st_dev, file.st_ino);
            if FileType::from_raw_mode(file.st_mode) != FileType::RegularFile || !wanted(inode) {
                continue;
            }
            // The link's own mode says how the file was opened: 0200 for writing.
            let link = statat(&folder.fd, &descriptor, AtFlags::SYMLINK_NOFOLLOW);
            if link.is_ok_and(|link| link.st_mode & 0o200 != 0) {
                self.open.entry(inode).or_default().push(pid);
            }
        }
    }

    /// The processes that write this file.
    pub fn of(&self, inode: Inode) -> &[u32] {
        self.open.get(&inode).map_or(&[], Vec::as_slice)
    }

    /// Whether a writer of a file that belongs to `owner` may have gone unseen. An upload's file belongs to the user who
    /// uploads it, and of our own user's processes only those with special rights are hidden.
    pub fn may_miss_one_of(&self, owner: u32) -> bool {
        if owner == rustix::process::geteuid().as_raw() {
            self.hidden.contains(&Some(owner)) || self.hidden.contains(&None)
        } else {
            !self.hidden.is_empty()
        }
    }
}

/// The names in a folder of `/proc`, but for `.` and `..`, until the first error: the process has ended. Read with as few calls
/// as it takes, for there are hundreds of processes.
fn names_in(folder: &Folder) -> Vec<CString> {
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(&folder.fd, &mut buffer);
    let mut names = Vec::new();
    while let Some(Ok(entry)) = entries.next() {
        if !entry.file_name().to_bytes().starts_with(b".") {
            names.push(entry.file_name().to_owned());
        }
    }
    names
}

/// The user of a process, which anybody may know.
fn user_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;
    use std::process::{Command, Stdio};

    #[test]
    fn the_user_of_a_process_is_known() {
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(user_of(std::process::id()), Some(own));
        assert_eq!(user_of(0), None);
    }

    #[test]
    fn hidden_processes_of_others_count_for_the_files_of_others_only() {
        let own = rustix::process::geteuid().as_raw();
        let hides = |users: &[Option<u32>]| Writers {
            hidden: users.iter().copied().collect(),
            ..Writers::default()
        };
        assert!(!hides(&[]).may_miss_one_of(own + 1));
        assert!(!hides(&[Some(own + 1)]).may_miss_one_of(own));
        assert!(hides(&[Some(own + 1)]).may_miss_one_of(own + 1));
        assert!(
            hides(&[Some(own + 1)]).may_miss_one_of(own + 2),
            "root may write any file"
        );
        assert!(hides(&[Some(own)]).may_miss_one_of(own));
        assert!(hides(&[None]).may_miss_one_of(own));
    }

    #[test]
    fn another_process_with_the_file_open_for_writing_is_seen_and_a_reader_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let inode = |name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, "x").unwrap();
            let file = fs::metadata(&path).unwrap();
            (file.dev(), file.ino())
        };
        let (written, read) = (inode("w"), inode("r"));
        let mut child = Command::new("sh")
            .args(["-c", "exec 3>>w 4<r; echo ready; read line"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let writers = Writers::now();
        assert_eq!(writers.of(written), [child.id()]);
        assert!(writers.of(read).is_empty());
        assert_eq!(Writers::now_of(&[read, written]).of(written), [child.id()]);
        assert!(Writers::now_of(&[read]).of(written).is_empty());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(Writers::now().of(written).is_empty());
    }
}
