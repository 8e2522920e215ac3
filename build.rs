//! Passes the commit and the time of the build to the compiler, for `powerview --version`.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() {
    for path in ["Cargo.lock", "Cargo.toml", "build.rs", "src"] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let time = std::env::var("SOURCE_DATE_EPOCH").unwrap_or_else(|_| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |now| now.as_secs()).to_string()
    });
    println!("cargo::rustc-env=POWERVIEW_BUILD_TIME={time}");

    // A source archive has no .git, and may be unpacked below another repository.
    if !Path::new(".git").exists() {
        return;
    }
    // Each commit and each checkout adds a line to this file.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && Path::new(&log).exists()
    {
        println!("cargo::rerun-if-changed={log}");
    }
    if let Some(commit) = git(&[
        "describe",
        "--always",
        "--dirty",
        "--abbrev=10",
        "--exclude=*",
    ]) {
        println!("cargo::rustc-env=POWERVIEW_COMMIT={commit}");
    }
}

/// The output of git, or `None` if it is not installed or fails.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success()).then(|| text.trim().to_owned())
}
