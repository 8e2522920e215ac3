//! Applies the catalogue of a campaign: checks it, stores its entries, and has its virtual channels computed.

use super::applied::{Applied, State, is_catalogue_new};
use super::check::{Catalogue, Checked, check};
use super::known::KnownChannels;
use super::points::{StoredEntries, points};
use super::problem::{Cause, Problems};
use super::sources::{add_of_database, add_of_files};
use super::table::Table;
use super::text::MAX_SIZE;
use super::write::{Extended, extend};
use crate::data_dir::{
    CATALOGUE_FILE, Campaign, Company, DeviceLock, Dir, Inode, LeaseError, LockError, OpenError,
    OpenFile, REFUSAL_FILE, Stamp,
};
use crate::points::{Batch, stored_name};
use crate::rollup::{Rollup, RollupError};
use crate::shutdown::Shutdown;
use crate::sink::{InfluxReader, ReadError, Sink, Stream, WriteError};
use crate::time_zone::FileZones;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How often a catalogue is read that is replaced meanwhile.
const MAX_READS: u32 = 10;

/// The catalogue of a campaign, and what is needed to find its channels.
pub(crate) struct CatalogueOf<'a> {
    pub(crate) data: &'a Arc<Dir>,
    pub(crate) company: &'a Company,
    pub(crate) campaign: &'a Campaign,
    /// For the headers of files. The dates of continued channels begin at midnight in the default zone.
    pub(crate) zones: &'a FileZones,
    pub(crate) lock_wait: Duration,
    pub(crate) stop: &'a Shutdown,
}

/// The database that a catalogue is applied to.
pub(crate) struct Target<'a> {
    pub(crate) source: &'a InfluxReader,
    pub(crate) sink: &'a Sink,
    /// `None` if hourly summaries are turned off.
    pub(crate) rollup: Option<&'a Rollup<'a>>,
}

/// What became of a catalogue.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Its entries are stored.
    Applied {
        /// Their number.
        entries: usize,
        warnings: Vec<String>,
    },
    /// Its entries are stored, but something else is not done. It has to be applied again.
    Incomplete {
        entries: usize,
        warnings: Vec<String>,
        missing: Missing,
    },
    /// It was applied or refused before.
    Unchanged,
    /// There is none.
    Missing,
    /// It has problems. Nothing has changed.
    Refused(Problems),
    /// It is being written. Nothing has changed.
    Writing,
    /// Another process works on the campaign, or the run was stopped. Nothing has changed.
    Busy(String),
    /// The server gives no answer. Nothing has changed.
    Unavailable(String),
    /// The server has not confirmed that it has the entries. It may have them, or not.
    Unconfirmed(String),
    /// The server refuses a request.
    Failed(String),
}

/// What is not done after the entries of a catalogue were stored, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The hourly summaries of virtual channels are not up to date.
    Summaries(String),
    /// It is not noted in the campaign folder that it is applied.
    Note(String),
}

/// Why a catalogue was not read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CatalogueError {
    /// A file or folder of the campaign cannot be read or written.
    #[error("{what}: {error}; check the permissions of the campaign folder")]
    Io {
        what: &'static str,
        error: io::Error,
    },
    #[error("the campaign folder cannot be locked: {0}")]
    Locked(String),
    /// The file was replaced or changed meanwhile.
    #[error("{CATALOGUE_FILE} was changed meanwhile; run it again")]
    Changed,
    /// It cannot be extended.
    #[error("{CATALOGUE_FILE} has problems")]
    Problems(Problems),
}

fn cannot(what: &'static str) -> impl Fn(io::Error) -> CatalogueError {
    move |error| CatalogueError::Io { what, error }
}

/// The channels of a campaign, and why some may be missing.
pub(crate) struct Sources {
    pub(crate) known: KnownChannels,
    /// Which folders of devices cannot be read.
    pub(crate) failures: Vec<String>,
}

/// The file of a catalogue as it was found.
enum Found {
    Nothing,
    /// What it is in English and in French.
    NotAFile((&'static str, &'static str), Inode, Stamp),
    /// It is open for writing, or was changed while it was read.
    Writing,
    File(Vec<u8>, Inode, Stamp),
}

impl CatalogueOf<'_> {
    fn path(&self) -> PathBuf {
        [self.company.as_str(), self.campaign.as_str()]
            .iter()
            .collect()
    }

    fn folder(&self) -> Result<Dir, CatalogueError> {
        self.data
            .open_below(&self.path())
            .map_err(cannot("the campaign folder cannot be opened"))
    }

    /// The channels that files know, and with a server those of the database.
    ///
    /// # Errors
    /// The server gives no answer, or refuses a request.
    pub(crate) fn sources(&self, source: Option<&InfluxReader>) -> Result<Sources, ReadError> {
        let mut known = KnownChannels::default();
        if let Some(source) = source {
            add_of_database(source, self.company, self.campaign, &mut known)?;
        }
        let failures = add_of_files(self.data, &self.path(), self.zones, &mut known);
        Ok(Sources { known, failures })
    }

    /// Checks the catalogue against these channels. `None` if there is none.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn check(&self, known: &KnownChannels) -> Result<Option<Checked>, CatalogueError> {
        let bytes = match read(&self.folder()?)? {
            Found::Nothing => return Ok(None),
            Found::Writing => return Err(CatalogueError::Changed),
            Found::NotAFile((english, french), ..) => {
                let problems = Problems::of_file(Cause::NotAFile(english, french));
                return Ok(Some(Checked {
                    result: Err(problems),
                    warnings: Vec::new(),
                }));
            }
            Found::File(bytes, ..) => bytes,
        };
        Ok(Some(match Table::read_all(&bytes) {
            (Some(table), problems) => check(&table, problems, known, &self.zones.default),
            (None, problems) => Checked {
                result: Err(problems),
                warnings: Vec::new(),
            },
        }))
    }

    /// Writes the catalogue, or adds the channels that it lacks.
    ///
    /// # Errors
    /// It has problems, or cannot be read or written.
    pub(crate) fn extend(&self, known: &KnownChannels) -> Result<Extended, CatalogueError> {
        let folder = self.folder()?;
        let _lock = folder
            .lock(self.lock_wait, self.stop)
            .map_err(|error| CatalogueError::Locked(lock_message(&error)))?;
        let found = read(&folder)?;
        let (existing, before) = match &found {
            Found::Nothing => (None, None),
            Found::File(bytes, inode, stamp) => (Some(bytes.as_slice()), Some((*inode, *stamp))),
            Found::Writing => return Err(CatalogueError::Changed),
            Found::NotAFile((english, french), ..) => {
                let cause = Cause::NotAFile(english, french);
                return Err(CatalogueError::Problems(Problems::of_file(cause)));
            }
        };
        let extended = extend(existing, known).map_err(CatalogueError::Problems)?;
        if let Some(text) = &extended.text {
            let is_unchanged = || Ok(folder.entry_stamp(CATALOGUE_FILE)? == before);
            let is_replaced = folder.replace_file(CATALOGUE_FILE, text, is_unchanged);
            if !is_replaced.map_err(cannot("channels.csv cannot be written"))? {
                return Err(CatalogueError::Changed);
            }
        }
        Ok(extended)
    }

    /// Applies the catalogue. With `only_new`, one that was applied or refused before is left alone.
    ///
    /// # Errors
    /// A file or folder of the campaign cannot be read or written.
    pub(crate) fn apply(
        &self,
        target: &Target<'_>,
        only_new: bool,
    ) -> Result<Outcome, CatalogueError> {
        let folder = self.folder()?;
        let is_done = || -> Result<bool, CatalogueError> {
            let is_new = is_catalogue_new(&folder);
            Ok(only_new && !is_new.map_err(cannot("the campaign folder cannot be read"))?)
        };
        if is_done()? {
            return Ok(Outcome::Unchanged);
        }
        let lock = match self.lock(&folder) {
            Ok(lock) => lock,
            Err(error) => return Ok(Outcome::Busy(lock_message(&error))),
        };
        // Another process may have been quicker.
        if is_done()? {
            return Ok(Outcome::Unchanged);
        }
        let before = Applied::read(&folder);
        let had_virtual = before.is_some_and(|before| before.has_virtual);
        // Without the file, nothing is known of the attempts before.
        let lacks_summaries = before.is_none_or(|before| before.lacks_summaries);
        let refuse = |problems: Problems, has_virtual, inode, stamp: &Stamp| {
            refuse(&folder, &problems)?;
            let mut refused = Applied::new(State::Refused, has_virtual, &folder, inode, stamp);
            refused.lacks_summaries = lacks_summaries;
            refused
                .write(&folder)
                .map_err(cannot(".channels.applied cannot be written"))?;
            Ok(Outcome::Refused(problems))
        };
        let (bytes, inode, stamp) = match read(&folder)? {
            Found::Nothing => return Ok(Outcome::Missing),
            Found::Writing => return Ok(Outcome::Writing),
            Found::NotAFile((english, french), inode, stamp) => {
                let problems = Problems::of_file(Cause::NotAFile(english, french));
                return refuse(problems, had_virtual, inode, &stamp);
            }
            Found::File(bytes, inode, stamp) => (bytes, inode, stamp),
        };
        let (table, problems) = Table::read_all(&bytes);
        let Some(table) = table else {
            return refuse(problems, had_virtual, inode, &stamp);
        };
        target.sink.forget_bucket_id(self.company.as_str());
        let mut known = KnownChannels::default();
        let found = add_of_database(target.source, self.company, self.campaign, &mut known);
        let stored = match found {
            Ok(stored) => stored,
            // What is wrong with its cells is known without the others.
            Err(_) if !problems.is_empty() => {
                return refuse(problems, had_virtual, inode, &stamp);
            }
            Err(error) => return Ok(read_outcome(&error)),
        };
        let had_virtual = had_virtual || stored.virtual_channels().next().is_some();
        let failures = add_of_files(self.data, &self.path(), self.zones, &mut known);
        let checked = check(&table, problems, &known, &self.zones.default);
        let catalogue = match checked.result {
            Ok(catalogue) => catalogue,
            Err(problems) => return refuse(problems, had_virtual, inode, &stamp),
        };
        let mut warnings = checked.warnings;
        warnings.extend(known.unnameable());
        warnings.extend(failures);
        let changed = changed_virtual(&stored, &catalogue);
        let begun = Applied::new(
            State::Begun,
            catalogue.has_virtual() || had_virtual,
            &folder,
            inode,
            &stamp,
        );
        begun
            .write(&folder)
            .map_err(cannot(".channels.applied cannot be written"))?;
        if let Err(error) = self.store(target.sink, &stored, &catalogue) {
            return Ok(write_outcome(&error));
        }
        warnings.extend(remove_refusal(&folder));
        let entries = catalogue.entries.len();
        // After an attempt that ended early, any of them may be missing.
        let changed = (!lacks_summaries).then_some(changed);
        drop(lock);
        let is_concerned = (catalogue.has_virtual() || had_virtual)
            && changed.as_ref().is_none_or(|changed| !changed.is_empty());
        let is_left_out = is_concerned && target.rollup.is_none();
        warnings.extend(is_left_out.then(|| LEFT_OUT.to_owned()));
        let remade = self.remake_virtual(target, &folder, changed.as_ref());
        let missing = if let Err(reason) = remade {
            Some(Missing::Summaries(reason))
        } else {
            let has_virtual = catalogue.has_virtual();
            let mut applied = Applied::new(State::Applied, has_virtual, &folder, inode, &stamp);
            applied.lacks_summaries = is_left_out;
            let reason = self.note(&folder, &begun, &applied)?;
            reason.map(Missing::Note)
        };
        Ok(match missing {
            Some(missing) => Outcome::Incomplete {
                entries,
                warnings,
                missing,
            },
            None => Outcome::Applied { entries, warnings },
        })
    }

    /// Notes that a catalogue is applied, unless another process has begun to apply a newer one meanwhile. Returns why the folder
    /// cannot be locked.
    fn note(
        &self,
        folder: &Dir,
        begun: &Applied,
        applied: &Applied,
    ) -> Result<Option<String>, CatalogueError> {
        let _lock = match self.lock(folder) {
            Ok(lock) => lock,
            Err(error) => return Ok(Some(lock_message(&error))),
        };
        if Applied::read(folder).as_ref() == Some(begun) {
            applied
                .write(folder)
                .map_err(cannot(".channels.applied cannot be written"))?;
        }
        Ok(None)
    }

    fn lock(&self, folder: &Dir) -> Result<DeviceLock, LockError> {
        folder.lock(self.lock_wait, self.stop)
    }

    /// Writes the points of all entries in one request, so that all of them change at once.
    fn store(
        &self,
        sink: &Sink,
        stored: &StoredEntries,
        catalogue: &Catalogue,
    ) -> Result<(), WriteError> {
        let is_gone = |id: &&String| !catalogue.entries.contains_key(*id);
        let removed: BTreeSet<_> = stored.ids().filter(is_gone).cloned().collect();
        let measurement = stored_name(self.campaign.as_str()).unwrap_or_default();
        let (lines, count) = points(measurement, catalogue, &removed);
        if count == 0 {
            return Ok(());
        }
        let bucket = self.company.as_str().into();
        let batch = Batch::plain(lines, count);
        sink.send(&bucket, batch, Stream::Measurements)
            .wait()
            .result
    }

    /// Makes the hourly summaries of virtual channels anew: of those that were changed or removed, or of all.
    fn remake_virtual(
        &self,
        target: &Target<'_>,
        folder: &Dir,
        changed: Option<&BTreeSet<String>>,
    ) -> Result<(), String> {
        let Some(rollup) = target.rollup else {
            return Ok(());
        };
        if changed.is_some_and(BTreeSet::is_empty) {
            return Ok(());
        }
        let lock = || self.lock(folder);
        let written = rollup.remake_virtual(self.company.as_str(), self.campaign, changed, lock);
        written.map(drop).map_err(|error| match error {
            RollupError::Lock(error) => lock_message(&error),
            error => error.to_string(),
        })
    }
}

/// The ids of the virtual channels that were changed, added or removed.
fn changed_virtual(stored: &StoredEntries, catalogue: &Catalogue) -> BTreeSet<String> {
    let before: BTreeMap<_, _> = stored.virtual_channels().collect();
    let now: BTreeMap<_, _> = catalogue.virtual_channels().collect();
    let ids = before.keys().chain(now.keys());
    let is_changed = |id: &&&str| before.get(**id) != now.get(**id).copied();
    ids.filter(is_changed).map(|id| (*id).to_owned()).collect()
}

/// The warning if hourly summaries are turned off.
const LEFT_OUT: &str = "hourly summaries are turned off (TSV_ROLLUP is 0), so those of virtual channels are not made; run powerview rollup when they are on";

/// Removes the reasons of an earlier refusal. Returns why that is not possible.
fn remove_refusal(folder: &Dir) -> Option<String> {
    let error = folder.remove_state_file(REFUSAL_FILE).err()?;
    Some(format!(
        "{REFUSAL_FILE} cannot be removed: {error}; remove it by hand"
    ))
}

fn write_outcome(error: &WriteError) -> Outcome {
    match error {
        WriteError::Outage(_) | WriteError::Unwritten(_) | WriteError::Stopped => {
            Outcome::Unconfirmed(error.to_string())
        }
        WriteError::Partial(_) | WriteError::Rejected(_) | WriteError::Storage(_) => {
            Outcome::Failed(error.to_string())
        }
    }
}

fn read_outcome(error: &ReadError) -> Outcome {
    match error {
        ReadError::Refused(_) => Outcome::Failed(error.to_string()),
        ReadError::Stopped => Outcome::Busy(error.to_string()),
        ReadError::Unavailable(_) | ReadError::Interrupted(_) | ReadError::Late => {
            Outcome::Unavailable(error.to_string())
        }
    }
}

/// What a lock that was not acquired means for a campaign folder.
fn lock_message(error: &LockError) -> String {
    match error {
        LockError::Held { holder, waited } => format!(
            "campaign folder is locked by {holder} (waited {} s)",
            waited.as_secs()
        ),
        error => error.with_remedy(),
    }
}

/// Reads the catalogue of a campaign folder. If another file takes its place meanwhile, that one is read.
fn read(folder: &Dir) -> Result<Found, CatalogueError> {
    for _ in 0..MAX_READS {
        if let Some(found) = read_once(folder)? {
            return Ok(found);
        }
    }
    Ok(Found::Writing)
}

/// Reads the catalogue of a campaign folder. `None` if another file took its place meanwhile.
fn read_once(folder: &Dir) -> Result<Option<Found>, CatalogueError> {
    let cannot_read = cannot("channels.csv cannot be read");
    let open = match folder.open_catalogue() {
        Ok(Some(open)) => open,
        Ok(None) | Err(OpenError::Gone) => return Ok(Some(Found::Nothing)),
        Err(OpenError::NotAFile(what)) => {
            let entry = folder.entry_stamp(CATALOGUE_FILE).map_err(cannot_read)?;
            return Ok(Some(entry.map_or(Found::Nothing, |(inode, stamp)| {
                Found::NotAFile((what, in_french(what)), inode, stamp)
            })));
        }
        Err(OpenError::Io(error)) => return Err(cannot_read(error)),
    };
    let lease = match open.lease() {
        Ok(lease) => Some(lease),
        Err(LeaseError::Writer) => return Ok(Some(Found::Writing)),
        Err(LeaseError::Unavailable(_)) => None,
    };
    let OpenFile { inode, stamp, .. } = open;
    let mut bytes = Vec::new();
    // One byte more, so that the check of the size sees it.
    (&*open.file)
        .take(MAX_SIZE as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(&cannot_read)?;
    let is_intact = lease.is_none_or(|lease| lease.is_intact());
    if !is_intact || open.has_changed().map_err(&cannot_read)? {
        let entry = folder.entry_stamp(CATALOGUE_FILE).map_err(&cannot_read)?;
        // A new file may get the number of the one that it has replaced.
        let is_removed = open.file.metadata().map_err(&cannot_read)?.nlink() == 0;
        let is_same = !is_removed && entry.is_some_and(|entry| entry.0 == inode);
        return Ok(is_same.then_some(Found::Writing));
    }
    Ok(Some(Found::File(bytes, inode, stamp)))
}

fn in_french(what: &str) -> &'static str {
    match what {
        "a symbolic link" => "un lien symbolique",
        "a folder" => "un dossier",
        "a pipe" => "un tube",
        _ => "un périphérique",
    }
}

/// Writes why a catalogue was refused, for those who upload it.
fn refuse(folder: &Dir, problems: &Problems) -> Result<(), CatalogueError> {
    let mut text = "\u{feff}".to_owned();
    let mut push = |line: &str| {
        text.push_str(line);
        text.push_str("\r\n");
    };
    push("Le catalogue channels.csv a été refusé ; rien n'a changé.");
    for problem in problems.french() {
        push(&format!("- {problem}"));
    }
    push("Corrigez le fichier, puis envoyez-le de nouveau. Ce fichier disparaîtra.");
    push("");
    push("The catalogue channels.csv was refused; nothing has changed.");
    for problem in problems.english() {
        push(&format!("- {problem}"));
    }
    push("Correct the file, then upload it again. This file will disappear.");
    folder
        .replace_state_file(REFUSAL_FILE, text.as_bytes())
        .map_err(cannot("channels.error.txt cannot be written"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn folder() -> (tempfile::TempDir, Dir) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Dir::open(dir.path()).unwrap();
        (dir, folder)
    }

    #[test]
    fn a_catalogue_that_another_one_replaces_is_read_whole() {
        let (dir, folder) = folder();
        let path = dir.path().join(CATALOGUE_FILE);
        let replace = |text: &str| {
            let other = dir.path().join("upload");
            std::fs::write(&other, text).unwrap();
            std::fs::rename(&other, &path).unwrap();
        };
        replace("a");
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    replace("a");
                    std::thread::sleep(Duration::from_micros(300));
                }
            });
            let is_whole = |found| matches!(found, Ok(Found::File(bytes, ..)) if bytes == b"a");
            let failures = (0..1_000).filter(|_| !is_whole(read(&folder))).count();
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(failures, 0);
        });
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(read(&folder).unwrap(), Found::Nothing));
    }

    #[test]
    fn that_a_catalogue_is_applied_is_noted_unless_the_folder_is_locked_or_another_one_has_begun() {
        let (dir, folder) = folder();
        std::fs::write(dir.path().join(CATALOGUE_FILE), "a").unwrap();
        let (inode, stamp) = folder.entry_stamp(CATALOGUE_FILE).unwrap().unwrap();
        let [begun, applied] = [State::Begun, State::Applied]
            .map(|state| Applied::new(state, true, &folder, inode, &stamp));
        begun.write(&folder).unwrap();
        let stop = Shutdown::default();
        let catalogue = CatalogueOf {
            data: &Arc::new(Dir::open(dir.path()).unwrap()),
            company: &Company::new("acme".as_ref(), "meta").unwrap(),
            campaign: &Campaign::new("site".as_ref()).unwrap(),
            zones: &FileZones::built_in(chrono_tz::Europe::Paris),
            lock_wait: Duration::ZERO,
            stop: &stop,
        };
        let lock = folder.lock(Duration::ZERO, &stop).unwrap();
        let reason = catalogue.note(&folder, &begun, &applied).unwrap().unwrap();
        assert!(
            reason.starts_with("campaign folder is locked by"),
            "{reason}"
        );
        assert_eq!(Applied::read(&folder), Some(begun));
        drop(lock);
        assert_eq!(catalogue.note(&folder, &applied, &applied).unwrap(), None);
        assert_eq!(Applied::read(&folder), Some(begun));
        assert_eq!(catalogue.note(&folder, &begun, &applied).unwrap(), None);
        assert_eq!(Applied::read(&folder), Some(applied));
    }

    #[test]
    fn what_became_of_a_write_is_only_said_if_it_is_known() {
        let reason = || "no answer".to_owned();
        for error in [
            WriteError::Outage(reason()),
            WriteError::Unwritten(reason()),
            WriteError::Stopped,
        ] {
            assert!(matches!(write_outcome(&error), Outcome::Unconfirmed(_)));
        }
        for error in [ReadError::Unavailable(reason()), ReadError::Late] {
            assert!(matches!(read_outcome(&error), Outcome::Unavailable(_)));
        }
        assert!(matches!(
            read_outcome(&ReadError::Stopped),
            Outcome::Busy(_)
        ));
    }
}
