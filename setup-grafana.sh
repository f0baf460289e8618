#!/usr/bin/env bash
#
# Creates or repairs the gateway's data source and dashboards in a running Grafana: see `usage`.
# Works with bash 3.2 (macOS) and later.

# Any POSIX shell can run these lines; the rest needs bash.
if [ -z "${BASH_VERSION:-}" ]; then
  if [ -f "$0" ] && command -v bash >/dev/null 2>&1; then exec bash "$0" "$@"; fi
  printf 'setup-grafana: bash is needed: bash setup-grafana.sh\n' >&2
  exit 2
fi

set -euo pipefail

usage() {
  cat <<'USAGE'
usage: setup-grafana.sh [-h | --help]

Creates or repairs the gateway's data source (uid prometheus) and dashboards in a running
Grafana, through its HTTP API. Safe to run twice: in an existing data source only wrong settings
are changed, dashboards stay in their folders, and what is provisioned from files is not changed.
(Not needed with docker compose, which provisions the same files.)

It takes no arguments. From the environment:

  GRAFANA_URL        http://localhost:3000
  GRAFANA_USER       admin
  GRAFANA_PASSWORD   admin
  GRAFANA_TOKEN      token of a service account with the role Admin, instead of user and password
  PROMETHEUS_URL     http://prometheus:9090, as seen from Grafana
  GRAFANA_WAIT       60, whole seconds to wait for a Grafana that is starting

It needs bash, curl, and python3 or jq.
Exit status: 0 success, 1 a step failed, 2 wrong usage or a missing program.
USAGE
}

say() { printf '%s\n' "$*"; }
warn() { printf 'setup-grafana: %s\n' "$*" >&2; }
fail() {
  warn "$*"
  exit 1
}
wrong() {
  warn "$*"
  exit 2
}

# --- arguments and environment -------------------------------------------------------------------------

case $#,${1:-} in
  0,) ;;
  1,-h | 1,--help)
    usage
    exit 0
    ;;
  *)
    warn "it takes no arguments: $*"
    usage >&2
    exit 2
    ;;
esac

GRAFANA_URL=${GRAFANA_URL:-http://localhost:3000}
GRAFANA_USER=${GRAFANA_USER:-admin}
GRAFANA_PASSWORD=${GRAFANA_PASSWORD:-admin}
GRAFANA_TOKEN=${GRAFANA_TOKEN:-}
export PROMETHEUS_URL=${PROMETHEUS_URL:-http://prometheus:9090}
GRAFANA_WAIT=${GRAFANA_WAIT:-60}

# shown URL: the URL without user and password.
shown() {
  local rest=${1#*://} host
  host=${rest%%/*}
  case $1 in
    *://*) printf '%s://%s%s' "${1%%://*}" "${host##*@}" "${rest#"$host"}" ;;
    *) printf '%s' "${1##*@}" ;;
  esac
}

# check_url NAME VALUE
check_url() {
  case $2 in
    http://?* | https://?*) ;;
    *) wrong "$1 must begin with http:// or https://: $(shown "$2")" ;;
  esac
}

case $GRAFANA_WAIT in
  *[!0-9]* | ???????*) wrong "GRAFANA_WAIT must be whole seconds, such as 60: $GRAFANA_WAIT" ;;
esac
GRAFANA_WAIT=$((10#$GRAFANA_WAIT))
check_url GRAFANA_URL "$GRAFANA_URL"
check_url PROMETHEUS_URL "$PROMETHEUS_URL"
GRAFANA_URL=${GRAFANA_URL%/}
[ "$(shown "$GRAFANA_URL")" = "$GRAFANA_URL" ] ||
  wrong "GRAFANA_URL holds a user or a password: they go into GRAFANA_USER and GRAFANA_PASSWORD"

# --- programs and files ------------------------------------------------------------------------------

command -v curl >/dev/null 2>&1 || wrong "curl is needed"
if command -v python3 >/dev/null 2>&1 && python3 -c '' >/dev/null 2>&1; then
  json_tool=python3
elif command -v jq >/dev/null 2>&1; then
  json_tool=jq
else
  wrong "python3 or jq is needed"
fi

here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]:-$0}")" && pwd)
uid=prometheus # the data source's uid in the dashboards

work=$(mktemp -d "${TMPDIR:-/tmp}/setup-grafana.XXXXXX")
trap 'rm -rf "$work"' EXIT

# --- JSON --------------------------------------------------------------------------------------

# Isolated (-I), so that a json.py in the current directory is not imported; -S is faster.
python() { python3 -I -S -X utf8 - "$@"; }

# is_object FILE: whether it holds a JSON object.
is_object() {
  if [ "$json_tool" = python3 ]; then
    python "$@" <<'PY'
import json, sys
try:
    with open(sys.argv[1], encoding="utf-8") as file:
        sys.exit(not isinstance(json.load(file), dict))
except ValueError:
    sys.exit(1)
PY
  else
    jq -e 'type == "object"' "$1" >/dev/null 2>&1
  fi
}

# json_get FILE NAME...: the value at that path; empty where it is missing or FILE is not JSON.
json_get() {
  if [ "$json_tool" = python3 ]; then
    python "$@" <<'PY'
import json, sys
try:
    with open(sys.argv[1], encoding="utf-8") as file:
        value = json.load(file)
    for name in sys.argv[2:]:
        value = value[name]
except (ValueError, KeyError, TypeError):
    value = None
if value is not None:
    print(json.dumps(value) if isinstance(value, (bool, dict, list)) else value)
PY
  else
    local file=$1 path=. name
    shift
    for name in "$@"; do path="$path | objects | .[\"$name\"]"; done
    jq -r "$path | if . == null then empty else . end" "$file" 2>/dev/null || true
  fi
}

# dashboard_payload FILE FOLDER: the body for POST /api/dashboards/db, without an id: Grafana assigns
# one. FOLDER is the folder's uid, empty for the top level (General).
dashboard_payload() {
  if [ "$json_tool" = python3 ]; then
    python "$@" <<'PY'
import json, sys
with open(sys.argv[1], encoding="utf-8") as file:
    dashboard = json.load(file)
dashboard["id"] = None
dashboard.pop("version", None)
payload = {"dashboard": dashboard, "overwrite": True, "message": "setup-grafana.sh"}
if sys.argv[2]:
    payload["folderUid"] = sys.argv[2]
print(json.dumps(payload))
PY
  else
    jq --arg folder "$2" '
      {dashboard: (.id = null | del(.version)), overwrite: true, message: "setup-grafana.sh"}
      + if $folder == "" then {} else {folderUid: $folder} end' "$1"
  fi
}

# data_source_payload FILE: the data source in FILE with its wrong settings corrected. Grafana keeps
# secrets that are not sent. The URL may contain a password, so it is passed in the environment.
data_source_payload() {
  if [ "$json_tool" = python3 ]; then
    python "$@" <<'PY'
import json, os, sys
with open(sys.argv[1], encoding="utf-8") as file:
    source = json.load(file)
source.update(type="prometheus", access="proxy")
url = os.environ["PROMETHEUS_URL"]
if (source.get("url") or "").rstrip("/") != url.rstrip("/"):
    source["url"] = url
source["jsonData"] = {
    "httpMethod": "POST", "manageAlerts": True, **(source.get("jsonData") or {}),
    "timeInterval": "5s",
}
print(json.dumps(source))
PY
  else
    jq '
      def bare: (. // "") | rtrimstr("/");
      .type = "prometheus" | .access = "proxy"
      | if (.url | bare) == (env.PROMETHEUS_URL | bare) then . else .url = env.PROMETHEUS_URL end
      | .jsonData =
        {httpMethod: "POST", manageAlerts: true} + (.jsonData // {}) + {timeInterval: "5s"}' "$1"
  fi
}

# changes BEFORE AFTER: describe how these data sources differ; empty where they do not.
changes() {
  local name before after text=
  members "$1" >"$work/before"
  members "$2" >"$work/after"
  for name in type access url timeInterval httpMethod manageAlerts; do
    IFS= read -r before <&3
    IFS= read -r after <&4
    [ "$before" != "$after" ] || continue
    text="$text${text:+, }$name is $(shown "$after")"
    [ -z "$before" ] || text="$text instead of $(shown "$before")"
  done 3<"$work/before" 4<"$work/after"
  printf '%s' "$text"
}

# members FILE: the settings that data_source_payload may change, one per line.
members() {
  if [ "$json_tool" = python3 ]; then
    python "$@" <<'PY'
import json, sys
with open(sys.argv[1], encoding="utf-8") as file:
    source = json.load(file)
source = {**(source.get("jsonData") or {}), **source}
for name in "type", "access", "url", "timeInterval", "httpMethod", "manageAlerts":
    value = source.get(name)
    print("" if value is None else value if isinstance(value, str) else json.dumps(value))
PY
  else
    jq -r '
      (.jsonData // {}) + .
      | .type, .access, .url, .timeInterval, .httpMethod, .manageAlerts
      | if . == null then "" else tostring end' "$1"
  fi
}

# --- HTTP --------------------------------------------------------------------------------------

# The credential goes to curl through standard input: every user can see a program's arguments.
credential() {
  local text
  if [ -n "$GRAFANA_TOKEN" ]; then
    text=$(quoted "Authorization: Bearer $GRAFANA_TOKEN")
    printf 'header = "%s"\n' "$text"
  else
    text=$(quoted "$GRAFANA_USER:$GRAFANA_PASSWORD")
    printf 'user = "%s"\n' "$text"
  fi
}

# quoted TEXT: escaped for a quoted value in curl's configuration.
quoted() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  printf '%s' "$text"
}

# request SECONDS METHOD PATH [FILE]: send FILE as JSON, with standard input as curl's configuration.
# Returns curl's exit code. Sets $status, $redirect (the URL of a redirect) and $problem (curl's
# message); the response body is in $work/answer.
request() {
  local seconds=$1 method=$2 url="$GRAFANA_URL$3" code=0
  if [ $# -gt 3 ]; then
    set -- --header 'Content-Type: application/json' --data-binary "@$4"
  else
    set --
  fi
  : >"$work/answer"
  curl --config - --silent --show-error --globoff --proto =http,https --max-time "$seconds" \
    --request "$method" --header 'Accept: application/json' --output "$work/answer" \
    --write-out '%{http_code} %{redirect_url}\n' ${1+"$@"} "$url" \
    >"$work/written" 2>"$work/problem" || code=$?
  read -r status redirect <"$work/written" || true
  IFS= read -r problem <"$work/problem" || true
  return "$code"
}

# call METHOD PATH [FILE]: exit if there is no response, or an error that is not Grafana's. `expect`
# checks responses with status 200.
call() {
  request 30 "$@" <<<"$(credential)" || fail "$1 $GRAFANA_URL$2: $problem"
  [ "$status" = 200 ] || is_object "$work/answer" || fail "$1 $GRAFANA_URL$2: $(not_grafana)"
}

# not_grafana: describe the last response. (The query of a sign-in page's URL is long: omitted.)
not_grafana() {
  local to=${redirect%%\?*}
  printf '%s' "the answer, $status${to:+ to $to}, is not Grafana's." \
    " Is that another server, a proxy or a sign-in page? (GRAFANA_URL)"
}

# refused WHAT: exit with Grafana's error message.
refused() {
  local message
  message=$(json_get "$work/answer" message)
  fail "$1: Grafana answered $status${message:+: $message}"
}

# expect WHAT NAME...: exit unless the status is 200 and the body has a value at that path.
expect() {
  local what=$1
  shift
  [ "$status" = 200 ] || refused "$what"
  [ -n "$(json_get "$work/answer" "$@")" ] || fail "$what: $(not_grafana)"
}

# --- the steps ---------------------------------------------------------------------------------

wait_for_grafana() {
  local end=$((SECONDS + GRAFANA_WAIT)) announced='' code why
  while :; do
    code=0
    request 5 GET /api/health </dev/null || code=$?
    case $code,$status in
      0,5?? | 0,429) why="it answers $status" ;;
      0,*)
        # Grafana reports the state of its database without a login.
        [ "$status" != 200 ] || [ -z "$(json_get "$work/answer" database)" ] || return 0
        fail "GET $GRAFANA_URL/api/health: $(not_grafana)"
        ;;
      # Name not resolved, refused, broken off, timeout, no TLS: may be temporary during a start.
      [5-7],* | 16,* | 18,* | 28,* | 35,* | 52,* | 5[56],* | 92,*) why=$problem ;;
      *) fail "GET $GRAFANA_URL/api/health: $problem (GRAFANA_URL)" ;;
    esac
    [ "$SECONDS" -lt "$end" ] ||
      fail "no Grafana at $GRAFANA_URL within $GRAFANA_WAIT s: $why (GRAFANA_URL, GRAFANA_WAIT)"
    [ -n "$announced" ] || say "waiting for Grafana at $GRAFANA_URL: $why"
    announced=yes
    sleep 1
  done
}

log_in() {
  call GET /api/org
  [ "$status" != 401 ] ||
    fail "Grafana refuses the login (GRAFANA_USER and GRAFANA_PASSWORD, or GRAFANA_TOKEN)"
  expect "logging in" id
}

put_data_source() {
  call GET "/api/datasources/uid/$uid"
  case $status in
    403) fail "this login may not manage data sources: it needs the role Admin" ;;
    404) create_data_source ;;
    *)
      expect "looking for the data source" uid
      repair_data_source
      ;;
  esac
}

create_data_source() {
  local name=Prometheus
  # A data source of this name with another uid is not ours: it stays.
  call GET "/api/datasources/name/$name"
  if [ "$status" != 404 ]; then
    expect "looking for a data source named $name" uid
    name="Prometheus (gateway)"
  fi
  printf '{"name": "%s", "uid": "%s"}' "$name" "$uid" >"$work/new"
  data_source_payload "$work/new" >"$work/body"
  call POST /api/datasources "$work/body"
  expect "creating the data source '$name'" datasource
  say "data source $uid: created as '$name' ($(shown "$PROMETHEUS_URL"))"
}

repair_data_source() {
  local type what
  type=$(json_get "$work/answer" type)
  case $type in
    prometheus | '') ;;
    *)
      fail "the data source '$(json_get "$work/answer" name)' has the uid $uid, which the" \
        "dashboards need, but it is of type $type. Nothing was changed: give it another uid," \
        "or delete it, and run this again"
      ;;
  esac
  if [ "$(json_get "$work/answer" readOnly)" = true ]; then
    say "data source $uid: provisioned from a file, not changed"
    return
  fi
  data_source_payload "$work/answer" >"$work/body"
  what=$(changes "$work/answer" "$work/body")
  if [ -z "$what" ]; then
    say "data source $uid: up to date ($(shown "$PROMETHEUS_URL"))"
    return
  fi
  call PUT "/api/datasources/uid/$uid" "$work/body"
  expect "repairing the data source" datasource
  say "data source $uid: repaired: $what"
}

put_dashboard() {
  local file=$1 wanted title folder=
  wanted=$(json_get "$file" uid)
  title=$(json_get "$file" title)
  [ -n "$wanted" ] || fail "$file is no dashboard"
  call GET "/api/dashboards/uid/$wanted"
  if [ "$status" != 404 ]; then
    expect "looking for the dashboard $title" dashboard uid
    if [ "$(json_get "$work/answer" meta provisioned)" = true ]; then
      say "dashboard $title: provisioned from a file, not changed"
      return
    fi
    folder=$(json_get "$work/answer" meta folderUid)
  fi
  dashboard_payload "$file" "$folder" >"$work/body"
  call POST /api/dashboards/db "$work/body"
  expect "saving the dashboard $title" uid
  say "dashboard $title: $GRAFANA_URL/d/$wanted"
}

check_data_source() {
  call GET "/api/datasources/uid/$uid/health"
  case $status,$(json_get "$work/answer" status) in
    200,OK) say "Grafana reaches Prometheus" ;;
    404,*) ;; # an old Grafana without this check
    200,?* | 400,*)
      fail "data source and dashboards are in place, but Grafana does not reach Prometheus:" \
        "$(json_get "$work/answer" message) (PROMETHEUS_URL is the address as Grafana sees it)"
      ;;
    *) expect "asking Grafana whether it reaches Prometheus" status ;;
  esac
}

set -- "$here"/grafana/dashboards/*.json
[ -f "$1" ] || fail "no dashboards in $here/grafana/dashboards"
wait_for_grafana
log_in
put_data_source
for file in "$@"; do put_dashboard "$file"; done
check_data_source
