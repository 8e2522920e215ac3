//! The report's document, written as the run goes, so that memory does not grow with the number of files, and given its name
//! only when it is whole. Source: docs/specification.md, section 7.

use crate::report::{FileReport, RunHead, RunTail, iso, to_json};
use rustix::fs::{AtFlags, CWD, OFlags, RenameFlags, linkat, renameat_with};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// A report's file. It has no name until it is whole, so that a killed run leaves nothing behind.
struct Place {
    dir: PathBuf,
    name: String,
    file: File,
    /// Its name meanwhile, on a file system that knows no files without one.
    temporary: Option<PathBuf>,
}

impl Place {
    fn make(dir: &Path, name: String) -> io::Result<Self> {
        let nameless = OpenOptions::new()
            .write(true)
            .mode(0o664)
            .custom_flags(OFlags::TMPFILE.bits().cast_signed())
            .open(dir);
        let (file, temporary) = match nameless {
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

    /// Gives the file its name, never over another run's report.
    fn publish(&self) -> io::Result<PathBuf> {
        self.file.sync_all()?;
        let path = self.dir.join(&self.name);
        match &self.temporary {
            None => {
                let nameless = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                linkat(CWD, nameless, CWD, &path, AtFlags::SYMLINK_FOLLOW)?;
            }
            Some(temporary) => renameat_with(CWD, temporary, CWD, &path, RenameFlags::NOREPLACE)?,
        }
        Ok(path)
    }
}

/// The document on its way to a file or to stdout.
pub struct ReportWriter {
    out: Box<dyn Write + Send>,
    /// Where it belongs; none on stdout.
    place: Option<Place>,
    files: u64,
    failed: Option<io::Error>,
}

impl ReportWriter {
    /// Begins the report in `dir`, which is made if it is missing.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn in_dir(dir: &Path, head: &RunHead) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let place = Place::make(
            dir,
            format!("tsv_parser_{}.json", head.run_id.replace(':', "-")),
        )?;
        let out = BufWriter::new(place.file.try_clone()?);
        Ok(Self::begin(Box::new(out), Some(place), head))
    }

    /// Begins the report on stdout.
    pub fn on_stdout(head: &RunHead) -> Self {
        Self::begin(Box::new(BufWriter::new(io::stdout())), None, head)
    }

    fn begin(out: Box<dyn Write + Send>, place: Option<Place>, head: &RunHead) -> Self {
        let mut writer = Self {
            out,
            place,
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

    /// Adds a file.
    pub fn add(&mut self, file: &FileReport) {
        let separator: &[u8] = if self.files == 0 { b"\n" } else { b",\n" };
        self.files += 1;
        self.write(separator);
        self.write(to_json(file).as_bytes());
    }

    /// Ends the document and gives it its name. Returns where it is.
    ///
    /// # Errors
    /// The first that any write had; nothing is left then.
    pub fn finish(mut self, tail: &RunTail) -> io::Result<Option<PathBuf>> {
        let tail = to_json(tail);
        self.write(b"\n],");
        self.write(tail.trim_start_matches('{').as_bytes());
        self.write(b"\n");
        let flushed = self.out.flush();
        let result = self.failed.take().map_or(flushed, Err);
        let Some(place) = &self.place else {
            return result.map(|()| None);
        };
        let published = result.and_then(|()| place.publish());
        if let (Err(_), Some(temporary)) = (&published, &place.temporary) {
            let _ = std::fs::remove_file(temporary);
        }
        published.map(Some)
    }

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
    fn the_document_is_whole_and_has_its_name_only_at_the_end() {
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
        let place = writer.finish(&tail()).unwrap().unwrap();
        let name = place.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(
            name.starts_with("tsv_parser_20") && !name.contains(':'),
            "{name}"
        );
        let report: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(place).unwrap()).unwrap();
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
