//! Many uploads through a real SFTPGo, started like by its systemd unit, with repeated names, stalled and cut
//! connections, and a sweep every second. Afterwards the database must contain each row of each file, and the last
//! acknowledged upload of each name. `UPLOADS` is the number of acknowledged uploads of the four tests together, `SEED`
//! repeats a run's choices.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write as _;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::Write as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use crate::influx_double::{self, Double};
use crate::real_influx::RealInflux;
use crate::sftp_client::Session;
use crate::sftpgo::{Setup, Site, wait_for, with_capability};
use crate::skipped::{installed, skipped};

const DEFAULT_UPLOADS: usize = 240;
const COMPANIES: [&str; 3] = ["acme", "globex", "initech"];
const DEVICES: [&str; 2] = ["02001171", "02001172"];
/// Concurrent clients of each company. They share the devices, but not the names of files.
const CLIENTS: usize = 2;
/// The number of processes of SFTPGo's user above which no client begins an upload, so that hooks do not accumulate.
const MANY_PROCESSES: usize = 60;

/// 1 June 2025, 00:00 UTC: the time of the first row.
const FIRST_ROW: i64 = 1_748_736_000;
/// The seconds per slot, more than the rows of an upload.
const SLOT: usize = 100;

// --- uploads ---------------------------------------------------------------------------------------------------

/// A file's name, sent once or several times by one client.
struct Name {
    company: usize,
    device: usize,
    file: String,
    /// The last of its uploads so far.
    last: Option<usize>,
}

impl Name {
    fn remote(&self) -> String {
        format!("site/{}/{}", DEVICES[self.device], self.file)
    }
}

/// An upload. Its number is part of each value, so that the upload follows from a value.
struct Upload {
    name: usize,
    /// Its first row is `slot * SLOT` seconds after `FIRST_ROW`. A correction has the slot of an earlier upload of its
    /// name.
    slot: usize,
    rows: usize,
    /// The server has opened, and so truncated, its file.
    opened: bool,
    acknowledged: bool,
    /// The number of rows sent so far with a complete value of the first and of the second channel.
    sent: [usize; 2],
}

/// The time of a row, in seconds since 1970.
fn time_of(slot: usize, row: usize) -> i64 {
    FIRST_ROW + i64::try_from(slot * SLOT + row).expect("small")
}

/// The two values of a row.
fn values_of(upload: usize, row: usize) -> [f64; 2] {
    let number = (upload * SLOT + row) as f64;
    [number, -number - 0.5]
}

/// The upload and the row of a value of a channel.
fn origin_of(value: f64, channel: usize) -> Option<(usize, usize)> {
    let number = if channel == 0 { value } else { -value - 0.5 };
    (number >= 0.0 && number.fract() == 0.0).then(|| {
        let number = number as usize;
        (number / SLOT, number % SLOT)
    })
}

fn header(device: usize) -> String {
    let serial = DEVICES[device];
    format!("{serial}\t{serial}\t04000466\nMV_T302_V002\tPh 1 V\tVoie1 W\n")
}

fn row(upload: usize, slot: usize, row: usize) -> String {
    let time = chrono::DateTime::from_timestamp(time_of(slot, row), 0).expect("a time");
    let [first, second] = values_of(upload, row);
    format!("{}\t{first}\t{second}\n", time.format("%d/%m/%y %H:%M:%S"))
}

/// The number of complete values per channel in the beginning of a file.
fn complete_cells(beginning: &str) -> [usize; 2] {
    let rows = beginning.split_inclusive('\n').skip(2);
    let mut complete = [0, 0];
    for row in rows {
        complete[0] += usize::from(row.matches('\t').count() == 2);
        complete[1] += usize::from(row.ends_with('\n'));
    }
    complete
}

/// All uploads, in the order of their beginning.
#[derive(Default)]
struct UploadLog {
    names: Vec<Name>,
    uploads: Vec<Upload>,
    /// The sum of all clients' counts.
    counts: Counts,
    longest_answer: Duration,
}

#[derive(Default, Clone, Copy)]
struct Counts {
    sessions: usize,
    acknowledged: usize,
    cut: usize,
    refused: usize,
    again: usize,
    corrections: usize,
    stalled: usize,
    renamed: usize,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// --- the clients -----------------------------------------------------------------------------------------------

/// A small generator of random numbers (`SplitMix64`) that can be seeded.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }

    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// A pause within an upload: usually short, sometimes long enough for several sweeps.
    fn stall(&mut self) -> Duration {
        let milliseconds = if self.percent(10) {
            2000 + self.below(3000)
        } else {
            30 + self.below(1200)
        };
        Duration::from_millis(milliseconds as u64)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum UploadKind {
    Plain,
    /// With pauses.
    Stalled,
    /// Under a temporary name, then renamed.
    Renamed,
    /// The client is killed during the upload.
    Cut,
    /// The connection stalls during the upload and is cut after the name was sent again over another connection.
    Abandoned,
}

struct Client<'a> {
    company: usize,
    /// Makes the names of its files unique.
    prefix: String,
    book: &'a Mutex<UploadLog>,
    site: &'a Site,
    private_key: &'a Path,
    quota: usize,
    processes: &'a AtomicUsize,
    random: Random,
    session: Option<Session>,
    /// Uploads until the session ends.
    left: usize,
    /// Recently sent names, the last one at the end.
    recent: VecDeque<usize>,
    /// The last upload was cut, so its name is sent again first.
    must_retry: bool,
    abandoned: VecDeque<Session>,
}

impl Client<'_> {
    /// Sends files until enough are acknowledged.
    fn run(&mut self) -> std::io::Result<()> {
        while locked(self.book).counts.acknowledged < self.quota {
            while self.processes.load(Ordering::Relaxed) > MANY_PROCESSES {
                sleep(Duration::from_millis(20));
            }
            let kind = match self.random.below(100) {
                0..66 => UploadKind::Plain,
                66..80 => UploadKind::Stalled,
                80..92 => UploadKind::Renamed,
                92..97 => UploadKind::Cut,
                _ => UploadKind::Abandoned,
            };
            self.upload(kind)?;
            if self.random.percent(40) {
                sleep(Duration::from_millis(self.random.below(60) as u64));
            }
            self.left = self.left.saturating_sub(1);
            if self.left == 0
                && let Some(session) = self.session.take()
            {
                locked(self.book).note_latency(&session);
                session.end()?;
            }
            if self.abandoned.len() > 2 || self.random.percent(15) {
                self.abandoned.pop_front();
            }
        }
        if let Some(session) = self.session.take() {
            session.end()?;
        }
        self.abandoned.clear();
        Ok(())
    }

    fn session(&mut self) -> std::io::Result<&mut Session> {
        if self.session.is_none() {
            let company = COMPANIES[self.company];
            let session = Session::connect(company, self.site.port, self.private_key)?;
            self.session = Some(session);
            self.left = 1 + self.random.below(50);
            locked(self.book).counts.sessions += 1;
        }
        Ok(self.session.as_mut().expect("connected"))
    }

    /// The next name: a recent or a new one.
    fn pick_name(&mut self) -> usize {
        if let Some(&last) = self.recent.back() {
            let must_retry = std::mem::take(&mut self.must_retry) && self.random.percent(80);
            if must_retry || self.random.percent(30) {
                return last;
            }
            if self.random.percent(25) {
                return self.recent[self.random.below(self.recent.len())];
            }
        }
        let mut book = locked(self.book);
        let name = book.names.len();
        book.names.push(Name {
            company: self.company,
            device: self.random.below(DEVICES.len()),
            file: format!("{}{name}.tsv", self.prefix),
            last: None,
        });
        name
    }

    /// Records the next upload: its number, its name's path, its text.
    fn begin(&mut self) -> (usize, String, String) {
        let name = self.pick_name();
        self.recent.retain(|n| *n != name);
        self.recent.push_back(name);
        if self.recent.len() > 20 {
            self.recent.pop_front();
        }
        let mut book = locked(self.book);
        let number = book.uploads.len();
        let earlier = book.names[name].last.replace(number);
        let earlier = earlier.map(|u| (book.uploads[u].slot, book.uploads[u].rows));
        book.counts.again += usize::from(earlier.is_some());
        let (slot, rows) = match earlier.filter(|_| self.random.percent(30)) {
            Some(earlier) => {
                book.counts.corrections += 1;
                earlier
            }
            None => (number, 20 + self.random.below(60)),
        };
        book.uploads.push(Upload {
            name,
            slot,
            rows,
            opened: false,
            acknowledged: false,
            sent: [0, 0],
        });
        let mut text = header(book.names[name].device);
        for r in 0..rows {
            text += &row(number, slot, r);
        }
        (number, book.names[name].remote(), text)
    }

    fn upload(&mut self, kind: UploadKind) -> std::io::Result<()> {
        self.session()?;
        let (number, remote, text) = self.begin();
        let breaks_off = matches!(kind, UploadKind::Cut | UploadKind::Abandoned);
        let as_name = match kind {
            UploadKind::Renamed => format!("{remote}.tmp"),
            _ => remote.clone(),
        };
        let end = if breaks_off {
            self.random.below(text.len())
        } else {
            text.len()
        };
        // In one or more pieces, which end anywhere or at the end of a row.
        let mut cuts = Vec::new();
        let pieces = if kind == UploadKind::Stalled { 2 } else { 1 } + self.random.below(3);
        for _ in 1..pieces {
            let at = self.random.below(end + 1);
            let line_end = text[..at].rfind('\n').map_or(0, |i| i + 1);
            cuts.push(if self.random.percent(60) {
                line_end
            } else {
                at
            });
        }
        cuts.push(end);
        cuts.sort_unstable();

        let mut session = self.session.take().expect("connected");
        let Some(mut handle) = session.open(&as_name)? else {
            // The server received nothing of it.
            locked(self.book).counts.refused += 1;
            self.session = Some(session);
            self.must_retry = true;
            return Ok(());
        };
        locked(self.book).uploads[number].opened = true;
        let mut from = 0;
        for to in cuts {
            if kind == UploadKind::Stalled && from > 0 {
                sleep(self.random.stall());
            }
            // Recorded before it is sent, because it may be read at once.
            locked(self.book).uploads[number].sent = complete_cells(&text[..to]);
            session.write(&mut handle, &text.as_bytes()[from..to])?;
            from = to;
        }
        if !breaks_off {
            session.close(&handle)?;
            if kind == UploadKind::Renamed {
                session.rename(&as_name, &remote)?;
            }
        }
        let mut book = locked(self.book);
        book.note_latency(&session);
        if breaks_off {
            book.counts.cut += 1;
            self.must_retry = true;
            // Otherwise the session is dropped, which kills its ssh.
            if kind == UploadKind::Abandoned {
                self.abandoned.push_back(session);
            }
            return Ok(());
        }
        book.uploads[number].acknowledged = true;
        book.counts.acknowledged += 1;
        book.counts.stalled += usize::from(kind == UploadKind::Stalled);
        book.counts.renamed += usize::from(kind == UploadKind::Renamed);
        self.session = Some(session);
        Ok(())
    }
}

impl UploadLog {
    fn note_latency(&mut self, session: &Session) {
        self.longest_answer = self.longest_answer.max(session.longest);
    }
}

// --- the database ----------------------------------------------------------------------------------------------

enum Database {
    Double(Double),
    Real(RealInflux),
}

/// Device, channel and second of a point.
type Instance = (usize, usize, i64);

impl Database {
    /// A real server with `INFLUXD_BIN`, otherwise the double.
    fn start() -> Self {
        if std::env::var_os("INFLUXD_BIN").is_some_and(|p| !p.is_empty()) {
            return Self::Real(RealInflux::start().expect("INFLUXD_BIN is set"));
        }
        let double = Double::start();
        double.forget_requests();
        Self::Double(double)
    }

    fn dot_env(&self) -> String {
        let (url, org, token) = match self {
            Self::Double(double) => (double.url(), influx_double::ORG, influx_double::TOKEN),
            Self::Real(influx) => (influx.url(), influx.org(), influx.token()),
        };
        format!("INFLUXDB_HOST={url}\nINFLUXDB_ORG={org}\nINFLUXDB_ADMIN_TOKEN={token}\n")
    }

    /// All points of a company.
    fn points(&self, company: &str) -> HashMap<Instance, f64> {
        let instance = |serial: &str, kind: &str, time: i64| {
            let device = DEVICES.iter().position(|d| *d == serial);
            let channel = ["master", "slave"].iter().position(|k| *k == kind);
            let (device, channel) = device.zip(channel).expect("a device and channel of ours");
            (device, channel, time)
        };
        let mut points = HashMap::new();
        let mut insert = |at: Instance, value: f64| {
            let twice = points.insert(at, value);
            assert_eq!(twice, None, "{company}: a point stands under two series");
        };
        match self {
            Self::Double(double) => {
                // The hourly summaries have other fields.
                let lines = double.points(company).into_iter();
                for line in lines.filter(|line| line.fields.contains_key("value")) {
                    let time = line.time.expect("a time") / 1_000_000_000;
                    let at = instance(
                        &line.tags["device_master_sn"],
                        &line.tags["channel_type"],
                        time,
                    );
                    insert(at, line.fields["value"].float());
                }
            }
            Self::Real(influx) => {
                for device in DEVICES {
                    let flux = format!(
                        r#"from(bucket: "{company}") |> range(start: 0)
                        |> filter(fn: (r) => r._field == "value" and r.device_master_sn == "{device}")
                        |> keep(columns: ["_time", "_value", "channel_type"])"#
                    );
                    for row in influx.rows(&flux) {
                        let time = chrono::DateTime::parse_from_rfc3339(&row["_time"]);
                        let time = time.expect("a time").timestamp();
                        let at = instance(device, &row["channel_type"], time);
                        insert(at, row["_value"].parse().expect("a number"));
                    }
                }
            }
        }
        points
    }
}

// --- the comparison --------------------------------------------------------------------------------------------

/// The result of the comparison.
#[derive(Default)]
struct Findings {
    files: usize,
    files_left: usize,
    rows: usize,
    points: usize,
    /// Rows of files that are missing in the database, with their files.
    missing_rows: usize,
    files_with_missing_rows: usize,
    /// Rows of files for which the database has the rows of an earlier upload.
    outdated_rows: usize,
    /// Rows in files that differ from all uploads.
    foreign_rows: usize,
    /// Points in the database that no upload sent.
    invented_points: usize,
    /// Names whose last acknowledged upload must be in the database, and those where it is not.
    last_uploads: usize,
    last_uploads_not_whole: usize,
    /// Names whose last acknowledged upload may be lost: a later one was interrupted, for which SFTPGo had truncated
    /// the file.
    last_uploads_cut_later: usize,
    /// Acknowledged uploads that neither a file nor the database has completely, because their client sent the name
    /// again before they were ingested.
    overwritten: usize,
    examples: Vec<String>,
}

impl Findings {
    fn example(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < 20 {
            self.examples.push(text());
        }
    }

    fn is_good(&self) -> bool {
        [
            self.files_left,
            self.missing_rows,
            self.outdated_rows,
            self.foreign_rows,
            self.invented_points,
            self.last_uploads_not_whole,
        ] == [0; 6]
    }
}

/// The files below a folder with this extension.
fn tsv_files(folder: &Path) -> Vec<PathBuf> {
    let entries = walkdir::WalkDir::new(folder)
        .into_iter()
        .map(|e| e.expect("an entry"));
    entries
        .map(walkdir::DirEntry::into_path)
        .filter(|p| p.extension().is_some_and(|e| e == "tsv"))
        .collect()
}

fn compare(book: &UploadLog, site: &Site, database: &Database) -> Findings {
    let mut found = Findings::default();
    for (company, company_name) in COMPANIES.iter().enumerate() {
        let points = database.points(company_name);
        found.points += points.len();
        let of = |upload: usize| &book.names[book.uploads[upload].name];
        // The upload and the row that the database has at an instant of a device.
        let holds = |device: usize, channel: usize, time: i64| {
            points
                .get(&(device, channel, time))
                .and_then(|value| origin_of(*value, channel))
        };

        for (&(device, channel, time), value) in &points {
            let was_sent = origin_of(*value, channel).is_some_and(|(u, r)| {
                book.uploads.get(u).is_some_and(|upload| {
                    (of(u).company, of(u).device) == (company, device)
                        && r < upload.sent[channel]
                        && time_of(upload.slot, r) == time
                })
            });
            if !was_sent {
                found.invented_points += 1;
                found.example(|| {
                    format!("{company_name}: no upload sent {value} of channel {channel} at {time}")
                });
            }
        }

        // Whether the database has this row of this or of a later upload of the name. `None`: it has no row.
        let is_current = |upload: usize, r: usize| {
            let at = |channel| {
                let time = time_of(book.uploads[upload].slot, r);
                let (there, _) = holds(of(upload).device, channel, time)?;
                Some(there >= upload)
            };
            Some(at(0)? && at(1)?)
        };

        // Rows of an upload that some file holds.
        let mut in_files: HashMap<usize, usize> = HashMap::new();
        for path in tsv_files(&site.data().join(company_name)) {
            found.files += 1;
            let below = path.strip_prefix(site.data()).expect("below").display();
            let folder = path.parent().and_then(Path::file_name).expect("a folder");
            if folder != "parsed" && folder != "error" {
                found.files_left += 1;
                found.example(|| format!("{below}: left"));
            }
            let bytes = fs::read(&path).expect("a file");
            let text = String::from_utf8_lossy(&bytes);
            let (mut missing, mut outdated) = (Vec::new(), Vec::new());
            for (at, line) in text.split_inclusive('\n').enumerate() {
                if !line.ends_with('\n') {
                    break; // cut
                }
                if at < 2 {
                    continue;
                }
                found.rows += 1;
                let origin = line.split('\t').nth(1).and_then(|v| v.parse().ok());
                let origin = origin.and_then(|value| origin_of(value, 0));
                let Some((u, r)) = origin.filter(|(u, r)| {
                    let upload = book.uploads.get(*u);
                    upload.is_some_and(|upload| row(*u, upload.slot, *r) == line)
                }) else {
                    found.foreign_rows += 1;
                    found.example(|| format!("{below}: no upload sent {line:?}"));
                    continue;
                };
                *in_files.entry(u).or_default() += 1;
                match is_current(u, r) {
                    None => missing.push((u, r)),
                    Some(true) => {}
                    Some(false) => outdated.push((u, r)),
                }
            }
            found.missing_rows += missing.len();
            found.outdated_rows += outdated.len();
            found.files_with_missing_rows += usize::from(!missing.is_empty());
            for (what, rows) in [("missing", missing), ("outdated", outdated)] {
                if let Some((upload, first)) = rows.first() {
                    let count = rows.len();
                    found.example(|| {
                        format!(
                            "{below}: {count} rows {what}, first row {first} of upload {upload}"
                        )
                    });
                }
            }
        }

        // By name, its uploads in their order.
        let mut by_name: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (number, upload) in book.uploads.iter().enumerate() {
            if of(number).company == company {
                by_name.entry(upload.name).or_default().push(number);
            }
        }
        for uploads in by_name.values() {
            let acknowledged = |u: &&usize| book.uploads[**u].acknowledged;
            let Some(&last) = uploads.iter().rfind(acknowledged) else {
                continue;
            };
            let whole =
                |u: usize| (0..book.uploads[u].rows).all(|r| is_current(u, r) == Some(true));
            for &u in uploads.iter().filter(acknowledged).filter(|u| **u != last) {
                let in_a_file = in_files.get(&u) == Some(&book.uploads[u].rows);
                found.overwritten += usize::from(!in_a_file && !whole(u));
            }
            if uploads.iter().any(|u| *u > last && book.uploads[*u].opened) {
                found.last_uploads_cut_later += 1;
                continue;
            }
            found.last_uploads += 1;
            if !whole(last) {
                found.last_uploads_not_whole += 1;
                found.example(|| {
                    let name = of(last);
                    let (device, file) = (DEVICES[name.device], &name.file);
                    format!(
                        "{company_name}/site/{device}/{file}: upload {last}, the last one, is not whole in the database"
                    )
                });
            }
        }
    }
    found
}

// --- the server around it --------------------------------------------------------------------------------------

/// Keeps the four tests from running at the same time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The log of the concurrent sweeps.
const SWEEPS_LOG: &str = "sweeps.log";

/// When SFTPGo calls the hook.
#[derive(Debug, Clone, Copy)]
enum Hook {
    /// For each file.
    PerFile,
    /// For a sweep at the end of each session.
    PerSession,
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok().filter(|v| !v.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

/// The path of SFTPGo. Skips the calling test if a requirement is missing.
fn requirements(user: u32) -> Option<PathBuf> {
    let Some(sftpgo) = std::env::var_os("SFTPGO_BIN").filter(|p| !p.is_empty()) else {
        skipped("SFTPGO_BIN", "set it to the path of an sftpgo");
        return None;
    };
    for (program, package) in [
        ("ssh", "openssh-client"),
        ("ssh-keygen", "openssh-client"),
        ("setpriv", "util-linux"),
    ] {
        if !installed(program, package) {
            return None;
        }
    }
    if !rustix::process::geteuid().is_root() {
        skipped(
            "root",
            "run the tests as root: this one starts SFTPGo as another user",
        );
        return None;
    }
    let can = with_capability(user).arg("/bin/true").status();
    if !can.is_ok_and(|status| status.success()) {
        skipped(
            "CAP_NET_BIND_SERVICE",
            "run the tests as a user who may pass it on",
        );
        return None;
    }
    Some(sftpgo.into())
}

/// The processes of a user.
fn processes_of(user: u32) -> usize {
    let is_of_user = |process: fs::DirEntry| {
        let status = fs::read_to_string(process.path().join("status")).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("Uid:"))?;
        line.split_whitespace().next()?.parse::<u32>().ok()
    };
    let processes = fs::read_dir("/proc").expect("/proc");
    processes
        .map(|p| p.expect("an entry"))
        .filter(|p| p.file_name().as_encoded_bytes()[0].is_ascii_digit())
        .filter_map(is_of_user)
        .filter(|of| *of == user)
        .count()
}

/// The sweep that the timer starts, as SFTPGo's user and without its capability.
fn sweep(site: &Site, user: u32, grace: Option<&str>) {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(site.path("sftpgo/logs").join(SWEEPS_LOG))
        .expect("a log");
    let mut command = Command::new(site.path("base/bin/powerview"));
    command
        .arg("--dataFolder")
        .arg(site.data())
        .arg("--retry-errors")
        .env_clear()
        .current_dir(site.path("base"))
        .uid(user)
        .gid(user)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    if let Some(grace) = grace {
        command.env("TSV_INCOMPLETE_GRACE_S", grace);
    }
    let status = command.status().expect("powerview starts");
    // 1: an upload that was cut before its first row is not a logger file.
    assert!(matches!(status.code(), Some(0 | 1)), "{status:?}");
}

/// Copies the logs to a folder that is kept. Returns its path.
fn keep_logs(site: &Site, hook: Hook, mode: &str) -> PathBuf {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("upload_storm")
        .join(format!("{hook:?}_mode_{mode}"));
    fs::create_dir_all(&kept).expect("a folder");
    for name in ["uploads.log", SWEEPS_LOG] {
        let log = fs::read(site.path("sftpgo/logs").join(name)).unwrap_or_default();
        fs::write(kept.join(name), log).expect("a copy");
    }
    kept
}

/// Sends the uploads, waits for the hooks to end, sweeps once more, and compares the database with the files.
fn send_and_compare(hook: Hook, mode: &str) {
    let _guard = locked(&ONE_AT_A_TIME);
    // From the range of systemd's dynamic users, so no account has it.
    let user = 61_184 + std::process::id() % 4000;
    let Some(sftpgo) = requirements(user) else {
        return;
    };
    let quota = number("UPLOADS")
        .map_or(DEFAULT_UPLOADS, |n| n as usize)
        .div_ceil(4);
    let seed = number("SEED").unwrap_or_else(|| RandomState::new().hash_one(mode) % 1_000_000);

    let keys = tempfile::tempdir().expect("a folder");
    let private_key = keys.path().join("key");
    let made = Command::new("/usr/bin/ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"])
        .arg(&private_key)
        .status();
    assert!(made.is_ok_and(|status| status.success()), "ssh-keygen");
    let public_key = fs::read_to_string(keys.path().join("key.pub")).expect("a key");

    let database = Database::start();
    let mut settings = vec![
        ("SFTPGO_COMMON__UPLOAD_MODE", mode),
        // All clients come from one address here.
        ("SFTPGO_COMMON__MAX_PER_HOST_CONNECTIONS", "0"),
        ("SFTPGO_COMMON__ACTIONS__HOOK", "HOOK"),
    ];
    match hook {
        Hook::PerFile => {
            settings.push(("SFTPGO_COMMON__ACTIONS__EXECUTE_ON", "upload,rename,mkdir"));
        }
        Hook::PerSession => settings.extend([
            ("SFTPGO_COMMON__ACTIONS__EXECUTE_ON", "mkdir"),
            ("SFTPGO_COMMON__POST_DISCONNECT_HOOK", "HOOK"),
            ("SFTPGO_COMMAND__COMMANDS__0__PATH", "HOOK"),
            ("SFTPGO_COMMAND__COMMANDS__0__ENV", "SFTPGO_ACTION=upload"),
            ("SFTPGO_COMMAND__COMMANDS__0__HOOK", "post_disconnect"),
        ]),
    }
    let dot_env = format!(
        "{}TSV_TIMEZONE=UTC\nANSIBLE_PLAYBOOK_BIN=/bin/true\n",
        database.dot_env()
    );
    let site = Site::start(&Setup {
        settings: &settings,
        dot_env: &dot_env,
        companies: &COMPANIES,
        public_key: Some(public_key.trim()),
        user: Some(user),
        ..Setup::new(&sftpgo)
    });
    // Because of the capability, other processes of the same user cannot see what SFTPGo has open.
    let look = Command::new("/usr/bin/stat")
        .args(["-L", &format!("/proc/{}/fd/0", site.pid())])
        .uid(user)
        .gid(user)
        .output()
        .expect("stat starts");
    assert!(!look.status.success(), "SFTPGo's files can be seen");

    for company in COMPANIES {
        let mut session = Session::connect(company, site.port, &private_key).expect("a session");
        session.mkdir("site").expect("a folder");
        for device in DEVICES {
            session.mkdir(&format!("site/{device}")).expect("a folder");
        }
        session.end().expect("an end");
    }

    let book = Mutex::new(UploadLog::default());
    let processes = AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    let sweeps = AtomicUsize::new(0);
    let start = Instant::now();
    let mut sent_in = Duration::ZERO;
    scope(|threads| {
        let watch = threads.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                processes.store(processes_of(user), Ordering::Relaxed);
                sleep(Duration::from_millis(100));
            }
        });
        let timer = threads.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let next = Instant::now() + Duration::from_secs(1);
                sweep(&site, user, None);
                sweeps.fetch_add(1, Ordering::Relaxed);
                sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        let mut clients = Vec::new();
        for number in 0..COMPANIES.len() * CLIENTS {
            let mut client = Client {
                company: number % COMPANIES.len(),
                prefix: format!("{}_", char::from(b'a' + number as u8)),
                book: &book,
                site: &site,
                private_key: &private_key,
                quota,
                processes: &processes,
                random: Random(seed.wrapping_mul(1000) + number as u64),
                session: None,
                left: 0,
                recent: VecDeque::new(),
                must_retry: false,
                abandoned: VecDeque::new(),
            };
            clients.push(threads.spawn(move || client.run()));
        }
        let results: Vec<_> = clients
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        sent_in = start.elapsed();
        over.store(true, Ordering::Relaxed);
        watch.join().expect("no panic");
        timer.join().expect("no panic");
        for result in results {
            result
                .expect("no panic")
                .expect("an SFTP server that answers");
        }
    });
    // Only SFTPGo itself is left, so the hooks have ended.
    let is_quiet = || {
        (0..20).all(|_| {
            sleep(Duration::from_millis(100));
            processes_of(user) == 1
        })
    };
    wait_for("the end of all hooks", 600, is_quiet, || site.log());
    for _ in 0..2 {
        sweep(&site, user, Some("0"));
    }

    let book = book.into_inner().unwrap_or_else(PoisonError::into_inner);
    let found = compare(&book, &site, &database);
    let report = summary(
        hook,
        mode,
        seed,
        &book,
        &found,
        [sent_in, start.elapsed()],
        sweeps.into_inner(),
    );
    // `eprint` would be captured by libtest. The figures of a successful run must be shown too.
    std::io::stderr()
        .write_all(report.as_bytes())
        .expect("written");
    let logs = keep_logs(&site, hook, mode);
    for name in ["uploads.log", SWEEPS_LOG] {
        let text = fs::read_to_string(logs.join(name)).unwrap_or_default();
        assert!(
            !text.contains("panicked"),
            "a program panicked: {name} in {}",
            logs.display()
        );
    }
    assert!(
        found.is_good(),
        "{report}{}\nthe logs are in {}",
        found.examples.join("\n"),
        logs.display()
    );
}

fn summary(
    hook: Hook,
    mode: &str,
    seed: u64,
    book: &UploadLog,
    found: &Findings,
    [sent_in, took]: [Duration; 2],
    sweeps: usize,
) -> String {
    let Counts {
        sessions,
        acknowledged,
        cut,
        refused,
        again,
        corrections,
        stalled,
        renamed,
    } = book.counts;
    let hook = match hook {
        Hook::PerFile => "hook for each file",
        Hook::PerSession => "sweep after each session",
    };
    let mut text = String::new();
    let mut line = |words: std::fmt::Arguments| writeln!(text, "{words}").expect("a string");
    line(format_args!("{hook}, upload mode {mode}, SEED={seed}:"));
    line(format_args!(
        "  {acknowledged} uploads acknowledged in {:.0} s, {cut} cut, {refused} refused; {sessions} sessions, {sweeps} sweeps beside them, {:.0} s in all",
        sent_in.as_secs_f64(),
        took.as_secs_f64()
    ));
    line(format_args!(
        "  {} names; {again} uploads of a name sent before ({corrections} with the same times), {stalled} stalled, {renamed} renamed; longest answer {:.1} s",
        book.names.len(),
        book.longest_answer.as_secs_f64()
    ));
    line(format_args!(
        "  {} files, {} rows in them, {} points in the database; {} acknowledged uploads overwritten by their client before they were taken",
        found.files, found.rows, found.points, found.overwritten
    ));
    line(format_args!(
        "  missing: {} rows in {} files; outdated: {} rows; invented: {} points; foreign: {} rows; left: {} files",
        found.missing_rows,
        found.files_with_missing_rows,
        found.outdated_rows,
        found.invented_points,
        found.foreign_rows,
        found.files_left
    ));
    line(format_args!(
        "  last acknowledged uploads not whole: {} of {} ({} more were cut into later)",
        found.last_uploads_not_whole, found.last_uploads, found.last_uploads_cut_later
    ));
    text
}

#[test]
fn a_hook_for_each_file_loses_no_row_of_uploads_written_in_place() {
    send_and_compare(Hook::PerFile, "0");
}

#[test]
fn a_hook_for_each_file_loses_no_row_of_atomic_uploads() {
    send_and_compare(Hook::PerFile, "1");
}

#[test]
fn a_sweep_after_each_session_loses_no_row_of_uploads_written_in_place() {
    send_and_compare(Hook::PerSession, "0");
}

#[test]
fn a_sweep_after_each_session_loses_no_row_of_atomic_uploads() {
    send_and_compare(Hook::PerSession, "1");
}
