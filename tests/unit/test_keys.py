"""Who is let in, and what those who are not are told."""

from __future__ import annotations

import datetime
import itertools
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrapper.auth import (
    PREFIX,
    Keyring,
    Principal,
    bearer,
    digest,
    expired,
    is_gateway_key,
    new_secret,
)
from wrapper.config import ApiKey
from wrapper.errors import ApiKeyExpired, InvalidApiKey, Unauthorized

SECRET = PREFIX + "0123456789-abcdefghijklmnopqrstuvwxyz_ABCDEF"
MIDNIGHT = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC).timestamp()


def keyring(**fields: object) -> Keyring:
    return Keyring({"web": ApiKey("web", digest(SECRET), **fields)})  # type: ignore[arg-type]


def refusal(header: str | None, ring: Keyring | None = None, **kwargs: float) -> Unauthorized:
    with pytest.raises(Unauthorized) as caught:
        (ring or keyring()).authenticate(header, **kwargs)
    return caught.value


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_a_key_is_known_by_its_secret_whatever_the_case_of_the_scheme(scheme: str) -> None:
    found = keyring(models=("a",)).authenticate(f"{scheme} {SECRET}")
    assert (found.name, found.models) == ("web", ("a",))
    assert found.key is not None
    assert found.key.sha256 == digest(SECRET)


def test_a_secret_that_a_person_chose_is_a_key_too() -> None:
    ring = Keyring({"old": ApiKey("old", digest("my.old_key~1+/="))})
    assert ring.authenticate("Bearer my.old_key~1+/=").name == "old"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        SECRET,
        f"Basic {SECRET}",
        f"Bearer  {SECRET}",
        f"Bearer\t{SECRET}",
        f" Bearer {SECRET}",
        f"Bearer {SECRET} ",
        f"Bearer {SECRET}\n",
        f"Bearer {SECRET},Bearer {SECRET}",
        f"Bearer {SECRET}, Bearer {SECRET}",
        f"Bearer {SECRET} x",
        f'Bearer "{SECRET}"',
        f"Bearer {SECRET[:-1]}ü",
        f"Bearer {SECRET[:-1]}\N{KELVIN SIGN}",
        f"Bearer {SECRET}\0",
        f"Bearer={SECRET}",
        f"Bearer {SECRET[:-1]}",
        f"Bearer {SECRET.upper()}",
        f"Bearer {SECRET}" + "a" * 16_000,
        "Bearer " + "a" * 16_000 + "!",
        "Bearer " + "a=" * 8_000,
    ],
    ids=itertools.count(),  # the same in every process of a run, as the secret is not
)
def test_every_other_form_is_refused_without_repeating_it(header: str | None) -> None:
    found = refusal(header)
    assert isinstance(found, InvalidApiKey)
    assert (found.status, found.code) == (401, "invalid_api_key")
    assert ("WWW-Authenticate", "Bearer") in found.headers
    assert SECRET[6:20] not in found.message
    assert SECRET[6:20].upper() not in found.message


def test_the_refusal_says_what_to_send() -> None:
    assert "send 'Authorization: Bearer <key>'" in refusal(None).message
    assert "unknown or revoked" in refusal("Bearer nobody").message


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "bearer", "BEARER  ", "Bearer\t"])
def test_an_empty_bearer_is_called_empty(header: str) -> None:
    """What a shell makes of a variable that is not set."""
    assert "The API key is empty" in refusal(header).message


def test_no_kelvin_sign_stands_for_a_letter_of_the_scheme() -> None:
    with pytest.raises(InvalidApiKey):
        bearer("Bea\N{LATIN SMALL LETTER LONG S}er x")


@given(st.text(max_size=80))
def test_whatever_the_header_says_is_a_caller_or_a_refusal(header: str) -> None:
    assert isinstance(refusal(header), InvalidApiKey)
    assert isinstance(refusal(f"Bearer {header}"), InvalidApiKey)


def test_a_key_is_refused_from_midnight_utc_of_its_date() -> None:
    ring = keyring(expires=datetime.date(2027, 1, 1))
    assert ring.authenticate(f"Bearer {SECRET}", now=MIDNIGHT - 0.001).name == "web"
    for now in (MIDNIGHT, MIDNIGHT + 1e6):
        found = refusal(f"Bearer {SECRET}", ring, now=now)
        assert isinstance(found, ApiKeyExpired)
        assert (found.status, found.code) == (401, "api_key_expired")


def test_expiry_is_judged_by_the_clock_when_no_time_is_given() -> None:
    past, future = datetime.date(2020, 1, 1), datetime.date(9999, 1, 1)
    assert expired(ApiKey("a", "", expires=past))
    assert not expired(ApiKey("a", "", expires=future))
    assert not expired(ApiKey("a", ""))
    assert isinstance(refusal(f"Bearer {SECRET}", keyring(expires=past)), ApiKeyExpired)
    assert keyring(expires=future).authenticate(f"Bearer {SECRET}").name == "web"


def test_a_revoked_key_is_unknown() -> None:
    assert isinstance(refusal(f"Bearer {SECRET}", Keyring({})), InvalidApiKey)


@pytest.mark.parametrize(
    ("models", "model", "allowed"),
    [
        (("*",), "anything/at:all", True),
        (("llama-*", "fast"), "llama-3", True),
        (("llama-*", "fast"), "fast", True),
        (("llama-*", "fast"), "faster", False),
        (("llama-*", "fast"), "xllama-3", False),
        (("llama-*",), "LLAMA-3", False),
        (("gpt-[56]-*",), "gpt-6-sol", True),
        (("gpt-?",), "gpt-6-sol", False),
        (("a.b",), "axb", False),
        (("a*",), "a\nb", True),
    ],
)
def test_a_caller_may_call_the_models_that_his_globs_match(
    models: tuple[str, ...], model: str, allowed: bool
) -> None:
    assert Principal("x", models).may_use(model) is allowed


@given(
    st.lists(st.text("ab*?[]!-|", max_size=5), min_size=1, max_size=3), st.text("ab|", max_size=4)
)
def test_globs_mean_what_fnmatch_says(models: list[str], model: str) -> None:
    allowed = any(fnmatchcase(model, glob) for glob in models)
    assert Principal("x", tuple(models)).may_use(model) is allowed


def test_a_caller_with_their_own_credential_is_called_client_and_has_no_key() -> None:
    caller = Keyring({}).authenticate("Bearer sk-own", client_credentials=True)
    assert (caller.name, caller.key) == ("client", None)
    assert caller.credential == ("Authorization", "Bearer sk-own")
    assert caller.may_use("anything")


def test_a_gateway_key_is_never_taken_for_a_credential_of_a_provider() -> None:
    with pytest.raises(InvalidApiKey):
        Keyring({}).authenticate(f"Bearer {new_secret()}", client_credentials=True)


def test_secrets_are_long_unlike_each_other_and_known_for_the_gateways_own() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(len(secret) >= 6 + 43 and is_gateway_key(secret) for secret in made)
    assert all(bearer(f"Bearer {secret}") == secret for secret in made)
    assert is_gateway_key("SK-WR-mistyped")
    assert not is_gateway_key("sk-proj-theirs")


def test_a_caller_shows_no_secret() -> None:
    assert SECRET not in repr(keyring().authenticate(f"Bearer {SECRET}"))


OLD = PREFIX + "old-456789-abcdefghijklmnopqrstuvwxyz_ABCDEF"


def rotated(**fields: object) -> Keyring:
    return keyring(old_sha256=digest(OLD), **fields)


def test_during_a_rotation_both_secrets_are_the_key() -> None:
    ring = rotated()
    assert ring.authenticate(f"Bearer {SECRET}") is ring.authenticate(f"Bearer {OLD}")


def test_after_the_overlap_the_old_secret_is_refused_and_the_new_one_is_not() -> None:
    ring = rotated(rotated_until=datetime.datetime.fromtimestamp(MIDNIGHT, datetime.UTC))
    assert ring.authenticate(f"Bearer {OLD}", now=MIDNIGHT - 0.001).name == "web"
    found = refusal(f"Bearer {OLD}", ring, now=MIDNIGHT)
    assert isinstance(found, ApiKeyExpired)
    assert "replaced" in found.message
    assert ring.authenticate(f"Bearer {SECRET}", now=MIDNIGHT).name == "web"


def test_a_rotation_does_not_outlive_the_date_of_the_key() -> None:
    later = datetime.datetime.fromtimestamp(MIDNIGHT + 86_400, datetime.UTC)
    ring = rotated(expires=datetime.date(2027, 1, 1), rotated_until=later)
    assert "expired" in refusal(f"Bearer {OLD}", ring, now=MIDNIGHT).message
