//! Tests of the product from outside: the binary, the hook, the playbooks, the dashboards.
#![forbid(unsafe_code)]

mod file_builder;
mod harness;
mod influx_double;
mod line_protocol;
mod real_influx;
mod second_reader;
mod sftp_client;
mod sftpgo;
#[path = "../skipped/mod.rs"]
mod skipped;
mod zone_files;

mod cli;
mod concurrency_and_kill;
mod docs;
mod faults;
mod fixtures;
mod fuzz_corpus;
mod heartbeat;
mod ingest;
mod properties;
mod real_server;
mod samples;
mod skipping;
mod status;
mod time_zone;
mod untrusted_input;
mod uploads;

mod dashboards;
mod grafana;

mod ansible;
mod deploy_files;
mod end_to_end;
mod grafana_double;
mod hook;
mod names;
mod upload_storm;
