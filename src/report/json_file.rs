//! The JSON report of a run. See docs/specification.md, section 7.
//!
//! Files are written as they are processed, so that memory does not grow with their number. The report gets its name
//! when it is complete.

use super::json::write_json;
use super::{FileReport, RunHead, RunTotals};
use crate::data_dir::{NewFile, create_dir};
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter as _};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes the report to a file or to stdout.
pub(super) struct ReportWriter {
    out: Box<dyn Write + Send>,
    /// The file of the report; none on stdout.
    target: Option<NewFile>,
    /// Whether no file was added yet.
    is_empty: bool,
    /// The first write error.
    failed: Option<io::Error>,
}

impl ReportWriter {
    /// Starts a report in `dir`, which is created if it is missing.
    ///
    /// # Errors
    /// The folder or the file cannot be created.
    pub(super) fn in_dir(dir: &Path, head: &RunHead) -> io::Result<Self> {
        create_dir(dir)?;
        let target = NewFile::create(dir, &format!("tsv_parser_{}.json", head.file_stem()))?;
        let out = BufWriter::new(target.file().try_clone()?);
        Ok(Self::start(Box::new(out), Some(target), head))
    }

    /// Starts a report on stdout.
    pub(super) fn on_stdout(head: &RunHead) -> Self {
        Self::start(Box::new(BufWriter::new(io::stdout())), None, head)
    }

    fn start(out: Box<dyn Write + Send>, target: Option<NewFile>, head: &RunHead) -> Self {
        let mut writer = Self {
            out,
            target,
            is_empty: true,
            failed: None,
        };
        writer.write(|out| {
            CompactFormatter.begin_object(out)?;
            write_fields(out, head, true)?;
            write_key(out, "files", false)?;
            CompactFormatter.begin_array(out)
        });
        writer
    }

    /// Adds the report of a file, on a line of its own.
    pub(super) fn add(&mut self, file: &FileReport) {
        let is_first = std::mem::take(&mut self.is_empty);
        self.write(|out| {
            CompactFormatter.begin_array_value(out, is_first)?;
            out.write_all(b"\n")?;
            write_json(out, file)
        });
    }

    /// Completes the report, calls `before_naming`, gives the report its name and returns its path; none on stdout.
    ///
    /// # Errors
    /// The first write error. The file is removed then.
    pub(super) fn finish(
        mut self,
        totals: &RunTotals,
        before_naming: impl FnOnce(),
    ) -> io::Result<Option<PathBuf>> {
        self.write(|out| {
            out.write_all(b"\n")?;
            CompactFormatter.end_array(out)?;
            write_fields(out, totals, false)?;
            CompactFormatter.end_object(out)?;
            out.write_all(b"\n")?;
            out.flush()
        });
        if let Some(target) = &self.target {
            let synced = target.sync();
            self.write(|_| synced);
        }
        before_naming();
        match (self.failed, self.target) {
            (Some(error), _) => Err(error),
            (None, Some(target)) => target.publish().map(Some),
            (None, None) => Ok(None),
        }
    }

    /// Writes a part of the report unless an earlier write failed.
    fn write(&mut self, part: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
        if self.failed.is_none() {
            self.failed = part(&mut *self.out).err();
        }
    }
}

/// Writes the fields of `value`, a struct, into an open JSON object.
fn write_fields(out: &mut dyn Write, value: &impl Serialize, is_first: bool) -> io::Result<()> {
    let fields = serde_json::to_value(value)?;
    for (n, (name, field)) in fields.as_object().into_iter().flatten().enumerate() {
        write_key(out, name, is_first && n == 0)?;
        write_json(out, field)?;
    }
    Ok(())
}

/// Writes the key of a field into an open JSON object.
fn write_key(out: &mut dyn Write, name: &str, is_first: bool) -> io::Result<()> {
    CompactFormatter.begin_object_key(out, is_first)?;
    write_json(out, &name)?;
    CompactFormatter.begin_object_value(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Counts;
    use crate::report::file::tests::failed;

    fn totals(head: &RunHead) -> RunTotals {
        let counts = Counts {
            nb_files_total: 2,
            nb_files_success: 1,
            nb_files_failed: 1,
            ..Counts::default()
        };
        head.totals(counts, 0, false)
    }

    #[test]
    fn the_report_gets_its_name_when_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let head = RunHead::now(Path::new("/data"), false);
        let mut writer = ReportWriter::in_dir(dir.path(), &head).unwrap();
        writer.add(&failed("/data/x.tsv", "no"));
        writer.add(&failed("/data/y.tsv", "no"));
        assert!(
            std::fs::read_dir(dir.path()).unwrap().flatten().all(|e| e
                .file_name()
                .to_str()
                .unwrap()
                .starts_with('.'))
        );
        let path = writer.finish(&totals(&head), || ()).unwrap().unwrap();
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
            .finish(&totals(&head), || ())
            .unwrap()
            .unwrap();
        let before = std::fs::read(&first).unwrap();
        assert!(
            ReportWriter::in_dir(dir.path(), &head)
                .unwrap()
                .finish(&totals(&head), || ())
                .is_err()
        );
        assert_eq!(std::fs::read(&first).unwrap(), before);
    }
}
