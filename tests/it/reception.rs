//! The numbers of the reception dashboard against counts that are made here.

use crate::dashboards;
use crate::grafana::{self, Choice, View, panel};
use crate::harness::number_from_env;
use crate::real_influx::RealInflux;
use chrono::{DateTime, Datelike, Days, Duration, DurationRound, NaiveDate, TimeZone, Utc};
use chrono_tz::Europe::Paris;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const META: &str = "powerview_meta";

/// Maximum length of a body that a test writes, in bytes.
const MAX_BODY: usize = 4 << 20;

/// The end of the periods: a Thursday, three days before the clocks are changed in autumn.
const END: &str = "2026-10-29T11:07:00Z";

/// A point about a file, with the fields that the panels of this file read.
struct File {
    company: &'static str,
    device: u32,
    status: &'static str,
    name: String,
    at: DateTime<Utc>,
    arrival_delay_s: i64,
    measured_s_before: i64,
    points: i64,
    suspicious: i64,
}

impl File {
    fn line(&self) -> String {
        format!(
            "tsv_parser_file,bucket={},campaign=site,device_master_sn={:08},status={} file_name=\"{}\",nb_points={}i,error=\"no\",truncated=false,\
             retryable=true,nb_suspicious_times={}i,delay_s={}.0,arrival_delay_s={}.0 {}\n",
            self.company,
            self.device,
            self.status,
            self.name,
            self.points,
            self.suspicious,
            self.arrival_delay_s + self.measured_s_before,
            self.arrival_delay_s,
            self.at.timestamp_nanos_opt().expect("this century") + i64::from(self.device),
        )
    }

    fn arrived(&self) -> DateTime<Utc> {
        self.at - Duration::seconds(self.arrival_delay_s)
    }
}

fn end() -> DateTime<Utc> {
    END.parse().expect("a time")
}

fn view(dashboard: &Value, days: i64) -> View {
    let from = (end() - Duration::days(days)).to_rfc3339();
    View::of(dashboard, META, "", (&from, END), 3600)
}

/// Pseudo-random numbers, the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> i64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        i64::try_from((self.0 >> 33) % limit).expect("small")
    }
}

/// Thirteen months of eight loggers, with files at all times of the day, many of them around midnight.
fn files() -> Vec<File> {
    let mut random = Random(7);
    let mut files = Vec::new();
    for day in 0..400 {
        let midnight = Paris
            .from_local_datetime(
                &(end() - Duration::days(day))
                    .date_naive()
                    .and_hms_opt(0, 0, 0)
                    .expect("a time"),
            )
            .unwrap()
            .to_utc();
        for device in 1..=8 {
            // The eighth has stopped, and one of its old files is ingested again.
            let is_silent = device == 8 && day < 6;
            let seconds = if random.below(3) == 0 {
                random.below(7_200) - 3_600
            } else {
                random.below(86_400)
            };
            let mut file = File {
                company: if device < 4 { "alpha" } else { "beta" },
                device,
                status: "success",
                name: format!("{day:03}.tsv"),
                at: midnight + Duration::seconds(seconds),
                arrival_delay_s: random.below(90),
                measured_s_before: 600 * i64::from(device) + random.below(60),
                points: 1 + random.below(5_000),
                suspicious: if device == 5 && day < 3 { 12 } else { 0 },
            };
            if is_silent {
                if day != 2 {
                    continue;
                }
                (file.name, file.arrival_delay_s) = ("350.tsv".to_owned(), 348 * 86_400);
            }
            if random.below(20) == 0 {
                file.status = "error";
            }
            if file.at <= end() {
                files.push(file);
            }
        }
    }
    // Some that failed are ingested later.
    let retried: Vec<_> = files
        .iter()
        .filter(|f| f.status == "error" && f.device % 2 == 0)
        .map(|f| File {
            status: "success",
            at: f.at + Duration::hours(5),
            arrival_delay_s: f.arrival_delay_s + 5 * 3_600,
            name: f.name.clone(),
            ..*f
        })
        .filter(|f| f.at <= end())
        .collect();
    files.extend(retried);
    files
}

/// The start of the bar of a time: an hour, or a day, a week or a month in Paris.
fn bar(time: DateTime<Utc>, days: i64) -> DateTime<Utc> {
    if days <= 2 {
        return time.duration_trunc(Duration::hours(1)).expect("an hour");
    }
    let date = time.with_timezone(&Paris).date_naive();
    let first = if days <= 35 {
        date
    } else if days <= 190 {
        date - Days::new(date.weekday().num_days_from_monday().into())
    } else {
        date.with_day(1).expect("a first day")
    };
    local_midnight(first)
}

fn local_midnight(date: NaiveDate) -> DateTime<Utc> {
    let midnight = date.and_hms_opt(0, 0, 0).expect("a time");
    Paris.from_local_datetime(&midnight).unwrap().to_utc()
}

type Bars = BTreeMap<String, BTreeMap<DateTime<Utc>, f64>>;

fn bars(view: &View, server: &RealInflux, dashboard: &Value, title: &str) -> Bars {
    let series = view.series(server, panel(dashboard, "timeseries", title));
    let time = |t: &String| t.parse::<DateTime<Utc>>().expect("a time");
    series
        .into_iter()
        .map(|(name, points)| {
            let points = points.iter().map(|(t, v)| (time(t), v.expect("a value")));
            (name, points.collect())
        })
        .collect()
}

fn filled(files: &[File]) -> Option<RealInflux> {
    let server = RealInflux::start()?;
    let lines: String = files.iter().map(File::line).collect();
    let run = end().timestamp_nanos_opt().expect("this century") - 3_600_000_000_000;
    let run =
        format!("tsv_parser_run,status=success nb_files_total=0i,outage=0i,nb_retries=0i {run}\n");
    server.write(META, &(lines + &run), "ns");
    Some(server)
}

#[test]
fn the_bars_are_days_weeks_and_months_of_local_time() {
    let files = files();
    let Some(server) = filled(&files) else {
        return;
    };
    let dashboard = grafana::dashboard("reception");
    for days in [1, 2, 3, 30, 35, 36, 120, 190, 191, 365] {
        let view = view(&dashboard, days);
        // The first bar begins before the period, so that it is whole. A week begins on the first day.
        let from = end() - Duration::days(days);
        let first = bar(from, if days <= 190 { days.min(35) } else { days });
        let (mut counts, mut points, mut delays) = (Bars::new(), Bars::new(), BTreeMap::new());
        for file in &files {
            if file.status == "success" && file.at >= first {
                let bar = bar(file.at, days).max(first);
                let company = file.company.to_owned();
                *counts
                    .entry(company.clone())
                    .or_default()
                    .entry(bar)
                    .or_default() += 1.0;
                *points
                    .entry(company.clone())
                    .or_default()
                    .entry(bar)
                    .or_default() += file.points as f64;
                // A logger's files of a quarter of an hour count once.
                let quarter = file.at.timestamp() / 900;
                delays
                    .entry((company, bar))
                    .or_insert_with(BTreeMap::new)
                    .entry((quarter, file.device))
                    .or_insert_with(Vec::new)
                    .push(file.measured_s_before as f64 / 3_600.0);
            }
        }
        assert_eq!(
            bars(&view, &server, &dashboard, "Fichiers reçus par société"),
            counts,
            "{days} days"
        );
        assert_eq!(
            bars(&view, &server, &dashboard, "Points écrits par société"),
            points,
            "{days} days"
        );
        let title = "Délai de la dernière mesure à l'arrivée du fichier";
        let shown = bars(&view, &server, &dashboard, title);
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        assert_eq!(
            shown.values().map(BTreeMap::len).sum::<usize>(),
            delays.len()
        );
        for ((company, bar), quarters) in delays {
            let means: Vec<_> = quarters.values().map(|hours| mean(hours)).collect();
            let (shown, wanted) = (shown[&company][&bar], mean(&means));
            assert!(
                (shown - wanted).abs() < 1e-6,
                "{days} days, {company}, {bar}: {shown}, {wanted}"
            );
        }
    }
}

#[test]
fn the_lists_are_those_of_at_most_35_days() {
    let files = files();
    let Some(server) = filled(&files) else {
        return;
    };
    let dashboard = grafana::dashboard("reception");
    for days in [7, 30, 365] {
        let view = view(&dashboard, days);
        let from = end() - Duration::days(days.min(35));
        // The last attempt of each file.
        let mut last = BTreeMap::new();
        for file in files.iter().filter(|f| f.at >= from) {
            let latest = last.entry((file.device, &file.name)).or_insert(file);
            if file.at > latest.at {
                *latest = file;
            }
        }
        let wanted: BTreeSet<_> = last
            .values()
            .filter(|f| f.status == "error")
            .map(|f| (format!("{:08}", f.device), f.name.clone()))
            .collect();
        assert!(!wanted.is_empty());
        let rows = view.rows(&server, panel(&dashboard, "table", "Fichiers en erreur"));
        let shown: BTreeSet<_> = rows
            .iter()
            .map(|r| (r["Enregistreur"].clone(), r["Fichier"].clone()))
            .collect();
        assert_eq!((rows.len(), &shown), (wanted.len(), &wanted), "{days} days");
        assert!(
            rows.iter()
                .all(|r| r["Réessayable"] == "oui" && r["Erreur"] == "no")
        );
        let count = view.value(&server, panel(&dashboard, "stat", "Fichiers en erreur"));
        assert_eq!(count, Some(wanted.len().to_string()));

        let clocks = view.rows(&server, panel(&dashboard, "table", "Horloges à vérifier"));
        let suspicious: Vec<_> = files.iter().filter(|f| f.suspicious > 0).collect();
        let shown: Vec<_> = clocks
            .iter()
            .map(|r| {
                (
                    r["Enregistreur"].as_str(),
                    r["Fichiers"].clone(),
                    r["Lignes"].clone(),
                )
            })
            .collect();
        let lines: i64 = suspicious.iter().map(|f| f.suspicious).sum();
        assert_eq!(
            shown,
            [("00000005", suspicious.len().to_string(), lines.to_string())]
        );
    }
}

#[test]
fn the_lists_have_loggers_of_any_name() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    let line = |device: &str, status: &str, name: &str, hours: i64| {
        let at = (end() - Duration::hours(hours)).timestamp();
        format!(
            "tsv_parser_file,bucket=alpha,campaign=site,device_master_sn={device},status={status} \
             file_name=\"{name}\",error=\"no\",retryable=false,truncated=true,loss_ratio=0.0,arrival_delay_s=1.0,\
             layout_suspect=\"x\",nb_rows=10i,nb_lines_after_end=5i,nb_invalid_timestamps=0i,nb_malformed_rows=0i {at}\n"
        )
    };
    let odd = "a.b+(1)\\ |[2]*^é";
    let lines = [
        line(odd, "error", "1.tsv", 30),
        line(odd, "success", "2.tsv", 29),
        line("axb+(1)", "error", "1.tsv", 30),
        line("axb+(1)", "success", "1.tsv", 2),
    ];
    server.write(META, &lines.concat(), "s");
    let dashboard = grafana::dashboard("reception");
    let view = view(&dashboard, 7);
    let odd = odd.replace('\\', "");
    let both = [("axb+(1)", "1.tsv"), (&odd, "2.tsv")];
    for (title, file, wanted) in [
        ("Fichiers en erreur", "Fichier", &[(&*odd, "1.tsv")][..]),
        ("Fichiers endommagés", "Fichier", &both),
        ("Voies douteuses ou modifiées", "Fichier", &both),
    ] {
        let rows = view.rows(&server, panel(&dashboard, "table", title));
        let shown: Vec<_> = rows
            .iter()
            .map(|r| (&*r["Enregistreur"], &*r[file]))
            .collect();
        assert_eq!(shown, wanted, "{title}");
    }
    let title = "Fichiers tronqués par enregistreur";
    let cut = view.rows(&server, panel(&dashboard, "table", title));
    let cut: BTreeMap<_, _> = cut
        .iter()
        .map(|r| (&*r["Enregistreur"], &*r["Fichiers"]))
        .collect();
    assert_eq!(cut, BTreeMap::from([("axb+(1)", "1"), (&odd, "2")]));
    let silent = panel(&dashboard, "table", "Enregistreurs muets");
    let silent = view.rows(&server, silent);
    let silent: Vec<_> = silent.iter().map(|r| &*r["Enregistreur"]).collect();
    assert_eq!(silent, [&odd]);
    let loggers = ["alpha a.b+(1) |[2]*^é", "alpha axb+(1)"];
    let [_, failures, damage, layout, _] = &dashboards::rules()[..] else {
        panic!("five rules")
    };
    for (rule, wanted) in [
        (failures, &loggers[..1]),
        (damage, &loggers),
        (layout, &loggers),
    ] {
        let alarmed = dashboards::alarmed(&server, rule, end());
        assert_eq!(alarmed, wanted, "{}", rule["title"]);
    }
}

#[test]
fn a_clock_that_is_ahead_or_behind_is_shown() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    // A logger, the hours since the arrival of its file, those by which its last measurement is before the arrival, and
    // those after which the file was ingested.
    let files = [
        // Ahead.
        (1, 30.0, 0.1, 0.0),
        (1, 2.0, -1.1, 0.0),
        // Not by more than an hour.
        (2, 2.0, -0.9, 0.0),
        // Corrected. An old file was ingested again.
        (3, 60.0, -2.0, 0.0),
        (3, 30.0, 0.1, 0.0),
        (3, 60.0, -2.0, 59.0),
        // Ahead, and ingested late.
        (4, 30.0, -2.0, 29.0),
        // Behind, in a file that arrived six hours earlier too.
        (5, 30.0, 90.0, 0.0),
        (5, 24.0, 100.0, 0.0),
        // Not by more than three days.
        (6, 30.0, 71.9, 0.0),
        (6, 24.0, 71.9, 0.0),
        // Old files that were loaded at once, and days after each other.
        (7, 5.0, 100.0, 0.0),
        (7, 4.9, 100.0, 0.0),
        (8, 60.0, 200.0, 0.0),
        (8, 30.0, 187.0, 0.0),
        // Old files before that of a right clock.
        (9, 60.0, 100.0, 0.0),
        (9, 30.0, 100.0, 0.0),
        (9, 2.0, 0.1, 0.0),
    ];
    let seconds = |hours: f64| Duration::seconds((hours * 3_600.0).round() as i64);
    let files = files.map(|(device, age, before, delay)| {
        let file = File {
            company: "alpha",
            device,
            status: "success",
            name: String::new(),
            at: end() - seconds(age) + seconds(delay),
            arrival_delay_s: seconds(delay).num_seconds(),
            measured_s_before: seconds(before).num_seconds(),
            points: 1,
            suspicious: 0,
        };
        file.line()
    });
    server.write(META, &files.concat(), "ns");
    let dashboard = grafana::dashboard("reception");
    let clocks =
        view(&dashboard, 7).rows(&server, panel(&dashboard, "table", "Horloges à vérifier"));
    let shown: BTreeMap<_, f64> = clocks
        .iter()
        .map(|r| {
            assert_eq!((&*r["Fichiers"], &*r["Lignes"]), ("0", "0"));
            let ahead = r["Avance (h)"].parse().expect("a number");
            (&*r["Enregistreur"], ahead)
        })
        .collect();
    let wanted = [("00000001", 1.1), ("00000004", 2.0), ("00000005", -100.0)];
    assert_eq!(shown.len(), wanted.len(), "{shown:?}");
    for (device, ahead) in wanted {
        let difference = shown[device] - ahead;
        assert!(difference.abs() < 1e-6, "{shown:?}");
    }
}

#[test]
fn a_silence_is_counted_from_the_last_arrival() {
    let files = files();
    let Some(server) = filled(&files) else {
        return;
    };
    let dashboard = grafana::dashboard("reception");
    for hours in ["12", "26", "168"] {
        let view = View {
            // As Grafana does for these panels.
            range: ((end() - Duration::days(180)).to_rfc3339(), END.to_owned()),
            ..view(&dashboard, 7).with("muet", Choice::One(hours.into()))
        };
        let limit = Duration::hours(hours.parse().expect("a number"));
        let mut silent = BTreeMap::new();
        for device in 1..=8 {
            let own = files.iter().filter(|f| f.device == device);
            let last = own.map(File::arrived).max().expect("files");
            if end() - last > limit {
                let days = (end() - last).num_seconds() as f64 / 86_400.0;
                silent.insert(format!("{device:08}"), days);
            }
        }
        let rows = view.rows(&server, panel(&dashboard, "table", "Enregistreurs muets"));
        assert_eq!(rows.len(), silent.len(), "{rows:?}");
        for row in rows {
            let shown: f64 = row["Silence (jours)"].parse().expect("a number");
            let wanted = silent[&row["Enregistreur"]];
            assert!((shown - wanted).abs() < 1e-4, "{row:?}: {wanted}");
        }
        let count = view.value(&server, panel(&dashboard, "stat", "Enregistreurs muets"));
        assert_eq!(count, Some(silent.len().to_string()));
        let known = view.value(&server, panel(&dashboard, "stat", "Enregistreurs connus"));
        assert_eq!(known.as_deref(), Some("8"));
    }
}

/// A count of 0 is green, and no data is not.
#[test]
fn nothing_is_shown_as_none_before_the_first_run() {
    let Some(server) = RealInflux::start() else {
        return;
    };
    server.ensure_bucket(META);
    let dashboard = grafana::dashboard("reception");
    let view = view(&dashboard, 7);
    let counts = [
        "Enregistreurs muets",
        "Fichiers en erreur",
        "Fichiers tronqués",
        "Pannes de la base",
    ];
    let shown = || counts.map(|title| view.value(&server, panel(&dashboard, "stat", title)));
    assert_eq!(shown(), [const { None }; 4]);
    let run = end().timestamp() - 60;
    server.write(
        META,
        &format!("tsv_parser_run,status=success nb_files_total=0i,outage=0i {run}\n"),
        "s",
    );
    assert_eq!(
        shown(),
        [const { Some("0") }; 4].map(|zero| zero.map(str::to_owned))
    );
    for title in counts {
        let defaults = &panel(&dashboard, "stat", title)["fieldConfig"]["defaults"];
        assert_eq!(
            defaults["thresholds"]["steps"][0]["color"], "text",
            "{title}"
        );
    }
}

/// A point about a file in the form of `src/report/metrics.rs`, with a report of the usual length.
fn whole_line(device: usize, at: DateTime<Utc>, random: &mut Random) -> String {
    let is_rare = |random: &mut Random| random.below(200) == 0;
    let (status, truncated) = (
        if is_rare(random) { "error" } else { "success" },
        is_rare(random),
    );
    let loss = if is_rare(random) { 0.12 } else { 0.0 };
    let channel = "\\\"M02001000_Ch1_M02001000\\\":{\\\"channel_name\\\":\\\"Voie1\\\",\\\"unit\\\":\\\"W\\\",\\\"nb_points\\\":143,\\\"min\\\":0.5,\\\"max\\\":1000.25,\\\"mean\\\":123.456789},";
    format!(
        "tsv_parser_file,bucket=company{},campaign=site{},device_master_sn=02{:06},status={status} \
         file_name=\"T302_{}_031720.tsv\",run_id=\"{}-1\",nb_rows=143i,nb_channels=30i,nb_points=4290i,nb_points_expired=0i,\
         nb_invalid_timestamps=0i,nb_invalid_values=0i,nb_malformed_rows=0i,nb_short_rows=0i,nb_lines_after_end=0i,nb_tables=1i,\
         nb_cells=4290i,loss_ratio={loss:?},nb_suspicious_times=0i,first_problem=\"{}\",truncated={truncated},retryable=false,\
         last_measurement_s={}i,delay_s={}.5,arrival_delay_s=0.{}5,error=\"{}\",layout_changed=\"\",layout_suspect=\"{}\",\
         report=\"{{{}}}\" {}\n",
        device % 10,
        device % 20,
        device + 1000,
        at.format("%y%m%d"),
        at.timestamp_millis(),
        if loss > 0.0 {
            "line 3, column 2: a decimal comma"
        } else {
            ""
        },
        at.timestamp() - 1_000,
        1_000 + random.below(600),
        1 + random.below(8),
        if status == "error" {
            "the format marker is not supported"
        } else {
            ""
        },
        if device == 50 && end() - at < Duration::days(3) {
            "Voie3 W has the values of a voltage"
        } else {
            ""
        },
        channel.repeat(30),
        at.timestamp_nanos_opt().expect("this century"),
    )
}

/// A file of each logger on each of the last days, a run for each, and an hourly run. Returns a server that has their points.
fn days_of_loggers(days: i64, loggers: i64) -> Option<RealInflux> {
    let server = RealInflux::start()?;
    let mut random = Random(16);
    let run = |at: DateTime<Utc>, files: u32| {
        format!(
            "tsv_parser_run,status=success run_id=\"{at}\",nb_files_total={files}i,nb_files_success={files}i,nb_files_failed=0i,\
             nb_files_skipped=0i,nb_points_total=4290i,nb_retries=0i,outage=0i,duration_s=0.06,base_folder=\"/srv/sftpgo/data\" {}\n",
            at.timestamp_nanos_opt().expect("this century")
        )
    };
    for day in 0..days {
        let day = end() - Duration::days(day);
        let mut lines = String::new();
        for hour in 0..24 {
            lines += &run(day - Duration::hours(hour), 0);
        }
        for device in 0..loggers {
            // All of them within 24 minutes.
            let at =
                day - Duration::hours(7) + Duration::milliseconds(1_440_000 / loggers * device);
            let device = usize::try_from(device).expect("small");
            lines += &whole_line(device, at, &mut random);
            lines += &run(at + Duration::microseconds(100), 1);
            if lines.len() > MAX_BODY {
                server.write(META, &std::mem::take(&mut lines), "ns");
            }
        }
        server.write(META, &lines, "ns");
    }
    Some(server)
}

/// The server answers all queries for a year of many files, or for `DAYS` days of `LOGGERS` loggers. Measures each panel,
/// beside its queries for a period without points, and all of them as a page that has six requests in flight.
#[test]
#[ignore = "slow: measures; prints the figures of docs/performance.md with --nocapture"]
fn a_year_of_200_loggers_is_answered() {
    let number =
        |variable, default| i64::try_from(number_from_env(variable, default)).expect("a number");
    let given = number("DAYS", 365);
    let Some(server) = days_of_loggers(given, number("LOGGERS", 200)) else {
        return;
    };
    let dashboard = grafana::dashboard("reception");
    let queries = |days: i64, years_ago: i64| -> Vec<(String, String)> {
        let panels = grafana::panels(&dashboard).into_iter();
        let all = panels.flat_map(|panel| {
            let days = if panel["timeFrom"] == "180d" {
                180
            } else {
                days
            };
            let to = end() - Duration::days(365 * years_ago);
            let range = ((to - Duration::days(days)).to_rfc3339(), to.to_rfc3339());
            let window = u64::try_from(days * 86).expect("small");
            let view = View::of(&dashboard, META, "", (&range.0, &range.1), window);
            let title = format!(
                "{} ({})",
                panel["title"].as_str().expect("a title"),
                panel["type"]
            );
            let queries = grafana::queries(panel).into_iter();
            queries
                .map(move |q| (title.clone(), view.interpolate(q)))
                .collect::<Vec<_>>()
        });
        all.collect()
    };
    for days in [7, given] {
        let (all, empty) = (queries(days, 0), queries(days, 20));
        grafana::print_times(&server, &format!("{days:3} d"), &all, &empty);
    }
}
