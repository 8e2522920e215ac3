//! InfluxDB 3 as the target of points. Each test of `each_server` runs with a double, and with a real server if
//! `INFLUXDB3_BIN` is set.

use crate::harness::{Call, DEVICE, Site, file_of, good_file, point, points_in, samples, stored};
use crate::influx_double::{self, Double, Request, TOKEN};
use crate::influx3_double::{Double3, Fault};
use crate::line_protocol::Line;
use crate::real_influx3::{self, RealInflux3};
use crate::samples as all_samples;
use crate::second_reader::Point;
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What the tests need of a server.
trait Server {
    fn url(&self) -> String;
    fn token(&self) -> String;
    fn lines(&self, database: &str) -> Vec<Line>;
    /// Stores points with times in seconds.
    fn write(&self, database: &str, lines: &str);

    fn points(&self, database: &str) -> Vec<Point> {
        let lines = self.lines(database).into_iter();
        stored(
            &lines
                .map(|line| point(line, 1_000_000_000))
                .collect::<Vec<_>>(),
        )
    }

    /// A call that must find out the version of the server.
    fn call<'a>(&self, site: &'a Site) -> Call<'a> {
        self.of(site.call())
    }

    fn subcommand<'a>(&self, site: &'a Site, name: &str) -> Call<'a> {
        self.of(site.subcommand(name))
    }

    /// A real server may be slow.
    fn of<'a>(&self, call: Call<'a>) -> Call<'a> {
        call.server(&self.url(), &self.token(), "any")
            .env("TSV_RETRY_FOR", "20")
            .env("TSV_REQUEST_TIMEOUT_S", "30")
    }
}

impl Server for Double3 {
    fn url(&self) -> String {
        self.url()
    }
    fn token(&self) -> String {
        TOKEN.to_owned()
    }
    fn lines(&self, database: &str) -> Vec<Line> {
        self.points(database)
    }
    fn write(&self, database: &str, lines: &str) {
        self.write(database, lines);
    }
}

impl Server for RealInflux3 {
    fn url(&self) -> String {
        self.url()
    }
    fn token(&self) -> String {
        real_influx3::token()
    }
    fn lines(&self, database: &str) -> Vec<Line> {
        self.points(database)
    }
    fn write(&self, database: &str, lines: &str) {
        self.write(database, lines);
    }
}

/// Defines a test with the double and one with a real server for each function.
macro_rules! with_each_server {
    ($($name:ident;)*) => {
        mod double {
            use super::*;
            $(#[test] fn $name() { super::$name(&Double3::start()); })*
        }
        mod real {
            use super::*;
            $(#[test] fn $name() {
                if let Some(server) = RealInflux3::start(&[]) {
                    super::$name(&server);
                }
            })*
        }
    };
}

with_each_server! {
    all_samples_are_stored_exactly;
    of_repeated_seconds_in_a_batch_the_last_row_is_stored;
    a_value_of_another_type_fails_the_file_with_the_line_and_the_reason;
    a_company_whose_name_is_no_database_name_is_refused_and_the_others_go_on;
    a_company_beyond_the_limit_of_databases_stays_retryable;
    a_wrong_token_is_the_fault_of_the_installation;
    check_shows_the_version_and_warns_of_what_does_not_work;
    commands_that_need_influxdb_2_say_so;
    no_summaries_are_kept_or_computed;
    points_about_runs_and_files_arrive;
    verify_finds_the_points_of_all_samples_equal;
    verify_reads_more_days_than_a_query_may;
    verify_names_points_that_are_missing_different_or_extra_and_repair_writes_the_missing_ones;
    verify_of_a_company_without_a_database_misses_all_points;
    bodies_without_compression_are_accepted;
}

fn all_samples_are_stored_exactly(server: &dyn Server) {
    let Some(dir) = samples() else { return };
    let samples = all_samples::read_all(&dir);
    let site = Site::new();
    all_samples::copy_to(&site, &dir, &samples);
    // Each device writes its own series, so the files do not overlap.
    server.call(&site).run().expect(1);
    for (database, expected) in all_samples::expected(&samples) {
        let (found, expected) = (server.points(&database), stored(&expected));
        assert_eq!(found.len(), expected.len(), "{database}");
        assert!(found == expected, "{database}");
    }
}

fn of_repeated_seconds_in_a_batch_the_last_row_is_stored(server: &dyn Server) {
    let site = Site::new();
    let mut file = String::from("02001171\t02001171\nMV_T302_V002\tPh 1 V\n");
    for value in 1..=3 {
        for second in 0..50 {
            file += &format!("03/08/25 03:20:{second:02}\t{value}\n");
        }
    }
    site.put_old(DEVICE.file("a.tsv"), file);
    server.call(&site).ok();
    let points = server.points("acme");
    assert_eq!(points.len(), 50);
    assert!(points.iter().all(|point| point.value == 3.0));
    assert_eq!(file_of(&site.report(), "a.tsv")["nb_points"], 150);
}

fn a_value_of_another_type_fails_the_file_with_the_line_and_the_reason(server: &dyn Server) {
    server.write("acme", "site,campaign=site,x=y value=\"text\" 1754184000");
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    server.call(&site).run().expect(1);
    let sidecar = site.sidecar(&DEVICE.error("a.tsv"));
    assert_eq!(sidecar["retryable"], false);
    let error = sidecar["error"].as_str().expect("a text");
    assert!(
        error.starts_with("bucket \"acme\": status 400: line 1 of a batch, \"site,campaign=site")
            && error.contains("invalid column type for column 'value', expected iox::column_type::field::string, got iox::column_type::field::float"),
        "{error}"
    );
    assert_eq!(server.lines("acme").len(), 1);
}

fn a_company_whose_name_is_no_database_name_is_refused_and_the_others_go_on(server: &dyn Server) {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    let names = ["a b", "a.b", "été", &"x".repeat(65)];
    for name in names {
        site.put_old(format!("{name}/site/02001171/a.tsv"), good_file(1, 3));
    }
    server.call(&site).run().expect(1);
    assert_eq!(server.points("acme").len(), 6);
    for name in names {
        let sidecar = site.sidecar(&format!("{name}/site/02001171/error/a.tsv"));
        assert_eq!(sidecar["retryable"], true);
        let error = sidecar["error"].as_str().expect("a text");
        assert!(
            error.starts_with(&format!("database {name:?}: status 400: "))
                && error.contains("; rename the folder of the company: "),
            "{error}"
        );
    }
}

fn a_company_beyond_the_limit_of_databases_stays_retryable(server: &dyn Server) {
    for n in 0..4 {
        server.write(&format!("other{n}"), "m value=1 1754184000");
    }
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    site.put_old("second/site/02001171/a.tsv", good_file(1, 3));
    server.call(&site).args(["--jobs", "1"]).run().expect(1);
    assert_eq!(server.points("acme").len(), 6);
    let sidecar = site.sidecar("second/site/02001171/error/a.tsv");
    assert_eq!(sidecar["retryable"], true);
    let error = sidecar["error"].as_str().expect("a text");
    assert!(
        error.contains("Adding a new database would exceed limit of 5 databases; delete databases"),
        "{error}"
    );
}

fn a_wrong_token_is_the_fault_of_the_installation(server: &dyn Server) {
    for flavor in ["auto", "3"] {
        let site = Site::new();
        for n in 0..3 {
            site.put_old(format!("acme/site/0200117{n}/a.tsv"), good_file(1, 3));
        }
        let call = server.call(&site).env("INFLUXDB_FLAVOR", flavor);
        let run = call
            .env("INFLUXDB_ADMIN_TOKEN", "apiv3_wrong")
            .run()
            .expect(1);
        let sidecar = site.sidecar("acme/site/02001171/error/a.tsv");
        assert_eq!(sidecar["retryable"], true);
        assert!(sidecar.to_string().contains("correct INFLUXDB_ADMIN_TOKEN"));
        let said = run.stderr.matches("giving up on the server").count();
        assert_eq!(said, 1, "{}", run.stderr);
    }
}

fn check_shows_the_version_and_warns_of_what_does_not_work(server: &dyn Server) {
    let site = Site::new();
    for (flavor, org) in [("auto", "any"), ("3", "")] {
        let call = server.subcommand(&site, "check").env("INFLUXDB_ORG", org);
        let run = call.env("INFLUXDB_FLAVOR", flavor).run();
        let line = |name: &str| {
            let mut lines = run.stdout.lines();
            lines
                .find(|line| line[5..].starts_with(name))
                .unwrap_or_else(|| panic!("{}", run.stdout))
        };
        assert_eq!(
            line("server"),
            format!(
                "ok   server         {} is ready, InfluxDB 3 Core 3.6.0 (INFLUXDB_FLAVOR={flavor})",
                server.url()
            )
        );
        assert!(line("InfluxDB 3").starts_with("warn"), "{}", run.stdout);
        assert!(line("organisation").starts_with("ok"), "{}", run.stdout);
        assert!(line("token").starts_with("ok"), "{}", run.stdout);
    }
    let call = server
        .subcommand(&site, "check")
        .env("INFLUXDB_FLAVOR", "3");
    let run = call
        .env("INFLUXDB_ADMIN_TOKEN", "apiv3_wrong")
        .run()
        .expect(1);
    assert!(run.stdout.contains("\nFAIL token "), "{}", run.stdout);
}

fn commands_that_need_influxdb_2_say_so(server: &dyn Server) {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    server.call(&site).ok();
    for flavor in ["auto", "3"] {
        let call = server.subcommand(&site, "rebuild");
        let run = call
            .args(["--company", "acme"])
            .env("INFLUXDB_FLAVOR", flavor)
            .run()
            .expect(2);
        assert_eq!(
            run.stderr,
            "powerview: powerview rebuild needs InfluxDB 2, but the server is InfluxDB 3 or INFLUXDB_FLAVOR is 3; see docs/influxdb-3.md for what works there\n"
        );
    }
}

fn no_summaries_are_kept_or_computed(server: &dyn Server) {
    for flavor in ["auto", "3"] {
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
        let call = server.call(&site).env("INFLUXDB_FLAVOR", flavor);
        let run = call.env("TSV_ROLLUP", "1").ok();
        assert_eq!(site.tree(), [DEVICE.parsed("a.tsv")]);
        assert!(!run.stderr.contains("summaries"), "{}", run.stderr);
        assert!(
            server
                .lines("acme")
                .iter()
                .all(|line| line.measurement == "site")
        );
    }
}

/// The values of a power in W and their times.
type Powers = Vec<(DateTime<Utc>, f64)>;

/// The rows of days of 2025 in steps of ten minutes, with the values of two channels. The second one has none from a day on.
fn rows_of(days: std::ops::Range<u32>, second_until: u32) -> (String, [Powers; 2]) {
    let mut file = "02001171\t02001171\t02001171\nMV_T302_V002\tVoie1 W\tVoie2 kW\n".to_owned();
    let mut points = [Vec::new(), Vec::new()];
    for n in days.start * 144..days.end * 144 {
        let time = "2025-06-01T00:00:00Z"
            .parse::<DateTime<Utc>>()
            .expect("a time");
        let time = time + chrono::Duration::minutes(10 * i64::from(n));
        let first = f64::from(n * 37 % 211) - 60.0;
        points[0].push((time, first));
        file += &format!("{}\t{first}\t", time.format("%d/%m/%y %H:%M:%S"));
        if n < second_until * 144 {
            let watts = n * 17 % 301;
            points[1].push((time, f64::from(watts)));
            file += &format!("{}.{:03}", watts / 1000, watts % 1000);
        }
        file.push('\n');
    }
    (file, points)
}

#[test]
fn rollup_and_verify_read_the_summaries_of_a_real_server_by_sql() {
    // Ten minutes pass quickly for a server whose write-ahead log is stored often.
    let Some(server) = RealInflux3::start(&[]) else {
        return;
    };
    let site = Site::new();
    // The second channel ends in the middle, and there is a hole of twenty days.
    let (first, mut points) = rows_of(0..5, 2);
    let (later, more) = rows_of(25..27, 0);
    points[0].extend(&more[0]);
    site.put_old(DEVICE.file("a.tsv"), first);
    site.put_old(DEVICE.file("b.tsv"), later);
    server.call(&site).env("TSV_TIMEZONE", "UTC").ok();
    let rollup = |code| {
        let call = server.subcommand(&site, "rollup");
        call.env("TSV_ROLLUP", "1").run().expect(code)
    };
    let verify = |code| {
        let call = server
            .subcommand(&site, "verify")
            .env("TSV_TIMEZONE", "UTC");
        call.env("TSV_ROLLUP", "1").run().expect(code)
    };
    let run = verify(0);
    assert!(!run.stdout.contains("summaries"), "{}", run.stdout);

    let expected: Vec<_> = points
        .iter()
        .map(|p| crate::dashboards::integrated(p))
        .collect();
    // The last point begins an hour, or is within one that is known.
    let number: usize = points
        .iter()
        .map(|points| {
            let hours = points.iter().map(|(time, _)| time.timestamp() / 3600);
            hours.collect::<BTreeSet<_>>().len()
        })
        .sum();
    let run = rollup(0);
    assert_eq!(
        run.stdout,
        format!("acme: {number} hourly summaries, {number} written\n")
    );
    let run = rollup(0);
    assert_eq!(run.stdout, format!("acme: {number} hourly summaries\n"));
    for (channel, hours) in ["Voie1", "Voie2"].iter().zip(&expected) {
        let query = format!(
            "SELECT time, count, covered_s, energy_in_wh, energy_out_wh FROM powerview_1h WHERE channel_name = '{channel}' ORDER BY time"
        );
        let rows = server.rows("acme", &query);
        let mut found = BTreeMap::new();
        for row in &rows {
            let time: chrono::NaiveDateTime = row["time"].parse().expect("a time");
            let number = |field: &str| row[field].parse::<f64>().expect("a number");
            assert_eq!(row["count"], "6");
            let values = ["covered_s", "energy_in_wh", "energy_out_wh"].map(number);
            found.insert(time.and_utc(), values);
        }
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            hours.keys().collect::<Vec<_>>(),
            "{channel}"
        );
        for (hour, known) in hours {
            let values = [known.seconds, known.drawn * 1000.0, known.returned * 1000.0];
            for (found, wanted) in found[hour].iter().zip(values) {
                assert!(
                    (found - wanted).abs() <= 5e-7 * wanted.abs().max(1e-3),
                    "{channel} {hour}: {found}, not {wanted}"
                );
            }
        }
    }
    let run = verify(0);
    assert!(
        run.stdout.contains(&format!("{number} hourly summaries")),
        "{}",
        run.stdout
    );

    // A summary that differs is found by both, and mended: few values are kept in the order in which they are written.
    let of_voie1 = "powerview_1h,campaign=site,channel_id=M02001171_Ch1_M02001171,channel_name=Voie1,channel_number=1,\
                    channel_type=master,device=02001171,device_master_sn=02001171,device_sn=02001171,unit=W";
    server.write("acme", &format!("{of_voie1} energy_in_wh=7 1750903200"));
    let run = verify(1);
    assert!(run.stdout.contains("1 different"), "{}", run.stdout);
    let run = rollup(0);
    assert_eq!(
        run.stdout,
        format!("acme: {number} hourly summaries, 1 written\n")
    );
    verify(0);
}

fn points_about_runs_and_files_arrive(server: &dyn Server) {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    site.put_old(DEVICE.file("b.tsv"), "nonsense");
    server.call(&site).run().expect(1);
    let lines = server.lines("powerview_meta");
    let of = |measurement: &str| {
        let lines = lines.iter().filter(|line| line.measurement == measurement);
        lines
            .map(|line| line.tags["status"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(of("tsv_parser_run"), ["partial_failure"]);
    assert_eq!(of("tsv_parser_file").len(), 2);
}

fn bodies_without_compression_are_accepted(server: &dyn Server) {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 30));
    server.call(&site).env("TSV_GZIP", "0").ok();
    assert_eq!(server.points("acme").len(), 60);
}

/// The result of `verify --json` with the exit status.
fn verified(server: &dyn Server, site: &Site, arguments: &[&str], code: i32) -> serde_json::Value {
    let call = server.subcommand(site, "verify").arg("--json");
    let run = call
        .args(arguments)
        .env("TSV_ROLLUP", "1")
        .run()
        .expect(code);
    serde_json::from_str(&run.stdout).unwrap_or_else(|e| panic!("{e}: {}", run.stdout))
}

fn counts(result: &serde_json::Value) -> Vec<u64> {
    let keys = ["expected", "found", "missing", "different", "extra"];
    keys.map(|key| result[key].as_u64().expect("a number"))
        .to_vec()
}

fn verify_finds_the_points_of_all_samples_equal(server: &dyn Server) {
    let Some(dir) = samples() else { return };
    let samples = all_samples::read_all(&dir);
    let site = Site::new();
    all_samples::copy_to(&site, &dir, &samples);
    server.call(&site).run().expect(1);
    let expected = all_samples::expected(&samples).into_values();
    let number: usize = expected.map(|points| stored(&points).len()).sum();
    let number = number as u64;
    let result = verified(server, &site, &[], 0);
    assert_eq!(counts(&result), [number, number, 0, 0, 0]);
    assert_eq!(result["equal"], true);
}

/// A file with a value every ten minutes from 2025-08-01 00:00 UTC on.
fn file_of_days(days: u32) -> String {
    let mut file = String::from("02001171\t02001171\nMV_T302_V002\tPh 1 V\n");
    for n in 0..days * 144 {
        let (day, hour, minute) = (n / 144 + 1, n / 6 % 24, n % 6 * 10);
        file += &format!("{day:02}/08/25 {hour:02}:{minute:02}:00\t{n}.5\n");
    }
    file
}

fn verify_reads_more_days_than_a_query_may(server: &dyn Server) {
    let site = Site::new();
    // The name of the campaign must be quoted.
    let device = "acme/l'été à la/02001171";
    site.put_old(format!("{device}/a.tsv"), file_of_days(10));
    server.call(&site).ok();
    assert_eq!(
        counts(&verified(server, &site, &[], 0)),
        [1440, 1440, 0, 0, 0]
    );
}

fn verify_names_points_that_are_missing_different_or_extra_and_repair_writes_the_missing_ones(
    server: &dyn Server,
) {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), file_of_days(1));
    server.call(&site).env("TSV_TIMEZONE", "UTC").ok();
    // Another file that was never sent.
    let second = file_of_days(2);
    let (_, rows) = second.split_once("02/08/25").expect("a second day");
    let head = "02001171\t02001171\nMV_T302_V002\tPh 1 V\n";
    site.put_old(DEVICE.parsed("b.tsv"), format!("{head}02/08/25{rows}"));
    let series = "site,campaign=site,channel_id=M02001171_Ch1_M02001171,channel_name=Ph\\ 1,channel_number=1,\
                  channel_type=master,device=02001171,device_master_sn=02001171,device_sn=02001171,unit=V";
    // 2025-08-02 00:00, which has the value 144.5, and 2025-07-31 00:00. A measurement of another program.
    server.write(
        "acme",
        &format!(
            "{series} value=7 1754092800\n{series} value=8 1753920000\nother value=1 1753920000"
        ),
    );
    let verify = |arguments: &[&str], code| {
        let call = server
            .subcommand(&site, "verify")
            .arg("--json")
            .args(arguments);
        let run = call.env("TSV_TIMEZONE", "UTC").run().expect(code);
        serde_json::from_str::<serde_json::Value>(&run.stdout).expect("JSON")
    };
    let result = verify(&[], 1);
    assert_eq!(counts(&result), [288, 146, 143, 1, 1]);
    let text = server
        .subcommand(&site, "verify")
        .env("TSV_TIMEZONE", "UTC")
        .run();
    assert!(
        text.stdout
            .contains("144.5 in the files, 7.0 in the database"),
        "{}",
        text.stdout
    );
    assert!(
        text.stdout
            .contains("1 point in the measurement other, which has no campaign folder"),
        "{}",
        text.stdout
    );
    verify(&["--repair"], 1);
    let result = verify(&[], 1);
    assert_eq!(counts(&result)[2], 0, "no point is missing: {result:#}");
    assert_eq!(counts(&result)[4], 1, "an extra point stays: {result:#}");
}

fn verify_of_a_company_without_a_database_misses_all_points(server: &dyn Server) {
    let site = Site::new();
    site.put_old(DEVICE.parsed("a.tsv"), good_file(1, 3));
    assert_eq!(counts(&verified(server, &site, &[], 1)), [6, 0, 6, 0, 0]);
    verified(server, &site, &["--repair"], 0);
    assert_eq!(counts(&verified(server, &site, &[], 0)), [6, 6, 0, 0, 0]);
}

#[test]
fn a_body_that_a_real_server_finds_too_large_is_halved() {
    let Some(server) = RealInflux3::start(&["--max-http-request-size", "2000"]) else {
        return;
    };
    too_large_bodies_are_halved(&server);
}

#[test]
fn a_body_that_is_too_large_is_halved() {
    let server = Double3::start();
    server.max_body(2000);
    too_large_bodies_are_halved(&server);
}

fn too_large_bodies_are_halved(server: &dyn Server) {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 30));
    // The report of the file is longer than the limit; only a warning follows.
    server.call(&site).ok();
    assert_eq!(server.points("acme").len(), 60);
}

#[test]
fn a_real_server_without_authorization_accepts_any_token() {
    let Some(server) = RealInflux3::start(&["--without-auth"]) else {
        return;
    };
    any_token_is_accepted(&server);
}

#[test]
fn a_server_without_authorization_accepts_any_token() {
    let server = Double3::start();
    server.without_auth();
    any_token_is_accepted(&server);
}

fn any_token_is_accepted(server: &dyn Server) {
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    server.call(&site).env("INFLUXDB_ADMIN_TOKEN", "none").ok();
    assert_eq!(server.points("acme").len(), 6);
}

/// Method, path and status of each request.
fn summary(requests: &[Request]) -> Vec<String> {
    let words = |r: &Request| format!("{} {} {} {}", r.method, r.path, r.bucket, r.status);
    requests.iter().map(words).collect()
}

#[test]
fn the_version_is_asked_once_and_not_if_it_is_set() {
    for (flavor, expected) in [
        (
            "auto",
            vec![
                "GET /api/v2/buckets  404",
                "GET /ping  200",
                "POST /api/v2/write acme 204",
                "POST /api/v2/write powerview_meta 204",
            ],
        ),
        (
            "3",
            vec![
                "POST /api/v2/write acme 204",
                "POST /api/v2/write powerview_meta 204",
            ],
        ),
    ] {
        let (server, site) = (Double3::start(), Site::new());
        let file = site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
        let call = server.call(&site).env("INFLUXDB_FLAVOR", flavor);
        call.arg("-t").arg(file).env("TSV_ROLLUP", "1").ok();
        assert_eq!(summary(&server.requests()), expected, "{flavor}");
    }
}

#[test]
fn a_sweep_over_companies_asks_the_version_once() {
    let (server, site) = (Double3::start(), Site::new());
    for company in ["a", "b", "c", "d"] {
        site.put_old(format!("{company}/site/02001171/a.tsv"), good_file(1, 3));
    }
    server.call(&site).args(["--jobs", "1"]).ok();
    let requests = server.requests();
    let of = |path: &str| requests.iter().filter(|r| r.path == path).count();
    assert_eq!((of("/ping"), of("/api/v2/buckets")), (1, 1));
}

#[test]
fn influxdb_2_gets_the_same_requests_as_without_the_setting() {
    for (is_new, expected) in [
        (
            true,
            vec![
                "GET /api/v2/buckets",
                "GET /api/v2/buckets",
                "GET /api/v2/orgs",
                "POST /api/v2/buckets",
                "POST /api/v2/write",
                "POST /api/v2/write",
            ],
        ),
        (
            false,
            vec![
                "GET /api/v2/buckets",
                "POST /api/v2/write",
                "POST /api/v2/write",
            ],
        ),
    ] {
        for flavor in [None, Some("auto"), Some("2")] {
            let (server, site) = (Double::start(), Site::new());
            server.add_bucket(influx_double::META);
            if !is_new {
                server.add_bucket("acme");
            }
            let file = site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
            let mut call = site.run_to(&server).arg("-t").arg(file);
            if let Some(flavor) = flavor {
                call = call.env("INFLUXDB_FLAVOR", flavor);
            }
            call.ok();
            let requests = server.requests();
            let mut found: Vec<_> = requests
                .iter()
                .map(|r| format!("{} {}", r.method, r.path))
                .collect();
            found.sort();
            assert_eq!(found, expected, "{flavor:?}");
        }
    }
}

#[test]
fn an_unknown_path_of_a_proxy_before_influxdb_2_is_no_influxdb_3() {
    let (server, site) = (Double::start(), Site::new());
    server.fault(
        |r| r.path == "/api/v2/buckets" && r.method == "GET",
        0,
        1,
        influx_double::Fault::Html(404),
    );
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    site.run_to(&server).ok();
    assert_eq!(points_in(&server, "acme").len(), 6);
}

fn is_data_write(request: &Request) -> bool {
    request.path == "/api/v2/write" && request.bucket != influx_double::META
}

fn throttled(seconds: &str) -> Fault {
    Fault {
        header: Some(("Retry-After", seconds.to_owned())),
        ..Fault::new(
            429,
            r#"{"code":"too many requests","message":"exceeded rate limit"}"#,
        )
    }
}

#[test]
fn a_server_that_asks_to_wait_gets_the_request_again_after_that_time() {
    let (server, site) = (Double3::start(), Site::new());
    server.fault(is_data_write, 1, throttled("2"));
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    let start = Instant::now();
    server.call(&site).env("TSV_RETRY_FOR", "20").ok();
    assert!(start.elapsed() >= Duration::from_secs(2));
    let writes = server.requests().into_iter().filter(is_data_write);
    let statuses: Vec<_> = writes.map(|r| r.status).collect();
    assert_eq!(statuses, [429, 204]);
    assert_eq!(site.report()["nb_retries"], 1);
}

#[test]
fn a_server_that_asks_to_wait_too_long_is_an_outage_at_once() {
    for version in [2, 3] {
        let (server2, server3, site) = (Double::start(), Double3::start(), Site::new());
        let headers = vec![("Retry-After", "300".to_owned())];
        let body = r#"{"code":"too many requests","message":"exceeded rate limit"}"#;
        server2.fault_writes(
            usize::MAX,
            influx_double::Fault::StatusWith(429, headers, body.to_owned()),
        );
        server3.fault(is_data_write, usize::MAX, throttled("300"));
        for n in 0..3 {
            site.put_old(format!("acme/site/0200117{n}/a.tsv"), good_file(1, 3));
        }
        let call = if version == 2 {
            site.run_to(&server2)
        } else {
            server3.call(&site)
        };
        let call = call.env("TSV_RETRY_FOR", "60").args(["--jobs", "1"]);
        call.timeout(Duration::from_secs(30)).run().expect(1);
        let requests = if version == 2 {
            server2.requests()
        } else {
            server3.requests()
        };
        assert_eq!(requests.iter().filter(|r| is_data_write(r)).count(), 1);
        let sidecar = site.sidecar("acme/site/02001171/error/a.tsv");
        assert_eq!(sidecar["retryable"], true);
        assert!(
            sidecar
                .to_string()
                .contains("the server asks to wait 300 s"),
            "{sidecar}"
        );
        assert_eq!(site.report()["nb_retries"], 0);
    }
}

#[test]
fn a_missing_database_is_the_fault_of_the_installation() {
    let (server, site) = (Double3::start(), Site::new());
    // Cloud Dedicated makes no databases.
    server.fault(
        |r| is_data_write(r) && r.bucket == "acme",
        usize::MAX,
        Fault::new(
            404,
            r#"{"code":"not found","message":"database acme not found"}"#,
        ),
    );
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    site.put_old("other/site/02001171/a.tsv", good_file(1, 3));
    server.call(&site).run().expect(1);
    assert_eq!(server.points("other").len(), 6);
    let sidecar = site.sidecar(&DEVICE.error("a.tsv"));
    assert_eq!(sidecar["retryable"], true);
    assert_eq!(
        sidecar["error"],
        "database \"acme\": status 404: database acme not found; create the database"
    );
}

#[test]
fn a_token_that_may_not_write_to_a_database_delays_only_its_company() {
    let (server, site) = (Double3::start(), Site::new());
    server.fault(
        |r| is_data_write(r) && r.bucket == "acme",
        usize::MAX,
        Fault::new(
            401,
            r#"{"code":"unauthorized","message":"unauthorized access"}"#,
        ),
    );
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    site.put_old("other/site/02001171/a.tsv", good_file(1, 3));
    server.call(&site).run().expect(1);
    assert_eq!(server.points("other").len(), 6);
    let sidecar = site.sidecar(&DEVICE.error("a.tsv"));
    assert_eq!(sidecar["retryable"], true);
    assert_eq!(
        sidecar["error"],
        "database \"acme\": status 401: unauthorized access; correct the permissions of the token"
    );
}

#[test]
fn after_a_partial_write_the_other_batches_are_sent() {
    let (server, site) = (Double3::start(), Site::new());
    let message = "partial write for bucket acme, with 1 of 2 lines rejected";
    server.fault(
        is_data_write,
        1,
        Fault {
            applies: true,
            ..Fault::new(
                400,
                &serde_json::json!({"code": "invalid", "line": 2, "message": message}).to_string(),
            )
        },
    );
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    let call = server.call(&site).env("TSV_BATCH_LINES", "2");
    call.run().expect(1);
    assert_eq!(server.points("acme").len(), 6);
    let sidecar = site.sidecar(&DEVICE.error("a.tsv"));
    assert_eq!(sidecar["retryable"], false);
    assert_eq!(
        sidecar["error"],
        format!("bucket \"acme\": status 400: {message}")
    );
}

#[test]
fn an_unavailable_server_is_tried_again_and_its_health_is_that_of_ping() {
    let (server, site) = (Double3::start(), Site::new());
    let unavailable = Fault::new(503, "");
    server.fault(is_data_write, 2, unavailable.clone());
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    server.call(&site).env("TSV_RETRY_FOR", "20").ok();
    assert_eq!(site.report()["nb_retries"], 2);

    // The server is healthy, but takes no batch, not even an empty one: an outage of the database.
    let (server, site) = (Double3::start(), Site::new());
    server.fault(is_data_write, usize::MAX, unavailable.clone());
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    server
        .call(&site)
        .env("TSV_RETRY_FOR", "0.3")
        .run()
        .expect(1);
    let sidecar = site.sidecar(&DEVICE.error("a.tsv"));
    let error = sidecar["error"].as_str().expect("a text");
    assert!(
        error.starts_with("bucket \"acme\" was unavailable"),
        "{error}"
    );

    // The server takes an empty batch, as the answer to one shows: only this file fails.
    let (server, site) = (Double3::start(), Site::new());
    server.fault(
        |r| is_data_write(r) && !r.body.is_empty(),
        usize::MAX,
        unavailable,
    );
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    server
        .call(&site)
        .env("TSV_RETRY_FOR", "0.3")
        .run()
        .expect(1);
    let sidecar = site.sidecar(&DEVICE.error("a.tsv"));
    let error = sidecar["error"].as_str().expect("a text");
    assert!(
        error.starts_with("InfluxDB accepts other writes to this bucket"),
        "{error}"
    );
}

#[test]
fn a_version_that_cannot_be_asked_is_asked_again() {
    let (server, site) = (Double3::start(), Site::new());
    server.fault(|r| r.path == "/ping", 1, Fault::new(503, ""));
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    server.call(&site).env("TSV_RETRY_FOR", "20").ok();
    assert_eq!(server.points("acme").len(), 6);
}

#[test]
fn a_setting_that_is_no_version_is_refused() {
    let (server, site) = (Double3::start(), Site::new());
    let call = server.call(&site).env("INFLUXDB_FLAVOR", "1");
    let run = call.run().expect(2);
    assert!(
        run.stderr.contains("INFLUXDB_FLAVOR is \"1\"") && run.stderr.contains("auto, 2 or 3"),
        "{}",
        run.stderr
    );
    assert!(server.requests().is_empty());
}
