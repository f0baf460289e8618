"""A change is in force at the next poll, a mistake changes nothing."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import NoReturn

import pytest

from wrapper.auth import digest
from wrapper.config import ConfigError, Settings, load
from wrapper.config.loading import prepare_keys
from wrapper.config.prepared import Prepared
from wrapper.config.watch import Reloader, accept, load_or_last_good
from wrapper.steps import STEP

GATEWAY = """\
[providers.groq]
base_url = "https://api.groq.com/openai/v1"
api_key = { file = "secret" }
"""
KEYS = f'[keys.a]\nsha256 = "{digest("a")}"\n[keys.b]\nsha256 = "{digest("b")}"\n'
ONLY_A = KEYS[: KEYS.index("[keys.b]")]
LONG_AGO = 1_700_000_000


class Place:
    """A directory with the files, a reloader over them, and what it reported."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = LONG_AGO
        self.loads = 0
        self.changes: list[Settings] = []
        self.reported: list[ConfigError] = []
        self.environ = {
            "WRAPPER_CONFIG": str(directory / "gateway.toml"),
            "WRAPPER_KEYS": str(directory / "keys.toml"),
        }
        self.write("gateway.toml", GATEWAY)
        self.write("keys.toml", KEYS)
        self.write("secret", "one")
        self.first = load(self.environ)
        self.reloader = Reloader(self._load, self.changes.append, self.reported.append, self.first)

    def _load(self) -> Settings:
        self.loads += 1
        return load(self.environ)

    def write(self, name: str, text: str) -> None:
        """Writes a file; each write has a time of its own, long ago."""
        path = self.directory / name
        path.write_text(text)
        self.clock += 1
        os.utime(path, (self.clock, self.clock))

    @property
    def last_good(self) -> Path:
        return self.directory / "last-good"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_nothing_is_read_while_nothing_changes(place: Place) -> None:
    for _ in range(3):
        assert not place.reloader.poll()
    assert place.loads == 0


def test_what_could_not_be_put_in_force_is_tried_again(place: Place) -> None:
    tried: list[Settings] = []

    def take(settings: Settings) -> None:
        tried.append(settings)
        if len(tried) == 1:
            raise OSError("too many open files")

    reloader = Reloader(lambda: load(place.environ), take, place.reported.append, place.first)
    place.write("keys.toml", ONLY_A)
    with pytest.raises(OSError, match="too many"):
        reloader.poll()
    assert reloader.poll()
    assert not reloader.poll()
    assert tried[0] == tried[1]


def test_a_revoked_key_is_gone_at_the_next_poll(place: Place) -> None:
    place.write("keys.toml", ONLY_A)
    assert place.reloader.poll()
    assert list(place.changes[-1].keys) == ["a"]
    assert not place.reloader.poll()
    assert place.loads == 1


@pytest.mark.parametrize("name", ["gateway.toml", "keys.toml", "secret", "prices.toml"])
def test_each_file_is_watched_also_one_that_comes_later(place: Place, name: str) -> None:
    text = {"gateway.toml": GATEWAY + "# changed", "keys.toml": ONLY_A}.get(name, "two")
    place.write(name, text)
    assert place.reloader.poll()
    assert not place.reloader.poll()


def test_a_file_that_goes_is_a_change(place: Place) -> None:
    (place.directory / "keys.toml").unlink()
    assert place.reloader.poll()
    assert place.changes[-1].keys == {}


def test_a_file_with_the_same_size_and_time_but_another_inode_is_a_change(place: Place) -> None:
    keys = place.directory / "keys.toml"
    other = keys.with_name("other")
    other.write_text(KEYS.replace("keys.b", "keys.c"))
    old = keys.stat()
    os.utime(other, ns=(old.st_atime_ns, old.st_mtime_ns))
    other.replace(keys)
    assert place.reloader.poll()
    assert list(place.changes[-1].keys) == ["a", "c"]


def test_two_writes_within_one_tick_of_the_clock_are_both_seen(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wrapper.config.watch.TICK_NS", 10**11)  # however long this test takes
    keys = place.directory / "keys.toml"
    keys.write_text(KEYS.replace("keys.b", "keys.c"))
    written = keys.stat()
    assert place.reloader.poll()
    keys.write_text(KEYS.replace("keys.b", "keys.d"))
    os.utime(keys, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert place.reloader.poll()
    assert list(place.changes[-1].keys) == ["a", "d"]


def test_a_mistake_changes_nothing_and_is_reported_once(place: Place) -> None:
    place.write("keys.toml", "[keys.a")
    for _ in range(3):
        assert not place.reloader.poll()
    assert place.changes == []
    assert len(place.reported) == 1
    place.write("keys.toml", "[keys.b")
    assert not place.reloader.poll()
    assert len(place.reported) == 2


def test_a_half_written_file_heals_at_the_next_poll(place: Place) -> None:
    place.write("keys.toml", ONLY_A[:-10])
    assert not place.reloader.poll()
    place.write("keys.toml", ONLY_A)
    assert place.reloader.poll()
    assert list(place.changes[-1].keys) == ["a"]


def test_the_old_text_put_back_after_a_mistake_is_in_force_again(place: Place) -> None:
    place.write("keys.toml", "[keys.a")
    place.reloader.poll()
    place.write("keys.toml", KEYS)
    place.reloader.poll()
    place.write("keys.toml", "[keys.a")
    place.reloader.poll()
    assert len(place.reported) == 2


def test_keys_come_into_force_with_their_groups_while_the_other_file_has_a_mistake(
    place: Place,
) -> None:
    place.write("gateway.toml", "[")
    place.write("keys.toml", f"[groups.g]\n{ONLY_A}group = 'g'\n")
    assert place.reloader.poll()
    found = place.changes[-1]
    assert (list(found.groups), found.keys["a"].group) == (["g"], "g")


def test_a_key_is_revoked_also_while_the_other_file_has_a_mistake(place: Place) -> None:
    place.write("gateway.toml", GATEWAY + "[sever]")
    place.write("keys.toml", ONLY_A)
    assert place.reloader.poll()
    assert list(place.changes[-1].keys) == ["a"]
    assert place.changes[-1].providers == place.first.providers
    place.write("keys.toml", KEYS)
    assert place.reloader.poll()
    assert list(place.changes[-1].keys) == ["a", "b"]
    assert len(place.reported) == 1  # the mistake is still the same


def test_a_secret_that_a_broken_file_asks_for_is_watched_too(place: Place) -> None:
    place.write("other", "")
    place.write("gateway.toml", GATEWAY.replace('"secret"', '"other"'))
    assert not place.reloader.poll()
    assert "is empty" in str(place.reported[-1])
    place.write("other", "two")
    assert place.reloader.poll()
    key = place.changes[-1].providers["groq"].api_key
    assert key is not None
    assert key.reveal() == "two"


def test_a_poll_can_be_forced_and_without_settings_the_first_one_loads(place: Place) -> None:
    assert not place.reloader.poll(force=True)  # nothing is different
    assert place.loads == 1
    found: list[Settings] = []
    reloader = Reloader(place._load, found.append, place.reported.append)
    assert reloader.poll()
    assert found == [place.first]
    assert not reloader.poll()


# --- what was last in force ---


def test_what_is_accepted_is_kept_for_its_owner_alone(place: Place) -> None:
    assert accept(place.first, place.environ, place.last_good)
    for name, text in (("gateway.toml", GATEWAY), ("keys.toml", KEYS)):
        copy = place.last_good / name
        assert copy.read_text() == text
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert len(list(place.last_good.iterdir())) == 2


def test_a_file_that_changed_since_it_was_loaded_is_not_kept(place: Place) -> None:
    place.write("keys.toml", "[keys.a")
    assert not accept(place.first, place.environ, place.last_good)
    assert not list(place.last_good.iterdir())


def test_no_keys_file_is_kept_as_no_keys_file(place: Place) -> None:
    accept(place.first, place.environ, place.last_good)
    (place.directory / "keys.toml").unlink()
    accept(load(place.environ), place.environ, place.last_good)
    assert [path.name for path in place.last_good.iterdir()] == ["gateway.toml"]


def test_a_worker_that_starts_while_a_file_is_broken_serves_what_was_last_in_force(
    place: Place,
) -> None:
    accept(place.first, place.environ, place.last_good)
    place.write("gateway.toml", "[")
    found, error = load_or_last_good(place.environ, place.last_good)
    assert found.providers == place.first.providers
    assert found.keys == place.first.keys
    assert "gateway.toml" in str(error)
    assert not accept(found, place.environ, place.last_good)
    place.write("gateway.toml", GATEWAY + "# corrected")
    assert load_or_last_good(place.environ, place.last_good)[1] is None


def test_only_the_broken_file_is_replaced_by_its_copy(place: Place) -> None:
    accept(place.first, place.environ, place.last_good)
    place.write("gateway.toml", "[")
    place.write("keys.toml", ONLY_A)
    found, error = load_or_last_good(place.environ, place.last_good)
    assert list(found.keys) == ["a"]
    assert error is not None


def test_such_a_worker_takes_the_corrected_file_at_the_next_poll(place: Place) -> None:
    accept(place.first, place.environ, place.last_good)
    place.write("keys.toml", "[")
    found, _ = load_or_last_good(place.environ, place.last_good)
    changes: list[Settings] = []
    reloader = Reloader(place._load, changes.append, place.reported.append, found)
    assert not reloader.poll()
    assert len(place.reported) == 1
    place.write("keys.toml", ONLY_A)
    assert reloader.poll()
    assert list(changes[-1].keys) == ["a"]


def test_without_a_copy_the_mistake_is_the_answer(place: Place) -> None:
    place.write("gateway.toml", "[")
    with pytest.raises(ConfigError, match=r"gateway\.toml"):
        load_or_last_good(place.environ, place.last_good)
    place.write("gateway.toml", GATEWAY)
    accept(load(place.environ), place.environ, place.last_good)
    shutil.copy(place.directory / "keys.toml", place.last_good / "gateway.toml")
    place.write("gateway.toml", "[[")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_or_last_good(place.environ, place.last_good)


def test_a_wrong_variable_is_not_healed_by_a_copy(place: Place) -> None:
    accept(place.first, place.environ, place.last_good)
    with pytest.raises(ConfigError, match="PORT"):
        load_or_last_good({**place.environ, "PORT": "x"}, place.last_good)


def test_a_time_stamp_in_the_future_is_not_read_again_and_again(place: Place) -> None:
    path = place.directory / "keys.toml"
    path.write_text(ONLY_A)
    os.utime(path, (2_500_000_000, 2_500_000_000))
    place.reloader.poll()
    for _ in range(3):
        place.reloader.poll()
    assert (place.loads, len(place.changes)) == (1, 1)


def test_what_another_process_has_read_is_taken_in_pieces(place: Place) -> None:
    names = [f"k{n}" for n in range(STEP * 10 + 1)]
    place.write("keys.toml", "".join(f'[keys.{n}]\nsha256 = "{digest(n)}"\n' for n in names))
    prepare_keys(place.environ, Prepared(place.last_good))
    pauses: list[None] = []
    prepared = Prepared(place.last_good, lambda: pauses.append(None))
    assert list(load(place.environ, prepared=prepared).keys) == names
    assert len(pauses) == 1 + 11  # after what is not keys, and after each hundred of these
    path = place.last_good / "keys.prepared"
    path.write_bytes(path.read_bytes()[:-1])
    assert list(load(place.environ, prepared=prepared).keys) == names  # from the file itself


def test_a_large_keys_file_is_read_once_for_all_processes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = "".join(f'[keys.k{n}]\nsha256 = "{digest(str(n))}"\n' for n in range(1000))
    path = place.directory / "keys.toml"
    prepared = Prepared(place.last_good)
    assert not prepared.is_needed(path)  # a small one
    place.write("keys.toml", many)
    assert prepared.is_needed(path)
    prepare_keys(place.environ, prepared)
    assert not prepared.is_needed(path)
    expected = load(place.environ)

    def is_not_read(*_: object) -> NoReturn:
        raise AssertionError("the keys file was read again")

    with monkeypatch.context() as patched:
        patched.setattr("wrapper.config.loading.read_keys", is_not_read)
        prepare_keys(place.environ, prepared)
        assert load(place.environ, prepared=prepared) == expected
    place.write("keys.toml", many + "sha256 = 1")  # another state, and a problem
    assert prepared.is_needed(path)
    for _ in range(2):
        with pytest.raises(ConfigError, match="is not TOML"):
            load(place.environ, prepared=prepared)
        prepare_keys(place.environ, prepared)
    (place.last_good / "keys.prepared").write_bytes(b"broken")
    assert prepared.is_needed(path)
    assert (place.last_good / "keys.prepared").stat().st_mode & 0o077 == 0
