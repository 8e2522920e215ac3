//! PowerView: the measurements of MV2 loggers, written to InfluxDB 2.
#![forbid(unsafe_code)]
