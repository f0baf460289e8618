#!/usr/bin/env bash
#
# Gives a running Grafana the gateway's data source and dashboards, or repairs them. Safe to run
# twice. (With docker compose there is nothing to do: they are provisioned from the same files.)
#
#   GRAFANA_URL        http://localhost:3000
#   GRAFANA_USER       admin
#   GRAFANA_PASSWORD   admin
#   GRAFANA_TOKEN      of a service account with the role Admin, instead of user and password
#   PROMETHEUS_URL     http://prometheus:9090, as Grafana reaches it
#   GRAFANA_WAIT       60, seconds to wait for Grafana
#
# Needs bash (3.2 will do), curl, and python3 or jq. Exit status: 0 all is in place, 1 something
# failed, 2 something is missing here.

set -euo pipefail

GRAFANA_URL=${GRAFANA_URL:-http://localhost:3000}
GRAFANA_URL=${GRAFANA_URL%/}
GRAFANA_USER=${GRAFANA_USER:-admin}
GRAFANA_PASSWORD=${GRAFANA_PASSWORD:-admin}
GRAFANA_TOKEN=${GRAFANA_TOKEN:-}
PROMETHEUS_URL=${PROMETHEUS_URL:-http://prometheus:9090}
GRAFANA_WAIT=${GRAFANA_WAIT:-60}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
uid=prometheus # what the dashboards call the data source

say() { printf '%s\n' "$*"; }
fail() {
  printf 'setup-grafana: %s\n' "$*" >&2
  exit 1
}

# --- what is here ------------------------------------------------------------------------------

if ! command -v curl >/dev/null 2>&1; then
  printf 'setup-grafana: curl is needed\n' >&2
  exit 2
fi
if command -v python3 >/dev/null 2>&1 && python3 -c '' >/dev/null 2>&1; then
  json_tool=python3
elif command -v jq >/dev/null 2>&1; then
  json_tool=jq
else
  printf 'setup-grafana: python3 or jq is needed\n' >&2
  exit 2
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/setup-grafana.XXXXXX")
trap 'rm -rf "$work"' EXIT

# --- JSON --------------------------------------------------------------------------------------

# json_get FILE NAME...: the value at that path; empty where there is none, or no JSON.
json_get() {
  if [ "$json_tool" = python3 ]; then
    python3 - "$@" <<'PY'
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

# dashboard_payload FILE: what POST /api/dashboards/db takes; Grafana gives ids of its own.
dashboard_payload() {
  if [ "$json_tool" = python3 ]; then
    python3 - "$1" <<'PY'
import json, sys
with open(sys.argv[1], encoding="utf-8") as file:
    dashboard = json.load(file)
dashboard["id"] = None
dashboard.pop("version", None)
print(json.dumps({"dashboard": dashboard, "overwrite": True, "message": "setup-grafana.sh"}))
PY
  else
    jq '{dashboard: (.id = null | del(.version)), overwrite: true, message: "setup-grafana.sh"}' "$1"
  fi
}

# data_source_payload NAME
data_source_payload() {
  if [ "$json_tool" = python3 ]; then
    python3 - "$1" "$uid" "$PROMETHEUS_URL" <<'PY'
import json, sys
name, uid, url = sys.argv[1:]
print(json.dumps({
    "name": name, "uid": uid, "type": "prometheus", "access": "proxy", "url": url,
    "jsonData": {"timeInterval": "5s", "httpMethod": "POST", "manageAlerts": True},
}))
PY
  else
    jq -n --arg name "$1" --arg uid "$uid" --arg url "$PROMETHEUS_URL" '{
      name: $name, uid: $uid, type: "prometheus", access: "proxy", url: $url,
      jsonData: {timeInterval: "5s", httpMethod: "POST", manageAlerts: true}}'
  fi
}

# --- HTTP --------------------------------------------------------------------------------------

# The credential goes to curl through its standard input: arguments are seen by every user.
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

# quoted TEXT: as it must stand between quotes in curl's configuration.
quoted() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  printf '%s' "$text"
}

# call METHOD PATH [FILE]: sends FILE as JSON; the answer is in $work/answer, its status in $status.
call() {
  local url="$GRAFANA_URL$2" method=$1
  if [ $# -gt 2 ]; then
    set -- --header 'Content-Type: application/json' --data-binary "@$3"
  else
    set --
  fi
  : >"$work/answer"
  status=$(
    credential | curl --config - --silent --show-error --max-time 30 --request "$method" \
      --header 'Accept: application/json' --output "$work/answer" --write-out '%{http_code}' \
      ${1+"$@"} "$url" 2>"$work/problem"
  ) || fail "$method $url: $(cat "$work/problem")"
}

# refused WHAT: ends with what Grafana said.
refused() {
  local message
  message=$(json_get "$work/answer" message)
  fail "$1: Grafana answered $status${message:+: $message}"
}

# --- the steps ---------------------------------------------------------------------------------

wait_for_grafana() {
  local end=$((SECONDS + GRAFANA_WAIT)) told=
  until curl --silent --fail --max-time 5 --output /dev/null "$GRAFANA_URL/api/health" 2>/dev/null; do
    [ "$SECONDS" -lt "$end" ] ||
      fail "no Grafana at $GRAFANA_URL within $GRAFANA_WAIT s (GRAFANA_URL, GRAFANA_WAIT)"
    [ -n "$told" ] || say "waiting for Grafana at $GRAFANA_URL"
    told=yes
    sleep 1
  done
}

log_in() {
  call GET /api/org
  case $status in
    200) ;;
    401) fail "Grafana refuses the login (GRAFANA_USER and GRAFANA_PASSWORD, or GRAFANA_TOKEN)" ;;
    *) refused "logging in" ;;
  esac
}

put_data_source() {
  local name=Prometheus
  call GET "/api/datasources/uid/$uid"
  case $status in
    200)
      if [ "$(json_get "$work/answer" readOnly)" = true ]; then
        say "data source $uid: provisioned from a file, left as it is"
        return
      fi
      name=$(json_get "$work/answer" name)
      data_source_payload "${name:-Prometheus}" >"$work/body"
      call PUT "/api/datasources/uid/$uid" "$work/body"
      [ "$status" = 200 ] || refused "repairing the data source"
      say "data source $uid: repaired ($PROMETHEUS_URL)"
      ;;
    404)
      # One of the same name with another uid is somebody's own; it stays.
      call GET "/api/datasources/name/$name"
      [ "$status" != 200 ] || name="Prometheus (gateway)"
      data_source_payload "$name" >"$work/body"
      call POST /api/datasources "$work/body"
      [ "$status" = 200 ] || refused "creating the data source"
      say "data source $uid: created as '$name' ($PROMETHEUS_URL)"
      ;;
    403) fail "this login may not manage data sources: it needs the role Admin" ;;
    *) refused "looking for the data source" ;;
  esac
}

put_dashboard() {
  local file=$1 wanted title
  wanted=$(json_get "$file" uid)
  title=$(json_get "$file" title)
  [ -n "$wanted" ] || fail "$file is no dashboard"
  call GET "/api/dashboards/uid/$wanted"
  if [ "$status" = 200 ] && [ "$(json_get "$work/answer" meta provisioned)" = true ]; then
    say "dashboard $title: provisioned from a file, left as it is"
    return
  fi
  dashboard_payload "$file" >"$work/body"
  call POST /api/dashboards/db "$work/body"
  [ "$status" = 200 ] || refused "saving the dashboard $title"
  say "dashboard $title: $GRAFANA_URL/d/$wanted"
}

check_data_source() {
  call GET "/api/datasources/uid/$uid/health"
  case $status in
    200) say "Grafana reaches Prometheus" ;;
    404) ;; # an old Grafana that cannot tell
    *)
      fail "all is in place, but Grafana does not reach Prometheus:" \
        "$(json_get "$work/answer" message) (PROMETHEUS_URL is the address as Grafana sees it)"
      ;;
  esac
}

set -- "$here"/grafana/dashboards/*.json
[ -f "$1" ] || fail "no dashboards in $here/grafana/dashboards"
wait_for_grafana
log_in
put_data_source
for file in "$@"; do put_dashboard "$file"; done
check_data_source
