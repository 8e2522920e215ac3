//! The text of `--version`.

use crate::config::env_vars::TZDIR;
use crate::time_zone::ZoneDatabase;
use chrono::DateTime;
use std::sync::LazyLock;

/// The version with the commit and the date of the build, as far as known, and the time zone database of this machine.
pub(crate) static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    let mut version = env!("CARGO_PKG_VERSION").to_owned();
    if let Some(commit) = option_env!("POWERVIEW_COMMIT") {
        version += &format!("\ncommit: {commit}");
    }
    if let Some(date) = build_date(env!("POWERVIEW_BUILD_TIME")) {
        version += &format!("\nbuilt: {date}");
    }
    let dir = std::env::var_os("TZDIR").filter(|dir| !dir.is_empty());
    let database = ZoneDatabase::new(dir.unwrap_or_else(|| TZDIR.default.to_string().into()));
    version + &format!("\ntime zone database: {}", database.describe())
});

/// The day, in UTC, of a number of seconds since 1970.
fn build_date(seconds: &str) -> Option<String> {
    let time = DateTime::from_timestamp(seconds.parse().ok()?, 0)?;
    Some(time.format("%Y-%m-%d").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_of_the_build_is_a_day_in_utc() {
        assert_eq!(build_date("0").as_deref(), Some("1970-01-01"));
        assert_eq!(build_date("1735689599").as_deref(), Some("2024-12-31"));
        assert_eq!(build_date("yesterday"), None);
    }
}
