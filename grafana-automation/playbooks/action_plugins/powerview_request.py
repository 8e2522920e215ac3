"""Sends a request with JSON to one of the servers, and returns the status and the answer.

This is a subset of the module ansible.builtin.uri, which starts and compiles a Python program for each request. The plugin
sends the request from Ansible's own process, which takes a tenth of the time.
"""

import http.client
import json
import urllib.error

from ansible.module_utils import urls
from ansible.plugins.action import ActionBase

ARGUMENTS = {
    "url": {"type": "str", "required": True},
    "method": {"type": "str", "default": "GET"},
    "headers": {"type": "dict", "default": {}},
    "body": {"type": "raw"},
    # A request with another status fails.
    "status_code": {"type": "list", "elements": "int", "default": [200]},
    "url_username": {"type": "str"},
    "url_password": {"type": "str", "no_log": True},
    "timeout": {"type": "int", "default": 30},
}


def send(url, method, headers, body, url_username, url_password, timeout):
    """Returns the status of the answer and its body. Raises an error if there is no answer."""
    try:
        answer = urls.open_url(
            url,
            method=method,
            headers={"Content-Type": "application/json", **headers},
            data=None if body is None else json.dumps(body),
            url_username=url_username,
            url_password=url_password,
            force_basic_auth=True,
            use_netrc=False,
            timeout=timeout,
            follow_redirects="safe",
            http_agent="powerview",
        )
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.code, answer.read()


class ActionModule(ActionBase):
    """The result has `url`, `status` (-1 without an answer) and, if the answer is JSON, `json`."""

    def run(self, tmp=None, task_vars=None):
        self._supports_check_mode = False
        result = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(ARGUMENTS)
        expected = args.pop("status_code")
        result["url"] = args["url"]
        try:
            result["status"], content = send(**args)
            reason = "the answer has the status %d" % result["status"]
        except (OSError, ValueError, http.client.HTTPException, urls.ConnectionError) as error:
            result["status"], content = -1, b""
            reason = str(error)
        try:
            result["json"] = json.loads(content)
        except ValueError:
            pass
        if result["status"] not in expected:
            result.update(failed=True, msg=reason)
        return result
