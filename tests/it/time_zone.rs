//! The system's time zone database takes precedence over the built-in tables, which are used if it is missing. The
//! tests make their own databases, so that the result does not depend on the version of the machine's.

use crate::harness::{Call, DEVICE, FileBuilder, Run, Site, headed};
use crate::zone_files::{ZoneFile, write};
use std::path::PathBuf;

/// Rules that the built-in tables do not have: the last daylight saving of Paris ends on 25 October 2026.
const PARIS_WITHOUT_SUMMER: ZoneFile<'_> = ZoneFile {
    kinds: &[(3_600, false, "CET"), (7_200, true, "CEST")],
    changes: &[
        (1_743_296_400, 1), // 30 March 2025, 01:00 UTC
        (1_761_440_400, 0), // 26 October 2025
        (1_774_746_000, 1), // 29 March 2026
        (1_792_890_000, 0), // 25 October 2026
    ],
    leap_seconds: &[],
    rule: "CET-1",
};

/// Rules of version 2026c: Morocco stays on UTC from 20 September 2026, 01:00 UTC.
const CASABLANCA_OF_2026: ZoneFile<'_> = ZoneFile {
    kinds: &[(3_600, false, "+01"), (0, true, "+00"), (0, false, "+00")],
    changes: &[
        (1_771_120_800, 1), // 15 February 2026, 02:00 UTC
        (1_774_144_800, 0), // 22 March 2026, 02:00 UTC
        (1_789_866_000, 2), // 20 September 2026, 01:00 UTC
    ],
    leap_seconds: &[],
    rule: "<+00>0",
};

/// 1 July 2027 and 1 October 2026, 12:00 UTC.
const JULY_2027: i64 = 1_814_443_200;
const OCTOBER_2026: i64 = 1_790_856_000;

/// A site with its own zone folder.
struct Zones {
    site: Site,
    dir: PathBuf,
}

impl Zones {
    fn new() -> Self {
        let site = Site::new();
        let dir = site.dir.path().join("zones");
        std::fs::create_dir(&dir).expect("made");
        Self { site, dir }
    }

    /// A call that writes line-protocol files with this zone folder and without a zone setting.
    fn run(&self) -> Call<'_> {
        self.site
            .lp_run()
            .env("TZDIR", &self.dir)
            .no_env("TSV_TIMEZONE")
    }

    /// A call of `powerview check`.
    fn check(&self) -> Call<'_> {
        self.site
            .bare()
            .arg("check")
            .arg("-d")
            .arg(self.site.data())
            .env("TZDIR", &self.dir)
            .no_env("TSV_TIMEZONE")
    }

    fn only_epoch(&self) -> i64 {
        let points = self.site.lp_points("acme");
        assert_eq!(points.len(), 1, "{points:?}");
        points[0].epoch
    }
}

/// A file with one row.
fn plain(time: &str) -> String {
    FileBuilder::with_channels(["Ph 1 V"])
        .line(format_args!("{time}\t230"))
        .build()
}

fn with_zone(zone: &str, time: &str) -> String {
    let json = serde_json::json!({"DataTimeSettings": "LOCAL", "TimeZoneName": zone});
    headed(json, &plain(time))
}

/// The line of `powerview check` on the time zone.
fn zone_line(run: &Run) -> String {
    let line = run.stdout.lines().find(|line| line.contains("time zone"));
    line.unwrap_or_else(|| panic!("{run:?}")).to_owned()
}

fn built_in_version() -> String {
    format!("({})", chrono_tz::IANA_TZDB_VERSION)
}

#[test]
fn the_systems_rules_are_used_for_each_source_of_the_zone() {
    type Setting = fn(Call<'_>) -> Call<'_>;
    let settings: [(&str, Setting); 5] = [
        ("--timezone", |call| {
            call.args(["--timezone", "Europe/Paris"])
        }),
        ("TSV_TIMEZONE", |call| {
            call.env("TSV_TIMEZONE", "Europe/Paris")
        }),
        ("TZ", |call| call.env("TZ", "Europe/Paris")),
        ("TZ with a colon", |call| call.env("TZ", ":Europe/Paris")),
        ("header", |call| call.env("TSV_TIMEZONE", "Asia/Tokyo")),
    ];
    for (name, setting) in settings {
        for (time, epoch) in [
            // Daylight saving until 2026, as in all tables.
            ("01/07/26 14:00:00", 1_782_907_200),
            ("01/07/27 13:00:00", JULY_2027),
        ] {
            let zones = Zones::new();
            PARIS_WITHOUT_SUMMER.write(&zones.dir, "Europe/Paris");
            let file = match name {
                "header" => with_zone("Europe/Paris", time),
                _ => plain(time),
            };
            zones.site.put(DEVICE.file("x.tsv"), file);
            setting(zones.run()).ok();
            assert_eq!(zones.only_epoch(), epoch, "{name}: {time}");
        }
    }
}

#[test]
fn a_change_of_rules_that_the_tables_lack_is_used() {
    let zones = Zones::new();
    CASABLANCA_OF_2026.write(&zones.dir, "Africa/Casablanca");
    let file = with_zone("Africa/Casablanca", "01/10/26 12:00:00");
    zones.site.put(DEVICE.file("x.tsv"), file);
    let run = zones.run().env("TZ", "Africa/Casablanca").ok();
    assert_eq!(zones.only_epoch(), OCTOBER_2026);
    assert!(!run.stderr.contains("built-in"), "{}", run.stderr);
}

#[test]
fn an_alias_within_the_folder_is_followed() {
    let zones = Zones::new();
    PARIS_WITHOUT_SUMMER.write(&zones.dir, "Europe/Paris");
    std::os::unix::fs::symlink("Paris", zones.dir.join("Europe/Monaco")).expect("linked");
    let file = with_zone("Europe/Monaco", "01/07/27 13:00:00");
    zones.site.put(DEVICE.file("x.tsv"), file);
    zones.run().env("TZ", "UTC0").ok();
    assert_eq!(zones.only_epoch(), JULY_2027);
}

/// Without a database, without the zone in it, with one that is cut off and with one that is something else: the
/// built-in rules are used, check says why, and so does the log in one line, however many files there are.
#[test]
fn the_built_in_rules_are_used_with_a_single_warning() {
    let cut_off = PARIS_WITHOUT_SUMMER.bytes();
    let cut_off = &cut_off[..cut_off.len() - 5];
    for (case, reason) in [
        ("no folder", "no time zone database at"),
        ("no such zone", "has no zone Europe/Paris"),
        ("cut off", "Europe/Paris is not a usable zone file"),
        ("text", "Europe/Paris is not a usable zone file"),
        ("a folder", "Europe/Paris cannot be read"),
    ] {
        let zones = Zones::new();
        match case {
            "no folder" => std::fs::remove_dir(&zones.dir).expect("removed"),
            "cut off" => write(&zones.dir, "Europe/Paris", cut_off),
            "text" => write(&zones.dir, "Europe/Paris", b"not a zone\n"),
            "a folder" => std::fs::create_dir_all(zones.dir.join("Europe/Paris")).expect("made"),
            _ => CASABLANCA_OF_2026.write(&zones.dir, "Africa/Casablanca"),
        }
        for day in 1..=4 {
            let time = format!("0{day}/07/27 14:00:00");
            let file = match day {
                4 => with_zone("Europe/Paris", &time),
                _ => plain(&time),
            };
            zones.site.put(format!("acme/site/{day}/x.tsv"), file);
        }
        let run = zones.run().env("TSV_TIMEZONE", "Europe/Paris").ok();
        let mut epochs: Vec<_> = zones
            .site
            .lp_points("acme")
            .iter()
            .map(|p| p.epoch)
            .collect();
        epochs.sort_unstable();
        let days: Vec<_> = (0..4).map(|day| JULY_2027 + day * 86_400).collect();
        assert_eq!(epochs, days, "{case}");
        let reported: Vec<_> = run
            .stderr
            .lines()
            .filter(|line| line.contains("built-in rules"))
            .collect();
        assert_eq!(reported.len(), 1, "{case}: {}", run.stderr);
        for word in ["WARN", "Europe/Paris", &built_in_version(), reason] {
            assert!(
                reported[0].contains(word),
                "{case}: {word}: {}",
                reported[0]
            );
        }
        let check = zones.check().env("TSV_TIMEZONE", "Europe/Paris").run();
        let line = zone_line(&check);
        for word in ["ok", "built-in rules", &built_in_version(), reason] {
            assert!(line.contains(word), "{case}: {word}: {line}");
        }
    }
}

#[test]
fn check_names_the_database_and_its_version() {
    let zones = Zones::new();
    PARIS_WITHOUT_SUMMER.write(&zones.dir, "Europe/Paris");
    let dir = zones.dir.display();
    let line = |call: Call<'_>| zone_line(&call.run());
    let paris = || zones.check().env("TSV_TIMEZONE", "Europe/Paris");
    let expect = |version: &str| {
        let expected = format!(
            "Europe/Paris (TSV_TIMEZONE) for files that name no zone; rules from {dir} ({version})"
        );
        let line = line(paris());
        assert!(line.ends_with(&expected), "{line}");
    };
    expect("version unknown");
    write(&zones.dir, "+VERSION", b"2031c\n");
    expect("2031c");
    write(&zones.dir, "tzdata.zi", b"# version 2032a\n# This zic input file is in the public domain.\nR A 1916 o - Jun 14 23s 1 S\n");
    expect("2032a");
    // A POSIX rule as the zone: files may still name others.
    let rules = line(zones.check().env("TZ", "CET-1CEST,M3.5.0,M10.5.0/3"));
    let expected = format!("rules of zones named in files from {dir} (2032a)");
    assert!(rules.ends_with(&expected), "{rules}");
}

/// A header comes with an upload: its zone's name does not lead out of the zone folder, nor to what is no zone in it.
/// The default zone is taken, as for any name that is unknown.
#[test]
fn the_name_in_a_header_stays_in_the_zone_folder() {
    let tokyo = ZoneFile::of_rule("JST-9");
    let outside = tempfile::tempdir().expect("a folder");
    tokyo.write(outside.path(), "Outside");
    let absolute = outside.path().join("Outside").display().to_string();
    let zones = Zones::new();
    tokyo.write(&zones.dir, "../Outside");
    tokyo.write(&zones.dir, "posix/Asia/Tokyo");
    tokyo.write(&zones.dir, "localtime");
    tokyo.write(&zones.dir, "Asia/Tokyo");
    tokyo.write(&zones.dir, "Factory");
    tokyo.write(&zones.dir, "Ärzte/Wien");
    let pipe = zones.dir.join("Asia/Pipe");
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::Mode::from_raw_mode(0o644),
    )
    .expect("a pipe");
    let long = format!("Asia/{}", "A".repeat(5_000));
    let names = [
        "../Outside",
        "Asia/../../Outside",
        "Asia/../Asia/Tokyo",
        "Asia//Tokyo",
        "./Asia/Tokyo",
        "/Asia/Tokyo",
        "Asia/Tokyo/",
        "Asia/Tokyo\0",
        " Asia/Tokyo",
        ":Asia/Tokyo",
        "posix/Asia/Tokyo",
        "localtime",
        "Factory",
        "Ärzte/Wien",
        "Asia/Pipe",
        "Asia",
        "",
        &absolute,
        &long,
    ];
    for (day, name) in names.iter().enumerate() {
        let file = with_zone(name, "01/07/27 12:00:00");
        zones.site.put(format!("acme/site/{day}/x.tsv"), file);
    }
    zones.run().env("TZ", "UTC0").ok();
    let points = zones.site.lp_points("acme");
    assert_eq!(points.len(), names.len());
    assert!(points.iter().all(|p| p.epoch == JULY_2027), "{points:?}");
    // With the correct name, the zone is Tokyo's.
    let file = with_zone("Asia/Tokyo", "01/07/27 21:00:00");
    zones.site.put("tokyo/site/1/x.tsv", file);
    zones.run().env("TZ", "UTC0").ok();
    assert_eq!(zones.site.lp_points("tokyo")[0].epoch, JULY_2027);
}

/// `status` reads files with the same rules.
#[test]
fn status_reads_the_last_measurement_with_the_systems_rules() {
    let zones = Zones::new();
    PARIS_WITHOUT_SUMMER.write(&zones.dir, "Europe/Paris");
    zones
        .site
        .put(DEVICE.file("x.tsv"), plain("01/07/27 13:00:00"));
    let run = zones
        .site
        .bare()
        .args(["status", "--json", "-d"])
        .arg(zones.site.data())
        .env("TZDIR", &zones.dir)
        .run();
    let found: serde_json::Value = serde_json::from_str(&run.stdout).expect("JSON");
    assert_eq!(
        found["devices"][0]["last_measurement"],
        "2027-07-01T12:00:00Z"
    );
}

/// `TZDIR` may be set in `.env`, like `TZ`.
#[test]
fn the_zone_folder_may_be_set_in_env() {
    let zones = Zones::new();
    PARIS_WITHOUT_SUMMER.write(&zones.dir, "Europe/Paris");
    zones
        .site
        .put(DEVICE.file("x.tsv"), plain("01/07/27 13:00:00"));
    let text = format!("TZDIR={}\n", zones.dir.display());
    std::fs::write(zones.site.dir.path().join("cwd/.env"), text).expect("written");
    zones.site.lp_run().ok();
    assert_eq!(zones.only_epoch(), JULY_2027);
}
