//! Tests with a real InfluxDB that otherwise use the double. They need `INFLUXD_BIN`.

use crate::concurrency_and_kill;
use crate::faults::file_of_ages;
use crate::fixtures;
use crate::harness::{Call, DEVICE, Site, file_of, good_file, samples, stored};
use crate::real_influx::{RealInflux, kept_in_long_shards};
use crate::samples as all_samples;
use crate::second_reader::Point;

fn call<'a>(site: &'a Site, server: &RealInflux) -> Call<'a> {
    site.call()
        .server(&server.url(), server.token(), server.org())
        .env("TSV_RETRY_FOR", "20")
        .env("TSV_REQUEST_TIMEOUT_S", "30")
}

/// All points of a bucket without the hourly summaries.
pub fn points(server: &RealInflux, bucket: &str) -> Vec<Point> {
    let bucket = bucket.replace('\\', "\\\\").replace('"', "\\\"");
    let flux = format!(
        "from(bucket: \"{bucket}\") |> range(start: 1990-01-01T00:00:00Z, stop: 2110-01-01T00:00:00Z)
           |> filter(fn: (r) => r._measurement != \"powerview_1h\")"
    );
    let points: Vec<Point> = server
        .rows(&flux)
        .into_iter()
        .map(|mut row| {
            let time = chrono::DateTime::parse_from_rfc3339(&row["_time"]).expect("a time");
            let point = (
                row["_value"].parse().expect("a number"),
                row["_measurement"].clone(),
            );
            row.retain(|key, _| !key.starts_with('_'));
            Point {
                measurement: point.1,
                tags: row,
                value: point.0,
                epoch: time.timestamp(),
            }
        })
        .collect();
    stored(&points)
}

/// Checks that two lists of points are equal, and shows the first differences.
#[track_caller]
pub fn assert_same(got: Vec<Point>, expected: Vec<Point>, what: &str) {
    if got == expected {
        return;
    }
    let lacks: Vec<_> = expected
        .iter()
        .filter(|p| !got.contains(p))
        .take(3)
        .collect();
    let more: Vec<_> = got
        .iter()
        .filter(|p| !expected.contains(p))
        .take(3)
        .collect();
    panic!(
        "{what}: {} points, not {}; lacks {lacks:#?}, has {more:#?}",
        got.len(),
        expected.len()
    );
}

#[test]
fn each_fixture_arrives_at_a_real_server() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    for (i, f) in fixtures::all().iter().enumerate() {
        if f.lines.is_none() {
            continue;
        }
        let company = format!("company {i}");
        let site = Site::new();
        site.put_old(
            format!("{company}/{}/{}/input.tsv", f.campaign, f.device),
            &f.input,
        );
        let mut call = call(&site, &server);
        for (key, value) in &f.env {
            call = match value {
                Some(value) => call.env(key, value),
                None => call.no_env(key),
            };
        }
        let run = call.run().clean();
        assert_eq!(run.code(), 0, "{}: {}", f.name, run.stderr);
        assert_same(points(&server, &company), stored(&f.points()), &f.name);
    }
}

#[test]
fn all_samples_arrive_at_a_real_server() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let Some(dir) = samples() else { return };
    let samples = all_samples::read_all(&dir);
    let site = Site::new();
    all_samples::copy_to(&site, &dir, &samples);
    call(&site, &server).run().expect(1);
    for (bucket, expected) in all_samples::expected(&samples) {
        assert_same(points(&server, &bucket), stored(&expected), &bucket);
        assert_eq!(server.retention_rules(&bucket), kept_in_long_shards());
    }
    assert_eq!(
        server.retention_rules("powerview_meta"),
        kept_in_long_shards()
    );
    // The meta points can be queried.
    let files = server.rows(
        r#"from(bucket: "powerview_meta") |> range(start: -1h)
           |> filter(fn: (r) => r._measurement == "tsv_parser_file" and r._field == "nb_points")"#,
    );
    assert_eq!(files.len(), 12);
}

#[test]
fn a_company_named_like_a_real_buckets_id_gets_its_own_bucket() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    server.ensure_bucket("victim");
    let id = server.bucket_id("victim").expect("made");
    let site = Site::new();
    site.put_old(format!("{id}/site/02001171/a.tsv"), good_file(1, 1));
    call(&site, &server).ok();
    assert_eq!(points(&server, "victim"), []);
    assert_eq!(points(&server, &id).len(), 2);
}

#[test]
fn the_messages_of_a_real_server_are_reported() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    // The field `value` is a string already.
    server.write(
        "acme",
        "site,campaign=site,x=y value=\"text\" 1754184000",
        "s",
    );
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
    call(&site, &server).run().expect(1);
    let sidecar = site.sidecar(&DEVICE.error("a.tsv"));
    assert_eq!(sidecar["retryable"], false);
    assert!(
        sidecar.to_string().contains("field type conflict"),
        "{sidecar:#}"
    );

    // A wrong token, a wrong organisation.
    for (key, value) in [
        ("INFLUXDB_ADMIN_TOKEN", "wrong"),
        ("INFLUXDB_ORG", "missing-org"),
    ] {
        let site = Site::new();
        site.put_old(DEVICE.file("a.tsv"), good_file(1, 3));
        call(&site, &server).env(key, value).run().expect(1);
        assert_eq!(
            site.sidecar(&DEVICE.error("a.tsv"))["retryable"],
            true,
            "{key}"
        );
    }
}

#[test]
fn rows_older_than_the_retention_of_a_real_bucket_are_no_failure() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    for (n, batch_lines) in ["10000", "2", "4"].into_iter().enumerate() {
        let company = format!("company{n}");
        server.create_bucket(&company, 3600);
        let site = Site::new();
        // Two rows are a little older than the retention.
        let ages = [86_400 * 400, 60, 3660, 86_400, 120, 3700, 180];
        site.put_old(
            format!("{company}/site/02001171/a.tsv"),
            file_of_ages(&ages),
        );
        call(&site, &server)
            .env("TSV_TIMEZONE", "UTC")
            .env("TSV_BATCH_LINES", batch_lines)
            .ok();
        assert_eq!(points(&server, &company).len(), 6, "{batch_lines}");
        let report = site.report();
        let entry = file_of(&report, "a.tsv");
        assert_eq!(entry["nb_points"], 6, "{batch_lines}: {entry:#}");
        assert_eq!(entry["nb_points_expired"], 8, "{batch_lines}: {entry:#}");
        assert!(site.exists(format!("{company}/site/02001171/parsed/a.tsv")));
    }
}

#[test]
fn a_real_server_names_points_that_its_retention_dropped() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    // The program reads this message if it did not know the retention when it sent the points.
    server.create_bucket("acme", 3600);
    let path = format!("/api/v2/write?org={}&bucket=acme&precision=s", server.org());
    let lines = "m,a=b value=1 1600000000\nm,a=b value=2 1700000001";
    let (status, answer) = server.request("POST", &path, "text/plain", lines);
    assert_eq!(status, 422, "{answer}");
    assert!(
        answer.contains("partial write: dropped 2 points outside retention policy")
            && answer.contains("dropped=2"),
        "{answer}"
    );
}

#[test]
fn a_real_organisation_named_like_an_id_gets_its_points() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let org = "0123456789abcdef";
    let (status, answer) = server.request(
        "POST",
        "/api/v2/orgs",
        "application/json",
        &serde_json::json!({ "name": org }).to_string(),
    );
    assert_eq!(status, 201, "{answer}");
    let site = Site::new();
    site.put_old(DEVICE.file("a.tsv"), good_file(1, 1));
    call(&site, &server).env("INFLUXDB_ORG", org).ok();
    let created: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    let id = created["id"].as_str().expect("an id");
    let query = serde_json::json!({"query": "from(bucket: \"acme\") |> range(start: 0)"});
    let (status, found) = server.request(
        "POST",
        &format!("/api/v2/query?orgID={id}"),
        "application/json",
        &query.to_string(),
    );
    assert_eq!(status, 200, "{found}");
    assert_eq!(found.matches(",value,site,").count(), 2, "{found}");
}

#[test]
fn a_run_over_25_real_buckets_finds_its_own() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let site = Site::new();
    for n in 0..25 {
        site.put_old(
            format!("company{n:02}/site/02001171/a.tsv"),
            good_file(n, 1),
        );
    }
    call(&site, &server).ok();
    for n in [0, 12, 24] {
        assert_eq!(points(&server, &format!("company{n:02}")).len(), 2);
    }
    site.put_old("company24/site/02001171/b.tsv", good_file(9, 2));
    call(&site, &server).ok();
    assert_eq!(points(&server, "company24").len(), 4);
}

#[test]
fn after_a_kill_a_real_server_has_the_points_of_an_uninterrupted_run() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    concurrency_and_kill::kill_and_check(
        |site| call(site, &server),
        |load, _, what| {
            for company in load.companies() {
                assert_same(points(&server, &company), load.points(&company), what);
                // The next round writes the same series.
                let id = server.bucket_id(&company).expect("there");
                let (status, answer) =
                    server.request("DELETE", &format!("/api/v2/buckets/{id}"), "", "");
                assert_eq!(status, 204, "{answer}");
            }
        },
    );
}
