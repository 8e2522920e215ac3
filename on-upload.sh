#!/bin/bash
# The hook that SFTPGo runs after every upload, rename and mkdir (or, in the other configuration, after every session).
#
# SFTPGo passes only the SFTPGO_ACTION_* variables, discards all output and kills the hook after 30 s. The hook therefore
# starts the work in a new session and returns immediately.
#
#   upload with a path         ingest the file           upload without a path   ingest all waiting files
#   rename to DEVICE/x.tsv     ingest the renamed file   mkdir COMPANY/CAMPAIGN  create the Grafana resources with Ansible
#   rename to COMPANY/CAMPAIGN like mkdir
#   upload of, or rename to    COMPANY/CAMPAIGN/channels.csv: check and apply the catalogue of channels
#
# An upload into a campaign without the marker of its dashboard also creates the resources, at most once an hour.
#
# Each device, each company and each catalogue has a queue. A call adds a note to it. If no other call works on the queue, it starts a
# worker, which continues until no note is left. All other calls end at once, however many there are.
#
# POWERVIEW_BASE is the folder of this file, unless the environment sets it: a checkout such as /srv/powerview, or the
# package's /usr/share/powerview. Other variables come from the environment, else from .env there, else from
# /etc/powerview/.env: SFTPGO_BASE, POWERVIEW_BIN, ANSIBLE_PLAYBOOK_BIN, and POWERVIEW_HOOK_FOREGROUND=1 to wait for the
# work and return its exit status.
#
# Other scripts source this file to read .env by the same rules.
set -u

# Prints a text without trailing slashes, so that the paths of SFTPGo can be compared with the result.
strip_slashes() { printf '%s' "${1%"${1##*[!/]}"}"; }

# An ordinary call starts no process but flock: a thousand uploads at once are a thousand processes already.
hook=${BASH_SOURCE[0]}
[[ $hook == /* && $hook != */.* && ! -L $hook ]] || hook=$(readlink -f -- "$hook")
POWERVIEW_BASE=${POWERVIEW_BASE:-${hook%/*}}
POWERVIEW_BASE=${POWERVIEW_BASE%"${POWERVIEW_BASE##*[!/]}"}
MAX_LOG_LINE=4000
ANSIBLE_SECONDS=1200 # a run takes seconds; the limit keeps one that hangs from blocking all later ones
RETRY_SECONDS=3600   # time between two attempts of uploads to create the dashboard of a campaign
NOT_LOCKED=75        # exit status of create_dashboard if it did not get the lock
HELD=1               # exit status of flock if another process has the lock; any other means that there are no locks
LOCKS_REMEDY='mount the file system with locks (NFS: version 4, or version 3 with rpc.statd), or use another one'
SHARED_FILE_SYSTEMS='6969|517b|ff534d42|fe534d42|65735546|1021997|c36400|5346414f|6b414653|bd00bd0|1161970|7461636f|73757245'
REFUSED=3            # exit status of extra_vars if it refuses a name
MAX_BATCH=200        # files per call of powerview
MAX_TURNS=32         # calls of powerview for uploads that run at once
TURN_SECONDS=60      # longest wait for one of them to end

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

# Whether a path is that of the catalogue of a campaign.
is_catalogue() {
  local parts=()
  [[ ${1##*/} == channels.csv ]] && split_path "$1" && ((${#parts[@]} == 3)) || return 1
  case ${parts[0]}/${parts[1]} in parsed/* | error/* | */parsed | */error) return 1 ;; esac
}

# Whether a path has the name of a logger file, in upper or lower case and not hidden.
is_logger_file() { [[ ${1##*/} == *.[tT][sS][vV] && ${1##*/} != .* ]]; }

transfer_succeeded() { [[ ${SFTPGO_ACTION_STATUS:-1} == 1 ]]; }

# Whether SFTPGo has the file of this call elsewhere than on a local disk.
is_in_other_storage() { [[ ${SFTPGO_ACTION_FS_PROVIDER:-0} != 0 ]]; }

# Prints where that is. The numbers are those of SFTPGo's SDK.
other_storage() {
  case $SFTPGO_ACTION_FS_PROVIDER in
    1) printf 'in S3' ;;
    2) printf 'in Google Cloud Storage' ;;
    3) printf 'in Azure Blob Storage' ;;
    4) printf 'encrypted on the local disk' ;;
    5) printf 'on another SFTP server' ;;
    6) printf 'on an HTTP server' ;;
    *) printf 'in storage %s' "$SFTPGO_ACTION_FS_PROVIDER" ;;
  esac
}

# Logs that the file of this call is where powerview cannot read it.
refuse_other_storage() {
  local storage place='' folder='of the folder'
  local virtual_path=${SFTPGO_ACTION_VIRTUAL_TARGET:-${SFTPGO_ACTION_VIRTUAL_PATH:-}}
  storage=$(other_storage)
  [[ -z ${SFTPGO_ACTION_BUCKET:-} ]] || place+=", bucket $SFTPGO_ACTION_BUCKET"
  [[ -z ${SFTPGO_ACTION_ENDPOINT:-} ]] || place+=", endpoint $SFTPGO_ACTION_ENDPOINT"
  # The key of a file in a virtual folder lacks the path at which the user sees it.
  [[ -z $virtual_path ]] || folder="of the virtual folder that contains $(sanitize "$virtual_path")"
  log "${SFTPGO_ACTION:-} $(sanitize "${SFTPGO_ACTION_TARGET:-${SFTPGO_ACTION_PATH:-}}"): not ingested: SFTPGo stores it $(sanitize "$storage$place"), where powerview cannot read it; set the storage of the user${SFTPGO_ACTION_USERNAME:+ $(sanitize "$SFTPGO_ACTION_USERNAME")}, or $folder, to \"Local disk\" with a root directory in $(sanitize "$data") and upload the file again"
}

# Whether a path may be a folder: a client may have renamed it again.
may_be_folder() { [[ ! -L $1 && (-d $1 || ! -e $1) ]]; }

# Sets `queue` and `note` for the action: the name of a queue, and a file, a folder of a campaign, or nothing for a sweep.
# Leaves `queue` empty if there is nothing to do.
plan() {
  local action=${SFTPGO_ACTION:-} path=${SFTPGO_ACTION_PATH:-} target=${SFTPGO_ACTION_TARGET:-} parts=()
  queue='' note=''
  case $action in
    upload)
      if [[ -z $path ]]; then
        queue=sweep
      elif ! is_logger_file "$path" && ! is_catalogue "$path"; then
        log "upload $(sanitize "$path"): not a .tsv file; ignored"
      elif ! transfer_succeeded; then
        log "upload $(sanitize "$path"): the transfer failed (status $(sanitize "$SFTPGO_ACTION_STATUS")); ignored, send the file again"
      elif is_catalogue "$path"; then
        plan_catalogue "$path"
      else
        plan_file "$path"
      fi
      ;;
    rename)
      if ! transfer_succeeded; then
        log "rename $(sanitize "$path"): failed (status $(sanitize "$SFTPGO_ACTION_STATUS")); ignored"
      elif split_path "$target" && ((${#parts[@]} == 4)) && is_logger_file "${parts[3]}"; then
        case ${parts[2]} in parsed | error) return 0 ;; esac
        plan_file "$target"
      elif is_catalogue "$target"; then
        plan_catalogue "$target"
      elif may_be_folder "${target%/}"; then
        plan_dashboard "${target%/}"
      fi
      ;;
    mkdir)
      if ! transfer_succeeded; then
        log "mkdir $(sanitize "$path"): failed (status $(sanitize "$SFTPGO_ACTION_STATUS")); ignored"
      else
        plan_dashboard "${path%/}"
      fi
      ;;
    *) log "action $(sanitize "$action"): not supported; ignored" ;;
  esac
}

plan_file() {
  local checksum
  set_checksum "${1%/*}"
  queue=files-$checksum note=$1
}

plan_catalogue() {
  local checksum
  set_checksum "${1%/*}"
  queue=catalogues-$checksum note=$1
}

plan_dashboard() {
  local checksum parts=()
  split_path "$1" && ((${#parts[@]} == 2)) || return 0
  case ${parts[0]}/${parts[1]} in parsed/* | error/* | */parsed | */error) return 0 ;; esac
  set_checksum "${parts[0]}"
  queue=dashboards-$checksum note=$1
}

# --- queues ----------------------------------------------------------------------------------------------------

# Sets `checksum` to that of a text. If two devices have the same one, they share a queue.
set_checksum() {
  local LC_ALL=C i c sum=5381
  for ((i = 0; i < ${#1}; i++)); do
    printf -v c %d "'${1:i:1}"
    sum=$(((sum * 33 + (c & 255)) & 0xffffffff))
  done
  printf -v checksum %08x "$sum"
}

# Makes a folder below the logs, which belongs to their owner also if root makes it.
make_folder() {
  [[ -d $1 ]] || { mkdir -p -- "$1" && { ((EUID)) || chown --reference="$SFTPGO_BASE/logs" -- "$queues" "$1"; }; } 2>/dev/null
}

# Gives a lock that root has created to the owner of its folder, who could not open it otherwise. That owner may put a link
# there at any time, so it is never followed.
give_away() {
  local folder=${1%/*}
  ((EUID)) || [[ -L $1 || ! -O $1 || -O $folder ]] || chown -h --reference="$folder" -- "$1" 2>/dev/null
}

# Adds `note` to a queue, in the file `note_file`. A note is complete if it ends in NUL, so that a worker does not read half of it.
add_note() {
  note_file=$queues/$1/$EPOCHREALTIME.$BASHPID
  make_folder "$queues/$1" && { printf '%s\0' "$2" >"$note_file"; } 2>/dev/null
}

# Takes the lock of a queue as descriptor 9, with options of flock. Status HELD means that another call has it. For any
# other, `no_lock` is the reason. A file is locked: network file systems would grant a lock on the folder to each host.
lock_queue() {
  local status folder=$queues/$1
  if [[ -L $folder/.lock ]]; then
    no_lock='.lock is a symbolic link, remove it'
    return 2
  fi
  # Reading and writing, so that a pipe in place of the file is not waited for.
  if ! exec 9<>"$folder/.lock"; then
    no_lock=$({ : <>"$folder/.lock"; } 2>&1)
    no_lock=${no_lock##*: }
    return 2
  fi
  give_away "$folder/.lock"
  flock "${@:2}" 9 2>/dev/null
  status=$?
  if ((status != 0 && status != HELD)); then
    no_lock=$({ flock -n 9; } 2>&1)
    no_lock=${no_lock##*: }
  fi
  return "$status"
}

# Adds the work of this call to its queue, and works on the queue or starts a worker unless there is one. Without a queue,
# for example because the disk is full, the work is done at once.
run() {
  local queue note note_file files notes status no_lock path
  if is_in_other_storage; then
    path=${SFTPGO_ACTION_TARGET:-${SFTPGO_ACTION_PATH:-}}
    is_logger_file "$path" || [[ ${path##*/} == channels.csv ]] || return 0
    refuse_other_storage
    return 1
  fi
  plan
  [[ -n $queue ]] || return 0
  if ! add_note "$queue" "$note"; then
    notes=("$note")
    in_background && { start_worker alone "$queue" "$note"; return; }
    work
    return
  fi
  if in_background; then lock_queue "$queue" -n; else lock_queue "$queue"; fi
  status=$?
  if ((status == HELD)); then return 0; fi
  if ((status != 0)); then
    log "$(sanitize "$queues/$queue") cannot be locked: $no_lock; $LOCKS_REMEDY; the call does not wait for others"
    rm -f -- "$note_file"
    notes=("$note")
    in_background && { start_worker alone "$queue" "$note"; return; }
    work
    return
  fi
  if in_background; then start_worker queue "$queue"; else work_on_all "$queue"; fi
}

in_background() { [[ ${POWERVIEW_HOOK_FOREGROUND:-} != 1 ]]; }

# Starts the worker in a new session and waits until it has begun, but not until it ends. Before it has its own session,
# SFTPGo could still kill it.
start_worker() {
  : "$(setsid --fork "$hook" "$@" 3>&1 </dev/null >/dev/null 2>&1 || log "cannot start the work; upload again or wait for the next sweep")"
}

# Reads the settings.
set_up() {
  export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
  umask 027
  if [[ -e $POWERVIEW_BASE/.env ]]; then
    read_env_file "$POWERVIEW_BASE/.env"
  else
    read_env_file /etc/powerview/.env
  fi
  SFTPGO_BASE=${SFTPGO_BASE:-/srv/sftpgo}
  SFTPGO_BASE=${SFTPGO_BASE%"${SFTPGO_BASE##*[!/]}"}
  export POWERVIEW_BASE SFTPGO_BASE
  data=$SFTPGO_BASE/data log_file=$SFTPGO_BASE/logs/uploads.log queues=$SFTPGO_BASE/logs/queue
  playbook=$POWERVIEW_BASE/grafana-automation/playbooks/create_grafana_resources.yml
}

# An ordinary call ends here, before the shell reads and keeps the rest of this file: a thousand uploads at once are a thousand
# shells.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  set_up
  if [[ -z ${1:-} ]] && in_background; then
    run
    exit
  fi
fi

# --- programs --------------------------------------------------------------------------------------------------

# Runs a command with its output in the log. Logs a failure and returns the exit status.
run_logged() {
  local name=$1 status
  shift
  "$@" </dev/null 2>&1 | log_lines
  status=${PIPESTATUS[0]}
  ((status == 0)) || log "$name failed with exit status $status"
  return "$status"
}

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
run_powerview() { (cd "$POWERVIEW_BASE/" 2>/dev/null || cd /; run_logged powerview "$(powerview_bin)" "$@"); }

ingest() { run_powerview --dataFolder "$data" "$@"; }

# Waits for a turn, which is the lock of one of MAX_TURNS files, as descriptor 6. Hundreds of loggers that send at the same time
# of the day have a worker each, and InfluxDB would answer none of them in time. After TURN_SECONDS the work begins all the
# same, so that runs that wait for the bucket of one company do not hold up the others for long; so it does without locks.
take_turn() {
  local turn file
  make_folder "$queues/turns" || return 0
  for turn in $((RANDOM % MAX_TURNS)) $((RANDOM % MAX_TURNS)) $((RANDOM % MAX_TURNS)); do
    file=$queues/turns/$turn
    if [[ -L $file ]] || ! { exec 6<>"$file"; } 2>/dev/null; then return 0; fi
    give_away "$file"
    flock -n 6 2>/dev/null
    (($? == HELD)) || return 0
  done
  flock -w "$TURN_SECONDS" 6 2>/dev/null || :
}

# Checks the catalogue of a campaign and applies it. A refused one leaves the reasons in channels.error.txt beside it. One that
# is not there any more was deleted or is about to be replaced, which calls the hook again.
apply_catalogue() {
  local catalogue=$data/$1/$2/channels.csv
  if [[ ! -e $catalogue && ! -L $catalogue ]]; then
    log "upload $(sanitize "$1/$2/channels.csv"): not there any more; what was applied before stays in force"
    return 0
  fi
  run_powerview channels --apply --dataFolder "$data" --company="$1" --campaign="$2"
}

# Prints the extra variables for Ansible as JSON. Exits with status 3 and prints the reason if a name is refused: Ansible
# would evaluate it as a template, and it becomes a bucket in InfluxDB and a title in Grafana. The playbooks use the same
# rule.
extra_vars() {
  local names=grafana-automation/playbooks/filter_plugins/powerview.py
  if [[ -r $POWERVIEW_BASE/$names ]]; then names=$POWERVIEW_BASE/$names; else names=${hook%/*}/$names; fi
  python3 -I -X utf8 "$names" "$1" "$2"
}

create_dashboard() {
  local company=$1 campaign=$2 vars temp_dir status reason
  if [[ ${INFLUXDB_FLAVOR:-} == 3 ]]; then
    log "mkdir $(sanitize "$company/$campaign"): no dashboard created, because dashboards need InfluxDB 2 and INFLUXDB_FLAVOR is 3"
    return 0
  fi
  if [[ $company == "${TSV_META_BUCKET:-powerview_meta}" ]]; then
    log "mkdir $(sanitize "$company/$campaign"): the company name is refused: it is the meta bucket; rename the folder"
    return 0
  fi
  vars=$(extra_vars "$company" "$campaign" 2>&1)
  status=$?
  if ((status == REFUSED)); then
    log "mkdir $(sanitize "$company/$campaign"): $vars; rename the folder; no dashboard created"
    return 0
  elif ((status != 0)); then
    log "mkdir $(sanitize "$company/$campaign"): the name cannot be checked: ${vars##*$'\n'}; install python3 and correct POWERVIEW_BASE; no dashboard created"
    return "$status"
  fi
  log "mkdir $company/$campaign: creating the Grafana resources"
  # Allow one run at a time. The lock is on the playbook, which needs no lock file, and the kernel releases it when the
  # process exits.
  if ! reason=$({ : <"$playbook"; } 2>&1) || ! exec 8<"$playbook"; then
    log "the playbook $(sanitize "$playbook") cannot be opened: ${reason##*: }; correct POWERVIEW_BASE or the permissions"
  elif ! lock_ansible 8 "$playbook"; then
    return "$NOT_LOCKED"
  fi
  # Hosts that share the data folder have a playbook each.
  if is_shared "$data"; then
    if [[ -L $data/.powerview-lock ]] || ! exec 7<>"$data/.powerview-lock"; then
      log "mkdir $company/$campaign: $(sanitize "$data/.powerview-lock") is a link or cannot be opened; remove it or correct its permissions; no dashboard created"
      return "$NOT_LOCKED"
    fi
    give_away "$data/.powerview-lock"
    if ! lock_ansible 7 "$data"; then
      return "$NOT_LOCKED"
    fi
  fi
  # Ansible needs a home and a folder for temporary files. SFTPGo sets neither.
  temp_dir=$(mktemp -d) || temp_dir=/tmp
  export HOME=${HOME:-$temp_dir} ANSIBLE_LOCAL_TEMP=$temp_dir/local ANSIBLE_REMOTE_TEMP=$temp_dir/remote
  export ANSIBLE_CONFIG=$POWERVIEW_BASE/grafana-automation/ansible.cfg ANSIBLE_NOCOLOR=1
  run_logged ansible-playbook timeout --kill-after=30 "$ANSIBLE_SECONDS" "$(ansible_bin)" "$playbook" -i localhost, -e "$vars"
  status=$?
  exec 8<&- 7>&-
  ((status == 0)) || log "to retry: SFTPGO_ACTION=mkdir SFTPGO_ACTION_PATH=$(printf '%q' "$data/$company/$campaign") $hook"
  [[ $temp_dir == /tmp ]] || rm -rf -- "$temp_dir"
  return "$status"
}

# Whether a folder is on a file system that several hosts may share, as in src/data_dir/file_system.rs.
is_shared() { [[ $(stat -f -c %t -- "$1" 2>/dev/null) =~ ^($SHARED_FILE_SYSTEMS)$ ]]; }

# Waits for the lock on descriptor $1, which is open on $2, so that one run of Ansible follows the other.
lock_ansible() {
  local reason status
  reason=$({ flock -w "$ANSIBLE_SECONDS" "$1"; } 2>&1)
  status=$?
  ((status != 0)) || return 0
  if ((status == HELD)); then
    log "mkdir $company/$campaign: another run of Ansible did not end in $ANSIBLE_SECONDS s; left in the queue for the next upload or mkdir"
  else
    log "mkdir $company/$campaign: $(sanitize "$2") cannot be locked: ${reason##*: }; $LOCKS_REMEDY; no dashboard created"
  fi
  return 1
}

# --- work ------------------------------------------------------------------------------------------------------

# Reads complete notes of a queue, oldest first, into `files` and `notes`. Fails if there is none.
read_notes() {
  local file text LC_ALL=C # a name may end within a character of another encoding, which would hide the NUL
  files=() notes=()
  for file in "$queues/$1"/*; do
    { IFS= read -r -d '' text <"$file"; } 2>/dev/null || continue
    files+=("$file") notes+=("$text")
    ((${#files[@]} < MAX_BATCH)) || break
  done
  ((${#files[@]} > 0))
}

# Works on a queue, whose lock is descriptor 9, until it has no note. Notes are removed only after the work, so that those
# of a worker that was killed are left to the next one. Returns the status of the last work that failed.
work_on() {
  local queue=$1 files notes result status=0
  while :; do
    while read_notes "$queue"; do
      work
      result=$?
      ((result == 0)) || status=$result
      ((result != NOT_LOCKED)) || return "$status"
      rm -f -- "${files[@]}"
    done
    exec 9<&-
    # A call that found the queue locked until now has left its note before it tried the lock.
    read_notes "$queue" && lock_queue "$queue" -n || return "$status"
  done
}

# Works on a queue, then on the dashboards that the worker of another company left because it did not get the lock of
# Ansible. They would wait for the next event of that company otherwise.
work_on_all() {
  local left files notes status
  work_on "$1"
  status=$?
  for left in "$queues"/dashboards-*; do
    ((status != NOT_LOCKED)) || break
    left=${left##*/}
    if read_notes "$left" && lock_queue "$left" -n; then
      work_on "$left" || status=$?
    fi
  done
  return "$status"
}

# Does the work of `notes`.
work() {
  local note result status=0 arguments=() sweep='' parts=()
  local -A seen=()
  for note in "${notes[@]}"; do
    [[ -z ${seen[_$note]:-} ]] || continue
    seen[_$note]=1
    if [[ $queue == dashboards-* ]]; then
      split_path "$note" || continue
      create_dashboard "${parts[0]}" "${parts[1]}"
      result=$?
      ((result == 0)) || status=$result
      ((result != NOT_LOCKED)) || return "$status"
    elif [[ $queue == catalogues-* ]]; then
      split_path "$note" || continue
      apply_catalogue "${parts[0]}" "${parts[1]}" || status=$?
    elif [[ -z $note ]]; then
      sweep=1
    else
      arguments+=(--tsvFile "$note")
    fi
  done
  if ((${#arguments[@]} > 0)); then
    take_turn
    ingest "${arguments[@]}" || status=$?
    exec 6>&-
    for note in "${notes[@]}"; do request_dashboard "$note"; done
  fi
  if [[ -n $sweep ]]; then
    ingest || status=$?
  fi
  return "$status"
}

# Creates the dashboard of the campaign that a file was uploaded to, if its marker is missing and no upload has tried so in
# the last hour.
request_dashboard() {
  local parts=() campaign checksum tried now last=0
  split_path "$1" && ((${#parts[@]} >= 4)) && [[ ${INFLUXDB_FLAVOR:-} != 3 ]] || return 0
  campaign=$data/${parts[0]}/${parts[1]}
  [[ -d $campaign && ! -L $campaign && ! -e $campaign/.dashboard.created && -r $playbook ]] || return 0
  make_folder "$queues/tried" || return 0
  set_checksum "$campaign"
  tried=$queues/tried/$checksum
  { read -r last <"$tried"; } 2>/dev/null
  printf -v now '%(%s)T' -1
  [[ $last =~ ^[0-9]+$ ]] && ((now - last >= 0 && now - last < RETRY_SECONDS)) && return 0
  { printf '%s\n' "$now" >"$tried"; } 2>/dev/null || return 0
  SFTPGO_ACTION=mkdir SFTPGO_ACTION_PATH=$campaign SFTPGO_ACTION_STATUS=1 "$hook" 9<&-
}

main() {
  case ${1:-} in
    queue)
      exec 3>&- # closing the pipe tells the hook that the new session has started
      work_on_all "$2"
      ;;
    alone)
      exec 3>&-
      local queue=$2 notes=("$3")
      work
      ;;
    *) run ;;
  esac
}

[[ ${BASH_SOURCE[0]} != "$0" ]] || main "$@"
