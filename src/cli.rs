//! The command line as it is typed. Source: docs/specification.md, section 8.

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  powerview --dataFolder /srv/sftpgo/data
        everything that waits below the folder (cron, backfill)
  powerview --dataFolder /srv/sftpgo/data --tsvFile /srv/sftpgo/data/acme/site/02001084/T302.tsv
        one file, now (the upload hook; by hand also from parsed/ or error/)
  powerview -d data --line-protocol-dir out --timezone Europe/Paris
        no server: line protocol into out/<bucket>.lp
  powerview -d data --dry-run
        what would be done, as JSON on stdout; nothing is written, moved or sent
  powerview check -d /srv/sftpgo/data
        is everything set up?
  powerview status -d /srv/sftpgo/data --silent-after 26h
        does every logger arrive?

Environment (or .env; what is set in the environment wins):
  INFLUXDB_HOST           server, http(s)://name:port (else INFLUXDB_URL)
  INFLUXDB_ADMIN_TOKEN    token that may create buckets and write
  INFLUXDB_ORG            organisation
  TSV_TIMEZONE            as --timezone          TSV_RETRY_FOR   as --retry-for
  TSV_ON_OUTAGE           as --on-outage         TSV_JOBS        as --jobs
  TSV_REPORT_DIR          reports (default <data>/../logs/reports)
  TSV_META_BUCKET         bucket for reports (default powerview_meta)
  TSV_INCOMPLETE_GRACE_S  a file cut off and younger than this stays in a sweep (default 600)
  TSV_LOCK_WAIT_S         longest wait for another process on a device's folder (default 120)
  TSV_CONNECT_TIMEOUT_S, TSV_REQUEST_TIMEOUT_S   seconds (default 5 and 30)
  TSV_BATCH_LINES         points a request (default 10000)
  TSV_GZIP                0 sends bodies uncompressed (default 1)
  TSV_LOG_LEVEL           DEBUG, INFO, WARNING or ERROR (default INFO)
  TSV_HEARTBEAT_URL       asked for after a sweep that ended well (default: none)

Exit: 0 all files done, 1 at least one failed, 2 wrong usage or configuration.";

/// Writes the measurements of MV2 loggers to InfluxDB 2.
#[derive(Debug, Parser)]
#[command(
    name = "powerview",
    version,
    about = "Writes the measurements of MV2 loggers to InfluxDB 2",
    after_help = EXAMPLES,
    max_term_width = 110,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Cli {
    /// What to do, where it is not to ingest.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of an ingestion.
    #[command(flatten)]
    pub ingest: Ingest,
}

/// What `powerview` does beside ingesting.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look whether everything is set up: one line a point, exit 1 if one fails
    Check(Check),
    /// Show how every device is doing, the worst first; exit 1 if something is wrong
    Status(Status),
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Options of an ingestion.
#[derive(Debug, Args)]
pub struct Ingest {
    /// Folder of the data: <DIR>/<company>/<campaign>/<device>/*.tsv
    #[arg(
        short = 'd',
        long = "dataFolder",
        alias = "data-folder",
        value_name = "DIR",
        required = true
    )]
    pub data_folder: Option<PathBuf>,
    /// Take this file only, wherever it lies below the folder; may be given several times
    #[arg(short = 't', long = "tsvFile", alias = "tsv-file", value_name = "FILE")]
    pub tsv_file: Vec<PathBuf>,
    /// Only say what would be done: JSON on stdout, nothing written, moved or sent
    #[arg(long)]
    pub dry_run: bool,
    /// Also take the files in error/ that failed for the server's sake
    #[arg(long)]
    pub retry_errors: bool,
    /// Write line protocol to <DIR>/<bucket>.lp instead of to a server
    #[arg(long, value_name = "DIR")]
    pub line_protocol_dir: Option<PathBuf>,
    /// How many devices at a time (default: the number of processors, at most 4)
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// Options that `check` has too.
    #[command(flatten)]
    pub common: Common,
}

/// Options of `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Folder of the data
    #[arg(
        short = 'd',
        long = "dataFolder",
        alias = "data-folder",
        value_name = "DIR"
    )]
    pub data_folder: Option<PathBuf>,
    /// Options that an ingestion has too.
    #[command(flatten)]
    pub common: Common,
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Folder of the data
    #[arg(
        short = 'd',
        long = "dataFolder",
        alias = "data-folder",
        value_name = "DIR",
        required = true
    )]
    pub data_folder: Option<PathBuf>,
    /// A device without a new file for this long is silent: 26h, 90m, 2d
    #[arg(long, value_name = "TIME", default_value = "26h", value_parser = humantime::parse_duration)]
    pub silent_after: std::time::Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Options that an ingestion has too.
    #[command(flatten)]
    pub common: Common,
}

/// Options of more than one command.
#[derive(Debug, Args)]
pub struct Common {
    /// What becomes of a file when the server stays away: moved to error/ and marked, or kept for the next run
    #[arg(long, value_name = "WHAT")]
    pub on_outage: Option<OnOutage>,
    /// How long a server that fails is asked again, in seconds for the whole run (default 60)
    #[arg(long, value_name = "SECONDS")]
    pub retry_for: Option<String>,
    /// Zone of the times in files that name none, such as Europe/Paris (default: the machine's)
    #[arg(long, value_name = "ZONE")]
    pub timezone: Option<String>,
    /// File to read variables from (default: .env in the working directory)
    #[arg(long, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
    /// Say more; twice: everything
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Say only what failed
    #[arg(short, long)]
    pub quiet: bool,
}

/// What becomes of a file when the server stays away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnOutage {
    /// Moved to `error/`, marked retryable.
    Error,
    /// Left where it is, for the next run.
    Keep,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_old_scripts_calls_are_understood() {
        for call in [
            vec!["powerview", "--dataFolder", "D"],
            vec!["powerview", "--dataFolder", "D", "--tsvFile", "F"],
            vec!["powerview", "--data-folder=D", "--tsv-file=F", "-t", "G"],
        ] {
            let cli = Cli::try_parse_from(call).unwrap();
            assert_eq!(cli.ingest.data_folder, Some(PathBuf::from("D")));
        }
        assert!(Cli::try_parse_from(["powerview"]).is_err());
        assert!(Cli::try_parse_from(["powerview", "check"]).is_ok());
    }
}
