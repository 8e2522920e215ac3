//! Encodes rows as line protocol and collects them into batches. This module does no I/O.

mod batch;
mod line_protocol;

pub use batch::*;
pub use line_protocol::*;
