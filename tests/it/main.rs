//! Tests of the product from outside: the binary, the hook, the playbooks, the dashboards.
