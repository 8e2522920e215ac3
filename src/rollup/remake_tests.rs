//! Tests of making the summaries of virtual channels anew on a server. Their numbers are compared with those of a second
//! computation in `tests/it/virtual_channels.rs`.

use super::{GapLimit, Rollup, RollupError, Scope, SummaryCounts};
use crate::data_dir::{Campaign, Dir};
use crate::real_influx::RealInflux;
use crate::shutdown::Shutdown;
use crate::sink::{ALL_TIMES, Destination, Flavor, InfluxReader, ServerSettings, Sink, Stream};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::time::Duration;

/// Midnight in UTC.
const MIDNIGHT: i64 = 20_000 * 86_400;

/// The number of days with points.
const DAYS: i64 = 40;

fn settings(server: &RealInflux) -> ServerSettings {
    ServerSettings {
        url: server.url().parse().unwrap(),
        token: server.token().to_owned(),
        org: server.org().to_owned(),
        connect_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(30),
        retry_for: Duration::from_secs(30),
        flavor: Flavor::Influx2,
    }
}

/// Calls `each` with everything that computing summaries needs.
fn with_rollup<T>(server: &RealInflux, stop: &Shutdown, each: impl Fn(&Rollup<'_>) -> T) -> T {
    let settings = settings(server);
    let source = InfluxReader::new(&settings, stop).unwrap();
    let sink = Sink::open(&Destination::Influx(settings), stop).unwrap();
    each(&Rollup {
        source: &source,
        sink: &sink,
        stream: Stream::Measurements,
        gap_limit: GapLimit::OfDay,
        batch_lines: 5_000,
        notes: RefCell::default(),
    })
}

/// Makes virtual channels anew. Without a signal, it ends after some locks.
fn remake(
    server: &RealInflux,
    changed: Option<&[&str]>,
    stop: &Shutdown,
) -> Result<u64, RollupError> {
    let dir = tempfile::tempdir().unwrap();
    let folder = Dir::open(dir.path()).unwrap();
    let campaign = Campaign::new("site".as_ref()).unwrap();
    let changed: Option<BTreeSet<String>> =
        changed.map(|ids| ids.iter().map(|id| (*id).to_owned()).collect());
    let locks = Cell::new(0);
    let lock = || {
        locks.set(locks.get() + 1);
        folder.lock(Duration::ZERO, &Shutdown::default())
    };
    let result = with_rollup(server, stop, |rollup| {
        rollup.remake_virtual("acme", &campaign, changed.as_ref(), lock)
    });
    assert!(locks.get() > 0);
    // The lock is released.
    folder.lock(Duration::ZERO, &Shutdown::default()).unwrap();
    result
}

/// Compares all summaries with the points, and writes those that differ.
fn repair(server: &RealInflux) -> SummaryCounts {
    let scope = Scope {
        bucket: "acme",
        measurement: None,
        since: ALL_TIMES.start,
    };
    let comparison = with_rollup(server, &Shutdown::default(), |rollup| {
        rollup.repair(scope).unwrap()
    });
    assert_eq!(comparison.failures, [""; 0]);
    comparison.counts
}

/// Writes an entry of a virtual channel with these terms.
fn apply(server: &RealInflux, id: &str, terms: &[(i64, &str)]) {
    let terms = terms.iter().map(|(factor, id)| {
        let part = serde_json::json!({"channel_id": id, "from": null, "until": null});
        serde_json::json!({"factor": factor, "parts": [part]})
    });
    let terms: serde_json::Value = terms.collect();
    let text = if terms == serde_json::json!([]) {
        String::new()
    } else {
        serde_json::json!({"unit": "W", "terms": terms}).to_string()
    };
    let text = text.replace('"', "\\\"");
    let line = format!(
        "powerview_channels,campaign=site,channel_id={id} terms=\"{text}\",device=\"virtuel\" 4102444800\n"
    );
    server.write("acme", &line, "s");
}

/// A server with the points of four channels, and their summaries.
fn site() -> Option<RealInflux> {
    let server = RealInflux::start()?;
    for channel in 1..5_i64 {
        let points = (0..DAYS * 144).map(|n| {
            let time = MIDNIGHT + n * 600 + channel * 7;
            let value = (n * 7_919 * channel) % 4_001 - 2_000;
            format!("site,campaign=site,channel_id=c{channel},device_master_sn=m{channel},unit=W value={value} {time}\n")
        });
        server.write("acme", &points.collect::<String>(), "s");
    }
    repair(&server);
    Some(server)
}

/// The values of the summaries of a virtual channel by field and time.
fn of(server: &RealInflux, id: &str) -> Vec<[String; 3]> {
    let rows = server.rows(&format!(
        "from(bucket: \"acme\") |> range(start: -9223372036, stop: 9223372036)
         |> filter(fn: (r) => r._measurement == \"powerview_1h\" and r.channel_id == \"{id}\")"
    ));
    let rows = rows.into_iter();
    let mut found: Vec<_> = rows
        .map(|row| ["_field", "_time", "_value"].map(|column| row[column].clone()))
        .collect();
    found.sort();
    found
}

#[test]
fn the_day_that_is_reached_is_only_said_if_there_are_summaries() {
    // All times begin here, long before the first point.
    let first = super::day_of(ALL_TIMES.start);
    assert_eq!(super::compare::reached(first, 0), None);
    let day = super::compare::reached(20_000, 24).unwrap();
    assert_eq!(day.to_string(), "2024-10-04");
}

#[test]
fn changed_and_removed_virtual_channels_are_made_anew_and_others_left_alone() {
    let Some(server) = site() else { return };
    apply(&server, "V_a", &[(1, "c1"), (1, "c2")]);
    apply(&server, "V_b", &[(1, "c1"), (-1, "c3")]);
    apply(&server, "V_c", &[(2, "c4")]);
    let none = Shutdown::default();
    let hours = u64::try_from(DAYS * 24).unwrap();
    assert_eq!(remake(&server, None, &none).unwrap(), 3 * hours);
    assert_eq!(remake(&server, None, &none).unwrap(), 0);
    assert_eq!(repair(&server).written, 0);
    let before = [of(&server, "V_a"), of(&server, "V_b"), of(&server, "V_c")];

    apply(&server, "V_a", &[(1, "c1"), (-1, "c2")]);
    apply(&server, "V_b", &[]);
    let written = remake(&server, Some(&["V_a", "V_b"]), &none).unwrap();
    assert_eq!(written, hours);
    assert!(of(&server, "V_b").is_empty());
    assert_eq!(of(&server, "V_c"), before[2]);
    let after = of(&server, "V_a");
    assert_eq!(after.len(), before[0].len());
    assert_ne!(after, before[0]);
    let counts = repair(&server);
    assert_eq!((counts.written, counts.is_equal()), (0, true));
    // Nothing is to be done for a campaign without entries, or without points.
    apply(&server, "V_a", &[(1, "c5")]);
    apply(&server, "V_c", &[]);
    let written = remake(&server, Some(&["V_a", "V_c", "V_never"]), &none).unwrap();
    assert_eq!(written, 0);
    assert!(of(&server, "V_a").is_empty() && of(&server, "V_c").is_empty());
}

#[test]
#[ignore = "slow: computes many summaries several times"]
fn a_run_that_ends_at_any_moment_is_completed_by_the_next_one() {
    let Some(server) = site() else { return };
    let formulas = [[(1, "c1"), (1, "c2")], [(3, "c3"), (-1, "c4")]];
    apply(&server, "V_a", &formulas[0]);
    apply(&server, "V_b", &formulas[1]);
    remake(&server, None, &Shutdown::default()).unwrap();
    let mut ended = 0;
    for (n, delay_ms) in [0_u64, 5, 10, 20, 40, 80, 120, 160, 200, 300]
        .into_iter()
        .enumerate()
    {
        apply(&server, "V_a", &formulas[(n + 1) % 2]);
        let stop = Shutdown::default();
        let signal = {
            let stop = stop.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(delay_ms));
                stop.request();
            })
        };
        let result = remake(&server, Some(&["V_a"]), &stop);
        signal.join().unwrap();
        ended += u32::from(result.is_err());
        if n % 2 == 0 {
            remake(&server, None, &Shutdown::default()).unwrap();
        } else {
            repair(&server);
        }
        let counts = repair(&server);
        assert_eq!(
            (counts.written, counts.is_equal()),
            (0, true),
            "{delay_ms} ms"
        );
        assert_eq!(of(&server, "V_a").len(), of(&server, "V_b").len());
    }
    assert!(ended > 0);
}
