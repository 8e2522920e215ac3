//! The documentation against the program: the output of `--help`, options, links, and the paths and names that it mentions.

use powerview::config::env_vars::{self, DefaultValue, EnvVar, Kind};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The page with the output of `--help` of each command and the table of variables.
const USAGE_PAGE: &str = "docs/operations.md";

/// Spellings that the program accepts and `--help` does not list.
const ALIASES: [&str; 2] = ["--data-folder", "--tsv-file"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The Markdown pages of the repository, by their path.
fn pages() -> BTreeMap<String, String> {
    let mut pages = BTreeMap::new();
    for folder in ["", "docs", "fixtures"] {
        for entry in fs::read_dir(root().join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|e| e == "md") {
                let name = path.strip_prefix(root()).expect("below the root");
                let name = name.to_str().expect("UTF-8").to_owned();
                let text = read(&name);
                pages.insert(name, text);
            }
        }
    }
    assert!(pages.len() >= 10, "{:?}", pages.keys());
    pages
}

/// The output of `powerview COMMAND --help`, without trailing spaces.
fn help(command: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_powerview"))
        .args(command.split_whitespace())
        .arg("--help")
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .expect("powerview starts");
    assert!(output.status.success(), "powerview {command} --help");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let lines: Vec<&str> = text.trim().lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// The commands with a `--help`: `powerview` itself, as an empty name, and its subcommands.
fn commands() -> Vec<String> {
    let help = help("");
    let list = help.split_once("\nCommands:\n").expect("commands").1;
    let list = list.split_once("\n\n").expect("an end of the commands").0;
    // The lines in which a description continues are indented further.
    let entries = list
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = entries.map(|line| {
        let name = line.split_whitespace().next().expect("a name");
        name.to_owned()
    });
    let mut commands: Vec<String> = names.filter(|name| name != "help").collect();
    assert!(commands.len() >= 3, "{commands:?}");
    commands.insert(0, String::new());
    commands
}

/// The options that `--help` describes, in their long form.
fn options_of(help: &str) -> BTreeSet<String> {
    let options = help
        .lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with('-'));
    options
        .filter_map(|line| long_options(line).into_iter().next())
        .collect()
}

/// The words of a text that begin with `--`.
fn long_options(text: &str) -> Vec<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    text.split(|c: char| !is_part(c))
        .filter(|word| word.starts_with("--") && word.len() > 2)
        .map(str::to_owned)
        .collect()
}

/// The code in a page: spans between backticks, and lines of code blocks.
fn code(page: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut in_fence = false;
    for line in page.lines() {
        if line.starts_with("```") {
            in_fence = !in_fence;
        } else if in_fence || line.starts_with("    ") {
            pieces.push(line.to_owned());
        } else {
            pieces.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    pieces
}

/// The options that a piece of code passes to `powerview`, with the name of the subcommand if there is one.
fn options_given(piece: &str, commands: &[String]) -> Vec<(String, String)> {
    // A span that starts with an option is about powerview.
    if piece.starts_with("--") {
        return long_options(piece)
            .into_iter()
            .map(|option| (String::new(), option))
            .collect();
    }
    let mut given = Vec::new();
    for part in piece.split(" | ").flat_map(|p| p.split("&&")) {
        let part = part.split(" #").next().unwrap_or_default();
        let mut words = part.split_whitespace();
        let is_program = |word: &str| {
            let name = word.trim_start_matches(['\'', '"']).rsplit('/').next();
            matches!(name, Some("powerview" | "tsv_parser.py"))
        };
        if words.by_ref().any(is_program) {
            let rest: Vec<&str> = words.collect();
            let command = rest.first().filter(|w| commands.iter().any(|c| c == **w));
            let command = command.copied().unwrap_or_default();
            for option in long_options(&rest.join(" ")) {
                given.push((command.to_owned(), option));
            }
        }
    }
    given
}

#[test]
fn the_help_in_the_documentation_is_that_of_the_program() {
    let page = read(USAGE_PAGE);
    for command in commands() {
        let call = format!("powerview {command}").trim_end().to_owned();
        let actual = help(&command);
        let start = format!("```text\n$ {call} --help\n");
        let block = page
            .split_once(&start)
            .unwrap_or_else(|| panic!("{USAGE_PAGE} lacks this block:\n{start}{actual}\n```"))
            .1;
        let documented = block.split_once("\n```").expect("an end of the block").0;
        assert!(
            documented == actual,
            "{USAGE_PAGE} differs from `{call} --help`; put this there:\n{actual}"
        );
    }
}

/// The cells of the rows of the table of variables, by the name of the variable and without backticks.
fn table_of_variables(page: &str) -> BTreeMap<String, [String; 3]> {
    let section = page.split_once("\n## Variables\n").expect("the section").1;
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let row = row.replace('`', "");
        let cells: Vec<_> = row.split('|').map(|cell| cell.trim().to_owned()).collect();
        let [_, name, read_by, default, meaning, _] = cells.try_into().expect("four columns");
        (name, [read_by, default, meaning])
    })
    .collect()
}

/// Whether a cell has this text, after which the use of the variable by other programs may follow.
fn has_text(cell: &str, text: &str) -> bool {
    cell.strip_prefix(text)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("; "))
}

#[test]
fn the_table_of_variables_is_that_of_the_program() {
    let table = table_of_variables(&read(USAGE_PAGE));
    for var in env_vars::ALL {
        let (name, default, description) = (var.name, &var.default, var.description());
        let row = format!("| `{name}` | b | {default} | {description} |");
        let agrees = table.get(name).is_some_and(|[read_by, column, meaning]| {
            read_by.split(' ').any(|program| program == "b")
                && has_text(column, &default.to_string())
                && has_text(meaning, &description)
        });
        assert!(
            agrees,
            "{USAGE_PAGE} differs from src/config/env_vars.rs; put this row there (backticks may be added, \
             other programs in the second column, and text after a semicolon in the others):\n{row}"
        );
    }
    let known: BTreeSet<_> = env_vars::ALL.iter().map(|var| var.name).collect();
    for (name, [read_by, ..]) in &table {
        assert!(
            known.contains(name.as_str()) || !read_by.split(' ').any(|program| program == "b"),
            "{USAGE_PAGE}: powerview does not read {name}; remove the b, or add it to src/config/env_vars.rs"
        );
    }
}

/// The value of a variable in .env.sample, in a line `NAME=value` or `# NAME=value`.
fn sample_value<'a>(sample: &'a str, var: &EnvVar) -> Option<&'a str> {
    sample.lines().find_map(|line| {
        let line = line.strip_prefix("# ").unwrap_or(line);
        line.strip_prefix(var.name)?.strip_prefix('=')
    })
}

#[test]
fn the_sample_has_the_defaults_of_the_program() {
    let sample = read(".env.sample");
    for var in env_vars::ALL {
        let name = var.name;
        let expected = match (&var.default, &var.kind) {
            (DefaultValue::Value(default), _) => Some(*default),
            (_, Kind::Secret) => Some(""),
            // The sample has an example.
            _ => None,
        };
        let found = sample_value(&sample, var);
        assert!(
            found.is_some() && expected.is_none_or(|expected| found == Some(expected)),
            ".env.sample differs from src/config/env_vars.rs; put this there:\n# {}.\n# {name}={}",
            var.description(),
            expected.unwrap_or_default()
        );
    }
}

#[test]
fn every_option_in_the_documentation_exists() {
    let commands = commands();
    let known: BTreeMap<&str, BTreeSet<String>> = commands
        .iter()
        .map(|command| (command.as_str(), options_of(&help(command))))
        .collect();
    assert!(known[""].contains("--dataFolder"), "{known:?}");
    assert!(known["status"].contains("--silent-after"), "{known:?}");
    let of_scripts: BTreeSet<String> = ["powerview-company", "powerview-user", "powerview-setup"]
        .iter()
        .flat_map(|script| {
            let output = Command::new(root().join(script))
                .arg("--help")
                .output()
                .expect("the script starts");
            options_of(&String::from_utf8_lossy(&output.stdout))
        })
        .collect();
    assert!(of_scripts.contains("--move"), "{of_scripts:?}");
    assert!(of_scripts.contains("--publish-influxdb"), "{of_scripts:?}");
    let anywhere: BTreeSet<&String> = known.values().flatten().chain(&of_scripts).collect();

    let mut mentioned = BTreeSet::new();
    for (name, page) in pages() {
        for piece in code(&page) {
            for (command, option) in options_given(&piece, &commands) {
                let exists = if piece.starts_with("--") {
                    anywhere.contains(&option)
                } else {
                    known[command.as_str()].contains(&option)
                };
                assert!(
                    exists || ALIASES.contains(&option.as_str()),
                    "{name}: `{piece}`: there is no option {option}"
                );
                mentioned.insert(option);
            }
        }
    }
    for option in ["--dataFolder", "--retry-errors", "--silent-after", "--json"] {
        assert!(mentioned.contains(option), "{option} in {mentioned:?}");
    }
}

#[test]
fn the_aliases_of_options_are_accepted() {
    for alias in ALIASES {
        let output = Command::new(env!("CARGO_BIN_EXE_powerview"))
            .args([alias, "x", "--help"])
            .env_clear()
            .output()
            .expect("powerview starts");
        assert!(output.status.success(), "{alias}");
    }
}

/// The anchors of a page's headings, in the form that code hosting sites give them.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut in_fence = false;
    let mut anchors = BTreeSet::new();
    for line in page.lines() {
        if line.starts_with("```") {
            in_fence = !in_fence;
        }
        let title = line.trim_start_matches('#');
        if in_fence || title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let anchor: String = title
            .trim()
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        // The second heading of a name gets "-1", and so on.
        let mut numbered = anchor.clone();
        let mut number = 0;
        while !anchors.insert(numbered) {
            number += 1;
            numbered = format!("{anchor}-{number}");
        }
    }
    anchors
}

/// The targets of the links in a page, without those in code.
fn links(page: &str) -> Vec<String> {
    let mut in_fence = false;
    let mut links = Vec::new();
    for line in page.lines() {
        if line.starts_with("```") {
            in_fence = !in_fence;
        }
        if !in_fence {
            let targets = line.split("](").skip(1);
            links.extend(targets.filter_map(|t| Some(t.split_once(')')?.0.to_owned())));
        }
    }
    links
}

#[test]
fn every_link_between_the_pages_resolves() {
    let pages = pages();
    let mut followed = 0;
    for (name, page) in &pages {
        for link in links(page) {
            if link.contains("://") {
                continue;
            }
            followed += 1;
            let (path, anchor) = match link.split_once('#') {
                Some((path, anchor)) => (path, Some(anchor)),
                None => (link.as_str(), None),
            };
            let folder = Path::new(name).parent().unwrap_or(Path::new(""));
            let target = if path.is_empty() {
                PathBuf::from(name)
            } else {
                resolved(&folder.join(path))
            };
            assert!(
                root().join(&target).exists(),
                "{name}: the target of the link {link} does not exist"
            );
            if let Some(anchor) = anchor {
                let target = pages.get(target.to_str().expect("UTF-8"));
                let found = target.is_some_and(|text| anchors(text).contains(anchor));
                assert!(found, "{name}: the page has no heading for the link {link}");
            }
        }
    }
    assert!(followed > 20, "only {followed} links were found");
}

/// A relative path without `..`.
fn resolved(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path {
        if part == ".." {
            assert!(parts.pop(), "{} leaves the repository", path.display());
        } else {
            parts.push(part);
        }
    }
    parts
}

/// The source files below a folder.
fn sources(folder: &str) -> Vec<PathBuf> {
    walkdir::WalkDir::new(root().join(folder))
        .into_iter()
        .map(|entry| entry.expect("an entry").into_path())
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .collect()
}

#[test]
fn every_path_in_the_documentation_exists() {
    const FOLDERS: [&str; 8] = [
        ".ci/",
        "benches/",
        "deploy/",
        "docs/",
        "fixtures/",
        "fuzz/",
        "grafana-automation/",
        "src/",
    ];
    let mut found = 0;
    for (name, page) in pages() {
        for piece in code(&page) {
            for word in piece.split_whitespace() {
                let in_repository = word.starts_with("tests/it/")
                    || FOLDERS.iter().any(|folder| word.starts_with(folder));
                if !in_repository || word.contains(['*', '<', '{']) {
                    continue;
                }
                found += 1;
                assert!(
                    root().join(word).exists(),
                    "{name}: `{piece}`: there is no {word}"
                );
            }
        }
    }
    assert!(found > 40, "only {found} paths were found");
}

#[test]
fn every_name_on_the_architecture_page_is_in_the_code() {
    let text: String = ["src", "tests"]
        .iter()
        .flat_map(|folder| sources(folder))
        .map(|path| fs::read_to_string(path).expect("a source file"))
        .collect();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let words: BTreeSet<&str> = text.split(|c| !is_word(c)).collect();
    let page = read("docs/architecture.md");
    let spans = page.lines().filter(|line| !line.starts_with("    "));
    let spans = spans.flat_map(|line| line.split('`').skip(1).step_by(2));
    let mut found = 0;
    for span in spans {
        if span.chars().all(|c| is_word(c) || c == ':') {
            for name in span.split("::") {
                assert!(words.contains(name), "`{span}` is not in the code");
                found += 1;
            }
        }
    }
    assert!(found > 40, "only {found} names were found");
}

#[test]
fn the_messages_of_common_mistakes_are_those_of_the_programs() {
    let programs: String = ["src", "grafana-automation/playbooks"]
        .iter()
        .flat_map(|folder| walkdir::WalkDir::new(root().join(folder)))
        .map(|entry| entry.expect("an entry").into_path())
        .chain(["on-upload.sh", "powerview-company"].map(|name| root().join(name)))
        .filter(|path| path.is_file())
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect();
    let page = read(USAGE_PAGE);
    let section = page.split_once("\n## Ten common mistakes\n");
    let section = section.expect("the section").1;
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows: Vec<&str> = section
        .lines()
        .filter(|line| line.starts_with("| "))
        .skip(1)
        .collect();
    assert_eq!(rows.len(), 10);
    let mut quoted = 0;
    for row in rows {
        let seen = row.split('|').nth(1).expect("the first column");
        for message in seen.split('`').skip(1).step_by(2) {
            quoted += 1;
            for part in message.split("...").map(str::trim) {
                assert!(
                    programs.contains(part),
                    "{USAGE_PAGE}: `{message}`: no program says {part:?}"
                );
            }
        }
    }
    assert!(quoted >= 10, "only {quoted} messages were found");
}

#[test]
fn every_section_that_the_code_cites_exists() {
    const PAGE: &str = "docs/specification.md";
    let specification = read(PAGE);
    let mut cited = 0;
    for folder in ["src", "tests", "benches", "fuzz"] {
        for path in sources(folder) {
            let text = fs::read_to_string(&path).expect("a source file");
            for citation in text.split(&format!("{PAGE}, section")).skip(1) {
                let numbers = citation.trim_start_matches('s').trim_start();
                let numbers: String = numbers
                    .chars()
                    .take_while(|c| c.is_ascii_digit() || ", andto".contains(*c))
                    .collect();
                let numbers: Vec<&str> = numbers
                    .split(|c: char| !c.is_ascii_digit())
                    .filter(|n| !n.is_empty())
                    .collect();
                // The pattern in this file is followed by no number.
                if path.ends_with("tests/it/docs.rs") && numbers.is_empty() {
                    continue;
                }
                assert!(!numbers.is_empty(), "{}: which section?", path.display());
                for number in numbers {
                    cited += 1;
                    assert!(
                        specification.contains(&format!("\n## {number}. ")),
                        "{}: {PAGE} has no section {number}",
                        path.display()
                    );
                }
            }
        }
    }
    assert!(cited > 20, "only {cited} citations were found");
}
