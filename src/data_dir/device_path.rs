//! Names that become a bucket, a measurement or a tag: checked once, when a path is read.
//!
//! Source: docs/specification.md, section 1 (folders) and what InfluxDB 2 refuses or reserves.

use crate::sanitize::{needs_escape, sanitize};
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

/// Sub-folders of a device that hold what was dealt with; a sweep never enters them.
pub const PARSED: &str = "parsed";
/// See [`PARSED`].
pub const ERROR: &str = "error";

/// Whether a folder of this name is one of the two that a sweep never enters.
pub fn is_processed_dir(name: &OsStr) -> bool {
    name == PARSED || name == ERROR
}

/// A company's folder name, fit to be an InfluxDB bucket.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Company(String);

/// A campaign's folder name, fit to be a measurement and a tag value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Campaign(String);

/// A device folder's name: the serial number of a master, as far as the person who made the folder knew.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Device(String);

/// Why a folder cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the {level} folder {name:?} cannot be used: {reason}; rename the folder", name = sanitize(.name))]
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
    /// Checks a folder name.
    ///
    /// # Errors
    /// Refuses what is not UTF-8, holds control characters, line breaks or `"`, begins with `_`, or is the
    /// meta bucket's own name.
    pub fn new(name: &OsStr, meta_bucket: &str) -> Result<Self, NameError> {
        let refuse = |reason| Err(NameError::new("company", name, reason));
        let text = match common(name) {
            Ok(text) => text,
            Err(reason) => return refuse(reason),
        };
        if text == meta_bucket {
            return refuse("it is the name of the bucket for PowerView's own reports");
        }
        Ok(Self(text.to_owned()))
    }
}

impl Campaign {
    /// Checks a folder name.
    ///
    /// # Errors
    /// Refuses what is not UTF-8, holds control characters, line breaks or `"`, begins with `_`, begins with `#`
    /// (the server takes such a line for a comment and drops it without a word) or is nothing but backslashes.
    pub fn new(name: &OsStr) -> Result<Self, NameError> {
        let refuse = |reason| Err(NameError::new("campaign", name, reason));
        let text = match common(name) {
            Ok(text) => text,
            Err(reason) => return refuse(reason),
        };
        if text.starts_with('#') {
            return refuse("InfluxDB takes a measurement that begins with '#' for a comment");
        }
        if text.trim_end_matches('\\').is_empty() {
            return refuse("a measurement cannot consist of backslashes");
        }
        Ok(Self(text.to_owned()))
    }
}

impl Device {
    /// Checks a folder name.
    ///
    /// # Errors
    /// Refuses what is not UTF-8 and what holds control characters or line breaks.
    pub fn new(name: &OsStr) -> Result<Self, NameError> {
        match plain_text(name) {
            Ok(text) => Ok(Self(text.to_owned())),
            Err(reason) => Err(NameError::new("device", name, reason)),
        }
    }
}

/// The rules that a company and a campaign share.
fn common(name: &OsStr) -> Result<&str, &'static str> {
    let text = plain_text(name)?;
    if text.starts_with('_') {
        return Err("names that begin with '_' are reserved by InfluxDB");
    }
    if text.contains('"') {
        return Err("InfluxDB accepts no quotation mark in a bucket's name");
    }
    Ok(text)
}

fn plain_text(name: &OsStr) -> Result<&str, &'static str> {
    let text = std::str::from_utf8(name.as_bytes()).map_err(|_| "it is not UTF-8")?;
    if text.trim().is_empty() || text == "." || text == ".." {
        return Err("it is empty or no name");
    }
    if text
        .chars()
        .any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'))
    {
        return Err("it holds a control character or a line break");
    }
    Ok(text)
}

macro_rules! text_of {
    ($($name:ident),*) => {$(
        impl $name {
            /// The name as the folder spells it.
            pub fn as_str(&self) -> &str {
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
text_of!(Company, Campaign, Device);

/// The device folder that a file belongs to, read off its path below the data folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePath {
    /// The company: the bucket.
    pub company: Company,
    /// The campaign: measurement and tag.
    pub campaign: Campaign,
    /// The device folder: a field of the report only.
    pub device: Device,
}

/// Why a path below the data folder is no device's file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DevicePathError {
    /// Fewer than three folders above the file.
    #[error(
        "the file lies too high in the tree: it belongs into <company>/<campaign>/<device>/; move it there"
    )]
    TooHigh,
    /// A folder's name cannot be used.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl DevicePath {
    /// Reads company, campaign and device off the folders of `relative`, a file's folder below the data folder.
    ///
    /// # Errors
    /// Where the file lies too high, or one of the three names cannot be used.
    pub fn of_folder(relative: &Path, meta_bucket: &str) -> Result<Self, DevicePathError> {
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
    fn what_influxdb_refuses_or_reserves_is_no_company() {
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
    fn a_campaign_that_the_server_would_take_for_a_comment_is_refused() {
        assert!(Campaign::new(OsStr::new("#1")).is_err());
        assert!(Campaign::new(OsStr::new("\\\\")).is_err());
        assert!(Campaign::new(OsStr::new("été #1")).is_ok());
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
    fn a_file_above_the_device_folder_lies_too_high() {
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
    fn the_words_of_a_refusal_hold_no_raw_control_character() {
        assert!(
            !company("a\x1b[2Jb")
                .unwrap_err()
                .to_string()
                .contains('\x1b')
        );
    }
}
