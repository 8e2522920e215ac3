"""Creates or removes the marker file `.dashboard.created`, which shows that the dashboard of a campaign exists.

Uploaders own these folders and can place symbolic links in them. All operations are therefore relative to an open folder,
and none of them follows a link.
"""

import errno
import os
import stat

from ansible.module_utils.basic import AnsibleModule

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


def main():
    module = AnsibleModule(
        argument_spec={
            "data": {"type": "str", "required": True},
            "company": {"type": "str", "required": True},
            "campaign": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ["campaign"])],
    )
    is_present = module.params["state"] == "present"
    try:
        data = os.open(module.params["data"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        if not is_present:
            module.exit_json(changed=False)
        module.fail_json(msg="the data folder %s does not exist; correct SFTPGO_BASE" % module.params["data"])
    try:
        company = enter(data, module.params["company"], is_present)
        if company is None:
            module.exit_json(changed=False)
        changed = put(enter(company, module.params["campaign"], True)) if is_present else remove(company)
    except OSError as error:
        module.fail_json(msg="cannot access %s: %s; check its permissions, and that no folder here is a symbolic link" % (error.filename, error.strerror))
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
