//! Ownership of what a run as root creates. See docs/specification.md, section 1.

use super::{Dir, ERROR, PARSED, is_no_folder};
use crate::remedy::remedy;
use crate::sanitize::sanitize;
use rustix::fs::{Access, AtFlags, accessat, fchown, fstat};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Gives a file or folder that this process created to the owner of `folder`, if the process runs as root.
///
/// Otherwise a single run as root would leave files that the user of the hook cannot change.
pub(crate) fn give_to_owner_of(folder: impl AsFd, created: impl AsFd) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let like = fstat(folder)?;
    let (user, group) = (
        rustix::fs::Uid::from_raw(like.st_uid),
        rustix::fs::Gid::from_raw(like.st_gid),
    );
    Ok(fchown(created, Some(user), Some(group))?)
}

/// Creates a folder with its parents. Folders that root creates belong to the owner of the first one that exists.
pub(crate) fn create_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create_dir(parent)?;
        std::fs::create_dir_all(dir)?;
        return give_to_owner_of(File::open(parent)?, File::open(dir)?);
    }
    std::fs::create_dir_all(dir)
}

/// Why the files of a device cannot be moved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Obstacle {
    /// `parsed` or `error` is a file, a link or something else.
    #[error("{} is not a folder; rename or remove it", sanitize(.0))]
    NotAFolder(PathBuf),
    /// The file system is mounted read-only.
    #[error(
        "{} is on a read-only file system; {}",
        sanitize(.0),
        remedy(&Errno::ROFS.into(), "")
    )]
    ReadOnly(PathBuf),
    /// The user may not create and remove files in the folder.
    #[error(
        "{} is the first folder that is not writable; make it and the files in it belong to the user of the hook: chown -R",
        sanitize(.0)
    )]
    Rights(PathBuf),
}

impl Dir {
    /// The first obstacle to moving files in the device folder, `parsed/` and `error/`. It has the rights of this user,
    /// or of the owner of the device folder if this is root.
    pub(crate) fn obstacle(&self) -> io::Result<Option<Obstacle>> {
        let owner = fstat(&self.fd)?.st_uid;
        for sub in ["", PARSED, ERROR] {
            let path = || self.path.iter().chain(Path::new(sub)).collect();
            let folder = match self.open_below(Path::new(sub)) {
                Ok(folder) => folder,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if is_no_folder(&error) => {
                    return Ok(Some(Obstacle::NotAFolder(path())));
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return Ok(Some(Obstacle::Rights(path())));
                }
                Err(error) => return Err(error),
            };
            let stat = fstat(&folder.fd)?;
            let wanted = Access::WRITE_OK | Access::EXEC_OK;
            let is_writable = match accessat(&folder.fd, ".", wanted, AtFlags::EACCESS) {
                Err(Errno::ROFS) => return Ok(Some(Obstacle::ReadOnly(path()))),
                _ if geteuid().is_root() => stat.st_uid == owner || stat.st_mode & 0o022 != 0,
                result => result.is_ok(),
            };
            if !is_writable {
                return Ok(Some(Obstacle::Rights(path())));
            }
        }
        Ok(None)
    }
}
