//! The share of the companies that a host works on. See docs/specification.md, section 9.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::str::FromStr;

/// The greatest number of shards.
const MAX_SHARDS: u32 = 1_000;

/// One or more of a number of shards, such as `2/5`, or `2,3/5`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// The shards, from 1 to `count`, in ascending order.
    numbers: Vec<u32>,
    count: u32,
}

impl Shard {
    /// Whether the company of a path relative to the data folder is in one of the shards.
    ///
    /// A file in the data folder itself counts like a company of its name, so that one host reports it.
    pub(crate) fn has(&self, relative: &Path) -> bool {
        match relative.iter().next() {
            Some(company) => self.numbers.contains(&self.number_of(company)),
            None => true,
        }
    }

    /// Which shard, of as many as these are of, the company of a path relative to the data folder is in: `3/5`.
    pub(crate) fn describe(&self, relative: &Path) -> String {
        let number = self.number_of(relative.iter().next().unwrap_or_default());
        format!("{number}/{}", self.count)
    }

    /// The number of a company: the 64-bit FNV-1a hash of its name, modulo the number of shards, plus 1.
    ///
    /// Hosts with different versions of the program must agree on it, so it never changes.
    fn number_of(&self, company: &OsStr) -> u32 {
        let hash = company
            .as_bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
        u32::try_from(hash % u64::from(self.count)).unwrap_or_default() + 1
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (numbers, count) = text.split_once('/')?;
            let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number > 0);
            let count = number(count).filter(|count| *count <= MAX_SHARDS)?;
            let numbers = numbers.split(',').map(number);
            let mut numbers: Vec<_> = numbers.collect::<Option<_>>()?;
            numbers.sort_unstable();
            numbers.dedup();
            (numbers.last()? <= &count).then_some(Self { numbers, count })
        };
        parse().ok_or_else(|| {
            format!(
                "not a shard; use one such as 2/5, or several such as 2,3/5, of at most {MAX_SHARDS}"
            )
        })
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<_> = self.numbers.iter().map(u32::to_string).collect();
        write!(f, "{}/{}", numbers.join(","), self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(text: &str) -> Shard {
        text.parse().unwrap()
    }

    #[test]
    fn each_company_is_in_one_shard() {
        let shards: Vec<_> = (1..=5).map(|n| shard(&format!("{n}/5"))).collect();
        let mut sizes = [0; 5];
        for n in 0..1_000 {
            let path = format!("company {n}/site/0200");
            let of: Vec<_> = (0..5).filter(|at| shards[*at].has(path.as_ref())).collect();
            assert_eq!(of.len(), 1, "{path}");
            sizes[of[0]] += 1;
        }
        assert!(
            sizes.iter().all(|size| (150..=250).contains(size)),
            "{sizes:?}"
        );
    }

    #[test]
    fn the_shard_of_a_company_never_changes() {
        // Computed by another implementation of FNV-1a.
        for (company, of_5, of_16) in [("acme", 3, 16), ("base", 2, 9), ("été", 5, 8), ("", 3, 6)]
        {
            assert_eq!(shard("1/5").number_of(company.as_ref()), of_5, "{company}");
            assert_eq!(
                shard("1/16").number_of(company.as_ref()),
                of_16,
                "{company}"
            );
        }
    }

    #[test]
    fn several_shards_are_accepted_and_anything_else_is_refused() {
        assert_eq!(shard("3,2,3/5").to_string(), "2,3/5");
        assert_eq!(shard("1/1").to_string(), "1/1");
        for text in [
            "", "2", "0/5", "6/5", "1/0", "1/1001", "1-2/5", "1,/5", "/5", "1/5/6", "-1/5",
        ] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }
}
