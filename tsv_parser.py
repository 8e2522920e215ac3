#!/usr/bin/env python3
"""Replaces the old script of this name: runs powerview for hooks and cron jobs that still call the script.

The binary is POWERVIEW_BIN, else bin/powerview beside this file, else the one in PATH, as in on-upload.sh. Like the old
script, this one uses the .env file beside it, whatever the working directory. It does not if the working directory has its
own .env file, or if the caller has set the variables in the environment, as a hook that sources .env does.
"""

import os
import shutil
import sys

here = os.path.dirname(os.path.abspath(__file__))
arguments = sys.argv[1:]
env_file = os.path.join(here, ".env")
if (
    not os.environ.get("INFLUXDB_ORG")
    and os.path.isfile(env_file)
    and os.access(env_file, os.R_OK)
    and not os.path.lexists(".env")
    and not any(argument.split("=")[0] == "--env-file" for argument in arguments)
):
    arguments += ["--env-file", env_file]
installed = os.path.join(here, "bin", "powerview")
binary = os.environ.get("POWERVIEW_BIN") or (installed if os.access(installed, os.X_OK) else shutil.which("powerview"))
try:
    os.execvp(binary or "powerview", ["powerview", *arguments])
except OSError as error:
    sys.exit(f"cannot run {binary or 'powerview'}: {error.strerror}; install the binary at {installed} or set POWERVIEW_BIN")
