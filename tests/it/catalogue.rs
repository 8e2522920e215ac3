//! The catalogue of channels: `powerview channels`. See docs/specification.md, section 12.

use crate::harness::{Call, Run, Site, number_from_env};
use crate::influx_double::{Double, Fault, ORG, TOKEN, is_query};
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
        run.stderr.contains("nothing has changed; run it again"),
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

// --- other commands -------------------------------------------------------------------------------------------------

#[test]
fn a_rebuilt_bucket_has_the_catalogues_and_so_has_the_former_one_after_an_undo() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    site.put_old("acme/site/02001171/a.tsv", FILE);
    connect(site.call(), &server).ok();
    put(
        &site,
        &[
            "M02001171_Ch2_M02001171;Arrivée \"1\"\\;total",
            ";Net;;Ch2 - S04000466_Ch1",
        ],
    );
    apply(&site, &server).ok();
    let before = entries(&server);
    assert_eq!(before.len(), 2);
    let rebuild = |args: &[&str]| {
        let call = site
            .subcommand("rebuild")
            .args(["--company", "acme", "--yes"]);
        connect(call.args(args), &server).ok()
    };
    let of_company = server.bucket_id("acme");
    let run = rebuild(&[]);
    assert!(!run.stdout.contains("powerview_channels"), "{}", run.stdout);
    assert_ne!(
        server.bucket_id("acme"),
        of_company,
        "the buckets are swapped"
    );
    assert_eq!(entries(&server), before);
    put(&site, &["M02001171_Ch2_M02001171;Après"]);
    apply(&site, &server).ok();
    let after = entries(&server);
    rebuild(&["--undo"]);
    assert_eq!(server.bucket_id("acme"), of_company);
    let undone = entries(&server);
    assert_eq!(undone, after);
    assert_eq!(undone["V_Net"], fields(&[("state", "removed")]));
}

#[test]
fn verify_and_rollup_leave_the_catalogue_out() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    site.put_old("acme/site/02001171/a.tsv", FILE);
    connect(site.call(), &server).env("TSV_ROLLUP", "1").ok();
    put(&site, &["M02001171_Ch2_M02001171;Arrivée;total"]);
    apply(&site, &server).ok();
    let verify = connect(site.subcommand("verify").arg("--json"), &server)
        .env("TSV_ROLLUP", "1")
        .ok();
    let found: Value = serde_json::from_str(&verify.stdout).expect("JSON");
    assert_eq!(found["unexplained_measurements"], json!([]));
    assert_eq!(found["summaries"]["extra"], json!(0));
    let rollup = connect(site.subcommand("rollup"), &server)
        .env("TSV_ROLLUP", "1")
        .ok();
    assert!(rollup.stdout.contains("acme"), "{}", rollup.stdout);
    let summaries = server.rows(
        "from(bucket: \"acme\") |> range(start: 0, stop: 2200-01-01T00:00:00Z)
           |> filter(fn: (r) => r._measurement == \"powerview_1h\") |> keep(columns: [\"_time\"])",
    );
    assert!(
        !summaries.is_empty()
            && summaries
                .iter()
                .all(|row| row["_time"].starts_with("2025-"))
    );
}

#[test]
fn status_does_not_list_the_files_of_a_catalogue_and_sweeps_leave_them_alone() {
    let site = site();
    put(&site, &["M02001171_Ch2_M02001171;Arrivée"]);
    site.put(REFUSAL, "x");
    for name in ["acme/site/.channels.applied", "acme/site/.channels.csv.tmp"] {
        site.put_old(name, "{}");
        crate::harness::age(&site.path(name), 3 * 86_400);
    }
    let files = site.tree();
    site.lp_run().ok();
    assert_eq!(site.tree(), files);
    let strays = |site: &Site| {
        let run = site.subcommand("status").arg("--json").run().clean();
        let found: Value = serde_json::from_str(&run.stdout).expect("JSON");
        let text = found.to_string();
        text.contains("channels")
    };
    assert!(!strays(&site));
    // Anything else is listed.
    site.put("acme/channels.csv", "x");
    assert!(strays(&site));
}

// --- hostile catalogues ---------------------------------------------------------------------------------------------

/// Checks that a catalogue of these bytes is refused as a whole, by `--check` and by `--apply`, with one message.
#[track_caller]
fn assert_refused(bytes: impl AsRef<[u8]>, message: &str) {
    let site = site();
    site.put(CATALOGUE, bytes.as_ref());
    let run = check(&site);
    assert_eq!(run.code(), 1, "{}", run.stdout);
    let first = run.stdout.lines().next().unwrap_or_default();
    assert!(
        first.starts_with("acme/site/channels.csv: ") && first.contains(message),
        "{first}"
    );
    assert!(run.stdout.len() < 20_000, "{} bytes", run.stdout.len());
    // No server is asked about a file that cannot be read.
    let run = apply_without_server(&site);
    assert_eq!(run.code(), 1);
    let text = read(&site, REFUSAL);
    assert!(text.contains(message) && text.len() < 40_000, "{text}");
    assert_eq!(site.read(CATALOGUE), bytes.as_ref());
}

fn with_lines(lines: &str) -> String {
    format!("{TITLES}{lines}")
}

#[test]
fn a_million_lines_are_refused_in_little_memory() {
    assert_refused(
        with_lines(&"M02001171_Ch2_M02001171;;;;x;;;;;;\r\n".repeat(1_000_000)),
        "larger than 4 MiB",
    );
    assert_refused(
        with_lines(&"x\n".repeat(1_000_000)),
        "line 10002: there are more than 10000 entries",
    );
    let site = site();
    site.put(CATALOGUE, with_lines(&"a;b\n".repeat(1_000_000)));
    let mut running = channels(&site).arg("--check").start();
    let peak = running.peak_kib();
    running.wait().expect(1);
    assert!(peak < 128 * 1024, "{peak} KiB");
    // A million empty lines are no entries.
    site.put(
        CATALOGUE,
        with_lines(&(";;;\n".repeat(1_000_000) + "M02001171_Ch2_M02001171;;;;x\n")),
    );
    assert_eq!(
        check(&site).stdout,
        "acme/site/channels.csv: 1 entry, no problem\n"
    );
}

#[test]
fn ten_thousand_unknown_channels_or_formulas_are_refused_at_once() {
    let unknown: String = (0..10_000)
        .map(|n| format!("S{n}_Ch1_M02001171;;;;x\n"))
        .collect();
    // A chain of formulas that ends in a cycle, and formulas of many channels each.
    let chain: String = (0..9_999)
        .map(|n| format!("V_{n};;;;x;;;;;V_{}\n", n + 1))
        .collect();
    let long = vec!["V_b0"; 200].join("+");
    let wide: String = (1..2_500)
        .map(|n| {
            format!(
                "V_b{n};;;;x;;;;;{}\n",
                long.replace("b0", &format!("b{}", n - 1))
            )
        })
        .collect();
    for (lines, message) in [
        (
            unknown,
            "line 2, column channel_id: no channel \"S0_Ch1_M02001171\" is known",
        ),
        (
            chain.clone() + "V_9999;;;;x;;;;;V_0\n",
            "the formulas use each other: V_0 -> V_1 -> ",
        ),
        (
            chain + "V_9999;;;;x;;;;;Ch2 - Ch2\n",
            "line 10001, column formula: the channels of the formula cancel",
        ),
        (
            format!("V_b0;;;;x;;;;;Ch2\n{wide}"),
            "counts more than 1000000000 times",
        ),
    ] {
        let site = site();
        site.put(CATALOGUE, with_lines(&lines));
        let run = check(&site);
        assert_eq!(run.code(), 1);
        assert!(
            run.stdout.contains(message),
            "{}",
            &run.stdout[..run.stdout.len().min(2_000)]
        );
        assert!(run.stdout.len() < 20_000, "{} bytes", run.stdout.len());
    }
}

#[test]
fn cells_that_a_spreadsheet_would_compute_are_refused() {
    for cell in [
        "=cmd|'/c calc'!A1",
        "+cmd|'/c calc'!A1",
        "-2+3",
        "@SUM(A1)",
        "\"=1+1\"",
        "  =1",
    ] {
        let shown = cell.trim().trim_matches('"');
        for column in 1..9 {
            let before = ";".repeat(column);
            let line = format!("M02001171_Ch2_M02001171{before}{cell}\n");
            assert_refused(
                with_lines(&line),
                &format!("the cell \"{shown}\" begins with"),
            );
        }
    }
    // In a formula it is an unknown channel.
    let site = site();
    site.put(CATALOGUE, with_lines(";;;;x;;;;;=cmd|'/c calc'!A1\n"));
    let run = check(&site);
    assert!(
        run.stdout
            .contains("column formula: no channel \"=cmd|'/c\" is known")
            || run.stdout.contains("cannot be read"),
        "{}",
        run.stdout
    );
    assert_eq!(run.code(), 1);
}

#[test]
fn names_in_markup_or_flux_or_with_quotes_are_stored_as_they_are() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = site();
    let names = [
        "<script>alert(1)</script>",
        "\") |> drop() //",
        "${__from} r[\"x\"] \\\\",
        "a\"b';c, d=e \\",
        "{{ lookup('pipe','x') }}",
    ];
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let ids = [
        "M02001171_Ch1_M02001171",
        "M02001171_Ch2_M02001171",
        "S04000466_Ch1_M02001171",
        "S04000466_Ch2_M02001171",
        "S04000466_Ch3_M02001171",
    ];
    let lines: String = ids
        .iter()
        .zip(names)
        .map(|(id, name)| {
            let cell = quoted(name);
            format!("{id};;;;{cell};{cell}\n")
        })
        .collect();
    site.put(CATALOGUE, with_lines(&lines));
    apply(&site, &server).ok();
    let found = entries(&server);
    for (id, name) in ids.iter().zip(names) {
        assert_eq!(
            (found[*id]["label"].as_str(), found[*id]["circuit"].as_str()),
            (name, name)
        );
    }
    // Control characters, invisible ones and those that change the direction of text are refused.
    for name in [
        "a\u{1b}[31mb",
        "a\u{202e}b",
        "a\u{200b}b",
        "a\u{7f}b",
        "a\u{85}b",
    ] {
        assert_refused(
            with_lines(&format!("M02001171_Ch2_M02001171;;;;{name}\n")),
            "the invisible character \\u{",
        );
    }
    assert_refused(
        with_lines("M02001171_Ch2_M02001171;;;;\"a\nb\"\n"),
        "has a line break",
    );
}

#[test]
fn channels_of_other_campaigns_are_unknown() {
    let site = site();
    site.put_old("acme/site2/03/parsed/a.tsv", FILE.replace("02001171", "03"));
    site.put_old("other/site/05/parsed/a.tsv", FILE.replace("02001171", "05"));
    for (line, column) in [
        ("M03_Ch1_M03;x", "channel_id"),
        (";x;;M05_Ch1", "formula"),
        (
            "M02001171_Ch2_M02001171;x;;;M03_Ch2 until 2026-03-01",
            "continues",
        ),
    ] {
        put(&site, &[line]);
        let run = check(&site);
        assert_eq!(run.code(), 1);
        assert!(
            run.stdout.starts_with(&format!(
                "acme/site/channels.csv: line 2, column {column}: no channel "
            )),
            "{}",
            run.stdout
        );
        assert!(
            !run.stdout.contains("did you mean M03") && !run.stdout.contains("did you mean M05"),
            "{}",
            run.stdout
        );
    }
}

#[test]
fn other_encodings_and_formats_are_refused_by_their_names() {
    let text = with_lines("M02001171_Ch2_M02001171;;;;Entrée\r\n");
    let utf16 =
        |encode: fn(u16) -> [u8; 2]| -> Vec<u8> { text.encode_utf16().flat_map(encode).collect() };
    let plain = text.trim_start_matches('\u{feff}');
    for (bytes, message) in [
        (utf16(u16::to_le_bytes), "in UTF-16"),
        (utf16(u16::to_be_bytes), "in UTF-16"),
        (
            plain.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            "in UTF-16",
        ),
        (
            plain.replace("Entrée", "Entr\0e").into_bytes(),
            "has NUL bytes",
        ),
        (b"PK\x03\x04\x14\0\x06\0".to_vec(), "is a spreadsheet"),
        (
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1".to_vec(),
            "is a spreadsheet",
        ),
        (
            [&b"\xef\xbb\xbf"[..], b"a;\xe9\n"].concat(),
            "begins as UTF-8, but is not",
        ),
        (plain.replace(';', ",").into_bytes(), "separated by commas"),
        (plain.replace(';', "\t").into_bytes(), "separated by tabs"),
        (Vec::new(), "the file is empty"),
        (b"\xef\xbb\xbf\r\n;;;\r\n".to_vec(), "the file is empty"),
        (b"\x89PNG\r\n\x1a\n".to_vec(), "there is no column"),
        (
            [&b"\xff\xfb"[..], &[0xff; 3_000]].concat(),
            "there is no column",
        ),
    ] {
        assert_refused(bytes, message);
    }
    let site = site();
    let windows = plain
        .chars()
        .map(|c| u8::try_from(c).expect("Latin-1"))
        .collect::<Vec<_>>();
    site.put(CATALOGUE, windows);
    assert_eq!(check(&site).code(), 0);
}

#[test]
fn cells_of_megabytes_are_refused() {
    let long = "x".repeat(3 << 20);
    assert_refused(
        with_lines(&format!("M02001171_Ch2_M02001171;;;;{long}\n")),
        "line 2, column name: the cell has more than 128 characters",
    );
    assert_refused(
        with_lines(&format!(";;;;x;;;;;{long}\n")),
        "line 2, column formula: the cell has more than 4096 characters",
    );
    assert_refused(
        with_lines(&format!("{long}\n")),
        "line 2, column channel_id: the cell has more than 1024 characters",
    );
    assert_refused(format!("{long};a\n"), "line 1: there is no column \"xxx");
    assert_refused(
        with_lines(&format!(
            "M02001171_Ch2_M02001171;;;;\"{}",
            "x\n".repeat(1 << 20)
        )),
        "has a line break, or its quotation mark is never closed",
    );
    assert_refused(";".repeat(4 << 20), "the file is empty");
    assert_refused(
        with_lines(&format!(
            "M02001171_Ch2_M02001171{}\n",
            ";x".repeat(1 << 20)
        )),
        "is beyond the last column",
    );
}

#[test]
fn a_link_a_pipe_or_a_folder_instead_of_the_catalogue_is_not_followed() {
    let elsewhere = tempfile::tempdir().expect("a folder");
    let target = elsewhere.path().join("target.csv");
    let valid = with_lines("M02001171_Ch2_M02001171;;;;x\n");
    std::fs::write(&target, &valid).expect("a file");
    let link = |site: &Site| site.link(&target, CATALOGUE);
    let pipe = |site: &Site| {
        let path = site.path(CATALOGUE);
        rustix::fs::mkfifoat(rustix::fs::CWD, path, 0o600.into()).expect("a pipe");
    };
    let folder = |site: &Site| {
        site.make_dir(format!("{CATALOGUE}/x"));
    };
    for (english, french, make) in [
        (
            "a symbolic link",
            "un lien symbolique",
            &link as &dyn Fn(&Site),
        ),
        ("a pipe", "un tube", &pipe),
        ("a folder", "un dossier", &folder),
    ] {
        let site = site();
        make(&site);
        let before = site
            .path(CATALOGUE)
            .symlink_metadata()
            .expect("an entry")
            .ino();
        let run = channels(&site).run().expect(1);
        assert!(
            run.stdout
                .contains(&format!("it is {english} and not a file")),
            "{}",
            run.stdout
        );
        let run = check(&site);
        assert_eq!(run.code(), 1);
        assert!(
            run.stdout
                .contains(&format!("it is {english} and not a file")),
            "{}",
            run.stdout
        );
        assert_eq!(apply_without_server(&site).code(), 1);
        assert!(read(&site, REFUSAL).contains(&format!("ce n'est pas un fichier mais {french} ;")));
        let marker: Value = serde_json::from_slice(&site.read(MARKER)).expect("JSON");
        assert_eq!(marker["state"], json!("refused"));
        assert_eq!(
            site.path(CATALOGUE)
                .symlink_metadata()
                .expect("an entry")
                .ino(),
            before
        );
    }
    assert_eq!(std::fs::read_to_string(&target).expect("a file"), valid);
}

#[test]
fn links_in_place_of_the_files_beside_the_catalogue_are_replaced() {
    let site = site();
    let target = site.dir.path().join("target");
    std::fs::write(&target, "kept").expect("a file");
    for path in [
        REFUSAL,
        MARKER,
        "acme/site/.channels.error.txt.tmp",
        "acme/site/.channels.applied.tmp",
    ] {
        site.link(&target, path);
    }
    site.put(CATALOGUE, "");
    assert_eq!(apply_without_server(&site).code(), 1);
    for path in [REFUSAL, MARKER] {
        assert!(
            site.path(path)
                .symlink_metadata()
                .expect("an entry")
                .is_file(),
            "{path}"
        );
    }
    assert_eq!(std::fs::read_to_string(&target).expect("a file"), "kept");
    // A campaign folder that is a link is not entered.
    site.link(site.path("acme/site"), "acme/linked");
    let call = site
        .subcommand("channels")
        .args(["--company", "acme", "--campaign", "linked"]);
    let run = call.run().expect(1);
    assert!(
        run.stderr.contains("the campaign folder cannot be opened"),
        "{}",
        run.stderr
    );
}

// --- summaries of virtual channels ----------------------------------------------------------------------------------

/// A site whose file is in the database.
fn ingested(server: &RealInflux) -> Site {
    let site = Site::new();
    site.put_old("acme/site/02001171/a.tsv", FILE);
    connect(site.call(), server).ok();
    site
}

/// A formula of `Voie1` and `D39L1`, which have 150 W and 2.5 W in the mean of ten minutes.
fn formula(sign: char) -> String {
    format!("V_sum;Somme;;M02001171_Ch2_M02001171 {sign} S04000466_Ch1_M02001171")
}

/// The energies in Wh of the hours of the virtual channel.
fn energies_of_sum(server: &RealInflux) -> Vec<f64> {
    let rows = server.rows(
        "from(bucket: \"acme\") |> range(start: 0) |> filter(fn: (r) => r._measurement == \"powerview_1h\"
           and r.channel_id == \"V_sum\" and r._field == \"energy_in_wh\")",
    );
    let energy = |row: &BTreeMap<String, String>| row["_value"].parse().expect("a number");
    rows.iter().map(energy).collect()
}

fn assert_energy(server: &RealInflux, watts: f64) {
    let found = energies_of_sum(server);
    assert!(
        found.len() == 1 && (found[0] - watts / 6.0).abs() < 1e-9,
        "{found:?} instead of {}",
        watts / 6.0
    );
}

#[test]
fn summaries_that_an_ended_run_left_out_are_made_even_after_a_refusal() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    for is_removed in [false, true] {
        let site = ingested(&server);
        put(&site, &[&formula('-')]);
        // The entries are stored as by a run that is killed before it makes the summaries.
        let run = apply(&site, &server).env("TSV_ROLLUP", "0").run();
        assert_eq!(run.code(), 0, "{}", run.stderr);
        assert!(
            run.stderr.contains("hourly summaries are turned off"),
            "{}",
            run.stderr
        );
        if is_removed {
            std::fs::remove_file(site.path(MARKER)).expect("removed");
        } else {
            put(&site, &["M02001171_Ch2_M02001171;a;boss"]);
            apply(&site, &server).env("TSV_ROLLUP", "1").run().expect(1);
        }
        put(&site, &[&formula('-')]);
        apply(&site, &server).env("TSV_ROLLUP", "1").ok();
        assert_energy(&server, 147.5);
        put(&site, &[&formula('+')]);
        apply(&site, &server).env("TSV_ROLLUP", "1").ok();
        assert_energy(&server, 152.5);
    }
}

#[test]
fn a_folder_in_place_of_the_reasons_stops_no_catalogue() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = ingested(&server);
    site.make_dir("acme/site/channels.error.txt/x");
    put(&site, &[&formula('+')]);
    let run = apply(&site, &server).env("TSV_ROLLUP", "1").ok();
    assert!(
        run.stderr.contains("channels.error.txt cannot be removed"),
        "{}",
        run.stderr
    );
    assert_energy(&server, 152.5);
}

#[test]
fn a_sweep_applies_a_new_catalogue_once_and_that_of_a_renamed_campaign() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = ingested(&server);
    put(&site, &["M02001171_Ch2_M02001171;Arrivée"]);
    let applied = |run: &Run| run.stderr.matches("entry applied").count();
    assert_eq!(applied(&connect(site.call(), &server).ok()), 1);
    assert_eq!(
        entries(&server)["M02001171_Ch2_M02001171"]["label"],
        "Arrivée"
    );
    assert_eq!(applied(&connect(site.call(), &server).ok()), 0);
    // A host leaves that of a company in another shard alone. acme is in the third of five.
    put(&site, &["M02001171_Ch2_M02001171;Sortie"]);
    let with_shard = |shard: &str| {
        let call = connect(site.call(), &server).args(["--shard", shard]);
        applied(&call.ok())
    };
    assert_eq!([with_shard("2/5"), with_shard("3/5")], [0, 1]);
    site.rename("acme/site", "acme/hall");
    assert_eq!(applied(&connect(site.call(), &server).ok()), 1);
    let campaigns: Vec<_> = stored(&server, "acme")
        .into_keys()
        .map(|key| key.0)
        .collect();
    assert_eq!(campaigns, ["hall", "site"]);
    // A refusal is told once, and the next sweep is silent.
    site.put("acme/hall/channels.csv", "nothing");
    let told = |run: &Run| run.stderr.matches("is not applied").count();
    assert_eq!(told(&connect(site.call(), &server).ok()), 1);
    assert_eq!(told(&connect(site.call(), &server).ok()), 0);
}

#[test]
fn formulas_in_many_cycles_are_refused() {
    let site = site();
    let mut text = TITLES.to_owned();
    for n in 0..2_500 {
        // Each uses all before it, up to the limit of a formula, and the one after it.
        let used = (0..=n.min(150)).map(|used| format!("V_{used} + "));
        let used: String = used.collect();
        text += &format!("V_{n};;;;n{n};;;;;{used}V_{};\r\n", (n + 1) % 2_500);
    }
    site.put(CATALOGUE, text);
    let run = check(&site);
    assert_eq!(run.code(), 1);
    assert!(
        run.stdout.contains("the formulas use each other"),
        "{}",
        run.stdout
    );
}

/// The drawn energy in Wh of the virtual channels in the hourly summaries, by their ids.
fn energies(server: &RealInflux) -> BTreeMap<String, f64> {
    let rows = server.rows(
        "from(bucket: \"acme\") |> range(start: 0, stop: 2200-01-01T00:00:00Z)
           |> filter(fn: (r) => r._measurement == \"powerview_1h\" and r._field == \"energy_in_wh\" and r.channel_type == \"virtual\")
           |> group(columns: [\"channel_id\"]) |> sum()",
    );
    let energies = rows.iter().map(|row| {
        let value: f64 = row["_value"].parse().expect("a number");
        (row["channel_id"].clone(), value)
    });
    energies.collect()
}

#[track_caller]
fn assert_energies(server: &RealInflux, expected: &[(&str, f64)]) {
    let found = energies(server);
    let ids: Vec<_> = found.keys().map(String::as_str).collect();
    let expected_ids: Vec<_> = expected.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, expected_ids);
    for (id, energy) in expected {
        let difference = (found[*id] - energy).abs();
        assert!(
            difference < 1e-9 * energy.abs(),
            "{id}: {} instead of {energy}",
            found[*id]
        );
    }
}

#[test]
fn virtual_channels_are_computed_when_a_catalogue_is_applied_changed_and_rebuilt() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    site.put_old("acme/site/02001171/a.tsv", FILE);
    connect(site.call(), &server).env("TSV_ROLLUP", "1").ok();
    let apply = || apply(&site, &server).env("TSV_ROLLUP", "1").ok();
    // Both points are 600 s apart, and values run linearly between them.
    let energy = |first: f64, last: f64| f64::midpoint(first, last) * 600.0 / 3600.0;
    put(
        &site,
        &[
            ";Net;;Ch2 - S04000466_Ch1",
            "S04000466_Ch3_M02001171;Four;;;S04000466_Ch2 until 2025-01-01",
        ],
    );
    apply();
    let merged = ("V_S04000466_Ch3_M02001171", energy(3.0, 6.0));
    assert_energies(&server, &[("V_Net", energy(99.0, 196.0)), merged]);
    put(
        &site,
        &[
            ";Net;;Ch2 - S04000466_Ch1 - S04000466_Ch1",
            "S04000466_Ch3_M02001171;Four;;;S04000466_Ch2 until 2025-01-01",
        ],
    );
    apply();
    assert_energies(&server, &[("V_Net", energy(98.0, 192.0)), merged]);
    let rebuild = site
        .subcommand("rebuild")
        .args(["--company", "acme", "--yes"]);
    connect(rebuild, &server).env("TSV_ROLLUP", "1").ok();
    assert_energies(&server, &[("V_Net", energy(98.0, 192.0)), merged]);
    put(&site, &["S04000466_Ch3_M02001171;Four"]);
    apply();
    assert_energies(&server, &[]);
    let verify = connect(site.subcommand("verify"), &server).env("TSV_ROLLUP", "1");
    verify.ok();
}

// --- applies that end early, and at once ----------------------------------------------------------------------------

/// The summaries of virtual channels: ids, fields, times and values.
fn virtual_summaries(server: &RealInflux) -> Vec<[String; 4]> {
    let rows = server.rows(
        "from(bucket: \"acme\") |> range(start: 0, stop: 2200-01-01T00:00:00Z)
           |> filter(fn: (r) => r._measurement == \"powerview_1h\" and r.channel_type == \"virtual\")",
    );
    let mut found: Vec<_> = rows
        .iter()
        .map(|row| ["channel_id", "_field", "_time", "_value"].map(|column| row[column].clone()))
        .collect();
    found.sort();
    found
}

/// A site with some days of points and their summaries.
fn days(server: &RealInflux) -> Site {
    let site = Site::new();
    let header = FILE.lines().take(2).map(|line| format!("{line}\n"));
    let mut text: String = header.collect();
    for n in 0..8 * 144 {
        let (day, minute) = (3 + n / 144, n % 144 * 10);
        text += &format!(
            "{day:02}/08/25 {:02}:{:02}:00\t230\t{}\t{}\t{}\t{}\n",
            minute / 60,
            minute % 60,
            n * 7 % 101,
            n * 11 % 37,
            n * 13 % 41,
            n * 17 % 43
        );
    }
    site.put_old("acme/site/02001171/a.tsv", text);
    connect(site.call(), server).env("TSV_ROLLUP", "1").ok();
    site
}

/// Lines of which some are in one catalogue only.
fn lines_of(n: usize) -> Vec<String> {
    let sign = ['+', '-'][n % 2];
    let mut lines = vec![
        format!("M02001171_Ch2_M02001171;Arrivée {};total", n % 2),
        format!("V_sum;Somme;;Ch2 {sign} S04000466_Ch1"),
        ";Net;;Ch2 - S04000466_Ch1 - S04000466_Ch2".to_owned(),
        format!(
            "S04000466_Ch3_M02001171;Four;;;S04000466_Ch2 until 2025-08-0{}",
            5 + n % 2
        ),
    ];
    if n % 2 == 1 {
        lines.push("V_other;Autre;;V_sum + Ch2".to_owned());
    }
    lines
}

fn put_lines(site: &Site, n: usize) {
    let lines = lines_of(n);
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    put(site, &lines);
}

#[test]
fn after_a_kill_of_applies_at_any_moment_a_whole_one_leaves_the_entries_and_sums_of_the_catalogue()
{
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = days(&server);
    let apply = || apply(&site, &server).env("TSV_ROLLUP", "1");
    let mut expected = Vec::new();
    let mut duration_ms = 0;
    for n in 0..2 {
        put_lines(&site, n);
        let start = std::time::Instant::now();
        apply().ok();
        duration_ms = start.elapsed().as_millis().max(duration_ms);
        expected.push((entries(&server), virtual_summaries(&server)));
    }
    assert!(expected[0] != expected[1] && expected.iter().all(|(_, sums)| !sums.is_empty()));
    let kills = number_from_env("KILLS", 30);
    let mut killed = 0;
    for n in 0..kills {
        put_lines(&site, n);
        let mut running = apply().start();
        // From the start of the process until its end.
        let delay = duration_ms * (n as u128 * 7 % 31) / 30;
        std::thread::sleep(std::time::Duration::from_millis(delay as u64));
        killed += usize::from(!running.is_done());
        running.kill();
        if n % 5 == 4 {
            let whole = n / 5;
            put_lines(&site, whole);
            apply().ok();
            let (stored, sums) = &expected[whole % 2];
            let shown = |entries: &BTreeMap<String, BTreeMap<String, String>>| {
                let mut entries = entries.clone();
                // An entry that another catalogue had is overwritten.
                entries.retain(|_, fields| fields.get("state").is_none());
                entries
            };
            assert_eq!(shown(&entries(&server)), shown(stored), "kill {n}");
            assert!(virtual_summaries(&server) == *sums, "kill {n}");
            let marker: Value = serde_json::from_slice(&site.read(MARKER)).expect("JSON");
            assert_eq!(marker["state"], json!("applied"));
        }
    }
    assert!(killed > kills / 2, "{killed} of {kills}");
}

#[test]
fn two_applies_at_once_leave_the_entries_and_sums_of_the_catalogue() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = days(&server);
    let apply = || apply(&site, &server).env("TSV_ROLLUP", "1");
    let mut expected = Vec::new();
    for n in 0..2 {
        put_lines(&site, n);
        apply().ok();
        expected.push(virtual_summaries(&server));
    }
    for n in 0..6 {
        // The second one may be another catalogue, which takes the place of the first while that is applied.
        put_lines(&site, n / 2);
        let first = apply().start();
        if n % 2 == 1 {
            std::thread::sleep(std::time::Duration::from_millis(40 * n as u64));
            put_lines(&site, n / 2 + 1);
        }
        let second = apply().start();
        for running in [first, second] {
            let run = running.wait();
            assert!(
                run.code() == 0 || run.stderr.contains("is being written"),
                "{}",
                run.stderr
            );
        }
        let last = n / 2 + n % 2;
        assert!(virtual_summaries(&server) == expected[last % 2], "{n}");
        let label = &entries(&server)["M02001171_Ch2_M02001171"]["label"];
        assert_eq!(*label, format!("Arrivée {}", last % 2));
        let marker: Value = serde_json::from_slice(&site.read(MARKER)).expect("JSON");
        assert_eq!(marker["state"], json!("applied"));
    }
}

// --- what other programs write --------------------------------------------------------------------------------------

#[test]
fn what_is_written_of_the_channels_of_other_programs_is_accepted_and_applied() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    server.ensure_bucket("acme");
    let ids = [
        "\\ a",
        "b\\ ",
        "c",
        "c\\ ",
        "\\ \\=d",
        "'e",
        "+f",
        "@g",
        "-h",
        "i;j",
        "\"k\"",
        "é\\ ü",
        "l\u{200b}",
        "V_m",
        "sep\\=;",
        "#n",
        "o\\,p",
        "\u{a0}q",
    ];
    let lines = ids.map(|id| {
        format!("site,campaign=site,channel_id={id},channel_name=\\ \\={id},unit=\\ W value=1 1600000000\n")
    });
    server.write("acme", &lines.concat(), "s");
    let site = Site::new();
    site.make_dir("acme/site/1");
    let run = connect(channels(&site), &server).ok();
    assert_eq!(
        run.stdout,
        "acme/site/channels.csv: 15 channels added, 0 lines before\n"
    );
    for (id, reason) in [
        ("V_m", "ids that begin with V_ belong to virtual channels"),
        (
            "c ",
            "another id differs from it only in the blanks around it",
        ),
        ("l\\u{200b}", "its id has invisible characters"),
    ] {
        let message = format!("channel \"{id}\" cannot be named, because {reason}");
        assert!(run.stderr.contains(&message), "{}", run.stderr);
    }
    let run = connect(channels(&site).arg("--check"), &server).ok();
    assert_eq!(
        run.stdout,
        "acme/site/channels.csv: 15 entries, no problem\n"
    );
    assert!(!run.stderr.contains("instead of"), "{}", run.stderr);
    let run = apply(&site, &server).ok();
    assert!(
        run.stderr.contains("\"V_m\" cannot be named"),
        "{}",
        run.stderr
    );
    // They are joined with the points, so that they have the same ids.
    let stored = entries(&server);
    assert!(stored.contains_key(" a") && stored.contains_key("b ") && stored.contains_key(" =d"));
    assert_eq!(stored.len(), 15);
    site.put(
        CATALOGUE,
        with_lines("V_m;;;;x;;;;;;\r\nc;;;;y;;;boss;;;\r\n"),
    );
    let run = apply(&site, &server).run().expect(1);
    assert!(
        run.stdout
            .contains("line 2, column channel_id: points of another program have the id \"V_m\"")
            && run.stdout.contains("line 3, column role"),
        "{}",
        run.stdout
    );
}

#[test]
fn problems_of_cells_and_unknown_channels_are_refused_together() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = site();
    site.put(
        CATALOGUE,
        with_lines(
            "M02001171_Ch9_M02001171;;;;x;;;;;;\r\nM02001171_Ch2_M02001171;;;;=y;;;boss;;;\r\n",
        ),
    );
    let problems = |run: Run| {
        let lines = run.stdout.lines();
        let places: Vec<_> = lines
            .map(|line| line.split(": ").nth(1).unwrap_or_default().to_owned())
            .collect();
        places
    };
    let all = [
        "line 2, column channel_id",
        "line 3, column name",
        "line 3, column role",
    ];
    assert_eq!(problems(check(&site)), all);
    assert_eq!(problems(apply(&site, &server).run().expect(1)), all);
    // Without a server, the channels are not known.
    assert_eq!(problems(apply_without_server(&site)), [all[1]]);
}

#[test]
fn a_deleted_catalogue_stays_in_force() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = ingested(&server);
    put(&site, &["M02001171_Ch2_M02001171;Arrivée"]);
    apply(&site, &server).ok();
    let before = entries(&server);
    std::fs::remove_file(site.path(CATALOGUE)).expect("removed");
    let run = connect(site.call(), &server).ok();
    assert!(!run.stderr.contains("channels.csv"), "{}", run.stderr);
    let run = apply(&site, &server).run().expect(1);
    assert!(
        run.stderr.contains("there is no channels.csv"),
        "{}",
        run.stderr
    );
    assert_eq!(entries(&server), before);
}

#[test]
fn a_write_without_an_answer_is_not_said_to_have_changed_nothing() {
    let double = Double::start();
    double.add_bucket("acme");
    // The server takes the entries, but its answer does not arrive.
    double.fault_writes(1_000, Fault::ResetAfterApply);
    // It has no points yet.
    double.fault(is_query, 0, 1_000, Fault::Status(200, String::new()));
    let site = site();
    put(&site, &["M02001171_Ch2_M02001171;Arrivée"]);
    let call = channels(&site).arg("--apply");
    let call = call.server(&double.url(), TOKEN, ORG);
    let run = call.env("TSV_RETRY_FOR", "1").run().clean();
    assert_eq!(run.code(), 1);
    assert!(!double.data_writes().is_empty(), "{}", run.stderr);
    assert!(
        run.stderr
            .contains("has not confirmed that it has the entries, and may have them or not")
            && !run.stderr.contains("nothing has changed"),
        "{}",
        run.stderr
    );
}
