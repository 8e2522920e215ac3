"""Filters for the playbooks: rules for names, uids, comparison of permissions, and copies of dashboards."""

import copy
import hashlib
import itertools
import json
import re
import sys
import unicodedata

# Characters that are letters or marks by category, but invisible: Hangul fillers, variation selectors, joiners.
INVISIBLE = frozenset(
    [0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, *range(0x180B, 0x1810), *range(0xFE00, 0xFE10),
     *range(0xE0100, 0xE01F0)]
)
# The names of buckets that are rebuilt, and of former ones.
REBUILT = re.compile(r"\.rebuild\Z|\.before-[0-9]{4}-[0-9]{2}-[0-9]{2}(-[0-9]+)?\Z")
# The measurements that are no campaigns, and what they are for.
RESERVED = {"powerview_1h": "hourly summaries", "powerview_channels": "the catalogues of channels"}
VIEW = 1


def name_refusal(name):
    """Returns why the name of a company or campaign is refused, or an empty string if it is allowed.

    Allowed are letters and digits of any language with their combining marks, space, ".", "_" and "-". on-upload.sh checks
    names before it starts Ansible; the playbooks check them again, because they can be run by hand.
    """
    if not isinstance(name, str):
        return "it is not a string"
    if not 1 <= len(name) <= 64:
        return "it has %d characters; the length must be 1 to 64" % len(name)
    if name[0] in ".-_":
        return "it starts with %r" % name[0]
    if name[0] == " " or name[-1] == " ":
        return "it starts or ends with a space, which Grafana removes"
    on_letter = False
    for c in name:
        kind = unicodedata.category(c)
        if ord(c) in INVISIBLE or not (kind[0] in "LN" or c in " ._-" or kind in ("Mn", "Mc") and on_letter):
            return "the character %s is not allowed" % ascii(c)
        on_letter = kind[0] in "LM"
    return ""


def company_refusal(name):
    """Returns why the name of a company is refused, or an empty string if it is allowed."""
    refusal = name_refusal(name)
    if not refusal and REBUILT.search(name):
        refusal = "names that end in .rebuild or .before- and a date are reserved for buckets that are rebuilt"
    return refusal


def campaign_refusal(name):
    """Returns why the name of a campaign is refused, or an empty string if it is allowed."""
    refusal = name_refusal(name)
    if refusal or name not in RESERVED:
        return refusal
    return "the name is reserved for %s" % RESERVED[name]


def uid(name, *more):
    """Returns a uid derived from the names, so that two runs cannot create duplicates. Grafana allows 40 characters.

    The links of the overview compute it, too.
    """
    text = "\n".join([name, *more])
    return "pv-" + hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def titled(items, title):
    """Returns the items of a Grafana search with exactly this title. Grafana itself also finds similar titles."""
    return [item for item in items or [] if item.get("title") == title]


def view_rights(team_id):
    """Returns the permissions of a folder or dashboard that only this team and admins can view."""
    return {"items": [{"teamId": int(team_id), "permission": VIEW}]}


def only_team_views(permissions, team_id):
    """Whether `permissions` equal `view_rights`. Permissions that a dashboard inherits from its folder are ignored."""
    own = [p for p in permissions or [] if not p.get("inherited")]
    if len(own) != 1:
        return False
    p = own[0]
    return p.get("teamId") == int(team_id) and p.get("permission") == VIEW and not p.get("role") and not p.get("userId")


# Placeholder for a removed header. Grafana reads httpHeaderName1, 2, ... up to the first missing one, and later headers
# cannot be renumbered, because their secret values cannot be read.
REMOVED_HEADER = "X-PowerView-Removed"
# Settings of other ways to authenticate than the token of the data source, and their secrets.
OTHER_SIGN_IN = ("oauthPassThru", "sigV4Auth")
OTHER_SECRETS = ("basicAuthPassword", "password", "sigV4AccessKey", "sigV4SecretKey")


def _is_kept_header(name):
    return isinstance(name, str) and name.strip().lower() not in ("", "authorization", REMOVED_HEADER.lower())


def without_other_sign_in(json_data):
    """Returns the jsonData of a data source without settings that make Grafana authenticate without its token.

    For example, a custom header "Authorization" replaces the token in every request to InfluxDB.
    """
    kept = {key: value for key, value in json_data.items() if key not in OTHER_SIGN_IN}
    sent = ["httpHeaderName%d" % (n + 1) for n in range(len(kept))]
    sent = list(itertools.takewhile(kept.get, sent))
    # Headers before the last kept one must keep their numbers.
    while sent and not _is_kept_header(kept[sent[-1]]):
        sent.pop()
    for key in [key for key in kept if key.startswith("httpHeaderName") and not _is_kept_header(kept[key])]:
        if key in sent:
            kept[key] = REMOVED_HEADER
        else:
            del kept[key]
    return kept


def secrets_to_erase(json_data, secure_fields):
    """Returns the names of stored secrets that must be erased. `json_data` is the new jsonData."""
    headers = "httpHeaderValue"
    stored = sorted(name for name, is_set in (secure_fields or {}).items() if is_set)
    return [
        name
        for name in stored
        if name in OTHER_SECRETS
        or name.startswith(headers)
        and not _is_kept_header(json_data.get("httpHeaderName" + name[len(headers) :]))
    ]


def data_source(wanted, before, token=""):
    """Returns the request body for the data source. Other settings of `before` are kept, except other credentials.

    Grafana merges stored secrets with those of the request. A secret is erased by sending an empty string.
    """
    json_data = dict(
        without_other_sign_in(before.get("jsonData") or {}),
        version="Flux",
        organization=wanted["organization"],
        defaultBucket=wanted["bucket"],
        powerviewTokenId=wanted["token_id"],
    )
    secrets = {name: "" for name in secrets_to_erase(json_data, before.get("secureJsonFields"))}
    if token:
        secrets["token"] = token
    body = {
        "name": wanted["name"],
        "uid": before.get("uid") or wanted["uid"],
        "type": "influxdb",
        "access": "proxy",
        "url": wanted["url"] or before.get("url") or wanted["default_url"],
        "isDefault": bool(before.get("isDefault")),
        # Cleared, because Grafana's data source proxy would send these to InfluxDB.
        "user": "",
        "basicAuth": False,
        "withCredentials": False,
        # Grafana rejects the update (409) if the data source has changed since the lookup.
        "version": int(before.get("version") or 0),
        "jsonData": json_data,
    }
    if secrets:
        body["secureJsonData"] = secrets
    return body


def is_data_source(wanted, before):
    """Whether the data source is up to date."""
    body = data_source(wanted, before)
    same = all(before.get(key) == body[key] for key in ("type", "access", "url", "jsonData"))
    return same and "secureJsonData" not in body and not any(before.get(key) for key in ("user", "basicAuth", "withCredentials"))


def reads_only(authorization, bucket_id):
    """Whether an InfluxDB token is active and has read access to this bucket only."""
    permissions = (authorization or {}).get("permissions") or []
    if (authorization or {}).get("status") != "active" or len(permissions) != 1:
        return False
    resource = permissions[0].get("resource", {})
    return permissions[0].get("action") == "read" and (resource.get("type"), resource.get("id")) == ("buckets", bucket_id)


def _with_data_source(value, source):
    if isinstance(value, list):
        return [_with_data_source(v, source) for v in value]
    if not isinstance(value, dict):
        return value
    out = {k: _with_data_source(v, source) for k, v in value.items()}
    old = value.get("datasource")
    if isinstance(old, dict) and (old.get("type") == "influxdb" or str(old.get("uid", "")).startswith("${DS_")):
        out["datasource"] = dict(source)
    elif isinstance(old, str) and not old.startswith("--") and old != "grafana":
        out["datasource"] = dict(source)
    return out


def client_dashboard(template, title, dashboard_uid, source_uid):
    """Returns a copy of a template with another title, uid and data source, without the ids of the template."""
    dashboard = _with_data_source(copy.copy(template), {"type": "influxdb", "uid": source_uid})
    for key in ("id", "version", "__inputs", "__requires", "__elements", "iteration", "gnetId"):
        dashboard.pop(key, None)
    dashboard.update(title=title, uid=dashboard_uid)
    templating = dashboard.get("templating") or {}
    # A data source variable would list the data sources of all companies.
    kept = [v for v in templating.get("list", []) if v.get("type") != "datasource"]
    dashboard["templating"] = dict(templating, list=kept)
    return dashboard


# The permissions of an SFTP user: all except to create symbolic links and to change modes, owners and times.
UPLOAD = ["list", "download", "upload", "overwrite", "delete", "rename", "create_dirs", "copy"]

# The names of files that only powerview and the playbooks write, in lower case, as SFTPGo compares them. Sidecars
# (.error.json) are not among them: companies read the reason of an error there, and delete them with their files.
DENIED = [".powerview-*", ".dashboard.created", ".channels.applied"]


def sftp_user(before, name, home, public_key, password):
    """Returns the request body for an enabled SFTP user. Other settings of `before` are kept, also its password."""
    user = dict(before, username=name, status=1, home_dir=before.get("home_dir") or home)
    user["permissions"] = dict(before.get("permissions") or {}, **{"/": UPLOAD})
    user["filters"] = dict(before.get("filters") or {})
    user["filters"]["file_patterns"] = file_patterns(user["filters"].get("file_patterns") or [])
    keys = before.get("public_keys") or []
    if public_key and not any(key == public_key or key.startswith(public_key + " ") for key in keys):
        user["public_keys"] = [*keys, public_key]
    if password:
        user["password"] = password
    return user


def file_patterns(before):
    """Returns the patterns of an SFTP user with those of `DENIED` for all folders. The others are kept."""
    root = next((p for p in before if p["path"] == "/"), {"path": "/"})
    denied = root.get("denied_patterns") or []
    root = dict(root, denied_patterns=[*denied, *(d for d in DENIED if d not in denied)])
    return [root, *(p for p in before if p["path"] != "/")]


def company_list(sftp_users, teams, data_folder):
    """Returns a line per company with the state of its SFTP user and the number of users in Grafana."""
    state = {}
    for user in sftp_users:
        if user["home_dir"].rstrip("/") == "%s/%s" % (data_folder, user["username"]):
            state[user["username"]] = "enabled" if user["status"] == 1 else "disabled"
    members = {team["name"]: team["memberCount"] for team in teams}
    names = sorted({*state, *members})
    width = max(map(len, [*names, "company"]))
    rows = [("company", "SFTP user", "users of Grafana")]
    rows += [(name, state.get(name, "none"), str(members.get(name, "no team"))) for name in names]
    return ["%-*s  %-9s  %s" % (width, *row) for row in rows]


def failure(result, grafana_url, influxdb_url, sftpgo_url):
    """Returns the cause of a failed request and the remedy. Never shows parts of the request, because it contains secrets."""
    failed = [r for r in result.get("results") or [] if r.get("failed")]
    response = failed[0] if failed else result
    if "status" not in response:
        return "%s" % response.get("msg", "no reason given")
    status = response["status"]
    servers = {
        "SFTPGo": (sftpgo_url, "SFTPGO_URL", "systemctl start sftpgo"),
        "InfluxDB": (influxdb_url, "INFLUXDB_HOST", "docker compose up -d, or podman-compose up -d"),
        "Grafana": (grafana_url, "GRAFANA_URL", "docker compose up -d, or podman-compose up -d"),
    }
    path = str(response.get("url", ""))
    # Both have the prefix /api/v2.
    if path.startswith(influxdb_url + "/api/v2/"):
        server = "InfluxDB"
    elif path.startswith(sftpgo_url + "/api/v2/"):
        server = "SFTPGo"
    else:
        server = "Grafana"
    url, variable, start = servers[server]
    message = response.get("json") or {}
    message = message.get("message", "") if isinstance(message, dict) else ""
    if status == -1:
        cause = "%s does not answer at %s" % (server, url)
        remedy = "start it (%s) or correct %s in .env" % (start, variable)
    else:
        cause = "%s answered %s%s" % (server, status, " (%s)" % message if message else "")
        if server == "InfluxDB" and status in (401, 403):
            remedy = "correct INFLUXDB_ADMIN_TOKEN in .env; it needs the rights to create buckets and tokens"
        elif server == "InfluxDB" and status == 404 and "/orgs" in path and not message:
            remedy = "the playbooks need InfluxDB 2; correct INFLUXDB_HOST in .env, or set INFLUXDB_FLAVOR=3 if this is InfluxDB 3"
        elif server == "InfluxDB" and status == 404 and "/orgs" in path:
            remedy = "correct INFLUXDB_ORG in .env"
        elif server == "SFTPGo" and status in (401, 403):
            remedy = "correct SFTPGO_ADMIN_USERNAME and SFTPGO_ADMIN_PASSWORD, or SFTPGO_API_KEY, in .env; the administrator must be allowed to manage users"
        elif status in (401, 403):
            remedy = "correct GRAFANA_USERNAME and GRAFANA_PASSWORD in .env; the user must be an admin of Grafana"
        else:
            remedy = "see the log of the server"
    return "%s; %s, then run this again; completed steps are kept" % (cause, remedy)


class FilterModule:
    """Registers the filters."""

    def filters(self):
        return {
            "powerview_name_refusal": name_refusal,
            "powerview_company_refusal": company_refusal,
            "powerview_campaign_refusal": campaign_refusal,
            "powerview_uid": uid,
            "powerview_titled": titled,
            "powerview_only_team_views": only_team_views,
            "powerview_view_rights": view_rights,
            "powerview_data_source": data_source,
            "powerview_is_data_source": is_data_source,
            "powerview_reads_only": reads_only,
            "powerview_failure": failure,
            "powerview_sftp_user": sftp_user,
            "powerview_company_list": company_list,
            "powerview_client_dashboard": client_dashboard,
        }


def main(company, campaign):
    """Prints the extra variables for the playbook as JSON. If a name is refused, prints why and exits with status 3."""
    for what, reason in (("company", company_refusal(company)), ("campaign", campaign_refusal(campaign))):
        if reason:
            print("the %s name is refused: %s" % (what, reason))
            sys.exit(3)
    print(json.dumps({"company_name": company, "campaign_name": campaign}))


if __name__ == "__main__":
    main(*sys.argv[1:])
