//! `powerview man`: manual pages, which are generated for packages.

use crate::cli::{Cli, EXAMPLES, EXIT_STATUS, describe_default};
use crate::config::{DURATION_FORMS, env_vars};
use crate::exit_code::ExitCode;
use crate::sanitize::sanitize;
use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_mangen::roff::{Roff, bold, roman};
use std::fs::File;
use std::path::Path;

/// Writes a page for `powerview` and one for each subcommand to a folder.
///
/// # Errors
/// A page cannot be written.
pub(super) fn man(dir: &Path) -> anyhow::Result<ExitCode> {
    write_pages(dir).with_context(|| {
        let dir = sanitize(dir);
        format!("cannot write the manual pages to {dir}; name a folder that is writable")
    })?;
    Ok(ExitCode::Success)
}

fn write_pages(dir: &Path) -> std::io::Result<()> {
    // The text after the options has sections of its own, and the long version names the database of this machine.
    let command = Cli::command().after_help(None).long_version(None);
    clap_mangen::generate_to(command, dir)?;
    let mut page = File::options().append(true).open(dir.join("powerview.1"))?;
    more_sections().to_writer(&mut page)
}

/// The sections of the main page that `--help` prints after the options.
fn more_sections() -> Roff {
    let mut page = Roff::new();
    page.control("SH", ["ENVIRONMENT"]);
    for var in env_vars::ALL {
        page.control("TP", []);
        page.text([bold(var.name)]);
        page.text([roman(var.description() + &describe_default(var))]);
    }
    page.control("PP", []);
    page.text([roman(format!("Durations are written {DURATION_FORMS}."))]);
    for text in [EXIT_STATUS, EXAMPLES] {
        let (title, lines) = text.split_once(":\n").unwrap_or(("", text));
        page.control("SH", [title.to_uppercase().as_str()]);
        page.control("nf", []);
        for line in lines.lines() {
            page.text([roman(line)]);
        }
        page.control("fi", []);
    }
    page
}
