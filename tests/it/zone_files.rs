// Zone files (TZif, RFC 9636) made by the tests, so that they need neither the system's database nor its compiler.

use std::path::Path;

/// What a zone file says.
#[derive(Clone, Copy, Default)]
pub(crate) struct ZoneFile<'a> {
    /// Seconds east of UTC, whether it is daylight saving, abbreviation. The first holds before the first change.
    pub kinds: &'a [(i32, bool, &'a str)],
    /// From when on, in seconds since 1970 (and leap seconds, if there are any), which of `kinds` holds.
    pub changes: &'a [(i64, usize)],
    /// When, and by how many seconds in all, Unix time is behind from then on.
    pub leap_seconds: &'a [(i64, i32)],
    /// What holds after the last change, as a POSIX string.
    pub rule: &'a str,
}

impl<'a> ZoneFile<'a> {
    /// A file with nothing but a rule.
    pub(crate) fn of_rule(rule: &'a str) -> Self {
        Self {
            kinds: &[(0, false, "UTC")],
            rule,
            ..Self::default()
        }
    }

    /// The bytes of the file: version 2, with an empty block of version 1.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let header = |leaps: usize, changes: usize, kinds: usize, chars: usize| {
            let mut header = b"TZif2".to_vec();
            header.extend([0; 15]);
            for count in [0, 0, leaps, changes, kinds, chars] {
                header.extend((count as u32).to_be_bytes());
            }
            header
        };
        let mut names = Vec::new();
        let mut kinds = Vec::new();
        for (offset, is_dst, name) in self.kinds {
            kinds.extend(offset.to_be_bytes());
            kinds.extend([u8::from(*is_dst), names.len() as u8]);
            names.extend(name.bytes());
            names.push(0);
        }
        let mut file = header(0, 0, 1, 4);
        file.extend(*b"\0\0\0\0\0\0UTC\0");
        file.extend(header(
            self.leap_seconds.len(),
            self.changes.len(),
            self.kinds.len(),
            names.len(),
        ));
        for (at, _) in self.changes {
            file.extend(at.to_be_bytes());
        }
        file.extend(self.changes.iter().map(|(_, kind)| *kind as u8));
        file.extend(kinds);
        file.extend(names);
        for (at, seconds) in self.leap_seconds {
            file.extend(at.to_be_bytes());
            file.extend(seconds.to_be_bytes());
        }
        file.extend(format!("\n{}\n", self.rule).bytes());
        file
    }

    /// Writes the file as that of a zone below a zone folder.
    pub(crate) fn write(&self, dir: &Path, name: &str) {
        write(dir, name, &self.bytes());
    }
}

/// Writes a file below a zone folder, whatever it holds.
pub(crate) fn write(dir: &Path, name: &str, bytes: &[u8]) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    std::fs::write(path, bytes).expect("written");
}
