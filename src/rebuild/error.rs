//! Why a bucket was not rebuilt.

use super::copy::SeveralTypes;
use crate::data_dir::{LockError, rebuild_bucket};
use crate::remedy::remedy;
use crate::sanitize::sanitize;
use crate::sink::ReadError;
use std::io;
use std::path::PathBuf;

/// Why a bucket was not rebuilt.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RebuildError {
    /// The server gives no answer, or refuses a request.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The company has no bucket.
    #[error(
        "there is no bucket {0:?}; ingest the files, or write their points with powerview verify --repair"
    )]
    NoBucket(String),
    /// The new bucket was deleted after it was filled.
    #[error("there is no bucket {0:?} any more; the buckets are as before, run it again")]
    NewBucketGone(String),
    /// There is no former bucket.
    #[error("there is no former bucket of {0:?}, so nothing can be undone")]
    NothingToUndo(String),
    /// A rebuild has begun since.
    #[error(
        "the rebuild of {0:?} is not complete; run powerview rebuild again first, or delete the bucket {bucket:?}",
        bucket = rebuild_bucket(.0)
    )]
    Incomplete(String),
    /// There are points, but no files.
    #[error(
        "no file of {company} was found, but its bucket has {points} points; check that -d is the data folder and that its volume is mounted; the buckets are as before",
        company = sanitize(.company)
    )]
    NoFiles { company: String, points: u64 },
    /// The new bucket has points that are not those of the files any more.
    #[error(
        "the bucket {bucket:?} has {points} points that no file gives, because files were removed or replaced since it was filled; delete that bucket and run it again, or keep them with --keep-unexplained"
    )]
    Stale { bucket: String, points: u64 },
    /// The new bucket does not have the points of all files.
    #[error("the new bucket does not have the points of all files: {0}; run it again")]
    NotFilled(String),
    /// Points cannot be copied.
    #[error("points without a file cannot be copied: {0}")]
    NotCopied(String),
    /// Points have a tag that cannot be copied.
    #[error(
        "measurement {measurement:?} has the tag {tag:?}, which InfluxDB returns with no query, so that its points cannot be copied; leave the unexplained points in the former bucket with --yes instead of --keep-unexplained"
    )]
    UnreadableTag {
        measurement: String,
        tag: &'static str,
    },
    /// A field has values of several types, of which a query returns one.
    #[error(
        "{0}, so that its points cannot be copied; leave the unexplained points in the former bucket with --yes instead of --keep-unexplained"
    )]
    SeveralTypes(SeveralTypes),
    /// A name or the value of a tag has a line break, which queries change.
    #[error(
        "measurement {measurement:?} has a line break in {place}, which queries change, so that its points cannot be copied; leave the unexplained points in the former bucket with --yes instead of --keep-unexplained"
    )]
    LineBreak { measurement: String, place: String },
    /// A device is locked for too long.
    #[error(
        "{folder}: {error}; the buckets are as before; {}run it again",
        .error.remedy().map_or_else(String::new, |remedy| format!("{remedy}, then ")),
        folder = sanitize(.folder)
    )]
    Locked {
        /// Below the data folder.
        folder: PathBuf,
        error: LockError,
    },
    /// A bucket cannot be created.
    #[error("cannot create the bucket {bucket:?}: {error}")]
    NotCreated { bucket: String, error: ReadError },
    /// A bucket cannot be renamed.
    #[error("cannot rename the bucket {from:?} to {to:?}: {error}; run {command} again")]
    NotRenamed {
        from: String,
        to: String,
        error: ReadError,
        command: &'static str,
    },
    /// The current bucket was renamed, and could not be renamed back.
    #[error("{error}; until then, there may be no bucket {company:?}")]
    NoName {
        company: String,
        error: Box<RebuildError>,
    },
    /// A folder cannot be listed or opened.
    #[error(
        "{folder}: cannot read the folder: {error}; {}",
        remedy(.error, "check its permissions"),
        folder = sanitize(.folder)
    )]
    Folder {
        /// Below the data folder.
        folder: PathBuf,
        error: io::Error,
    },
}
