//! Where channels are known from: the database, the catalogue that is stored in it, and the files of loggers.

use super::known::{IdParts, KnownChannel, KnownChannels, VIRTUAL};
use super::points::{StoredEntries, StoredEntry};
use crate::data_dir::pending_files::{Item, PendingFiles};
use crate::data_dir::{
    CATALOGUE, Campaign, Company, DeviceItem, Dir, OpenError, PARSED, devices_in, is_no_folder,
};
use crate::logger_file::{FormatError, LoggerFile, ReadOptions};
use crate::points::stored_name;
use crate::sanitize::sanitize;
use crate::sink::{
    Field, InfluxReader, Place, PointSource as _, PointVisitor, ReadError, StoredPoint, retried,
};
use crate::time_zone::FileZones;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Number of newest files per device whose headers are read.
const NEWEST_FILES: usize = 3;

/// Adds the channels that the database knows. Returns the entries of the catalogue that is stored.
///
/// # Errors
/// The server gives no answer, or refuses a request.
pub(super) fn add_of_database(
    source: &InfluxReader,
    company: &Company,
    campaign: &Campaign,
    known: &mut KnownChannels,
) -> Result<StoredEntries, ReadError> {
    let bucket = company.as_str();
    if source.find_bucket(bucket)?.is_none() {
        return Ok(StoredEntries::default());
    }
    let measurement = stored_name(campaign.as_str()).unwrap_or_default();
    let channels = retried(|| {
        let mut channels = LastPoints::default();
        source.last_points(bucket, measurement, &mut channels)?;
        Ok(channels.found)
    })?;
    for (time, channel) in channels {
        known.add(time, channel);
    }
    let stored = retried(|| {
        let mut stored = StoredEntries::default();
        let fields = &StoredEntry::FIELDS;
        source.points_of_campaign(bucket, CATALOGUE, measurement, fields, &mut stored)?;
        Ok(stored)
    })?;
    for (id, entry) in &stored.entries {
        if !entry.is_removed() && entry.virtual_channel().is_none() && !id.starts_with(VIRTUAL) {
            // Whatever else describes the channel is newer.
            known.add(
                i64::MIN,
                KnownChannel {
                    id: id.clone(),
                    device: entry.device.clone(),
                    channel: entry.channel.clone(),
                    unit: entry.unit.clone(),
                },
            );
        }
    }
    Ok(stored)
}

/// Collects the channels of series with the times of their last points.
#[derive(Default)]
struct LastPoints {
    found: Vec<(i64, KnownChannel)>,
    current: Option<KnownChannel>,
}

impl PointVisitor for LastPoints {
    fn series(&mut self, tags: &[(String, String)], _: Field<'_>, _: Place) {
        let tag = |key: &str| {
            let tag = tags.iter().find(|(other, _)| other == key);
            tag.map(|(_, value)| value.clone())
        };
        self.current = tag("channel_id").map(|id| KnownChannel {
            // An old script wrote no tag `device`.
            device: tag("device_sn")
                .or_else(|| tag("device"))
                .or_else(|| Some(IdParts::of(&id)?.serial.to_owned()))
                .unwrap_or_default(),
            channel: tag("channel_name").unwrap_or_default(),
            unit: tag("unit").unwrap_or_default(),
            id,
        });
    }

    fn point(&mut self, point: StoredPoint<'_>) {
        let channel = self.current.take();
        self.found
            .extend(channel.map(|channel| (point.time, channel)));
    }
}

/// Adds the channels of the newest files of each device of a campaign. Returns what could not be read.
pub(super) fn add_of_files(
    data: &Arc<Dir>,
    campaign: &Path,
    zones: &FileZones,
    known: &mut KnownChannels,
) -> Vec<String> {
    let mut failures = Vec::new();
    for item in devices_in(data, campaign) {
        let (path, result) = match item {
            DeviceItem::Device(path) => {
                let result = add_of_device(data, &path, zones, known);
                (path, result)
            }
            DeviceItem::Unlisted(path, error) => (path, Err(error)),
            _ => continue,
        };
        if let Err(error) = result {
            failures.push(format!("{}: {error}", sanitize(path)));
        }
    }
    failures
}

fn add_of_device(
    data: &Dir,
    device: &Path,
    zones: &FileZones,
    known: &mut KnownChannels,
) -> io::Result<()> {
    let folder = Arc::new(data.open_below(device)?);
    // With the times of the uploads, the newest last.
    let mut newest: Vec<(i128, PathBuf)> = Vec::new();
    let mut add = |uploaded, path: PathBuf| {
        let position = newest.partition_point(|other| other.0 < uploaded);
        if newest.len() < NEWEST_FILES || position > 0 {
            newest.insert(position, (uploaded, path));
        }
        if newest.len() > NEWEST_FILES {
            newest.remove(0);
        }
    };
    match folder.open_below(Path::new(PARSED)) {
        Ok(parsed) => parsed.for_each_upload(|name, uploaded| {
            add(uploaded, Path::new(PARSED).join(name));
        })?,
        Err(error) if is_no_folder(&error) => {}
        Err(error) => return Err(error),
    }
    for item in PendingFiles::new(&folder, false) {
        if let Item::File(sub, name) = item
            && let Ok(below) = folder.open_below(&sub)
            && let Some(stamp) = below.stamp_of(&name)?
        {
            add(stamp.uploaded_ns(), sub.join(name));
        }
    }
    for (uploaded, path) in newest {
        let parent = folder.open_below(path.parent().unwrap_or(Path::new("")))?;
        let open = match parent.open_file(path.file_name().unwrap_or_default()) {
            Ok(open) => open,
            Err(OpenError::Io(error)) => return Err(error),
            Err(OpenError::Gone | OpenError::NotAFile(_)) => continue,
        };
        let file = match LoggerFile::open(&*open.file, &ReadOptions::new(zones)) {
            Ok(file) => file,
            Err(error) => match FormatError::from(error) {
                FormatError::Read(error) => return Err(error),
                // It fails when it is ingested.
                _ => continue,
            },
        };
        let time = i64::try_from(uploaded / 1_000_000_000).unwrap_or_default();
        for channel in &file.channels().list {
            let stored = |text: &str| stored_name(text).unwrap_or_default().to_owned();
            known.add(
                time,
                KnownChannel {
                    id: stored(&channel.id),
                    device: stored(&channel.serial),
                    channel: stored(&channel.name),
                    unit: stored(&channel.unit),
                },
            );
        }
    }
    Ok(())
}
