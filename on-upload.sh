#!/bin/bash
# SFTPGo calls this for every upload, rename and mkdir (and, in the other configuration, at a session's end).
#
# SFTPGo passes SFTPGO_ACTION_* and nothing else, throws the output away and kills the caller after 30 s. So this
# checks its input, hands the work to a session of its own and returns at once.
#
#   upload with a path      powerview on that file             upload without one    powerview on everything that waits
#   rename to DEVICE/x.tsv  powerview on the new name          mkdir COMPANY/CAMPAIGN  the Grafana resources, by Ansible
#
# Variables (environment first, then $POWERVIEW_BASE/.env): POWERVIEW_BASE, SFTPGO_BASE, POWERVIEW_BIN,
# ANSIBLE_PLAYBOOK_BIN, and POWERVIEW_HOOK_FOREGROUND=1 to wait for the work and return its exit status.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL=C.UTF-8
umask 027

# Without the slashes at its end: SFTPGo's paths are compared with it.
without_slash() { printf '%s' "${1%"${1##*[!/]}"}"; }

POWERVIEW_BASE=$(without_slash "${POWERVIEW_BASE:-/srv/powerview}")
MAX_LOG_LINE=4000
ANSIBLE_SECONDS=1200 # one run takes seconds; one that hangs must not hold up the next for ever

# --- log -------------------------------------------------------------------------------------------------------

# A string that a stranger chose, fit for a line of a log: plain ASCII as it is, anything else quoted and escaped.
shown() {
  local LC_ALL=C
  if [[ $1 =~ ^[A-Za-z0-9\ ._/@%+=,:-]*$ ]]; then printf '%s' "$1"; else printf '%q' "${1:0:400}"; fi
}

# Every line of stdin goes to the log with its time. The file is opened once a line, so that a rotated log, or one
# that becomes writable again, is met at once; where it cannot be written the journal gets the line. Never fails,
# never stops reading: the work must not die of its log.
log_lines() {
  local line stamp
  while IFS= read -r line || [[ -n $line ]]; do
    line=${line:0:MAX_LOG_LINE}
    printf -v stamp '%(%Y-%m-%dT%H:%M:%S%z)T' -1
    if ! { printf '%s [%s] %s\n' "$stamp" "$$" "${line//[[:cntrl:]]/?}" >>"$log_file"; } 2>/dev/null; then
      logger -t powerview-hook -- "${line//[[:cntrl:]]/?}" 2>/dev/null || :
    fi
  done
}

log() { printf '%s\n' "$*" | log_lines; }

# Runs a command with all its output in the log, says so where it fails, and returns its exit status.
logged() {
  local name=$1 status
  shift
  "$@" </dev/null 2>&1 | log_lines
  status=${PIPESTATUS[0]}
  ((status == 0)) || log "$name failed with exit status $status"
  return "$status"
}

# --- .env ------------------------------------------------------------------------------------------------------

# Reads KEY=VALUE lines as data: nothing is expanded or executed. Single quotes are literal, double quotes know
# \" \\ \$ \n, bare values end before " #". As with the binary, the last of several lines counts, and what the
# environment has wins (so PATH is not for this file), unless it is empty. Names that make programs load code are
# passed over.
read_env_file() {
  local line key value rest LC_ALL=C # bytes: a comment in another encoding must not hide its line
  local -A from_file=()
  [[ -r $1 && -f $1 ]] || return 0
  while IFS= read -r line || [[ -n $line ]]; do
    line=${line#$'\xef\xbb\xbf'} # of an editor that begins files with a mark
    line=${line%$'\r'}
    [[ $line =~ ^[[:blank:]]*(export[[:blank:]]+)?([A-Z][A-Z0-9_]*|[a-z]+_proxy)[[:blank:]]*=[[:blank:]]*(.*)$ ]] || continue
    key=${BASH_REMATCH[2]} rest=${BASH_REMATCH[3]} value=
    if [[ $rest =~ ^\'([^\']*)\' ]]; then
      value=${BASH_REMATCH[1]}
    elif [[ $rest =~ ^\"(([^\"\\]|\\.)*)\" ]]; then
      value=$(unescaped "${BASH_REMATCH[1]}" && printf .)
      value=${value%.}
    else
      value=${rest%%[[:blank:]]#*}
      [[ $value != \#* ]] || value=
      value=${value%"${value##*[![:blank:]]}"}
    fi
    case $key in
      LD_* | BASH* | ENV | IFS | PYTHON* | PERL* | SFTPGO_ACTION* | ANSIBLE_CONFIG) continue ;;
    esac
    [[ -n ${!key:-} && -z ${from_file[$key]:-} ]] && continue
    export "$key=$value"
    from_file[$key]=1
  done <"$1"
}

unescaped() {
  local in=$1 out='' c
  while [[ $in == *\\* ]]; do
    out+=${in%%\\*} in=${in#*\\} c=${in:0:1} in=${in:1}
    case $c in
      n) out+=$'\n' ;;
      \" | \\ | \$) out+=$c ;;
      *) out+="\\$c" ;;
    esac
  done
  printf '%s' "$out$in"
}

# --- the programs ----------------------------------------------------------------------------------------------

powerview_bin() {
  if [[ -n ${POWERVIEW_BIN:-} ]]; then
    printf '%s' "$POWERVIEW_BIN"
  elif [[ -x $POWERVIEW_BASE/bin/powerview ]]; then
    printf '%s' "$POWERVIEW_BASE/bin/powerview"
  else
    printf 'powerview'
  fi
}

ansible_bin() {
  if [[ -n ${ANSIBLE_PLAYBOOK_BIN:-} ]]; then
    printf '%s' "$ANSIBLE_PLAYBOOK_BIN"
  elif [[ -x $POWERVIEW_BASE/venv/bin/ansible-playbook ]]; then
    printf '%s' "$POWERVIEW_BASE/venv/bin/ansible-playbook"
  else
    printf 'ansible-playbook'
  fi
}

# In POWERVIEW_BASE, where the binary looks for its .env; what was exported from it here has the same values.
ingest() { (cd "$POWERVIEW_BASE/" 2>/dev/null || cd /; logged powerview "$(powerview_bin)" --dataFolder "$data" "$@"); }

# The two names as the JSON document that Ansible gets, or, with exit status 3, why they are refused: a name is a
# template to Ansible, a bucket to InfluxDB and a title to Grafana. The rule stands in one file with the playbooks.
extra_vars() {
  local names=grafana-automation/playbooks/filter_plugins/powerview.py
  if [[ -r $POWERVIEW_BASE/$names ]]; then names=$POWERVIEW_BASE/$names; else names=${hook%/*}/$names; fi
  python3 -I -X utf8 "$names" "$1" "$2"
}

create_dashboard() {
  local company=$1 campaign=$2 vars playbook=$POWERVIEW_BASE/grafana-automation/playbooks/create_grafana_resources.yml
  local scratch status why
  if [[ $company == "${TSV_META_BUCKET:-powerview_meta}" ]]; then
    log "mkdir $(shown "$company/$campaign"): refused, the company's name is the meta bucket's"
    return 0
  fi
  if ! vars=$(extra_vars "$company" "$campaign" 2>&1); then
    log "mkdir $(shown "$company/$campaign"): $vars; no dashboard is made"
    return 0
  fi
  log "mkdir $company/$campaign: making the Grafana resources"
  # Ansible wants a home and a place for its temporary files; this process was given neither.
  scratch=$(mktemp -d) || scratch=/tmp
  export HOME=${HOME:-$scratch} ANSIBLE_LOCAL_TEMP=$scratch/local ANSIBLE_REMOTE_TEMP=$scratch/remote
  export ANSIBLE_CONFIG=$POWERVIEW_BASE/grafana-automation/ansible.cfg ANSIBLE_NOCOLOR=1
  # One run at a time: a client that makes ten folders must not start ten Ansibles. The lock is on the playbook
  # itself, so there is no lock file, and it goes with its holder.
  if why=$({ : <"$playbook"; } 2>&1) && exec 9<"$playbook"; then
    logged flock flock -w "$ANSIBLE_SECONDS" 9
  else
    log "the playbook $(shown "$playbook") cannot be opened: ${why##*: }; correct POWERVIEW_BASE or its rights"
  fi
  logged ansible-playbook timeout --kill-after=30 "$ANSIBLE_SECONDS" "$(ansible_bin)" "$playbook" -i localhost, -e "$vars"
  status=$?
  ((status == 0)) || log "to try again: SFTPGO_ACTION=mkdir SFTPGO_ACTION_PATH=$(printf '%q' "$data/$company/$campaign") $hook"
  [[ $scratch == /tmp ]] || rm -rf -- "$scratch"
  return "$status"
}

# --- what SFTPGo asks for --------------------------------------------------------------------------------------

# Splits a path below the data folder into `parts`; fails for one that is elsewhere or that goes through "..".
below_data() {
  local rest=${1#"$data"/} part
  [[ $1 == "$data"/* && $rest != */ ]] || return 1
  parts=()
  while :; do
    part=${rest%%/*}
    case $part in '' | . | ..) return 1 ;; esac
    parts+=("$part")
    [[ $rest == */* ]] || return 0
    rest=${rest#*/}
  done
}

transfer_is_whole() { [[ ${SFTPGO_ACTION_STATUS:-1} == 1 ]]; }

work() {
  local action=${SFTPGO_ACTION:-} path=${SFTPGO_ACTION_PATH:-} target=${SFTPGO_ACTION_TARGET:-} parts=()
  case $action in
    upload)
      if [[ -z $path ]]; then
        ingest
      elif [[ ${path##*/} != *.tsv || ${path##*/} == .* ]]; then
        log "upload $(shown "$path"): not a .tsv, left alone"
      elif ! transfer_is_whole; then
        log "upload $(shown "$path"): the transfer broke off (status $(shown "$SFTPGO_ACTION_STATUS")), left alone"
      else
        ingest --tsvFile "$path"
      fi
      ;;
    rename)
      if ! transfer_is_whole; then
        log "rename $(shown "$path"): it failed (status $(shown "$SFTPGO_ACTION_STATUS"))"
      elif below_data "$target" && ((${#parts[@]} == 4)) && [[ ${parts[3]} == *.tsv && ${parts[3]} != .* ]]; then
        case ${parts[2]} in parsed | error) return 0 ;; esac
        ingest --tsvFile "$target"
      fi
      ;;
    mkdir)
      if ! transfer_is_whole; then
        log "mkdir $(shown "$path"): it failed (status $(shown "$SFTPGO_ACTION_STATUS"))"
      elif below_data "${path%/}" && ((${#parts[@]} == 2)); then
        case ${parts[0]}/${parts[1]} in parsed/* | error/* | */parsed | */error) return 0 ;; esac
        create_dashboard "${parts[0]}" "${parts[1]}"
      fi
      ;;
    *) log "action $(shown "$action"): nothing to do" ;;
  esac
}

main() {
  hook=$(readlink -f -- "${BASH_SOURCE[0]}")
  read_env_file "$POWERVIEW_BASE/.env"
  SFTPGO_BASE=$(without_slash "${SFTPGO_BASE:-/srv/sftpgo}")
  export POWERVIEW_BASE SFTPGO_BASE
  data=$SFTPGO_BASE/data log_file=$SFTPGO_BASE/logs/uploads.log
  if [[ ${1:-} == work ]]; then
    exec 3>&- # tells the hook that we are in our own session now
    work
  elif [[ ${POWERVIEW_HOOK_FOREGROUND:-} == 1 ]]; then
    work
  else
    # Waits for the work to begin, not to end: killed before that, it would still go with us.
    : "$(setsid --fork "$hook" work 3>&1 </dev/null >/dev/null 2>&1 || log "the work could not be started")"
  fi
}

main "$@"
