//! The current reqwest, under the version that influxdb2 0.5.2 asks for.

pub use current::*;
