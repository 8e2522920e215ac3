//! The `powerview` binary.
#![forbid(unsafe_code)]

use clap::Parser as _;
use powerview::cli::Cli;
use powerview::commands;
use std::process::ExitCode;

fn main() -> ExitCode {
    commands::run(&Cli::parse())
}
