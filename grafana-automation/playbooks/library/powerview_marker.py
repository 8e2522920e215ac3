"""Puts or removes `.dashboard.created`, the sign that a campaign's dashboard exists.

Whoever uploads owns these folders and can put a symbolic link anywhere in them; every step is therefore taken from an
open folder to a name in it, and none of them follows a link.
"""

import errno
import os
import stat

from ansible.module_utils.basic import AnsibleModule

MARKER = ".dashboard.created"
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def enter(parent, name, create):
    """Opens the folder `name` of `parent`; a new one gets its parent's owner and mode. None where there is none."""
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
    want = module.params["state"] == "present"
    try:
        data = os.open(module.params["data"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        if not want:
            module.exit_json(changed=False)
        module.fail_json(msg="the data folder %s is missing: set SFTPGO_BASE" % module.params["data"])
    try:
        company = enter(data, module.params["company"], want)
        if company is None:
            module.exit_json(changed=False)
        changed = put(enter(company, module.params["campaign"], True)) if want else remove(company)
    except OSError as error:
        module.fail_json(msg="%s: %s (a folder here may be no symbolic link)" % (error.filename, error.strerror))
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
