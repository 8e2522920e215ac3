//! The command line: options, variables, exit statuses and messages.

use crate::harness::{DEVICE, HEADER, Run, Site, good_file, points_in};
use crate::influx_double::{Double, Fault, ORG, TOKEN};
use crate::skipped::installed;
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Asserts exit status 2, a message with these words on stderr, nothing on stdout, and no report.
#[track_caller]
fn wrong_usage(site: &Site, run: Run, words: &[&str]) {
    let run = run.expect(2);
    for word in words {
        assert!(
            run.stderr.contains(word),
            "{word:?} is not in: {}",
            run.stderr
        );
    }
    assert_eq!(run.stdout, "");
    assert_eq!(
        site.reports().len(),
        0,
        "a run that does not start writes no report"
    );
}

fn site() -> Site {
    let site = Site::new();
    site.put_old(format!("{DEVICE}/a.tsv"), good_file(1, 1));
    site
}

#[test]
fn wrong_usage_exits_with_2_and_names_the_mistake() {
    let site = site();
    let lp = || site.lp_run();
    wrong_usage(
        &site,
        lp().arg("--no-such-option").run(),
        &["--no-such-option"],
    );
    wrong_usage(
        &site,
        lp().args(["--on-outage", "perhaps"]).run(),
        &["perhaps", "keep"],
    );
    wrong_usage(
        &site,
        lp().args(["--timezone", "Mars/Olympus"]).run(),
        &["Mars/Olympus"],
    );
    wrong_usage(
        &site,
        lp().env("TSV_TIMEZONE", "Mars/Olympus").run(),
        &["Mars/Olympus"],
    );
    wrong_usage(&site, lp().args(["--jobs", "many"]).run(), &["many"]);
    wrong_usage(
        &site,
        lp().args(["--env-file", "/no/such/file"]).run(),
        &["/no/such/file"],
    );
    wrong_usage(&site, site.bare().run(), &["dataFolder"]);
    wrong_usage(
        &site,
        site.bare()
            .args(["-d", "/no/such/folder", "--line-protocol-dir", "x"])
            .run(),
        &["/no/such/folder"],
    );
    wrong_usage(
        &site,
        site.call()
            .args(["--line-protocol-dir", "/dev/null/x"])
            .run(),
        &["/dev/null/x", "--line-protocol-dir"],
    );
    let file = site.path(format!("{DEVICE}/a.tsv"));
    wrong_usage(
        &site,
        site.bare()
            .arg("-d")
            .arg(&file)
            .args(["--line-protocol-dir", "x"])
            .run(),
        &["a.tsv"],
    );
    assert_eq!(site.tree(), [format!("{DEVICE}/a.tsv")]);
}

#[test]
fn a_missing_setting_is_named() {
    let site = site();
    for missing in ["INFLUXDB_ADMIN_TOKEN", "INFLUXDB_ORG", "INFLUXDB_HOST"] {
        let run = site.call_to("http://127.0.0.1:1").no_env(missing).run();
        wrong_usage(&site, run, &[missing]);
        let run = site.call_to("http://127.0.0.1:1").env(missing, "").run();
        wrong_usage(&site, run, &[missing]);
    }
    assert_eq!(site.tree(), [format!("{DEVICE}/a.tsv")]);
}

#[test]
fn an_unusable_url_is_a_configuration_error() {
    let site = site();
    for url in [
        "not a url",
        "http://",
        "http://[::1",
        "http://[",
        "http:// /",
        "http://host:99999",
        "ftp://127.0.0.1",
        "file:///etc/passwd",
        "mailto:me@example.org",
        "127.0.0.1:8086",
        "localhost:8086",
        "//127.0.0.1",
        "http://127.0.0.1:1/influx",
        "http://127.0.0.1:1/influx/",
        "http://127.0.0.1:1/?x=y",
        "http://\u{7}",
        "data:text/plain,x",
    ] {
        let run = site.call_to(url).run();
        assert_eq!(run.code(), 2, "{url}: {run:?}");
        wrong_usage(&site, run, &["INFLUXDB_HOST"]);
    }
    assert_eq!(site.tree(), [format!("{DEVICE}/a.tsv")]);
}

#[test]
fn a_url_may_end_in_a_slash_and_be_in_either_variable() {
    let double = Double::start();
    let site = site();
    site.call_to(&format!("{}/", double.url())).ok();
    assert_eq!(points_in(&double, "acme").len(), 2);

    let double = Double::start();
    let site = self::site();
    site.call_to("x")
        .no_env("INFLUXDB_HOST")
        .env("INFLUXDB_URL", double.url())
        .ok();
    assert_eq!(points_in(&double, "acme").len(), 2);

    let double = Double::start();
    let site = self::site();
    site.run_to(&double)
        .env("INFLUXDB_URL", "http://127.0.0.1:1")
        .ok();
    assert_eq!(points_in(&double, "acme").len(), 2);
}

#[test]
fn the_old_scripts_options_and_their_other_spellings_are_accepted() {
    for (folder, file) in [
        ("-d", "-t"),
        ("--dataFolder", "--tsvFile"),
        ("--data-folder", "--tsv-file"),
    ] {
        let site = site();
        site.put_old(format!("{DEVICE}/b.tsv"), good_file(1, 1));
        site.put_old(format!("{DEVICE}/c.tsv"), good_file(1, 1));
        site.bare()
            .arg(folder)
            .arg(site.data())
            .arg("--line-protocol-dir")
            .arg(site.lp_dir())
            .arg(file)
            .arg(site.path(format!("{DEVICE}/b.tsv")))
            .arg(file)
            .arg(site.path(format!("{DEVICE}/c.tsv")))
            .ok();
        assert_eq!(
            site.tree(),
            ["a.tsv", "parsed/b.tsv", "parsed/c.tsv"].map(|n| format!("{DEVICE}/{n}"))
        );
    }
}

#[test]
fn the_data_folder_may_be_relative_and_end_in_a_slash() {
    let site = site();
    site.bare()
        .cwd(site.dir.path())
        .args([
            "-d",
            "data/",
            "--line-protocol-dir",
            "lp",
            "-t",
            "data/acme/site/02001171/a.tsv",
        ])
        .ok();
    assert_eq!(site.tree(), [format!("{DEVICE}/parsed/a.tsv")]);
}

#[test]
fn nothing_to_do_is_a_success() {
    let site = Site::new();
    site.lp_run().ok();
    assert_eq!(site.report()["nb_files_total"], 0);
    assert_eq!(site.report()["status"], "success");
}

#[test]
fn a_dry_run_changes_nothing_and_prints_only_json() {
    let site = site();
    site.put_old(format!("{DEVICE}/bad.tsv"), format!("{HEADER}rubbish\n"));
    let before = site.tree();
    let double = Double::start();
    for call in [site.run_to(&double), site.lp_run(), site.call()] {
        let run = call.arg("--dry-run").run().expect(1);
        let report: Value =
            serde_json::from_str(&run.stdout).unwrap_or_else(|e| panic!("{e}: {}", run.stdout));
        assert_eq!(report["dry_run"], true);
        assert_eq!(report["nb_files_total"], 2);
        assert_eq!(report["nb_files_failed"], 1);
        assert_eq!(report["nb_points_total"], 2);
    }
    assert_eq!(site.tree(), before);
    assert_eq!(double.requests().len(), 0, "requests");
    assert_eq!(site.reports().len(), 0, "report files");
    assert!(!site.lp_dir().exists() && !site.reports_dir().exists());
    let names: Vec<_> = walkdir::WalkDir::new(site.dir.path())
        .into_iter()
        .filter_map(Result::ok)
        .collect();
    assert!(
        names
            .iter()
            .all(|e| !e.file_name().to_string_lossy().contains("lock")),
        "{names:?}"
    );
}

#[test]
fn a_dry_run_reads_named_files_too() {
    let site = site();
    let run = site
        .call()
        .arg("--dry-run")
        .named(format!("{DEVICE}/a.tsv"))
        .arg("-v")
        .ok();
    let report: Value = serde_json::from_str(&run.stdout).expect("only JSON");
    assert_eq!(report["nb_files_success"], 1);
    assert_eq!(site.tree(), [format!("{DEVICE}/a.tsv")]);
}

#[test]
fn dot_env_is_read_and_the_environment_takes_precedence() {
    let double = Double::start();
    let dot_env = format!(
        "# a comment\nINFLUXDB_HOST=\"{}\"\nINFLUXDB_ADMIN_TOKEN='{TOKEN}'\nexport INFLUXDB_ORG={ORG}\nTSV_TIMEZONE=Asia/Tokyo\n",
        double.url()
    );
    // In the working directory.
    let site = site();
    std::fs::write(site.dir.path().join("cwd/.env"), &dot_env).expect("written");
    site.call().ok();
    let paris = points_in(&double, "acme")[0].epoch;
    assert_eq!(
        paris, 1_753_999_200,
        "1 August 2025 00:00 in Paris: TSV_TIMEZONE of the environment"
    );

    // Named with --env-file.
    let double2 = Double::start();
    let site = self::site();
    let file = site.dir.path().join("settings");
    std::fs::write(&file, &dot_env).expect("written");
    site.call()
        .arg("--env-file")
        .arg(&file)
        .env("INFLUXDB_HOST", double2.url())
        .no_env("TSV_TIMEZONE")
        .ok();
    assert_eq!(
        points_in(&double2, "acme")[0].epoch,
        1_753_999_200 - 7 * 3600,
        "Tokyo is 7 hours before Paris"
    );
}

/// A copy of the binary in `bin/` of the site, which is called by a link in another folder.
fn linked_program(site: &Site) -> PathBuf {
    let dir = site.dir.path();
    for folder in ["bin", "links", "base"] {
        std::fs::create_dir(dir.join(folder)).expect("a folder");
    }
    // Another process copies it, because a program that is open for writing cannot be executed.
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_powerview"))
        .arg(dir.join("bin/powerview"))
        .status();
    assert!(copied.expect("cp starts").success());
    let link = dir.join("links/powerview");
    std::os::unix::fs::symlink("../bin/powerview", &link).expect("a link");
    link
}

/// The message of an ingestion in `cwd/` that ends with a configuration error.
fn configuration_error(site: &Site, command: &mut Command) -> String {
    let output = command
        .arg("-d")
        .arg(site.data())
        .env_clear()
        .env("POWERVIEW_BASE", site.dir.path().join("base"))
        .current_dir(site.dir.path().join("cwd"))
        .output()
        .expect("the program starts");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{message}");
    message
}

#[test]
fn dot_env_is_read_in_the_working_directory_the_base_folder_or_beside_the_binary() {
    let site = site();
    let dir = site.dir.path();
    let program = linked_program(&site);
    let mut places = ["cwd", "base", "bin", "."].to_vec();
    for place in &places {
        let text = format!("INFLUXDB_HOST=ftp://in-{place}\n");
        std::fs::write(dir.join(place).join(".env"), text).expect("written");
    }
    while !places.is_empty() {
        let found = places.remove(0);
        let message = configuration_error(&site, &mut Command::new(&program));
        assert!(
            message.contains(&format!("\"ftp://in-{found}\"")),
            "{message}"
        );
        std::fs::remove_file(dir.join(found).join(".env")).expect("removed");
    }
    let message = configuration_error(&site, &mut Command::new(&program));
    let tried = ["base/.env", "bin/.env", ".env"].map(|place| dir.join(place));
    let expected = format!(
        "INFLUXDB_HOST is not set; set it in the environment or in .env; no such file: .env, {}, /etc/powerview/.env, {}, {} (URL of InfluxDB",
        tried[0].display(),
        tried[1].display(),
        tried[2].display()
    );
    assert!(message.contains(&expected), "{message}");

    // The message for a variable that the file lacks names the file.
    let file = dir.join("bin/.env");
    std::fs::write(&file, "INFLUXDB_HOST=http://127.0.0.1:1\n").expect("written");
    let message = configuration_error(&site, &mut Command::new(&program));
    let expected = format!(
        "INFLUXDB_ADMIN_TOKEN is not set; set it in the environment or in {} (",
        file.display()
    );
    assert!(message.contains(&expected), "{message}");
}

#[test]
fn a_dot_env_that_exists_and_cannot_be_read_is_an_error() {
    use std::os::unix::fs::PermissionsExt as _;
    let site = site();
    let dir = site.dir.path();
    let program = linked_program(&site);
    // A folder is unreadable as a file, for root too.
    for place in ["cwd", "base", "bin", "."] {
        let file = dir.join(place).join(".env");
        std::fs::create_dir(&file).expect("a folder");
        let message = configuration_error(&site, &mut Command::new(&program));
        assert!(message.contains("cannot read"), "{place}: {message}");
        std::fs::remove_dir(&file).expect("removed");
    }

    if !rustix::process::geteuid().is_root() {
        return crate::skipped::skipped("root", "run the tests as root: another user is needed");
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    std::fs::write(dir.join("base/.env"), "INFLUXDB_HOST=ftp://base\n").expect("written");
    let set_mode = |folder: &str, mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(dir.join(folder), mode).expect("a mode");
    };
    let as_nobody = || {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&program);
        command
    };
    // `sudo -u` keeps the working directory, which the user may not be able to enter.
    set_mode("cwd", 0o700);
    let message = configuration_error(&site, &mut as_nobody());
    assert!(message.contains("ftp://base"), "{message}");
    set_mode("base", 0o700);
    let message = configuration_error(&site, &mut as_nobody());
    assert!(
        message.contains("cannot read") && message.contains("base/.env"),
        "{message}"
    );
}

#[test]
fn dot_env_with_windows_line_ends_comments_and_quotes_is_read() {
    let double = Double::start();
    let site = site();
    let text = format!(
        "# settings\r\n\r\nINFLUXDB_HOST={}\r\nINFLUXDB_ADMIN_TOKEN=\"{TOKEN}\"\r\nINFLUXDB_ORG='{ORG}' # ours\r\n\
         GRAFANA_PASSWORD='pa$$ word#\"'\r\n",
        double.url()
    );
    std::fs::write(site.dir.path().join("cwd/.env"), text).expect("written");
    site.call().ok();
    assert_eq!(points_in(&double, "acme").len(), 2);
}

#[test]
fn an_option_takes_precedence_over_the_environment() {
    let site = site();
    site.lp_run().args(["--timezone", "Asia/Tokyo"]).ok();
    assert_eq!(site.lp_points("acme")[0].epoch, 1_753_999_200 - 7 * 3600);
}

/// `TZ` is a name, a file or rules, as in libc. The first row is at 1 August 2025 00:00, in Paris `1_753_999_200`.
#[test]
fn the_machines_zone_is_read_as_libc_reads_it() {
    for (tz, hours) in [
        ("Europe/Paris", 0),
        (":Europe/Paris", 0),
        ("CET-1CEST,M3.5.0,M10.5.0/3", 0),
        ("UTC0", 2),
        ("JST-9", -7),
    ] {
        let site = site();
        site.lp_run().no_env("TSV_TIMEZONE").env("TZ", tz).ok();
        assert_eq!(
            site.lp_points("acme")[0].epoch,
            1_753_999_200 + hours * 3600,
            "{tz}"
        );
    }
    let site = site();
    let run = site
        .lp_run()
        .no_env("TSV_TIMEZONE")
        .env("TZ", "Mars/Olympus")
        .run();
    wrong_usage(&site, run, &["Mars/Olympus", "TSV_TIMEZONE"]);
}

#[test]
fn a_misplaced_token_is_never_shown() {
    // `expect` looks for the token.
    let site = site();
    site.call_to(&format!("http://user:{TOKEN}@127.0.0.1:1"))
        .run()
        .expect(2);
    // A line break at the end is not part of the token, one inside is not allowed.
    for (token, code) in [(format!("{TOKEN}\n"), 1), (format!("{TOKEN}\nx"), 2)] {
        let site = self::site();
        site.call_to("http://127.0.0.1:1")
            .env("INFLUXDB_ADMIN_TOKEN", token)
            .run()
            .expect(code);
    }
    let site = self::site();
    std::fs::write(
        site.dir.path().join("cwd/.env"),
        format!("INFLUXDB_ADMIN_TOKEN=\"{TOKEN}\nINFLUXDB_ORG\n"),
    )
    .expect("written");
    site.call().run().expect(2);
    let site = self::site();
    site.call_to("http://127.0.0.1:1")
        .args(["-v", "-v"])
        .env("TSV_LOG_LEVEL", "TRACE")
        .run()
        .expect(1);
    assert_eq!(site.reports().len(), 1);
    for report in site.reports() {
        assert!(!report.to_string().contains(TOKEN));
    }
    for path in site.tree() {
        assert!(!String::from_utf8_lossy(&site.read(path)).contains(TOKEN));
    }
}

#[test]
fn failed_files_exit_with_1_and_are_named() {
    let site = site();
    site.put_old(format!("{DEVICE}/bad.tsv"), format!("{HEADER}rubbish\n"));
    let run = site.lp_run().run().expect(1);
    assert!(run.stderr.contains("bad.tsv"), "{}", run.stderr);
    assert_eq!(site.report()["status"], "partial_failure");
    assert_eq!(run.stdout, "");
}

#[test]
fn the_summary_line_uses_singulars() {
    let site = site();
    let run = site.lp_run().ok();
    let expected = "\n1 file: 1 ingested, 0 failed, 0 skipped; 2 points in ";
    assert!(
        format!("\n{}", run.stderr).contains(expected),
        "{}",
        run.stderr
    );
    let run = site.lp_run().ok();
    let expected = "\n0 files: 0 ingested, 0 failed, 0 skipped; 0 points in ";
    assert!(
        format!("\n{}", run.stderr).contains(expected),
        "{}",
        run.stderr
    );
}

#[test]
fn quiet_prints_failures_only() {
    let good = site();
    let quiet = good.lp_run().arg("-q").ok();
    assert_eq!(quiet.stderr, "");
    let bad = Site::new();
    bad.put_old(format!("{DEVICE}/bad.tsv"), format!("{HEADER}rubbish\n"));
    let run = bad.lp_run().arg("-q").run().expect(1);
    assert!(run.stderr.contains("bad.tsv"), "{}", run.stderr);
}

#[test]
fn the_log_level_is_a_setting() {
    let logs = |level: Option<&str>| {
        let site = Site::new();
        // A truncated file is logged as a warning, a retry at debug level.
        site.put_old(format!("{DEVICE}/a.tsv"), good_file(1, 2).trim_end());
        let mut call = site.call_to("http://127.0.0.1:1").env("TSV_RETRY_FOR", "1");
        if let Some(level) = level {
            call = call.env("TSV_LOG_LEVEL", level);
        }
        let run = call.run().expect(1);
        [" WARN ", " DEBUG "].map(|level| run.stderr.contains(level))
    };
    for level in ["TRACE", "debug"] {
        assert_eq!(logs(Some(level)), [true, true], "{level}");
    }
    for level in [None, Some("INFO"), Some("warning"), Some("WARN")] {
        assert_eq!(logs(level), [true, false], "{level:?}");
    }
    for level in ["ERROR", "CRITICAL", "off"] {
        assert_eq!(logs(Some(level)), [false, false], "{level}");
    }
    let site = site();
    let run = site.lp_run().env("TSV_LOG_LEVEL", "LOUD").run();
    wrong_usage(&site, run, &["TSV_LOG_LEVEL", "LOUD", "WARNING"]);
}

/// The forms that each message about a duration names.
const DURATIONS: &str = "60 (seconds), 90s, 10m, 26h, 7d or 1h 30m";

#[test]
fn durations_have_the_same_forms_in_all_options_and_variables() {
    let double = Double::start();
    let variables = [
        "TSV_RETRY_FOR",
        "TSV_LOCK_WAIT_S",
        "TSV_INCOMPLETE_GRACE_S",
        "TSV_CONNECT_TIMEOUT_S",
        "TSV_REQUEST_TIMEOUT_S",
    ];
    for (duration, seconds) in [
        ("60", 60),
        ("0.5", 0),
        ("90s", 90),
        ("10m", 600),
        ("26h", 93_600),
        ("7d", 604_800),
        ("1h 30m", 5_400),
    ] {
        let site = site();
        let mut call = site.run_to(&double);
        for variable in variables {
            call = call.env(variable, duration);
        }
        call.ok();
        site.lp_run().args(["--retry-for", duration]).ok();
        let status = ["status", "--silent-after", duration, "--json", "-d"];
        // The logger's clock is a problem: the file is newer than its last measurement.
        let run = site.bare().args(status).arg(site.data()).run().expect(1);
        let status: Value = serde_json::from_str(&run.stdout).expect("JSON");
        assert_eq!(status["silent_after_s"], seconds, "{duration}");
    }
    let site = site();
    for variable in variables {
        let run = site.run_to(&double).env(variable, "soon").run();
        wrong_usage(&site, run, &[variable, "soon", DURATIONS]);
    }
    let run = site.lp_run().args(["--retry-for", "soon"]).run();
    wrong_usage(&site, run, &["--retry-for", "soon", DURATIONS]);
    let status = ["status", "--silent-after", "soon", "-d"];
    let run = site.bare().args(status).arg(site.data()).run();
    wrong_usage(&site, run, &["--silent-after", "soon", DURATIONS]);
}

#[test]
fn status_refuses_the_options_of_an_ingestion() {
    let site = site();
    for option in [["--on-outage", "keep"], ["--retry-for", "60"]] {
        let call = site.bare().args(["status", "-d"]).arg(site.data());
        let run = call.args(option).run();
        wrong_usage(&site, run, &["unexpected argument", option[0]]);
    }
}

#[test]
fn only_an_ingestion_has_an_action_during_an_outage() {
    let site = site();
    for command in [
        vec!["check"],
        vec!["verify"],
        vec!["rebuild", "--company", "acme"],
    ] {
        let call = site.bare().args(command).arg("-d").arg(site.data());
        let run = call.args(["--on-outage", "keep"]).run();
        wrong_usage(&site, run, &["unexpected argument", "--on-outage"]);
    }
}

#[test]
fn help_names_options_variables_and_commands() {
    let site = Site::new();
    let run = site.bare().arg("--help").ok();
    for word in [
        "--dataFolder",
        "--tsvFile",
        "--dry-run",
        "--retry-errors",
        "--on-outage",
        "--timezone",
        "--jobs",
        "--line-protocol-dir",
        "--env-file",
        "INFLUXDB_HOST",
        "INFLUXDB_ADMIN_TOKEN",
        "INFLUXDB_ORG",
        "TSV_TIMEZONE",
        "TSV_ON_OUTAGE",
        "TSV_RETRY_FOR",
        "TSV_REPORT_DIR",
        "TSV_META_BUCKET",
        "TSV_INCOMPLETE_GRACE_S",
        "check",
        "completions",
        "xample",
    ] {
        assert!(
            run.stdout.contains(word),
            "{word} is not in the help: {}",
            run.stdout
        );
    }
    assert_eq!(run.stderr, "");
    site.bare().arg("-h").ok();
    assert!(
        site.bare()
            .arg("--version")
            .ok()
            .stdout
            .contains(env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(site.reports().len(), 0);
}

#[test]
fn the_version_shows_the_build_and_the_time_zone_database() {
    let site = Site::new();
    let short = format!("powerview {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(site.bare().arg("-V").ok().stdout, short);

    let zones = site.dir.path().join("zones");
    let version = || {
        let run = site.bare().env("TZDIR", &zones).arg("--version").ok();
        assert!(run.stdout.starts_with(&short), "{}", run.stdout);
        run.stdout
    };
    let text = version();
    let built = text
        .lines()
        .find_map(|line| line.strip_prefix("built: "))
        .unwrap_or_else(|| panic!("no date of the build: {text}"));
    chrono::NaiveDate::parse_from_str(built, "%Y-%m-%d").expect("a date");
    let database = |text: &str| text.lines().last().expect("a line").to_owned();
    let missing = database(&text);
    assert!(
        missing.starts_with("time zone database: the built-in tables (20"),
        "{missing}"
    );

    fs::create_dir(&zones).expect("a folder");
    fs::write(zones.join("tzdata.zi"), "# version 2031z\n").expect("a file");
    let line = format!("time zone database: {} (2031z)", zones.display());
    assert_eq!(database(&version()), line);
}

#[test]
fn the_build_takes_the_commit_only_from_its_own_repository() {
    if !installed("git", "git") {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let script = dir.path().join("build-script");
    let run = |program: &Path, arguments: &[&str], at: &Path| {
        let output = std::process::Command::new(program)
            .args(arguments)
            .current_dir(at)
            .env("SOURCE_DATE_EPOCH", "1735689600")
            .output()
            .expect("the program starts");
        assert!(output.status.success(), "{program:?}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/build.rs");
    let out = script.to_str().expect("UTF-8");
    let here = dir.path();
    run(
        Path::new("rustc"),
        &["--edition=2024", "-o", out, source],
        here,
    );

    let repository = here.join("repository");
    let archive = repository.join("archive");
    fs::create_dir_all(&archive).expect("a folder");
    let git = |arguments: &[&str]| run(Path::new("git"), arguments, &repository);
    git(&["init", "-q"]);
    git(&["config", "user.name", "a"]);
    git(&["config", "user.email", "a@example.org"]);
    git(&["commit", "-q", "--allow-empty", "-m", "first"]);
    let commit = git(&["rev-parse", "HEAD"]);
    let variable = "cargo::rustc-env=POWERVIEW_COMMIT=";

    let text = run(&script, &[], &repository);
    assert!(
        text.contains(&format!("{variable}{}\n", &commit[..10])),
        "{text}"
    );
    assert!(
        text.contains("cargo::rustc-env=POWERVIEW_BUILD_TIME=1735689600\n"),
        "{text}"
    );
    for without in [here, &archive] {
        let text = run(&script, &[], without);
        assert!(!text.contains(variable), "{text}");
        assert!(text.contains("POWERVIEW_BUILD_TIME=1735689600"), "{text}");
    }
}

#[test]
fn manual_pages_are_written_for_each_command() {
    let dir = tempfile::tempdir().expect("a folder");
    let site = Site::new();
    site.bare().arg("man").arg(dir.path()).ok();
    let help = site.bare().arg("--help").ok().stdout;
    assert!(!help.contains("manual pages"), "{help}");

    let page = |name: &str| {
        let text = fs::read_to_string(dir.path().join(name)).expect(name);
        // Hyphens are escaped.
        text.replace("\\-", "-")
    };
    let main = page("powerview.1");
    for text in [
        "--dataFolder",
        ".SH ENVIRONMENT",
        ".SH \"EXIT STATUS\"",
        ".SH EXAMPLES",
    ] {
        assert!(main.contains(text), "{text}: {main}");
    }
    for var in powerview::config::env_vars::ALL {
        assert!(
            main.contains(&format!("\\fB{}\\fR\n", var.name)),
            "{}",
            var.name
        );
    }
    assert!(page("powerview-check.1").contains("--retry-for"));
    assert!(page("powerview-status.1").contains("--silent-after"));
    assert!(page("powerview-verify.1").contains("--repair"));
    assert!(page("powerview-rebuild.1").contains("--undo"));
    assert!(page("powerview-rollup.1").contains("--since"));
    assert!(page("powerview-channels.1").contains("--apply"));
    assert!(page("powerview-completions.1").contains("fish"));
    assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 8);

    let nowhere = dir.path().join("missing");
    let run = site.bare().arg("man").arg(&nowhere).run();
    assert_eq!(run.code(), 1);
    assert!(
        run.stderr.contains("cannot write the manual pages to"),
        "{}",
        run.stderr
    );
}

#[test]
fn completions_are_printed_for_each_shell() {
    let site = Site::new();
    for shell in ["bash", "zsh", "fish"] {
        let run = site.bare().args(["completions", shell]).ok();
        assert!(
            run.stdout.contains("powerview") && run.stdout.contains("dry-run"),
            "{shell}"
        );
    }
    assert_eq!(site.bare().args(["completions", "edlin"]).run().code(), 2);
}

#[test]
fn completions_into_a_closed_pipe_succeed() {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_powerview"))
        .args(["completions", "bash"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("started");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ended");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), err.as_ref()), (Some(0), ""));
}

#[test]
fn check_prints_one_line_for_each_check() {
    let double = Double::start();
    let site = site();
    let run = |call: crate::harness::Call| {
        let run = call.run().clean();
        (run.code(), format!("{}{}", run.stdout, run.stderr))
    };
    let check = |url: &str| {
        site.bare()
            .env("INFLUXDB_HOST", url)
            .env("INFLUXDB_ADMIN_TOKEN", TOKEN)
            .env("INFLUXDB_ORG", ORG)
            .env("SFTPGO_CONFIG_DIR", "/nonexistent")
            .arg("check")
            .arg("-d")
            .arg(site.data())
    };
    let (code, good) = run(check(&double.url()));
    assert_eq!(code, 0, "{good}");
    let marks_and_names: Vec<_> = good
        .lines()
        .map(|line| line.get(..19).unwrap_or(line).trim_end())
        .collect();
    assert_eq!(
        marks_and_names,
        [
            "ok   data folder",
            "ok   reports",
            "ok   free space",
            "ok   time zone",
            "ok   configuration",
            "ok   server",
            "ok   organisation",
            "ok   token",
            "-    Grafana",
            "ok   hook",
            "-    SFTPGo",
            "ok   clock",
        ]
    );

    let (code, dead) = run(check("http://127.0.0.1:1"));
    assert_eq!(code, 1, "{dead}");
    let (code, token) = run(check(&double.url()).env("INFLUXDB_ADMIN_TOKEN", "wrong"));
    assert_eq!(code, 1, "{token}");
    let (code, org) = run(check(&double.url()).env("INFLUXDB_ORG", "nobody"));
    assert_eq!(code, 1, "{org}");
    assert!(org.contains("nobody"), "{org}");
    assert_eq!(
        site.tree(),
        [format!("{DEVICE}/a.tsv")],
        "check changes no file"
    );
    assert_eq!(double.bucket_names().len(), 2, "check creates no bucket");
    assert_eq!(site.reports().len(), 0);
}

/// Asserts that a check fails, and returns its line.
#[track_caller]
fn failing_line(run: Run, name: &str) -> String {
    let run = run.expect(1);
    let start = format!("FAIL {name} ");
    let line = run.stdout.lines().find(|line| line.starts_with(&start));
    line.unwrap_or_else(|| panic!("{name} does not fail: {}", run.stdout))
        .to_owned()
}

#[test]
fn check_fails_for_each_setting_that_an_ingestion_refuses() {
    let double = Double::start();
    let site = site();
    for (name, value) in [
        ("TSV_JOBS", "abc"),
        ("TSV_JOBS", "65"),
        ("TSV_ON_OUTAGE", "drop"),
        ("TSV_INCOMPLETE_GRACE_S", "long"),
        ("TSV_LOCK_WAIT_S", "-1"),
        ("TSV_GZIP", "perhaps"),
        ("TSV_BATCH_LINES", "0"),
        ("TSV_HEARTBEAT_URL", "somewhere"),
        ("TSV_META_BUCKET", "_x"),
        ("TSV_RETRY_FOR", "long"),
        ("TSV_MAX_GAP", "0"),
        ("TSV_MAX_GAP", "0s"),
    ] {
        let call = |args: &[&str]| {
            site.bare()
                .args(args)
                .arg("-d")
                .arg(site.data())
                .env("INFLUXDB_HOST", double.url())
                .env("INFLUXDB_ADMIN_TOKEN", TOKEN)
                .env("INFLUXDB_ORG", ORG)
                .env(name, value)
        };
        wrong_usage(&site, call(&[]).run(), &[name]);
        let line = failing_line(call(&["check"]).run(), "configuration");
        assert!(line.contains(name) && line.contains("; "), "{line}");
    }
}

#[test]
fn check_names_the_remedy_for_each_problem_of_a_server() {
    let double = Double::start();
    let site = site();
    let check = |url: &str, org: &str| {
        site.bare()
            .env("INFLUXDB_HOST", url)
            .env("INFLUXDB_ADMIN_TOKEN", TOKEN)
            .env("INFLUXDB_ORG", org)
            .args(["check", "-d"])
            .arg(site.data())
            .run()
    };
    let line = failing_line(check("http://127.0.0.1:1", ORG), "server");
    assert!(
        line.contains("refused") && line.contains("start InfluxDB"),
        "{line}"
    );
    failing_line(check("http://127.0.0.1:1", ORG), "token");

    failing_line(check(&double.url(), "nobody"), "organisation");
    let line = failing_line(check(&double.url(), "nobody"), "token");
    assert!(line.contains("organisation"), "{line}");

    double.fault_all(Fault::Html(200));
    let line = failing_line(check(&double.url(), ORG), "server");
    assert!(
        line.contains("something other than InfluxDB") && line.contains("INFLUXDB_HOST"),
        "{line}"
    );
    failing_line(check(&double.url(), ORG), "token");
    double.fault_all(Fault::Html(404));
    let line = failing_line(check(&double.url(), ORG), "server");
    assert!(line.contains("correct INFLUXDB_HOST"), "{line}");

    // A server may send the token back; `expect` looks for it.
    for status in ["pass", "fail"] {
        double.clear_faults();
        double.fault_all(Fault::Status(
            200,
            format!(
                r#"{{"name":"x","status":"{status}","message":"{TOKEN}","version":"{TOKEN}"}}"#
            ),
        ));
        let run = check(&double.url(), ORG).expect(1);
        assert!(run.stdout.contains("<token>"), "{}", run.stdout);
    }
}

#[test]
fn a_dry_run_into_a_closed_pipe_fails_without_a_panic() {
    let site = site();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_powerview"))
        .env_clear()
        .args(["--dry-run", "-d"])
        .arg(site.data())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("started");
    drop(child.stdout.take());
    let mut err = String::new();
    child
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut err)
        .expect("read");
    let status = child.wait().expect("ended");
    assert_eq!(status.code(), Some(1), "the report is lost: {err}");
    assert!(!err.contains("panicked"), "{err}");
}
