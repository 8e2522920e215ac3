//! PowerView: the measurements of MV2 loggers, written to InfluxDB 2 with none lost, doubled, shifted or invented.
#![forbid(unsafe_code)]

pub mod batch;
pub mod cli;
pub mod config;
pub mod line_protocol;
pub mod logger_file;
pub mod names;
pub mod shown;
pub mod sink;
pub mod stop;
