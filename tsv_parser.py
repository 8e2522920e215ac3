#!/usr/bin/env python3
"""Replaces the old script of this name: runs powerview for hooks and cron jobs that still call the script.

The binary is POWERVIEW_BIN, else bin/powerview beside this file, else the one in PATH, as in on-upload.sh. It reads .env
in the working directory, else, like the old script, the one beside this file, which counts as POWERVIEW_BASE unless that
is set. If the caller has set the variables in the environment, as a hook that sources .env does, they are not needed.
"""

import os
import shutil
import sys

here = os.path.dirname(os.path.realpath(__file__))
if not os.environ.get("INFLUXDB_ORG") and not os.environ.get("POWERVIEW_BASE"):
    os.environ["POWERVIEW_BASE"] = here
installed = os.path.join(here, "bin", "powerview")
binary = os.environ.get("POWERVIEW_BIN") or (installed if os.access(installed, os.X_OK) else shutil.which("powerview"))
try:
    os.execvp(binary or "powerview", ["powerview", *sys.argv[1:]])
except OSError as error:
    sys.exit(f"cannot run {binary or 'powerview'}: {error.strerror}; install the binary at {installed} or set POWERVIEW_BIN")
