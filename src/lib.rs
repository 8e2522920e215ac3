//! PowerView: the measurements of MV2 loggers, written to InfluxDB 2 with none lost, doubled, shifted or invented.
//!
//! Data flow one way: `cli` -> `config` -> `run` (walk) -> `device` (lock, take, land, move) -> `ingest` (`logger_file` ->
//! `line_protocol` -> `batch`) -> `courier` -> `sink`; and from `device` -> `recorder` (`report`, `meta`) -> exit code.
#![deny(unsafe_code)]

pub mod cli;
pub mod commands;
pub mod config;
pub mod data_dir;
pub mod exit_code;
pub mod logger_file;
pub mod logging;
pub mod pipeline;
pub mod points;
pub mod report;
pub mod sanitize;
pub mod shutdown;
pub mod sink;
pub mod time_zone;

#[cfg(test)]
#[path = "../tests/skipped/mod.rs"]
mod skipped;
