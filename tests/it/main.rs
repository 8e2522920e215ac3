//! Tests of the product from outside: the binary, the hook, the playbooks, the dashboards.
#![forbid(unsafe_code)]

mod real_influx;
