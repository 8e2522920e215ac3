//! Company, campaign and device folders, whose names become bucket, measurement and tags.
//!
//! Names are validated once, when a path is parsed, against the rules of InfluxDB 2.
//! See docs/specification.md, section 1.

use crate::sanitize::{needs_escape, sanitize};
use chrono::NaiveDate;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

/// Sub-folder of a device for ingested files. A sweep never enters it.
pub(crate) const PARSED: &str = "parsed";
/// Sub-folder of a device for failed files. A sweep never enters it.
pub(crate) const ERROR: &str = "error";

/// Whether a folder of this name holds processed files (`parsed/` or `error/`).
pub(crate) fn is_processed_dir(name: &OsStr) -> bool {
    name == PARSED || name == ERROR
}

/// The measurement of the hourly summaries, which is no campaign.
pub(crate) const SUMMARIES: &str = "powerview_1h";

/// The measurement of the entries of catalogues, which is no campaign.
pub(crate) const CATALOGUE: &str = "powerview_channels";

/// Whether a measurement has no points of loggers, but what the program computes or stores of them.
pub(crate) fn is_own_measurement(name: &str) -> bool {
    name == SUMMARIES || name == CATALOGUE
}

/// A company's folder name, valid as an InfluxDB bucket name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Company(String);

/// A campaign's folder name, valid as a measurement and as a tag value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Campaign(String);

/// A device folder's name. It should be the master's serial number, but may differ from the one in the file's header.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Device(String);

/// A folder name that is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {level} folder name {name:?}: {reason}; rename the folder", name = sanitize(.name))]
pub struct NameError {
    level: &'static str,
    name: std::ffi::OsString,
    reason: &'static str,
}

impl NameError {
    fn new(level: &'static str, name: &OsStr, reason: &'static str) -> Self {
        Self {
            level,
            name: name.to_owned(),
            reason,
        }
    }
}

impl Company {
    /// Validates a folder name.
    ///
    /// # Errors
    /// If the name is empty or not UTF-8, contains control characters, line breaks or `"`, begins with `_`, or equals
    /// `meta_bucket`.
    pub(crate) fn new(name: &OsStr, meta_bucket: &str) -> Result<Self, NameError> {
        let reject = |reason| Err(NameError::new("company", name, reason));
        let text = match validate_bucket_or_measurement(name) {
            Ok(text) => text,
            Err(reason) => return reject(reason),
        };
        if text == meta_bucket {
            return reject("the name is reserved for the bucket of PowerView's own reports");
        }
        if is_name_of_rebuild(text) {
            return reject(
                "names that end in .rebuild or .before- and a date are reserved for buckets that are rebuilt",
            );
        }
        Ok(Self(text.to_owned()))
    }
}

/// What the name of a new bucket of a company ends in until it is complete.
const REBUILD: &str = ".rebuild";

/// The end of the name of a company's former bucket, before the date.
const BEFORE: &str = ".before-";

/// The name of the bucket that is filled from the files of a company, until it is complete.
pub(crate) fn rebuild_bucket(company: &str) -> String {
    format!("{company}{REBUILD}")
}

/// The name of a company's former bucket. Those of one day are numbered from 1 on, of which the first shows no number.
pub(crate) fn former_bucket(company: &str, day: NaiveDate, number: u32) -> String {
    if number > 1 {
        format!("{company}{BEFORE}{day}-{number}")
    } else {
        format!("{company}{BEFORE}{day}")
    }
}

/// The day and the number in the name of a former bucket of a company.
pub(crate) fn parse_former_bucket(company: &str, name: &str) -> Option<(NaiveDate, u32)> {
    parse_end_of_former(name.strip_prefix(company)?.strip_prefix(BEFORE)?)
}

fn parse_end_of_former(text: &str) -> Option<(NaiveDate, u32)> {
    let (day, number) = match text.split_at_checked(10)? {
        (day, "") => (day, 1),
        (day, number) => (day, number.strip_prefix('-')?.parse().ok()?),
    };
    Some((NaiveDate::parse_from_str(day, "%Y-%m-%d").ok()?, number))
}

/// Whether a bucket of this name is one that is rebuilt or a former one.
pub(crate) fn is_name_of_rebuild(name: &str) -> bool {
    let former = name.rsplit_once(BEFORE);
    name.ends_with(REBUILD) || former.is_some_and(|(_, end)| parse_end_of_former(end).is_some())
}

impl Campaign {
    /// Validates a folder name.
    ///
    /// # Errors
    /// If the name is empty or not UTF-8, contains control characters, line breaks or `"`, begins with `_` or `#`
    /// (InfluxDB silently drops lines that begin with `#`), consists of backslashes only, or contains a backslash before
    /// a space, a comma or `=` (InfluxDB stores such points where no query finds them).
    pub fn new(name: &OsStr) -> Result<Self, NameError> {
        let reject = |reason| Err(NameError::new("campaign", name, reason));
        let text = match validate_bucket_or_measurement(name) {
            Ok(text) => text,
            Err(reason) => return reject(reason),
        };
        match text.trim_end_matches('\\') {
            SUMMARIES => return reject("the name is reserved for hourly summaries"),
            CATALOGUE => return reject("the name is reserved for the catalogues of channels"),
            _ => {}
        }
        if text.starts_with('#') {
            return reject("InfluxDB treats lines that begin with '#' as comments");
        }
        if text.trim_end_matches('\\').is_empty() {
            return reject("a measurement must not consist of backslashes only");
        }
        if ["\\ ", "\\,", "\\="].iter().any(|pair| text.contains(pair)) {
            return reject(
                "InfluxDB hides points whose campaign has a backslash before a space, a comma or '='",
            );
        }
        Ok(Self(text.to_owned()))
    }
}

impl Device {
    /// Validates a folder name.
    ///
    /// # Errors
    /// If the name is empty or not UTF-8, or contains control characters or line breaks.
    pub(crate) fn new(name: &OsStr) -> Result<Self, NameError> {
        match validate_text(name) {
            Ok(text) => Ok(Self(text.to_owned())),
            Err(reason) => Err(NameError::new("device", name, reason)),
        }
    }
}

/// Validates the rules that companies and campaigns share.
fn validate_bucket_or_measurement(name: &OsStr) -> Result<&str, &'static str> {
    let text = validate_text(name)?;
    if text.starts_with('_') {
        return Err("names that begin with '_' are reserved by InfluxDB");
    }
    if text.contains('"') {
        return Err("InfluxDB does not accept quotation marks in bucket names");
    }
    Ok(text)
}

/// Validates the rules that all three folder names share.
fn validate_text(name: &OsStr) -> Result<&str, &'static str> {
    let text = std::str::from_utf8(name.as_bytes()).map_err(|_| "the name is not UTF-8")?;
    if text.trim().is_empty() || text == "." || text == ".." {
        return Err("the name is empty, '.' or '..'");
    }
    if text
        .chars()
        .any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'))
    {
        return Err("the name contains a control character or a line break");
    }
    Ok(text)
}

macro_rules! impl_name {
    ($($name:ident),*) => {$(
        impl $name {
            /// The name of the folder, unescaped.
            pub(crate) fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for c in self.0.chars() {
                    if needs_escape(c) {
                        write!(f, "{}", c.escape_default())?;
                    } else {
                        write!(f, "{c}")?;
                    }
                }
                Ok(())
            }
        }
    )*};
}
impl_name!(Company, Campaign, Device);

/// The device folder that a file belongs to, parsed from the file's path below the data folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DevicePath {
    /// The company, which names the bucket.
    pub company: Company,
    /// The campaign, which names the measurement and a tag.
    pub campaign: Campaign,
    /// The device folder, which is used in reports only.
    pub device: Device,
}

/// Why a path below the data folder does not belong to a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DevicePathError {
    /// Fewer than three folders above the file.
    #[error("file is not in a device folder; move it to <company>/<campaign>/<device>/")]
    TooHigh,
    /// A folder name is not valid.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl DevicePath {
    /// Parses the first three components of `relative`, a folder's path below the data folder.
    ///
    /// # Errors
    /// If there are fewer than three components above `parsed/` or `error/`, or if a name is not valid.
    pub(crate) fn of_folder(relative: &Path, meta_bucket: &str) -> Result<Self, DevicePathError> {
        let mut folders = relative.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        });
        let (Some(company), Some(campaign), Some(device)) =
            (folders.next(), folders.next(), folders.next())
        else {
            return Err(DevicePathError::TooHigh);
        };
        if [company, campaign, device]
            .into_iter()
            .any(is_processed_dir)
        {
            return Err(DevicePathError::TooHigh);
        }
        Ok(Self {
            company: Company::new(company, meta_bucket)?,
            campaign: Campaign::new(campaign)?,
            device: Device::new(device)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn company(name: &str) -> Result<Company, NameError> {
        Company::new(OsStr::new(name), "powerview_meta")
    }

    #[test]
    fn names_that_influxdb_rejects_or_reserves_are_not_companies() {
        for name in [
            "",
            ".",
            "..",
            "_monitoring",
            "a\nb",
            "a\tb",
            "a\"b",
            "powerview_meta",
            "a\u{85}b",
            "a\u{2028}b",
            " ",
        ] {
            assert!(company(name).is_err(), "{name:?}");
        }
        assert!(Company::new(OsStr::from_bytes(b"soci\xe9t\xe9"), "m").is_err());
    }

    #[test]
    fn names_of_buckets_that_are_rebuilt_are_not_companies() {
        let day = NaiveDate::from_ymd_opt(2026, 3, 1).unwrap();
        let names = [
            rebuild_bucket("acme"),
            former_bucket("acme", day, 1),
            former_bucket("acme", day, 12),
        ];
        assert_eq!(
            names,
            [
                "acme.rebuild",
                "acme.before-2026-03-01",
                "acme.before-2026-03-01-12"
            ]
        );
        assert!(names.iter().all(|name| company(name).is_err()));
        assert_eq!(parse_former_bucket("acme", &names[1]), Some((day, 1)));
        assert_eq!(parse_former_bucket("acme", &names[2]), Some((day, 12)));
        assert_eq!(parse_former_bucket("acm", &names[1]), None);
        for name in [
            "rebuild",
            "acme.before-",
            "acme.before-2026-13-01",
            "acme.before-noon",
            "x.rebuilds",
        ] {
            assert!(company(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn ordinary_names_are_companies() {
        for name in [
            "acme",
            "Société Générale",
            "a.b-c_d",
            "東京",
            "a,b=c d",
            "{{x}}",
            "a\\",
        ] {
            assert!(company(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn the_measurement_of_the_summaries_is_no_campaign() {
        for name in [
            "powerview_1h",
            "powerview_1h\\",
            "powerview_channels",
            "powerview_channels\\",
        ] {
            assert!(Campaign::new(OsStr::new(name)).is_err(), "{name}");
        }
        assert!(Campaign::new(OsStr::new("powerview_1")).is_ok());
    }

    #[test]
    fn a_campaign_that_the_server_would_treat_as_a_comment_is_rejected() {
        assert!(Campaign::new(OsStr::new("#1")).is_err());
        assert!(Campaign::new(OsStr::new("\\\\")).is_err());
        assert!(Campaign::new(OsStr::new("été #1")).is_ok());
    }

    #[test]
    fn a_campaign_with_a_backslash_before_an_escaped_character_is_rejected() {
        for name in ["a\\ b", "a\\,b", "a\\=b", "\\ ", "été\\\\ 1"] {
            let error = Campaign::new(OsStr::new(name)).expect_err(name);
            assert!(error.to_string().contains("backslash before"), "{error}");
        }
        for name in ["a\\b", "a b", "a,b=c d", "a \\b", "a\\", "a\\\u{a0}b"] {
            assert!(Campaign::new(OsStr::new(name)).is_ok(), "{name}");
        }
    }

    #[test]
    fn the_first_three_folders_name_the_device() {
        let found = DevicePath::of_folder(Path::new("acme/site/0200/parsed"), "m").unwrap();
        assert_eq!(
            (
                found.company.as_str(),
                found.campaign.as_str(),
                found.device.as_str()
            ),
            ("acme", "site", "0200")
        );
    }

    #[test]
    fn a_file_above_the_device_folder_is_rejected() {
        for path in [
            "",
            "acme",
            "acme/site",
            "acme/site/parsed",
            "acme/error/0200",
        ] {
            assert_eq!(
                DevicePath::of_folder(Path::new(path), "m"),
                Err(DevicePathError::TooHigh),
                "{path}"
            );
        }
    }

    #[test]
    fn the_error_message_contains_no_raw_control_character() {
        assert!(
            !company("a\x1b[2Jb")
                .unwrap_err()
                .to_string()
                .contains('\x1b')
        );
    }
}
