//! The device folders below the data folder, and what is misplaced above them. See docs/specification.md, section 1.

use super::pending_files::is_tsv;
use super::walk::{SortedWalk, WalkItem};
use super::{Dir, Shard, is_processed_dir};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The depth of device folders: company, campaign, device.
pub(crate) const DEVICE_DEPTH: usize = 3;

/// Something that was found down to the level of the device folders. Paths are relative to the data folder.
#[derive(Debug)]
pub(crate) enum DeviceItem {
    /// A device folder.
    Device(PathBuf),
    /// A company without a campaign, or a campaign without a device.
    Empty(PathBuf),
    /// A logger file that is not in a device folder.
    Misplaced(PathBuf),
    /// Any other file that is not in a device folder, or something else than a file or folder.
    Other(PathBuf),
    /// A folder that is named like those of processed files.
    Reserved(PathBuf),
    /// A folder that cannot be listed.
    Unlisted(PathBuf, io::Error),
}

/// Iterates over all device folders in the order of their paths.
pub(crate) fn devices(data: &Arc<Dir>) -> impl Iterator<Item = DeviceItem> {
    devices_in(data, Path::new(""))
}

/// Like [`devices_in`], with the companies of a shard only. The folders of other companies are not listed.
pub(crate) fn devices_of(
    data: &Arc<Dir>,
    folder: &Path,
    shard: Option<&Shard>,
) -> Box<dyn Iterator<Item = DeviceItem>> {
    let Some(shard) = shard.cloned() else {
        return Box::new(devices_in(data, folder));
    };
    if !folder.as_os_str().is_empty() {
        let is_of_shard = shard.has(folder);
        return Box::new(devices_in(data, folder).filter(move |_| is_of_shard));
    }
    let data = Arc::clone(data);
    let companies = SortedWalk::new(&data, |_, _| true, |_, _| false);
    let items = companies.filter(move |item| match item {
        WalkItem::File(_, name) => shard.has(Path::new(name)),
        WalkItem::Dir(path) => shard.has(path),
        WalkItem::Special(_) => false,
        WalkItem::Leaf(_) | WalkItem::Unlisted(..) => true,
    });
    Box::new(
        items.flat_map(move |item| -> Box<dyn Iterator<Item = DeviceItem>> {
            match item {
                WalkItem::Dir(company) if !is_reserved(&company) => {
                    Box::new(devices_in(&data, &company))
                }
                item => Box::new(std::iter::once(DeviceItem::of(item))),
            }
        }),
    )
}

/// Iterates over the device folders below `folder`, a path relative to the data folder, in the order of their paths. If
/// `folder` is a device folder, it is the only one.
pub(crate) fn devices_in(
    data: &Arc<Dir>,
    folder: &Path,
) -> impl Iterator<Item = DeviceItem> + use<> {
    let enters = |depth, name: &_| depth < DEVICE_DEPTH && !is_processed_dir(name);
    let depth = folder.components().count();
    let device = (depth == DEVICE_DEPTH).then(|| WalkItem::Dir(folder.to_owned()));
    let walk = (depth < DEVICE_DEPTH)
        .then(|| SortedWalk::starting_at(folder.to_owned(), data, |_, _| true, enters));
    // Links to companies and campaigns are those of the administrator.
    let is_of_user =
        |item: &_| !matches!(item, WalkItem::Special(path) if path.iter().count() < DEVICE_DEPTH);
    let items = device.into_iter().chain(walk.into_iter().flatten());
    items.filter(is_of_user).map(DeviceItem::of)
}

impl DeviceItem {
    fn of(item: WalkItem) -> Self {
        match item {
            WalkItem::File(folder, name) if is_tsv(&name) => Self::Misplaced(folder.join(name)),
            WalkItem::File(folder, name) => Self::Other(folder.join(name)),
            WalkItem::Special(path) => Self::Other(path),
            WalkItem::Dir(path) if is_reserved(&path) => Self::Reserved(path),
            WalkItem::Dir(path) => Self::Device(path),
            WalkItem::Leaf(path) => Self::Empty(path),
            WalkItem::Unlisted(path, error) => Self::Unlisted(path, error),
        }
    }
}

fn is_reserved(path: &Path) -> bool {
    path.file_name().is_some_and(is_processed_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_found_at_the_third_level_in_the_order_of_their_paths() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["b/c/2/sub", "b/c/1", "b/c/parsed", "a/empty", "b/error/x/y"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for file in [
            "top.tsv",
            "b/c/in campaign.tsv",
            "b/c/1/x.tsv",
            "b/other.txt",
        ] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        for link in ["link", "a/link", "b/c/link", "b/c/link.tsv", "b/c/1/link"] {
            std::os::unix::fs::symlink(dir.path().join("b"), dir.path().join(link)).unwrap();
        }
        let data = Arc::new(Dir::open(dir.path()).unwrap());
        let names = |items: &mut dyn Iterator<Item = DeviceItem>| {
            items.map(|item| format!("{item:?}")).collect::<Vec<_>>()
        };
        let found = names(&mut devices(&data));
        assert_eq!(
            found,
            [
                "Empty(\"a/empty\")",
                "Device(\"b/c/1\")",
                "Device(\"b/c/2\")",
                "Misplaced(\"b/c/in campaign.tsv\")",
                "Other(\"b/c/link\")",
                "Other(\"b/c/link.tsv\")",
                "Reserved(\"b/c/parsed\")",
                "Reserved(\"b/error\")",
                "Other(\"b/other.txt\")",
                "Misplaced(\"top.tsv\")",
            ]
        );
        let below = |folder| names(&mut devices_in(&data, Path::new(folder)));
        assert_eq!(below("b"), found[1..9]);
        assert_eq!(below("b/c"), found[1..7]);
        assert_eq!(below("b/c/2"), found[2..3]);
        assert_eq!(below("a"), found[..1]);
        // Another implementation of FNV-1a gives these shards.
        let of = |shard: &str| {
            let shard = shard.parse().unwrap();
            names(&mut devices_of(&data, Path::new(""), Some(&shard)))
        };
        assert_eq!(of("2/4"), found[1..9]);
        assert_eq!(of("1/4"), found[..1]);
        assert_eq!(of("4/4"), found[9..]);
    }
}
