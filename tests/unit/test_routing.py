"""Which provider answers for which model."""

from __future__ import annotations

import pytest

from wrapper.config import Provider, Route, Secret, Server, Settings, Target
from wrapper.errors import ModelNotFound
from wrapper.routing import Routes


def routes(*pairs: tuple[str, str], unusable: tuple[str, ...] = ()) -> Routes:
    """Routes from ("glob", "provider[:model] ...") pairs over the providers a, b and c."""
    providers = {
        name: Provider(
            name,
            f"https://{name}.example/v1",
            None if name in unusable else Secret("x"),
            "variable X is not set" if name in unusable else None,
        )
        for name in "abc"
    }
    built = tuple(
        Route(model, tuple(target(text) for text in targets.split())) for model, targets in pairs
    )
    return Routes(Settings(Server(), providers, built, {}))


def target(text: str) -> Target:
    provider, _, model = text.partition(":")
    return Target(provider, model or None)


def test_the_first_route_that_matches_wins() -> None:
    found = routes(("gpt-*", "a"), ("gpt-6*", "b"), ("*", "c"))
    assert found.for_model("gpt-6-sol") == (Target("a"),)
    assert found.for_model("llama") == (Target("c"),)


def test_an_alias_has_its_targets_in_order_each_with_its_own_model() -> None:
    found = routes(("fast", "a:llama:8b b:org/mini"))
    assert found.for_model("fast") == (Target("a", "llama:8b"), Target("b", "org/mini"))


def test_a_model_without_a_route_is_not_found_and_the_message_stays_short() -> None:
    found = routes(("gpt-*", "a"))
    with pytest.raises(ModelNotFound) as caught:
        found.for_model("llama")
    assert (caught.value.status, caught.value.code, caught.value.param) == (
        404,
        "model_not_found",
        "model",
    )
    assert "'llama'" in caught.value.message
    with pytest.raises(ModelNotFound) as caught:
        found.for_model("x\n" * 1000)
    assert len(caught.value.message) < 200
    assert "\n" not in caught.value.message


def test_case_counts_and_globs_match_the_whole_name() -> None:
    found = routes(("gpt-?-sol", "a"), ("o[0-9]*", "b"), ("*", "c"))
    assert found.for_model("gpt-6-sol") == (Target("a"),)
    assert found.for_model("GPT-6-sol") == (Target("c"),)
    assert found.for_model("gpt-6-sol-pro") == (Target("c"),)
    assert found.for_model("o3-mini") == (Target("b"),)
    assert found.for_model("omni-moderation-latest") == (Target("c"),)


def test_what_has_no_model_goes_to_the_targets_of_the_star() -> None:
    assert routes(("gpt-*", "a"), ("*", "b")).catch_all() == (Target("b"),)
    assert routes(("gpt-*", "a")).catch_all() == ()


def test_exact_names_are_the_routes_that_are_no_globs() -> None:
    found = routes(("fast", "a"), ("gpt-*", "a"), ("x?", "a"), ("y[1]", "a"), ("best", "a"))
    assert found.exact_names == ("fast", "best")


def test_a_target_without_a_credential_is_passed_over_while_another_has_one() -> None:
    found = routes(("fast", "a:x b:y"), ("*", "a"), unusable=("a",))
    assert found.for_model("fast") == (Target("b", "y"),)
    assert found.for_model("other") == (Target("a"),)
    assert found.catch_all() == (Target("a"),)
