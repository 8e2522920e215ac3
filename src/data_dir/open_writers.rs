//! The processes that have a file open for writing, as far as `/proc` shows them.
//! Source: docs/specification.md, section 9.
//!
//! Used where a lease cannot be had. What `/proc` hides counts as a possible writer.

use super::{Dir, Inode};
use rustix::fs::{AtFlags, FileType, RawDir, stat, statat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::mem::MaybeUninit;
use std::path::Path;

/// Inode number of the first PID namespace (`PROC_PID_INIT_INO` in the kernel).
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Flag of a kernel thread in `/proc/PID/stat` (`PF_KTHREAD`).
const KERNEL_THREAD: u64 = 0x0020_0000;

/// The files that other processes had open for writing at one moment.
#[derive(Debug, Default)]
pub struct OpenWriters {
    open: HashMap<Inode, Vec<u32>>,
    /// Whether some process, or some of its files, could not be looked at.
    incomplete: bool,
}

impl OpenWriters {
    /// Looks through `/proc/*/fd`, for all files.
    pub fn scan() -> Self {
        Self::scan_where(|_| true)
    }

    /// Looks through `/proc/*/fd`, for these files.
    pub fn scan_for(files: &[Inode]) -> Self {
        Self::scan_where(|inode| files.contains(&inode))
    }

    fn scan_where(wanted: impl Fn(Inode) -> bool) -> Self {
        let mut found = Self {
            incomplete: hides_processes(),
            ..Self::default()
        };
        let Ok(processes) = Dir::open(Path::new("/proc")) else {
            found.incomplete = true;
            return found;
        };
        let own = std::process::id();
        for pid in names_in(&processes) {
            let pid = pid.to_str().ok().and_then(|name| name.parse().ok());
            if let Some(pid) = pid.filter(|pid| *pid != own) {
                found.scan_process(pid, &wanted);
            }
        }
        found
    }

    fn scan_process(&mut self, pid: u32, wanted: &impl Fn(Inode) -> bool) {
        let folder = match Dir::open(Path::new(&format!("/proc/{pid}/fd"))) {
            Ok(folder) => folder,
            Err(error) => {
                self.incomplete |= !is_gone(&error) && !opens_no_files(pid);
                return;
            }
        };
        for descriptor in names_in(&folder) {
            // There are thousands of descriptors, and few are files: this one call is all that most of them cost.
            let file = match statat(&folder.fd, &descriptor, AtFlags::empty()) {
                Ok(file) => file,
                // Closed meanwhile, or its process has ended.
                Err(Errno::NOENT | Errno::SRCH) => continue,
                // A process with capabilities that this one lacks: its folder opens, its files do not.
                Err(_) => {
                    self.incomplete = true;
                    return;
                }
            };
            let inode = (file.st_dev, file.st_ino);
            if FileType::from_raw_mode(file.st_mode) != FileType::RegularFile || !wanted(inode) {
                continue;
            }
            // The link's own mode says how the file was opened: 0200 for writing.
            match statat(&folder.fd, &descriptor, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(link) if link.st_mode & 0o200 != 0 => {
                    self.open.entry(inode).or_default().push(pid);
                }
                Ok(_) | Err(Errno::NOENT | Errno::SRCH) => {}
                Err(_) => self.incomplete = true,
            }
        }
    }

    /// The processes that have this file open for writing.
    pub fn of(&self, inode: Inode) -> &[u32] {
        self.open.get(&inode).map_or(&[], Vec::as_slice)
    }

    /// Whether a writer may have gone unseen.
    pub fn is_incomplete(&self) -> bool {
        self.incomplete
    }
}

/// Whether `/proc` leaves out whole processes: those outside of this PID namespace, or those of other users (`hidepid`).
fn hides_processes() -> bool {
    let is_first_namespace =
        stat("/proc/self/ns/pid").is_ok_and(|namespace| namespace.st_ino == FIRST_PID_NAMESPACE);
    !is_first_namespace || stat("/proc/1").is_err()
}

/// Whether a process has no open files for certain: a thread of the kernel, or one that has ended.
fn opens_no_files(pid: u32) -> bool {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) => return is_gone(&error),
    };
    // After the name in parentheses, which may hold anything: state, six numbers, flags.
    let Some((_, fields)) = stat.rsplit_once(')') else {
        return false;
    };
    let mut fields = fields.split_whitespace();
    let state = fields.next();
    let flags = fields.nth(5).and_then(|flags| flags.parse::<u64>().ok());
    matches!(state, Some("Z" | "X")) || flags.is_some_and(|flags| flags & KERNEL_THREAD != 0)
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::SRCH)
    )
}

/// The names in a folder of `/proc`, but for `.` and `..`, until the first error: the process has ended. Read with as few calls
/// as it takes, for there are hundreds of processes.
fn names_in(folder: &Dir) -> Vec<CString> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;
    use std::process::{Command, Stdio};

    #[test]
    fn threads_of_the_kernel_and_the_dead_open_no_files() {
        assert!(!opens_no_files(std::process::id()));
        assert!(opens_no_files(u32::MAX), "no such process");
        // kthreadd, which every kernel has; a container does not show it.
        if fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n") {
            assert!(opens_no_files(2));
        }
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
        let writers = OpenWriters::scan();
        assert_eq!(writers.of(written), [child.id()]);
        assert!(writers.of(read).is_empty());
        assert_eq!(
            OpenWriters::scan_for(&[read, written]).of(written),
            [child.id()]
        );
        assert!(OpenWriters::scan_for(&[read]).of(written).is_empty());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(OpenWriters::scan().of(written).is_empty());
    }

    #[test]
    fn a_process_whose_files_cannot_be_looked_at_makes_the_scan_incomplete() {
        // A process of the same user with a capability, as systemd starts SFTPGo: the kernel hides its files.
        let own = rustix::process::geteuid();
        let mut found = OpenWriters::default();
        found.scan_process(std::process::id(), &|_| true);
        assert!(!found.is_incomplete());
        if !own.is_root() {
            found.scan_process(1, &|_| true);
            assert!(found.is_incomplete(), "the first process is root's");
        }
    }
}
