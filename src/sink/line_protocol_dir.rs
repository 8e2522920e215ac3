//! One file of line protocol a bucket: the way to run with nothing installed. Source: docs/specification.md, section 8.

use super::WriteError;
use crate::config::ConfigError;
use crate::points::Batch;
use crate::sanitize::sanitize;
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// A folder of `<bucket>.lp`.
#[derive(Debug)]
pub struct LineProtocolDir {
    dir: PathBuf,
}

impl LineProtocolDir {
    /// Makes the folder if it is missing.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub fn new(dir: &Path) -> Result<Self, ConfigError> {
        std::fs::create_dir_all(dir).map_err(|error| {
            ConfigError(format!(
                "the folder {} cannot be made: {error}; correct --line-protocol-dir",
                sanitize(dir)
            ))
        })?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Appends the batch to its bucket's file, under a lock that dies with its holder. A half line that a killed run left is
    /// cut off first.
    ///
    /// # Errors
    /// [`WriteError::Storage`]; the file then ends where it did before.
    pub fn append(&self, bucket: &str, batch: &Batch) -> Result<(), WriteError> {
        let path = self.path(bucket);
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .create(true)
                .read(true)
                .append(true)
                .open(&path)?;
            flock(&file, FlockOperation::LockExclusive)?;
            let is_file = file.metadata()?.is_file();
            let end = if is_file { cut_half_line(&file)? } else { 0 };
            let result = if batch.gzip {
                batch.text().and_then(|text| file.write_all(&text))
            } else {
                file.write_all(&batch.body)
            };
            if result.is_err() && is_file {
                file.set_len(end)?;
            }
            result
        };
        write().map_err(|error| storage(&path, &error))
    }

    /// Brings what was appended to the disk.
    ///
    /// # Errors
    /// [`WriteError::Storage`].
    pub fn sync(&self, bucket: &str) -> Result<(), WriteError> {
        let path = self.path(bucket);
        let sync = || -> io::Result<()> {
            let file = File::open(&path)?;
            if file.metadata()?.is_file() {
                file.sync_all()?;
            }
            File::open(&self.dir)?.sync_all()
        };
        match sync() {
            // Nothing was written to this bucket.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(|error| storage(&path, &error)),
        }
    }

    fn path(&self, bucket: &str) -> PathBuf {
        self.dir.join(format!("{bucket}.lp"))
    }
}

fn storage(path: &Path, error: &io::Error) -> WriteError {
    let remedy = match error.kind() {
        // A company's folder may have a name of 255 bytes, and `.lp` comes behind it.
        io::ErrorKind::InvalidFilename => {
            "the company's name is too long for a file's, give its folder a shorter one"
        }
        _ => "make room or correct --line-protocol-dir",
    };
    WriteError::Storage(format!(
        "{} cannot be written: {error}; {remedy}, the input stays where it is",
        sanitize(path)
    ))
}

/// Cuts off what follows the last line break. Returns the file's length afterwards.
fn cut_half_line(file: &File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut end = length;
    let mut block = [0; 4096];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let part = &mut block[..usize::try_from(end - start).unwrap_or_default()];
        file.read_exact_at(part, start)?;
        if let Some(last) = memchr::memrchr(b'\n', part) {
            end = start + last as u64 + 1;
            break;
        }
        end = start;
    }
    if end < length {
        file.set_len(end)?;
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(text: &str) -> Batch {
        Batch::plain(text.as_bytes().to_vec(), 1)
    }

    #[test]
    fn a_half_line_that_a_killed_run_left_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let sink = LineProtocolDir::new(dir.path()).unwrap();
        for (before, after) in [
            ("", "new 1\n"),
            ("old 1\n", "old 1\nnew 1\n"),
            ("old 1\nhal", "old 1\nnew 1\n"),
            ("half", "new 1\n"),
        ] {
            std::fs::write(dir.path().join("b.lp"), before).unwrap();
            sink.append("b", &batch("new 1\n")).unwrap();
            assert_eq!(
                std::fs::read_to_string(dir.path().join("b.lp")).unwrap(),
                after
            );
        }
        std::fs::write(
            dir.path().join("b.lp"),
            format!("a\n{}", "x".repeat(10_000)),
        )
        .unwrap();
        sink.append("b", &batch("new 1\n")).unwrap();
        assert_eq!(
            std::fs::read_to_string(dir.path().join("b.lp")).unwrap(),
            "a\nnew 1\n"
        );
    }

    #[test]
    fn a_name_that_is_too_long_for_a_file_is_no_matter_of_room() {
        let dir = tempfile::tempdir().unwrap();
        let sink = LineProtocolDir::new(dir.path()).unwrap();
        let failure = sink
            .append(&"x".repeat(255), &batch("new 1\n"))
            .unwrap_err();
        assert!(
            matches!(&failure, WriteError::Storage(words) if words.contains("too long") && !words.contains("room")),
            "{failure}"
        );
    }

    #[test]
    fn a_full_disk_is_a_failure_of_the_storage() {
        let dir = tempfile::tempdir().unwrap();
        let sink = LineProtocolDir::new(dir.path()).unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join("b.lp")).unwrap();
        let failure = sink.append("b", &batch("new 1\n")).unwrap_err();
        assert!(
            matches!(&failure, WriteError::Storage(words) if words.contains("No space left")),
            "{failure}"
        );
    }
}
