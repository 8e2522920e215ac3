//! Copies what no file gives from the current bucket to the new one.

use super::copier::Copier;
use super::{Rebuild, RebuildError};
use crate::data_dir::{CATALOGUE, rebuild_bucket};
use crate::sink::{ALL_TIMES, BucketAdmin, CopySource, FieldTypes, PointQuery, retried};
use crate::verify::Unexplained as _;
use std::cell::RefCell;
use std::fmt;

/// A field with values of several types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeveralTypes {
    measurement: String,
    field: String,
    types: Vec<String>,
}

impl fmt::Display for SeveralTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            measurement,
            field,
            types,
        } = self;
        let types = types.join(", ");
        write!(
            f,
            "measurement {measurement:?} has values of the types {types} in the field {field:?}, of which a query returns one"
        )
    }
}

/// The fields with values of several types.
fn several_types(fields: FieldTypes) -> impl Iterator<Item = SeveralTypes> {
    let fields = fields.into_iter().filter(|(_, types)| types.len() > 1);
    fields.map(|((measurement, field), types)| SeveralTypes {
        measurement,
        field,
        types: types.into_iter().collect(),
    })
}

impl<S: CopySource + BucketAdmin> Rebuild<'_, S> {
    /// The fields of the current bucket with values of several types, of which the report counts one.
    ///
    /// # Errors
    /// The server gives no answer, or refuses the request.
    pub(crate) fn several_types(&self) -> Result<Vec<SeveralTypes>, RebuildError> {
        Ok(several_types(self.server.field_types(self.company)?).collect())
    }

    /// Copies the points that no file explains from the current bucket to the new one. Returns their number.
    ///
    /// # Errors
    /// Points cannot be read or written.
    pub(crate) fn copy_unexplained(&self) -> Result<u64, RebuildError> {
        let new = rebuild_bucket(self.company);
        let fields = self.ensure_readable(&new)?;
        let copier = RefCell::new(Copier::new(self.sink, &new, self.batch));
        let report = self.explained(&copier);
        let mut copier = copier.into_inner();
        if let Some(failure) = report.failures.first() {
            return Err(RebuildError::NotCopied(failure.clone()));
        }
        for unexplained in &report.unexplained {
            copier.measurement(&unexplained.measurement);
            let query = PointQuery {
                bucket: self.company,
                measurement: &unexplained.measurement,
                master: None,
                times: ALL_TIMES,
                for_summaries: false,
            };
            self.server.points(&query, &mut copier)?;
        }
        let copied = copier.finish().map_err(RebuildError::NotCopied)?;
        let found = report.unexplained_points();
        if copied < found {
            let reason = format!("{copied} of {found} were copied; run it again");
            return Err(RebuildError::NotCopied(reason));
        }
        // No file gives a text, so that all of them were copied.
        let mut copier = Copier::new(self.sink, &new, self.batch);
        for ((measurement, field), types) in &fields {
            if types.contains("string") {
                copier.measurement(measurement);
                self.server.texts_with_line_breaks(
                    self.company,
                    measurement,
                    field,
                    &mut copier,
                )?;
            }
        }
        copier.finish().map_err(RebuildError::NotCopied)?;
        Ok(copied)
    }

    /// Copies the catalogues of channels from the current bucket, which files do not have, to another one.
    ///
    /// # Errors
    /// Points cannot be read or written.
    pub(crate) fn copy_catalogues(&self, bucket: &str) -> Result<(), RebuildError> {
        if self.server.find_bucket(self.company)?.is_none() {
            return Ok(());
        }
        let query = PointQuery {
            bucket: self.company,
            measurement: CATALOGUE,
            master: None,
            times: ALL_TIMES,
            for_summaries: false,
        };
        let mut copier = Copier::new(self.sink, bucket, self.batch);
        copier.measurement(CATALOGUE);
        retried(|| self.server.points(&query, &mut copier))?;
        copier.finish().map_err(RebuildError::NotCopied)?;
        Ok(())
    }

    /// Checks that all points of the current bucket can be copied to the new one. Returns the fields of the current one.
    fn ensure_readable(&self, new: &str) -> Result<FieldTypes, RebuildError> {
        let fields = self.server.field_types(self.company)?;
        // Values of another type would hide those of the files. If the new bucket is gone, nothing can be written to it.
        let mut all = match self.server.find_bucket(new)? {
            Some(_) => self.server.field_types(new)?,
            None => FieldTypes::new(),
        };
        for (field, types) in &fields {
            all.entry(field.clone()).or_default().extend(types.clone());
        }
        if let Some(field) = several_types(all).next() {
            return Err(RebuildError::SeveralTypes(field));
        }
        let has_break = |text: &str| text.contains(['\n', '\r']);
        for (measurement, field) in fields.keys() {
            let place = if has_break(measurement) {
                "its name"
            } else if has_break(field) {
                "the name of a field"
            } else {
                continue;
            };
            return Err(RebuildError::LineBreak {
                measurement: measurement.clone(),
                place: place.to_owned(),
            });
        }
        for measurement in self.server.measurements(self.company)? {
            let tags = self.server.unreadable_tags(self.company, &measurement)?;
            if let Some(&tag) = tags.first() {
                return Err(RebuildError::UnreadableTag { measurement, tag });
            }
            if let Some(place) = self.server.line_break_in_tags(self.company, &measurement)? {
                return Err(RebuildError::LineBreak { measurement, place });
            }
        }
        Ok(fields)
    }
}
