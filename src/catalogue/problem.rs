//! What is wrong with a catalogue, in English for operators and in French for those who upload it.

use super::chains::MAX_PARTS;
use super::known::KnownChannels;
use super::sums::{MAX_FACTOR, MAX_TERMS};
use super::table::{Column, MAX_ENTRIES};
use super::text::MAX_SIZE;
use crate::sanitize::sanitize;
use std::fmt;

/// Maximum number of problems that are shown.
pub(super) const MAX_SHOWN: usize = 20;

/// Maximum length of a text that is quoted, in characters.
const MAX_QUOTED: usize = 60;

/// Maximum number of ids that are listed before the last one.
const MAX_LISTED: usize = 6;

/// A problem of a catalogue, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// 1-based; none for the file as a whole.
    line: Option<u64>,
    column: Option<Column>,
    cause: Cause,
}

/// The problems of a catalogue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

/// A part of a formula or of the cell of a continued channel, and which channels it may mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) text: String,
    /// The ids of channels that may be meant. The list may be empty.
    pub(super) candidates: Vec<String>,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cause {
    /// Something else than a file: what it is in English and in French.
    NotAFile(&'static str, &'static str),
    TooLarge,
    Spreadsheet,
    Utf16,
    Nul,
    NotUtf8,
    Empty,
    Separator(char),
    /// The first line names another separator than the semicolon.
    SeparatorLine(String),
    MissingColumns(Vec<Column>),
    UnknownColumn(String),
    ColumnTwice(Column),
    TooManyEntries,
    ExtraCell(String),
    LineBreak,
    ControlCharacter(char),
    CellTooLong(usize),
    /// A spreadsheet would compute the cell.
    Computed(String),
    NoChannelId,
    /// The candidates are found last.
    UnknownChannel(Named),
    /// The channel is in an earlier line.
    ChannelTwice(String, u64),
    Role(String),
    Hidden(String),
    /// The id of a line with a formula is not that of a virtual channel.
    VirtualId(String),
    VirtualIdTaken(String, u64),
    /// Points of another program have the id of a virtual channel, which a line or a formula uses.
    PointsWithVirtualId(String),
    /// Or which channels that continue each other would have.
    PointsWithChainId(String),
    NoFormula(String),
    NoName,
    FormulaAndContinues,
    /// No operator is where one is expected, or no channel; before this text.
    FormulaSyntax(String),
    AmbiguousTerm(Named),
    /// The ids of the channels, of which each uses the next one.
    Cycle(Vec<String>),
    TooManyTerms,
    FactorTooLarge,
    FormulasTooLarge,
    /// Two channels with different units.
    Units([(String, String); 2]),
    Nothing,
    /// Two parts of the same continued channel.
    PartsOfOne([String; 2]),
    ContinuesSyntax(String),
    ContinuesDate(String),
    ContinuesVirtual(String),
    ContinuesCycle(Vec<String>),
    ContinuedTwice(String, u64),
    /// The dates of a chain do not rise: the date of the later meter is not after that in this line.
    ContinuesDates(u64),
    ContinuesUnits([(String, String); 2]),
    ChainTooLong,
}

impl Problem {
    pub(super) fn of_file(cause: Cause) -> Self {
        Self {
            line: None,
            column: None,
            cause,
        }
    }

    pub(super) fn at(line: u64, cause: Cause) -> Self {
        Self {
            line: Some(line),
            column: None,
            cause,
        }
    }

    pub(super) fn in_cell(line: u64, column: Column, cause: Cause) -> Self {
        Self {
            line: Some(line),
            column: Some(column),
            cause,
        }
    }

    /// The message in English: where, what, and what to do.
    pub fn english(&self) -> String {
        let place = match (self.line, self.column) {
            (Some(line), Some(column)) => format!("line {line}, column {column}: "),
            (Some(line), None) => format!("line {line}: "),
            (None, _) => String::new(),
        };
        place + &self.cause.english()
    }

    /// The message in French.
    pub fn french(&self) -> String {
        let place = match (self.line, self.column) {
            (Some(line), Some(column)) => format!("ligne {line}, colonne {column} : "),
            (Some(line), None) => format!("ligne {line} : "),
            (None, _) => String::new(),
        };
        place + &self.cause.french()
    }
}

impl Problems {
    pub(super) fn of_file(cause: Cause) -> Self {
        Self(vec![Problem::of_file(cause)])
    }

    pub(super) fn add(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their number.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Orders them by their lines, and proposes known channels for the unknown ones that are shown.
    pub(super) fn finish(&mut self, known: &KnownChannels) {
        self.0.sort_by_key(|problem| (problem.line, problem.column));
        for problem in self.0.iter_mut().take(MAX_SHOWN) {
            if let Cause::UnknownChannel(named) = &mut problem.cause {
                named.candidates = known.candidates(&named.text);
            }
        }
    }

    /// The first of them, and the number of the others.
    fn shown(&self) -> (&[Problem], usize) {
        let shown = &self.0[..self.0.len().min(MAX_SHOWN)];
        (shown, self.0.len() - shown.len())
    }

    /// The messages in English, a line each.
    pub fn english(&self) -> Vec<String> {
        let (shown, others) = self.shown();
        let mut lines: Vec<_> = shown.iter().map(Problem::english).collect();
        if others > 0 {
            lines.push(format!(
                "{others} more; correct those above first, then check again"
            ));
        }
        lines
    }

    /// The messages in French, a line each.
    pub fn french(&self) -> Vec<String> {
        let (shown, others) = self.shown();
        let mut lines: Vec<_> = shown.iter().map(Problem::french).collect();
        if others > 0 {
            lines.push(format!(
                "et {others} de plus ; corrigez d'abord ceux-ci, puis envoyez le fichier de nouveau"
            ));
        }
        lines
    }
}

/// A text of the catalogue as a message shows it.
pub(super) fn excerpt(text: &str) -> String {
    let mut chars = text.chars();
    let mut shown: String = chars.by_ref().take(MAX_QUOTED).collect();
    if chars.next().is_some() {
        shown.push('…');
    }
    sanitize(shown)
}

/// The text of a cell in quotation marks.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", excerpt(self.0))
    }
}

/// The same with French quotation marks.
struct Guillemets<'a>(&'a str);

impl fmt::Display for Guillemets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "« {} »", excerpt(self.0))
    }
}

/// The first items and the last one.
fn list(items: &[String], separator: &str) -> String {
    let mut shown: Vec<_> = items
        .iter()
        .take(MAX_LISTED)
        .map(|item| excerpt(item))
        .collect();
    if let Some(last) = items.get(MAX_LISTED..).and_then(<[String]>::last) {
        shown.push("…".to_owned());
        shown.push(excerpt(last));
    }
    shown.join(separator)
}

/// A few items, of which one is meant: `a, b or c`.
fn choice(items: &[String], word: &str) -> String {
    let items: Vec<_> = items.iter().map(|item| excerpt(item)).collect();
    match &items[..] {
        [first @ .., last] if !first.is_empty() => {
            format!("{} {word} {last}", first.join(", "))
        }
        _ => items.concat(),
    }
}

fn titles(columns: &[Column]) -> String {
    let titles: Vec<_> = columns.iter().map(|column| column.title()).collect();
    titles.join(", ")
}

impl Named {
    /// A channel that is not known.
    pub(super) fn unknown(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            candidates: Vec::new(),
        }
    }

    /// ": Ch1, Ch2" after a remedy in English.
    fn english(&self) -> String {
        match self.candidates[..] {
            [] => "; powerview channels lists the channels of the campaign".to_owned(),
            _ => format!("; did you mean {}", choice(&self.candidates, "or")),
        }
    }

    fn french(&self) -> String {
        match self.candidates[..] {
            [] => " ; utilisez un identifiant de la colonne channel_id".to_owned(),
            _ => format!(" ; vouliez-vous dire {}", choice(&self.candidates, "ou")),
        }
    }
}

impl Cause {
    fn english(&self) -> String {
        match self {
            Self::NotAFile(what, _) => format!("it is {what} and not a file; remove it, and put a file in its place"),
            Self::TooLarge => format!("the file is larger than {} MiB; remove what does not belong to it", MAX_SIZE >> 20),
            Self::Spreadsheet => "the file is a spreadsheet; save it as \"CSV UTF-8\" with semicolons as separators".to_owned(),
            Self::Utf16 => "the file is in UTF-16 (\"Unicode text\"); save it as \"CSV UTF-8\"".to_owned(),
            Self::Nul => "the file has NUL bytes, so that it is no text, or damaged; save it again as \"CSV UTF-8\"".to_owned(),
            Self::NotUtf8 => "the file begins as UTF-8, but is not; save it again as \"CSV UTF-8\"".to_owned(),
            Self::Empty => "the file is empty; powerview channels writes one with all channels".to_owned(),
            Self::Separator(found) => format!("the cells are separated by {}; save it with semicolons as separators", match found {
                '\t' => "tabs",
                _ => "commas",
            }),
            Self::SeparatorLine(found) => format!("the line says that cells are separated by {}; save the file with semicolons as separators, or write sep=; if it has them", Quoted(found)),
            Self::MissingColumns(columns) => format!("the header line lacks {}; add the missing columns, the first line is their titles", titles(columns)),
            Self::UnknownColumn(found) => format!("there is no column {}; the columns are {}", Quoted(found), titles(&Column::ALL)),
            Self::ColumnTwice(column) => format!("the column {column} is there twice; remove one"),
            Self::TooManyEntries => format!("there are more than {MAX_ENTRIES} entries; remove lines from here on"),
            Self::ExtraCell(found) => format!("the cell {} is beyond the last column; put it into a column, or text with a semicolon into quotation marks", Quoted(found)),
            Self::LineBreak => "the cell has a line break, or its quotation mark is never closed; remove it".to_owned(),
            Self::ControlCharacter(found) => format!("the cell has the invisible character {}; type its text anew", found.escape_default()),
            Self::CellTooLong(limit) => format!("the cell has more than {limit} characters; shorten it"),
            Self::Computed(found) => format!("the cell {} begins with =, +, - or @, so that a spreadsheet would compute it; begin it with another character, or with an apostrophe", Quoted(found)),
            Self::NoChannelId => "the line has neither a channel_id nor a formula; fill in one of them, or remove the line".to_owned(),
            Self::UnknownChannel(named) => format!("no channel {} is known in this campaign{}", Quoted(&named.text), named.english()),
            Self::ChannelTwice(id, line) => format!("{} is in line {line} already; remove one of the lines", Quoted(id)),
            Self::Role(found) => format!("{} is not a role; use total, part, production or other, or leave it empty", Quoted(found)),
            Self::Hidden(found) => format!("{} is neither yes nor no; use one of these, or leave it empty", Quoted(found)),
            Self::VirtualId(found) => format!("a line with a formula cannot have the channel_id {}; leave it empty, or use V_ with letters, digits and _", Quoted(found)),
            Self::VirtualIdTaken(id, line) => format!("the line has the channel_id {} as line {line} does; give it another one, which begins with V_", Quoted(id)),
            Self::PointsWithVirtualId(id) => format!("points of another program have the id {}, though ids that begin with V_ belong to virtual channels; remove the line, or give a line with a formula another id", Quoted(id)),
            Self::PointsWithChainId(id) => format!("both channels together would have the id {}, which points of another program have already; empty the cell, or write those points with another channel_id", Quoted(id)),
            Self::NoFormula(id) => format!("{} is the id of a virtual channel, but the line has no formula; add the formula, or remove the line", Quoted(id)),
            Self::NoName => "a line with a formula needs a name; fill it in".to_owned(),
            Self::FormulaAndContinues => "a line cannot have both a formula and a channel that it continues; empty one of the cells".to_owned(),
            Self::FormulaSyntax(rest) if rest.is_empty() => "the formula ends where a channel is expected; write channels with + or - between them".to_owned(),
            Self::FormulaSyntax(rest) => format!("the formula cannot be read from {} on; write channels with + or - between them, ids with spaces in [...]", Quoted(rest)),
            Self::AmbiguousTerm(named) => format!("{} may be several channels; write the whole id, one of {}", Quoted(&named.text), list(&named.candidates, ", ")),
            Self::Cycle(ids) => format!("the formulas use each other: {}; change one of them", list(ids, " -> ")),
            Self::TooManyTerms => format!("the formula has more than {MAX_TERMS} channels; divide it"),
            Self::FactorTooLarge => format!("a channel counts more than {MAX_FACTOR} times; shorten the formula"),
            Self::FormulasTooLarge => "the formulas of the catalogue have too many channels together; remove some".to_owned(),
            Self::Units([(a, unit_a), (b, unit_b)]) => format!("{} is in {} and {} in {}; use channels of power (W, kW, MW) or of the same unit", Quoted(a), Quoted(unit_a), Quoted(b), Quoted(unit_b)),
            Self::Nothing => "the channels of the formula cancel each other out; correct it".to_owned(),
            Self::PartsOfOne([a, b]) => format!("{} and {} are the same channel, because one continues the other; remove one of them from the formula", Quoted(a), Quoted(b)),
            Self::ContinuesSyntax(found) => format!("{} cannot be read; write it as <channel_id> until 2026-03-01", Quoted(found)),
            Self::ContinuesDate(found) => format!("{} is no date; write it as 2026-03-01 or 01/03/2026", Quoted(found)),
            Self::ContinuesVirtual(id) => format!("{} is a virtual channel, which cannot be continued; write the channel_id of the meter", Quoted(id)),
            Self::ContinuesCycle(ids) => format!("the channels continue each other: {}; empty one of the cells", list(ids, " -> ")),
            Self::ContinuedTwice(id, line) => format!("{} is continued by line {line} already; empty one of the cells", Quoted(id)),
            Self::ContinuesDates(line) => format!("the date is not before that of line {line}, which continues this channel; correct one of them"),
            Self::ContinuesUnits([(a, unit_a), (b, unit_b)]) => format!("{} is in {}, but {} in {}; a channel can only continue one of the same unit", Quoted(a), Quoted(unit_a), Quoted(b), Quoted(unit_b)),
            Self::ChainTooLong => format!("more than {MAX_PARTS} channels continue each other; empty one of the cells"),
        }
    }

    fn french(&self) -> String {
        match self {
            Self::NotAFile(_, what) => format!("ce n'est pas un fichier mais {what} ; supprimez-le et envoyez un fichier à la place"),
            Self::TooLarge => format!("le fichier dépasse {} Mio ; supprimez ce qui n'en fait pas partie", MAX_SIZE >> 20),
            Self::Spreadsheet => "le fichier est un classeur de tableur ; enregistrez-le au format « CSV UTF-8 », avec des points-virgules".to_owned(),
            Self::Utf16 => "le fichier est en UTF-16 (« texte Unicode ») ; enregistrez-le au format « CSV UTF-8 »".to_owned(),
            Self::Nul => "le fichier contient des octets nuls : ce n'est pas du texte, ou il est endommagé ; enregistrez-le de nouveau au format « CSV UTF-8 »".to_owned(),
            Self::NotUtf8 => "le fichier commence comme de l'UTF-8 mais n'en est pas ; enregistrez-le de nouveau au format « CSV UTF-8 »".to_owned(),
            Self::Empty => "le fichier est vide ; la première ligne doit contenir les titres des colonnes".to_owned(),
            Self::Separator(found) => format!("les cellules sont séparées par des {} ; enregistrez-le avec des points-virgules", match found {
                '\t' => "tabulations",
                _ => "virgules",
            }),
            Self::SeparatorLine(found) => format!("la ligne annonce le séparateur {} ; enregistrez le fichier avec des points-virgules, ou écrivez sep=; s'il en a", Guillemets(found)),
            Self::MissingColumns(columns) => format!("il manque à la ligne des titres : {} ; ajoutez ces colonnes, la première ligne contient leurs titres", titles(columns)),
            Self::UnknownColumn(found) => format!("il n'y a pas de colonne {} ; les colonnes sont {}", Guillemets(found), titles(&Column::ALL)),
            Self::ColumnTwice(column) => format!("la colonne {column} est présente deux fois ; supprimez-en une"),
            Self::TooManyEntries => format!("il y a plus de {MAX_ENTRIES} lignes ; supprimez des lignes à partir d'ici"),
            Self::ExtraCell(found) => format!("la cellule {} est au-delà de la dernière colonne ; placez-la dans une colonne, ou mettez entre guillemets un texte qui contient un point-virgule", Guillemets(found)),
            Self::LineBreak => "la cellule contient un saut de ligne, ou un guillemet n'est jamais fermé ; supprimez-le".to_owned(),
            Self::ControlCharacter(found) => format!("la cellule contient le caractère invisible {} ; saisissez de nouveau son texte", found.escape_default()),
            Self::CellTooLong(limit) => format!("la cellule dépasse {limit} caractères ; raccourcissez-la"),
            Self::Computed(found) => format!("la cellule {} commence par =, +, - ou @ : un tableur la calculerait ; commencez-la par un autre caractère, ou par une apostrophe", Guillemets(found)),
            Self::NoChannelId => "la ligne n'a ni channel_id ni formule ; remplissez l'une des deux cellules, ou supprimez la ligne".to_owned(),
            Self::UnknownChannel(named) => format!("la voie {} n'est pas connue dans cette campagne{}", Guillemets(&named.text), named.french()),
            Self::ChannelTwice(id, line) => format!("{} est déjà à la ligne {line} ; supprimez une des deux lignes", Guillemets(id)),
            Self::Role(found) => format!("{} n'est pas un rôle ; utilisez total, partie, production ou autre, ou laissez la cellule vide", Guillemets(found)),
            Self::Hidden(found) => format!("{} n'est ni oui ni non ; utilisez l'un des deux, ou laissez la cellule vide", Guillemets(found)),
            Self::VirtualId(found) => format!("une ligne avec une formule ne peut pas avoir le channel_id {} ; laissez la cellule vide, ou utilisez V_ suivi de lettres, de chiffres et de _", Guillemets(found)),
            Self::VirtualIdTaken(id, line) => format!("la ligne a le même channel_id {} que la ligne {line} ; donnez-lui-en un autre, qui commence par V_", Guillemets(id)),
            Self::PointsWithVirtualId(id) => format!("des points d'un autre programme ont l'identifiant {}, alors que ceux qui commencent par V_ sont réservés aux voies virtuelles ; supprimez la ligne, ou donnez un autre identifiant à une ligne avec une formule", Guillemets(id)),
            Self::PointsWithChainId(id) => format!("les deux voies ensemble auraient l'identifiant {}, que des points d'un autre programme ont déjà ; videz la cellule, ou écrivez ces points avec un autre channel_id", Guillemets(id)),
            Self::NoFormula(id) => format!("{} est l'identifiant d'une voie virtuelle, mais la ligne n'a pas de formule ; ajoutez la formule, ou supprimez la ligne", Guillemets(id)),
            Self::NoName => "une ligne avec une formule doit avoir un nom ; remplissez la colonne name".to_owned(),
            Self::FormulaAndContinues => "une ligne ne peut pas avoir à la fois une formule et une voie qu'elle continue ; videz l'une des deux cellules".to_owned(),
            Self::FormulaSyntax(rest) if rest.is_empty() => "la formule se termine là où une voie est attendue ; écrivez des voies séparées par + ou -".to_owned(),
            Self::FormulaSyntax(rest) => format!("la formule est illisible à partir de {} ; écrivez des voies séparées par + ou -, et les identifiants avec des espaces entre [...]", Guillemets(rest)),
            Self::AmbiguousTerm(named) => format!("{} peut désigner plusieurs voies ; écrivez l'identifiant entier, parmi {}", Guillemets(&named.text), list(&named.candidates, ", ")),
            Self::Cycle(ids) => format!("les formules s'utilisent l'une l'autre : {} ; modifiez l'une d'elles", list(ids, " -> ")),
            Self::TooManyTerms => format!("la formule a plus de {MAX_TERMS} voies ; divisez-la"),
            Self::FactorTooLarge => format!("une voie compte plus de {MAX_FACTOR} fois ; raccourcissez la formule"),
            Self::FormulasTooLarge => "les formules du catalogue ont trop de voies au total ; supprimez-en".to_owned(),
            Self::Units([(a, unit_a), (b, unit_b)]) => format!("{} est en {} et {} en {} ; utilisez des voies de puissance (W, kW, MW) ou de même unité", Guillemets(a), Guillemets(unit_a), Guillemets(b), Guillemets(unit_b)),
            Self::Nothing => "les voies de la formule s'annulent ; corrigez-la".to_owned(),
            Self::PartsOfOne([a, b]) => format!("{} et {} sont la même voie, car l'une continue l'autre ; retirez l'une d'elles de la formule", Guillemets(a), Guillemets(b)),
            Self::ContinuesSyntax(found) => format!("{} est illisible ; écrivez <channel_id> jusqu'au 01/03/2026", Guillemets(found)),
            Self::ContinuesDate(found) => format!("{} n'est pas une date ; écrivez-la comme 01/03/2026 ou 2026-03-01", Guillemets(found)),
            Self::ContinuesVirtual(id) => format!("{} est une voie virtuelle, qui ne peut pas être continuée ; écrivez le channel_id du compteur", Guillemets(id)),
            Self::ContinuesCycle(ids) => format!("les voies se continuent l'une l'autre : {} ; videz l'une des cellules", list(ids, " -> ")),
            Self::ContinuedTwice(id, line) => format!("{} est déjà continuée par la ligne {line} ; videz l'une des deux cellules", Guillemets(id)),
            Self::ContinuesDates(line) => format!("la date n'est pas antérieure à celle de la ligne {line}, qui continue cette voie ; corrigez l'une des deux"),
            Self::ContinuesUnits([(a, unit_a), (b, unit_b)]) => format!("{} est en {}, mais {} en {} ; une voie ne peut continuer qu'une voie de même unité", Guillemets(a), Guillemets(unit_a), Guillemets(b), Guillemets(unit_b)),
            Self::ChainTooLong => format!("plus de {MAX_PARTS} voies se continuent ; videz l'une des cellules"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_that_may_be_meant_are_a_list_in_both_languages() {
        for (candidates, english, french) in [
            (&["a"][..], "a", "a"),
            (&["a", "b"], "a or b", "a ou b"),
            (&["a", "b", "c"], "a, b or c", "a, b ou c"),
        ] {
            let cause = Cause::UnknownChannel(Named {
                text: "x".to_owned(),
                candidates: candidates.iter().map(|id| (*id).to_owned()).collect(),
            });
            let problem = Problem::of_file(cause);
            assert_eq!(
                problem.english(),
                format!("no channel \"x\" is known in this campaign; did you mean {english}")
            );
            assert_eq!(
                problem.french(),
                format!(
                    "la voie « x » n'est pas connue dans cette campagne ; vouliez-vous dire {french}"
                )
            );
        }
    }
}
