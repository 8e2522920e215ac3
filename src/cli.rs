//! Command-line interface. See docs/specification.md, section 8.

use crate::config::env_vars::{self, DefaultValue, EnvVar, OnOutage};
use crate::config::{DURATION_FORMS, parse_duration, parse_instant, parse_number};
use crate::data_dir::Shard;
use crate::version::LONG_VERSION;
use chrono::Utc;
use clap::{ArgAction, Args, Parser, Subcommand};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// Example calls.
pub(crate) const EXAMPLES: &str = "\
Examples:
  powerview --dataFolder /srv/sftpgo/data
        ingest all files waiting in the data folder (cron job, backfill)
  powerview --dataFolder /srv/sftpgo/data --tsvFile /srv/sftpgo/data/acme/site/02001084/T302.tsv
        ingest one file (upload hook, or by hand; also a file in parsed/ or error/)
  powerview -d data -t data/acme/site1 data/acme/site2/02001084/error
        ingest the files waiting in a campaign, and all files in the folder error/ of a device
  powerview -d data --line-protocol-dir out --timezone Europe/Paris
        write line protocol to out/<bucket>.lp; no server is needed
  powerview -d data --dry-run
        print the report as JSON without writing, moving or sending anything
  powerview check -d /srv/sftpgo/data
        check configuration, permissions and server
  powerview status -d /srv/sftpgo/data --silent-after 26h
        list all loggers and their problems";

/// The exit statuses.
pub(crate) const EXIT_STATUS: &str = "\
Exit status:
  0  all files are ingested, or there were none
  1  at least one file failed, or the run was stopped
  2  wrong usage or configuration";

/// The text after the options: examples, environment variables and exit statuses.
fn after_help() -> String {
    let mut variables = String::new();
    for var in env_vars::ALL {
        // Writing to a string does not fail.
        let _ = writeln!(
            variables,
            "  {:22}  {}{}",
            var.name,
            var.description(),
            describe_default(var)
        );
    }
    format!(
        "{EXAMPLES}\n\n\
         Environment (read from .env too; the environment takes precedence over .env, and options over both):\n\
         {variables}\n\
         Durations are written {DURATION_FORMS}.\n\n\
         {EXIT_STATUS}"
    )
}

/// What to append to the description of a variable: its default, or that it is required.
pub(crate) fn describe_default(var: &EnvVar) -> String {
    match &var.default {
        DefaultValue::Unset => String::new(),
        DefaultValue::Required => " (required)".to_owned(),
        default => format!(" (default: {default})"),
    }
}

/// The help of an option that takes precedence over a variable.
fn option_help(var: &EnvVar) -> String {
    let (first, rest) = var.help.split_at(1);
    let help = first.to_uppercase() + rest;
    format!("{help} [env: {}] [default: {}]", var.name, var.default)
}

/// The help of the option for one of several hosts.
fn shard_help() -> String {
    format!(
        "Only the companies of one of several hosts, such as 2/5 for the second of five, or 2,3/5 [env: {}]",
        env_vars::TSV_SHARD.name
    )
}

/// Ingests measurement files of MV2 loggers into InfluxDB 2.
#[derive(Debug, Parser)]
#[command(
    name = "powerview",
    version,
    long_version = LONG_VERSION.as_str(),
    about = "Ingests measurement files of MV2 loggers into InfluxDB 2",
    after_help = after_help(),
    max_term_width = 110,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Cli {
    /// Subcommand; without one, the program ingests.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of the ingestion.
    #[command(flatten)]
    pub ingest: Ingest,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check configuration, permissions and server; one line per check, exit status 1 if one fails
    Check(Check),
    /// List all devices and their problems, most severe first; exit status 1 if there are any
    Status(Status),
    /// Compare the database with the files in parsed/; exit status 1 if they differ
    Verify(Verify),
    /// Make a company's bucket anew from its files, and swap it in
    Rebuild(Rebuild),
    /// Bring the hourly summaries of a company, or of all, up to date
    Rollup(Rollup),
    /// Write, check or apply channels.csv, the catalogue of a campaign's channels; exit status 1 if it has problems
    Channels(Channels),
    /// Print a shell completion script
    Completions {
        /// Shell to complete for
        shell: clap_complete::Shell,
    },
    /// Write the manual pages to a folder
    #[command(hide = true)]
    Man {
        /// Folder to write to
        dir: PathBuf,
    },
}

/// Options of the ingestion.
#[derive(Debug, Args)]
pub struct Ingest {
    /// Data folder; files are at <DIR>/<company>/<campaign>/<device>/*.tsv
    #[arg(
        short = 'd',
        long = "dataFolder",
        alias = "data-folder",
        value_name = "DIR",
        required = true
    )]
    pub data_folder: Option<PathBuf>,
    /// Ingest only these files, anywhere below the data folder, and the files waiting in these folders; can be repeated
    #[arg(
        short = 't',
        long = "tsvFile",
        alias = "tsv-file",
        value_name = "PATH",
        num_args = 1..
    )]
    pub tsv_file: Vec<PathBuf>,
    /// Print the report as JSON to stdout without writing, moving or sending anything
    #[arg(long)]
    pub dry_run: bool,
    /// Also ingest the files in error/ that failed because of the server
    #[arg(long)]
    pub retry_errors: bool,
    /// Write line protocol to <DIR>/<bucket>.lp instead of sending it to a server
    #[arg(long, value_name = "DIR")]
    pub line_protocol_dir: Option<PathBuf>,
    /// Number of devices processed in parallel.
    #[arg(
        long,
        value_name = "N",
        help = option_help(&env_vars::TSV_JOBS),
        value_parser = |text: &str| parse_number(text, &env_vars::JOBS)
    )]
    pub jobs: Option<u32>,
    /// Ingest only companies of this shard.
    #[arg(long, value_name = "N/COUNT", help = shard_help())]
    pub shard: Option<Shard>,
    /// What to do with files during an outage.
    #[arg(long, value_name = "ACTION", help = option_help(&env_vars::TSV_ON_OUTAGE))]
    pub on_outage: Option<OnOutage>,
    /// Options for a server that fails.
    #[command(flatten)]
    pub server: ServerOptions,
    /// Options of several commands.
    #[command(flatten)]
    pub common: Common,
}

/// Options of `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Data folder
    #[arg(
        short = 'd',
        long = "dataFolder",
        alias = "data-folder",
        value_name = "DIR"
    )]
    pub data_folder: Option<PathBuf>,
    /// Options for a server that fails.
    #[command(flatten)]
    pub server: ServerOptions,
    /// Options of several commands.
    #[command(flatten)]
    pub common: Common,
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Where the files are.
    #[command(flatten)]
    pub data_folder: DataFolder,
    /// Age of the newest file after which a device counts as silent, such as 26h, 90m or 2d
    #[arg(long, value_name = "DURATION", default_value = "26h", value_parser = parse_duration)]
    pub silent_after: Duration,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// Accept the changed or suspect layout of this device, given as <company>/<campaign>/<device>; can be repeated
    #[arg(long, value_name = "DEVICE_PATH", conflicts_with = "json")]
    pub acknowledge: Vec<PathBuf>,
    /// Report no problem of a logger that is taken down, until it sends again; can be repeated
    #[arg(long, value_name = "DEVICE_PATH", conflicts_with = "json")]
    pub retire: Vec<PathBuf>,
    /// Undo --retire; can be repeated
    #[arg(long, value_name = "DEVICE_PATH", conflicts_with_all = ["json", "retire"])]
    pub unretire: Vec<PathBuf>,
    /// Options of several commands.
    #[command(flatten)]
    pub common: Common,
}

impl Status {
    /// Whether devices are changed instead of listed.
    pub(crate) fn changes_devices(&self) -> bool {
        !(self.acknowledge.is_empty() && self.retire.is_empty() && self.unretire.is_empty())
    }
}

/// Options of `verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Where the files are.
    #[command(flatten)]
    pub data_folder: DataFolder,
    /// Only this company
    #[arg(long, value_name = "NAME")]
    pub company: Option<String>,
    /// Only this campaign of the company
    #[arg(long, value_name = "NAME", requires = "company")]
    pub campaign: Option<String>,
    /// Only points from this time on: a day in UTC such as 2026-03-01, a time such as 2026-03-01T12:00:00Z, or a duration before
    /// now such as 8d
    #[arg(long, value_name = "DATE", value_parser = |text: &str| parse_instant(text, Utc::now()))]
    pub since: Option<i64>,
    /// Write the points that are missing or different. Points that no file gives are only reported
    #[arg(long)]
    pub repair: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// Options for a server that fails.
    #[command(flatten)]
    pub server: ServerOptions,
    /// Options of several commands.
    #[command(flatten)]
    pub common: Common,
}

/// Options of `rebuild`.
#[expect(clippy::struct_excessive_bools, reason = "each is an option")]
#[derive(Debug, Args)]
pub struct Rebuild {
    /// Where the files are.
    #[command(flatten)]
    pub data_folder: DataFolder,
    /// Company whose bucket is made anew
    #[arg(long, value_name = "NAME")]
    pub company: String,
    /// Only say what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Swap without asking, also if the bucket has points that no file explains
    #[arg(long)]
    pub yes: bool,
    /// Copy the points that no file explains to the new bucket
    #[arg(long)]
    pub keep_unexplained: bool,
    /// Give the former bucket its name again, with the points of files that arrived since
    #[arg(long, conflicts_with_all = ["dry_run", "keep_unexplained"])]
    pub undo: bool,
    /// Options for a server that fails.
    #[command(flatten)]
    pub server: ServerOptions,
    /// Options of several commands.
    #[command(flatten)]
    pub common: Common,
}

/// Options of `rollup`.
#[derive(Debug, Args)]
pub struct Rollup {
    /// Data folder: the days that ingestions have left are computed first, however old they are
    #[arg(
        short = 'd',
        long = "dataFolder",
        alias = "data-folder",
        value_name = "DIR"
    )]
    pub data_folder: Option<PathBuf>,
    /// Only this company
    #[arg(long, value_name = "NAME")]
    pub company: Option<String>,
    /// Only companies of this shard.
    #[arg(long, value_name = "N/COUNT", conflicts_with = "company", help = shard_help())]
    pub shard: Option<Shard>,
    /// Only from this day on: a day in UTC such as 2026-03-01, a time, or a duration before now such as 8d
    #[arg(long, value_name = "DATE", value_parser = |text: &str| parse_instant(text, Utc::now()))]
    pub since: Option<i64>,
    /// Options for a server that fails.
    #[command(flatten)]
    pub server: ServerOptions,
    /// Options of several commands.
    #[command(flatten)]
    pub common: Common,
}

/// Options of `channels`.
#[derive(Debug, Args)]
pub struct Channels {
    /// Where the files are.
    #[command(flatten)]
    pub data_folder: DataFolder,
    /// Company
    #[arg(long, value_name = "NAME")]
    pub company: String,
    /// Campaign of the company
    #[arg(long, value_name = "NAME")]
    pub campaign: String,
    /// Only say what is wrong with channels.csv, a line per problem. Without this and --apply, it is written, or the channels
    /// that it lacks are added at its end
    #[arg(long, conflicts_with = "apply")]
    pub check: bool,
    /// Check channels.csv, and have all charts use it. One with problems changes nothing; channels.error.txt beside it says why
    #[arg(long)]
    pub apply: bool,
    /// Options for a server that fails.
    #[command(flatten)]
    pub server: ServerOptions,
    /// Options of several commands.
    #[command(flatten)]
    pub common: Common,
}

/// The data folder of a command that cannot do without one.
#[derive(Debug, Args)]
pub struct DataFolder {
    /// Data folder
    #[arg(
        short = 'd',
        long = "dataFolder",
        alias = "data-folder",
        value_name = "DIR"
    )]
    pub path: PathBuf,
}

/// Options for a server that fails.
#[derive(Debug, Args)]
pub struct ServerOptions {
    /// Total time per run spent on retrying failed requests.
    #[arg(
        long,
        value_name = "DURATION",
        help = option_help(&env_vars::TSV_RETRY_FOR),
        value_parser = parse_duration
    )]
    pub retry_for: Option<Duration>,
}

/// Options of several commands.
#[derive(Debug, Args)]
pub struct Common {
    /// Time zone of files that name none.
    #[arg(long, value_name = "ZONE", help = option_help(&env_vars::TSV_TIMEZONE))]
    pub timezone: Option<String>,
    /// File with environment variables.
    #[arg(
        long,
        value_name = "FILE",
        help = "Read environment variables from this file [default: the first .env in the working directory, \
                $POWERVIEW_BASE, /etc/powerview and beside the binary]"
    )]
    pub env_file: Option<PathBuf>,
    /// Log at debug level; -vv logs at trace level
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Print failures only
    #[arg(short, long)]
    pub quiet: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_definition_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_old_scripts_calls_are_accepted() {
        for call in [
            vec!["powerview", "--dataFolder", "D"],
            vec!["powerview", "--dataFolder", "D", "--tsvFile", "F"],
            vec!["powerview", "--data-folder=D", "--tsv-file=F", "-t", "G"],
            vec!["powerview", "-t", "F", "G", "-d", "D", "-t", "H"],
        ] {
            let cli = Cli::try_parse_from(call).unwrap();
            assert_eq!(cli.ingest.data_folder, Some(PathBuf::from("D")));
        }
        assert!(Cli::try_parse_from(["powerview"]).is_err());
        assert!(Cli::try_parse_from(["powerview", "check"]).is_ok());
    }
}
