//! Encodes rows as line protocol and collects them into batches. This module does no I/O.

mod batch;
mod line_protocol;

pub use batch::{Batch, BatchBuilder, BatchOptions, compressed};
pub(crate) use line_protocol::{Line, TimeRange, stored_name, stored_tags};
pub use line_protocol::{SeriesPrefix, append_row};
