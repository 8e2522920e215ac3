//! Tests of the product from outside: the binary, the hook, the playbooks, the dashboards.
#![forbid(unsafe_code)]

mod dashboards;
mod grafana;
mod real_influx;
