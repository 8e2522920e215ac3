//! `powerview rebuild` with a real InfluxDB. The expected points come from the second reader, and the expected numbers from
//! the points that each test writes. See docs/specification.md, section 10.

use crate::harness::{Call, Run, Site, age};
use crate::real_influx::{RealInflux, Stored};
use crate::real_server::{assert_same, points};
use crate::second_reader::{self, Point};
use crate::skipped::installed;
use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, TimeZone, Utc};
use chrono_tz::Europe::Paris;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const COMPANY: &str = "acme";

// --- a server, its points and its buckets -----------------------------------------------------------------------

/// A server with a data folder.
struct Place {
    server: RealInflux,
    site: Site,
}

impl Place {
    fn start() -> Option<Self> {
        RealInflux::start().map(|server| Self {
            server,
            site: Site::new(),
        })
    }

    fn to<'a>(&self, call: Call<'a>, url: &str) -> Call<'a> {
        call.server(url, self.server.token(), self.server.org())
            .env("TSV_RETRY_FOR", "20")
            .env("TSV_REQUEST_TIMEOUT_S", "30")
            .timeout(Duration::from_mins(3))
    }

    /// An ingestion.
    fn ingest(&self) -> Call<'_> {
        self.to(self.site.call(), &self.server.url())
    }

    /// A rebuild through a proxy, or another address of the server.
    fn rebuild_at(&self, url: &str, company: &str) -> Call<'_> {
        let call = self.site.subcommand("rebuild");
        self.to(call.arg(format!("--company={company}")), url)
    }

    fn rebuild(&self, company: &str) -> Call<'_> {
        self.rebuild_at(&self.server.url(), company)
    }

    /// Checks that `verify` finds this number of points besides those of the files.
    #[track_caller]
    fn verify(&self, company: &str, extra: u64, unexplained: u64) {
        let call = self.site.subcommand("verify").arg("--json");
        let call = call.arg(format!("--company={company}"));
        let run = self.to(call, &self.server.url()).run().clean();
        let found: Value = serde_json::from_str(&run.stdout).expect("JSON");
        let others: u64 = found["unexplained_measurements"]
            .as_array()
            .map_or(0, |list| {
                list.iter()
                    .map(|measurement| measurement["points"].as_u64().expect("a number"))
                    .sum()
            });
        let numbers = ["missing", "different", "extra"].map(|key| found[key].as_u64());
        assert_eq!(
            (numbers, others),
            ([Some(0), Some(0), Some(extra)], unexplained),
            "{found:#}"
        );
    }

    /// All buckets: their names and ids.
    fn buckets(&self) -> Vec<(String, String)> {
        let path = format!("/api/v2/buckets?org={}&limit=100", self.server.org());
        let (_, answer) = self.server.request("GET", &path, "", "");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        let buckets = answer["buckets"].as_array().expect("a list");
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        buckets
            .iter()
            .map(|bucket| (text(&bucket["name"]), text(&bucket["id"])))
            .collect()
    }

    /// The names of the buckets that belong to a company, sorted.
    fn names(&self, company: &str) -> Vec<String> {
        let names = self.buckets().into_iter().map(|(name, _)| name);
        let mut names: Vec<_> = names
            .filter(|name| name == company || name.starts_with(&format!("{company}.")))
            .collect();
        names.sort();
        names
    }

    fn delete(&self, name: &str) {
        let id = self.server.bucket_id(name).expect("a bucket");
        let path = format!("/api/v2/buckets/{id}");
        let (status, answer) = self.server.request("DELETE", &path, "", "");
        assert_eq!(status, 204, "{answer}");
    }

    fn bucket(&self, name: &str) -> Value {
        let id = self.server.bucket_id(name).expect("a bucket");
        let (_, answer) = self
            .server
            .request("GET", &format!("/api/v2/buckets/{id}"), "", "");
        serde_json::from_str(&answer).expect("JSON")
    }

    /// The points that the files in `parsed/` of a company give.
    fn expected(&self, company: &str) -> Vec<Point> {
        let mut all = Vec::new();
        for path in self.site.tree() {
            let parts: Vec<_> = path.split('/').collect();
            if parts[0] == company && parts[3] == "parsed" {
                let bytes = self.site.read(&path);
                all.extend(
                    second_reader::read(&bytes, parts[1], Paris)
                        .expect(&path)
                        .points,
                );
            }
        }
        crate::harness::stored(&all)
    }

    /// Checks that the bucket has exactly the points of the files.
    #[track_caller]
    fn assert_points_of_files(&self, company: &str, what: &str) {
        assert_same(points(&self.server, company), self.expected(company), what);
    }
}

/// Checks the exit status, and that neither the token nor a control character is shown.
#[track_caller]
fn expect(run: Run, code: i32) -> Run {
    let run = run.expect(code);
    for text in [&run.stdout, &run.stderr] {
        assert!(!text.contains("token-of-a-test-server"), "{text}");
    }
    run
}

/// All points of a bucket.
fn dump(server: &RealInflux, bucket: &str) -> BTreeSet<Stored> {
    server.stored(bucket).into_iter().collect()
}

// --- files --------------------------------------------------------------------------------------------------------

/// A file of a device with two channels and these rows: local time and value.
fn file(serial: &str, rows: &[(NaiveDateTime, u32)]) -> String {
    let mut text = format!("{serial}\t{serial}\t04000466\nMV_T302_V002\tPh 1 V\tVoie1 W\n");
    for (time, value) in rows {
        let time = time.format("%d/%m/%y %H:%M:%S");
        text += &format!("{time}\t{value}.5\t-{value}.25\n");
    }
    text
}

/// Rows of a day, ten minutes apart.
fn rows(day: &str, first: u32, count: u32) -> Vec<(NaiveDateTime, u32)> {
    let day: NaiveDate = day.parse().expect("a day");
    let midnight = day.and_hms_opt(0, 0, 0).expect("a time");
    (0..count)
        .map(|n| {
            (
                midnight + chrono::Duration::minutes(10 * i64::from(n)),
                first + n,
            )
        })
        .collect()
}

/// A line of a point of a channel (0: voltage of the master, 1: power of the slave) with the tags of the files, changed by
/// `tags`.
fn line(
    serial: &str,
    channel: usize,
    tags: impl FnOnce(&mut BTreeMap<&'static str, String>),
    value: u32,
    time: i64,
) -> String {
    let own = [serial, "04000466"][channel];
    let mut map = BTreeMap::from([
        ("campaign", "site".to_owned()),
        (
            "channel_id",
            format!("{}{own}_Ch1_M{serial}", ["M", "S"][channel]),
        ),
        ("channel_name", ["Ph\\ 1", "Voie1"][channel].to_owned()),
        ("channel_number", "1".to_owned()),
        ("channel_type", ["master", "slave"][channel].to_owned()),
        ("device", own.to_owned()),
        ("device_master_sn", serial.to_owned()),
        ("device_sn", own.to_owned()),
        ("unit", ["V", "W"][channel].to_owned()),
    ]);
    tags(&mut map);
    let tags: String = map.iter().map(|(k, v)| format!(",{k}={v}")).collect();
    let value = [format!("{value}.5"), format!("-{value}.25")][channel].clone();
    format!("site{tags} value={value} {time}\n")
}

fn epoch(local: NaiveDateTime) -> i64 {
    let time = Paris.from_local_datetime(&local).earliest();
    time.expect("a time").timestamp()
}

/// The time with day and month swapped, as far as there is such a day.
fn swapped(local: NaiveDateTime) -> Option<NaiveDateTime> {
    let date = NaiveDate::from_ymd_opt(local.year(), local.day(), local.month())?;
    Some(date.and_time(local.time()))
}

// --- a proxy --------------------------------------------------------------------------------------------------------

/// A request to the proxy.
struct Request {
    method: String,
    path: String,
    body: Vec<u8>,
}

impl Request {
    fn is_rename(&self) -> bool {
        self.method == "PATCH"
    }

    /// The name in the body.
    fn name(&self) -> String {
        self.text("name")
    }

    /// The Flux query in the body.
    fn query(&self) -> String {
        self.text("query")
    }

    fn text(&self, key: &str) -> String {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body[key].as_str().unwrap_or_default().to_owned()
    }
}

/// Decides what happens to a request. It may forward it, which returns the answer. `None` passes the request on, an empty
/// answer closes the connection.
type Intercept = dyn Fn(&Request, &dyn Fn() -> Vec<u8>) -> Option<Vec<u8>> + Send + Sync;

/// A proxy of a server on 127.0.0.1. It uses a connection for each request.
struct Proxy {
    port: u16,
    stopped: Arc<AtomicBool>,
}

impl Proxy {
    fn start(
        server: &RealInflux,
        intercept: impl Fn(&Request, &dyn Fn() -> Vec<u8>) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let target = server.url().trim_start_matches("http://").to_owned();
        let intercept: Arc<Intercept> = Arc::new(intercept);
        let stopped = Arc::new(AtomicBool::new(false));
        let is_stopped = Arc::clone(&stopped);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if is_stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (target, intercept) = (target.clone(), Arc::clone(&intercept));
                std::thread::spawn(move || {
                    // The connection fails if one of the programs is killed.
                    let _ = serve(client, &target, &*intercept);
                });
            }
        });
        Self { port, stopped }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(mut client: TcpStream, target: &str, intercept: &Intercept) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let mut block = [0; 16 * 1024];
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end + 4;
        }
        match client.read(&mut block)? {
            0 => return Ok(()),
            length => bytes.extend_from_slice(&block[..length]),
        }
    };
    let mut body = bytes.split_off(head);
    let head = String::from_utf8(bytes).map_err(std::io::Error::other)?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse().ok())?
    });
    while body.len() < length.unwrap_or(0) {
        match client.read(&mut block)? {
            0 => return Ok(()),
            length => body.extend_from_slice(&block[..length]),
        }
    }
    let mut words = head.split(' ');
    let mut word = || words.next().unwrap_or_default().to_owned();
    let request = Request {
        method: word(),
        path: word(),
        body,
    };
    let send = || -> std::io::Result<TcpStream> {
        let mut server = TcpStream::connect(target)?;
        let (first, rest) = head.split_once("\r\n").expect("a line");
        server.write_all(format!("{first}\r\nConnection: close\r\n{rest}").as_bytes())?;
        server.write_all(&request.body)?;
        Ok(server)
    };
    let forward = || {
        let mut answer = Vec::new();
        let read = send().and_then(|mut server| server.read_to_end(&mut answer));
        read.expect("the server answers");
        answer
    };
    match intercept(&request, &forward) {
        Some(answer) => client.write_all(&answer),
        None => std::io::copy(&mut send()?, &mut client).map(drop),
    }
}

/// An answer with an error.
fn refusal(status: u16, message: &str) -> Vec<u8> {
    let body = json!({ "code": "error", "message": message }).to_string();
    format!(
        "HTTP/1.1 {status} Refused\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn succeeded(answer: &[u8]) -> bool {
    answer.starts_with(b"HTTP/1.1 20")
}

// --- the database of an old program ---------------------------------------------------------------------------------

/// What an old program has left in a bucket, and what is known about it.
#[derive(Default)]
struct Old {
    lines: String,
    /// The number of points of the campaign `site` that no file explains.
    unexplained: u64,
    /// The number of points per month and cause, in the words of the report.
    causes: BTreeMap<((i32, u32), String), u64>,
    /// The points that the files give as well, and the other ones, per month.
    equal: BTreeMap<(i32, u32), u64>,
    only_old: BTreeMap<(i32, u32), u64>,
}

const OTHER_TAGS: &str =
    "with other tags than those of the files, such as series without the tag device";
const GONE: &str = "whose file is gone";

fn month(time: i64) -> (i32, u32) {
    let time = DateTime::from_timestamp(time, 0).expect("a time");
    (time.year(), time.month())
}

impl Old {
    fn add(&mut self, line: &str, time: i64, cause: Option<String>) {
        self.lines += line;
        let Some(cause) = cause else {
            *self.equal.entry(month(time)).or_default() += 1;
            return;
        };
        *self.only_old.entry(month(time)).or_default() += 1;
        self.unexplained += u64::from(cause == GONE);
        *self.causes.entry((month(time), cause)).or_default() += 1;
    }

    /// The lines about a campaign that a report must have.
    fn report(&self, new: &[Point]) -> Vec<String> {
        let name = |(year, month): (i32, u32)| {
            let day = NaiveDate::from_ymd_opt(year, month, 1).expect("a day");
            day.format("%B %Y").to_string()
        };
        let number = |n: u64| indicatif::HumanCount(n).to_string();
        let mut only_new: BTreeMap<(i32, u32), u64> = BTreeMap::new();
        for point in new {
            *only_new.entry(month(point.epoch)).or_default() += 1;
        }
        let months: BTreeSet<_> = only_new.keys().chain(self.only_old.keys()).collect();
        let mut lines: Vec<String> = months
            .into_iter()
            .map(|m| {
                let equal = self.equal.get(m).copied().unwrap_or_default();
                let new = only_new.get(m).copied().unwrap_or_default() - equal;
                let old = self.only_old.get(m).copied().unwrap_or_default();
                format!(
                    "    {}: {} equal, {} only in the new bucket, {} only in the old one",
                    name(*m),
                    number(equal),
                    number(new),
                    number(old)
                )
            })
            .collect();
        lines.extend(self.causes.iter().map(|((month, cause), count)| {
            let points = if *count == 1 { "point" } else { "points" };
            format!(
                "    {}: {} {points} of the old bucket {cause}",
                name(*month),
                number(*count)
            )
        }));
        lines
    }
}

/// Files, and a bucket with what an old program made of them, of files that are gone, and of another program's points.
fn old_database(place: &Place) -> Old {
    let mut old = Old::default();
    let days = [
        rows("2025-08-03", 1, 140),
        rows("2025-08-20", 1_000, 60),
        rows("2025-11-05", 2_000, 30),
    ];
    for (n, rows) in days.iter().enumerate() {
        let path = format!("{COMPANY}/site/02001171/parsed/f{n}.tsv");
        place.site.put_old(path, file("02001171", rows));
        for (local, value) in rows {
            for channel in [0, 1] {
                let without_device = |tags: &mut BTreeMap<_, String>| {
                    tags.remove("device");
                    tags.insert("file_name", format!("f{n}.tsv"));
                };
                let (time, cause) = match swapped(*local) {
                    Some(wrong) => {
                        let day = local.format("for %-d %B %Y").to_string();
                        (epoch(wrong), day)
                    }
                    None => (epoch(*local), OTHER_TAGS.to_owned()),
                };
                let line = line("02001171", channel, without_device, *value, time);
                old.add(&line, time, Some(cause));
            }
        }
    }
    // The newest file was ingested by this program, except for its last row.
    let newest = rows("2025-12-24", 3_000, 50);
    place.site.put_old(
        format!("{COMPANY}/site/02001172/parsed/n.tsv"),
        file("02001172", &newest),
    );
    for (local, value) in &newest[..49] {
        for channel in [0, 1] {
            let time = epoch(*local);
            old.add(&line("02001172", channel, |_| (), *value, time), time, None);
        }
    }
    // The files of a device, and a file of another one, are gone.
    for (serial, day, count) in [
        ("02001173", "2025-12-24", 7),
        ("02001172", "2025-10-20", 11),
    ] {
        for (local, value) in rows(day, 4_000, count) {
            let time = epoch(local);
            let line = line(serial, 1, |_| (), value, time);
            old.add(&line, time, Some(GONE.to_owned()));
        }
    }
    old
}

/// Points of other programs: all types of fields, names with all special characters, and times between two seconds. There
/// are 14 in `electrical`, 2 in `a,b c=d`, and 2 in the measurement of the campaign.
fn other_points() -> String {
    let lines = [
        r#"electrical,id=M1 energy=12i,state="on, \"a\\b\" = c",ok=true,power=-1.5e-300 1754184000000000000"#,
        r#"electrical,id=M1 energy=-9223372036854775807i,state="",ok=false,power=0.1 1754184600000000000"#,
        "electrical,id=M1 text=\"two\nlines\r\nand more\" 1754184000000000000",
        r"electrical,id=M1 power=2.5 1754184000123456789",
        r"electrical,id=M1 power=3.5 1754184000123456788",
        r#"a\,b\ c=d,k\,1\=\ 2=v\,1\=\ 2,${r}=$x,"q"="q" f\,1\=\ 2=1i 1754184000000000000"#,
        r"a\,b\ c=d,back\slash=a\b,été=東京 value=1 1754184000000000000",
        r"electrical,result=a,table=1 power=1 1754184000000000000",
        r"electrical,result=b,table=1 power=2 1754184000000000000",
        r"electrical,result=b,table=2 power=3 1754184000000000000",
        r#"site,channel_id=M02001172_Ch1_M02001172,device_master_sn=02001172 note="x",n=1i 1766531400000000000"#,
    ];
    lines.join("\n")
}

#[test]
fn the_database_of_an_old_program_is_rebuilt_and_the_swap_can_be_undone() {
    let Some(place) = Place::start() else { return };
    let server = &place.server;
    server.create_bucket(COMPANY, 86_400 * 20_000);
    let id = server.bucket_id(COMPANY).expect("there");
    let body = json!({ "description": "meters of \"acme\" \\ ${r}" }).to_string();
    let path = format!("/api/v2/buckets/{id}");
    let (status, answer) = server.request("PATCH", &path, "application/json", &body);
    assert_eq!(status, 200, "{answer}");
    let mut old = old_database(&place);
    server.write(COMPANY, &old.lines, "s");
    server.write(COMPANY, &other_points(), "ns");
    old.unexplained += 2;
    *old.only_old.entry((2025, 12)).or_default() += 2;
    *old.causes.entry(((2025, 12), GONE.to_owned())).or_default() += 2;
    let before = dump(server, COMPANY);
    let bucket_before = place.bucket(COMPANY);
    let expected = place.expected(COMPANY);
    let tree = place.site.tree();

    let unchanged = |what: &str| {
        assert_eq!(server.bucket_id(COMPANY).as_deref(), Some(&*id), "{what}");
        assert_eq!(dump(server, COMPANY), before, "{what}");
        assert_eq!(place.site.tree(), tree, "{what}");
    };

    // A report only.
    let run = expect(place.rebuild(COMPANY).arg("--dry-run").run(), 0);
    unchanged("dry run");
    assert_eq!(place.names(COMPANY), [COMPANY], "a dry run creates nothing");
    let mut report = old.report(&expected);
    let shown: Vec<&str> = run
        .stdout
        .lines()
        .skip_while(|line| *line != "site")
        .skip(1)
        .take_while(|line| line.starts_with("    "))
        .collect();
    let mut sorted = shown.clone();
    sorted.sort_unstable();
    report.sort();
    assert_eq!(sorted, report, "{}", run.stdout);
    for (name, count) in [("electrical", 14), ("a,b c=d", 2)] {
        let line = format!("{name}: {count} points of a measurement that has no campaign folder");
        assert!(run.stdout.contains(&line), "{line}: {}", run.stdout);
    }

    // Neither without a person nor with points that no file explains.
    let run = expect(place.rebuild(COMPANY).run(), 1);
    let unexplained = old.unexplained + 16;
    let reason = format!(
        "not swapped: the bucket has {unexplained} points that no file explains; copy them with --keep-unexplained"
    );
    assert!(run.stderr.contains(&reason), "{reason}: {}", run.stderr);
    unchanged("without --yes");
    let run = expect(place.rebuild(COMPANY).arg("--keep-unexplained").run(), 1);
    assert!(run.stderr.contains("use --yes"), "{}", run.stderr);
    unchanged("without a terminal");
    assert_eq!(place.names(COMPANY), [COMPANY, "acme.rebuild"]);

    // The swap.
    let run = expect(
        place
            .rebuild(COMPANY)
            .args(["--keep-unexplained", "--yes"])
            .run(),
        0,
    );
    let copied = format!("copied {unexplained} points that no file explains");
    assert!(run.stdout.contains(&copied), "{copied}: {}", run.stdout);
    let former = format!("acme.before-{}", Utc::now().format("%Y-%m-%d"));
    assert_eq!(place.names(COMPANY), [COMPANY.to_owned(), former.clone()]);
    assert_eq!(server.bucket_id(&former).as_deref(), Some(&*id));
    assert_eq!(dump(server, &former), before, "the old bucket is untouched");
    let bucket = place.bucket(COMPANY);
    for key in ["description", "retentionRules", "orgID"] {
        assert_eq!(bucket[key], bucket_before[key], "{key}");
    }
    // The points of the files and the unexplained ones, and nothing else.
    let new = dump(server, COMPANY);
    let of_others = |points: &BTreeSet<Stored>| -> BTreeSet<Stored> {
        let is_other = |p: &&Stored| p.measurement != "site" || p.field != "value";
        points.iter().filter(is_other).cloned().collect()
    };
    assert_eq!(of_others(&new), of_others(&before));
    assert_eq!(of_others(&new).len(), 18);
    assert_eq!(new.len() as u64, expected.len() as u64 + unexplained);
    place.verify(COMPANY, old.unexplained, 16);

    // Files that arrive in the new bucket are in the old one after an undo.
    place.site.put_old(
        format!("{COMPANY}/site/02001174/late.tsv"),
        file("02001174", &rows("2025-12-26", 5_000, 9)),
    );
    place.ingest().ok();
    let late: BTreeSet<_> = dump(server, COMPANY).difference(&new).cloned().collect();
    assert_eq!(late.len(), 18);
    let run = expect(place.rebuild(COMPANY).arg("--undo").run(), 0);
    assert!(
        run.stdout.contains("the former bucket is back"),
        "{}",
        run.stdout
    );
    assert_eq!(place.names(COMPANY), [COMPANY, "acme.rebuild"]);
    assert_eq!(server.bucket_id(COMPANY).as_deref(), Some(&*id));
    // All files arrived on the day of the swap, so their points may be added, and nothing else.
    let back = dump(server, COMPANY);
    assert!(back.is_superset(&before) && back.is_superset(&late));
    let all: BTreeSet<_> = before
        .union(&dump(server, "acme.rebuild"))
        .cloned()
        .collect();
    assert!(back.is_subset(&all));
    let run = expect(place.rebuild(COMPANY).arg("--undo").run(), 1);
    assert!(
        run.stderr.contains("nothing can be undone"),
        "{}",
        run.stderr
    );

    // It works again, twice on a day.
    for names in [
        vec![COMPANY.to_owned(), former.clone()],
        vec![COMPANY.to_owned(), former.clone(), format!("{former}-2")],
    ] {
        expect(
            place
                .rebuild(COMPANY)
                .args(["--keep-unexplained", "--yes"])
                .run(),
            0,
        );
        assert_eq!(place.names(COMPANY), names);
        place.verify(COMPANY, old.unexplained, 16);
    }
    // The latest one comes back.
    let latest = server.bucket_id(&format!("{former}-2"));
    expect(place.rebuild(COMPANY).arg("--undo").run(), 0);
    assert_eq!(server.bucket_id(COMPANY), latest);
}

#[test]
fn on_a_terminal_a_person_decides() {
    let Some(place) = Place::start() else { return };
    if !installed("script", "bsdutils") {
        return;
    }
    filled(&place, COMPANY);
    let id = place.server.bucket_id(COMPANY);
    for (answer, code) in [("", 1), ("n", 1), ("y", 0)] {
        assert_eq!(place.server.bucket_id(COMPANY), id);
        let terminal = format!("echo {answer} | script -qec \"$*\" /dev/null");
        let call = place.rebuild(COMPANY).arg("--keep-unexplained");
        let run = call.through(&["sh", "-c", &terminal, "sh"]).run();
        assert!(
            run.stdout.contains("Swap the buckets of acme? [y/N]"),
            "{run:?}"
        );
        assert_eq!(run.code(), code, "{answer}: {run:?}");
    }
    assert_ne!(place.server.bucket_id(COMPANY), id);
    assert_all(&place, "after the swap");
}

#[test]
fn without_keep_unexplained_yes_leaves_the_other_points_in_the_former_bucket() {
    let Some(place) = Place::start() else { return };
    let old = old_database(&place);
    place.server.write(COMPANY, &old.lines, "s");
    place.server.write(COMPANY, &other_points(), "ns");
    expect(place.rebuild(COMPANY).arg("--yes").run(), 0);
    place.assert_points_of_files(COMPANY, "all points of the files and no other");
}

#[test]
fn a_new_bucket_of_an_earlier_run_keeps_no_points_of_files_that_have_gone() {
    let Some(place) = Place::start() else { return };
    for n in [1, 2] {
        place.site.put_old(
            format!("{COMPANY}/site/02001171/{n}.tsv"),
            file("02001171", &rows(&format!("2025-12-2{n}"), n * 100, 20)),
        );
    }
    place.ingest().ok();
    expect(place.rebuild(COMPANY).run(), 1);
    std::fs::remove_file(
        place
            .site
            .path(format!("{COMPANY}/site/02001171/parsed/2.tsv")),
    )
    .expect("removed");
    let run = expect(place.rebuild(COMPANY).arg("--yes").run(), 1);
    assert!(
        run.stderr.contains("acme.rebuild") && run.stderr.contains("delete"),
        "{}",
        run.stderr
    );
    assert_eq!(place.names(COMPANY), [COMPANY, "acme.rebuild"]);
    place.delete("acme.rebuild");
    expect(place.rebuild(COMPANY).arg("--yes").run(), 0);
    place.assert_points_of_files(COMPANY, "after the new bucket was deleted");
}

#[test]
fn points_are_not_copied_without_a_tag_that_no_query_returns() {
    let Some(place) = Place::start() else { return };
    for tag in ["_start", "_stop"] {
        let company = tag.trim_start_matches('_');
        filled(&place, company);
        let lines = ["x", "y"].map(|value| format!("a\\ \"b,{tag}={value} power=1 1754184000"));
        place.server.write(company, &lines.join("\n"), "s");
        let id = place.server.bucket_id(company);
        let call = place.rebuild(company).args(["--yes", "--keep-unexplained"]);
        let run = expect(call.run(), 1);
        let reason = format!(r#"measurement "a \"b" has the tag "{tag}""#);
        assert!(run.stderr.contains(&reason), "{reason}: {}", run.stderr);
        assert_eq!(place.server.bucket_id(company), id);
        let run = expect(place.rebuild(company).arg("--yes").run(), 0);
        let counted = "a \"b: 2 points of a measurement that has no campaign folder";
        assert!(run.stdout.contains(counted), "{}", run.stdout);
        place.assert_points_of_files(company, tag);
    }
}

#[test]
fn a_company_whose_files_are_not_there_keeps_its_bucket() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    place
        .server
        .write(COMPANY, "electrical power=1 1754184000", "s");
    let id = place.server.bucket_id(COMPANY);
    std::fs::remove_dir_all(place.site.path("acme/site")).expect("removed");
    place.verify(COMPANY, 0, 242);
    let run = expect(place.rebuild(COMPANY).arg("--dry-run").run(), 0);
    for (name, points) in [("site", "241 points"), ("electrical", "1 point")] {
        let line = format!("{name}: {points} of a measurement that has no campaign folder");
        assert!(run.stdout.contains(&line), "{line}: {}", run.stdout);
    }
    // An empty folder of a campaign, or of a device, is no file either.
    for folder in ["acme", "acme/site", "acme/site/02001171/parsed"] {
        std::fs::create_dir_all(place.site.path(folder)).expect("a folder");
        for arguments in [&["--yes"][..], &["--yes", "--keep-unexplained"]] {
            let run = expect(place.rebuild(COMPANY).args(arguments).run(), 1);
            let reason = "no file of acme was found, but its bucket has 242 points";
            assert!(run.stderr.contains(reason), "{folder}: {}", run.stderr);
        }
    }
    assert_eq!(place.server.bucket_id(COMPANY), id);
}

#[test]
fn a_bucket_that_was_rebuilt_and_equals_the_files_is_not_swapped() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    let old = place.server.bucket_id(COMPANY);
    expect(place.rebuild(COMPANY).arg("--yes").run(), 0);
    let new = place.server.bucket_id(COMPANY);
    // As after a kill behind the second rename.
    let run = expect(place.rebuild(COMPANY).arg("--yes").run(), 0);
    assert!(
        run.stdout
            .contains("acme: the bucket was rebuilt and equals the files; nothing was swapped"),
        "{}",
        run.stdout
    );
    assert_eq!(place.server.bucket_id(COMPANY), new);
    assert_eq!(place.names(COMPANY).len(), 2);
    expect(place.rebuild(COMPANY).arg("--undo").run(), 0);
    assert_eq!(place.server.bucket_id(COMPANY), old);
}

#[test]
fn points_of_a_file_that_is_replaced_before_the_swap_are_not_in_the_new_bucket() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    let id = place.server.bucket_id(COMPANY);
    let parsed = place.site.path("acme/site/02001171/parsed");
    let replace = |first: u32| {
        let rows = rows("2025-11-20", first, 5);
        let new = parsed.join(".new");
        std::fs::write(&new, file("02001171", &rows)).expect("written");
        std::fs::rename(&new, parsed.join("1.tsv")).expect("replaced");
    };
    // The buckets are listed when a rebuild starts, and before the swap.
    let lists = |request: &Request| request.method == "GET" && request.path.contains("limit=100");
    let rebuild = |url: &str| place.rebuild_at(url, COMPANY).arg("--yes");
    let run = expect(at_request(&place, rebuild, 2, lists, || replace(1)), 1);
    let reason = "the bucket \"acme.rebuild\" has 60 points that no file gives";
    assert!(run.stderr.contains(reason), "{}", run.stderr);
    assert_eq!(place.server.bucket_id(COMPANY), id);
    place.delete("acme.rebuild");
    expect(place.rebuild(COMPANY).arg("--yes").run(), 0);
    place.assert_points_of_files(COMPANY, "after the new bucket was deleted");
}

#[test]
fn a_field_with_two_types_is_not_copied_in_part() {
    let Some(place) = Place::start() else { return };
    let (early, late) = (1_680_000_000, 1_740_000_000);
    let of_campaign = |company: &str| {
        let line = line("02001171", 0, |_| (), 1, early);
        let line = line.replace("value=1.5", "value=1i");
        place.server.write(company, &line, "s");
    };
    let parsed = file("02001171", &rows("2025-11-03", 1, 5));
    // In a measurement of another program.
    filled(&place, "other");
    let lines = format!(
        "other v=1i {early}\nother v=2i {}\nother v=2.5 {late}",
        early + 600
    );
    place.server.write("other", &lines, "s");
    // In that of a campaign, with and without points of files.
    filled(&place, "both");
    of_campaign("both");
    place
        .site
        .put_old("first/site/02001171/parsed/a.tsv", &parsed);
    of_campaign("first");
    for (company, measurement, field) in [
        ("other", "other", "v"),
        ("both", "site", "value"),
        ("first", "site", "value"),
    ] {
        let id = place.server.bucket_id(company);
        let call = place.rebuild(company).args(["--yes", "--keep-unexplained"]);
        let run = expect(call.run(), 1);
        let reason = format!(
            "measurement {measurement:?} has values of the types float, integer in the field {field:?}"
        );
        assert!(run.stderr.contains(&reason), "{reason}: {}", run.stderr);
        assert_eq!(place.server.bucket_id(company), id);
        let run = expect(place.rebuild(company).arg("--yes").run(), 0);
        let note =
            format!("note: measurement {measurement:?} has values of the types float, integer");
        // The bucket itself has both only in the first two cases.
        assert_eq!(
            run.stdout.contains(&note),
            company != "first",
            "{}",
            run.stdout
        );
        place.assert_points_of_files(company, company);
    }
}

#[test]
fn texts_are_copied_with_their_line_breaks() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    let texts = ["a\nb", "c\rd", "e\r\nf", r"g\n\r\\", "\r", "\n\n"];
    let escaped = |text: &str| text.replace('\\', r"\\").replace('"', r#"\""#);
    let mut lines = String::new();
    for (n, text) in texts.iter().enumerate() {
        let (text, time) = (escaped(text), 1_754_184_000 + n);
        lines += &format!(
            "electrical,id=M1 t=\"{text}\" {time}\nsite,device_master_sn=02001171 t=\"{text}\" {time}\n"
        );
    }
    place.server.write(COMPANY, &lines, "s");
    // Answers in JSON have them unchanged.
    let read = |measurement: &str| {
        let path = format!("/query?db={COMPANY}&epoch=s&q=SELECT%20t%20FROM%20{measurement}");
        let (_, answer) = place.server.request("GET", &path, "", "");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        let rows = answer["results"][0]["series"][0]["values"].as_array();
        let rows = rows.expect("rows").iter();
        rows.map(|row| row[1].as_str().expect("a text").to_owned())
            .collect::<Vec<_>>()
    };
    let id = place.server.bucket_id(COMPANY);
    let call = place.rebuild(COMPANY).args(["--yes", "--keep-unexplained"]);
    let run = expect(call.run(), 0);
    assert!(run.stdout.contains("copied 13 points"), "{}", run.stdout);
    assert_ne!(place.server.bucket_id(COMPANY), id);
    for measurement in ["electrical", "site"] {
        assert_eq!(read(measurement), texts, "{measurement}");
    }
}

#[test]
fn points_are_not_copied_if_a_name_or_tag_has_a_line_break() {
    let Some(place) = Place::start() else { return };
    for (n, (line, what)) in [
        ("m,t=a\rb x=1", r#"a value of the tag "t""#),
        ("m,t=a\\\nb x=1", r#"a value of the tag "t""#),
        ("m,t\ru=a x=1", "the name of a tag"),
        ("m,t=a x\ry=1", "the name of a field"),
        ("m\rn,t=a x=1", "its name"),
    ]
    .into_iter()
    .enumerate()
    {
        let company = format!("company{n}");
        filled(&place, &company);
        place
            .server
            .write(&company, &format!("{line} 1754184000"), "s");
        let id = place.server.bucket_id(&company);
        let call = place
            .rebuild(&company)
            .args(["--yes", "--keep-unexplained"]);
        let run = expect(call.run(), 1);
        let reason = format!("has a line break in {what}");
        assert!(run.stderr.contains(&reason), "{line:?}: {}", run.stderr);
        assert_eq!(place.server.bucket_id(&company), id, "{line:?}");
    }
}

#[test]
fn a_new_bucket_that_is_deleted_before_the_swap_is_made_anew_by_the_next_run() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    let id = place.server.bucket_id(COMPANY);
    let rebuild = |url: &str| rebuild_acme(&place, url);
    let delete = || place.delete("acme.rebuild");
    // The first query about the current bucket follows when the new one is filled. Points are copied later.
    let queries_current = |request: &Request| request.query().contains("bucket: \"acme\"");
    let run = at_request(&place, rebuild, 1, queries_current, delete);
    let copying = expect(run, 1).stderr;
    // The buckets are listed when a rebuild starts, and before the swap.
    let lists = |request: &Request| request.method == "GET" && request.path.contains("limit=100");
    let run = at_request(&place, rebuild, 2, lists, delete);
    let swapping = expect(run, 1).stderr;
    for (stderr, reason) in [
        (
            copying,
            "cannot create bucket \"acme.rebuild\": it was deleted meanwhile; run powerview rebuild again",
        ),
        (
            swapping,
            "there is no bucket \"acme.rebuild\" any more; the buckets are as before, run it again",
        ),
    ] {
        assert!(stderr.contains(reason), "{reason}: {stderr}");
    }
    assert_eq!(place.names(COMPANY), [COMPANY]);
    assert_eq!(place.server.bucket_id(COMPANY), id);
    let call = place.rebuild(COMPANY).args(["--yes", "--keep-unexplained"]);
    expect(call.run(), 0);
    assert_ne!(place.server.bucket_id(COMPANY), id);
    assert_all(&place, "after the next run");
}

// --- uploads beside a rebuild ----------------------------------------------------------------------------------------

/// A company with files that were ingested by this program, and points whose file is gone.
fn filled(place: &Place, company: &str) {
    for (serial, day) in [("02001171", "2025-11-03"), ("02001172", "2025-11-04")] {
        for n in 0..2 {
            let path = format!("{company}/site/{serial}/{n}.tsv");
            let start: NaiveDate = day.parse().expect("a day");
            let day = start + chrono::Duration::days(10 * n);
            place
                .site
                .put_old(path, file(serial, &rows(&day.to_string(), 1, 30)));
        }
    }
    place.ingest().ok();
    let gone = line("02001173", 0, |_| (), 7, 1_754_184_000);
    place.server.write(company, &gone, "s");
}

/// A file that is uploaded while the rebuild runs, at a time of its own.
fn put_upload(place: &Place, company: &str, serial: &str, n: u32) -> String {
    let path = format!("{company}/site/{serial}/u{n}.tsv");
    let day = NaiveDate::from_ymd_opt(2026, 1, 1).expect("a day") + chrono::Days::new(n.into());
    let rows = rows(&day.to_string(), 10 * n, 8);
    place.site.put_old(&path, file(serial, &rows));
    path
}

/// What a proxy saw of the names of a company's buckets.
#[derive(Default)]
struct Renames(Mutex<Vec<(String, String)>>);

impl Renames {
    /// Records a rename that has succeeded: the id and the new name.
    fn record(&self, request: &Request) {
        let id = request.path.rsplit('/').next().expect("an id").to_owned();
        self.0.lock().expect("a list").push((id, request.name()));
    }

    /// The number of swaps to the end.
    fn swaps(&self, company: &str) -> usize {
        let renames = self.0.lock().expect("a list");
        let mut former: BTreeSet<&str> = BTreeSet::new();
        let mut swaps = 0;
        for (id, name) in &*renames {
            if name == company {
                // One that gets its name back is no swap.
                swaps += usize::from(!former.remove(&**id));
            } else {
                former.insert(id);
            }
        }
        swaps
    }
}

/// When a rebuild is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Moment {
    After(Duration),
    /// Before a rename is sent to the server, the first or the second one.
    Before(usize),
    /// Before the answer to a rename.
    Answered(usize),
}

/// Kills rebuilds at random moments, until `kills` were killed, with hooks beside them. After each series of kills a rebuild
/// runs to its end, and all points of all files must be in the bucket.
fn kill_rebuilds(kills: u32) {
    let Some(place) = Place::start() else { return };
    let random = RandomState::new();
    let renames = Arc::new(Renames::default());
    // The moment of the current run, the number of its renames, and the kill.
    let moment = Arc::new(Mutex::new(None::<Moment>));
    let count = Arc::new(AtomicUsize::new(0));
    let (reached, is_reached) = mpsc::channel::<()>();
    let reached = Mutex::new(reached);
    let proxy = {
        let (renames, moment, count) = (renames.clone(), moment.clone(), count.clone());
        Proxy::start(&place.server, move |request, forward| {
            if !request.is_rename() {
                return None;
            }
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            let now = *moment.lock().expect("a moment");
            let wait_for_kill = || {
                reached.lock().expect("a channel").send(()).expect("a test");
                std::thread::sleep(Duration::from_millis(300));
                Some(Vec::new())
            };
            if now == Some(Moment::Before(number)) {
                return wait_for_kill();
            }
            let answer = forward();
            if succeeded(&answer) {
                renames.record(request);
            }
            if now == Some(Moment::Answered(number)) {
                return wait_for_kill();
            }
            Some(answer)
        })
    };
    let mut killed = 0;
    let mut round = 0;
    let mut longest = Duration::from_millis(1500);
    let mut moments: BTreeMap<String, u32> = BTreeMap::new();
    while killed < kills {
        round += 1;
        assert!(round < 20 + 2 * kills, "too fast to be killed: {killed}");
        let company = format!("company{round}");
        filled(&place, &company);
        let ends = AtomicBool::new(false);
        let uploads = Mutex::new(0_u32);
        std::thread::scope(|scope| {
            for hook in 0..2_u32 {
                let (place, company, ends, uploads, random) =
                    (&place, &company, &ends, &uploads, &random);
                scope.spawn(move || {
                    for n in 0..60 {
                        if ends.load(Ordering::Relaxed) {
                            return;
                        }
                        let number = hook + 2 * n;
                        // Now and then from a device that is new.
                        let serial = match random.hash_one((hook, n, company)) % 3 {
                            0 => "02001171".to_owned(),
                            1 => "02001172".to_owned(),
                            _ => format!("0200{:04}", 2000 + number),
                        };
                        let path = put_upload(place, company, &serial, number);
                        *uploads.lock().expect("a number") += 1;
                        let run = place
                            .ingest()
                            .env("TSV_RETRY_FOR", "1")
                            .named(path)
                            .run()
                            .clean();
                        assert!(
                            run.code() == 0 || run.stderr.contains("powerview rebuild"),
                            "{}",
                            run.stderr
                        );
                        let pause = random.hash_one((n, hook, company)) % 150;
                        std::thread::sleep(Duration::from_millis(pause));
                    }
                });
            }
            let series = 1 + random.hash_one((round, "series")) % 6;
            for n in 0..series {
                let draw = random.hash_one((round, n));
                let next = match draw % 8 {
                    0 => Moment::Before(1),
                    1 => Moment::Before(2),
                    2 => Moment::Answered(1),
                    3 => Moment::Answered(2),
                    _ => {
                        let micros = u64::try_from(longest.as_micros()).expect("short");
                        Moment::After(Duration::from_micros((draw / 8) % micros))
                    }
                };
                *moment.lock().expect("a moment") = Some(next);
                count.store(0, Ordering::SeqCst);
                while is_reached.try_recv().is_ok() {}
                let mut run = place
                    .rebuild_at(&proxy.url(), &company)
                    .args(["--yes", "--keep-unexplained"])
                    .start();
                let started = Instant::now();
                let is_time = |elapsed: Duration| match next {
                    Moment::After(wait) => elapsed >= wait,
                    _ => is_reached.try_recv().is_ok(),
                };
                while !is_time(started.elapsed()) && !run.is_done() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                if run.is_done() {
                    let run = run.wait().clean();
                    longest = run.took.max(Duration::from_millis(200));
                } else {
                    run.kill();
                    killed += 1;
                    let kind = match next {
                        Moment::After(_) => "random".to_owned(),
                        moment => format!("{moment:?}"),
                    };
                    *moments.entry(kind).or_default() += 1;
                }
                let names: Vec<_> = place.buckets().into_iter().map(|(name, _)| name).collect();
                let distinct: BTreeSet<_> = names.iter().collect();
                assert_eq!(distinct.len(), names.len(), "two buckets of one name");
            }
            // To the end.
            *moment.lock().expect("a moment") = None;
            let what = format!("round {round}, {killed} kills");
            let mut tries = 0;
            loop {
                tries += 1;
                let call = place.rebuild_at(&proxy.url(), &company);
                let run = call.args(["--yes", "--keep-unexplained"]).run().clean();
                if run.code() == 0 {
                    break;
                }
                assert!(
                    tries < 5 && run.stderr.contains("locked by"),
                    "{what}: {}",
                    run.stderr
                );
            }
            ends.store(true, Ordering::Relaxed);
        });
        let what = format!("round {round}, {killed} kills");
        place.ingest().arg("--retry-errors").ok();
        let tree = place.site.tree();
        let of_company = tree
            .iter()
            .filter(|path| path.starts_with(&format!("{company}/")));
        let lost: Vec<_> = of_company
            .clone()
            .filter(|p| !p.contains("/parsed/"))
            .collect();
        assert!(lost.is_empty(), "{what}: {lost:?}");
        let files = 4 + *uploads.lock().expect("a number") as usize;
        assert_eq!(of_company.count(), files, "{what}");
        let mut expected = place.expected(&company);
        expected.extend(
            points(&place.server, &company)
                .into_iter()
                .filter(|p| p.tags["device_master_sn"] == "02001173"),
        );
        let expected = crate::harness::stored(&expected);
        assert_same(points(&place.server, &company), expected, &what);
        place.verify(&company, 1, 0);
        let names = place.names(&company);
        assert!(
            !names.contains(&format!("{company}.rebuild")),
            "{what}: {names:?}"
        );
        assert_eq!(
            names.len(),
            1 + renames.swaps(&company),
            "{what}: {names:?}"
        );
        // A server with many shards has many open files.
        for name in names {
            place.delete(&name);
        }
        std::fs::remove_dir_all(place.site.path(&company)).expect("removed");
    }
    eprintln!("{killed} kills in {round} rounds: {moments:?}");
}

#[test]
fn a_rebuild_that_is_killed_is_continued_and_loses_nothing() {
    kill_rebuilds(10);
}

#[test]
#[ignore = "takes several minutes"]
fn a_rebuild_that_is_killed_200_times_loses_nothing() {
    kill_rebuilds(200);
}

/// Runs a rebuild during which `act` is called before the server gets the rename with this number.
fn at_rename(place: &Place, number: usize, act: impl Fn() + Send + Sync) -> Run {
    let rebuild = |url: &str| rebuild_acme(place, url);
    at_request(place, rebuild, number, Request::is_rename, act)
}

/// The rebuild of most tests.
fn rebuild_acme<'a>(place: &'a Place, url: &str) -> Call<'a> {
    let call = place.rebuild_at(url, COMPANY);
    call.args(["--yes", "--keep-unexplained"])
}

/// Makes a call with the address of a proxy, during which `act` is called before the server gets the request with this
/// number of those that are wanted.
fn at_request<'a>(
    place: &'a Place,
    call: impl FnOnce(&str) -> Call<'a>,
    number: usize,
    is_wanted: impl Fn(&Request) -> bool + Send + Sync + 'static,
    act: impl Fn() + Send + Sync,
) -> Run {
    let (asked, questions) = mpsc::channel::<Sender<()>>();
    let asked = Mutex::new(asked);
    let count = AtomicUsize::new(0);
    let proxy = Proxy::start(&place.server, move |request, _| {
        if is_wanted(request) && count.fetch_add(1, Ordering::SeqCst) + 1 == number {
            let (answer, answered) = mpsc::channel();
            let asked = asked.lock().expect("a channel");
            asked.send(answer).expect("a test");
            answered.recv().expect("a test");
        }
        None
    });
    let mut running = call(&proxy.url()).start();
    let mut has_acted = false;
    while !running.is_done() {
        if let Ok(answer) = questions.recv_timeout(Duration::from_millis(5)) {
            act();
            has_acted = true;
            answer.send(()).expect("a proxy");
        }
    }
    let run = running.wait();
    assert!(has_acted, "{run:?}");
    run
}

/// The points of the files, and the one whose file is gone.
#[track_caller]
fn assert_all(place: &Place, what: &str) {
    assert_all_of(place, COMPANY, what);
}

#[track_caller]
fn assert_all_of(place: &Place, company: &str, what: &str) {
    let found = points(&place.server, company);
    let (gone, found): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|p| p.tags["device_master_sn"] == "02001173");
    assert_eq!(gone.len(), 1, "{what}");
    assert_same(found, place.expected(company), what);
}

#[test]
fn a_new_device_that_uploads_before_the_first_rename_is_in_the_new_bucket() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    let run = at_rename(&place, 1, || {
        let path = put_upload(&place, COMPANY, "02009999", 1);
        place.ingest().named(path).ok();
        let old = points(&place.server, COMPANY);
        assert_eq!(
            old.iter()
                .filter(|p| p.tags["device_master_sn"] == "02009999")
                .count(),
            16
        );
    });
    expect(run, 0);
    assert!(place.site.exists("acme/site/02009999/parsed/u1.tsv"));
    assert_all(&place, "the new device");
}

#[test]
fn between_the_renames_an_upload_fails_retryable_and_creates_no_bucket() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    let run = at_rename(&place, 2, || {
        assert_eq!(place.server.bucket_id(COMPANY), None);
        for n in [1, 2] {
            let path = put_upload(&place, COMPANY, "02009999", n);
            let call = if n == 1 {
                place.ingest().named(&path)
            } else {
                // A sweep.
                place.ingest()
            };
            let run = expect(call.env("TSV_RETRY_FOR", "0.3").run(), 1);
            assert!(run.stderr.contains("powerview rebuild"), "{}", run.stderr);
            let path = format!("acme/site/02009999/error/u{n}.tsv");
            assert_eq!(place.site.sidecar(&path)["retryable"], true);
        }
        assert_eq!(place.server.bucket_id(COMPANY), None);
    });
    expect(run, 0);
    place.ingest().arg("--retry-errors").ok();
    assert_all(&place, "afterwards");
    assert_eq!(place.names(COMPANY).len(), 2);
}

#[test]
fn an_upload_that_waits_for_the_bucket_is_in_the_new_one() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    let hooks = Mutex::new(Vec::new());
    let run = at_rename(&place, 2, || {
        for serial in ["02009999", "02001171"] {
            let path = put_upload(&place, COMPANY, serial, 1);
            hooks
                .lock()
                .expect("a list")
                .push(place.ingest().named(path).start());
        }
        std::thread::sleep(Duration::from_secs(1));
    });
    expect(run, 0);
    for hook in hooks.into_inner().expect("a list") {
        expect(hook.wait(), 0);
    }
    assert_all(&place, "after the wait");
    assert_eq!(place.names(COMPANY).len(), 2);
}

#[test]
fn a_write_of_a_new_device_that_is_under_way_at_the_rename_loses_nothing() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    // The upload of the new device is held until the first rename was answered.
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let held = Arc::new(AtomicBool::new(false));
    let is_held = Arc::clone(&held);
    let proxy = Proxy::start(&place.server, move |request, _| {
        let is_write = request.path.starts_with("/api/v2/write");
        if is_write
            && request.path.contains("bucket=acme&")
            && !is_held.swap(true, Ordering::SeqCst)
        {
            released.lock().expect("a channel").recv().expect("a test");
        }
        None
    });
    let hook = Mutex::new(None);
    let started = Instant::now();
    let run = at_rename(&place, 1, || {
        let path = put_upload(&place, COMPANY, "02009999", 1);
        let call = place.to(place.site.call(), &proxy.url());
        *hook.lock().expect("a hook") = Some(call.named(path).start());
        while !held.load(Ordering::SeqCst) {
            assert!(started.elapsed() < Duration::from_secs(30), "no write");
            std::thread::sleep(Duration::from_millis(2));
        }
        let release = release.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(500));
            release.send(()).expect("a proxy");
        });
    });
    expect(run, 0);
    let hook = hook.into_inner().expect("a hook").expect("started");
    expect(hook.wait(), 0);
    assert_all(&place, "after the wait");
    assert_eq!(place.names(COMPANY).len(), 2);
}

// --- a server that refuses, other processes, signals -------------------------------------------------------------------

/// Where a rebuild is refused: the request that the proxy answers instead of the server.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Create,
    Write,
    FirstRename,
    SecondRename,
}

impl Step {
    fn is(self, request: &Request) -> bool {
        match self {
            Self::Create => request.method == "POST" && request.path == "/api/v2/buckets",
            Self::Write => request.path.starts_with("/api/v2/write") && !request.body.is_empty(),
            Self::FirstRename => request.is_rename() && request.name() != COMPANY,
            Self::SecondRename => request.is_rename() && request.name() == COMPANY,
        }
    }
}

const STEPS: [Step; 4] = [
    Step::Create,
    Step::Write,
    Step::FirstRename,
    Step::SecondRename,
];

#[test]
fn a_server_that_refuses_a_step_keeps_the_bucket_and_the_next_run_completes() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    for step in STEPS {
        for (status, message) in [
            (500, "write /var/lib/influxdb2: no space left on device"),
            (401, "unauthorized access"),
            (403, "write:orgs/1/buckets/2 is unauthorized"),
        ] {
            let what = format!("{step:?} {status}");
            let id = place.server.bucket_id(COMPANY).expect("there");
            if place.server.bucket_id("acme.rebuild").is_some() {
                place.delete("acme.rebuild");
            }
            // The bucket that was renamed first may be renamed back.
            let refused = Arc::new(Mutex::new(None::<String>));
            let first = Arc::clone(&refused);
            let proxy = Proxy::start(&place.server, move |request, _| {
                if !step.is(request) {
                    return None;
                }
                let mut first = first.lock().expect("a path");
                let is_first = *first.get_or_insert_with(|| request.path.clone()) == request.path;
                (is_first || step == Step::Write).then(|| refusal(status, message))
            });
            let call = place.rebuild_at(&proxy.url(), COMPANY);
            let call = call.args(["--yes", "--keep-unexplained"]);
            let run = expect(call.env("TSV_RETRY_FOR", "0.5").run(), 1);
            assert!(run.stderr.contains(message), "{what}: {}", run.stderr);
            assert!(refused.lock().expect("a path").is_some(), "{what}");
            assert_eq!(place.server.bucket_id(COMPANY), Some(id), "{what}");
            assert_all(&place, &what);
        }
    }
    expect(
        place
            .rebuild(COMPANY)
            .args(["--yes", "--keep-unexplained"])
            .run(),
        0,
    );
    assert_all(&place, "afterwards");
    assert_eq!(place.names(COMPANY).len(), 2);
}

#[test]
fn a_token_that_is_revoked_between_the_renames_is_reported_and_the_next_run_completes() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    let is_revoked = AtomicBool::new(false);
    let proxy = Proxy::start(&place.server, move |request, forward| {
        if is_revoked.load(Ordering::SeqCst) {
            return Some(refusal(401, "unauthorized access"));
        }
        request.is_rename().then(|| {
            is_revoked.store(true, Ordering::SeqCst);
            forward()
        })
    });
    let call = place.rebuild_at(&proxy.url(), COMPANY);
    let run = expect(call.args(["--yes", "--keep-unexplained"]).run(), 1);
    assert!(
        run.stderr.contains("unauthorized access")
            && run.stderr.contains(
                "run powerview rebuild again; until then, there may be no bucket \"acme\""
            ),
        "{}",
        run.stderr
    );
    // Without asking: the choice was made.
    expect(place.rebuild(COMPANY).run(), 0);
    assert_all(&place, "afterwards");
    assert_eq!(place.names(COMPANY).len(), 2);
}

#[test]
fn a_token_without_the_right_to_rename_leaves_everything_as_it_is() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    let bucket = place.bucket(COMPANY);
    let org = bucket["orgID"].as_str().expect("an id");
    let right = |action: &str, kind: &str| json!({ "action": action, "resource": { "type": kind, "orgID": org } });
    let body =
        json!({ "orgID": org, "permissions": [right("read", "buckets"), right("read", "orgs")] });
    let (status, answer) = place.server.request(
        "POST",
        "/api/v2/authorizations",
        "application/json",
        &body.to_string(),
    );
    assert_eq!(status, 201, "{answer}");
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let token = answer["token"].as_str().expect("a token");
    let call = place.rebuild(COMPANY).arg("--yes");
    let run = expect(call.env("INFLUXDB_ADMIN_TOKEN", token).run(), 1);
    assert!(
        run.stderr.contains("INFLUXDB_ADMIN_TOKEN"),
        "{}",
        run.stderr
    );
    assert!(!run.stderr.contains(token), "{}", run.stderr);
    assert_eq!(place.names(COMPANY), [COMPANY]);
    assert_eq!(place.bucket(COMPANY), bucket);
}

#[test]
fn a_request_whose_answer_is_lost_is_repeated() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    let lost = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&lost);
    let proxy = Proxy::start(&place.server, move |request, forward| {
        let step = STEPS.into_iter().find(|step| step.is(request))?;
        let answer = forward();
        let is_first = seen.lock().expect("steps").insert(format!("{step:?}"));
        Some(if is_first {
            refusal(504, "gateway timeout")
        } else {
            answer
        })
    });
    let call = place.rebuild_at(&proxy.url(), COMPANY);
    expect(call.args(["--yes", "--keep-unexplained"]).run(), 0);
    assert_eq!(lost.lock().expect("steps").len(), STEPS.len());
    assert_all(&place, "afterwards");
    assert_eq!(place.names(COMPANY).len(), 2);
}

#[test]
fn a_bucket_that_another_program_creates_between_the_renames_is_kept_aside() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    let run = at_rename(&place, 2, || {
        place.server.write(COMPANY, "other x=1 1754184000", "s");
    });
    let run = expect(run, 1);
    let message = "cannot rename the bucket \"acme.rebuild\" to \"acme\"";
    assert!(run.stderr.contains(message), "{}", run.stderr);
    let other = place.server.bucket_id(COMPANY).expect("the other one");
    expect(
        place
            .rebuild(COMPANY)
            .args(["--yes", "--keep-unexplained"])
            .run(),
        0,
    );
    let former = format!("acme.before-{}-2", Utc::now().format("%Y-%m-%d"));
    assert_eq!(place.server.bucket_id(&former), Some(other));
    assert_eq!(place.names(COMPANY).len(), 3);
    let mut found = dump(&place.server, COMPANY);
    found.retain(|point| point.measurement == "site");
    assert_eq!(found.len(), place.expected(COMPANY).len() + 1);
}

#[test]
fn two_rebuilds_of_a_company_do_not_run_at_once() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    let run = at_rename(&place, 1, || {
        let run = expect(place.rebuild(COMPANY).arg("--yes").run(), 1);
        assert!(
            run.stderr.contains("another rebuild of acme runs"),
            "{}",
            run.stderr
        );
    });
    expect(run, 0);
    assert_all(&place, "one of them");
    assert_eq!(place.names(COMPANY).len(), 2);
}

#[test]
fn a_rebuild_beside_sweeps_and_verify_loses_nothing() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..40 {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                for serial in ["02001171", "02001172", "02001175"] {
                    let path = put_upload(&place, COMPANY, serial, n);
                    crate::harness::age(&place.site.path(path), 3600);
                }
                expect(place.ingest().run(), 0);
            }
        });
        scope.spawn(|| {
            while !ends.load(Ordering::Relaxed) {
                let call = place.site.bare().arg("verify").arg("-d");
                let call = call.arg(place.site.data()).arg("--company=acme");
                let run = place.to(call, &place.server.url()).run().clean();
                // The point whose file is gone is extra. Nothing is missing in either bucket.
                assert!(
                    run.stdout.contains(" 0 missing, 0 different")
                        || run.stdout.contains("could not find bucket"),
                    "{run:?}"
                );
            }
        });
        for _ in 0..2 {
            let call = place.rebuild(COMPANY).args(["--yes", "--keep-unexplained"]);
            expect(call.run(), 0);
        }
        ends.store(true, Ordering::Relaxed);
    });
    assert_all(&place, "after two rebuilds");
    place.verify(COMPANY, 1, 0);
    assert_eq!(place.names(COMPANY).len(), 3);
}

#[test]
fn a_device_that_stays_locked_stops_the_swap() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    let id = place.server.bucket_id(COMPANY);
    let lock = place.site.lock("acme/site/02001172");
    let call = place.rebuild(COMPANY).args(["--yes", "--keep-unexplained"]);
    let run = expect(call.env("TSV_LOCK_WAIT_S", "0.5").run(), 1);
    let reason = format!(
        "acme/site/02001172: device folder is locked by process {} (waited 0 s); the buckets are as before; check that process, \
         then run it again",
        std::process::id()
    );
    assert!(run.stderr.contains(&reason), "{}", run.stderr);
    assert_eq!(place.server.bucket_id(COMPANY), id);
    drop(lock);
    let call = place.rebuild(COMPANY).args(["--yes", "--keep-unexplained"]);
    expect(call.run(), 0);
    assert_all(&place, "afterwards");
}

#[test]
fn an_interrupted_fill_is_continued() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    let id = place.server.bucket_id(COMPANY);
    let (reached, is_reached) = mpsc::channel();
    let reached = Mutex::new(reached);
    let proxy = Proxy::start(&place.server, move |request, _| {
        if Step::Write.is(request) {
            reached.lock().expect("a channel").send(()).expect("a test");
            std::thread::sleep(Duration::from_millis(500));
        }
        None
    });
    let call = place.rebuild_at(&proxy.url(), COMPANY).arg("--yes");
    let running = call.start();
    is_reached.recv().expect("a write");
    running.signal(rustix::process::Signal::INT);
    let run = expect(running.wait(), 1);
    assert!(run.stderr.contains("run it again"), "{}", run.stderr);
    assert_eq!(place.server.bucket_id(COMPANY), id);
    drop(is_reached);
    let call = place.rebuild(COMPANY).args(["--yes", "--keep-unexplained"]);
    expect(call.run(), 0);
    assert_all(&place, "afterwards");
}

#[test]
fn a_signal_between_the_renames_does_not_leave_the_company_without_a_bucket() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    let pid = Arc::new(Mutex::new(None::<rustix::process::Pid>));
    let target = Arc::clone(&pid);
    let proxy = Proxy::start(&place.server, move |request, forward| {
        if !request.is_rename() || request.name() == COMPANY {
            return None;
        }
        let answer = forward();
        let pid = target.lock().expect("a process").expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal sent");
        std::thread::sleep(Duration::from_millis(200));
        Some(answer)
    });
    let mut guard = pid.lock().expect("a process");
    let call = place.rebuild_at(&proxy.url(), COMPANY);
    let running = call.args(["--yes", "--keep-unexplained"]).start();
    *guard = rustix::process::Pid::from_raw(running.pid() as i32);
    drop(guard);
    running.wait().clean();
    assert!(place.server.bucket_id(COMPANY).is_some());
    assert_all(&place, "after the signal");
    assert_eq!(place.names(COMPANY).len(), 2);
}

#[test]
fn an_interrupted_undo_is_continued() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    let old = place.server.bucket_id(COMPANY);
    let yes = ["--yes", "--keep-unexplained"];
    expect(place.rebuild(COMPANY).args(yes).run(), 0);
    for arguments in [&["--undo"][..], &yes] {
        // Killed between the renames of an undo.
        let (reached, is_reached) = mpsc::channel();
        let reached = Mutex::new(reached);
        let proxy = Proxy::start(&place.server, move |request, _| {
            if request.is_rename() && request.name() == COMPANY {
                let _ = reached.lock().expect("a channel").send(());
                return Some(Vec::new());
            }
            None
        });
        let running = place
            .rebuild_at(&proxy.url(), COMPANY)
            .arg("--undo")
            .start();
        is_reached.recv().expect("a rename");
        running.kill();
        drop(proxy);
        assert_eq!(place.server.bucket_id(COMPANY), None);
        let path = put_upload(
            &place,
            COMPANY,
            "02001171",
            1 + u32::from(arguments.len() > 1),
        );
        expect(
            place.ingest().env("TSV_RETRY_FOR", "0.3").named(path).run(),
            1,
        );
        expect(place.rebuild(COMPANY).args(arguments).run(), 0);
        place.ingest().arg("--retry-errors").ok();
        assert_all(&place, "after an undo that was killed");
        let is_old = place.server.bucket_id(COMPANY) == old;
        assert_eq!(is_old, arguments.len() == 1);
        expect(place.rebuild(COMPANY).args(yes).run(), 0);
    }
}

#[test]
fn an_interrupted_swap_or_undo_is_continued_and_names_the_tokens() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    let old = place.server.bucket_id(COMPANY);
    // Kills a run between the renames.
    let kill = |arguments: &[&str]| {
        let (reached, is_reached) = mpsc::channel();
        let reached = Mutex::new(reached);
        let proxy = Proxy::start(&place.server, move |request, _| {
            Step::SecondRename.is(request).then(|| {
                let _ = reached.lock().expect("a channel").send(());
                Vec::new()
            })
        });
        let call = place.rebuild_at(&proxy.url(), COMPANY);
        let running = call.args(arguments).start();
        is_reached.recv().expect("a rename");
        running.kill();
        assert_eq!(place.server.bucket_id(COMPANY), None);
    };
    let token = |description: &str| {
        let bucket = place.bucket(COMPANY);
        let org = &bucket["orgID"];
        let resource = json!({ "type": "buckets", "id": bucket["id"], "orgID": org });
        let body = json!({ "orgID": org, "description": description, "permissions": [
            { "action": "read", "resource": resource },
        ] });
        let path = "/api/v2/authorizations";
        let (status, answer) =
            place
                .server
                .request("POST", path, "application/json", &body.to_string());
        assert_eq!(status, 201, "{answer}");
    };
    let tokens = |run: &Run| {
        let is_named = |name: &&str| run.stdout.contains(&format!("the token \"{name}\" is for"));
        ["first", "second"]
            .into_iter()
            .filter(is_named)
            .collect::<Vec<_>>()
    };
    token("first");
    kill(&["--yes"]);
    let path = put_upload(&place, COMPANY, "02001171", 1);
    let run = expect(
        place.ingest().env("TSV_RETRY_FOR", "0.3").named(path).run(),
        1,
    );
    assert!(
        run.stderr.contains("powerview rebuild --undo"),
        "{}",
        run.stderr
    );
    let run = expect(place.rebuild(COMPANY).run(), 0);
    assert!(
        run.stdout.contains("the new bucket is in use"),
        "{}",
        run.stdout
    );
    assert!(run.stdout.contains("--undo"), "{}", run.stdout);
    assert_eq!(tokens(&run), ["first"], "{}", run.stdout);

    token("second");
    kill(&["--undo"]);
    let run = expect(place.rebuild(COMPANY).arg("--undo").run(), 0);
    assert!(
        run.stdout.contains("the former bucket is back"),
        "{}",
        run.stdout
    );
    assert_eq!(tokens(&run), ["second"], "{}", run.stdout);
    assert_eq!(place.server.bucket_id(COMPANY), old);
}

#[test]
fn an_undo_that_fails_between_the_renames_says_to_run_it_again() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    expect(place.rebuild(COMPANY).arg("--yes").run(), 0);
    let proxy = Proxy::start(&place.server, |request, _| {
        let is_back = Step::SecondRename.is(request);
        is_back.then(|| refusal(401, "unauthorized access"))
    });
    let call = place.rebuild_at(&proxy.url(), COMPANY).arg("--undo");
    let run = expect(call.run(), 1);
    let advice = "run powerview rebuild --undo again; until then, there may be no bucket \"acme\"";
    assert!(run.stderr.contains(advice), "{}", run.stderr);
}

// --- names -------------------------------------------------------------------------------------------------------------

#[test]
fn companies_whose_names_need_escaping_are_rebuilt() {
    let Some(place) = Place::start() else { return };
    let device = ["02001171", "site"];
    for name in [
        "a,b=c d",
        "${r}",
        "$x",
        "Société 東京",
        r"a\\b",
        r"c\",
        "%2e&?#",
        "'q'",
    ] {
        place.site.put_old(
            format!("{name}/{}/{}/a.tsv", device[1], device[0]),
            file(device[0], &rows("2025-08-03", 1, 10)),
        );
    }
    place.ingest().ok();
    for name in [
        "a,b=c d",
        "${r}",
        "$x",
        "Société 東京",
        r"a\\b",
        r"c\",
        "%2e&?#",
        "'q'",
    ] {
        let id = place.server.bucket_id(name).expect(name);
        place
            .server
            .write(name, "electrical power=1 1754184000", "s");
        let before = dump(&place.server, name);
        assert_eq!(before.len(), 21, "{name}");
        let call = place.rebuild(name).args(["--yes", "--keep-unexplained"]);
        expect(call.run(), 0);
        assert_eq!(dump(&place.server, name), before, "{name}");
        let former = format!("{name}.before-{}", Utc::now().format("%Y-%m-%d"));
        assert_eq!(place.server.bucket_id(&former), Some(id), "{name}");
        expect(place.rebuild(name).arg("--undo").run(), 0);
        assert_eq!(
            place.names(name),
            [name.to_owned(), format!("{name}.rebuild")]
        );
    }
}

#[test]
fn a_company_with_the_name_of_an_id_is_rebuilt_beside_an_ingestion() {
    let Some(place) = Place::start() else { return };
    // Ingestions write to its bucket by the id, which is that of the former bucket after the swap.
    let name = "0123456789abcdef";
    filled(&place, name);
    let id = place.server.bucket_id(name);
    let files = [
        (name, "02001171", 3),
        ("other", "02001175", 2),
        (name, "02001172", 1),
    ];
    let paths = files.map(|(company, serial, hours)| {
        let path = put_upload(&place, company, serial, 1);
        age(&place.site.path(&path), hours * 3600);
        path
    });
    let ingest = |url: &str| {
        let call = place.site.call();
        place.to(paths.iter().fold(call, Call::named), url)
    };
    let writes_to_other = |request: &Request| {
        request.path.starts_with("/api/v2/write?") && request.path.contains("bucket=other&")
    };
    let run = at_request(&place, ingest, 1, writes_to_other, || {
        let call = place.rebuild(name).args(["--yes", "--keep-unexplained"]);
        expect(call.run(), 0);
        assert_ne!(place.server.bucket_id(name), id);
    });
    expect(run, 0);
    assert_all_of(&place, name, "the file after the swap is in the new bucket");
    expect(place.rebuild(name).arg("--undo").run(), 0);
    assert_eq!(place.server.bucket_id(name), id);
    place.verify(name, 1, 0);
}

#[test]
fn companies_with_the_names_of_other_buckets_are_refused_and_keep_their_files() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    expect(place.rebuild(COMPANY).run(), 1);
    let new = points(&place.server, "acme.rebuild");
    for name in [
        "acme.rebuild",
        "acme.before-2026-03-01",
        "acme.before-2026-03-01-2",
    ] {
        let path = put_upload(&place, name, "02001171", 1);
        let run = expect(place.ingest().named(&path).run(), 1);
        assert!(
            run.stderr.contains("reserved") && run.stderr.contains("rename the folder"),
            "{}",
            run.stderr
        );
        let files = place.site.tree();
        assert!(
            files
                .iter()
                .any(|p| p.starts_with(name) && p.ends_with("u1.tsv"))
        );
        let run = expect(place.rebuild(name).arg("--yes").run(), 2);
        assert!(run.stderr.contains("reserved"), "{}", run.stderr);
    }
    assert_eq!(points(&place.server, "acme.rebuild"), new);
    assert_eq!(place.names(COMPANY), [COMPANY, "acme.rebuild"]);
}

#[test]
fn names_of_the_server_are_shown_escaped_and_tokens_are_named_by_their_description() {
    let Some(place) = Place::start() else { return };
    filled(&place, COMPANY);
    let server = &place.server;
    server.write(COMPANY, "a\u{1b}[2Jb\u{202e} x=1 1754184000", "s");
    let bucket = place.bucket(COMPANY);
    let org = &bucket["orgID"];
    for description in ["read of acme\u{1b}[2J", ""] {
        let body = json!({ "orgID": org, "description": description, "permissions": [
            { "action": "read", "resource": { "type": "buckets", "id": bucket["id"], "orgID": org } },
        ] });
        let path = "/api/v2/authorizations";
        let (status, answer) = server.request("POST", path, "application/json", &body.to_string());
        assert_eq!(status, 201, "{answer}");
    }
    let run = expect(place.rebuild(COMPANY).arg("--yes").run(), 0);
    assert!(
        run.stdout.contains(r"a\u{1b}[2Jb\u{202e}: 1 point"),
        "{}",
        run.stdout
    );
    assert!(
        run.stdout.contains(r"read of acme\\u{1b}[2J"),
        "{}",
        run.stdout
    );
    let named = run
        .stdout
        .lines()
        .filter(|line| line.contains("is for the bucket that had this name"));
    assert_eq!(named.count(), 2, "{}", run.stdout);
}

#[test]
fn a_company_with_more_devices_than_files_may_be_open_is_rebuilt() {
    let Some(place) = Place::start() else { return };
    for n in 0..120 {
        let serial = format!("0200{n:04}");
        let path = format!("{COMPANY}/site/{serial}/a.tsv");
        place
            .site
            .put_old(path, file(&serial, &rows("2025-08-03", n, 1)));
    }
    place.ingest().ok();
    let id = place.server.bucket_id(COMPANY);
    let rebuild = |limits: &str| {
        let call = place.rebuild(COMPANY).arg("--yes");
        call.through(&["prlimit", &format!("--nofile={limits}")])
            .run()
    };
    // The limit cannot be raised.
    let run = expect(rebuild("96:96"), 1);
    assert!(run.stderr.contains("LimitNOFILE"), "{}", run.stderr);
    assert_eq!(place.server.bucket_id(COMPANY), id);
    expect(rebuild("96:4096"), 0);
    place.assert_points_of_files(COMPANY, "120 devices");
}
