//! The comparison of the hourly summaries with the points in the database. See docs/specification.md, section 11.

use crate::commands::rollup::describe;
use crate::data_dir::{DeviceItem, PENDING_FILE, devices_in};
use crate::points::stored_name;
use crate::rollup::{Comparison, Rollup, Scope, SummaryCounts};
use crate::sanitize::sanitize;
use crate::shutdown::POLL_INTERVAL;
use crate::sink::ALL_TIMES;
use crate::verify::{Verification, Verifier};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

/// The result for all companies.
#[derive(Debug, Default, Serialize)]
pub(super) struct Summaries {
    /// Whether everything was compared, and the database has exactly the summaries of its points.
    equal: bool,
    #[serde(flatten)]
    counts: SummaryCounts,
    companies: Vec<CompanySummaries>,
}

/// The result for a company.
#[derive(Debug, Serialize)]
struct CompanySummaries {
    company: String,
    #[serde(flatten)]
    counts: SummaryCounts,
}

impl Summaries {
    /// Compares the summaries of companies, or repairs them. What fails is added to the failures of
    /// `verification`.
    pub(super) fn compare(
        rollup: &Rollup<'_>,
        verifier: &Verifier<'_>,
        companies: BTreeSet<String>,
        verification: &mut Verification,
    ) -> Self {
        let options = &verifier.options;
        let mut summaries = Self::default();
        let mut is_complete = true;
        for company in companies {
            if verifier.stop.is_requested() {
                is_complete = false;
                break;
            }
            let scope = Scope {
                bucket: &company,
                measurement: options.campaign.and_then(stored_name),
                since: options.since.unwrap_or(ALL_TIMES.start),
            };
            let result = if options.repair {
                rollup.repair(scope)
            } else {
                rollup.compare(scope, &|| wait_for_ingestions(verifier, &company))
            };
            let notes = rollup.notes.take().into_iter();
            let bucket = sanitize(&company);
            verification
                .notes
                .extend(notes.map(|note| format!("bucket {bucket}: {note}")));
            let failures = match result {
                Ok(Comparison { counts, failures }) => {
                    summaries.counts += counts;
                    summaries
                        .companies
                        .push(CompanySummaries { company, counts });
                    failures
                }
                Err(error) => vec![error.to_string()],
            };
            is_complete &= failures.is_empty();
            let failures = failures.into_iter();
            verification
                .failures
                .extend(failures.map(|failure| format!("{bucket}: hourly summaries: {failure}")));
        }
        summaries.equal = is_complete && summaries.counts.is_equal();
        summaries
    }

    pub(super) fn is_equal(&self) -> bool {
        self.equal
    }

    /// Formats a line per company that differs, and a summary.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for CompanySummaries { company, counts } in &self.companies {
            if !counts.is_equal() || counts.written > 0 {
                // Writing to a string does not fail.
                let _ = writeln!(text, "{}: {}", sanitize(company), describe(counts));
            }
        }
        let _ = writeln!(text, "{}", describe(&self.counts));
        if !self.counts.is_equal() {
            text += "to compute the hourly summaries again, run powerview rollup\n";
        }
        text
    }
}

/// Waits until no device of a company is locked or has days whose summaries an ingestion is still to compute, for all of them
/// together as long as for one lock.
fn wait_for_ingestions(verifier: &Verifier<'_>, company: &str) {
    let start = Instant::now();
    for item in devices_in(verifier.data, Path::new(company)) {
        let DeviceItem::Device(path) = item else {
            continue;
        };
        if verifier.stop.is_requested() {
            return;
        }
        let Ok(folder) = verifier.data.open_below(&path) else {
            continue;
        };
        loop {
            let left = verifier.options.lock_wait.saturating_sub(start.elapsed());
            // Without the lock, the comparison goes on.
            let _ = folder.lock(left, verifier.stop);
            let is_pending = folder.has_state_file(PENDING_FILE).unwrap_or(false);
            if !is_pending || left.is_zero() || verifier.stop.is_requested() {
                break;
            }
            std::thread::sleep(POLL_INTERVAL.min(left));
        }
    }
}
