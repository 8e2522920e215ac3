//! `powerview channels`: the catalogue of the channels of a campaign. See docs/specification.md, section 12.

mod changed;

pub(super) use self::changed::apply_changed;

use super::comparison::{ensure_folder, ensure_influx2, open_data_folder};
use super::eprint_line;
use crate::catalogue::{
    CatalogueError, CatalogueOf, MAX_ENTRIES, MAX_SIZE, Missing, Outcome, Problems, Sources, Target,
};
use crate::cli;
use crate::config::{self, ConfigError, Environment, env_vars};
use crate::data_dir::{CATALOGUE_FILE, Campaign, Company, REFUSAL_FILE};
use crate::exit_code::ExitCode;
use crate::logging::init_logging;
use crate::report::{Progress, counted};
use crate::rollup::{GapLimit, Rollup};
use crate::sanitize::sanitize;
use crate::shutdown::Shutdown;
use crate::sink::{Destination, InfluxReader, ServerSettings, Sink, Stream};
use std::cell::RefCell;
use std::io::Write as _;
use std::path::Path;

/// Writes, checks or applies the catalogue of a campaign; exit status 1 if it has problems or cannot be applied.
///
/// # Errors
/// A setting is unusable, or a file or folder of the campaign cannot be read or written.
pub(super) fn channels(args: &cli::Channels) -> anyhow::Result<ExitCode> {
    let env = Environment::load(args.common.env_file.as_deref())?;
    init_logging(&args.common, &env, &Progress::on_terminal(false))?;
    let folder = config::data_folder(Some(&args.data_folder.path))?;
    let meta_bucket = config::meta_bucket(&env)?;
    let option =
        |option: &str, error: &dyn std::fmt::Display| ConfigError(format!("{option}: {error}"));
    let company = Company::new(args.company.as_ref(), &meta_bucket)
        .map_err(|error| option("--company", &error))?;
    let campaign =
        Campaign::new(args.campaign.as_ref()).map_err(|error| option("--campaign", &error))?;
    ensure_folder(&folder, "--company", &[company.as_str()])?;
    ensure_folder(
        &folder,
        "--campaign",
        &[company.as_str(), campaign.as_str()],
    )?;
    let zones = config::file_zones(args.common.timezone.as_deref(), &env)?;
    let data = open_data_folder(&folder, config::hosts_for(&env, Some(company.as_str()))?)?;
    let stop = Shutdown::on_signals()?;
    let catalogue = CatalogueOf {
        data: &data,
        company: &company,
        campaign: &campaign,
        zones: &zones,
        lock_wait: config::lock_wait(&env)?,
        stop: &stop,
    };
    let command = Channels {
        name: sanitize(Path::new(company.as_str()).join(campaign.as_str())),
        catalogue,
        env: &env,
    };
    if args.apply {
        let server = config::influx(&args.server, &env)?;
        return command.apply(server);
    }
    let server = has_server(&env)
        .then(|| config::influx(&args.server, &env))
        .transpose()?;
    let sources = command.sources(server)?;
    if args.check {
        command.check(&sources)
    } else {
        command.extend(&sources)
    }
}

/// Whether a server is configured.
fn has_server(env: &Environment) -> bool {
    let hosts = [&env_vars::INFLUXDB_HOST, &env_vars::INFLUXDB_URL];
    hosts.iter().any(|var| env.get(var).is_some())
}

/// A call of the command.
struct Channels<'a> {
    /// Company and campaign, for messages.
    name: String,
    catalogue: CatalogueOf<'a>,
    env: &'a Environment,
}

impl Channels<'_> {
    /// Finds the channels. Those of the database are left out if the server gives no answer.
    fn sources(&self, server: Option<ServerSettings>) -> anyhow::Result<Sources> {
        let mut why = "no server is configured".to_owned();
        if let Some(server) = server {
            let source = InfluxReader::new(&server, self.catalogue.stop)?;
            if source.is_influx3() {
                "it is InfluxDB 3".clone_into(&mut why);
            } else {
                match self.catalogue.sources(Some(&source)) {
                    Ok(sources) => return Ok(warned(sources)),
                    Err(error) => why = error.to_string(),
                }
            }
        }
        tracing::warn!(
            "{}: the channels of the database are not known, only those of the newest files: {why}",
            self.name
        );
        Ok(warned(self.catalogue.sources(None)?))
    }

    fn extend(&self, sources: &Sources) -> anyhow::Result<ExitCode> {
        let extended = match self.catalogue.extend(&sources.known) {
            Ok(extended) => extended,
            Err(CatalogueError::Problems(problems)) => {
                self.print_problems(&problems);
                eprint_line(&format!(
                    "{}: {CATALOGUE_FILE} is not changed; correct it, then run this again",
                    self.name
                ));
                return Ok(ExitCode::GeneralError);
            }
            Err(error) => return Err(error.into()),
        };
        print(&format!(
            "{}/{CATALOGUE_FILE}: {} added, {} before\n",
            self.name,
            counted(extended.added as u64, "channel"),
            counted(extended.before as u64, "line")
        ));
        if extended.left_out > 0 {
            tracing::warn!(
                "{}/{CATALOGUE_FILE}: {} not added, because it would have more than {MAX_ENTRIES} lines or {} MiB; remove lines of channels that need no name",
                self.name,
                were(extended.left_out),
                MAX_SIZE >> 20
            );
        }
        Ok(ExitCode::Success)
    }

    fn check(&self, sources: &Sources) -> anyhow::Result<ExitCode> {
        let Some(checked) = self.catalogue.check(&sources.known)? else {
            return Ok(self.missing());
        };
        for warning in &checked.warnings {
            tracing::warn!("{}/{CATALOGUE_FILE}: {warning}", self.name);
        }
        match checked.result {
            Ok(catalogue) => {
                print(&format!(
                    "{}/{CATALOGUE_FILE}: {}, no problem\n",
                    self.name,
                    entries(catalogue.len())
                ));
                Ok(ExitCode::Success)
            }
            Err(problems) => {
                self.print_problems(&problems);
                Ok(ExitCode::GeneralError)
            }
        }
    }

    fn apply(&self, server: ServerSettings) -> anyhow::Result<ExitCode> {
        let gap_limit = config::rollup(self.env)?;
        let batch_lines = config::batch_options(self.env)?.lines;
        let outcome = apply(&self.catalogue, server, (gap_limit, batch_lines), false)?;
        Ok(match report(&self.name, outcome, "run it again") {
            Report::Done(message) => {
                print(&format!("{message}\n"));
                ExitCode::Success
            }
            Report::Nothing => self.missing(),
            Report::Failed(mut lines) => {
                let result = lines.pop();
                for problem in lines {
                    print(&format!("{problem}\n"));
                }
                eprint_line(&result.unwrap_or_default());
                ExitCode::GeneralError
            }
        })
    }

    fn missing(&self) -> ExitCode {
        eprint_line(&format!(
            "{}: there is no {CATALOGUE_FILE}; powerview channels without --check and --apply writes it",
            self.name
        ));
        ExitCode::GeneralError
    }

    fn print_problems(&self, problems: &Problems) {
        for problem in problems.english() {
            print(&format!("{}/{CATALOGUE_FILE}: {problem}\n", self.name));
        }
    }
}

/// Applies a catalogue. `options` are the gap limit of hourly summaries, without which there are none, and the maximum number
/// of points per request. With `only_new`, a catalogue that was applied or refused before is left alone.
fn apply(
    catalogue: &CatalogueOf<'_>,
    server: ServerSettings,
    (gap_limit, batch_lines): (Option<GapLimit>, u32),
    only_new: bool,
) -> anyhow::Result<Outcome> {
    let source = InfluxReader::new(&server, catalogue.stop)?;
    ensure_influx2(&source, "channels --apply")?;
    let sink = Sink::open(&Destination::Influx(server), catalogue.stop)?;
    let rollup = gap_limit.map(|gap_limit| Rollup {
        source: &source,
        sink: &sink,
        stream: Stream::Measurements,
        gap_limit,
        batch_lines,
        notes: RefCell::default(),
    });
    let target = Target {
        source: &source,
        sink: &sink,
        rollup: rollup.as_ref(),
    };
    let outcome = catalogue.apply(&target, only_new)?;
    if let Some(rollup) = &rollup {
        rollup.log_notes(catalogue.company.as_str());
    }
    Ok(outcome)
}

/// What a person is told about a catalogue.
enum Report {
    /// It is applied.
    Done(String),
    /// There is none, or it was applied or refused before.
    Nothing,
    /// It is not applied, or not wholly: its problems, and last what to do.
    Failed(Vec<String>),
}

/// Says what became of the catalogue of a campaign, and logs warnings. `name` is that of the campaign, and `again` says how
/// it is tried again.
fn report(name: &str, outcome: Outcome, again: &str) -> Report {
    let file = format!("{name}/{CATALOGUE_FILE}");
    let failed = |message: &str| Report::Failed(vec![format!("{file}{message}")]);
    // Some reasons end with what to do.
    let then = |reason: &str| {
        let reason = reason.strip_suffix("; run it again").unwrap_or(reason);
        format!("{reason}; {again}")
    };
    let warn = |warnings: Vec<String>| {
        for warning in warnings {
            tracing::warn!("{file}: {warning}");
        }
    };
    match outcome {
        Outcome::Applied {
            entries: count,
            warnings,
        } => {
            warn(warnings);
            Report::Done(format!("{file}: {} applied", entries(count)))
        }
        Outcome::Incomplete {
            entries: count,
            warnings,
            missing,
        } => {
            warn(warnings);
            let missing = match missing {
                Missing::Summaries(reason) => format!(
                    "the hourly summaries of virtual channels are not up to date: {}, or run powerview rollup",
                    then(&reason)
                ),
                Missing::Note(reason) => {
                    format!("this cannot be noted in its folder: {}", then(&reason))
                }
            };
            failed(&format!(": {} applied, but {missing}", entries(count)))
        }
        Outcome::Unchanged | Outcome::Missing => Report::Nothing,
        Outcome::Refused(problems) => {
            let mut lines: Vec<_> = problems
                .english()
                .into_iter()
                .map(|problem| format!("{file}: {problem}"))
                .collect();
            lines.push(format!(
                "{file} is not applied: {} in it; nothing has changed, and {REFUSAL_FILE} beside it says so",
                counted(problems.len() as u64, "problem")
            ));
            Report::Failed(lines)
        }
        Outcome::Writing => failed(&format!(" is not applied: {}", then("it is being written"))),
        Outcome::Busy(reason) => failed(&format!(" is not applied: {}", then(&reason))),
        Outcome::Unavailable(reason) => failed(&format!(
            " is not applied: the server is not available: {}",
            then(&format!("{reason}; nothing has changed"))
        )),
        Outcome::Unconfirmed(reason) => failed(&format!(
            ": the server has not confirmed that it has the entries, and may have them or not: {}",
            then(&reason)
        )),
        Outcome::Failed(reason) => failed(&format!(" is not applied: {reason}")),
    }
}

/// A number of channels before what was done with them.
fn were(channels: usize) -> String {
    let verb = if channels == 1 { "was" } else { "were" };
    format!("{} {verb}", counted(channels as u64, "channel"))
}

fn entries(count: usize) -> String {
    if count == 1 {
        "1 entry".to_owned()
    } else {
        format!("{count} entries")
    }
}

/// Logs which devices could not be looked at, and which channels no line can be about.
fn warned(sources: Sources) -> Sources {
    for message in sources.known.unnameable() {
        tracing::warn!("{message}");
    }
    for failure in &sources.failures {
        tracing::warn!("channels of a device are not known: {failure}");
    }
    sources
}

/// Writes to stdout. Write errors are ignored: the exit code has the result too.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages about an outcome.
    fn said(outcome: Outcome) -> String {
        match report("acme/site", outcome, "run it again") {
            Report::Done(message) => message,
            Report::Nothing => String::new(),
            Report::Failed(lines) => lines.join("\n"),
        }
    }

    #[test]
    fn what_to_do_is_said_once() {
        let stopped = || "the run was stopped; run it again".to_owned();
        for (outcome, expected) in [
            (
                Outcome::Busy(stopped()),
                " is not applied: the run was stopped; run it again",
            ),
            (
                Outcome::Writing,
                " is not applied: it is being written; run it again",
            ),
            (
                Outcome::Unavailable("no answer".to_owned()),
                " is not applied: the server is not available: no answer; nothing has changed; run it again",
            ),
            (
                Outcome::Unconfirmed(stopped()),
                ": the server has not confirmed that it has the entries, and may have them or not: the run was stopped; run it again",
            ),
            (
                Outcome::Incomplete {
                    entries: 2,
                    warnings: Vec::new(),
                    missing: Missing::Summaries(stopped()),
                },
                ": 2 entries applied, but the hourly summaries of virtual channels are not up to date: the run was stopped; run it again, or run powerview rollup",
            ),
            (
                Outcome::Incomplete {
                    entries: 1,
                    warnings: Vec::new(),
                    missing: Missing::Note(
                        "campaign folder is locked by process 5 (waited 0 s)".to_owned(),
                    ),
                },
                ": 1 entry applied, but this cannot be noted in its folder: campaign folder is locked by process 5 (waited 0 s); run it again",
            ),
        ] {
            assert_eq!(said(outcome), format!("acme/site/channels.csv{expected}"));
        }
    }
}
