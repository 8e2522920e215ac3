#!/bin/bash
# The hook that SFTPGo runs after every upload, rename and mkdir (or, in the other configuration, after every session).
#
# SFTPGo passes only the SFTPGO_ACTION_* variables, discards all output and kills the hook after 30 s. The hook therefore
# starts the work in a new session and returns immediately.
#
#   upload with a path      ingest the file            upload without a path   ingest all waiting files
#   rename to DEVICE/x.tsv  ingest the renamed file    mkdir COMPANY/CAMPAIGN  create the Grafana resources with Ansible
#
# Variables (from the environment, else from $POWERVIEW_BASE/.env): POWERVIEW_BASE, SFTPGO_BASE, POWERVIEW_BIN,
# ANSIBLE_PLAYBOOK_BIN, and POWERVIEW_HOOK_FOREGROUND=1 to wait for the work and return its exit status.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL=C.UTF-8
umask 027

# Removes trailing slashes, so that the paths of SFTPGo can be compared with the result.
strip_slashes() { printf '%s' "${1%"${1##*[!/]}"}"; }

POWERVIEW_BASE=$(strip_slashes "${POWERVIEW_BASE:-/srv/powerview}")
MAX_LOG_LINE=4000
ANSIBLE_SECONDS=1200 # a run takes seconds; the limit keeps one that hangs from blocking all later ones

# --- log -------------------------------------------------------------------------------------------------------

# Prints an untrusted string for the log: plain ASCII unchanged, anything else quoted and escaped.
sanitize() {
  local LC_ALL=C
  if [[ $1 =~ ^[A-Za-z0-9\ ._/@%+=,:-]*$ ]]; then printf '%s' "$1"; else printf '%q' "${1:0:400}"; fi
}

# Appends each line of stdin to the log with a timestamp. The file is opened for each line, so that a log that was rotated
# or has become writable again is used at once. If it cannot be written, the line goes to the journal. This function
# never fails and reads to the end, so that a logging problem cannot stop the work.
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

# Runs a command with its output in the log. Logs a failure and returns the exit status.
run_logged() {
  local name=$1 status
  shift
  "$@" </dev/null 2>&1 | log_lines
  status=${PIPESTATUS[0]}
  ((status == 0)) || log "$name failed with exit status $status"
  return "$status"
}

# --- .env ------------------------------------------------------------------------------------------------------

# Reads KEY=VALUE lines as data, without expansion or execution, exactly as `parse_line` in src/config/env_file.rs does.
# Single quotes are literal, double quotes support \" \\ \$ \n, unquoted values end before " #". The last of several
# lines wins, and a non-empty variable of the environment takes precedence (so PATH cannot be set here). Names that make
# programs load code are ignored.
read_env_file() {
  local line key value rest LC_ALL=C # match bytes, because lines may have another encoding
  local -A from_file=()
  [[ -r $1 && -f $1 ]] || return 0
  while IFS= read -r line || [[ -n $line ]]; do
    line=${line#$'\xef\xbb\xbf'} # remove a byte-order mark
    line=${line%$'\r'}
    [[ $line =~ ^[[:blank:]]*(export[[:blank:]]+)?([A-Z][A-Z0-9_]*|[a-z]+_proxy)[[:blank:]]*=[[:blank:]]*(.*)$ ]] || continue
    key=${BASH_REMATCH[2]} rest=${BASH_REMATCH[3]} value=
    if [[ $rest =~ ^\'([^\']*)\'([[:blank:]]+#.*|[[:blank:]]*)$ ]]; then
      value=${BASH_REMATCH[1]}
    elif [[ $rest =~ ^\"(([^\"\\]|\\.)*)\"([[:blank:]]+#.*|[[:blank:]]*)$ ]]; then
      value=$(unescape "${BASH_REMATCH[1]}" && printf .)
      value=${value%.}
    elif [[ $rest == [\'\"]* ]]; then
      continue # the quotes are not closed, or something follows them; the binary reports it
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

unescape() {
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

# --- programs --------------------------------------------------------------------------------------------------

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

# Runs powerview in POWERVIEW_BASE, where it reads .env. The variables exported from .env above have the same values.
ingest() { (cd "$POWERVIEW_BASE/" 2>/dev/null || cd /; run_logged powerview "$(powerview_bin)" --dataFolder "$data" "$@"); }

# Prints the extra variables for Ansible as JSON. Exits with status 3 and prints the reason if a name is refused: Ansible
# would evaluate it as a template, and it becomes a bucket in InfluxDB and a title in Grafana. The playbooks use the same
# rule.
extra_vars() {
  local names=grafana-automation/playbooks/filter_plugins/powerview.py
  if [[ -r $POWERVIEW_BASE/$names ]]; then names=$POWERVIEW_BASE/$names; else names=${hook%/*}/$names; fi
  python3 -I -X utf8 "$names" "$1" "$2"
}

create_dashboard() {
  local company=$1 campaign=$2 vars playbook=$POWERVIEW_BASE/grafana-automation/playbooks/create_grafana_resources.yml
  local temp_dir status reason
  if [[ $company == "${TSV_META_BUCKET:-powerview_meta}" ]]; then
    log "mkdir $(sanitize "$company/$campaign"): the company name is refused: it is the meta bucket; rename the folder"
    return 0
  fi
  if ! vars=$(extra_vars "$company" "$campaign" 2>&1); then
    log "mkdir $(sanitize "$company/$campaign"): $vars; rename the folder; no dashboard created"
    return 0
  fi
  log "mkdir $company/$campaign: creating the Grafana resources"
  # Ansible needs a home and a folder for temporary files. SFTPGo sets neither.
  temp_dir=$(mktemp -d) || temp_dir=/tmp
  export HOME=${HOME:-$temp_dir} ANSIBLE_LOCAL_TEMP=$temp_dir/local ANSIBLE_REMOTE_TEMP=$temp_dir/remote
  export ANSIBLE_CONFIG=$POWERVIEW_BASE/grafana-automation/ansible.cfg ANSIBLE_NOCOLOR=1
  # Allow one run at a time, so that a client that creates ten folders does not start ten playbooks at once. The lock is
  # on the playbook, which needs no lock file, and the kernel releases it when the process exits.
  if reason=$({ : <"$playbook"; } 2>&1) && exec 9<"$playbook"; then
    run_logged flock flock -w "$ANSIBLE_SECONDS" 9
  else
    log "the playbook $(sanitize "$playbook") cannot be opened: ${reason##*: }; correct POWERVIEW_BASE or the permissions"
  fi
  run_logged ansible-playbook timeout --kill-after=30 "$ANSIBLE_SECONDS" "$(ansible_bin)" "$playbook" -i localhost, -e "$vars"
  status=$?
  ((status == 0)) || log "to retry: SFTPGO_ACTION=mkdir SFTPGO_ACTION_PATH=$(printf '%q' "$data/$company/$campaign") $hook"
  [[ $temp_dir == /tmp ]] || rm -rf -- "$temp_dir"
  return "$status"
}

# --- SFTPGo actions --------------------------------------------------------------------------------------------

# Splits a path below the data folder into `parts`. Fails for any other path, and for one that contains "." or "..".
split_path() {
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

# Whether a path has the name of a logger file, in upper or lower case and not hidden.
is_logger_file() { [[ ${1##*/} == *.[tT][sS][vV] && ${1##*/} != .* ]]; }

transfer_succeeded() { [[ ${SFTPGO_ACTION_STATUS:-1} == 1 ]]; }

work() {
  local action=${SFTPGO_ACTION:-} path=${SFTPGO_ACTION_PATH:-} target=${SFTPGO_ACTION_TARGET:-} parts=()
  case $action in
    upload)
      if [[ -z $path ]]; then
        ingest
      elif ! is_logger_file "$path"; then
        log "upload $(sanitize "$path"): not a .tsv file; ignored"
      elif ! transfer_succeeded; then
        log "upload $(sanitize "$path"): the transfer failed (status $(sanitize "$SFTPGO_ACTION_STATUS")); ignored, send the file again"
      else
        ingest --tsvFile "$path"
      fi
      ;;
    rename)
      if ! transfer_succeeded; then
        log "rename $(sanitize "$path"): failed (status $(sanitize "$SFTPGO_ACTION_STATUS")); ignored"
      elif split_path "$target" && ((${#parts[@]} == 4)) && is_logger_file "${parts[3]}"; then
        case ${parts[2]} in parsed | error) return 0 ;; esac
        ingest --tsvFile "$target"
      fi
      ;;
    mkdir)
      if ! transfer_succeeded; then
        log "mkdir $(sanitize "$path"): failed (status $(sanitize "$SFTPGO_ACTION_STATUS")); ignored"
      elif split_path "${path%/}" && ((${#parts[@]} == 2)); then
        case ${parts[0]}/${parts[1]} in parsed/* | error/* | */parsed | */error) return 0 ;; esac
        create_dashboard "${parts[0]}" "${parts[1]}"
      fi
      ;;
    *) log "action $(sanitize "$action"): not supported; ignored" ;;
  esac
}

main() {
  hook=$(readlink -f -- "${BASH_SOURCE[0]}")
  read_env_file "$POWERVIEW_BASE/.env"
  SFTPGO_BASE=$(strip_slashes "${SFTPGO_BASE:-/srv/sftpgo}")
  export POWERVIEW_BASE SFTPGO_BASE
  data=$SFTPGO_BASE/data log_file=$SFTPGO_BASE/logs/uploads.log
  if [[ ${1:-} == work ]]; then
    exec 3>&- # closing the pipe tells the hook that the new session has started
    work
  elif [[ ${POWERVIEW_HOOK_FOREGROUND:-} == 1 ]]; then
    work
  else
    # Wait until the work has started, but not until it ends. Before it has its own session, SFTPGo could still kill it.
    : "$(setsid --fork "$hook" work 3>&1 </dev/null >/dev/null 2>&1 || log "cannot start the work; upload again or wait for the next sweep")"
  fi
}

main "$@"
