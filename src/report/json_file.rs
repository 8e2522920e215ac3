//! The JSON report of a run. See docs/specification.md, section 7.
//!
//! Files are written as they are processed, so that memory does not grow with their number. The report gets its name
//! when it is complete.

use crate::report::{FileReport, RunHead, RunTail, iso, to_json};
use rustix::fs::{AtFlags, CWD, OFlags, RenameFlags, linkat, renameat_with};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The file of a report. It has no name until it is complete, so that a killed run leaves nothing behind.
struct ReportFile {
    dir: PathBuf,
    name: String,
    file: File,
    /// Temporary path, on file systems that do not support unnamed files.
    temporary: Option<PathBuf>,
}

impl ReportFile {
    /// Creates an unnamed file in `dir`, or a hidden one if the file system does not support unnamed files.
    fn create(dir: &Path, name: String) -> io::Result<Self> {
        let unnamed = OpenOptions::new()
            .write(true)
            .mode(0o664)
            .custom_flags(OFlags::TMPFILE.bits().cast_signed())
            .open(dir);
        let (file, temporary) = match unnamed {
            Ok(file) => (file, None),
            Err(_) => {
                let temporary = dir.join(format!(".{name}.tmp"));
                let file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o664)
                    .open(&temporary)?;
                (file, Some(temporary))
            }
        };
        Ok(Self {
            dir: dir.to_owned(),
            name,
            file,
            temporary,
        })
    }

    /// Gives the file its name and returns its path. An existing file is never replaced.
    fn publish(&self) -> io::Result<PathBuf> {
        self.file.sync_all()?;
        let path = self.dir.join(&self.name);
        match &self.temporary {
            None => {
                let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                linkat(CWD, unnamed, CWD, &path, AtFlags::SYMLINK_FOLLOW)?;
            }
            Some(temporary) => renameat_with(CWD, temporary, CWD, &path, RenameFlags::NOREPLACE)?,
        }
        Ok(path)
    }
}

/// Writes the report to a file or to stdout.
pub struct ReportWriter {
    out: Box<dyn Write + Send>,
    /// The file of the report; none on stdout.
    target: Option<ReportFile>,
    files: u64,
    /// The first write error.
    failed: Option<io::Error>,
}

impl ReportWriter {
    /// Starts a report in `dir`, which is created if it is missing.
    ///
    /// # Errors
    /// The folder or the file cannot be created.
    pub fn in_dir(dir: &Path, head: &RunHead) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let target = ReportFile::create(
            dir,
            format!("tsv_parser_{}.json", head.run_id.replace(':', "-")),
        )?;
        let out = BufWriter::new(target.file.try_clone()?);
        Ok(Self::start(Box::new(out), Some(target), head))
    }

    /// Starts a report on stdout.
    pub fn on_stdout(head: &RunHead) -> Self {
        Self::start(Box::new(BufWriter::new(io::stdout())), None, head)
    }

    fn start(out: Box<dyn Write + Send>, target: Option<ReportFile>, head: &RunHead) -> Self {
        let mut writer = Self {
            out,
            target,
            files: 0,
            failed: None,
        };
        let head = format!(
            "{{\"run_id\":{},\"start_time\":{},\"base_folder\":{},\"dry_run\":{},\"files\":[",
            to_json(&head.run_id),
            to_json(&iso(head.start)),
            to_json(&head.base_folder),
            head.dry_run
        );
        writer.write(head.as_bytes());
        writer
    }

    /// Adds the report of a file.
    pub fn add(&mut self, file: &FileReport) {
        let separator: &[u8] = if self.files == 0 { b"\n" } else { b",\n" };
        self.files += 1;
        self.write(separator);
        self.write(to_json(file).as_bytes());
    }

    /// Completes the report, gives it its name and returns its path; none on stdout.
    ///
    /// # Errors
    /// The first write error. The file is removed then.
    pub fn finish(mut self, tail: &RunTail) -> io::Result<Option<PathBuf>> {
        let tail = to_json(tail);
        self.write(b"\n],");
        self.write(tail.trim_start_matches('{').as_bytes());
        self.write(b"\n");
        let flushed = self.out.flush();
        let result = self.failed.take().map_or(flushed, Err);
        let Some(target) = &self.target else {
            return result.map(|()| None);
        };
        let published = result.and_then(|()| target.publish());
        if let (Err(_), Some(temporary)) = (&published, &target.temporary) {
            let _ = std::fs::remove_file(temporary);
        }
        published.map(Some)
    }

    /// Writes bytes unless an earlier write failed.
    fn write(&mut self, bytes: &[u8]) {
        if self.failed.is_none()
            && let Err(error) = self.out.write_all(bytes)
        {
            self.failed = Some(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Status;

    fn tail() -> RunTail {
        RunTail {
            end_time: "e".to_owned(),
            duration_s: 1.5,
            nb_files_total: 2,
            nb_files_success: 1,
            nb_files_failed: 1,
            nb_files_skipped: 0,
            nb_points_total: 3,
            nb_retries: 0,
            outage: false,
            status: "partial_failure",
        }
    }

    fn file(path: &str) -> FileReport {
        FileReport::unread(Path::new(path), None, Status::Error, "no")
    }

    #[test]
    fn the_report_gets_its_name_when_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let head = RunHead::now(Path::new("/data"), false);
        let mut writer = ReportWriter::in_dir(dir.path(), &head).unwrap();
        writer.add(&file("/data/x.tsv"));
        writer.add(&file("/data/y.tsv"));
        assert!(
            std::fs::read_dir(dir.path()).unwrap().flatten().all(|e| e
                .file_name()
                .to_str()
                .unwrap()
                .starts_with('.'))
        );
        let path = writer.finish(&tail()).unwrap().unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(
            name.starts_with("tsv_parser_20") && !name.contains(':'),
            "{name}"
        );
        let report: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(report["files"][1]["file_path"], "/data/y.tsv");
        assert_eq!(report["status"], "partial_failure");
        assert_eq!(report["nb_files_total"], 2);
        assert_eq!(report["run_id"], head.run_id);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_report_never_replaces_another() {
        let dir = tempfile::tempdir().unwrap();
        let head = RunHead::now(Path::new("/data"), false);
        let first = ReportWriter::in_dir(dir.path(), &head)
            .unwrap()
            .finish(&tail())
            .unwrap()
            .unwrap();
        let before = std::fs::read(&first).unwrap();
        assert!(
            ReportWriter::in_dir(dir.path(), &head)
                .unwrap()
                .finish(&tail())
                .is_err()
        );
        assert_eq!(std::fs::read(&first).unwrap(), before);
    }
}
