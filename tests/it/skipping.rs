//! Skipped tests are reported and counted, and fail if they must not be skipped.

use std::process::{Command, Output};

use crate::skipped::{MAY_SKIP, Run, skipped};

const THIS: &str = "skipping::a_skipped_test_is_reported_counted_and_can_be_forbidden";

/// Set in the process that the test starts, where it is a skipped test.
const INNER: &str = "POWERVIEW_TEST_IS_SKIPPED";

#[test]
fn a_skipped_test_is_reported_counted_and_can_be_forbidden() {
    if std::env::var_os(INNER).is_some() {
        return skipped("sundial", "apt install sun");
    }
    let run = |may_skip: Option<&str>| -> (Output, String) {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command
            .args(["--exact", THIS])
            .env(INNER, "1")
            .env_remove(MAY_SKIP);
        if let Some(list) = may_skip {
            command.env(MAY_SKIP, list);
        }
        let output = command.output().expect("this program starts");
        // This process is the parent of that program, as `cargo test` is of this one.
        (output, Run::of(std::process::id()).summary())
    };
    let counted =
        format!("\nsundial is missing (apt install sun):\n    {THIS}\n\n1 test skipped\n");
    for allowing in [None, Some("sundial"), Some("moondial  sundial")] {
        let (output, summary) = run(allowing);
        assert!(output.status.success(), "{allowing:?}: {output:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let line = format!("skipped: {THIS}: sundial is missing (apt install sun)");
        assert_eq!(stderr.lines().filter(|l| *l == line).count(), 1, "{stderr}");
        assert_eq!(summary, counted, "{allowing:?}");
    }
    for forbidding in ["", "moondial", "sun sundials"] {
        let (output, summary) = run(Some(forbidding));
        assert!(!output.status.success(), "{forbidding:?} allowed it");
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(stdout.contains("sundial is missing"), "{stdout}");
        assert_eq!(summary, "\n0 tests skipped\n", "{forbidding:?}");
    }
}
