//! PowerView: the measurements of MV2 loggers, written to InfluxDB 2 with none lost, doubled, shifted or invented.
//!
//! Data flow one way: `cli` -> `config` -> `run` (walk) -> `device` (lock, take, land, move) -> `ingest` (`logger_file` ->
//! `line_protocol` -> `batch`) -> `courier` -> `sink`; and from `device` -> `ledger` (`report`, `meta`) -> exit code.
#![deny(unsafe_code)]

pub mod app;
pub mod batch;
pub mod check;
pub mod cli;
pub mod config;
pub mod courier;
pub mod device;
pub mod environment;
pub mod exit;
pub mod folder;
pub mod heartbeat;
pub mod ingest;
pub mod ledger;
pub mod line_protocol;
pub mod log;
pub mod logger_file;
pub mod machine_zone;
pub mod meta;
pub mod names;
pub mod progress;
pub mod queue;
pub mod report;
pub mod report_writer;
pub mod run;
pub mod shown;
pub mod sink;
pub mod status;
pub mod stop;
pub mod time_zone;

#[cfg(test)]
#[path = "../tests/skipped/mod.rs"]
mod skipped;
