"""Prints the messages of debug tasks and of failures, and nothing else."""

import sys

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: powerview_messages
type: stdout
short_description: messages only
description: Prints the messages of debug tasks on stdout, and those of failures on stderr.
"""


class CallbackModule(CallbackBase):
    """Tasks with no_log have no message here. What failed in them is reported by the task that explains it."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "powerview_messages"

    def v2_runner_on_ok(self, result):
        """Prints the message of a debug task."""
        if result._task.action in ("debug", "ansible.builtin.debug"):
            lines = result._result.get("msg", "")
            print("\n".join(lines) if isinstance(lines, list) else lines)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        """Prints why a task failed."""
        if "msg" in result._result and "censored" not in result._result:
            print("failed: %s" % result._result["msg"], file=sys.stderr)

    def v2_runner_on_unreachable(self, result):
        """Prints why a host cannot be reached."""
        self.v2_runner_on_failed(result)
