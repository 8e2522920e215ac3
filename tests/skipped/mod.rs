//! Skips tests visibly, for the unit tests, the integration tests and the summary at the end of a run.
//!
//! libtest hides the output of `println!` and `eprintln!` in a passing test, but not writes to the stream itself. A
//! skip is therefore written to standard error directly, and recorded for `tests/zz_skipped.rs`, which counts the
//! skips.
#![allow(
    dead_code,
    reason = "each of the targets that include this module uses a part of it"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

/// Lists the requirements that may be missing, separated by spaces. If it is set, a test that lacks anything else
/// fails.
pub(crate) const MAY_SKIP: &str = "POWERVIEW_TESTS_MAY_SKIP";

/// Reports on standard error that the calling test is skipped because `missing` is missing, and how to provide it. The
/// caller must return afterwards.
///
/// # Panics
/// If the environment does not allow this test to be skipped.
#[track_caller]
pub(crate) fn skipped(missing: &str, remedy: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    if let Ok(allowed) = std::env::var(MAY_SKIP) {
        assert!(
            allowed.split_whitespace().any(|a| a == missing),
            "{missing} is missing ({remedy}), and {MAY_SKIP}={allowed:?} does not allow this test to be skipped for it"
        );
    }
    let line = format!("skipped: {test}: {missing} is missing ({remedy})\n");
    // One call, so that the lines of tests that run in parallel do not mix.
    let _ = std::io::stderr().write_all(line.as_bytes());
    Run::of(std::os::unix::process::parent_id()).record(test, missing, remedy);
}

/// Whether `program` is installed. Reports the calling test as skipped if not. `package` is the Debian package.
#[track_caller]
pub(crate) fn installed(program: &str, package: &str) -> bool {
    // The folders in the PATH of the programs that the tests start, and those of administrators' programs.
    let there = [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ]
    .iter()
    .any(|folder| PathBuf::from(folder).join(program).exists());
    if !there {
        skipped(program, &format!("apt install {package}"));
    }
    there
}

/// The skipped tests of one run of `cargo test`, which starts one process for each target.
pub(crate) struct Run {
    file: PathBuf,
}

impl Run {
    /// The run whose processes were started by `cargo`, a process id.
    pub(crate) fn of(cargo: u32) -> Self {
        // Process ids are reused. Together with the start time they are unique.
        let started = fs::read_to_string(format!("/proc/{cargo}/stat"))
            .ok()
            .and_then(|stat| {
                let after_name = stat.rsplit(") ").next()?;
                after_name.split(' ').nth(19).map(str::to_owned)
            })
            .unwrap_or_default();
        Self {
            file: folder().join(format!("{cargo}-{started}")),
        }
    }

    fn record(&self, test: &str, missing: &str, remedy: &str) {
        let line = format!("{test}\t{missing}\t{remedy}\n");
        // A test program that is run by hand may not be able to write here. Its skips are not counted then.
        let _ = fs::create_dir_all(folder());
        if let Ok(mut file) = fs::File::options()
            .append(true)
            .create(true)
            .open(&self.file)
        {
            let _ = file.write_all(line.as_bytes());
        }
    }

    /// The summary: the skipped tests by missing requirement, and their number. Removes the record.
    pub(crate) fn summary(self) -> String {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        let _ = fs::remove_file(&self.file);
        let mut tests = BTreeSet::new();
        let mut by_cause: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for line in text.lines() {
            let mut parts = line.splitn(2, '\t');
            if let (Some(test), Some(cause)) = (parts.next(), parts.next()) {
                tests.insert(test);
                by_cause.entry(cause).or_default().insert(test);
            }
        }
        let mut out = String::new();
        for (cause, tests) in by_cause {
            let (missing, remedy) = cause.split_once('\t').unwrap_or((cause, ""));
            out.push_str(&format!("\n{missing} is missing ({remedy}):\n"));
            for test in tests {
                out.push_str(&format!("    {test}\n"));
            }
        }
        let plural = if tests.len() == 1 { "" } else { "s" };
        out + &format!("\n{} test{plural} skipped\n", tests.len())
    }
}

/// Removes the records of runs that ended early, before they were counted.
pub(crate) fn remove_old_records() {
    let Ok(entries) = fs::read_dir(folder()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let cargo = name.split('-').next().and_then(|pid| pid.parse().ok());
        if cargo.is_none_or(|pid| Run::of(pid).file != entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Beside the folder of the test programs, where all targets of one profile find it.
fn folder() -> PathBuf {
    let program = std::env::current_exe().expect("the test program's path");
    program.parent().expect("a folder").join("../skipped-tests")
}
