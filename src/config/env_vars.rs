//! The environment variables that the program reads.
//!
//! `--help` lists this table, and tests compare docs/operations.md and .env.sample with it. The variables that only the
//! hook, compose or the playbooks read are not in it.

use super::env_file::ConfigError;
use super::parse::choices;
use crate::sanitize::sanitize;
use crate::sink::Flavor;
use clap::ValueEnum;
use std::fmt;
use std::ops::RangeInclusive;

/// An environment variable.
#[derive(Debug)]
pub struct EnvVar {
    /// Its name.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// The value that is used if it is not set.
    pub default: DefaultValue,
    /// What it is, without its values and default.
    pub help: &'static str,
}

/// The kinds of values.
#[derive(Debug)]
pub enum Kind {
    /// Text, such as a name.
    Text,
    /// The path of a folder.
    Path,
    /// An http:// or https:// URL.
    Url,
    /// Text that is never shown.
    Secret,
    /// A duration, in one of the forms that `--help` lists.
    Duration,
    /// A whole number in a range.
    Number(RangeInclusive<u32>),
    /// A decimal number from 0 to 1.
    Share,
    /// On or off.
    Switch,
    /// One or more of a number of shards.
    Shard,
    /// One of several words, which this function lists for people.
    Choice(fn() -> String),
}

/// The default of a variable.
#[derive(Debug)]
pub enum DefaultValue {
    /// A value in the form in which users write it.
    Value(&'static str),
    /// A value that the program determines, described for people.
    Derived(&'static str),
    /// None: the variable must be set.
    Required,
    /// None: the variable is optional.
    Unset,
}

impl EnvVar {
    /// What the variable is and what values it takes, for people.
    pub fn description(&self) -> String {
        let help = self.help;
        match &self.kind {
            Kind::Text | Kind::Path | Kind::Url | Kind::Duration | Kind::Shard => help.to_owned(),
            Kind::Secret => format!("secret: {help}"),
            Kind::Number(range) => format!("{help}, {} to {}", range.start(), range.end()),
            Kind::Share => format!("{help}, 0 to 1"),
            Kind::Switch => format!("{help}: 1 or 0"),
            Kind::Choice(choices) => format!("{help}: {}", choices()),
        }
    }

    /// The error for a value that is not valid. `reason` completes the sentence "which is ..." and has the remedy.
    pub(crate) fn invalid(&self, value: &str, reason: &str) -> ConfigError {
        let name = self.name;
        ConfigError(match self.kind {
            Kind::Secret => format!("{name} is {reason}"),
            _ => format!("{name} is {:?}, which is {reason}", sanitize(value)),
        })
    }
}

impl fmt::Display for DefaultValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Value(text) | Self::Derived(text) => text,
            Self::Required => "required",
            Self::Unset => "",
        })
    }
}

/// A value of `TSV_ON_OUTAGE`: what to do with files during an outage of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnOutage {
    /// Move them to error/ and mark them as retryable
    Error,
    /// Leave them in place for the next run
    Keep,
}

/// A value of `TSV_LOG_LEVEL`. `WARN` and `CRITICAL` are accepted too: callers of the old script set Python's names.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "UPPER")]
pub(crate) enum LogLevel {
    Off,
    #[value(alias = "CRITICAL")]
    Error,
    #[value(alias = "WARN")]
    Warning,
    Info,
    Debug,
    Trace,
}

/// The number of devices processed in parallel.
pub(crate) const JOBS: RangeInclusive<u32> = 1..=64;

/// The number of points per request.
pub(crate) const BATCH_LINES: RangeInclusive<u32> = 1..=100_000;

/// Defines a static item for each variable, and the list of all.
macro_rules! env_vars {
    ($($name:ident, $kind:expr, $default:expr, $help:expr;)*) => {
        $(
            #[doc = $help]
            #[allow(clippy::doc_markdown, rustdoc::bare_urls, reason = "`--help` prints this text")]
            pub static $name: EnvVar = EnvVar {
                name: stringify!($name),
                kind: $kind,
                default: $default,
                help: $help,
            };
        )*

        /// All variables, in the order in which they are listed for people.
        pub static ALL: &[&EnvVar] = &[$(&$name),*];
    };
}

use DefaultValue::{Derived, Required, Unset, Value};
use Kind::{Choice, Duration, Number, Path, Secret, Shard, Share, Switch, Text, Url};

env_vars! {
    INFLUXDB_HOST, Url, Required, "URL of InfluxDB without a path, such as http://127.0.0.1:8086";
    INFLUXDB_URL, Url, Unset, "older name of INFLUXDB_HOST, read if that is not set";
    INFLUXDB_ADMIN_TOKEN, Secret, Required, "token that may write and create buckets";
    INFLUXDB_ORG, Text, Required, "organisation in InfluxDB; may be unset with INFLUXDB_FLAVOR=3";
    INFLUXDB_FLAVOR, Choice(choices::<Flavor>), Value("auto"), "version of InfluxDB";
    TSV_TIMEZONE, Text, Derived("the machine's time zone"), "time zone of files that name none";
    TSV_REPORT_DIR, Path, Derived("<data>/../logs/reports"), "folder of the run reports";
    TSV_META_BUCKET, Text, Value("powerview_meta"), "bucket of the points about runs and files";
    TSV_RETRY_FOR, Duration, Value("60s"), "total time per run spent on retrying failed requests";
    TSV_ON_OUTAGE, Choice(choices::<OnOutage>), Value("error"), "what to do with files during an outage";
    TSV_INCOMPLETE_GRACE_S, Duration, Value("600s"), "age below which a possibly incomplete file stays";
    TSV_LOCK_WAIT_S, Duration, Value("120s"), "longest wait for a device folder locked by another process";
    TSV_SHARD, Shard, Unset, "shard of the companies that this host ingests, such as 2/5, or 2,3/5 for several";
    TSV_SINGLE_HOST, Switch, Value("0"), "no other host uses the data folder, although it is on a network file system or FUSE";
    TSV_MAX_LOSS, Share, Value("0.5"), "share of a file's values that may be lost; a file that loses more fails";
    TSV_ROLLUP, Switch, Value("1"), "update the hourly summaries after files are ingested";
    TSV_MAX_GAP, Duration, Unset, "longest interval between two points that counts as known in the hourly summaries; derived from each day's intervals if unset";
    TSV_LOG_LEVEL, Choice(choices::<LogLevel>), Value("INFO"), "log level";
    TSV_JOBS, Number(JOBS), Derived("number of CPUs, up to 4"), "devices processed in parallel";
    TSV_GZIP, Switch, Value("1"), "compress requests";
    TSV_BATCH_LINES, Number(BATCH_LINES), Value("10000"), "points per request";
    TSV_CONNECT_TIMEOUT_S, Duration, Value("5s"), "limit for connecting to the server";
    TSV_REQUEST_TIMEOUT_S, Duration, Value("30s"), "limit for a request and its response";
    TSV_HEARTBEAT_URL, Secret, Unset, "URL requested when a sweep starts, succeeds or fails";
    TZ, Text, Derived("/etc/localtime"), "time zone of the machine, as for libc";
    TZDIR, Path, Value("/usr/share/zoneinfo"), "folder of the time zone database";
    POWERVIEW_BASE, Path, Value("/srv/powerview"), "folder of the hook on-upload.sh and, if the environment sets it, of .env";
    SFTPGO_CONFIG_DIR, Path, Value("/etc/sftpgo"), "folder of sftpgo.env and sftpgo.json, for check";
    GRAFANA_URL, Url, Unset, "URL of Grafana on this machine";
    GRAFANA_USERNAME, Text, Value("admin"), "administrator of Grafana";
    GRAFANA_PASSWORD, Secret, Unset, "password of that administrator";
}

#[cfg(test)]
mod tests {
    use super::super::parse::{
        parse_duration, parse_http_url, parse_number, parse_share, parse_switch,
    };
    use super::*;

    #[test]
    fn every_default_is_valid() {
        for var in ALL {
            let Value(default) = var.default else {
                continue;
            };
            let valid = match &var.kind {
                Text | Path | Secret => !default.is_empty(),
                Url => parse_http_url(default, "").is_ok(),
                Duration => parse_duration(default).is_ok(),
                Number(range) => parse_number(default, range).is_ok(),
                Share => parse_share(default).is_ok(),
                Switch => parse_switch(default).is_ok(),
                Shard => default.parse::<crate::data_dir::Shard>().is_ok(),
                Choice(choices) => choices().split([',', ' ']).any(|word| word == default),
            };
            assert!(valid, "{}={default}", var.name);
        }
    }
}
