"""`keys import litellm FILE`: takes over LiteLLM's virtual keys.

LiteLLM keeps the SHA-256 of a key, as this gateway does: callers keep their keys. FILE is JSON as
`/key/list?return_full_object=true`, `/key/info` and `/team/list` respond with, or several of them
in one list or object; or the proxy's config.yaml, which has no virtual keys but may have defaults
for them. Sources: https://docs.litellm.ai/docs/proxy/virtual_keys and .../proxy/users

Invariant: no key may do more here than there. One with a restriction that has no counterpart here
is not taken, and the reason is printed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import ROUND_DOWN, Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from wrapper.cli import CommandError, count, examples
from wrapper.cli.key_list import limits_text
from wrapper.config import ApiKey, Group, KeyFile, keyfile, keys_path, load_key_file
from wrapper.config.keys import is_short_line, wrong_name
from wrapper.config.limits import MAX_BUDGET, MAX_LIMITS, MIN_BUDGET, NO_LIMITS, Limits
from wrapper.config.settings import is_broken_glob

if TYPE_CHECKING:
    from wrapper.cli import Subparsers

INCOMPLETE = 3
"""The exit code where a key was not taken that the keys file does not have."""

MAX_BYTES = 64 << 20

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PERIODS = {
    "day": ("24h", "1d", "daily", "day"),
    "week": ("7d", "1w", "weekly", "week"),
    "month": ("28d", "30d", "31d", "1mo", "monthly", "month"),
}
# Restrictions without a counterpart here.
_RESTRICTIONS = (
    *("model_max_budget", "model_rpm_limit", "model_tpm_limit", "budget_limits", "budget_id"),
    *("guardrails", "object_permission_id", "organization_id", "enforced_params"),
)
_OPEN_ROUTES = (["llm_api_routes"], ["openai_routes"])

Record = Mapping[str, object]


class NotTaken(Exception):
    """Why a key or a team is not taken."""


class AlreadyThere(NotTaken):
    """The keys file has the key."""


@dataclass
class Found:
    """What an export has, in its order."""

    keys: list[ApiKey] = field(default_factory=list)
    groups: dict[str, Group] = field(default_factory=dict)
    not_taken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: bool = False  # something was not taken that the keys file does not have
    spent: int = 0  # keys that have a `spend`


def add_parser(actions: Subparsers) -> None:
    """Adds `keys import`."""
    parser = actions.add_parser(
        "import",
        help="take over the virtual keys of LiteLLM",
        description="Adds the virtual keys of a LiteLLM export to the keys file. Their secrets stay"
        " valid. A key with a restriction that has no counterpart here is not taken; what was taken"
        f" and what was not is printed; then the exit code is {INCOMPLETE}.",
        epilog=examples(
            ("keys import litellm keys.json", "from /key/list?return_full_object=true"),
            ("keys import litellm keys.json --print", "only print the tables, to review them"),
        ),
    )
    parser.add_argument("source", choices=("litellm",), metavar="litellm", help="where from")
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="an export of keys and teams (JSON), or config.yaml"
    )
    parser.add_argument(
        "--print", dest="only_print", action="store_true", help="print the tables, change no file"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Imports keys and teams. Raises `CommandError` and `ConfigError`."""
    document = _document(args.file)
    current = load_key_file(environ)
    found = read(document, current)
    groups = [group for name, group in found.groups.items() if name not in current.groups]
    if args.only_print:
        added: list[ApiKey | Group] = [*groups, *found.keys]
        print("\n".join(keyfile.render(each, current.defaults) for each in added), end="")
    else:
        try:
            keyfile.add(keys_path(environ), found.keys, groups, defaults=current.defaults)
        except keyfile.KeyFileError as error:
            raise CommandError(str(error)) from None
    mark = "# " if args.only_print else ""
    for line in _report(found, groups):
        print(f"{mark}{line}")
    return INCOMPLETE if found.failed else 0


def _report(found: Found, groups: list[Group]) -> Iterator[str]:
    taken = f"{count(len(found.keys), 'key')}, {count(len(groups), 'group')}"
    yield f"taken: {taken}; not taken: {len(found.not_taken)}"
    for group in groups:
        yield f"  group {group.name}: {limits_text(group) or 'no limit'}"
    for key in found.keys:
        models = "all models" if key.models == ("*",) else " ".join(key.models)
        yield f"  key {key.name}: {models}; {limits_text(key) or 'no limit'}"
    yield from (f"not taken: {line}" for line in found.not_taken)
    yield from (f"note: {line}" for line in found.notes)


def _document(path: Path) -> object:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise CommandError(f"{path}: is larger than {MAX_BYTES >> 20} MiB")
    try:
        if path.suffix in (".yaml", ".yml"):
            import yaml

            try:
                return yaml.safe_load(data)
            except yaml.YAMLError as error:
                raise CommandError(f"{path}: is not YAML: {error}") from None
        return json.loads(data, parse_float=Decimal)
    except (ValueError, RecursionError):
        raise CommandError(f"{path}: is not JSON (config.yaml must end with .yaml)") from None


def read(document: object, current: KeyFile) -> Found:
    """The keys and groups of an export, without those that `current` has."""
    found = Found()
    records = list(_records(document))
    teams = {str(each["team_id"]): each for each in records if _is_team(each)}
    names: dict[str, str] = {}  # of groups, by team
    digests = {digest for key in current.keys.values() for digest in key.sha256s}
    taken = set(current.keys)
    for record in records:
        token = record.get("token")
        if not isinstance(token, str):
            continue
        label = str(record.get("key_alias") or record.get("key_name") or "key")
        try:
            key = _key(record, token, teams)
            if key.sha256 in digests:
                raise AlreadyThere("the keys file has this secret already")
            team = record.get("team_id")
            if team is not None:
                group = _group_of(str(team), teams, found, names)
                key = replace(key, group=group)
        except NotTaken as why:
            found.not_taken.append(f"key {label!r}: {why}")
            found.failed = found.failed or not isinstance(why, AlreadyThere)
            continue
        key = replace(key, name=_unique(_name(label, "key"), taken))
        taken.add(key.name)
        digests.add(key.sha256)
        found.keys.append(key)
        found.spent += bool(record.get("spend"))
    if found.spent:
        found.notes.append(
            f"what {count(found.spent, 'key')} spent so far is not taken: the usage table, and"
            " budgets per day, week or month, begin at zero; of a prepaid budget the rest is taken"
        )
    _note_config(document, found)
    return found


def _records(document: object) -> Iterator[Record]:
    """All keys and teams in a document."""
    if isinstance(document, list):
        for each in document:
            yield from _records(each)
    elif isinstance(document, dict):
        if isinstance(info := document.get("info"), dict) and isinstance(document.get("key"), str):
            yield {"token": document["key"], **info}  # of /key/info
        elif "token" in document or _is_team(document):
            yield document
        else:
            for name in ("keys", "data", "teams", "team_info"):
                yield from _records(document.get(name))


def _is_team(record: Record) -> bool:
    return "team_id" in record and "token" not in record and record["team_id"] is not None


def _note_config(document: object, found: Found) -> None:
    """What a config.yaml has that concerns keys."""
    if not isinstance(document, dict):
        return
    models = document.get("model_list")
    if isinstance(models, list) and models:
        found.notes.append(
            f"{count(len(models), 'model')} of model_list: write [providers] and [[routes]] in"
            " gateway.toml, see docs/providers.md"
        )
    general = document.get("general_settings")
    if isinstance(general, dict) and "master_key" in general:
        found.notes.append("general_settings.master_key has no counterpart: there is no admin API")
    parameters = document.get("litellm_settings")
    parameters = (
        parameters.get("default_key_generate_params") if isinstance(parameters, dict) else 0
    )
    if isinstance(parameters, dict) and parameters:
        try:
            text = limits_text(Group("", **_limits(parameters)))
        except NotTaken as why:
            text = f"not taken, {why}"
        found.notes.append(
            f"litellm_settings.default_key_generate_params ({text or 'no limit'}): write [defaults]"
        )
    if "model_list" in document and not found.keys:
        found.notes.append(
            "a config.yaml has no virtual keys: export them with"
            " GET /key/list?return_full_object=true"
        )


# --- one key, one team ---


def _key(record: Record, token: str, teams: Mapping[str, Record]) -> ApiKey:
    if not _SHA256.fullmatch(token):
        raise NotTaken("its token is not a SHA-256: export with return_full_object=true")
    if record.get("blocked"):
        raise NotTaken("it is blocked")
    _refuse_restrictions(record)
    team = teams.get(str(record.get("team_id")), {})
    return ApiKey(
        name="",
        sha256=token,
        models=_models(record, team),
        owner=_owner(record),
        expires=_expires(record.get("expires")),
        **_limits(record),
    )


def _refuse_restrictions(record: Record) -> None:
    metadata = record.get("metadata")
    for where in (record, metadata if isinstance(metadata, dict) else {}):
        for name in _RESTRICTIONS:
            if where.get(name):
                raise NotTaken(f"{name} has no counterpart here")
    routes = record.get("allowed_routes")
    if routes and routes not in _OPEN_ROUTES:
        raise NotTaken("allowed_routes has no counterpart here")


def _group_of(team: str, teams: Mapping[str, Record], found: Found, names: dict[str, str]) -> str:
    """The name of the team's group, which is made where there is none yet."""
    if team in names:
        return names[team]
    record = teams.get(team)
    if record is None:
        group = Group(_unique(_name(team, "team"), found.groups))
        found.notes.append(
            f"the file says nothing about team {team!r}: write its limits into"
            f" [groups.{group.name}]"
        )
    else:
        if record.get("blocked"):
            raise NotTaken(f"its team {team!r} is blocked")
        try:
            _refuse_restrictions(record)
            limits = _limits(record)
        except NotTaken as why:
            raise NotTaken(f"its team {team!r}: {why}") from None
        label = str(record.get("team_alias") or team)
        group = Group(_unique(_name(label, "team"), found.groups), **limits)
    names[team] = group.name
    found.groups[group.name] = group
    return group.name


def _models(record: Record, team: Record) -> tuple[str, ...]:
    """The models of a key; empty and "all-team-models" mean those of its team."""
    own = _texts(record.get("models"))
    of_team = _texts(team.get("models"))
    if not own or "all-team-models" in own:
        if own and record.get("team_id") is not None and not team:
            raise NotTaken("it has the models of its team, which the file does not have")
        own = of_team
    if not own or "all-proxy-models" in own:
        if of_team and "all-proxy-models" not in of_team:
            own = of_team
        else:
            return ("*",)
    if "no-default-models" in own:
        raise NotTaken("it may not call any model")
    if not all(model.isprintable() for model in own) or any(map(is_broken_glob, own)):
        raise NotTaken("a model's name cannot be used here")
    return tuple(dict.fromkeys(own))


def _limits(record: Record) -> Limits:
    budget, period = _budget(record)
    return Limits(
        requests_per_minute=_limit(record, "rpm_limit", "requests_per_minute"),
        tokens_per_minute=_limit(record, "tpm_limit", "tokens_per_minute"),
        max_concurrent=_limit(record, "max_parallel_requests", "max_concurrent"),
        budget_usd=budget,
        budget_period=period,
    )


def _limit(record: Record, theirs: str, ours: str) -> int | None:
    value = record.get(theirs)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise NotTaken(f"{theirs} is not an integer")
    if value < 1:
        raise NotTaken(f"{theirs} is {value}: it may do nothing")
    return min(value, MAX_LIMITS[ours])


def _budget(record: Record) -> tuple[Decimal | None, str]:
    """The budget and its period. Of a budget that never begins anew, what is left of it."""
    budget = _number(record, "max_budget")
    if budget is None:
        return None, NO_LIMITS["budget_period"]
    duration = record.get("budget_duration")
    if duration is None:
        period = "total"
        budget -= _number(record, "spend") or Decimal(0)
    else:
        known = (ours for ours, theirs in _PERIODS.items() if str(duration).lower() in theirs)
        period = next(known, "")
        if not period:
            raise NotTaken(f"budget_duration {duration!r} has no counterpart here")
    if budget < MIN_BUDGET:
        raise NotTaken("its budget is used up")
    return min(budget, MAX_BUDGET).quantize(MIN_BUDGET, ROUND_DOWN).normalize(), period


def _number(record: Record, name: str) -> Decimal | None:
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise NotTaken(f"{name} is not a number")
    number = Decimal(str(value))
    if not number.is_finite() or abs(number) > 10**12:
        raise NotTaken(f"{name} is not a number that can be used")
    return number


def _expires(value: object) -> datetime.date | None:
    """The day, so that the key ends early and not late."""
    if value is None:
        return None
    try:
        at = datetime.datetime.fromisoformat(str(value))
        at = at.replace(tzinfo=datetime.UTC) if at.tzinfo is None else at.astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        raise NotTaken("expires is not a date") from None
    if at.date() <= datetime.datetime.now(datetime.UTC).date():
        raise NotTaken("it has expired")
    return at.date()


def _owner(record: Record) -> str | None:
    owner = record.get("user_email") or record.get("user_id")
    return owner if isinstance(owner, str) and is_short_line(owner) else None


def _texts(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _name(label: str, fallback: str) -> str:
    """A name that a key or a group can have, as close to the label as possible."""
    name = re.sub(r"[^A-Za-z0-9._@-]+", "-", label).strip("-._@")[:56]
    return name if name and wrong_name(name) is None else f"{fallback}-{name.removeprefix('sk-')}"


def _unique(name: str, taken: Mapping[str, object] | set[str]) -> str:
    candidates = (name, *(f"{name}-{number}" for number in range(2, 10**6)))
    return next(each for each in candidates if each not in taken)
