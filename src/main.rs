//! The binary `powerview`.
#![forbid(unsafe_code)]

use clap::Parser as _;
use powerview::app;
use powerview::cli::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    app::run(&Cli::parse())
}
