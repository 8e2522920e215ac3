//! The layouts of a file, and what in the file contradicts them.

use super::{ColumnChange, Layout, MAX_CHANGES};
use crate::logger_file::{Channels, Role};

/// The number of rows that must be compared before values show that a column is a voltage.
const MIN_ROWS: u32 = 6;

/// The number of rows that are compared. What they show is not refuted by a later phase failure.
const MAX_ROWS: u32 = 1_000;

/// The share of a voltage by which a value may differ from it and still count as equal.
const TOLERANCE: f64 = 0.05;

/// The maximum number of voltage columns that are compared, so that a row with thousands of them is not slow.
const MAX_VOLTAGES: usize = 32;

/// The maximum number of contradictions per file.
const MAX_CONTRADICTIONS: usize = 10;

/// The layouts of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileLayout {
    /// The layout of the first table.
    pub first: Layout,
    /// The next layout that differs from the first one.
    pub second: Option<Layout>,
    /// The layout of the last table.
    pub last: Layout,
    /// How the layout changes within the file.
    pub changes: Vec<ColumnChange>,
    /// What contradicts the layouts, in plain words.
    pub contradictions: Vec<String>,
    /// Whether the rows are too few to tell for each column in W that it is not a voltage.
    pub is_undecided: bool,
}

impl FileLayout {
    /// How the layout changed since the one before the file, and within the file.
    pub(crate) fn changes_since(&self, before: Option<&Layout>) -> Vec<ColumnChange> {
        let first = before.map(|before| self.first.changes_since(before));
        let changes = first.into_iter().flatten().chain(self.changes.clone());
        changes.take(MAX_CHANGES).collect()
    }
}

/// Collects the layouts of a file while it is read.
#[derive(Debug, Default)]
pub(crate) struct LayoutScan {
    file: Option<FileLayout>,
    /// The entry `MasterType` of the document.
    master_type: Option<String>,
    /// The positions of the columns in V.
    voltages: Vec<usize>,
    /// The columns in W all of whose compared values were equal to a voltage so far.
    candidates: Vec<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    position: usize,
    /// The number of rows compared.
    rows: u32,
}

impl LayoutScan {
    /// Begins a document, whose header may have an entry `MasterType`.
    pub(crate) fn begin_document(&mut self, master_type: Option<&str>) {
        self.master_type = master_type.map(str::to_owned);
    }

    /// Begins a table.
    pub(crate) fn begin_table(&mut self, header: &Channels) {
        let layout = Layout::of(header);
        let is_same = self.file.as_ref().is_some_and(|file| file.last == layout);
        if !is_same {
            if let Some(file) = &mut self.file {
                conclude(&self.candidates, file);
                let room = MAX_CHANGES - file.changes.len();
                file.changes
                    .extend(layout.changes_since(&file.last).take(room));
                file.second.get_or_insert_with(|| layout.clone());
                file.last = layout;
            } else {
                self.file = Some(FileLayout {
                    first: layout.clone(),
                    second: None,
                    last: layout,
                    changes: Vec::new(),
                    contradictions: Vec::new(),
                    is_undecided: false,
                });
            }
            self.begin_comparison(header);
        }
        let contradiction = self.master_contradiction(header);
        if let (Some(file), Some(contradiction)) = (&mut self.file, contradiction) {
            add(&mut file.contradictions, contradiction);
        }
    }

    fn begin_comparison(&mut self, header: &Channels) {
        let in_unit = |unit| {
            let channels = header.list.iter().enumerate();
            channels
                .filter(move |(_, channel)| channel.unit == unit)
                .map(|(position, _)| position)
        };
        self.voltages = in_unit("V").take(MAX_VOLTAGES).collect();
        self.candidates.clear();
        if !self.voltages.is_empty() {
            self.candidates
                .extend(in_unit("W").map(|position| Candidate { position, rows: 0 }));
        }
    }

    /// The contradiction between `MasterType` and the number of the master's voltages.
    fn master_contradiction(&self, header: &Channels) -> Option<String> {
        let voltages = header
            .list
            .iter()
            .filter(|channel| channel.role == Role::Master && channel.unit == "V")
            .count();
        let master_type = self.master_type.as_deref()?;
        let is = |name: &str| master_type.eq_ignore_ascii_case(name);
        if is("Tri") && voltages < 3 {
            Some(format!(
                "MasterType is Tri, but the master has {voltages} instead of 3 columns in V"
            ))
        } else if is("Mono") && voltages >= 3 {
            Some(format!(
                "MasterType is Mono, but the master has {voltages} instead of 1 column in V"
            ))
        } else {
            None
        }
    }

    /// Compares the columns in W with the voltages of a row. Nearly all of them drop out at the first row.
    #[inline]
    pub(crate) fn add_row(&mut self, values: &[Option<f64>]) {
        if !self.candidates.is_empty() {
            self.compare(values);
        }
    }

    fn compare(&mut self, values: &[Option<f64>]) {
        let value_at = |position: usize| values.get(position).copied().flatten();
        let voltages = || {
            let present = self.voltages.iter().filter_map(|at| value_at(*at));
            present.filter(|voltage| *voltage != 0.0)
        };
        if voltages().next().is_none() {
            return;
        }
        self.candidates.retain_mut(|candidate| {
            let Some(value) = value_at(candidate.position) else {
                return true;
            };
            if candidate.rows == MAX_ROWS {
                return true;
            }
            candidate.rows += 1;
            voltages().any(|voltage| (value - voltage).abs() <= TOLERANCE * voltage.abs())
        });
    }

    /// The layouts so far, or `None` if there was no table.
    pub(crate) fn file(&self) -> Option<FileLayout> {
        let mut file = self.file.clone()?;
        conclude(&self.candidates, &mut file);
        Some(file)
    }
}

/// Adds what the rows of a table say about its columns in W.
fn conclude(candidates: &[Candidate], file: &mut FileLayout) {
    for candidate in candidates {
        if candidate.rows < MIN_ROWS {
            file.is_undecided = true;
        } else if let Some(text) = file.last.column_text(candidate.position) {
            let contradiction = format!(
                "column {} \"{text}\" is in W, but its values are those of a voltage",
                candidate.position + 2
            );
            add(&mut file.contradictions, contradiction);
        }
    }
}

fn add(contradictions: &mut Vec<String>, contradiction: String) {
    if contradictions.len() < MAX_CONTRADICTIONS && !contradictions.contains(&contradiction) {
        contradictions.push(contradiction);
    }
}
