#!/usr/bin/env python3
"""Stands where the old script stood, for hooks and cron jobs that still call it: becomes powerview.

The binary is looked for as on-upload.sh does: POWERVIEW_BIN, bin/powerview beside this file, the path. As with the old
script, the .env beside this file counts, wherever it is called from; but not where one lies in the working directory, or
where the caller has put the settings into the environment, as hooks that source .env do.
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
beside = os.path.join(here, "bin", "powerview")
binary = os.environ.get("POWERVIEW_BIN") or (beside if os.access(beside, os.X_OK) else shutil.which("powerview"))
try:
    os.execvp(binary or "powerview", ["powerview", *arguments])
except OSError as error:
    sys.exit(f"{binary or 'powerview'}: {error.strerror}. Put the binary at {beside}, or its place into POWERVIEW_BIN.")
