#!/usr/bin/env python3
"""Stands where the old script stood, for hooks and cron jobs that still call it: becomes powerview.

The binary is looked for as on-upload.sh does: POWERVIEW_BIN, bin/powerview beside this file, the path.
"""

import os
import shutil
import sys

beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bin", "powerview")
binary = os.environ.get("POWERVIEW_BIN") or (beside if os.access(beside, os.X_OK) else shutil.which("powerview"))
try:
    os.execvp(binary or "powerview", ["powerview", *sys.argv[1:]])
except OSError as error:
    sys.exit(f"{binary or 'powerview'}: {error.strerror}. Put the binary at {beside}, or its place into POWERVIEW_BIN.")
