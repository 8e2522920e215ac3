//! PowerView ingests the measurement files of MV2 loggers into InfluxDB 2.
//!
//! Data flows one way:
//!
//! ```text
//! commands -> pipeline -> { data_dir, logger_file, points, sink, report }
//! ```
//!
//! - [`commands`] runs the subcommands. It resolves the command line ([`cli`]) and the environment to settings
//!   ([`config`]) and starts the log ([`logging`]).
//! - [`pipeline`] is the only module that knows all stages. For each device it claims files, converts them, sends the
//!   points, moves the files and records the outcomes.
//! - [`data_dir`] lists, locks, opens and moves files below the data folder.
//! - [`logger_file`] parses logger files: bytes in, rows out. [`time_zone`] provides the rules of time zones.
//! - [`layout`] recognises columns that changed their meaning.
//! - [`points`] encodes rows as batches of line protocol.
//! - [`sink`] writes batches to InfluxDB 2, with retries, or to line protocol files.
//! - [`catalogue`] reads, checks and applies what people say about the channels of a campaign.
//! - [`verify`] compares a database with the files, and [`rebuild`] makes a bucket anew from them.
//! - [`report`] collects the outcomes: JSON report, meta points and totals, from which the exit code ([`exit_code`])
//!   follows.
//!
//! [`http`], [`remedy`], [`sanitize`] and [`shutdown`] are used by several layers. See docs/specification.md for the behaviour.
#![deny(unsafe_code, unreachable_pub)]
#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the numbers of the tests are small"
    )
)]

pub mod catalogue;
#[allow(
    rustdoc::invalid_html_tags,
    reason = "clap prints these comments as help, where <DIR> is a value"
)]
pub mod cli;
pub mod commands;
pub mod config;
pub mod data_dir;
mod exit_code;
mod http;
mod layout;
pub mod logger_file;
mod logging;
mod pipeline;
pub mod points;
mod rebuild;
mod remedy;
mod report;
mod rollup;
mod sanitize;
mod shutdown;
mod sink;
pub mod time_zone;
mod verify;
mod version;

#[cfg(test)]
#[path = "../tests/skipped/mod.rs"]
mod skipped;

#[cfg(test)]
#[path = "../tests/it/real_influx.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    clippy::unused_self,
    reason = "most of it is for the integration tests"
)]
mod real_influx;
