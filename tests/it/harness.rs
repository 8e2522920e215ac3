//! Runs the binary with a temporary data folder, a clean environment and a time-out, and reads its reports.

pub use crate::file_builder::{FileBuilder, HEADER, bad_file, file_of_one_row, good_file, headed};
use crate::influx_double::{Double, ORG, TOKEN};
use crate::line_protocol::{self, Line};
use crate::second_reader::Point;
use crate::skipped::skipped;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::{Display, Formatter};
use std::io::{Read, Write as _};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The folder of a device, relative to the data folder.
#[derive(Clone, Copy)]
pub struct Device(pub &'static str);

/// The device of most tests; its serial number is the one of `FileBuilder::default()`.
pub const DEVICE: Device = Device("acme/site/02001171");

/// The paths of files, relative to the data folder.
impl Device {
    pub fn file(self, name: impl Display) -> String {
        format!("{self}/{name}")
    }

    pub fn parsed(self, name: impl Display) -> String {
        format!("{self}/parsed/{name}")
    }

    pub fn error(self, name: impl Display) -> String {
        format!("{self}/error/{name}")
    }

    /// The sidecar of the file `name` in `error/`.
    pub fn sidecar(self, name: impl Display) -> String {
        format!("{self}/error/{name}.error.json")
    }
}

impl Display for Device {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

/// The file in a device folder that remembers the layouts of its files.
pub const LAYOUT_FILE: &str = ".powerview-layout.json";

/// An unprivileged user.
pub const NOBODY: u32 = 65_534;

/// A tmpfs, which is unmounted on drop.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Mounts a tmpfs with options such as `size=64k`. Returns `None` and skips the calling test without the right to
    /// mount one.
    pub fn mount(at: impl Into<PathBuf>, options: &str) -> Option<Self> {
        let at = at.into();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&at)
            .stderr(Stdio::null())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(at));
        }
        skipped("mount", "run the tests as a user who may mount a tmpfs");
        None
    }

    /// Makes the file system read-only, or writable again.
    pub fn set_read_only(&self, is_read_only: bool) {
        let mode = if is_read_only {
            "remount,ro"
        } else {
            "remount,rw"
        };
        let status = Command::new("mount")
            .args(["-o", mode])
            .arg(&self.0)
            .status();
        assert!(status.expect("mount starts").success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _already_unmounted = Command::new("umount").arg(&self.0).status();
    }
}

/// A wrapper that runs a program as [`NOBODY`] with a `/proc` that hides the processes of other users. `None` skips the calling
/// test.
pub fn with_hidden_processes() -> Option<[String; 6]> {
    if !rustix::process::geteuid().is_root() {
        skipped("root", "run the tests as root: this one mounts /proc");
        return None;
    }
    let hidden = format!(
        "mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups \"$@\""
    );
    let wrapper = ["unshare", "--mount", "sh", "-c", &hidden, "sh"].map(str::to_owned);
    let works = Command::new(&wrapper[0])
        .args(&wrapper[1..])
        .args(["test", "!", "-e", "/proc/1"])
        .output();
    if !works.is_ok_and(|out| out.status.success()) {
        skipped("mount", "run the tests as a user who may mount /proc");
        return None;
    }
    Some(wrapper)
}

/// Waits until each process that this one has forked runs its own program.
///
/// Until then, it has the files open that tests in other threads were writing when it was forked, and no lease is granted
/// on them. The kernel lets the parent go on before it closes them: for that moment the process has no command line.
pub fn wait_for_forks() {
    // That of a test that is repeated with another server differs.
    let own = std::fs::read("/proc/self/cmdline").expect("a program");
    let parent = std::process::id().to_string();
    let is_fork = |process: &Path| {
        std::fs::read(process.join("cmdline")).is_ok_and(|line| line == own || line.is_empty())
            && std::fs::read_to_string(process.join("stat")).is_ok_and(|stat| {
                let mut fields = stat
                    .rsplit(')')
                    .next()
                    .unwrap_or_default()
                    .split_whitespace();
                let is_zombie = fields.next() == Some("Z");
                !is_zombie && fields.next() == Some(&parent)
            })
    };
    let has_fork = || {
        let mut processes = std::fs::read_dir("/proc").expect("/proc").flatten();
        processes.any(|process| is_fork(&process.path()))
    };
    while has_fork() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_program_can_be_executed_while_other_threads_start_programs() {
    let dir = tempfile::tempdir().expect("a folder");
    std::thread::scope(|scope| {
        // Not until the programs have run, so that a failure does not leave the threads running.
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..600 {
                    Command::new("true").status().expect("true starts");
                }
            });
        }
        for n in 0..300 {
            let program = dir.path().join(n.to_string());
            put_program(&program, "#!/bin/sh\n");
            let status = Command::new(program).status();
            assert!(status.expect("the program starts").success());
        }
    });
}

/// A number that the environment gives, for example how large a measurement is.
pub fn number_from_env(variable: &str, default: usize) -> usize {
    let given = std::env::var(variable).ok();
    given.map_or(default, |given| given.parse().expect(variable))
}

/// Writes a program that can be executed at once.
///
/// Another process writes it: if this one had it open, so would each process that other threads fork meanwhile, and a
/// program that is open for writing cannot be executed ("text file busy").
pub fn put_program(path: &Path, text: &str) {
    let mut shell = Command::new("sh")
        .args(["-c", "cat >\"$1\" && chmod 755 \"$1\"", "sh"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("sh starts");
    let mut input = shell.stdin.take().expect("the input");
    input.write_all(text.as_bytes()).expect("a program");
    drop(input);
    assert!(shell.wait().expect("sh ends").success());
}

/// A data folder and a report folder in a temporary directory, which is removed on drop.
pub struct Site {
    pub dir: tempfile::TempDir,
}

impl Site {
    pub fn new() -> Self {
        let site = Self {
            dir: tempfile::Builder::new()
                .prefix("powerview-")
                .tempdir()
                .expect("a temporary directory"),
        };
        std::fs::create_dir(site.data()).expect("data folder");
        std::fs::create_dir(site.dir.path().join("cwd")).expect("working directory");
        site
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn reports_dir(&self) -> PathBuf {
        self.dir.path().join("reports")
    }

    pub fn lp_dir(&self) -> PathBuf {
        self.dir.path().join("lp")
    }

    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.data().join(relative)
    }

    /// Writes a file below the data folder, with its folders.
    pub fn put(&self, relative: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path_in_new_dir(relative);
        std::fs::write(&path, bytes).expect("file written");
        path
    }

    /// Like `put`, with a modification time an hour ago, so that the file is not an upload in progress.
    pub fn put_old(&self, relative: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.put(relative, bytes);
        age(&path, 3600);
        path
    }

    /// Makes a folder below the data folder, with its parents.
    pub fn make_dir(&self, relative: impl AsRef<Path>) -> PathBuf {
        let path = self.path(relative);
        std::fs::create_dir_all(&path).expect("folder made");
        path
    }

    pub fn link(&self, target: impl AsRef<Path>, relative: impl AsRef<Path>) {
        symlink(target, self.path_in_new_dir(relative)).expect("symlink");
    }

    /// A path below the data folder, whose parent folders are made.
    fn path_in_new_dir(&self, relative: impl AsRef<Path>) -> PathBuf {
        let path = self.path(relative);
        std::fs::create_dir_all(path.parent().expect("has a parent")).expect("folders");
        path
    }

    /// Moves a file as the program does: its content is unchanged since then.
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> PathBuf {
        let to = self.path_in_new_dir(to);
        std::fs::rename(self.path(from), &to).expect("renamed");
        to
    }

    pub fn exists(&self, relative: impl AsRef<Path>) -> bool {
        self.path(relative).symlink_metadata().is_ok()
    }

    pub fn read(&self, relative: impl AsRef<Path>) -> Vec<u8> {
        let path = self.path(relative);
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Locks a folder below the data folder, until the result is dropped.
    pub fn lock(&self, relative: impl AsRef<Path>) -> std::fs::File {
        let folder = std::fs::File::open(self.path(relative)).expect("opened");
        let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        rustix::fs::flock(&folder, operation).expect("locked");
        folder
    }

    /// All files and links below the data folder, by path relative to it, without those that remember layouts.
    pub fn tree(&self) -> Vec<String> {
        let mut paths: Vec<String> = walkdir::WalkDir::new(self.data())
            .into_iter()
            .filter_map(Result::ok)
            .filter(|e| !e.file_type().is_dir() && e.file_name() != LAYOUT_FILE)
            .map(|e| {
                e.path()
                    .strip_prefix(self.data())
                    .expect("below")
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        paths.sort();
        paths
    }

    /// A call that writes line-protocol files.
    pub fn lp_run(&self) -> Call<'_> {
        self.call().arg("--line-protocol-dir").arg(self.lp_dir())
    }

    /// A call that writes to a double.
    pub fn run_to(&self, double: &Double) -> Call<'_> {
        self.call_to(&double.url())
    }

    pub fn call_to(&self, url: &str) -> Call<'_> {
        self.call().server(url, TOKEN, ORG)
    }

    /// A call with `--dataFolder` and the settings that all tests share.
    pub fn call(&self) -> Call<'_> {
        self.bare().arg("--dataFolder").arg(self.data())
    }

    /// A call of a subcommand with the data folder.
    pub fn subcommand(&self, name: &str) -> Call<'_> {
        self.bare().args([name, "-d"]).arg(self.data())
    }

    /// A call without arguments.
    pub fn bare(&self) -> Call<'_> {
        let copy = self.copy_of_program();
        let mut command = if copy.exists() {
            self.command(&copy)
        } else {
            self.command(Path::new(env!("CARGO_BIN_EXE_powerview")))
        };
        command
            .env("TSV_REPORT_DIR", self.reports_dir())
            // Most tests are about the points of files; those of the summaries set it.
            .env("TSV_ROLLUP", "0")
            .env("TSV_TIMEZONE", "Europe/Paris")
            .env("TSV_RETRY_FOR", "0.3")
            .env("TSV_CONNECT_TIMEOUT_S", "2")
            .env("TSV_REQUEST_TIMEOUT_S", "5");
        Call {
            site: self,
            command,
            timeout: Duration::from_mins(1),
        }
    }

    /// The path of the copy of the binary that `Call::unprivileged` makes. Later calls use it.
    fn copy_of_program(&self) -> PathBuf {
        self.dir.path().join("powerview")
    }

    /// `program` in the working directory, without an environment.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .current_dir(self.dir.path().join("cwd"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// All reports, oldest first.
    pub fn reports(&self) -> Vec<Value> {
        let Ok(entries) = std::fs::read_dir(self.reports_dir()) else {
            return Vec::new();
        };
        let mut reports: Vec<Value> = entries
            .map(|e| e.expect("entry").path())
            .filter(|p| p.extension() == Some(OsStr::new("json")))
            .filter(|p| p.file_name() != Some(OsStr::new("verified.json")))
            .map(|p| {
                let text = std::fs::read(&p).expect("report read");
                serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", p.display()))
            })
            .collect();
        reports.sort_by_key(|r: &Value| r["run_id"].as_str().unwrap_or_default().to_owned());
        reports
    }

    /// The only report.
    pub fn report(&self) -> Value {
        let mut reports = self.reports();
        assert_eq!(reports.len(), 1, "reports of one run: {reports:#?}");
        reports.remove(0)
    }

    pub fn lp_text(&self, bucket: &str) -> String {
        std::fs::read_to_string(self.lp_dir().join(format!("{bucket}.lp"))).unwrap_or_default()
    }

    /// The points of a bucket's line-protocol file, in its order, each line checked by two parsers.
    pub fn lp_points(&self, bucket: &str) -> Vec<Point> {
        line_protocol::all(&self.lp_text(bucket))
            .into_iter()
            .map(|l| point(l, 1))
            .collect()
    }

    /// The error sidecar of a file in `error/`.
    pub fn sidecar(&self, relative: &str) -> Value {
        serde_json::from_slice(&self.read(format!("{relative}.error.json")))
            .expect("the sidecar is JSON")
    }
}

/// Sets the modification time of a file to the given number of seconds ago.
pub fn age(path: &Path, seconds: u64) {
    let file = std::fs::File::options()
        .append(true)
        .open(path)
        .expect("opened");
    file.set_modified(std::time::SystemTime::now() - Duration::from_secs(seconds))
        .expect("time set");
}

/// The point of a line of measurements. Its time is divided by `unit`.
pub fn point(line: Line, unit: i64) -> Point {
    assert_eq!(line.fields.len(), 1, "one field a point: {}", line.raw);
    Point {
        measurement: line.measurement,
        tags: line.tags,
        value: line.fields["value"].float(),
        epoch: line.time.expect("every point has its time") / unit,
    }
}

/// The points in a bucket of a double.
pub fn points_in(double: &Double, bucket: &str) -> Vec<Point> {
    double
        .points(bucket)
        .into_iter()
        .map(|l| point(l, 1_000_000_000))
        .collect()
}

/// The points in a database after these were written in order: the last one of a second wins.
pub fn stored(points: &[Point]) -> Vec<Point> {
    let mut map = BTreeMap::new();
    for p in points {
        map.insert((p.measurement.clone(), p.tags.clone(), p.epoch), p.clone());
    }
    map.into_values().collect()
}

/// A file's entry in a report, by the end of its path.
pub fn file_of<'a>(report: &'a Value, name: &str) -> &'a Value {
    let files = report["files"].as_array().expect("files is a list");
    files
        .iter()
        .find(|f| f["file_path"].as_str().is_some_and(|p| p.ends_with(name)))
        .unwrap_or_else(|| panic!("{name} is not in the report: {report:#}"))
}

/// Builds a call of the binary.
pub struct Call<'a> {
    site: &'a Site,
    command: Command,
    timeout: Duration,
}

impl Call<'_> {
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// `--tsvFile`, relative to the data folder.
    pub fn named(self, relative: impl AsRef<Path>) -> Self {
        let path = self.site.path(relative);
        self.arg("--tsvFile").arg(path)
    }

    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// The server that the call uses.
    pub fn server(self, url: &str, token: &str, org: &str) -> Self {
        self.env("INFLUXDB_HOST", url)
            .env("INFLUXDB_ADMIN_TOKEN", token)
            .env("INFLUXDB_ORG", org)
    }

    pub fn no_env(mut self, key: &str) -> Self {
        self.command.env_remove(key);
        self
    }

    pub fn cwd(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Runs as an unprivileged user, who owns the data folder from now on. Returns `None` and skips the calling test if
    /// that user cannot start the binary.
    pub fn unprivileged(self) -> Option<Self> {
        self.by_user(NOBODY)
    }

    /// Like [`Call::unprivileged`], as the user `id` if the tests run as root.
    pub fn by_user(mut self, id: u32) -> Option<Self> {
        use std::os::unix::process::CommandExt;
        if !rustix::process::geteuid().is_root() {
            return Some(self);
        }
        // A copy, because only root may be able to enter the folder of the repository. `cp` makes it, because a file
        // that this process has open for writing could be inherited by a child of another test and then not be
        // executed.
        let program = self.site.copy_of_program();
        if !program.exists() {
            let copied = Command::new("cp")
                .arg(env!("CARGO_BIN_EXE_powerview"))
                .arg(&program)
                .status();
            assert!(copied.expect("cp starts").success());
        }
        for entry in walkdir::WalkDir::new(self.site.dir.path()) {
            std::os::unix::fs::lchown(entry.expect("entry").path(), Some(id), Some(id))
                .expect("chown");
        }
        let as_nobody = || {
            let mut command = self.site.command(&program);
            command.uid(id).gid(id);
            command
        };
        let probe = as_nobody().arg("--version").output();
        if !probe.is_ok_and(|o| o.status.success()) {
            skipped(
                "nobody",
                "set TMPDIR to a folder whose programs every user may start",
            );
            return None;
        }
        let mut command = as_nobody();
        command.args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        self.command = command;
        Some(self)
    }

    /// Runs another program with the binary and its arguments as arguments.
    pub fn through(mut self, wrapper: &[impl AsRef<OsStr>]) -> Self {
        let mut command = Command::new(&wrapper[0]);
        command
            .args(&wrapper[1..])
            .arg(self.command.get_program())
            .args(self.command.get_args())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (key, value) in self.command.get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        if let Some(dir) = self.command.get_current_dir() {
            command.current_dir(dir);
        }
        self.command = command;
        self
    }

    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    pub fn start(mut self) -> Running {
        wait_for_forks();
        let started = Instant::now();
        let mut child = self.command.spawn().expect("the binary starts");
        let stdout = drain(child.stdout.take().expect("piped"));
        let stderr = drain(child.stderr.take().expect("piped"));
        Running {
            child,
            stdout,
            stderr,
            started,
            timeout: self.timeout,
        }
    }

    pub fn run(self) -> Run {
        self.start().wait()
    }

    /// Runs and expects exit status 0.
    pub fn ok(self) -> Run {
        self.run().expect(0)
    }
}

type Drain = std::thread::JoinHandle<Vec<u8>>;

fn drain(mut pipe: impl Read + Send + 'static) -> Drain {
    std::thread::spawn(move || {
        let mut out = Vec::new();
        let _ = pipe.read_to_end(&mut out);
        out
    })
}

/// A running call of the binary.
pub struct Running {
    child: Child,
    stdout: Drain,
    stderr: Drain,
    started: Instant,
    timeout: Duration,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("signal sent");
    }

    pub fn kill(mut self) -> Run {
        let _already_gone = self.child.kill();
        self.wait()
    }

    /// The peak resident set size until the process ends, in KiB.
    pub fn peak_kib(&mut self) -> u64 {
        let mut peak = 0;
        while !self.is_done() {
            if let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", self.pid())) {
                let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
                let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok());
                peak = peak.max(kib.unwrap_or(0));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        peak
    }

    pub fn is_done(&mut self) -> bool {
        self.child.try_wait().expect("waited").is_some()
    }

    pub fn wait(mut self) -> Run {
        let mut pause = Duration::from_micros(200);
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("waited") {
                break status;
            }
            if self.started.elapsed() > self.timeout {
                let _already_gone = self.child.kill();
                let _reaped = self.child.wait();
                let err = self.stderr.join().expect("read");
                panic!(
                    "still running after {:?}: {}",
                    self.timeout,
                    String::from_utf8_lossy(&err)
                );
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        };
        let took = self.started.elapsed();
        let text = |d: Drain| String::from_utf8_lossy(&d.join().expect("read")).into_owned();
        Run {
            status,
            took,
            stdout: text(self.stdout),
            stderr: text(self.stderr),
        }
    }
}

/// The result of a call of the binary.
#[derive(Debug)]
pub struct Run {
    pub status: ExitStatus,
    pub took: Duration,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// The exit status, or 128 plus the number of the signal, as in a shell.
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code(),
            code,
            "exit status; stdout: {}\nstderr: {}",
            self.stdout,
            self.stderr
        );
        // Neither a panic nor the token may be shown.
        self.clean()
    }

    #[track_caller]
    pub fn clean(self) -> Self {
        for text in [&self.stdout, &self.stderr] {
            assert!(!text.contains("panicked"), "a panic: {text}");
            assert!(!text.contains(TOKEN), "the token is shown: {text}");
            let raw = text
                .chars()
                .find(|c| c.is_control() && !matches!(c, '\n' | '\t'));
            assert_eq!(
                raw, None,
                "a control character reached the terminal: {text:?}"
            );
        }
        self
    }
}

/// The folder of samples beside the repository. Skips the calling test if there is none.
pub fn samples() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/samples");
    if dir.is_dir() {
        Some(dir)
    } else {
        skipped(
            "../shared",
            "put the folder of samples beside the repository",
        );
        None
    }
}

/// A file name from bytes.
pub fn name(bytes: &[u8]) -> OsString {
    use std::os::unix::ffi::OsStringExt;
    OsString::from_vec(bytes.to_vec())
}
