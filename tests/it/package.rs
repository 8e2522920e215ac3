//! The Debian package: what is in it, and how it is installed, upgraded and removed in new roots of Debian.

use crate::harness::{Tmpfs, good_file, put_program};
use crate::influx_double::{Double, ORG, TOKEN};
use crate::skipped::{installed, skipped};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The version before, for the upgrade.
const OLD_VERSION: &str = "0.0.1";

/// Grafana's user in its container, whose group is root.
const GRAFANA: &str = "472:0";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(err)
}

/// Runs a program, which must succeed, and returns its stdout.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The package of this version and of the one before, with the binary of the tests. They are kept in `target`, and the
/// next run replaces them.
struct Packages {
    dir: &'static Path,
}

impl Packages {
    fn current(&self) -> PathBuf {
        self.dir.join("new.deb")
    }

    fn previous(&self) -> PathBuf {
        self.dir.join("old.deb")
    }
}

/// The folder with the programs of `.ci/setup-package`, before the other programs.
fn path_with_tools() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{}/target/packaging/bin:{path}", root().display())
}

/// Builds the packages once. Returns `None` and skips the calling test if a tool is missing.
fn packages() -> Option<&'static Packages> {
    static PACKAGES: LazyLock<Packages> = LazyLock::new(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        for (version, file) in [(VERSION, "new.deb"), (OLD_VERSION, "old.deb")] {
            let file = dir.join(file);
            let options = format!("--fast --deb-version={version} --output={}", file.display());
            run(Command::new("make")
                .arg("deb")
                .arg(concat!("binary=", env!("CARGO_BIN_EXE_powerview")))
                .arg(format!("deb_options={options}"))
                .current_dir(root())
                .env("PATH", path_with_tools()));
        }
        Packages { dir }
    });
    let cargo_deb = Command::new("cargo-deb")
        .arg("--version")
        .env("PATH", path_with_tools())
        .output();
    if cargo_deb.is_err() {
        skipped("cargo-deb", "run .ci/setup-package");
        return None;
    }
    let tools = [("dpkg-shlibdeps", "dpkg-dev"), ("objdump", "binutils")];
    tools
        .into_iter()
        .all(|(program, package)| installed(program, package))
        .then(|| &*PACKAGES)
}

/// Mode and owner of a file or folder of the package, as `tar -tv` shows them.
struct Entry {
    mode: String,
    owner: String,
}

/// The content of a package, by the absolute path.
fn entries(package: &Path) -> BTreeMap<String, Entry> {
    let list = run(Command::new("dpkg-deb").arg("-c").arg(package));
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let mode = words.next()?.to_owned();
        let owner = words.next()?.to_owned();
        let path = words.nth(3)?.strip_prefix('.')?.to_owned();
        Some((path, Entry { mode, owner }))
    };
    let entries: BTreeMap<_, _> = list.lines().filter_map(entry).collect();
    assert_eq!(entries.len(), list.lines().count(), "{list}");
    entries
}

/// The files below a folder of the repository that belong to it, relative to the folder.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            files.push(path);
        } else if !path.ends_with("__pycache__") {
            files.extend(files_below(&path));
        }
    }
    files
}

#[test]
fn the_package_has_all_parts_with_the_rights_that_they_need() {
    let Some(packages) = packages() else { return };
    let entries = entries(&packages.current());
    let programs = [
        "/usr/bin/powerview",
        "/usr/share/powerview/on-upload.sh",
        "/usr/share/powerview/tsv_parser.py",
        "/usr/share/powerview/deploy/old-system",
        "/usr/share/powerview/deploy/report-failure",
        "/usr/share/powerview/powerview-company",
        "/usr/share/powerview/powerview-user",
        "/usr/share/powerview/powerview-setup",
        "/usr/bin/powerview-company",
        "/usr/bin/powerview-user",
        "/usr/bin/powerview-setup",
    ];
    for (path, entry) in &entries {
        let mode = match path {
            folder if folder.ends_with('/') => "drwxr-xr-x",
            file if programs.contains(&file.as_str()) => "-rwxr-xr-x",
            _ => "-rw-r--r--",
        };
        assert_eq!((&*entry.mode, &*entry.owner), (mode, "0/0"), "{path}");
    }

    let mut expected: BTreeSet<String> = [
        "/usr/share/powerview/.env.sample",
        "/etc/powerview/compose.yaml",
        "/etc/logrotate.d/powerview",
        "/usr/lib/tmpfiles.d/powerview.conf",
        "/usr/share/bash-completion/completions/powerview",
        "/usr/share/zsh/vendor-completions/_powerview",
        "/usr/share/fish/vendor_completions.d/powerview.fish",
        "/usr/share/doc/powerview/copyright",
        "/usr/share/doc/powerview/changelog.gz",
        "/usr/share/doc/powerview/README.md",
        "/usr/share/doc/powerview/CHANGELOG.md",
        "/usr/share/doc/powerview/examples/env.sample",
        "/usr/share/doc/powerview/examples/Caddyfile",
        "/usr/share/doc/powerview/examples/sftpgo.env",
        "/usr/share/doc/powerview/examples/compose.yaml",
    ]
    .into_iter()
    .chain(programs)
    .map(str::to_owned)
    .collect();
    for page in [
        "",
        "-channels",
        "-check",
        "-completions",
        "-rebuild",
        "-rollup",
        "-status",
        "-verify",
    ] {
        expected.insert(format!("/usr/share/man/man1/powerview{page}.1.gz"));
    }
    for file in files_below(&root().join("grafana-automation")) {
        let file = file.strip_prefix(root()).expect("below the root");
        expected.insert(format!("/usr/share/powerview/{}", file.display()));
    }
    for file in files_below(&root().join("docs")) {
        let file = file.strip_prefix(root().join("docs")).expect("below docs");
        expected.insert(format!("/usr/share/doc/powerview/{}", file.display()));
    }
    // Units, and the parts that only the package or only a checkout needs.
    for file in files_below(&root().join("deploy")) {
        let name = file.file_name().and_then(|n| n.to_str()).expect("a name");
        let folder = match file.extension().and_then(|e| e.to_str()) {
            Some("service" | "timer") => "/usr/lib/systemd/system",
            _ if matches!(name, "logrotate" | "tmpfiles.conf") => continue,
            _ => "/usr/share/powerview/deploy",
        };
        expected.insert(format!("{folder}/{name}"));
    }
    let files: BTreeSet<String> = entries
        .into_keys()
        .filter(|path| !path.ends_with('/'))
        .collect();
    assert_eq!(files, expected);
}

#[test]
fn the_package_requires_an_old_glibc_and_recommends_the_other_services() {
    let Some(packages) = packages() else { return };
    let field = |name: &str| {
        let mut command = Command::new("dpkg-deb");
        let value = run(command.arg("-f").arg(packages.current()).arg(name));
        value.trim().to_owned()
    };
    assert_eq!(field("Package"), "powerview");
    assert_eq!(field("Version"), VERSION);
    assert_eq!(field("Architecture"), "amd64");

    let depends = field("Depends");
    let names: Vec<&str> = depends
        .split(", ")
        .filter_map(|package| package.split(' ').next())
        .collect();
    assert_eq!(names, ["libc6", "passwd"], "{depends}");
    let glibc = depends
        .strip_prefix("libc6 (>= 2.")
        .and_then(|rest| rest.split(')').next()?.parse::<u32>().ok())
        .unwrap_or_else(|| panic!("no version of libc6: {depends}"));
    assert!(glibc <= 34, "{depends}");
    let recommends = field("Recommends");
    for service in [
        "ansible",
        "sftpgo",
        "caddy",
        // With the names in Debian, Ubuntu and Docker's repository. Ubuntu also has a docker-compose that does not start.
        "docker.io | docker-ce | podman",
        "docker-compose-v2 | docker-compose | docker-compose-plugin",
    ] {
        assert!(recommends.contains(service), "{service}: {recommends}");
    }

    let control = tempfile::tempdir().expect("a folder");
    run(Command::new("dpkg-deb")
        .arg("-e")
        .arg(packages.current())
        .arg(control.path()));
    let conffiles = fs::read_to_string(control.path().join("conffiles")).expect("conffiles");
    let conffiles: BTreeSet<&str> = conffiles.lines().collect();
    let expected = ["/etc/logrotate.d/powerview", "/etc/powerview/compose.yaml"];
    assert_eq!(conffiles, expected.into());
}

#[test]
fn every_path_that_the_packaged_files_name_is_in_the_package() {
    let Some(packages) = packages() else { return };
    let entries = entries(&packages.current());
    let dir = tempfile::tempdir().expect("a folder");
    run(Command::new("dpkg-deb")
        .arg("-x")
        .arg(packages.current())
        .arg(dir.path()));
    let is_end = |c: char| !(c.is_ascii_alphanumeric() || "/._@-".contains(c));
    let mut found = 0;
    for (file, _) in entries.iter().filter(|(path, _)| {
        let names_paths = [
            "/usr/lib/",
            "/etc/",
            "/usr/share/powerview/deploy/sftpgo.env",
        ];
        !path.ends_with('/') && names_paths.iter().any(|start| path.starts_with(start))
    }) {
        let text = fs::read_to_string(dir.path().join(&file[1..])).expect(file);
        assert!(!text.contains("/srv/powerview"), "{file}: {text}");
        let paths = text
            .split(is_end)
            .map(|word| word.trim_end_matches('.'))
            .filter(|word| word.starts_with("/usr/") || word.starts_with("/etc/powerview"))
            // This is a folder in Grafana's container.
            .filter(|word| *word != "/etc/powerview/dashboards");
        for path in paths {
            let folder = format!("{path}/");
            assert!(
                entries.contains_key(path) || entries.contains_key(&folder),
                "{file} names {path}"
            );
            found += 1;
        }
    }
    assert!(found > 10, "{found}");
    let compose =
        fs::read_to_string(dir.path().join("etc/powerview/compose.yaml")).expect("compose");
    assert!(!compose.contains("- ./"), "{compose}");
}

#[test]
fn lintian_finds_no_error() {
    let Some(packages) = packages() else { return };
    if !installed("lintian", "lintian") {
        return;
    }
    // It leaves files there.
    let temporary = tempfile::tempdir().expect("a folder");
    let output = Command::new("lintian")
        .arg("--allow-root")
        .arg(packages.current())
        .env("TMPDIR", temporary.path())
        .output()
        .expect("lintian starts");
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn a_binary_for_a_newer_glibc_is_not_packaged() {
    let dir = tempfile::tempdir().expect("a folder");
    for (newest, is_packaged) in [("2.34", true), ("2.36", false)] {
        let objdump = dir.path().join("objdump");
        let script = format!("#!/bin/sh\necho ' (GLIBC_2.9) a'; echo ' (GLIBC_{newest}) b'\n");
        put_program(&objdump, &script);
        let folder = dir.path().join(newest);
        let output = Command::new(root().join("packaging/generate"))
            .arg(env!("CARGO_BIN_EXE_powerview"))
            .arg(&folder)
            .env("PATH", format!("{}:/usr/bin:/bin", dir.path().display()))
            .output()
            .expect("the script starts");
        let message = text(&output);
        assert_eq!(output.status.success(), is_packaged, "{message}");
        assert_eq!(folder.join("powerview").exists(), is_packaged, "{message}");
        let says = message.contains("needs glibc 2.36, but the package is for systems with 2.34");
        assert_eq!(says, !is_packaged, "{message}");
    }
}

/// A new root of Debian.
struct DebianRoot {
    dir: tempfile::TempDir,
}

impl DebianRoot {
    /// Makes a root of a release with further packages from Debian's packages, or from the archive of an earlier test
    /// run. Returns `None` and skips the calling test if that is not possible.
    fn new(release: &str, packages: &[&str]) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skipped("root", "run the tests as root: packages are installed");
            return None;
        }
        if !installed("mmdebstrap", "mmdebstrap") {
            return None;
        }
        let name = [&[release], packages].concat().join("-");
        let archive = root().join(format!("target/packaging/{name}.tar"));
        if !archive.exists() {
            let unfinished = archive.with_extension("new.tar");
            fs::create_dir_all(unfinished.parent().expect("a folder")).expect("a folder");
            let output = Command::new("mmdebstrap")
                .args(["--quiet", "--variant=minbase"])
                .args(
                    packages
                        .iter()
                        .map(|package| format!("--include={package}")),
                )
                .arg(release)
                .arg(&unfinished)
                .output()
                .expect("mmdebstrap starts");
            if !output.status.success() {
                eprintln!("{}", text(&output));
                skipped(
                    "debian-packages",
                    "run the tests where Debian's packages can be downloaded",
                );
                return None;
            }
            fs::rename(unfinished, &archive).expect("a move");
        }
        let dir = tempfile::tempdir().expect("a folder");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
        Tmpfs::mount(dir.path(), "size=64k")?;
        run(Command::new("tar")
            .args(["-xf".as_ref(), archive.as_os_str()])
            .args(["-C".as_ref(), dir.path().as_os_str()]));
        Some(Self { dir })
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    /// A shell script in the root, as a user and group.
    fn script(&self, user: &str, script: &str) -> Command {
        // powerview needs /proc for new files without a name.
        const CHROOT: &str = r#"mount -t proc proc "$0/proc"; exec chroot "$@""#;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-euc", CHROOT])
            .arg(self.dir.path())
            .arg(format!("--userspec={user}"))
            .arg(self.dir.path())
            .args(["sh", "-euc", script])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null());
        command
    }

    /// Runs a shell script in the root, which must succeed, and returns its stdout.
    #[track_caller]
    fn sh(&self, script: &str) -> String {
        run(&mut self.script("0:0", script))
    }

    #[track_caller]
    fn install(&self, package: &Path) {
        fs::copy(package, self.path("/tmp/package.deb")).expect("a copy");
        self.sh("dpkg -i /tmp/package.deb");
    }

    /// Mode, owner and group of a file.
    #[track_caller]
    fn rights(&self, path: &str) -> String {
        self.sh(&format!("stat -c '%a %U:%G' {path}"))
            .trim()
            .to_owned()
    }

    fn can_read(&self, user: &str, path: &str) -> bool {
        let mut command = self.script(user, &format!("cat {path} >/dev/null"));
        command.output().expect("chroot starts").status.success()
    }
}

const DEVICE: &str = "/srv/sftpgo/data/acme/site/02001171";

/// Uploads a file again and again while /tmp/go exists, and starts the hook for it. Prints how often.
const UPLOADS: &str = r#"
    n=0
    while [ -e /tmp/go ]; do
      n=$((n + 1))
      file=/srv/sftpgo/data/acme/site/02001171/T302_$n.tsv
      cp /tmp/upload.tsv "$file"
      SFTPGO_ACTION=upload SFTPGO_ACTION_PATH=$file POWERVIEW_HOOK_FOREGROUND=1 \
        /usr/share/powerview/on-upload.sh || echo "upload $n: exit status $?" >>/srv/sftpgo/logs/failures
      powerview --version >/dev/null || echo "call $n: exit status $?" >>/srv/sftpgo/logs/failures
    done
    echo "$n""#;

/// Installs the package of the version before, upgrades it while hooks run, removes and purges it.
fn install_upgrade_remove_and_purge(release: &str) {
    let Some(packages) = packages() else { return };
    let Some(debian) = DebianRoot::new(release, &[]) else {
        return;
    };
    let double = Double::start();

    debian.install(&packages.previous());
    for (path, rights) in [
        ("/srv/sftpgo", "2770 sftpgo:sftpgo"),
        ("/srv/sftpgo/data", "2770 sftpgo:sftpgo"),
        // The bit for the group is inherited.
        ("/srv/sftpgo/logs", "2750 sftpgo:sftpgo"),
        ("/srv/sftpgo/logs/reports", "2750 sftpgo:sftpgo"),
        ("/etc/powerview", "755 root:root"),
        ("/etc/powerview/.env", "640 root:sftpgo"),
    ] {
        assert_eq!(debian.rights(path), rights, "{path}");
    }
    let user = debian.sh("getent passwd sftpgo");
    assert!(
        user.ends_with(":/var/lib/sftpgo:/usr/sbin/nologin\n"),
        "{user}"
    );
    let sftpgo = "sftpgo:sftpgo";
    assert!(debian.can_read(sftpgo, "/etc/powerview/.env"));
    assert!(!debian.can_read(GRAFANA, "/etc/powerview/.env"));
    for file in files_below(&root().join("grafana-automation")) {
        let file = file.strip_prefix(root()).expect("below the root");
        let file = format!("/usr/share/powerview/{}", file.display());
        assert!(debian.can_read(GRAFANA, &file), "{file}");
    }

    // The administrator sets it up.
    let settings = format!(
        "INFLUXDB_HOST={}\nINFLUXDB_ORG={ORG}\nINFLUXDB_ADMIN_TOKEN={TOKEN}\nTSV_TIMEZONE=Europe/Paris\n",
        double.url()
    );
    fs::write(debian.path("/etc/powerview/.env"), &settings).expect("a file");
    debian.sh("echo '# changed' >>/etc/powerview/compose.yaml; chmod 2775 /srv/sftpgo/data");
    let compose = fs::read(debian.path("/etc/powerview/compose.yaml")).expect("a file");
    fs::write(debian.path("/tmp/upload.tsv"), good_file(1, 3)).expect("a file");
    debian.sh(&format!(
        "install -d -o sftpgo -g sftpgo {DEVICE}; touch /tmp/go"
    ));

    // Upgrades, back and forth, while hooks run.
    let mut uploads = debian.script(sftpgo, UPLOADS);
    let uploads = uploads
        .stdout(Stdio::piped())
        .spawn()
        .expect("the uploads start");
    for package in [packages.current(), packages.previous(), packages.current()] {
        debian.install(&package);
    }
    fs::remove_file(debian.path("/tmp/go")).expect("a file");
    let output = uploads.wait_with_output().expect("an output");
    let count: usize = String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .expect("a number of uploads");
    assert!(count >= 5, "only {count} uploads during the upgrades");
    let failures = fs::read_to_string(debian.path("/srv/sftpgo/logs/failures"));
    assert!(
        failures.is_err(),
        "of {count}: {}",
        failures.unwrap_or_default()
    );
    let parsed = debian.sh(&format!("ls {DEVICE}/parsed | grep -c '^T302_.*tsv$'"));
    assert_eq!(parsed.trim(), count.to_string());
    let times: BTreeSet<_> = double.points("acme").iter().map(|p| p.time).collect();
    assert_eq!(times.len(), 3);

    // The upgrade has changed no setting.
    assert_eq!(
        debian.sh("dpkg-query -f '${Version}' -W powerview"),
        VERSION
    );
    let kept = fs::read_to_string(debian.path("/etc/powerview/.env")).expect("a file");
    assert_eq!(kept, settings);
    let kept = fs::read(debian.path("/etc/powerview/compose.yaml")).expect("a file");
    assert_eq!(kept, compose);
    assert_eq!(debian.rights("/srv/sftpgo/data"), "2775 sftpgo:sftpgo");
    assert_eq!(debian.rights("/etc/powerview/.env"), "640 root:sftpgo");

    // Python leaves its own files beside the playbooks.
    debian.sh("mkdir /usr/share/powerview/grafana-automation/playbooks/action_plugins/__pycache__");
    let data = debian.sh("find /srv/sftpgo | sort");
    assert!(
        data.contains("/parsed/T302_1.tsv") && data.contains("/logs/reports/tsv_parser_"),
        "{data}"
    );

    debian.sh("dpkg -r powerview");
    let gone = "! command -v powerview; [ ! -e /usr/share/powerview ]; [ ! -e /usr/lib/systemd/system/powerview-sweep.timer ]";
    debian.sh(gone);
    let kept = fs::read_to_string(debian.path("/etc/powerview/.env")).expect("a file");
    assert_eq!(kept, settings);
    assert_eq!(debian.sh("find /srv/sftpgo | sort"), data);

    let message = debian.sh("dpkg --purge powerview");
    assert!(message.contains("stay in /srv/sftpgo"), "{message}");
    debian.sh("[ ! -e /etc/powerview ]; [ ! -e /etc/logrotate.d/powerview ]; ! dpkg -s powerview 2>/dev/null");
    assert_eq!(
        debian.sh("find /etc /var/lib/systemd -name '*powerview*' 2>/dev/null || true"),
        ""
    );
    assert_eq!(debian.sh("find /srv/sftpgo | sort"), data);
    debian.sh("getent passwd sftpgo");
}

#[test]
#[ignore = "slow: makes a root of Debian"]
fn the_package_is_installed_upgraded_and_removed_on_debian_12() {
    install_upgrade_remove_and_purge("bookworm");
}

#[test]
#[ignore = "slow: makes a root of Debian"]
fn the_package_is_installed_upgraded_and_removed_on_debian_13() {
    install_upgrade_remove_and_purge("trixie");
}

/// Runs the units while systemd is process 1, then upgrades, removes, installs again and purges the package.
const BOOTED: &str = r#"
    trap 'journalctl -o cat -u "powerview-*"' EXIT
    device=/srv/sftpgo/data/acme/site/02001171
    dpkg -i old.deb
    [ "$(systemctl is-enabled powerview-sweep.timer)" = disabled ]
    cp env /etc/powerview/.env
    install -d -o sftpgo -g sftpgo "$device" /var/spool/mails
    systemctl enable --now powerview-sweep.timer powerview-verify.timer

    # A file, and one whose upload goes on.
    cp upload.tsv "$device/T302_250801_000001.tsv"
    head -c -20 upload.tsv >"$device/T302_250801_000002.tsv"
    chown sftpgo: "$device"/T302_*
    systemctl start powerview-sweep.service
    systemctl start powerview-status.service
    systemctl start powerview-alerts.service
    systemctl start powerview-verify.service
    grep '"acme/site/02001171":' /srv/sftpgo/logs/reports/verified.json
    [ -e "$device/parsed/T302_250801_000001.tsv" ] && [ -e "$device/T302_250801_000002.tsv" ]

    # The failure of a sweep is mailed.
    echo damaged >"$device/T302_250801_000003.tsv"
    chown sftpgo: "$device/T302_250801_000003.tsv"
    if systemctl start powerview-sweep.service; then exit 1; fi
    for _ in $(seq 150); do
      if grep -qs 'Subject: PowerView: powerview-sweep.service failed' /var/spool/mails/*; then break; fi
      sleep 0.2
    done
    grep 'Subject: PowerView: powerview-sweep.service failed' /var/spool/mails/*

    dpkg -i new.deb
    [ "$(systemctl is-active powerview-sweep.timer powerview-verify.timer | uniq)" = active ]
    dpkg -r powerview
    [ "$(systemctl is-active powerview-sweep.timer powerview-verify.timer | uniq)" = inactive ]
    systemctl --failed --no-legend
    [ -z "$(systemctl --failed --no-legend)" ]
    dpkg -i new.deb
    [ "$(systemctl is-active powerview-sweep.timer powerview-verify.timer | uniq)" = active ]
    dpkg -P powerview
    find /etc /var/lib/systemd -name '*powerview*'
    [ -z "$(find /etc /var/lib/systemd -name '*powerview*')" ]
    echo passed
"#;

#[test]
#[ignore = "slow: makes a root of Debian and boots it"]
fn the_units_and_the_package_work_where_systemd_runs() {
    const UNIT: &str = "[Service]\nType=oneshot\nWorkingDirectory=/root\nExecStart=sh -eux /root/script\n\
        StandardOutput=append:/root/output\nExecStopPost=systemctl --no-block poweroff\n";
    let Some(packages) = packages() else { return };
    if !installed("systemd-nspawn", "systemd-container") {
        return;
    }
    let Some(debian) = DebianRoot::new("bookworm", &["systemd-sysv"]) else {
        return;
    };
    let double = Double::start();
    for (package, name) in [(packages.previous(), "old"), (packages.current(), "new")] {
        fs::copy(package, debian.path(&format!("/root/{name}.deb"))).expect("a copy");
    }
    let settings = format!(
        "INFLUXDB_HOST={}\nINFLUXDB_ORG={ORG}\nINFLUXDB_ADMIN_TOKEN={TOKEN}\nTSV_TIMEZONE=Europe/Paris\n\
         POWERVIEW_ALERT_EMAIL=anna@example.org\n",
        double.url()
    );
    fs::write(debian.path("/root/env"), settings).expect("a file");
    fs::write(debian.path("/root/upload.tsv"), good_file(1, 3)).expect("a file");
    fs::write(debian.path("/root/script"), BOOTED).expect("a file");
    // A mail server writes to its queue.
    let sendmail = "#!/bin/sh\ncat >/var/spool/mails/$$\n";
    put_program(&debian.path("/usr/sbin/sendmail"), sendmail);
    let unit = debian.path("/etc/systemd/system/test.service");
    fs::write(unit, UNIT).expect("a file");
    debian.sh("systemctl --quiet add-wants multi-user.target test.service");

    let console = Command::new("timeout")
        .args(["300", "systemd-nspawn", "--quiet", "--boot"])
        .args(["--register=no", "--keep-unit", "--machine=powerview"])
        .arg("--directory")
        .arg(debian.dir.path())
        .stdin(Stdio::null())
        .output()
        .expect("systemd-nspawn starts");
    let Ok(output) = fs::read_to_string(debian.path("/root/output")) else {
        eprintln!("{}", text(&console));
        return skipped("boot", "run the tests where systemd-nspawn can boot a root");
    };
    assert!(output.contains("\npassed\n"), "{output}");
    let times: BTreeSet<_> = double.points("acme").iter().map(|p| p.time).collect();
    assert_eq!(times.len(), 3);
}
