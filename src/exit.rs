//! How the process ends. Source: docs/specification.md, section 8.

/// All files done, or none to do.
pub const DONE: u8 = 0;
/// At least one file failed, or the run was stopped.
pub const FAILED: u8 = 1;
/// Wrong usage or configuration.
pub const MISUSED: u8 = 2;
