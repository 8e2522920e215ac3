//! A simulation of many loggers that upload a file each, through the hook to a real InfluxDB. It prints the figures of
//! docs/scaling.md.

use crate::harness::number_from_env;
use crate::real_influx::RealInflux;
use crate::skipped::installed;
use chrono::{Days, NaiveDate};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Devices of a company.
const DEVICES_PER_COMPANY: usize = 100;

/// Channels of a device, and rows of a file: a day in steps of ten minutes.
const CHANNELS: usize = 24;
const ROWS: usize = 144;

/// The number of hooks that SFTPGo runs at the same time.
const HOOKS: usize = 150;

/// The longest time from the last upload until all files are ingested.
const LIMIT: Duration = Duration::from_mins(20);

/// The most that all processes of the program had at the same time.
#[derive(Default)]
struct Peak {
    processes: usize,
    process_kib: u64,
    total_kib: u64,
    process_files: usize,
    total_files: usize,
}

/// The file of the first day.
fn day_file(serial: usize) -> String {
    file_of(
        serial,
        NaiveDate::from_ymd_opt(2025, 10, 12).expect("a day"),
    )
}

fn file_of(serial: usize, day: NaiveDate) -> String {
    let serials: Vec<_> = (0..CHANNELS).map(|_| format!("{serial:08}")).collect();
    let mut text = serials.join("\t") + "\nMV_T302_V002";
    for channel in 1..CHANNELS {
        text += &format!("\tVoie{channel} W");
    }
    text = format!("{serial:08}\t{text}\tVoie{CHANNELS} W\n");
    for row in 0..ROWS {
        let day = day.format("%d/%m/%y");
        text += &format!("{day} {:02}:{:02}:00", row / 6, row % 6 * 10);
        for channel in 0..CHANNELS {
            text += &format!(
                "\t{}.{}",
                (serial * 7 + row * 13 + channel * 101) % 4000,
                row % 10
            );
        }
        text.push('\n');
    }
    text
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs_f64()
}

fn kib(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or_default()
}

/// The processes of a program.
fn processes_of(program: &Path) -> impl Iterator<Item = PathBuf> {
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    all.map(|process| process.path())
        .filter(move |process| fs::read_link(process.join("exe")).is_ok_and(|exe| exe == program))
}

/// Looks at the processes of a program until the simulation ends.
fn watch(program: &Path, is_over: &AtomicBool) -> Peak {
    let mut peak = Peak::default();
    while !is_over.load(Ordering::Relaxed) {
        let (mut processes, mut total_kib, mut total_files) = (0, 0, 0);
        for process in processes_of(program) {
            let status = fs::read_to_string(process.join("status")).unwrap_or_default();
            let files = fs::read_dir(process.join("fd")).map_or(0, Iterator::count);
            processes += 1;
            total_kib += kib(&status, "VmRSS:");
            total_files += files;
            peak.process_kib = peak.process_kib.max(kib(&status, "VmHWM:"));
            peak.process_files = peak.process_files.max(files);
        }
        peak.processes = peak.processes.max(processes);
        peak.total_kib = peak.total_kib.max(total_kib);
        peak.total_files = peak.total_files.max(total_files);
        std::thread::sleep(Duration::from_millis(50));
    }
    peak
}

/// Ends the watch when it is dropped, also by a panic, so that nothing waits for it.
struct EndOfWatch<'a>(&'a AtomicBool);

impl Drop for EndOfWatch<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn hook(base: &Path, sftpgo: &Path, file: &Path) -> Command {
    let mut hook = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/on-upload.sh"));
    hook.env_clear()
        .env("POWERVIEW_BASE", base)
        .env("SFTPGO_BASE", sftpgo)
        .env("SFTPGO_ACTION", "upload")
        .env("SFTPGO_ACTION_PATH", file)
        .env("SFTPGO_ACTION_STATUS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    hook
}

/// `DEVICES` loggers (300) send a file each, `UPLOADS_PER_S` (5) of them every second. The time of a file is that from its
/// upload, which renames it, until it is moved to `parsed/`, which follows the server's answer. Files that fail, because the
/// server is too busy, are ingested by a sweep at the end.
#[test]
#[ignore = "slow: hundreds of calls of the hook"]
fn many_loggers_upload_a_day_each() {
    let Some(influx) = RealInflux::start() else {
        return;
    };
    if !installed("setsid", "util-linux") || !installed("flock", "util-linux") {
        return;
    }
    let devices = number_from_env("DEVICES", 300);
    let rate = number_from_env("UPLOADS_PER_S", 5);
    let dir = tempfile::tempdir().expect("a folder");
    let (base, sftpgo) = (dir.path().join("base"), dir.path().join("sftpgo"));
    let program = base.join("bin/powerview");
    fs::create_dir_all(base.join("bin")).expect("a folder");
    fs::create_dir_all(sftpgo.join("logs")).expect("a folder");
    fs::copy(env!("CARGO_BIN_EXE_powerview"), &program).expect("a copy");
    let settings = format!(
        "INFLUXDB_HOST={}\nINFLUXDB_ORG={}\nINFLUXDB_ADMIN_TOKEN={}\nTSV_TIMEZONE=Europe/Paris\n",
        influx.url(),
        influx.org(),
        influx.token()
    );
    fs::write(base.join(".env"), settings).expect("a file");
    let company = |device: usize| format!("company{:03}", device / DEVICES_PER_COMPANY);
    let folders: Vec<PathBuf> = (0..devices)
        .map(|device| {
            let campaign = sftpgo.join("data").join(company(device)).join("site");
            let folder = campaign.join(format!("{:08}", 2_000_000 + device));
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(campaign.join(".dashboard.created"), "").expect("a file");
            folder
        })
        .collect();
    let load = fs::read_to_string("/proc/loadavg").expect("a load");
    let is_over = AtomicBool::new(false);
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    let (mut times, left, peak, uploaded_in) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&program, &is_over));
        let end_of_watch = EndOfWatch(&is_over);
        let uploaders: Vec<_> = (0..HOOKS.min(devices))
            .map(|_| {
                scope.spawn(|| {
                    let mut uploads = Vec::new();
                    loop {
                        let device = next.fetch_add(1, Ordering::Relaxed);
                        if device >= devices {
                            return uploads;
                        }
                        let due = start + Duration::from_secs(1) * device as u32 / rate as u32;
                        std::thread::sleep(due.saturating_duration_since(Instant::now()));
                        let folder = &folders[device];
                        let partial = folder.join(".sftpgo-upload.x.tsv");
                        fs::write(&partial, day_file(2_000_000 + device)).expect("written");
                        let file = folder.join("T302_251012.tsv");
                        fs::rename(&partial, &file).expect("renamed");
                        uploads.push((device, SystemTime::now()));
                        let status = hook(&base, &sftpgo, &file).status().expect("it starts");
                        assert!(status.success());
                    }
                })
            })
            .collect();
        let uploads: Vec<_> = uploaders
            .into_iter()
            .flat_map(|uploader| uploader.join().expect("no failure"))
            .collect();
        let uploaded_in = start.elapsed();
        let parsed = |folder: &PathBuf| folder.join("parsed/T302_251012.tsv");
        let missing = || {
            folders
                .iter()
                .filter(|folder| !parsed(folder).exists())
                .count()
        };
        let end = Instant::now() + LIMIT;
        let mut last_seen = Instant::now();
        while missing() > 0 && last_seen.elapsed() < Duration::from_secs(2) {
            assert!(Instant::now() < end, "{} files are missing", missing());
            if processes_of(&program).next().is_some() {
                last_seen = Instant::now();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // A server that is too busy fails. The next sweep ingests those files.
        let left = missing();
        if left > 0 {
            let hooks_in = start.elapsed();
            eprintln!("{left} files are left to the sweep after {hooks_in:.0?}");
            let sweep = Command::new(&program)
                .args(["--quiet", "--retry-errors", "--dataFolder"])
                .arg(sftpgo.join("data"))
                .env_clear()
                .env("SFTPGO_BASE", &sftpgo)
                .current_dir(&base)
                .status()
                .expect("it starts");
            assert!(sweep.success());
        }
        let mut times = Vec::new();
        for (device, uploaded) in uploads {
            let parsed = parsed(&folders[device]);
            let file = fs::metadata(&parsed)
                .unwrap_or_else(|error| panic!("{}: {error}", parsed.display()));
            let moved = file.ctime() as f64 + file.ctime_nsec() as f64 / 1e9;
            times.push(moved - seconds(uploaded));
        }
        // The hourly summaries follow, and processes end after them.
        let all_in = start.elapsed();
        drop(end_of_watch);
        eprintln!("all files are in parsed/ after {all_in:.0?}");
        (
            times,
            left,
            watcher.join().expect("no failure"),
            uploaded_in,
        )
    });
    times.sort_by(f64::total_cmp);
    let percentile = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    let points: usize = (0..devices.div_ceil(DEVICES_PER_COMPANY))
        .map(|n| {
            let bucket = company(n * DEVICES_PER_COMPANY);
            let flux = format!(
                "from(bucket: \"{bucket}\") |> range(start: 2025-10-01T00:00:00Z, stop: 2025-11-01T00:00:00Z) |> filter(fn: (r) => r._measurement == \"site\") |> group() |> count()"
            );
            let rows = influx.rows(&flux);
            rows[0]["_value"].parse::<usize>().expect("a number")
        })
        .sum();
    assert_eq!(points, devices * CHANNELS * ROWS);
    let later = fs::read_to_string("/proc/loadavg").expect("a load");
    eprintln!(
        "{devices} devices, {points} points, {rate} uploads per second (the last after {uploaded_in:.0?}), {left} files left to the sweep; load {} before, {} after",
        load.trim(),
        later.trim()
    );
    eprintln!(
        "from upload to database: p50 {:.2} s, p90 {:.2} s, p99 {:.2} s, max {:.2} s",
        percentile(0.5),
        percentile(0.9),
        percentile(0.99),
        percentile(1.0)
    );
    eprintln!(
        "influxd: {:.0} MiB of memory, {:.0} MiB of points",
        influx.memory_kib() as f64 / 1024.0,
        influx.stored_bytes() as f64 / 1024.0 / 1024.0
    );
    eprintln!(
        "processes of powerview: at most {} at once, {:.1} MiB each, {:.1} MiB in all; {} open files each, {} in all",
        peak.processes,
        peak.process_kib as f64 / 1024.0,
        peak.total_kib as f64 / 1024.0,
        peak.process_files,
        peak.total_files
    );
}

/// Runs the program, prints its time and memory, and returns what it printed.
fn timed(name: &str, program: &Path, args: &[&str], env: &[(&str, &str)]) -> String {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(program, &is_over));
        let start = Instant::now();
        let output = Command::new(program)
            .args(args)
            .env_clear()
            .envs(env.iter().copied())
            .current_dir(program.parent().expect("a folder"))
            .output()
            .expect("it starts");
        let time = start.elapsed();
        is_over.store(true, Ordering::Relaxed);
        let peak = watcher.join().expect("no failure");
        // `status` exits with 1 if a device has no file.
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() <= Some(1), "{name}: {stderr}");
        eprintln!(
            "{name}: {time:.2?}, {:.0} MiB",
            peak.process_kib as f64 / 1024.0
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    })
}

/// A copy of the program, so that its processes are known by its path.
fn copy_of_program(folder: &Path) -> PathBuf {
    let program = folder.join("powerview");
    fs::copy(env!("CARGO_BIN_EXE_powerview"), &program).expect("a copy");
    program
}

/// `DAYS` (30) of a logger: what they need, and how long the commands take.
#[test]
#[ignore = "slow: measures, and waits for the server to compact its files"]
fn days_of_one_logger_are_measured() {
    let Some(influx) = RealInflux::start_compacting() else {
        return;
    };
    let days = number_from_env("DAYS", 30);
    let dir = tempfile::tempdir().expect("a folder");
    let program = copy_of_program(dir.path());
    let device = dir.path().join("data/acme/site/02000000");
    fs::create_dir_all(&device).expect("a folder");
    let first = NaiveDate::from_ymd_opt(2025, 1, 1).expect("a day");
    let mut bytes = 0;
    for day in 0..days {
        let content = file_of(2_000_000, first + Days::new(day as u64));
        bytes += content.len();
        fs::write(device.join(format!("T302_{day:04}.tsv")), content).expect("a file");
    }
    eprintln!("{days} files of {} KiB", bytes / days / 1024);
    let data = dir.path().join("data");
    let data = data.to_str().expect("UTF-8");
    let url = influx.url();
    let mut env = vec![
        ("INFLUXDB_HOST", url.as_str()),
        ("INFLUXDB_ORG", influx.org()),
        ("INFLUXDB_ADMIN_TOKEN", influx.token()),
        ("TSV_TIMEZONE", "UTC"),
        ("TSV_INCOMPLETE_GRACE_S", "0"),
        ("TSV_ROLLUP", "0"),
    ];
    let before = influx.stored_bytes();
    timed("sweep without summaries", &program, &["-d", data], &env);
    let compacted = || {
        // The server writes its files when nothing was written for some seconds.
        let mut size = 0;
        loop {
            std::thread::sleep(Duration::from_secs(25));
            let now = influx.stored_bytes();
            if now == size {
                return now;
            }
            size = now;
        }
    };
    let points = days * CHANNELS * ROWS;
    let raw = compacted() - before;
    eprintln!(
        "{points} points, with those about files: {:.1} MiB, {:.2} bytes each",
        raw as f64 / 1024.0 / 1024.0,
        raw as f64 / points as f64
    );
    env.pop();
    timed("rollup", &program, &["rollup", "-q"], &env);
    timed("rollup, up to date", &program, &["rollup", "-q"], &env);
    let all = compacted() - before;
    eprintln!(
        "hourly summaries: {:.1} MiB more",
        all.saturating_sub(raw) as f64 / 1024.0 / 1024.0
    );
    let verified = timed("verify", &program, &["verify", "-q", "-d", data], &env);
    let equal = format!("{days} files; 0 missing, 0 different, 0 extra");
    assert!(verified.contains(&equal), "{verified}");
}

/// `DEVICES` (10,000) devices without a new file.
#[test]
#[ignore = "slow: measures"]
fn a_sweep_of_many_folders_is_measured() {
    let devices = number_from_env("DEVICES", 10_000);
    let dir = tempfile::tempdir().expect("a folder");
    let program = copy_of_program(dir.path());
    let data = dir.path().join("data");
    for device in 0..devices {
        let company = format!("company{:05}", device / DEVICES_PER_COMPANY);
        let folder = format!("{company}/site/{:08}/parsed", 2_000_000 + device);
        fs::create_dir_all(data.join(folder)).expect("a folder");
    }
    let data = data.to_str().expect("UTF-8");
    let target = dir.path().join("lp");
    let target = target.to_str().expect("UTF-8");
    let sweep = ["-d", data, "--line-protocol-dir", target, "-q"];
    timed("sweep", &program, &sweep, &[]);
    let shard = [&sweep[..], &["--shard", "2/5"]].concat();
    timed("sweep of a shard of five", &program, &shard, &[]);
    timed("status", &program, &["status", "-q", "-d", data], &[]);
}
