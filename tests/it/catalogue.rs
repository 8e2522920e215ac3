//! The catalogue of channels: `powerview channels`. See docs/specification.md, section 12.

use crate::harness::{Call, Run, Site};
use crate::real_influx::RealInflux;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

const CATALOGUE: &str = "acme/site/channels.csv";
const REFUSAL: &str = "acme/site/channels.error.txt";
const MARKER: &str = "acme/site/.channels.applied";

/// The line of titles as the program writes it.
const TITLES: &str =
    "\u{feff}channel_id;device;channel;unit;name;circuit;phase;role;hidden;formula;continues\r\n";

/// A file of a master with a voltage and a power, and of a slave with the three phases of a circuit.
const FILE: &str = "02001171\t02001171\t02001171\t04000466\t04000466\t04000466\n\
    MV_T302_V002\tPh 1 V\tVoie1 W\tD39L1 W\tD39L2 W\tD39L3 W\n\
    03/08/25 03:20:00\t230\t100\t1\t2\t3\n\
    03/08/25 03:30:00\t231\t200\t4\t5\t6\n";

/// The lines of these channels as the program writes them.
const LINES: &str = "M02001171_Ch1_M02001171;02001171;Ph 1;V;;;;;;;\r\n\
    M02001171_Ch2_M02001171;02001171;Voie1;W;;;;;;;\r\n\
    S04000466_Ch1_M02001171;04000466;D39L1;W;;D39;L1;;;;\r\n\
    S04000466_Ch2_M02001171;04000466;D39L2;W;;D39;L2;;;;\r\n\
    S04000466_Ch3_M02001171;04000466;D39L3;W;;D39;L3;;;;\r\n";

/// A site with an ingested file.
fn site() -> Site {
    let site = Site::new();
    site.put_old("acme/site/02001171/parsed/a.tsv", FILE);
    site
}

fn channels(site: &Site) -> Call<'_> {
    let call = site.subcommand("channels");
    call.args(["--company", "acme", "--campaign", "site"])
}

fn check(site: &Site) -> Run {
    channels(site).arg("--check").run().clean()
}

/// A call that applies the catalogue to a server.
fn apply<'a>(site: &'a Site, server: &RealInflux) -> Call<'a> {
    connect(channels(site).arg("--apply"), server)
}

fn connect<'a>(call: Call<'a>, server: &RealInflux) -> Call<'a> {
    call.server(&server.url(), server.token(), server.org())
        .env("TSV_RETRY_FOR", "20")
        .env("TSV_REQUEST_TIMEOUT_S", "30")
}

/// A call that applies the catalogue, but finds no server.
fn apply_without_server(site: &Site) -> Run {
    let call = channels(site).arg("--apply");
    let call = call.server("http://127.0.0.1:9", "token", "powerview");
    call.run().clean()
}

/// A catalogue with these lines, each with what it has in the first columns of another order.
fn put(site: &Site, lines: &[&str]) {
    let mut text =
        "channel_id;name;role;formula;continues;hidden;circuit;phase;device;channel;unit\r\n"
            .to_owned();
    for line in lines {
        let missing = 10 - line.matches(';').count();
        text += &format!("{line}{}\r\n", ";".repeat(missing));
    }
    site.put(CATALOGUE, text);
}

fn read(site: &Site, path: &str) -> String {
    String::from_utf8(site.read(path)).expect("UTF-8")
}

/// The stored entries by campaign and id, without the fields that are empty.
fn stored(
    server: &RealInflux,
    bucket: &str,
) -> BTreeMap<(String, String), BTreeMap<String, String>> {
    let rows = server.rows(&format!(
        "from(bucket: \"{bucket}\") |> range(start: 0, stop: 2200-01-01T00:00:00Z)
           |> filter(fn: (r) => r._measurement == \"powerview_channels\")"
    ));
    let mut entries: BTreeMap<_, BTreeMap<String, String>> = BTreeMap::new();
    for row in rows {
        assert_eq!(row["_time"], "2100-01-01T00:00:00Z");
        let key = (row["campaign"].clone(), row["channel_id"].clone());
        let value = row.get("_value").cloned().unwrap_or_default();
        let fields = entries.entry(key).or_default();
        assert_eq!(fields.insert(row["_field"].clone(), value), None);
    }
    for fields in entries.values_mut() {
        assert_eq!(
            fields.len(),
            12,
            "all fields are always written: {fields:?}"
        );
        fields.retain(|_, value| !value.is_empty());
    }
    entries
}

/// The stored entries of the campaign `site` of `acme`.
fn entries(server: &RealInflux) -> BTreeMap<String, BTreeMap<String, String>> {
    let entries = stored(server, "acme").into_iter();
    entries
        .map(|((campaign, id), fields)| {
            assert_eq!(campaign, "site");
            (id, fields)
        })
        .collect()
}

fn fields(values: &[(&str, &str)]) -> BTreeMap<String, String> {
    let values = values.iter();
    values
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

// --- write ----------------------------------------------------------------------------------------------------------

#[test]
fn a_catalogue_is_written_from_the_files_alone_with_a_warning() {
    let site = site();
    let run = channels(&site).ok();
    assert_eq!(read(&site, CATALOGUE), format!("{TITLES}{LINES}"));
    assert_eq!(
        run.stdout,
        "acme/site/channels.csv: 5 channels added, 0 lines before\n"
    );
    assert!(
        run.stderr.contains("no server is configured"),
        "{}",
        run.stderr
    );
    assert_eq!(check(&site).code(), 0);
    // The client who reads it over SFTP has the rights of the folder's owner or group.
    let file = site.path(CATALOGUE).metadata().expect("a file");
    let folder = site.path("acme/site").metadata().expect("a folder");
    assert_eq!(file.permissions().mode() & 0o440, 0o440);
    assert_eq!((file.uid(), file.gid()), (folder.uid(), folder.gid()));
}

#[test]
fn an_unavailable_server_is_a_warning_when_a_catalogue_is_written() {
    let site = site();
    let call = channels(&site).server("http://127.0.0.1:9", "token", "powerview");
    let run = call.ok();
    assert!(
        run.stderr
            .contains("are not known, only those of the newest files"),
        "{}",
        run.stderr
    );
    assert_eq!(read(&site, CATALOGUE), format!("{TITLES}{LINES}"));
}

#[test]
fn channels_of_new_and_of_waiting_files_are_added_at_the_end_and_lines_stay_byte_for_byte() {
    let site = site();
    let old = TITLES.to_owned()
        + "M02001171_Ch2_M02001171 ;x;\"Voie1\"; W;Arrivée;;;total;;;\n\r\n;Net;;;Net;;;;;Ch2;\n";
    site.put(CATALOGUE, &old);
    let new = FILE
        .replace("04000466", "05000001")
        .replace("D39L1", "Four");
    site.put_old("acme/site/02001171/b.tsv", new);
    let run = channels(&site).ok();
    let added = "M02001171_Ch1_M02001171;02001171;Ph 1;V;;;;;;;\r\n\
        S04000466_Ch1_M02001171;04000466;D39L1;W;;D39;L1;;;;\r\n\
        S04000466_Ch2_M02001171;04000466;D39L2;W;;D39;L2;;;;\r\n\
        S04000466_Ch3_M02001171;04000466;D39L3;W;;D39;L3;;;;\r\n\
        S05000001_Ch1_M02001171;05000001;Four;W;;;;;;;\r\n\
        S05000001_Ch2_M02001171;05000001;D39L2;W;;;;;;;\r\n\
        S05000001_Ch3_M02001171;05000001;D39L3;W;;;;;;;\r\n";
    assert_eq!(read(&site, CATALOGUE), format!("{old}{added}"));
    assert_eq!(
        run.stdout,
        "acme/site/channels.csv: 7 channels added, 2 lines before\n"
    );
    let inode = || site.path(CATALOGUE).metadata().expect("a file").ino();
    let before = inode();
    channels(&site).ok();
    assert_eq!(
        inode(),
        before,
        "nothing is added, so that the file is not replaced"
    );
    assert_eq!(check(&site).code(), 0);
}

#[test]
fn a_catalogue_with_problems_is_not_extended() {
    let site = site();
    site.put(
        CATALOGUE,
        "channel_id;name\r\nM02001171_Ch1_M02001171;x\r\n",
    );
    let run = channels(&site).run().expect(1);
    assert!(
        run.stdout
            .starts_with("acme/site/channels.csv: line 1: the header line lacks device, channel"),
        "{}",
        run.stdout
    );
    assert!(run.stderr.contains("is not changed"), "{}", run.stderr);
    assert_eq!(
        read(&site, CATALOGUE),
        "channel_id;name\r\nM02001171_Ch1_M02001171;x\r\n"
    );
}

#[test]
fn channels_of_the_database_are_written_too_also_those_of_old_scripts() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    server.ensure_bucket("acme");
    // Another label later, no tag `device`, another campaign, and a field of another program.
    server.write(
        "acme",
        "site,campaign=site,channel_id=M01_Ch1_M01,channel_name=Ancien,channel_number=1,channel_type=master,device=01,device_master_sn=01,device_sn=01,unit=W value=1 1600000000\n\
         site,campaign=site,channel_id=M01_Ch1_M01,channel_name=Nouveau,channel_number=1,channel_type=master,device=01,device_master_sn=01,device_sn=01,unit=kW value=1 1700000000\n\
         site,campaign=site,channel_id=S07_Ch2_M01,channel_name=-Pompe,device_master_sn=01,device_sn=07,unit=W value=1 1500000000\n\
         site,campaign=site,channel_id=other note=\"x\" 1500000000\n\
         site2,campaign=site2,channel_id=M09_Ch1_M09,channel_name=x,unit=W value=1 1600000000",
        "s",
    );
    let site = site();
    let run = connect(channels(&site), &server).ok();
    let expected = "M01_Ch1_M01;01;Nouveau;kW;;;;;;;\r\nS07_Ch2_M01;07;'-Pompe;W;;;;;;;\r\n";
    assert_eq!(read(&site, CATALOGUE), format!("{TITLES}{expected}{LINES}"));
    assert!(!run.stderr.contains("WARN"), "{}", run.stderr);
}

// --- check ----------------------------------------------------------------------------------------------------------

#[test]
fn the_check_prints_each_problem_with_its_line_and_its_remedy_and_changes_nothing() {
    let site = site();
    put(
        &site,
        &[
            "Ch1;x;boss",
            ";y;;Ch7 + Ch2",
            "S04000466_Ch1_M02001171;;part",
        ],
    );
    let before = site.tree();
    let run = check(&site);
    assert_eq!(run.code(), 1);
    let lines: Vec<_> = run.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{}", run.stdout);
    for (line, start, remedy) in [
        (
            lines[0],
            "acme/site/channels.csv: line 2, column channel_id: no channel \"Ch1\" is known",
            "did you mean",
        ),
        (
            lines[1],
            "acme/site/channels.csv: line 2, column role: \"boss\" is not a role",
            "use total, part",
        ),
        (
            lines[2],
            "acme/site/channels.csv: line 3, column formula: no channel \"Ch7\" is known",
            "did you mean",
        ),
    ] {
        assert!(line.starts_with(start) && line.contains(remedy), "{line}");
    }
    assert_eq!(site.tree(), before);
}

#[test]
fn the_check_of_a_valid_catalogue_counts_its_entries_and_warns_of_other_labels() {
    let site = site();
    put(
        &site,
        &[
            "M02001171_Ch2_M02001171;Arrivée;Total;;;;;;02;Voie1;W",
            ";Net;;Ch2 - S04000466_Ch1",
        ],
    );
    let run = check(&site);
    assert_eq!(
        (run.code(), run.stdout.as_str()),
        (0, "acme/site/channels.csv: 2 entries, no problem\n")
    );
    assert!(
        run.stderr
            .contains("known with \"02001171\" instead of \"02\""),
        "{}",
        run.stderr
    );
}

#[test]
fn a_missing_catalogue_and_wrong_names_are_said() {
    let site = site();
    let run = check(&site);
    assert_eq!(run.code(), 1);
    assert!(
        run.stderr.contains("there is no channels.csv"),
        "{}",
        run.stderr
    );
    for (company, campaign) in [
        ("acme", "other"),
        ("other", "site"),
        ("acme", "powerview_channels"),
        ("acme", ".."),
        ("powerview_meta", "site"),
    ] {
        let call = site.subcommand("channels");
        let call = call.args(["--company", company, "--campaign", campaign, "--check"]);
        let run = call.run().expect(2);
        assert!(run.stderr.contains("--c"), "{}", run.stderr);
    }
    let both = channels(&site).args(["--check", "--apply"]);
    both.run().expect(2);
}

// --- apply ----------------------------------------------------------------------------------------------------------

#[test]
fn an_applied_catalogue_is_stored_as_points_and_removed_entries_are_overwritten() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    site.put_old("acme/site/02001171/a.tsv", FILE);
    site.put_old("acme/site2/03/a.tsv", FILE.replace("02001171", "03"));
    connect(site.call(), &server).ok();
    site.put(REFUSAL, "of an earlier one");
    put(
        &site,
        &[
            "M02001171_Ch2_M02001171;Arrivée \"A\", \\ 1;Total;;;;Général;L1",
            "S04000466_Ch1_M02001171;;partie;;;oui",
            "V_reste;Reste;autre;Ch2 - S04000466_Ch1",
            "S04000466_Ch3_M02001171;Four;production;;S04000466_Ch2 jusqu'au 01/03/2026;;Cuisine",
        ],
    );
    let run = apply(&site, &server).ok();
    assert_eq!(run.stdout, "acme/site/channels.csv: 6 entries applied\n");
    assert!(!site.exists(REFUSAL));
    let sum = |terms: Value| json!({"unit": "W", "terms": terms}).to_string();
    let part = |id: &str, from: Value, until: Value| json!({"channel_id": id, "from": from, "until": until});
    let none = Value::Null;
    // 2026-03-01 00:00 in Paris.
    let change = 1_772_319_600;
    let reste = sum(json!([
        {"factor": 1, "parts": [part("M02001171_Ch2_M02001171", none.clone(), none.clone())]},
        {"factor": -1, "parts": [part("S04000466_Ch1_M02001171", none.clone(), none.clone())]},
    ]));
    let four = sum(json!([{"factor": 1, "parts": [
        part("S04000466_Ch2_M02001171", none.clone(), change.into()),
        part("S04000466_Ch3_M02001171", change.into(), none.clone()),
    ]}]));
    let said = [
        ("label", "Four"),
        ("circuit", "Cuisine"),
        ("role", "production"),
        ("unit", "W"),
    ];
    let with = |more: &[(&str, &str)]| fields(&[&said, more].concat());
    let slave = ("device", "04000466");
    let merged = ("merged", "V_S04000466_Ch3_M02001171");
    let expected = BTreeMap::from([
        (
            "M02001171_Ch2_M02001171".to_owned(),
            fields(&[
                ("label", "Arrivée \"A\", \\ 1"),
                ("circuit", "Général"),
                ("phase", "L1"),
                ("role", "total"),
                ("unit", "W"),
                ("device", "02001171"),
                ("channel", "Voie1"),
            ]),
        ),
        (
            "S04000466_Ch1_M02001171".to_owned(),
            fields(&[
                ("label", "D39L1 (04000466)"),
                ("role", "part"),
                ("hidden", "yes"),
                ("unit", "W"),
                slave,
                ("channel", "D39L1"),
            ]),
        ),
        (
            "V_reste".to_owned(),
            fields(&[
                ("label", "Reste"),
                ("role", "other"),
                ("unit", "W"),
                ("device", "virtuel"),
                ("terms", &reste),
            ]),
        ),
        (
            "S04000466_Ch2_M02001171".to_owned(),
            with(&[
                slave,
                ("channel", "D39L2"),
                merged,
                ("valid", "/1772319600"),
            ]),
        ),
        (
            "S04000466_Ch3_M02001171".to_owned(),
            with(&[
                slave,
                ("channel", "D39L3"),
                merged,
                ("valid", "1772319600/"),
            ]),
        ),
        (
            "V_S04000466_Ch3_M02001171".to_owned(),
            with(&[slave, ("channel", "D39L3"), ("terms", &four)]),
        ),
    ]);
    assert_eq!(entries(&server), expected);
    let marker: Value = serde_json::from_slice(&site.read(MARKER)).expect("JSON");
    assert_eq!(
        (&marker["state"], &marker["has_virtual"]),
        (&json!("applied"), &json!(true))
    );

    // Another campaign of the same company has a catalogue of its own.
    site.put(
        "acme/site2/channels.csv",
        format!("{TITLES}M03_Ch1_M03;;;;Tension;;;;;;\r\n"),
    );
    let call =
        site.subcommand("channels")
            .args(["--company", "acme", "--campaign", "site2", "--apply"]);
    connect(call, &server).ok();

    put(&site, &["M02001171_Ch2_M02001171;Nouveau"]);
    apply(&site, &server).ok();
    let all = stored(&server, "acme");
    assert_eq!(
        all[&("site2".to_owned(), "M03_Ch1_M03".to_owned())]["label"],
        "Tension"
    );
    let site1 = all
        .into_iter()
        .filter(|((campaign, _), _)| campaign == "site");
    for ((_, id), found) in site1 {
        if id == "M02001171_Ch2_M02001171" {
            assert_eq!(found["label"], "Nouveau");
            assert_eq!(found.get("circuit"), None);
        } else {
            assert_eq!(found, fields(&[("state", "removed")]), "{id}");
        }
    }
    let marker: Value = serde_json::from_slice(&site.read(MARKER)).expect("JSON");
    assert_eq!(marker["has_virtual"], json!(false));
}

#[test]
fn a_refused_catalogue_changes_nothing_and_says_why_in_french_and_english() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = site();
    put(&site, &["M02001171_Ch2_M02001171;Avant"]);
    apply(&site, &server).ok();
    let before = entries(&server);
    put(
        &site,
        &[
            "M02001171_Ch2_M02001171;Après",
            "M03_Ch1_M03;d'une autre campagne",
        ],
    );
    let run = apply(&site, &server).run().expect(1);
    assert!(
        run.stdout
            .contains("line 3, column channel_id: no channel \"M03_Ch1_M03\" is known"),
        "{}",
        run.stdout
    );
    assert!(
        run.stderr
            .contains("nothing has changed, and channels.error.txt beside it says so"),
        "{}",
        run.stderr
    );
    assert_eq!(entries(&server), before);
    let text = read(&site, REFUSAL);
    let text = text.strip_prefix('\u{feff}').expect("a byte order mark");
    let lines: Vec<_> = text.split("\r\n").collect();
    assert_eq!(
        lines[0],
        "Le catalogue channels.csv a été refusé ; rien n'a changé."
    );
    assert!(
        lines[1].starts_with(
            "- ligne 3, colonne channel_id : la voie « M03_Ch1_M03 » n'est pas connue"
        ),
        "{text}"
    );
    assert_eq!(
        lines[4],
        "The catalogue channels.csv was refused; nothing has changed."
    );
    assert!(
        lines[5].starts_with("- line 3, column channel_id: no channel \"M03_Ch1_M03\" is known"),
        "{text}"
    );
    let marker: Value = serde_json::from_slice(&site.read(MARKER)).expect("JSON");
    assert_eq!(marker["state"], json!("refused"));
    put(&site, &["M02001171_Ch2_M02001171;Après"]);
    apply(&site, &server).ok();
    assert_eq!(
        entries(&server)["M02001171_Ch2_M02001171"]["label"],
        "Après"
    );
    assert!(!site.exists(REFUSAL));
}

#[test]
fn without_a_server_nothing_is_applied_and_the_next_call_does_it() {
    let site = site();
    put(&site, &["M02001171_Ch2_M02001171;Arrivée"]);
    let run = apply_without_server(&site);
    assert_eq!(run.code(), 1);
    assert!(
        run.stderr
            .contains("is not applied: the server is not available"),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr.contains("nothing has changed, run it again"),
        "{}",
        run.stderr
    );
    assert!(!site.exists(REFUSAL) && !site.exists(MARKER));
    let Some(server) = RealInflux::start() else {
        return;
    };
    apply(&site, &server).ok();
    assert_eq!(
        entries(&server)["M02001171_Ch2_M02001171"]["label"],
        "Arrivée"
    );
}

#[test]
fn a_campaign_that_another_process_works_on_is_left_alone() {
    let site = site();
    put(&site, &["M02001171_Ch2_M02001171;Arrivée"]);
    let lock = site.lock("acme/site");
    let call = channels(&site).arg("--apply").env("TSV_LOCK_WAIT_S", "0");
    let run = call
        .server("http://127.0.0.1:9", "token", "powerview")
        .run()
        .expect(1);
    assert!(
        run.stderr.contains("campaign folder is locked by process"),
        "{}",
        run.stderr
    );
    drop(lock);
}

#[test]
fn a_catalogue_that_is_being_written_is_not_applied() {
    let site = site();
    put(&site, &["M02001171_Ch2_M02001171;Arrivée"]);
    let open = std::fs::File::options()
        .append(true)
        .open(site.path(CATALOGUE))
        .expect("opened");
    let run = apply_without_server(&site);
    assert_eq!(run.code(), 1);
    assert!(
        run.stderr.contains("it is being written; run it again"),
        "{}",
        run.stderr
    );
    drop(open);
    assert!(!site.exists(MARKER));
}

#[test]
fn channels_whose_points_have_expired_stay_known_by_the_stored_catalogue() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = site();
    put(&site, &["S04000466_Ch2_M02001171;Four"]);
    apply(&site, &server).ok();
    std::fs::remove_dir_all(site.path("acme/site/02001171")).expect("removed");
    put(&site, &["S04000466_Ch2_M02001171;Four;part"]);
    apply(&site, &server).ok();
    let found = &entries(&server)["S04000466_Ch2_M02001171"];
    assert_eq!(
        (
            found["role"].as_str(),
            found["channel"].as_str(),
            found["unit"].as_str()
        ),
        ("part", "D39L2", "W")
    );
    // One that was removed is not known any more.
    put(&site, &[]);
    apply(&site, &server).ok();
    put(&site, &["S04000466_Ch2_M02001171;Four;part"]);
    apply(&site, &server).run().expect(1);
}
