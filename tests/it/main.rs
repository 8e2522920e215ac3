//! Tests of the product from outside: the binary, the hook, the playbooks, the dashboards.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "the numbers of the tests are small"
)]
#![allow(
    clippy::case_sensitive_file_extension_comparisons,
    clippy::float_cmp,
    reason = "the tests ask for exact names and values"
)]
#![allow(
    clippy::assigning_clones,
    clippy::items_after_statements,
    clippy::naive_bytecount,
    clippy::needless_pass_by_value,
    clippy::struct_excessive_bools,
    clippy::too_many_lines,
    clippy::unused_self,
    reason = "plain code is worth more than speed in a test, which reads from top to bottom"
)]
#![forbid(unsafe_code)]

mod file_builder;
mod harness;
mod influx3_double;
mod influx_double;
mod line_protocol;
mod postgres;
mod real_influx;
mod real_influx3;
mod s3_double;
mod second_reader;
mod sftp_client;
mod sftpgo;
#[path = "../skipped/mod.rs"]
mod skipped;
mod zone_files;

mod cases;
mod catalogue;
mod check;
mod cli;
mod common_database;
mod concurrency_and_kill;
mod damage;
mod docs;
mod faults;
mod fixtures;
mod fuzz_corpus;
mod heartbeat;
mod hosts;
mod influx3;
mod ingest;
mod layout;
mod named_paths;
mod properties;
mod real_server;
mod rebuild;
mod rollup;
mod samples;
mod scaling;
mod scarce;
mod skipping;
mod status;
mod time_zone;
mod tls;
mod unsent_points;
mod untrusted_input;
mod uploads;
mod verify;
mod versions;
mod virtual_channels;

mod dashboard_names;
mod dashboards;
mod grafana;
mod reception;

mod alerts;
mod ansible;
mod deploy_files;
mod end_to_end;
mod end_to_end_names;
mod grafana_double;
mod hook;
mod migration;
mod names;
mod operations;
mod other_storage;
mod package;
mod people;
mod setup;
mod upload_storm;
