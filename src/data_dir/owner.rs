//! Ownership of what a run as root creates. See docs/specification.md, section 1.

use super::{Dir, ERROR, PARSED, is_no_folder};
use rustix::fs::{Access, AtFlags, accessat, fchown, fstat};
use rustix::process::geteuid;
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

impl Dir {
    /// The first of the device folder, `parsed/` and `error/` in which this user, or the owner of the device folder if
    /// this is root, cannot create and remove files.
    pub(crate) fn first_unwritable(&self) -> io::Result<Option<PathBuf>> {
        let owner = fstat(&self.fd)?.st_uid;
        for sub in ["", PARSED, ERROR] {
            let folder = match self.open_below(Path::new(sub)) {
                Ok(folder) => folder,
                Err(error) if is_no_folder(&error) => continue,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return Ok(Some(sub.into()));
                }
                Err(error) => return Err(error),
            };
            let stat = fstat(&folder.fd)?;
            let is_writable = if geteuid().is_root() {
                stat.st_uid == owner || stat.st_mode & 0o022 != 0
            } else {
                let wanted = Access::WRITE_OK | Access::EXEC_OK;
                accessat(&folder.fd, ".", wanted, AtFlags::EACCESS).is_ok()
            };
            if !is_writable {
                return Ok(Some(sub.into()));
            }
        }
        Ok(None)
    }
}
