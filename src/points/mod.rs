//! Points as line protocol, and batches of them. Pure: rows in, bytes out.

mod batch;
mod line_protocol;

pub use batch::*;
pub use line_protocol::*;
