"""Creates or removes the marker file `.dashboard.created`, which shows that the dashboard of a campaign exists.

Uploaders own these folders and can place symbolic links in them. All operations are therefore relative to an open folder,
and none of them follows a link.
"""

import errno
import os
import stat

from ansible.plugins.action import ActionBase

MARKER = ".dashboard.created"
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def enter(parent, name, create):
    """Opens the folder `name` in `parent`, or creates it with the owner and mode of `parent`. None if it does not exist."""
    try:
        return os.open(name, FOLDER, dir_fd=parent)
    except FileNotFoundError:
        if not create:
            return None
    like = os.fstat(parent)
    try:
        os.mkdir(name, stat.S_IMODE(like.st_mode), dir_fd=parent)
    except FileExistsError:
        pass
    fd = os.open(name, FOLDER, dir_fd=parent)
    if os.geteuid() == 0:
        os.fchown(fd, like.st_uid, like.st_gid)
    return fd


def put(folder):
    """Creates the marker. Returns whether anything changed."""
    try:
        if stat.S_ISREG(os.stat(MARKER, dir_fd=folder, follow_symlinks=False).st_mode):
            return False
        os.unlink(MARKER, dir_fd=folder)
    except FileNotFoundError:
        pass
    try:
        fd = os.open(MARKER, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=folder)
    except FileExistsError:
        return False
    if os.geteuid() == 0:
        like = os.fstat(folder)
        os.fchown(fd, like.st_uid, like.st_gid)
    os.close(fd)
    return True


def remove(company):
    """Removes the markers of all campaigns. Returns whether anything changed."""
    changed = False
    for name in os.listdir(company):
        try:
            campaign = os.open(name, FOLDER, dir_fd=company)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENOENT):
                continue
            raise
        try:
            os.unlink(MARKER, dir_fd=campaign)
            changed = True
        except FileNotFoundError:
            pass
        finally:
            os.close(campaign)
    return changed


ARGUMENTS = {
    "data": {"type": "str", "required": True},
    "company": {"type": "str", "required": True},
    "campaign": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


def change(data, company, campaign, state):
    """Creates or removes the marker. Returns the result of the task."""
    is_present = state == "present"
    try:
        folder = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        if not is_present:
            return {"changed": False}
        return {"failed": True, "msg": "the data folder %s does not exist; correct SFTPGO_BASE" % data}
    try:
        folder = enter(folder, company, is_present)
        if folder is None:
            return {"changed": False}
        return {"changed": put(enter(folder, campaign, True)) if is_present else remove(folder)}
    except OSError as error:
        msg = "cannot access %s: %s; check its permissions, and that no folder here is a symbolic link"
        return {"failed": True, "msg": msg % (error.filename, error.strerror)}


class ActionModule(ActionBase):
    """Runs in a process of its own for each task, which closes the folders."""

    def run(self, tmp=None, task_vars=None):
        self._supports_check_mode = False
        result = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(ARGUMENTS, required_if=[("state", "present", ["campaign"])])
        result.update(change(**args))
        return result
