//! The points about runs and files that could not be written, kept for a later run. See docs/specification.md, section 7.
//!
//! A file has a block of line protocol. It is removed after the server has accepted it. A run that is killed before that
//! has no effect: the points are sent again with the same tags and times.

use crate::data_dir::{NewFile, create_dir};
use crate::points::Batch;
use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// What the name of the folder adds to that of the reports, which has only reports.
const SUFFIX: &str = ".unsent";

/// The extension of the files.
const EXTENSION: &str = "lp";

/// The maximum size of all files in bytes. Points about runs, which are small, may exceed it.
const MAX_SIZE: u64 = 64 * 1024 * 1024;

/// The maximum number of files.
const MAX_FILES: usize = 10_000;

/// The maximum size of a batch of several files in bytes.
const BATCH_SIZE: u64 = 1024 * 1024;

/// The folder of kept points.
#[derive(Debug)]
pub(crate) struct UnsentPoints {
    dir: PathBuf,
    /// The beginning of the names of this run's files. Those of an earlier run sort before them.
    stem: String,
    /// The measurement of the points about runs.
    run_measurement: &'static str,
}

/// The points of some files.
pub(super) struct KeptBatch {
    /// The points.
    pub points: Batch,
    files: Vec<PathBuf>,
}

impl UnsentPoints {
    /// The folder beside that of the reports.
    pub(crate) fn new(reports: &Path, stem: String, run_measurement: &'static str) -> Self {
        let mut name = reports.file_name().unwrap_or_default().to_owned();
        name.push(SUFFIX);
        Self {
            dir: reports.with_file_name(name),
            stem,
            run_measurement,
        }
    }

    /// Keeps a block of this run under its number. Returns false if there is no room for all of it: then only the point
    /// about the run is kept, or nothing if there are too many files.
    ///
    /// # Errors
    /// The folder or the file cannot be written.
    pub(super) fn keep(&self, block: &[u8], number: u32) -> io::Result<bool> {
        create_dir(&self.dir)?;
        let files = self.files()?;
        let size: u64 = files.iter().map(|(_, size)| size).sum();
        let is_full = size + block.len() as u64 > MAX_SIZE;
        let kept: Vec<_> = block
            .split_inclusive(|byte| *byte == b'\n')
            .filter(|line| !is_full || line.starts_with(self.run_measurement.as_bytes()))
            .collect();
        if kept.is_empty() || files.len() >= MAX_FILES {
            return Ok(false);
        }
        let name = format!("{}-{number:04}.{EXTENSION}", self.stem);
        let file = NewFile::create(&self.dir, &name)?;
        file.file().write_all(&kept.concat())?;
        file.sync()?;
        file.publish()?;
        Ok(!is_full)
    }

    /// The oldest kept points, as many as fit into a batch.
    ///
    /// # Errors
    /// The folder or a file cannot be read.
    pub(super) fn oldest(&self) -> io::Result<Option<KeptBatch>> {
        let mut sorted = self.files()?;
        sorted.sort();
        let (mut text, mut files) = (Vec::new(), Vec::new());
        for (path, size) in sorted {
            if !files.is_empty() && text.len() as u64 + size > BATCH_SIZE {
                break;
            }
            match std::fs::read(&path) {
                Ok(block) => text.extend(block),
                // Another run has sent it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            }
            files.push(path);
        }
        let lines = memchr::memchr_iter(b'\n', &text).count();
        Ok((!files.is_empty()).then(|| KeptBatch {
            points: Batch::plain(text, u32::try_from(lines).unwrap_or(u32::MAX)),
            files,
        }))
    }

    /// Paths and sizes of the files, in no order.
    fn files(&self) -> io::Result<Vec<(PathBuf, u64)>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            if path.extension() == Some(OsStr::new(EXTENSION)) {
                match entry.metadata() {
                    Ok(metadata) => files.push((path, metadata.len())),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(files)
    }
}

impl KeptBatch {
    /// Removes the files.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub(super) fn remove(&self) -> io::Result<()> {
        for path in &self.files {
            match std::fs::remove_file(path) {
                // Another run has sent it, too.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
        Ok(())
    }
}
