//! The zone of the machine, as libc finds it: `TZ`, else what stands in /etc/localtime. Source: SPEC section 2, "Time".
//!
//! libc goes by rules, offsets from instant to instant; this program by IANA's names. So the rules are read, and a name is
//! taken only if it means the same: the link at /etc/localtime says Etc/UTC where a container mounts another zone's file
//! over the link's target, and a copied file says nothing.

use crate::shown::shown;
use chrono::{DateTime, Datelike as _, NaiveDate, Offset as _, TimeZone as _, Utc};
use chrono_tz::Tz;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use tz::{TimeZone, TimeZoneSettings};

/// Largest file that is read; a zone's has a few KiB.
const MAX_FILE: u64 = 1 << 20;

/// Where the machine says what its zone is.
#[derive(Debug, Clone)]
pub struct Places {
    /// The zone file, or a link to one.
    pub localtime: PathBuf,
    /// A text with the zone's name, which Debian has.
    pub timezone: PathBuf,
    /// The folder of the zone files.
    pub zoneinfo: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            localtime: "/etc/localtime".into(),
            timezone: "/etc/timezone".into(),
            zoneinfo: "/usr/share/zoneinfo".into(),
        }
    }
}

/// A zone, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundZone {
    /// The zone.
    pub zone: Tz,
    /// A variable, an option or a file, for a person.
    pub source: String,
}

/// What a source says: rules, a name, or both.
struct Claim {
    source: String,
    rules: Option<TimeZone>,
    name: Option<Tz>,
}

/// The machine's zone: of `TZ` in any of libc's forms, else of /etc/localtime. `TZ` that is empty counts as not set, as all
/// variables of this program do.
///
/// # Errors
/// The source that names no zone and whose rules are no zone's.
pub fn machine_zone(tz: Option<&str>, places: &Places) -> Result<FoundZone, String> {
    let hint = || zone_in_text(&places.timezone);
    let claim = match tz {
        Some(tz) => of_variable(tz, places),
        None if is_missing(&places.localtime) => {
            let (zone, source) = match hint() {
                Some(zone) => (zone, shown(&places.timezone)),
                None => (Tz::UTC, format!("no {}", shown(&places.localtime))),
            };
            return Ok(FoundZone { zone, source });
        }
        None => {
            let mut claim = Claim {
                source: shown(&places.localtime),
                rules: rules_in_file(&places.localtime),
                name: zone_of_file(&places.localtime),
            };
            claim.name = claim.name.or_else(hint);
            claim
        }
    };
    let found = |zone| {
        Ok(FoundZone {
            zone,
            source: claim.source.clone(),
        })
    };
    let Some(rules) = &claim.rules else {
        // A machine without zone files: there is nothing to hold the name against.
        return claim.name.map_or_else(|| Err(claim.source.clone()), found);
    };
    let now = Utc::now();
    // No more than a few instants: a system whose tables are older or newer than ours still has the zone it names.
    if let Some(zone) = claim
        .name
        .filter(|zone| agrees(*zone, &seasons(rules, now)))
    {
        return found(zone);
    }
    let many = many_instants(rules, now);
    if let Some(zone) = candidates(hint()).find(|zone| agrees(*zone, &many)) {
        return found(zone);
    }
    match claim.name {
        Some(zone) => {
            tracing::warn!(
                "{} gives other offsets than the zone {zone} that it names has; {zone} is taken, set TSV_TIMEZONE to be sure",
                claim.source
            );
            found(zone)
        }
        None => Err(claim.source.clone()),
    }
}

/// `TZ` as libc reads it: a file's name below the zone folder or an absolute one, with or without a colon, else rules.
fn of_variable(tz: &str, places: &Places) -> Claim {
    let text = tz.strip_prefix(':').unwrap_or(tz);
    let file = places.zoneinfo.join(text);
    Claim {
        source: format!("TZ={}", shown(tz)),
        rules: rules_in_file(&file).or_else(|| posix_rules(text)),
        name: zone_of_name(text).or_else(|| zone_of_file(&file)),
    }
}

/// The rules of a string such as `CET-1CEST,M3.5.0,M10.5.0/3`.
fn posix_rules(text: &str) -> Option<TimeZone> {
    // Files were looked for already, and with care for what they are.
    TimeZoneSettings::new(&[], |_| Err("no file".into()))
        .parse_posix_tz(text)
        .ok()
}

fn rules_in_file(path: &Path) -> Option<TimeZone> {
    let bytes = read_file(path).ok()?;
    TimeZone::from_tz_data(&bytes)
        .inspect_err(|error| {
            tracing::warn!(
                "{} cannot be read as a zone file: {error}; set TSV_TIMEZONE to be sure of the zone",
                shown(path)
            );
        })
        .ok()
}

/// The name of a zone file: what follows the zone folder in its path, once the links are followed. Where they lead nowhere,
/// a link still says what was meant.
fn zone_of_file(path: &Path) -> Option<Tz> {
    [path.canonicalize(), path.read_link(), Ok(path.to_owned())]
        .into_iter()
        .flatten()
        .find_map(|path| zone_of_name(path.to_str()?.rsplit_once("zoneinfo/")?.1))
}

/// `posix/` and `right/` hold the same zones, without and with leap seconds.
fn zone_of_name(name: &str) -> Option<Tz> {
    let name = name
        .strip_prefix("posix/")
        .or_else(|| name.strip_prefix("right/"))
        .unwrap_or(name);
    name.parse().ok()
}

fn zone_in_text(path: &Path) -> Option<Tz> {
    let text = String::from_utf8(read_file(path).ok()?).ok()?;
    zone_of_name(text.trim())
}

/// A regular file of bounded size: what stands at such a path may be a device or a pipe.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    if !path.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn is_missing(path: &Path) -> bool {
    path.symlink_metadata()
        .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Which zones are tried, the likely ones first; fixed offsets by the names that say so.
fn candidates(hint: Option<Tz>) -> impl Iterator<Item = Tz> {
    let all = || chrono_tz::TZ_VARIANTS.iter().copied();
    hint.into_iter()
        .chain([Tz::Europe__Paris, Tz::UTC])
        .chain(all().filter(|zone| zone.name().starts_with("Etc/")))
        .chain(all())
}

/// The rules' offsets now and in both seasons of this year.
fn seasons(rules: &TimeZone, now: DateTime<Utc>) -> Vec<(i64, Option<i32>)> {
    let first = |month| {
        let day = NaiveDate::from_ymd_opt(now.year(), month, 1)?.and_hms_opt(0, 0, 0)?;
        Some(day.and_utc().timestamp())
    };
    with_offsets(
        rules,
        [Some(now.timestamp()), first(1), first(7)]
            .into_iter()
            .flatten(),
    )
}

/// The rules' offsets in all the years of which there are measurements, and from hour to hour in the years around now: two
/// zones may differ in nothing but the night of the change.
fn many_instants(rules: &TimeZone, now: DateTime<Utc>) -> Vec<(i64, Option<i32>)> {
    const HOUR: i64 = 3_600;
    const DAY: i64 = 24 * HOUR;
    const YEAR_2010: i64 = 1_262_304_000;
    const YEAR_2036: i64 = 2_082_758_400;
    let now = now.timestamp() / HOUR * HOUR;
    let days = (YEAR_2010..YEAR_2036).step_by(DAY as usize);
    let hours = (now - 550 * DAY..now + 550 * DAY).step_by(HOUR as usize);
    with_offsets(rules, days.chain(hours))
}

fn with_offsets(rules: &TimeZone, instants: impl Iterator<Item = i64>) -> Vec<(i64, Option<i32>)> {
    instants.map(|at| (at, offset(rules, at))).collect()
}

/// Seconds east of UTC.
fn offset(rules: &TimeZone, at: i64) -> Option<i32> {
    if let Ok(kind) = rules.find_local_time_type(at) {
        return Some(kind.ut_offset());
    }
    // After its last change a file without a rule for the time to come stays as it is.
    let rules = rules.as_ref();
    let last = rules.transitions().last()?.local_time_type_index();
    Some(rules.local_time_types().get(last)?.ut_offset())
}

fn agrees(zone: Tz, expected: &[(i64, Option<i32>)]) -> bool {
    expected.iter().all(|(at, offset)| {
        DateTime::from_timestamp(*at, 0)
            .map(|at| zone.offset_from_utc_datetime(&at.naive_utc()).fix())
            .map(|found| found.local_minus_utc())
            == *offset
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skipped::skipped;
    use std::os::unix::fs::symlink;

    const PARIS: &str = "CET-1CEST,M3.5.0,M10.5.0/3";

    /// A zone file that has nothing but a rule.
    fn zone_file(rule: &str) -> Vec<u8> {
        let header = |version: u8| {
            let mut header = b"TZif".to_vec();
            header.push(version);
            header.extend([0; 15]);
            for count in [0u32, 0, 0, 0, 1, 4] {
                header.extend(count.to_be_bytes());
            }
            header.extend(*b"\0\0\0\0\0\0UTC\0");
            header
        };
        [
            header(b'3'),
            header(b'3'),
            format!("\n{rule}\n").into_bytes(),
        ]
        .concat()
    }

    /// A machine in a folder, its zone folder with a few zones in it.
    struct Machine {
        dir: tempfile::TempDir,
        places: Places,
    }

    impl Machine {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let places = Places {
                localtime: dir.path().join("etc/localtime"),
                timezone: dir.path().join("etc/timezone"),
                zoneinfo: dir.path().join("usr/share/zoneinfo"),
            };
            let machine = Self { dir, places };
            std::fs::create_dir(machine.dir.path().join("etc")).unwrap();
            for (name, rule) in [
                ("Etc/UTC", "UTC0"),
                ("Europe/Paris", PARIS),
                ("posix/Europe/Paris", PARIS),
                ("Asia/Tokyo", "JST-9"),
            ] {
                machine.put(&format!("usr/share/zoneinfo/{name}"), &zone_file(rule));
            }
            machine
        }

        fn put(&self, name: &str, bytes: &[u8]) {
            let path = self.dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }

        fn link(&self, target: &str) {
            let _ = std::fs::remove_file(&self.places.localtime);
            symlink(target, &self.places.localtime).unwrap();
        }

        fn zone(&self, tz: Option<&str>) -> Result<Tz, String> {
            machine_zone(tz, &self.places).map(|found| found.zone)
        }
    }

    #[test]
    fn tz_is_read_in_all_of_libcs_forms() {
        let machine = Machine::new();
        machine.link("../usr/share/zoneinfo/Asia/Tokyo");
        let folder = machine.places.zoneinfo.to_str().unwrap().to_owned();
        for (tz, zone) in [
            ("Europe/Paris", Tz::Europe__Paris),
            (":Europe/Paris", Tz::Europe__Paris),
            ("posix/Europe/Paris", Tz::Europe__Paris),
            (":posix/Europe/Paris", Tz::Europe__Paris),
            (&format!("{folder}/Europe/Paris"), Tz::Europe__Paris),
            (&format!(":{folder}/posix/Europe/Paris"), Tz::Europe__Paris),
            (machine.places.localtime.to_str().unwrap(), Tz::Asia__Tokyo),
            (PARIS, Tz::Europe__Paris),
            ("UTC0", Tz::UTC),
            ("<+0545>-5:45", Tz::Asia__Kathmandu),
            ("<-05>5", Tz::Etc__GMTPlus5),
            // There is no such file here: the name alone.
            ("America/New_York", Tz::America__New_York),
            (
                "/usr/share/zoneinfo.gone/zoneinfo/Asia/Tokyo",
                Tz::Asia__Tokyo,
            ),
        ] {
            assert_eq!(machine.zone(Some(tz)), Ok(zone), "{tz}");
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
            let words = machine.zone(Some(tz)).unwrap_err();
            assert_eq!(words, format!("TZ={tz}"));
        }
    }

    #[test]
    fn a_link_into_the_zone_folder_gives_the_name_however_it_is_spelled() {
        let machine = Machine::new();
        for target in [
            format!("{}/Europe/Paris", machine.places.zoneinfo.display()),
            "../usr/share/zoneinfo/Europe/Paris".to_owned(),
            "../etc/../usr/share/zoneinfo/posix/Europe/Paris".to_owned(),
            // Leads nowhere: no zone files are installed.
            "/nowhere/zoneinfo/Europe/Paris".to_owned(),
        ] {
            machine.link(&target);
            let found = machine_zone(None, &machine.places).unwrap();
            assert_eq!(found.zone, Tz::Europe__Paris, "{target}");
            assert!(found.source.ends_with("etc/localtime"), "{found:?}");
        }
    }

    #[test]
    fn the_rules_of_a_copied_file_count() {
        let machine = Machine::new();
        machine.put("etc/localtime", &zone_file(PARIS));
        assert_eq!(machine.zone(None), Ok(Tz::Europe__Paris));
        machine.put("etc/timezone", b"Europe/Berlin\n");
        assert_eq!(machine.zone(None), Ok(Tz::Europe__Berlin), "its name too");
        machine.put("etc/timezone", b"Etc/UTC\n");
        assert_eq!(machine.zone(None), Ok(Tz::Europe__Paris), "an old name");
    }

    #[test]
    fn a_zone_mounted_over_the_links_target_counts_and_not_the_link() {
        let machine = Machine::new();
        machine.link("../usr/share/zoneinfo/Etc/UTC");
        machine.put("etc/timezone", b"Etc/UTC\n");
        assert_eq!(machine.zone(None), Ok(Tz::Etc__UTC));
        machine.put("usr/share/zoneinfo/Etc/UTC", &zone_file(PARIS));
        assert_eq!(machine.zone(None), Ok(Tz::Europe__Paris));
    }

    #[test]
    fn rules_that_no_zone_has_leave_the_name_or_an_error() {
        let machine = Machine::new();
        let odd = zone_file("X-1Y,M4.1.0,M5.1.0");
        machine.put("etc/localtime", &odd);
        assert!(machine.zone(None).unwrap_err().ends_with("etc/localtime"));
        machine.put("etc/timezone", b"Europe/Paris\n");
        assert_eq!(machine.zone(None), Ok(Tz::Europe__Paris));
        machine.put("usr/share/zoneinfo/Asia/Tokyo", &odd);
        machine.link("../usr/share/zoneinfo/Asia/Tokyo");
        assert_eq!(machine.zone(None), Ok(Tz::Asia__Tokyo), "as the link says");
    }

    #[test]
    fn what_is_no_zone_file_leaves_the_name_or_an_error() {
        let machine = Machine::new();
        for bytes in [&b""[..], b"TZif", b"Europe/Paris\n", &[0xff; 5_000]] {
            machine.put("etc/localtime", bytes);
            assert!(machine.zone(None).is_err(), "{bytes:?}");
        }
        machine.put("etc/timezone", b"Europe/Paris\n");
        assert_eq!(machine.zone(None), Ok(Tz::Europe__Paris));
    }

    #[test]
    fn a_machine_that_says_nothing_is_on_utc() {
        let machine = Machine::new();
        assert_eq!(machine.zone(None), Ok(Tz::UTC));
        machine.put("etc/timezone", b"Asia/Tokyo\n");
        assert_eq!(machine.zone(None), Ok(Tz::Asia__Tokyo));
    }

    #[test]
    fn a_damaged_zone_file_is_no_panic() {
        let whole = zone_file(PARIS);
        for at in 0..whole.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff, b'\n', b','] {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                if let Ok(rules) = TimeZone::from_tz_data(&bytes) {
                    let _ = (offset(&rules, 0), offset(&rules, i64::MAX));
                }
            }
            if let Ok(rules) = TimeZone::from_tz_data(&whole[..at]) {
                let _ = offset(&rules, 0);
            }
        }
    }

    #[test]
    fn copies_of_the_systems_own_zone_files_give_their_offsets() {
        let machine = Machine::new();
        for name in [
            "Europe/Paris",
            "Europe/London",
            "Europe/Dublin",
            "America/New_York",
            "Africa/Casablanca",
            "Africa/Cairo",
            "Asia/Kolkata",
            "Australia/Lord_Howe",
            "America/Santiago",
            "Pacific/Chatham",
            "UTC",
        ] {
            let Ok(bytes) = std::fs::read(Path::new("/usr/share/zoneinfo").join(name)) else {
                skipped("tzdata", "apt install tzdata");
                continue;
            };
            machine.put("etc/localtime", &bytes);
            let found = machine.zone(None).unwrap();
            let rules = TimeZone::from_tz_data(&bytes).unwrap();
            assert!(
                agrees(found, &many_instants(&rules, Utc::now())),
                "{name}: {found}"
            );
        }
    }
}
