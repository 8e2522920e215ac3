//! Catalogues of channels with real servers: an SFTP client uploads files and catalogues, and the panels of the dashboard
//! show what they say. The tests need `INFLUXD_BIN` and `SFTPGO_BIN`.

use crate::grafana::{Frame, View, dashboard, panel, panels};
use crate::real_influx::RealInflux;
use crate::sftpgo::{Setup, Site, wait_for};
use chrono::{DateTime, Duration, TimeZone as _, Utc};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

const MASTER: &str = "02001171";
const DEVICE: &str = "site été/02001171";
const RECOMMENDED: [(&str, &str); 3] = [
    ("SFTPGO_COMMON__UPLOAD_MODE", "1"),
    ("SFTPGO_COMMON__ACTIONS__EXECUTE_ON", "upload,rename,mkdir"),
    ("SFTPGO_COMMON__ACTIONS__HOOK", "HOOK"),
];
const SWEEP_PER_SESSION: [(&str, &str); 6] = [
    ("SFTPGO_COMMON__ACTIONS__EXECUTE_ON", "mkdir"),
    ("SFTPGO_COMMON__ACTIONS__HOOK", "HOOK"),
    ("SFTPGO_COMMON__POST_DISCONNECT_HOOK", "HOOK"),
    ("SFTPGO_COMMAND__COMMANDS__0__PATH", "HOOK"),
    ("SFTPGO_COMMAND__COMMANDS__0__ENV", "SFTPGO_ACTION=upload"),
    ("SFTPGO_COMMAND__COMMANDS__0__HOOK", "post_disconnect"),
];

/// Seconds between two rows of a file.
const STEP: i64 = 600;

/// The channels of the files: the serial, the label, and the power in W at the begin of a day and at its end.
const CHANNELS: [(&str, &str, f64, f64); 11] = [
    (MASTER, "Ph 1 V", 230.0, 231.0),
    (MASTER, "Ph 2 V", 231.0, 232.0),
    (MASTER, "Ph 3 V", 232.0, 233.0),
    // The connection to the grid.
    ("04000466", "D1L1 W", 4_000.0, 7_000.0),
    ("04000466", "D1L2 W", 5_000.0, 5_500.0),
    ("04000466", "D1L3 W", 9_000.0, 3_000.0),
    // Two ovens, a boiler and something that nobody needs to see.
    ("04000467", "Voie1 W", 1_000.0, 2_500.0),
    ("04000467", "Voie2 W", 1_500.0, 500.0),
    ("04000467", "Voie3 W", 800.0, 900.0),
    ("04000467", "Voie4 W", 70.0, 30.0),
    // Solar panels: what they produce is positive.
    ("04000468", "Voie1 W", 0.0, 6_000.0),
];

/// The catalogue: the ids are those of the specification.
const CATALOGUE: &str = "\u{feff}channel_id;device;channel;unit;name;circuit;phase;role;hidden;formula;continues\r\n\
    M02001171_Ch1_M02001171;02001171;Ph 1;V;Tension L1;;;;;;\r\n\
    M02001171_Ch2_M02001171;02001171;Ph 2;V;Tension L2;;;;;;\r\n\
    M02001171_Ch3_M02001171;02001171;Ph 3;V;Tension L3;;;;;;\r\n\
    S04000466_Ch1_M02001171;04000466;D1L1;W;Arrivée L1;Arrivée;L1;total;;;\r\n\
    S04000466_Ch2_M02001171;04000466;D1L2;W;Arrivée L2;Arrivée;L2;total;;;\r\n\
    S04000466_Ch3_M02001171;04000466;D1L3;W;Arrivée L3;Arrivée;L3;total;;;\r\n\
    S04000467_Ch1_M02001171;04000467;Voie1;W;Four à pain;Fours;L1;part;;;\r\n\
    S04000467_Ch2_M02001171;04000467;Voie2;W;\"Four \"\"2\"\" #b\";Fours;L2;part;;;\r\n\
    S04000467_Ch3_M02001171;04000467;Voie3;W;Ballon;Eau chaude;L3;part;;;\r\n\
    S04000467_Ch4_M02001171;04000467;Voie4;W;Secret;;;other;oui;;\r\n\
    S04000468_Ch1_M02001171;04000468;Voie1;W;Solaire;;;production;;;\r\n\
    ;;;;Reste;;;;;S04000466_Ch1 + S04000466_Ch2 + S04000466_Ch3 - S04000467_Ch1 - S04000467_Ch2 - S04000467_Ch3;\r\n";

/// The first day of the files.
fn first_day() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2025, 8, 3, 0, 0, 0).unwrap()
}

/// The power of a channel at a time.
fn power((_, _, first, last): (&str, &str, f64, f64), time: DateTime<Utc>) -> f64 {
    let seconds = time.timestamp().rem_euclid(86_400) as f64;
    first + (last - first) * seconds / 86_400.0
}

/// The file of a day after the first one: rows from midnight to 23:50.
fn file(day: i64) -> String {
    let serials = CHANNELS.iter().map(|c| c.0).collect::<Vec<_>>().join("\t");
    let labels = CHANNELS.iter().map(|c| c.1).collect::<Vec<_>>().join("\t");
    let mut text = format!(
        "START_HEADER\n{{\"DataTimeSettings\":\"UTC\",\"MasterType\":\"Tri\"}}\nEND_HEADER\nSTART_DATA\n{MASTER}\t{serials}\nMV_T302_V003\t{labels}\n"
    );
    for row in 0..86_400 / STEP {
        let time = first_day() + Duration::days(day) + Duration::seconds(row * STEP);
        write!(text, "{}", time.format("%d/%m/%y %H:%M:%S")).expect("text");
        for channel in CHANNELS {
            write!(text, "\t{}", power(channel, time)).expect("text");
        }
        text.push('\n');
    }
    text + "END_DATA\n"
}

/// The energy of a channel in kWh within days: the area below the lines between its rows, the last of which is at 23:50 of
/// the last day.
fn energy(index: usize, days: i64) -> f64 {
    let power = |row: i64| power(CHANNELS[index], first_day() + Duration::seconds(row * STEP));
    let rows = days * 86_400 / STEP;
    let areas = (1..rows).map(|row| f64::midpoint(power(row - 1), power(row)) * STEP as f64);
    areas.sum::<f64>() / 3_600_000.0
}

struct Servers {
    influx: RealInflux,
    sftpgo: PathBuf,
}

fn servers() -> Option<Servers> {
    let sftpgo = crate::sftpgo::program()?;
    Some(Servers {
        influx: RealInflux::start()?,
        sftpgo,
    })
}

impl Servers {
    fn start(&self, settings: &[(&str, &str)]) -> Site {
        let dot_env = format!(
            "INFLUXDB_HOST={}\nINFLUXDB_ORG={}\nINFLUXDB_ADMIN_TOKEN={}\nTSV_TIMEZONE=Europe/Paris\n\
             TSV_LOCK_WAIT_S=60\nANSIBLE_PLAYBOOK_BIN=/bin/true\n",
            self.influx.url(),
            self.influx.org(),
            self.influx.token()
        );
        let site = Site::start(&Setup {
            settings,
            dot_env: &dot_env,
            companies: &["acme"],
            ..Setup::new(&self.sftpgo)
        });
        site.run_commands("acme", &format!("mkdir \"site été\"\nmkdir \"{DEVICE}\"\n"));
        site
    }

    /// The dashboard of the campaign over some of its days.
    fn view(&self, master: &Value, days: i64) -> View {
        let rfc = |time: DateTime<Utc>| time.format("%Y-%m-%dT%H:%M:%SZ").to_string();
        let range = (rfc(first_day()), rfc(first_day() + Duration::days(days)));
        View::of(master, "acme", "site été", (&range.0, &range.1), 1800)
    }

    /// What `powerview` of the site does with these arguments: its exit status and its output.
    fn powerview(&self, site: &Site, args: &[&str]) -> (i32, String) {
        let mut command = Command::new(site.path("base/bin/powerview"));
        command.env_clear().current_dir(site.path("base"));
        command.args(args).arg("--dataFolder").arg(site.data());
        let output = command.output().expect("powerview starts");
        let text = [output.stdout, output.stderr].concat();
        let code = output.status.code().expect("an exit status");
        (code, String::from_utf8_lossy(&text).into_owned())
    }
}

/// Waits until files are ingested.
fn wait_for_files(site: &Site, count: usize) {
    let parsed = site.data().join("acme").join(DEVICE).join("parsed");
    let ingested = || std::fs::read_dir(&parsed).map_or(0, |entries| entries.flatten().count());
    wait_for("the files", 120, || ingested() == count, || site.log());
}

/// Waits until the catalogue is as applied, or refused, as its last upload.
fn wait_for_catalogue(site: &Site, state: &str) {
    let campaign = site.data().join("acme/site été");
    let is_so = || {
        let marker = std::fs::read_to_string(campaign.join(".channels.applied"));
        marker.is_ok_and(|text| text.contains(&format!("\"{state}\"")))
    };
    wait_for("the catalogue", 60, is_so, || site.log());
}

/// Waits until the calls of the hook have done all their work. Hourly summaries come after the moves of files.
fn wait_for_calls(site: &Site) {
    let has_notes = || {
        let queues = std::fs::read_dir(site.path("sftpgo/logs/queue"));
        let queues = queues.into_iter().flatten().flatten();
        let mut queues = queues.filter(|queue| {
            let name = queue.file_name();
            name != "tried" && name != "turns"
        });
        queues.any(|queue| {
            let notes = std::fs::read_dir(queue.path()).into_iter().flatten();
            let mut notes = notes.flatten();
            notes.any(|note| note.file_name() != ".lock")
        })
    };
    wait_for("the end of the work", 60, || !has_notes(), || site.log());
}

/// Writes a file that is uploaded.
fn local(site: &Site, name: &str, text: &str) -> String {
    let path = site.dir.path().join(name);
    std::fs::write(&path, text).expect("a file");
    path.display().to_string()
}

fn put_days(site: &Site, days: std::ops::Range<i64>) -> String {
    let put = |day| {
        let name = format!("T302_{day:03}.tsv");
        format!(
            "put \"{}\" \"{DEVICE}/{name}\"\n",
            local(site, &name, &file(day))
        )
    };
    days.map(put).collect()
}

fn put_catalogue(site: &Site, name: &str, text: &str) -> String {
    format!(
        "put \"{}\" \"site été/channels.csv\"\n",
        local(site, name, text)
    )
}

/// All texts of the answers of a panel.
fn texts(view: &View, servers: &Servers, panel: &Value) -> BTreeSet<String> {
    let frames = view.frames(&servers.influx, panel).into_iter();
    frames
        .flat_map(|frame| match frame {
            Frame::Series { name, labels, .. } => {
                let mut texts: Vec<_> = labels.into_values().collect();
                texts.push(name);
                texts
            }
            Frame::Rows(rows) => rows.into_iter().flat_map(BTreeMap::into_values).collect(),
        })
        .collect()
}

/// Asserts that the numbers of a table are these, to six digits.
fn assert_energies(rows: &[(String, f64)], expected: &[(&str, f64)]) {
    let mut rows = rows.to_vec();
    let mut expected = expected.to_vec();
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    expected.sort_by(|a, b| a.0.cmp(b.0));
    let names = |rows: &[(&str, f64)]| rows.iter().map(|row| row.0.to_owned()).collect::<Vec<_>>();
    let found: Vec<_> = rows.iter().map(|row| (row.0.as_str(), row.1)).collect();
    assert_eq!(names(&found), names(&expected));
    for (found, expected) in found.iter().zip(&expected) {
        let difference = (found.1 - expected.1).abs();
        assert!(
            difference <= 1e-6 * expected.1.abs(),
            "{}: {} instead of {}",
            found.0,
            found.1,
            expected.1
        );
    }
}

/// The energies of a table by the text of a column.
fn energies(view: &View, servers: &Servers, table: &Value, column: &str) -> Vec<(String, f64)> {
    let rows = view.rows(&servers.influx, table).into_iter();
    let energy = |row: &BTreeMap<String, String>| row["Énergie (kWh)"].parse().expect("a number");
    rows.map(|row| (row[column].clone(), energy(&row)))
        .collect()
}

/// What the catalogue and the files of some days show.
fn assert_shown(servers: &Servers, days: i64) {
    let master = dashboard("master");
    let view = servers.view(&master, days);
    let of = |indexes: &[usize]| indexes.iter().map(|i| energy(*i, days)).sum::<f64>();
    let channels = panel(&master, "table", "Bilan par voie");
    assert_energies(
        &energies(&view, servers, channels, "Voie"),
        &[
            ("Arrivée L1", of(&[3])),
            ("Arrivée L2", of(&[4])),
            ("Arrivée L3", of(&[5])),
            ("Four à pain", of(&[6])),
            ("Four \"2\" #b", of(&[7])),
            ("Ballon", of(&[8])),
            ("Solaire", of(&[10])),
            ("Reste", of(&[3, 4, 5]) - of(&[6, 7, 8])),
        ],
    );
    let circuits = panel(&master, "table", "Énergie par circuit");
    let found = energies(&view, servers, circuits, "Circuit");
    for (circuit, energy) in [
        ("Arrivée", of(&[3, 4, 5])),
        ("Fours", of(&[6, 7])),
        ("Eau chaude", of(&[8])),
    ] {
        let rows: Vec<_> = found
            .iter()
            .filter(|row| row.0 == circuit)
            .cloned()
            .collect();
        assert_energies(&rows, &[(circuit, energy)]);
    }
    // The total is that of the role, and the production needs no choice.
    let total = view.rows(&servers.influx, panel(&master, "stat", "Énergie"));
    let total = total[0]["Soutirée (kWh)"].parse().expect("a number");
    assert_energies(&[("total".into(), total)], &[("total", of(&[3, 4, 5]))]);
    let production = panel(&master, "stat", "Production et autoconsommation");
    let produced = view.rows(&servers.influx, production);
    let produced = produced[0]["Produite (kWh)"].parse().expect("a number");
    assert_energies(
        &[("production".into(), produced)],
        &[("production", of(&[10]))],
    );
    // The voltages have names too.
    let voltages = texts(&view, servers, panel(&master, "timeseries", "Tensions"));
    let named = ["Tension L1", "Tension L2", "Tension L3"].map(str::to_owned);
    assert_eq!(voltages, BTreeSet::from(named));
    let powers = texts(
        &view,
        servers,
        panel(&master, "timeseries", "Puissance par voie"),
    );
    for name in [
        "Arrivée L1",
        "Four à pain",
        "Four \"2\" #b",
        "Ballon",
        "Solaire",
        "Reste",
    ] {
        assert!(powers.contains(name), "{name}: {powers:?}");
    }
    // No panel shows a hidden channel, or what a logger calls one that has a name.
    for panel in panels(&master) {
        for text in texts(&view, servers, panel) {
            let is_shown = ["Secret", "Voie", "D1L", "Ph "]
                .iter()
                .find(|name| text.contains(**name));
            assert_eq!(is_shown, None, "{}: {text}", panel["title"]);
        }
    }
}

#[test]
fn an_uploaded_catalogue_names_the_channels_in_every_panel() {
    let Some(servers) = servers() else { return };
    let site = servers.start(&RECOMMENDED);
    site.run_commands("acme", &put_days(&site, 0..3));
    wait_for_files(&site, 3);
    site.run_commands("acme", &put_catalogue(&site, "first.csv", CATALOGUE));
    wait_for_catalogue(&site, "applied");
    wait_for_calls(&site);
    let refusal = site.data().join("acme/site été/channels.error.txt");
    assert!(!refusal.exists(), "{}", site.log());
    assert_shown(&servers, 3);

    // A bad one changes nothing, and the client can read why.
    let bad = CATALOGUE.replace("Ballon;Eau chaude;L3;part", "Ballon;Eau chaude;L3;partout");
    site.run_commands("acme", &put_catalogue(&site, "bad.csv", &bad));
    wait_for_catalogue(&site, "refused");
    site.run_commands(
        "acme",
        &format!(
            "get \"site été/channels.error.txt\" \"{}\"\n",
            local(&site, "reasons", "")
        ),
    );
    let reasons = std::fs::read_to_string(site.dir.path().join("reasons")).expect("a text");
    assert!(reasons.starts_with('\u{feff}'), "{reasons}");
    let (french, english) = (reasons.find("ligne 10"), reasons.find("line 10"));
    assert!(french.is_some() && french < english, "{reasons}");
    assert!(reasons.contains("partout"), "{reasons}");
    assert_shown(&servers, 3);

    // The next good one applies to the whole past.
    let renamed = CATALOGUE.replace("Ballon", "Cumulus");
    site.run_commands("acme", &put_catalogue(&site, "renamed.csv", &renamed));
    wait_for_catalogue(&site, "applied");
    wait_for(
        "the removal of the reasons",
        30,
        || !refusal.exists(),
        || site.log(),
    );
    let master = dashboard("master");
    let view = servers.view(&master, 3);
    let names = texts(
        &view,
        &servers,
        panel(&master, "timeseries", "Puissance par voie"),
    );
    assert!(
        names.contains("Cumulus") && !names.contains("Ballon"),
        "{names:?}"
    );
}

#[test]
fn a_sweep_at_the_end_of_a_session_applies_an_uploaded_catalogue() {
    let Some(servers) = servers() else { return };
    let site = servers.start(&SWEEP_PER_SESSION);
    let upload = put_days(&site, 0..2) + &put_catalogue(&site, "first.csv", CATALOGUE);
    site.run_commands("acme", &upload);
    wait_for_files(&site, 2);
    wait_for_catalogue(&site, "applied");
    wait_for_calls(&site);
    assert_shown(&servers, 2);
}

#[test]
fn a_catalogue_may_change_while_files_arrive() {
    const DAYS: i64 = 24;
    let Some(servers) = servers() else { return };
    let site = servers.start(&RECOMMENDED);
    site.run_commands("acme", &put_days(&site, 0..1));
    wait_for_files(&site, 1);
    let other = CATALOGUE
        .replace("Ballon", "Cumulus")
        .replace("- S04000467_Ch3;", "- S04000467_Ch4;");
    let catalogues = [
        put_catalogue(&site, "first.csv", CATALOGUE),
        put_catalogue(&site, "other.csv", &other),
    ];
    let mut files = site.session("acme", &put_days(&site, 1..DAYS), &[]);
    let changes = (0..9)
        .map(|n| catalogues[n % 2].as_str())
        .collect::<String>();
    site.run_commands("acme", &changes);
    assert!(files.wait().expect("an end").success());
    wait_for_files(&site, usize::try_from(DAYS).expect("days"));
    wait_for_catalogue(&site, "applied");
    wait_for_calls(&site);
    // A sweep does what calls that waited for one another have left.
    let (code, text) = servers.powerview(&site, &[]);
    assert_eq!(code, 0, "{text}");
    let (code, text) = servers.powerview(&site, &["verify"]);
    assert_eq!(code, 0, "{text}\n{}", site.log());
    assert_shown(&servers, DAYS);
}
