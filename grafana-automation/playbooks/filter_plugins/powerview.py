"""What the playbooks compute: which names are allowed, the uids, the comparison of rights, the client's dashboard."""

import copy
import hashlib
import itertools
import json
import sys
import unicodedata

# Letters and marks by category, yet drawn as nothing: Hangul fillers, variation selectors, joiners.
INVISIBLE = frozenset(
    [0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, *range(0x180B, 0x1810), *range(0xFE00, 0xFE10),
     *range(0xE0100, 0xE01F0)]
)
VIEW = 1


def name_refusal(name):
    """Why a company's or campaign's name is refused; an empty string for one that is allowed.

    Letters and digits of any language (with the marks that some write on their letters), space, ".", "_" and "-".
    on-upload.sh asks before it starts Ansible, the playbooks ask again for whoever runs them by hand.
    """
    if not isinstance(name, str):
        return "it is not a text"
    if not 1 <= len(name) <= 64:
        return "it has %d characters; 1 to 64 may be" % len(name)
    if name[0] in ".-_":
        return "it starts with %r" % name[0]
    if name[0] == " " or name[-1] == " ":
        return "it starts or ends with a space, which Grafana cuts off"
    on_letter = False
    for c in name:
        kind = unicodedata.category(c)
        if ord(c) in INVISIBLE or not (kind[0] in "LN" or c in " ._-" or kind in ("Mn", "Mc") and on_letter):
            return "the character %s is not allowed" % ascii(c)
        on_letter = kind[0] in "LM"
    return ""


def uid(name, *more):
    """A uid that follows from the names alone, so that two runs cannot make two of one thing. Grafana takes 40."""
    text = "\n".join([name, *more])
    return "pv-" + hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def titled(items, title):
    """The items of a Grafana search with exactly this title; its own match is loose and knows no case."""
    return [item for item in items or [] if item.get("title") == title]


def view_rights(team_id):
    """The rights of a folder or dashboard: this team may view, nobody else below admin may anything."""
    return {"items": [{"teamId": int(team_id), "permission": VIEW}]}


def only_team_views(permissions, team_id):
    """Whether those rights are in force. What a dashboard inherits from its folder does not count."""
    own = [p for p in permissions or [] if not p.get("inherited")]
    if len(own) != 1:
        return False
    p = own[0]
    return p.get("teamId") == int(team_id) and p.get("permission") == VIEW and not p.get("role") and not p.get("userId")


# Keeps the place of a removed header: Grafana reads httpHeaderName1, 2, ... up to the first one that is missing, and the
# headers behind it cannot move up, because their secret values cannot be read back.
REMOVED_HEADER = "X-PowerView-Removed"
# Settings by which Grafana signs a request in another way than with the data source's token, and their secrets.
OTHER_SIGN_IN = ("oauthPassThru", "sigV4Auth")
OTHER_SECRETS = ("basicAuthPassword", "password", "sigV4AccessKey", "sigV4SecretKey")


def _is_kept_header(name):
    return isinstance(name, str) and name.strip().lower() not in ("", "authorization", REMOVED_HEADER.lower())


def without_other_sign_in(json_data):
    """A data source's jsonData without what makes Grafana send something else than its token.

    A custom header "Authorization" replaces the token in every request to InfluxDB.
    """
    kept = {key: value for key, value in json_data.items() if key not in OTHER_SIGN_IN}
    sent = ["httpHeaderName%d" % (n + 1) for n in range(len(kept))]
    sent = list(itertools.takewhile(kept.get, sent))
    # Up to the last header that stays, all that Grafana sends must keep their numbers.
    while sent and not _is_kept_header(kept[sent[-1]]):
        sent.pop()
    for key in [key for key in kept if key.startswith("httpHeaderName") and not _is_kept_header(kept[key])]:
        if key in sent:
            kept[key] = REMOVED_HEADER
        else:
            del kept[key]
    return kept


def secrets_to_erase(json_data, secure_fields):
    """The names of stored secrets that nothing may send any more; `json_data` is the new one."""
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
    """The data source as Grafana is to have it; what else is set there (`before`) stays, except other tokens.

    Grafana adds the secrets that it has to those of the request: one is erased by sending an empty text for it.
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
        # Grafana's data source proxy would send these to InfluxDB.
        "user": "",
        "basicAuth": False,
        "withCredentials": False,
        # Grafana refuses (409) to overwrite what somebody else changed since we looked.
        "version": int(before.get("version") or 0),
        "jsonData": json_data,
    }
    if secrets:
        body["secureJsonData"] = secrets
    return body


def is_data_source(wanted, before):
    """Whether the data source is already as it should be."""
    body = data_source(wanted, before)
    same = all(before.get(key) == body[key] for key in ("type", "access", "url", "jsonData"))
    return same and "secureJsonData" not in body and not any(before.get(key) for key in ("user", "basicAuth", "withCredentials"))


def reads_only(authorization, bucket_id):
    """Whether a token of InfluxDB is active and can read this one bucket and do nothing else."""
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


def client_dashboard(master, title, dashboard_uid, source_uid):
    """The master dashboard as this client's: its title and uid, its data source, nothing of the master's identity."""
    dashboard = _with_data_source(copy.copy(master), {"type": "influxdb", "uid": source_uid})
    for key in ("id", "version", "__inputs", "__requires", "__elements", "iteration", "gnetId"):
        dashboard.pop(key, None)
    dashboard.update(title=title, uid=dashboard_uid)
    templating = dashboard.get("templating") or {}
    # A variable that chooses between data sources would offer the client those of all others.
    kept = [v for v in templating.get("list", []) if v.get("type") != "datasource"]
    dashboard["templating"] = dict(templating, list=kept)
    return dashboard


def failure(result, grafana_url, influxdb_url):
    """What a failed request means for whoever reads the log, and the remedy. Nothing of the request is shown."""
    broken = [r for r in result.get("results") or [] if r.get("failed")]
    answer = broken[0] if broken else result
    if "status" not in answer:
        return "%s" % answer.get("msg", "no reason given")
    status = answer["status"]
    of_influxdb = str(answer.get("url", "")).startswith(influxdb_url + "/api/v2/")
    server, url = ("InfluxDB", influxdb_url) if of_influxdb else ("Grafana", grafana_url)
    said = answer.get("json") or {}
    said = said.get("message", "") if isinstance(said, dict) else ""
    if status == -1:
        why = "%s does not answer at %s" % (server, url)
        variable = "INFLUXDB_HOST" if of_influxdb else "GRAFANA_URL"
        remedy = "start it (docker compose up -d, or podman-compose up -d) or correct %s in .env" % variable
    else:
        why = "%s answered %s%s" % (server, status, " (%s)" % said if said else "")
        if of_influxdb and status in (401, 403):
            remedy = "correct INFLUXDB_ADMIN_TOKEN in .env; it must be allowed to make buckets and tokens"
        elif of_influxdb and status == 404 and "/orgs" in answer.get("url", ""):
            remedy = "correct INFLUXDB_ORG in .env"
        elif status in (401, 403):
            remedy = "correct GRAFANA_USERNAME and GRAFANA_PASSWORD in .env; the user must be an admin of Grafana"
        else:
            remedy = "see the server's own log"
    return "%s. Remedy: %s, then run this again; what was made so far is kept." % (why, remedy)


class FilterModule:
    """The names under which the playbooks know them."""

    def filters(self):
        return {
            "powerview_name_refusal": name_refusal,
            "powerview_uid": uid,
            "powerview_titled": titled,
            "powerview_only_team_views": only_team_views,
            "powerview_view_rights": view_rights,
            "powerview_data_source": data_source,
            "powerview_is_data_source": is_data_source,
            "powerview_reads_only": reads_only,
            "powerview_failure": failure,
            "powerview_client_dashboard": client_dashboard,
        }


def main(company, campaign):
    """For the hook: prints the playbook's extra variables as JSON, or why a name is refused (exit status 3)."""
    for what, name in (("company", company), ("campaign", campaign)):
        why = name_refusal(name)
        if why:
            print("the %s's name is refused: %s" % (what, why))
            sys.exit(3)
    print(json.dumps({"company_name": company, "campaign_name": campaign}))


if __name__ == "__main__":
    main(*sys.argv[1:])
