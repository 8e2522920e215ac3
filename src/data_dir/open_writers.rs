//! Finds processes that have a file open for writing, by scanning `/proc`.
//!
//! This is the fallback where leases are not available. Processes that `/proc` hides count as possible writers. See
//! docs/specification.md, section 9.

use super::{Dir, Inode};
use rustix::fs::{AtFlags, FileType, RawDir, stat, statat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::mem::MaybeUninit;
use std::path::Path;

/// Inode number of the initial PID namespace (`PROC_PID_INIT_INO` in the kernel).
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Flag of a kernel thread in `/proc/PID/stat` (`PF_KTHREAD`).
const KERNEL_THREAD: u64 = 0x0020_0000;

/// The files that other processes had open for writing at the time of a scan.
#[derive(Debug, Default)]
pub(crate) struct OpenWriters {
    open: HashMap<Inode, Vec<u32>>,
    /// Whether a process, or some of its files, could not be inspected.
    incomplete: bool,
}

impl OpenWriters {
    /// Scans `/proc/*/fd` for all files.
    pub(crate) fn scan() -> Self {
        Self::scan_where(|_| true)
    }

    /// Scans `/proc/*/fd` for the given files.
    pub(crate) fn scan_for(files: &[Inode]) -> Self {
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
        let own_pid = std::process::id();
        for pid in names_in(&processes) {
            let pid = pid.to_str().ok().and_then(|name| name.parse().ok());
            if let Some(pid) = pid.filter(|pid| *pid != own_pid) {
                found.scan_process(pid, &wanted);
            }
        }
        found
    }

    fn scan_process(&mut self, pid: u32, wanted: &impl Fn(Inode) -> bool) {
        let folder = match Dir::open(Path::new(&format!("/proc/{pid}/fd"))) {
            Ok(folder) => folder,
            Err(error) => {
                self.incomplete |= !is_gone(&error) && !has_no_open_files(pid);
                return;
            }
        };
        for descriptor in names_in(&folder) {
            // Most of the thousands of descriptors are not files and need this one call only.
            let file = match statat(&folder.fd, &descriptor, AtFlags::empty()) {
                Ok(file) => file,
                // The descriptor was closed, or its process has ended.
                Err(Errno::NOENT | Errno::SRCH) => continue,
                // The process has capabilities that this one lacks: its folder can be opened, its files cannot.
                Err(_) => {
                    self.incomplete = true;
                    return;
                }
            };
            let inode = (file.st_dev, file.st_ino);
            if FileType::from_raw_mode(file.st_mode) != FileType::RegularFile || !wanted(inode) {
                continue;
            }
            // The mode of the link shows how the file was opened: 0200 for writing.
            match statat(&folder.fd, &descriptor, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(link) if link.st_mode & 0o200 != 0 => {
                    self.open.entry(inode).or_default().push(pid);
                }
                Ok(_) | Err(Errno::NOENT | Errno::SRCH) => {}
                Err(_) => self.incomplete = true,
            }
        }
    }

    /// The process ids that have this file open for writing.
    pub(crate) fn of(&self, inode: Inode) -> &[u32] {
        self.open.get(&inode).map_or(&[], Vec::as_slice)
    }

    /// Whether the scan may have missed a writer.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.incomplete
    }
}

/// Whether `/proc` hides processes: those outside of this PID namespace, or those of other users (`hidepid`).
fn hides_processes() -> bool {
    let is_initial_namespace =
        stat("/proc/self/ns/pid").is_ok_and(|namespace| namespace.st_ino == INITIAL_PID_NAMESPACE);
    !is_initial_namespace || stat("/proc/1").is_err()
}

/// Whether a process certainly has no open files: a kernel thread, or a process that has ended.
fn has_no_open_files(pid: u32) -> bool {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) => return is_gone(&error),
    };
    // The fields after the name in parentheses, which may contain any character: state, six numbers, flags.
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

/// The names in a folder of `/proc`, without `.` and `..`.
///
/// Stops at the first error, which means that the process has ended. The large buffer saves system calls, because there
/// are hundreds of processes.
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
    fn kernel_threads_and_ended_processes_have_no_open_files() {
        assert!(!has_no_open_files(std::process::id()));
        assert!(has_no_open_files(u32::MAX), "no such process");
        // Every kernel has kthreadd, but it is not visible in a container.
        if fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n") {
            assert!(has_no_open_files(2));
        }
    }

    #[test]
    fn a_writer_in_another_process_is_found_and_a_reader_is_not() {
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
    fn a_process_whose_files_are_hidden_makes_the_scan_incomplete() {
        // The kernel also hides the files of processes with more capabilities, as SFTPGo has under systemd.
        let own_uid = rustix::process::geteuid();
        let mut found = OpenWriters::default();
        found.scan_process(std::process::id(), &|_| true);
        assert!(!found.is_incomplete());
        if !own_uid.is_root() {
            found.scan_process(1, &|_| true);
            assert!(found.is_incomplete(), "the first process belongs to root");
        }
    }
}
