//! The time zone of the machine, found as libc does: `TZ`, else /etc/localtime. See docs/specification.md, section 3.
//!
//! Only the rules count, as in libc. The name is shown to people, and only if it fits the rules: where a container
//! mounts another zone's file over the target of the link /etc/localtime, the link still names Etc/UTC, and a copied
//! file has no name.

use crate::sanitize::sanitize;
use crate::time_zone::{
    Offsets, RulesSource, TimeZone, ZoneDatabase, is_zone_name, read_regular, read_zone_file,
};
use chrono::{NaiveDate, NaiveTime, Offset as _, TimeZone as _};
use chrono_tz::Tz;
use std::io;
use std::path::{Path, PathBuf};

/// Paths of the system's time zone settings.
#[derive(Debug, Clone)]
pub(super) struct ZonePaths {
    /// The zone file or a link to it.
    pub localtime: PathBuf,
    /// A text file with the zone's name, as on Debian.
    pub timezone: PathBuf,
}

impl Default for ZonePaths {
    fn default() -> Self {
        Self {
            localtime: "/etc/localtime".into(),
            timezone: "/etc/timezone".into(),
        }
    }
}

/// A time zone and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundZone {
    /// The zone.
    pub zone: TimeZone,
    /// The variable, option or file, for people.
    pub source: String,
}

/// The zone of the machine: `TZ` in any form that libc accepts, else /etc/localtime. An empty `TZ` counts as unset.
///
/// # Errors
/// The source, if it contains neither rules nor a known name.
pub(super) fn machine_zone(
    tz: Option<&str>,
    paths: &ZonePaths,
    database: &ZoneDatabase,
) -> Result<FoundZone, String> {
    let (zone, source) = match tz {
        Some(tz) => (
            zone_of_variable(tz, database),
            format!("TZ={}", sanitize(tz)),
        ),
        None if is_missing(&paths.localtime) => {
            match name_in_text(&paths.timezone).and_then(|name| database.zone(&name)) {
                Some(zone) => (Some(zone), sanitize(&paths.timezone)),
                None => (
                    Some(TimeZone::utc()),
                    format!("no {}", sanitize(&paths.localtime)),
                ),
            }
        }
        None => (
            zone_of_localtime(paths, database),
            sanitize(&paths.localtime),
        ),
    };
    match zone {
        Some(zone) => Ok(FoundZone { zone, source }),
        None => Err(source),
    }
}

/// The zone of `TZ` as in libc: a path relative to the zone folder or absolute, with or without a colon, else a POSIX
/// string.
fn zone_of_variable(tz: &str, database: &ZoneDatabase) -> Option<TimeZone> {
    let text = tz.strip_prefix(':').unwrap_or(tz);
    let path = database.dir().join(text);
    let name = || zone_name(text).or_else(|| name_of_file(&path, database));
    zone_of_file(&path, name, database)
        .or_else(|| TimeZone::of_posix(text))
        .or_else(|| database.zone(&name()?))
}

/// The zone of /etc/localtime: the rules of the file, else those of its name.
fn zone_of_localtime(paths: &ZonePaths, database: &ZoneDatabase) -> Option<TimeZone> {
    let path = &paths.localtime;
    let name = || name_of_file(path, database).or_else(|| name_in_text(&paths.timezone));
    zone_of_file(path, name, database).or_else(|| {
        let zone = database.zone(&name()?)?;
        // The database has already logged why it uses the built-in rules.
        if !zone.has_built_in_rules() {
            tracing::warn!(
                "{} is not a usable zone file, using {zone}; set TSV_TIMEZONE if that is wrong",
                sanitize(path)
            );
        }
        Some(zone)
    })
}

/// The zone of a zone file, with the given name if the file's rules fit it.
fn zone_of_file(
    path: &Path,
    name: impl Fn() -> Option<String>,
    database: &ZoneDatabase,
) -> Option<TimeZone> {
    let file = read_zone_file(path).ok()?;
    let name = name()
        .filter(|name| fits_name(name, &file.offsets))
        .or(file.rule)
        .unwrap_or_else(|| sanitize(path));
    let source = match (path.canonicalize(), database.dir().canonicalize()) {
        (Ok(path), Ok(dir)) if path.starts_with(&dir) => RulesSource::Database,
        _ => RulesSource::File(path.to_owned()),
    };
    Some(TimeZone::new(name, file.offsets, source))
}

/// The name of a zone file: its path relative to the zone folder after resolving links, or the link's target if it does
/// not exist.
fn name_of_file(path: &Path, database: &ZoneDatabase) -> Option<String> {
    let dir = database.dir().canonicalize();
    let below_dir = |path: &Path| {
        let below = path.strip_prefix(dir.as_ref().ok()?).ok()?;
        Some(below.to_str()?.to_owned())
    };
    let below_zoneinfo = |path: &Path| Some(path.to_str()?.rsplit_once("zoneinfo/")?.1.to_owned());
    [path.canonicalize(), path.read_link(), Ok(path.to_owned())]
        .into_iter()
        .flatten()
        .find_map(|path| zone_name(&below_dir(&path).or_else(|| below_zoneinfo(&path))?))
}

/// The IANA name in a path relative to the zone folder. `posix/` and `right/` contain the same zones without and with
/// leap seconds.
fn zone_name(path: &str) -> Option<String> {
    let name = path
        .strip_prefix("posix/")
        .or_else(|| path.strip_prefix("right/"))
        .unwrap_or(path);
    is_zone_name(name).then(|| name.to_owned())
}

/// The IANA name in a text file such as /etc/timezone.
fn name_in_text(path: &Path) -> Option<String> {
    let text = String::from_utf8(read_regular(path).ok()?).ok()?;
    zone_name(text.trim())
}

fn is_missing(path: &Path) -> bool {
    path.symlink_metadata()
        .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Whether offsets fit the zone of this name. They are compared with the built-in tables for past years, on which all
/// versions of the database agree.
fn fits_name(name: &str, offsets: &Offsets) -> bool {
    let Ok(zone) = name.parse::<Tz>() else {
        // The zone is newer than the tables.
        return true;
    };
    (2018..=2024)
        .flat_map(|year| [(year, 1), (year, 7)])
        .filter_map(|(year, month)| NaiveDate::from_ymd_opt(year, month, 1))
        .map(|day| day.and_time(NaiveTime::MIN))
        .all(|time| {
            let expected = zone.offset_from_utc_datetime(&time).fix();
            offsets.at(time.and_utc().timestamp()) == expected.local_minus_utc()
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time_zone::FileZones;
    use crate::time_zone::testing::{PARIS, ZoneFile, write};
    use std::os::unix::fs::symlink;

    /// The time zone settings of a machine in a temporary folder, with a few zones.
    struct Machine {
        dir: tempfile::TempDir,
        paths: ZonePaths,
        zoneinfo: PathBuf,
    }

    impl Machine {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let machine = Self {
                paths: ZonePaths {
                    localtime: dir.path().join("etc/localtime"),
                    timezone: dir.path().join("etc/timezone"),
                },
                zoneinfo: dir.path().join("usr/share/zoneinfo"),
                dir,
            };
            std::fs::create_dir(machine.dir.path().join("etc")).unwrap();
            for (name, rule) in [
                ("Etc/UTC", "UTC0"),
                ("Europe/Paris", PARIS),
                ("posix/Europe/Paris", PARIS),
                ("Asia/Tokyo", "JST-9"),
            ] {
                ZoneFile::of_rule(rule).write(&machine.zoneinfo, name);
            }
            machine
        }

        fn put(&self, name: &str, bytes: &[u8]) {
            write(self.dir.path(), name, bytes);
        }

        fn put_rule(&self, name: &str, rule: &str) {
            ZoneFile::of_rule(rule).write(self.dir.path(), name);
        }

        fn link(&self, target: &str) {
            let _ = std::fs::remove_file(&self.paths.localtime);
            symlink(target, &self.paths.localtime).unwrap();
        }

        fn find(&self, tz: Option<&str>) -> Result<FoundZone, String> {
            machine_zone(tz, &self.paths, &ZoneDatabase::new(&self.zoneinfo))
        }

        fn zone(&self, tz: Option<&str>) -> TimeZone {
            self.find(tz).unwrap().zone
        }

        /// Asserts that the zone has this name and the rules of `rules`.
        #[track_caller]
        fn expect(&self, tz: Option<&str>, name: &str, rules: Tz) {
            let zone = self.zone(tz);
            assert_eq!(zone.name(), name, "{tz:?}");
            let rules = FileZones::built_in(rules).default;
            let start = NaiveDate::from_ymd_opt(2025, 1, 1).unwrap();
            for hour in 0..366 * 24 {
                let wall = start.and_time(NaiveTime::MIN) + chrono::Duration::hours(hour);
                assert_eq!(zone.instants(wall), rules.instants(wall), "{tz:?}: {wall}");
            }
        }
    }

    #[test]
    fn tz_is_read_in_all_of_libcs_forms() {
        let machine = Machine::new();
        machine.link("../usr/share/zoneinfo/Asia/Tokyo");
        let folder = machine.zoneinfo.to_str().unwrap().to_owned();
        let localtime = machine.paths.localtime.to_str().unwrap().to_owned();
        let (paris, tokyo) = ("Europe/Paris", "Asia/Tokyo");
        for (tz, name, rules) in [
            (paris, paris, Tz::Europe__Paris),
            (":Europe/Paris", paris, Tz::Europe__Paris),
            ("posix/Europe/Paris", paris, Tz::Europe__Paris),
            (":posix/Europe/Paris", paris, Tz::Europe__Paris),
            (&format!("{folder}/Europe/Paris"), paris, Tz::Europe__Paris),
            (
                &format!(":{folder}/posix/Europe/Paris"),
                paris,
                Tz::Europe__Paris,
            ),
            (&localtime, tokyo, Tz::Asia__Tokyo),
            (PARIS, PARIS, Tz::Europe__Paris),
            ("UTC0", "UTC0", Tz::UTC),
            ("<+0545>-5:45", "<+0545>-5:45", Tz::Asia__Kathmandu),
            ("<-05>5", "<-05>5", Tz::Etc__GMTPlus5),
            // The file does not exist, so the name decides.
            (
                "America/New_York",
                "America/New_York",
                Tz::America__New_York,
            ),
            (
                "/usr/share/zoneinfo.gone/zoneinfo/Asia/Tokyo",
                tokyo,
                Tz::Asia__Tokyo,
            ),
        ] {
            machine.expect(Some(tz), name, rules);
        }
        for tz in [
            "Mars/Olympus",
            "America",
            "/dev/zero",
            "/etc/passwd",
            "::",
            "CET-1CEST",
            "X1Y,M4.1.0,M5.1.0",
        ] {
            let source = machine.find(Some(tz)).unwrap_err();
            assert_eq!(source, format!("TZ={tz}"));
        }
    }

    #[test]
    fn a_link_into_the_zone_folder_gives_the_name_in_any_spelling() {
        let machine = Machine::new();
        for target in [
            format!("{}/Europe/Paris", machine.zoneinfo.display()),
            "../usr/share/zoneinfo/Europe/Paris".to_owned(),
            "../etc/../usr/share/zoneinfo/posix/Europe/Paris".to_owned(),
            // The target does not exist: no zone files are installed.
            "/nowhere/zoneinfo/Europe/Paris".to_owned(),
        ] {
            machine.link(&target);
            machine.expect(None, "Europe/Paris", Tz::Europe__Paris);
            let source = machine.find(None).unwrap().source;
            assert!(source.ends_with("etc/localtime"), "{source}");
        }
    }

    #[test]
    fn the_rules_of_a_copied_file_are_used() {
        let machine = Machine::new();
        machine.put_rule("etc/localtime", PARIS);
        machine.expect(None, PARIS, Tz::Europe__Paris);
        machine.put("etc/timezone", b"Europe/Berlin\n");
        machine.expect(None, "Europe/Berlin", Tz::Europe__Paris);
        // A name with other rules, left over from an earlier setting.
        machine.put("etc/timezone", b"Etc/UTC\n");
        machine.expect(None, PARIS, Tz::Europe__Paris);
    }

    #[test]
    fn a_zone_file_mounted_over_the_links_target_decides_and_not_the_link() {
        let machine = Machine::new();
        machine.link("../usr/share/zoneinfo/Etc/UTC");
        machine.put("etc/timezone", b"Etc/UTC\n");
        machine.expect(None, "Etc/UTC", Tz::UTC);
        machine.put_rule("usr/share/zoneinfo/Etc/UTC", PARIS);
        machine.expect(None, PARIS, Tz::Europe__Paris);
    }

    /// libc uses them too.
    #[test]
    fn rules_of_no_known_zone_are_used_unchanged() {
        let odd = "X-1Y,M4.1.0,M5.1.0";
        let wall = |month| {
            let day = NaiveDate::from_ymd_opt(2025, month, 15).unwrap();
            day.and_hms_opt(12, 0, 0).unwrap()
        };
        let check = |machine: &Machine| {
            let zone = machine.zone(None);
            for (month, offset) in [(3, 3_600), (4, 7_200), (5, 3_600)] {
                let expected = wall(month).and_utc().timestamp() - offset;
                assert_eq!(zone.instants(wall(month)), (expected, None), "{month}");
            }
            assert_eq!(zone.name(), odd);
        };
        let machine = Machine::new();
        machine.put_rule("etc/localtime", odd);
        check(&machine);
        machine.put("etc/timezone", b"Europe/Paris\n");
        check(&machine);
        machine.put_rule("usr/share/zoneinfo/Asia/Tokyo", odd);
        machine.link("../usr/share/zoneinfo/Asia/Tokyo");
        check(&machine);
    }

    #[test]
    fn a_change_of_law_that_the_tables_lack_changes_the_rules_and_not_the_name() {
        let machine = Machine::new();
        let file = ZoneFile {
            kinds: &[(3_600, false, "CET"), (7_200, true, "CEST")],
            // Daylight saving until 27 October 2024 and never again; the years before are those of the tables.
            changes: &[
                (1_521_939_600, 1),
                (1_540_688_400, 0),
                (1_553_994_000, 1),
                (1_572_138_000, 0),
                (1_585_443_600, 1),
                (1_603_587_600, 0),
                (1_616_893_200, 1),
                (1_635_642_000, 0),
                (1_648_342_800, 1),
                (1_667_091_600, 0),
                (1_679_792_400, 1),
                (1_698_541_200, 0),
                (1_711_846_800, 1),
                (1_729_990_800, 0),
            ],
            rule: "CET-1",
            ..ZoneFile::default()
        };
        file.write(&machine.zoneinfo, "Europe/Paris");
        machine.link("../usr/share/zoneinfo/Europe/Paris");
        let noon = NaiveDate::from_ymd_opt(2027, 7, 1).and_then(|day| day.and_hms_opt(12, 0, 0));
        let noon = noon.unwrap();
        for tz in [None, Some("Europe/Paris")] {
            let zone = machine.zone(tz);
            assert_eq!(zone.name(), "Europe/Paris");
            let eleven = noon.and_utc().timestamp() - 3_600;
            assert_eq!(zone.instants(noon), (eleven, None), "{tz:?}");
        }
    }

    /// Debian's files below `right/` are like this.
    #[test]
    fn a_file_with_leap_seconds_that_ends_without_a_rule_gives_its_name_only() {
        let machine = Machine::new();
        ZoneFile {
            kinds: &[(3_600, false, "CET"), (7_200, true, "CEST")],
            changes: &[(1_711_846_827, 1)],
            leap_seconds: &[(1_435_708_825, 1), (1_483_228_826, 2)],
            ..ZoneFile::default()
        }
        .write(&machine.zoneinfo, "right/Europe/Paris");
        machine.link("../usr/share/zoneinfo/right/Europe/Paris");
        for tz in [None, Some("right/Europe/Paris")] {
            machine.expect(tz, "Europe/Paris", Tz::Europe__Paris);
            assert!(!machine.zone(tz).has_built_in_rules(), "{tz:?}");
        }
    }

    #[test]
    fn an_unusable_zone_file_leaves_the_name_or_an_error() {
        let machine = Machine::new();
        for bytes in [&b""[..], b"TZif", b"Europe/Paris\n", &[0xff; 5_000]] {
            machine.put("etc/localtime", bytes);
            assert!(machine.find(None).is_err(), "{bytes:?}");
        }
        machine.put("etc/timezone", b"Europe/Paris\n");
        machine.expect(None, "Europe/Paris", Tz::Europe__Paris);
    }

    #[test]
    fn a_machine_without_settings_is_on_utc() {
        let machine = Machine::new();
        machine.expect(None, "UTC", Tz::UTC);
        machine.put("etc/timezone", b"Asia/Tokyo\n");
        machine.expect(None, "Asia/Tokyo", Tz::Asia__Tokyo);
    }
}
