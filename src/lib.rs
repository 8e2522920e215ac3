//! PowerView: the measurements of MV2 loggers, written to InfluxDB 2 with none lost, doubled, shifted or invented.
#![forbid(unsafe_code)]

pub mod logger_file;
pub mod names;
pub mod shown;
