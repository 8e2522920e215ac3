//! Who has a file open for writing. Source: SPEC section 7: a file that is still being uploaded stays.

use super::{Folder, Inode};
use rustix::fs::{AtFlags, Dir, FileType, statat};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// The files that other processes had open for writing at one moment.
#[derive(Debug, Default)]
pub struct Writers {
    open: HashMap<Inode, Vec<u32>>,
    /// Whether some process could not be looked into: another user's.
    partly_blind: bool,
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
        let Ok(processes) = fs::read_dir("/proc") else {
            found.partly_blind = true;
            return found;
        };
        let own = std::process::id();
        for process in processes.flatten() {
            let Some(pid) = process
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            if pid != own {
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
                self.partly_blind |=
                    error.kind() == std::io::ErrorKind::PermissionDenied && !is_kernels;
                return;
            }
        };
        let Ok(descriptors) = Dir::read_from(&folder.fd) else {
            return;
        };
        for descriptor in descriptors.flatten() {
            let stat = |flags| statat(&folder.fd, descriptor.file_name(), flags);
            // There are thousands of descriptors, and few are files: this one call is all that most of them cost.
            let Ok(file) = stat(AtFlags::empty()) else {
                continue;
            };
            let inode = (file.st_dev, file.st_ino);
            if FileType::from_raw_mode(file.st_mode) != FileType::RegularFile || !wanted(inode) {
                continue;
            }
            // The link's own mode says how the file was opened: 0200 for writing.
            if stat(AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|link| link.st_mode & 0o200 != 0) {
                self.open.entry(inode).or_default().push(pid);
            }
        }
    }

    /// The processes that write this file.
    pub fn of(&self, inode: Inode) -> &[u32] {
        self.open.get(&inode).map_or(&[], Vec::as_slice)
    }

    /// Whether a writer may have gone unseen.
    pub fn partly_blind(&self) -> bool {
        self.partly_blind
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;
    use std::process::{Command, Stdio};

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
