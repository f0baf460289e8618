"""Editing keys.toml adds or removes one key and leaves every other byte as it was."""

from __future__ import annotations

import datetime
import errno
import os
import stat
import threading
import tomllib
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from wrapper.auth import digest
from wrapper.config import ApiKey, ConfigError, keyfile, load_keys
from wrapper.config.keyfile import Changes, KeyFileError

DIGEST = digest("x")
FULL = ApiKey(
    "a.b",
    DIGEST,
    ("llama-*", 'odd"\\ü\u202e'),
    60,
    100_000,
    8,
    Decimal("1E+1"),
    "day",
    datetime.date(2027, 1, 1),
    owner='"ann" \\ bob',
    description="für alle",
    endpoints=("realtime",),
    unpriced="allow",
    store_failure="allow",
    enforce=False,
)
FILE = """\
# who is who

[keys.first]   # the first
sha256 = "%s"

# about the second
[keys.second]
models = [
  "a",  # one [
  "b]",
]
note = '''
[keys.fake]
'''
# inside of the second

# about the third
[keys."third.one"]
sha256 = "x"   # comment at the end""" % ("1" * 64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def test_a_new_file_has_the_key_and_is_readable_by_its_owner_alone(path: Path) -> None:
    keyfile.add(path, [FULL])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_keys({"WRAPPER_KEYS": str(path)}) == {"a.b": FULL}
    assert [found.name for found in path.parent.iterdir()] == ["keys.toml"]


def test_what_is_at_its_default_is_not_written() -> None:
    assert keyfile.render(ApiKey("web-app", DIGEST)) == f'[keys.web-app]\nsha256 = "{DIGEST}"\n'


def test_a_period_is_not_written_without_a_budget(path: Path) -> None:
    path.write_text('[defaults]\nbudget_period = "day"\n')
    keyfile.add(path, [ApiKey("a", DIGEST)], defaults=ApiKey("", "", budget_period="day"))
    keyfile.add(path, [ApiKey("b", digest("b"))], defaults=ApiKey("", "", budget_period="day"))
    assert list(load_keys({"WRAPPER_KEYS": str(path)})) == ["a", "b"]


def test_a_key_is_appended_and_all_bytes_before_it_stay(path: Path) -> None:
    before = FILE.replace("\n", "\r\n").encode()
    path.write_bytes(before)
    keyfile.add(path, [ApiKey("new", DIGEST)])
    after = path.read_bytes()
    assert after.startswith(before)
    assert tomllib.loads(after.decode())["keys"]["new"] == {"sha256": DIGEST}


def test_the_mode_of_an_old_file_stays_and_a_link_stays_a_link(path: Path) -> None:
    real = path.with_name("real.toml")
    real.write_text("")
    real.chmod(0o640)
    path.symlink_to("real.toml")
    keyfile.add(path, [ApiKey("new", DIGEST)])
    assert path.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert "[keys.new]" in real.read_text()


def test_a_name_that_is_taken_is_refused_and_nothing_changes(path: Path) -> None:
    path.write_text(FILE)
    with pytest.raises(KeyFileError, match=r"there is a key 'third\.one' already"):
        keyfile.add(path, [ApiKey("third.one", DIGEST)])
    assert path.read_text() == FILE


@pytest.mark.parametrize(
    "text",
    ["keys = { a = { sha256 = 'x' } }\n", "keys = 1\n", "[[keys]]\na = 1\n"],
)
def test_a_form_that_cannot_be_extended_is_refused_with_a_message(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(KeyFileError, match="keys"):
        keyfile.add(path, [ApiKey("new", DIGEST)])
    assert path.read_text() == text


@pytest.mark.parametrize("data", [b"[keys", b"caf\xe9", b"[keys.a]\n[keys.a]"])
def test_a_broken_file_is_reported_and_stays(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for call in (lambda: keyfile.add(path, [FULL]), lambda: keyfile.revoke(path, "a")):
        with pytest.raises(ConfigError, match=r"keys\.toml"):
            call()
    assert path.read_bytes() == data


def test_revoking_takes_the_keys_own_lines_and_nothing_else(path: Path) -> None:
    path.write_text(FILE)
    keyfile.revoke(path, "second")
    start, end = FILE.index("[keys.second]"), FILE.index("# inside of the second")
    assert path.read_text() == FILE[:start] + FILE[end:]
    keyfile.revoke(path, "third.one")
    assert path.read_text().endswith("# about the third\n")
    keyfile.revoke(path, "first")
    assert tomllib.loads(path.read_text()) == {}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("[keys.a]\nx=1\n[keys.b]\ny=2", "[keys.b]\ny=2"),
        ("[ keys . 'a' ]\nx=1\n[keys.b]\n", "[keys.b]\n"),
        ('["keys"."\\u0061"]\nx=1\n[keys.b]\n', "[keys.b]\n"),
        ("[keys.a]\nx=1\n[keys.a.sub]\ny=2\n[keys.b]\n", "[keys.b]\n"),
        ("[keys.a.sub]\ny=2\n[keys.b]\n", "[keys.b]\n"),
        ("[keys]\na = { x = 1 }\nb = { y = 2 }\n", "[keys]\nb = { y = 2 }\n"),
        ("[keys]\na.x = 1\na.y = [\n2,\n]\n\nb.y = 2\n", "[keys]\n\nb.y = 2\n"),
        ("keys.a.x = 1\nkeys.b.y = 2\n", "keys.b.y = 2\n"),
        ("keys.b.y = 2\nkeys.a.x = 1", "keys.b.y = 2\n"),
        ("[keys.a]\nx=1\n# c\n\ny=2\n\n# d\n[keys.b]", "\n# d\n[keys.b]"),
        ("[keys.b]\nx='''\n[keys.a]\n'''\n[keys.a]\n", "[keys.b]\nx='''\n[keys.a]\n'''\n"),
        (
            '[keys.b]\nx="""\\"""\n[keys.a]\n"""""\n[keys.a]',
            '[keys.b]\nx="""\\"""\n[keys.a]\n"""""\n',
        ),
        ("[keys.a]\r\nx=1\r\n\r\n[keys.b]\r\n", "\r\n[keys.b]\r\n"),
        ("[keys.a]\n[keys.ab]\n[other.a]\n", "[keys.ab]\n[other.a]\n"),
        ("[keys.a]\n[o]\n[keys.a.sub]\n\n# d\n[keys.b]\n", "[o]\n\n# d\n[keys.b]\n"),
        ("[keys.a]\n[keys.b]\n[keys.a.sub]\n# d\n[keys.c]\n", "[keys.b]\n# d\n[keys.c]\n"),
        ("[keys]\na = {x = 1}\nb = {y = 2027-01-01 }\n", "[keys]\nb = {y = 2027-01-01 }\n"),
    ],
)
def test_a_key_is_found_however_it_is_spelt(path: Path, text: str, left: str) -> None:
    path.write_bytes(text.encode())
    keyfile.revoke(path, "a")
    assert path.read_bytes().decode() == left


def test_a_spelling_that_cannot_be_edited_is_refused_with_a_message(path: Path) -> None:
    text = "keys = { a = { x = 1 }, b = { x = 1 } }\n"
    path.write_text(text)
    with pytest.raises(KeyFileError, match="remove 'a' with an editor"):
        keyfile.revoke(path, "a")
    assert path.read_text() == text


def test_revoking_nobody_says_who_there_is(path: Path) -> None:
    with pytest.raises(KeyFileError, match="there is no key 'b'"):
        keyfile.revoke(path, "b")
    assert not path.exists()
    path.write_text("[keys.a]\n")
    with pytest.raises(KeyFileError, match=r"there is no key 'b' \(there are: a\)"):
        keyfile.revoke(path, "b")


def test_a_directory_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file or directory"):
        keyfile.add(tmp_path / "missing" / "keys.toml", [FULL])


def test_a_file_mounted_alone_cannot_be_replaced_and_the_message_says_what_to_do(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(_self: Path, _target: Path) -> Path:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(Path, "replace", busy)
    with pytest.raises(KeyFileError, match="mount its directory"):
        keyfile.add(path, [FULL])
    assert list(path.parent.iterdir()) == []


def test_commands_at_the_same_time_lose_no_key(path: Path) -> None:
    names = [f"key-{number}" for number in range(16)]
    threads = [
        threading.Thread(target=keyfile.add, args=(path, [ApiKey(name, digest(name))]))
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(load_keys({"WRAPPER_KEYS": str(path)})) == sorted(names)


# --- changes of a key ---


def added(amount: str) -> Callable[[ApiKey], Changes]:
    def changes_of(key: ApiKey) -> Changes:
        return {"budget_usd": (key.budget_usd or Decimal(0)) + Decimal(amount)}

    return changes_of


# tomlkit alone would lose the space behind the date.
INLINE_KEY = f"[keys]\nb = {{ sha256 = '{'0' * 64}', expires = 2027-01-01 }}\n"


def test_a_change_replaces_the_value_and_keeps_comments_and_layout(path: Path) -> None:
    text = (
        f'# all\r\n[keys.a]\r\nsha256 = "{DIGEST}"\r\nbudget_usd   =   5.50   # prepaid\r\n'
        'budget_period = "total"\r\n# end\r\n'
    )
    path.write_bytes(text.encode())
    key = keyfile.change(path, "a", added("2"))
    assert key.budget_usd == Decimal("7.50")
    assert path.read_bytes().decode() == text.replace("5.50", "7.50")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[keys.a]\nsha256 = 'D' # x\n# y", "[keys.a]\nsha256 = 'D' # x\nowner = \"o\"\n# y"),
        ("[keys.a]\nsha256 = 'D'", "[keys.a]\nsha256 = 'D'\nowner = \"o\"\n"),
        ("[keys]\n  a.sha256 = 'D'\n", "[keys]\n  a.sha256 = 'D'\n  a.owner = \"o\"\n"),
        (
            f"{INLINE_KEY}[keys.a]\nsha256 = 'D'\n\n# about g\n[groups.g]\n",
            f"{INLINE_KEY}[keys.a]\nsha256 = 'D'\nowner = \"o\"\n\n# about g\n[groups.g]\n",
        ),
        ("[keys.a]\r\nsha256='D'\r\n", "[keys.a]\r\nsha256='D'\r\nowner=\"o\"\r\n"),
    ],
)
def test_a_setting_that_is_new_follows_the_digest(path: Path, before: str, after: str) -> None:
    path.write_bytes(before.replace("D", DIGEST).encode())
    assert keyfile.change(path, "a", lambda _: {"owner": "o"}).owner == "o"
    assert path.read_bytes().decode() == after.replace("D", DIGEST)


def test_a_setting_can_be_removed_and_several_changed_at_once(path: Path) -> None:
    path.write_text(
        f'[keys.a]\nsha256 = [\n"{DIGEST}",\n"{"0" * 64}"] # two\nrotated_until = 2027-01-01\n'
    )
    keyfile.change(path, "a", lambda key: {"sha256": key.sha256, "rotated_until": None})
    assert path.read_text() == f'[keys.a]\nsha256 = "{DIGEST}" # two\n'


def test_a_change_of_an_inline_table_is_refused_with_what_to_write(path: Path) -> None:
    text = f'[keys]\na = {{ sha256 = "{DIGEST}" }}\n'
    path.write_text(text)
    with pytest.raises(KeyFileError, match=r"change 'a' with an editor: owner = \"o\""):
        keyfile.change(path, "a", lambda _: {"owner": "o"})
    assert path.read_text() == text


def test_a_file_with_a_mistake_is_not_changed(path: Path) -> None:
    text = f'[keys.a]\nsha256 = "{DIGEST}"\n[keys.b]\n'
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"line 3: keys\.b\.sha256"):
        keyfile.change(path, "a", lambda _: {"owner": "o"})
    path.write_text(text.replace("[keys.b]\n", ""))
    with pytest.raises(KeyFileError, match=r"there is no key 'c' \(there are: a\)"):
        keyfile.change(path, "c", lambda _: {"owner": "o"})
    with pytest.raises(ConfigError, match="budget_usd"):
        keyfile.change(path, "a", added("-1"))
    assert path.read_text() == text.replace("[keys.b]\n", "")


# --- any file ---

NAMES = st.sampled_from(["a", "b", "c", "a.b", "d-e", "@", "x y", "keys", "ü"])
STRINGS = st.sampled_from(
    ["''", '"[keys.a]"', "'''\n[keys.a]\n'''", '"""\n# "" \\" [keys.b]\n""""', "'#'", '"\\\\"']
)
SCALARS = STRINGS | st.sampled_from(["1", "true", "2027-01-01", "1.5"])
ARRAYS = st.lists(SCALARS, max_size=3).map(lambda items: "[ # [\n" + ",\n".join(items) + "\n]")
INLINE = st.lists(SCALARS, max_size=3).map(
    lambda items: "{ " + ", ".join(f"k{n} = {v}" for n, v in enumerate(items)) + " }"
)
TRIVIA = st.lists(
    st.sampled_from(["\n", "# comment\n", "  \t\n", "# [keys.a]\n", "#\r\n", "\r\n", "# 'x\n"]),
    max_size=3,
).map("".join)


@st.composite
def tables(draw: st.DrawFn) -> str:
    """A keys file: tables of keys in several spellings, comments, other tables."""
    names = draw(st.lists(NAMES, unique=True, max_size=5))
    pieces = [draw(TRIVIA)]
    if draw(st.booleans()):
        pieces.append("title = 1\n")
    inside = names[: draw(st.integers(0, len(names)))] if draw(st.booleans()) else []
    if inside:
        pieces.append("[keys]\n")
        for name in inside:
            pieces += [draw(TRIVIA), f"{quoted(name)} = {draw(INLINE)}\n"]
    for name in names[len(inside) :]:
        pieces.append(
            draw(st.sampled_from(["[keys.{}]", "[ keys.{} ] # c", "['keys' . {}]"])).format(
                quoted(name)
            )
        )
        pieces.append("\n")
        for number in range(draw(st.integers(0, 3))):
            pieces += [draw(TRIVIA), f"v{number} = {draw(SCALARS | ARRAYS | INLINE)}"]
            pieces.append(draw(st.sampled_from(["\n", " # c ''' \"\n", "\r\n"])))
        pieces.append(draw(TRIVIA))
        if draw(st.integers(0, 4)) == 0:
            pieces.append(f"[other{len(pieces)}]\nsha256 = {draw(SCALARS)}\n")
    text = "".join(pieces)
    return text.removesuffix("\n") if draw(st.booleans()) else text


def quoted(name: str) -> str:
    bare = all(char.isascii() and (char.isalnum() or char in "-_") for char in name)
    return name if bare else f'"{name}"'


MANY = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def parsed(text: str) -> dict[str, object] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


@MANY
@given(tables(), NAMES)
def test_any_file_loses_or_wins_exactly_one_key(path: Path, text: str, name: str) -> None:
    before = parsed(text)
    assume(before is not None)
    assert before is not None
    keys = before.get("keys", {})
    assert isinstance(keys, dict)
    path.write_bytes(text.encode())
    if name not in keys:
        keyfile.add(path, [ApiKey(name, DIGEST)])
        assert path.read_bytes().startswith(text.encode())
        after = tomllib.loads(path.read_bytes().decode())
        assert after == {**before, "keys": {**keys, name: {"sha256": DIGEST}}}
        return
    keyfile.revoke(path, name)
    left = path.read_bytes().decode()
    rest = {key: value for key, value in keys.items() if key != name}
    assert (tomllib.loads(left).get("keys") or {}) == rest
    comments = text.count("# [keys.a]\n"), left.count("# [keys.a]\n")
    assert comments[0] >= comments[1]
    cut = next((i for i, (a, b) in enumerate(zip(text, left, strict=False)) if a != b), len(left))
    assert left[cut:] == "" or text.endswith(left[cut:])


@MANY
@given(tables(), NAMES)
def test_a_key_that_comes_and_goes_leaves_the_file_as_it_was(
    path: Path, text: str, name: str
) -> None:
    before = parsed(text)
    assume(before is not None and name not in (before.get("keys") or {}))
    path.write_bytes(text.encode())
    keyfile.add(path, [ApiKey(name, DIGEST)])
    keyfile.revoke(path, name)
    assert path.read_bytes().rstrip(b"\n") == text.encode().rstrip(b"\n")
