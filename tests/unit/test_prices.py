"""What usage costs: known prices to the last pico-USD, unknown ones as unknown."""

from __future__ import annotations

import re
import tomllib
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from msgspec.structs import replace

from wrapper.config import ConfigError, Price
from wrapper.metering import Usage, price_file
from wrapper.metering.price_table import Priced, Rate, with_plain
from wrapper.metering.pricing import MAX_CACHED, Prices, undated
from wrapper.steps import no_pause

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "config" / "prices.toml"
REVIEWED = ROOT / "config" / "prices.units.toml"

PER_MILLION = 10**12  # a USD per million tokens, for a million tokens, in pico-USD

TABLES = """
[providers.openai]
match = ["api.openai.com"]
[providers.openai.models]
"gpt-4o" = { input = 2.5, cached_input = 1.25, output = 10.0 }
"gpt-4o-2024-05-13" = { input = 5.0, output = 15.0 }
"ft:gpt-4o-2024-*" = { input = 3.75, output = 15.0 }
"ft:*" = { input = 1.0, output = 1.0 }
"embed" = { input = 0.13 }
"whisper-1" = { audio_hour = 0.36 }
"image" = { input = 5.0, output = 10.0, image_input = 8.0, image_output = 32.0 }
"long" = { input = 1.0, output = 2.0, tiers = [{ above = 1000, input = 3.0, output = 4.0 }] }
"free" = { input = 0, output = 0 }
"spoken" = { units = { character = 0.000015 } }

[providers.openai.models.tiered]
input = 1.0
output = 2.0
service_tiers = { priority = { input = 3.0, output = 6.0 } }

[providers.other]
match = ["other.example"]
[providers.other.models]
"gpt-4o" = { input = 1.0, output = 1.0 }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prices.toml"
    path.write_text(TABLES)
    return path


@pytest.fixture
def prices(file: Path) -> Prices:
    return Prices.load(file, {})


def openai(prices: Prices, model: str, usage: Usage) -> int | None:
    return prices.cost("openai", "api.openai.com", model, usage)


def test_input_cached_input_and_output_are_priced_apart(prices: Prices) -> None:
    usage = Usage(1000, 100, 1100, cached=400)
    pico = 600 * 2_500_000 + 400 * 1_250_000 + 100 * 10_000_000
    assert openai(prices, "gpt-4o", usage) == pico


def test_without_a_price_of_its_own_cached_input_costs_as_much_as_input(prices: Prices) -> None:
    usage = Usage(1000, 0, 1000, cached=400)
    assert openai(prices, "gpt-4o-2024-05-13", usage) == 1000 * 5_000_000


def test_more_cached_than_prompt_is_never_a_negative_cost(prices: Prices) -> None:
    assert openai(prices, "gpt-4o", Usage(10, 0, 10, cached=50)) == 10 * 1_250_000


@pytest.mark.parametrize(
    ("model", "input_price"),
    [
        ("gpt-4o", 2.5),
        ("GPT-4o", 2.5),
        ("gpt-4o-2024-08-06", 2.5),  # the version is not listed: the undated price
        ("gpt-4o-2024-05-13", 5.0),  # the version has a price of its own
        ("ft:gpt-4o-2024-08-06:org::id", 3.75),  # the longest prefix
        ("ft:other:org::id", 1.0),
    ],
)
def test_a_version_has_its_own_price_or_that_of_its_model(
    prices: Prices, model: str, input_price: float
) -> None:
    usage = Usage(1_000_000, 0, 1_000_000)
    assert openai(prices, model, usage) == input_price * PER_MILLION


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4o", "gpt-4o"),
        ("gpt-4o-2024-08", "gpt-4o-2024-08"),
        ("gpt-4o-2024-08-06-preview", "gpt-4o-2024-08-06-preview"),
    ],
)
def test_the_date_of_a_version_is_taken_off_the_name(model: str, name: str) -> None:
    assert undated(model) == name


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-4", "gpt-4o-2024", "", "embed-x", "ft"])
def test_an_unknown_model_costs_none_and_not_zero(prices: Prices, model: str) -> None:
    assert openai(prices, model, Usage(10, 10, 20)) is None


def test_a_free_model_costs_zero_and_not_none(prices: Prices) -> None:
    assert openai(prices, "free", Usage(10, 10, 20)) == 0


def test_the_host_decides_and_then_the_name(prices: Prices) -> None:
    usage = Usage(1_000_000, 0, 1_000_000)
    assert prices.cost("mine", "api.openai.com", "gpt-4o", usage) == 2.5 * PER_MILLION
    assert prices.cost("mine", "eu.API.openai.com", "gpt-4o", usage) == 2.5 * PER_MILLION
    assert prices.cost("openai", "other.example", "gpt-4o", usage) == 1.0 * PER_MILLION
    assert prices.cost("openai", "127.0.0.1", "gpt-4o", usage) == 2.5 * PER_MILLION
    assert prices.cost("mine", "127.0.0.1", "gpt-4o", usage) is None
    assert prices.cost("mine", "notother.example", "gpt-4o", usage) is None


def test_a_kind_of_usage_without_a_price_is_unknown(prices: Prices) -> None:
    assert openai(prices, "embed", Usage(1000, 0, 1000)) == 130_000_000
    assert openai(prices, "embed", Usage(1000, 1, 1001)) is None
    assert openai(prices, "whisper-1", Usage(10, 0, 10)) is None
    assert openai(prices, "gpt-4o", Usage(0, 0, 0, seconds=3)) is None


def test_audio_is_priced_by_its_length(prices: Prices) -> None:
    hour = Usage(0, 0, 0, seconds=3600)
    assert openai(prices, "whisper-1", hour) == 360_000_000_000
    assert openai(prices, "whisper-1", Usage(0, 0, 0, seconds=12.5)) == 1_250_000_000


def test_image_tokens_have_their_own_price(prices: Prices) -> None:
    usage = Usage(100, 50, 150, image_prompt=60, image_completion=50)
    assert openai(prices, "image", usage) == 40 * 5_000_000 + 60 * 8_000_000 + 50 * 32_000_000


def test_cached_tokens_of_no_known_kind_are_not_guessed_at(prices: Prices) -> None:
    assert openai(prices, "image", Usage(100, 0, 100, cached=10, image_prompt=60)) is None
    text_only = Usage(100, 0, 100, cached=10, prompt_split=True)
    assert openai(prices, "image", text_only) == 100 * 5_000_000


def test_a_long_prompt_has_the_price_of_its_tier(prices: Prices) -> None:
    assert openai(prices, "long", Usage(1000, 1, 1001)) == 1000 * 1_000_000 + 2_000_000
    assert openai(prices, "long", Usage(1001, 1, 1002)) == 1001 * 3_000_000 + 4_000_000


def test_a_ceiling_has_the_highest_price_of_each_thing(prices: Prices) -> None:
    def most(model: str, *use: float, tier: str = "") -> int:
        found = prices.ceiling("openai", "api.openai.com", model, tier)
        assert found is not None
        return found.cost(*use)  # type: ignore[arg-type]

    assert most("gpt-4o", 10, 10) == 10 * 2_500_000 + 10 * 10_000_000
    assert most("image", 10, 10) == 10 * 8_000_000 + 10 * 32_000_000
    assert most("long", 1000, 1) == 1000 * 1_000_000 + 2_000_000
    assert most("long", 1001, 1) == 1001 * 3_000_000 + 4_000_000
    assert most("whisper-1", 0, 0, 3600.0) == 360_000_000_000
    assert most("tiered", 10, 10) == 10 * 1_000_000 + 10 * 2_000_000
    assert most("tiered", 10, 10, tier="Priority") == 10 * 3_000_000 + 10 * 6_000_000
    assert most("tiered", 10, 10, tier="unheard-of") == most("tiered", 10, 10)
    assert most("spoken", 0, 0, 0.0, 100) == 100 * 15_000_000
    assert prices.ceiling("openai", "api.openai.com", "nobody-knows") is None
    answers = {
        model: found.answers
        for model in ("gpt-4o", "image", "embed", "whisper-1", "spoken")
        if (found := prices.ceiling("openai", "api.openai.com", model))
    }
    assert [model for model, known in answers.items() if not known] == ["embed", "whisper-1"]


def test_prices_of_the_configuration_win_everywhere(file: Path) -> None:
    override = Price(Decimal("0.15"), Decimal("0.075"), Decimal("0.6"))
    prices = Prices.load(file, {"gpt-4o": override, "llama*": override})
    usage = Usage(1000, 10, 1010, cached=100)
    pico = 900 * 150_000 + 100 * 75_000 + 10 * 600_000
    assert openai(prices, "gpt-4o", usage) == pico
    assert prices.cost("demo", "127.0.0.1", "gpt-4o", usage) == pico
    assert prices.cost("demo", "127.0.0.1", "llama3.2:1b", usage) == pico


def test_the_cache_of_prices_is_bounded(prices: Prices) -> None:
    for index in range(MAX_CACHED * 2):
        openai(prices, f"made-up-{index}", Usage(1, 1, 2))
    assert len(prices._found) <= MAX_CACHED
    assert openai(prices, "gpt-4o", Usage(1, 0, 1)) == 2_500_000


def test_huge_numbers_stay_exact(prices: Prices) -> None:
    assert openai(prices, "gpt-4o", Usage(10**12, 10**12, 2 * 10**12)) == 12_500_000 * 10**12


def test_without_a_file_only_the_configuration_knows_prices(tmp_path: Path) -> None:
    price = Price(Decimal(1), Decimal(1), Decimal(2))
    prices = Prices.load(tmp_path / "none.toml", {"m": price})
    assert prices.cost("p", "h", "m", Usage(1, 1, 2)) == 3_000_000
    assert prices.cost("p", "h", "gpt-4o", Usage(1, 1, 2)) is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[providers", "cannot be read"),
        ("providers = 1", "providers: is not a table"),
        ("[providers.x]\nmatch = 'host'", "providers.x.match: is not a list of host names"),
        ('[providers.x.models]\n"m" = 1', 'providers.x.models."m": is not a table'),
        ('[providers.x.models]\n"m" = { input = "1" }', "input: is not a number"),
        ('[providers.x.models]\n"m" = { input = true }', "input: is not a number"),
        ('[providers.x.models]\n"m" = { input = -1 }', "input: is not between 0 and"),
        ('[providers.x.models]\n"m" = { input = nan }', "input: is not between 0 and"),
        ('[providers.x.models]\n"m" = { inptu = 1 }', "inptu: is not known"),
        ('[providers.x.models]\n"m" = { tiers = 1 }', "tiers: is not a list of tables"),
        ('[providers.x.models]\n"m" = { units = { a = "1" } }', "units.a: is not a number"),
        (
            '[providers.x.models]\n"m" = { service_tiers = { flex = "batch" } }',
            "service_tiers.flex: is not a table nor a tier above",
        ),
        (
            '[providers.x.models]\n"m" = { service_tiers = { flex = { units = {} } } }',
            "service_tiers.flex.units: is not known",
        ),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(complaint)) as caught:
        Prices.load(path, {})
    assert str(path) in str(caught.value)


def test_all_mistakes_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text('[providers.x.models]\n"m" = { a = 1, input = -1 }\n"n" = 3')
    with pytest.raises(ConfigError) as caught:
        Prices.load(path, {})
    assert len(caught.value.problems) == 3


def test_only_the_models_of_providers_that_are_configured_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Reading all of them takes a hundred milliseconds of each start."""
    path = tmp_path / "prices.toml"
    path.write_bytes(SHIPPED.read_bytes())
    lines: list[str] = []
    parse = price_file._parsed
    monkeypatch.setattr(
        price_file, "_parsed", lambda text: [lines.extend(text.splitlines()), parse(text)][1]
    )
    configured = {"groq": "api.groq.com", "mine": "eu.api.openai.com"}
    pauses: list[bool] = []
    some = Prices.load(path, {}, providers=configured, pause=lambda: pauses.append(True))
    assert some.knows("groq", "api.groq.com", "openai/gpt-oss-20b")
    assert some.knows("mine", "eu.api.openai.com", "gpt-4o-mini")
    models = sum(line.startswith('"') for line in lines)
    assert models < 400 < SHIPPED.read_text().count('\n"')
    assert len(pauses) >= models // price_file.SLICE
    read = len(lines)
    again = Prices.load(path, {}, providers=configured)
    assert again.knows("groq", "api.groq.com", "openai/gpt-oss-20b")
    assert len(lines) == read
    more = Prices.load(path, {}, providers={**configured, "anthropic": "api.anthropic.com"})
    assert more.knows("anthropic", "api.anthropic.com", "claude-opus-4-6")
    assert models < sum(line.startswith('"') for line in lines) < 500
    demo = Prices.load(path, {}, "demo", {"demo": "127.0.0.1"})
    assert demo.names("demo", "127.0.0.1") > more.names("anthropic", "api.anthropic.com")


def test_a_table_at_a_time_the_file_says_the_same_as_whole() -> None:
    whole = price_file._File(SHIPPED)
    expected = whole._read_whole(price_file._Reader("", [], no_pause))
    parts = price_file._File(SHIPPED)
    assert parts.tables(price_file.every, no_pause) == expected
    assert not parts._is_whole


@pytest.mark.parametrize(
    "text",
    [
        '[providers]\nx = { match = ["h"], models = { m = { input = 1.0 } } }',
        '[providers.x]\nmatch = ["h"]\nmodels = { m = { input = 1.0 } }',
        '[providers."x"]\nmatch = ["h"]\n[providers."x".models]\nm = { input = 1.0 }',
        '[providers.x]\nmatch = [\n"h"\n]\n[providers.x.models.m]\ninput = 1.0',
        """note = '''
[providers.x.models]
m = {}
'''
providers.x = { match = ["h"], models = { m = { input = 1.0 } } }""",
        """[providers.x]
match = ["h"]
note = '''
[providers.y]
'''
[providers.x.models]
m = { input = 1.0 }""",
        '[providers.x] # mine\nmatch = ["h"]\n[providers.x.models]\nm.input = 1.0',
        '[providers.x]\nmatch = ["h"]\n[providers.x.models]\n'
        + "".join(f"n{i} = {{ input = 2.0 }}\n" for i in range(price_file.SLICE - 1))
        + "m = { input = 1.0, tiers = [\n{ above = 9, input = 1.0 }\n] }",
    ],
)
def test_a_file_that_is_laid_out_in_another_way_says_the_same(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    prices = Prices.load(path, {}, providers={"a": "h"})
    assert prices.cost("a", "h", "m", Usage(1, 0, 1)) == 1_000_000


@pytest.mark.parametrize(
    "twice",
    [
        '[providers.x]\nmatch = ["a"]\n[providers.x]\nmatch = ["b"]',
        "[providers.x.models]\nm = { input = 1.0 }\n[providers.x.models]\nn = { input = 1.0 }",
        "[providers.x]\nmodels = {}\n[providers.x.models]\nm = { input = 1.0 }",
        "[providers.x.models]\n"
        + "".join(f"m{i % price_file.SLICE} = {{ input = 1.0 }}\n" for i in range(60)),
    ],
)
def test_what_stands_twice_is_a_mistake(tmp_path: Path, twice: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(twice)
    with pytest.raises(ConfigError, match=r"cannot be read.*line") as caught:
        Prices.load(path, {}, providers={"x": "h"})
    assert len(caught.value.problems) == 1


def test_a_mistake_in_a_table_stays_one_when_others_are_needed_later(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text("[providers.x.models]\nm = { input = 1.0 }\n[providers.y.models]\nn = 1\n")
    assert Prices.load(path, {}, providers={"x": "h"}).knows("x", "h", "m")
    for _ in range(2):
        with pytest.raises(ConfigError, match="is not a table"):
            Prices.load(path, {}, providers={"y": "h"})


def test_a_directory_in_place_of_the_file_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Prices.load(tmp_path, {})


def test_a_changed_file_is_read_again(file: Path) -> None:
    assert openai(Prices.load(file, {}), "gpt-4o", Usage(1, 0, 1)) == 2_500_000
    file.write_text(TABLES.replace("input = 2.5,", "input = 2.75,"))
    assert openai(Prices.load(file, {}), "gpt-4o", Usage(1, 0, 1)) == 2_750_000


@pytest.mark.parametrize(
    ("host", "model", "input_price", "cached_price", "output_price"),
    [
        ("api.groq.com", "openai/gpt-oss-20b", "0.075", "0.0375", "0.3"),
        ("api.groq.com", "openai/gpt-oss-120b", "0.15", "0.075", "0.6"),
        ("api.openai.com", "gpt-6-luna", "0.1", "0.01", "0.5"),
        ("api.openai.com", "gpt-4o-mini-2024-07-18", "0.15", "0.075", "0.6"),
        ("api.openai.com", "gpt-6-sol", "2.0", "0.2", "10"),
    ],
)
def test_the_shipped_file_knows_the_well_known_prices(
    host: str, model: str, input_price: str, cached_price: str, output_price: str
) -> None:
    prices = Prices.load(SHIPPED, {})

    def cost(usage: Usage) -> Decimal:
        pico = prices.cost("any", host, model, usage)
        assert pico is not None
        return Decimal(pico) / PER_MILLION

    million = 1_000_000
    # A prompt of a million tokens may be beyond a tier: thousand times a thousand.
    assert 1000 * cost(Usage(1000, 0, 1000)) == Decimal(input_price)
    assert 1000 * cost(Usage(1000, 0, 1000, cached=1000)) == Decimal(cached_price)
    assert cost(Usage(0, million, million)) == Decimal(output_price)


def test_the_shipped_file_covers_its_providers_and_says_where_it_is_from() -> None:
    text = SHIPPED.read_text()
    tables = tomllib.loads(text)["providers"]
    assert {"groq", "openai", "mistral", "together", "openrouter"} <= tables.keys()
    assert all(table["match"] and len(table["models"]) > 20 for table in tables.values())
    for table in tables.values():
        assert list(table["models"]) == sorted(table["models"])
    assert re.search(r"genai-prices \d+\.\d+\.\d+, as they stand on \d{4}-\d\d-\d\d", text)


def test_the_reviewed_prices_have_a_source_and_a_date_and_are_in_the_file() -> None:
    tables = tomllib.loads(SHIPPED.read_text())["providers"]
    for line in tomllib.loads(REVIEWED.read_text())["price"]:
        assert re.match(r"https://|genai-prices \d", line["source"])
        assert isinstance(line["date"], date)
        if "times" in line:
            regions = tables[line["provider"]]["regions"]
            place = next(name for name in ("host", "geo") if name in line)
            assert line["times"] in [each["times"] for each in regions if place in each]
            continue
        models = tables[line["provider"]]["models"]
        for model in models.values() if line["model"] == "*" else (models[line["model"]],):
            if "unit" in line:
                assert model["units"][line["unit"]] == line["usd"]
            elif "uncounted" in line:
                assert model["uncounted"] == line["uncounted"]
            elif "service_tier" in line:
                assert model["service_tiers"][line["service_tier"]] == line["same_as"]
            else:
                assert model["minimum_seconds"] == line["minimum_seconds"]


def test_a_model_that_answered_under_an_unknown_name_has_the_operators_price(file: Path) -> None:
    price = Price(Decimal(1), Decimal(1), Decimal(2))
    prices = Prices.load(file, {"mine": price})
    usage = Usage(1, 1, 2, service_tier="flex", audio_prompt=1)

    def cost(asked: str, served: str) -> int | None:
        return prices.price("openai", "127.0.0.1", asked, served, usage).cost

    assert cost("mine", "/models/mine.gguf") == 3_000_000
    assert cost("unknown", "mine") == 3_000_000
    assert cost("unknown", "unknown-2026-01-01") is None


@pytest.mark.parametrize(
    ("host", "asked", "served", "percent"),
    [
        ("api.openai.com", "gpt-5.4", "gpt-5.4-2026-03-05", 100),
        ("eu.api.openai.com", "gpt-5.4", "gpt-5.4-2026-03-05", 110),
        ("eu.api.openai.com", "gpt-5.4", "", 110),
        ("us.api.openai.com", "gpt-6-luna", "gpt-6-luna", 110),
        ("eu.api.openai.com", "gpt-5.2", "gpt-5.2-2025-12-11", 100),
        ("eu.api.openai.com", "gpt-4o", "gpt-4o-2024-08-06", 100),
        ("eu.api.openai.com", "text-embedding-3-small", "", 100),
    ],
)
def test_newer_models_cost_more_at_openais_regional_addresses(
    host: str, asked: str, served: str, percent: int
) -> None:
    prices = Prices.load(SHIPPED, {})
    usage = Usage(1000, 100, 1100, cached=300, service_tier="batch")
    if asked.startswith("text"):
        usage = Usage(1000, 0, 1000)
    found = prices.price("openai", host, asked, served, usage)
    listed = prices.price("openai", "api.openai.com", asked, served, usage)
    assert listed.cost
    assert found.cost == listed.cost * percent // 100
    assert sum(found.kinds) == found.cost


def test_what_a_model_does_not_report_leaves_its_responses_unpriced() -> None:
    prices = Prices.load(SHIPPED, {})
    usage = Usage(1000, 100, 1100)
    found = prices.price("openai", "api.openai.com", "gpt-5-search-api", "", usage)
    assert (found.cost, found.unpriced) == (None, "web_search")
    counted = replace(usage, units=(("web_search", 2),))
    assert prices.cost("openai", "api.openai.com", "gpt-4o-mini-search-preview", counted)
    ceiling = prices.ceiling("openai", "api.openai.com", "gpt-5-search-api")
    assert ceiling is not None
    assert not ceiling.answers, "a key with a budget may not call it"


def test_an_operators_own_price_holds_in_every_region() -> None:
    own = {"gpt-5.4": Price(Decimal(1), Decimal(1), Decimal(1))}
    prices = Prices.load(SHIPPED, own)
    assert prices.cost("openai", "eu.api.openai.com", "gpt-5.4", Usage(1, 0, 1)) == 10**6


def test_inference_in_a_geo_costs_more() -> None:
    prices = Prices.load(SHIPPED, {})

    def cost(tier: str) -> int | None:
        usage = Usage(100, 10, 110, cached=40, cache_write=20, service_tier=tier)
        return prices.cost("anthropic", "api.anthropic.com", "claude-opus-4-6", usage)

    standard = cost("standard")
    assert standard
    assert cost("standard in us") == standard * 11 // 10
    assert cost("standard in mars") is None


def test_what_is_uncounted_is_a_text(file: Path) -> None:
    file.write_text('[providers.x.models]\n"m" = { input = 1.0, uncounted = 1 }\n')
    with pytest.raises(ConfigError, match="uncounted"):
        Prices.load(file, {})


def test_a_region_that_cannot_be_read_is_a_problem(file: Path) -> None:
    for entry in ('"x"', '[{ host = "x" }]', "[{ times = 1.1, host = 1 }]", "[1]"):
        file.write_text(f"[providers.x]\nregions = {entry}\n")
        with pytest.raises(ConfigError, match="regions"):
            Prices.load(file, {})


def test_the_same_package_on_the_same_day_makes_the_same_file(tmp_path: Path) -> None:
    maker = pytest.importorskip("wrapper.cli.prices")
    day = datetime(2026, 11, 21, 12, tzinfo=UTC)
    assert maker.render(day) == maker.render(day)
    made = tmp_path / "prices.toml"
    assert maker.main([str(made)]) == 0
    assert tomllib.loads(made.read_text())["providers"].keys() == maker.PROVIDERS.keys()
    Prices.load(made, {})


def test_text_alone_costs_the_same_by_the_short_way() -> None:
    """The usual rate is priced without looking at audio, images and cache writes."""
    rate = Rate(input=3, cached_input=1, output=7, image_input=3, cached_image=1)
    plain = with_plain(rate)
    assert plain.plain
    for prompt, cached, completion in ((10, 0, 4), (10, 4, 0), (10, 12, 4), (0, 0, 0)):
        usage = Usage(prompt, completion, prompt + completion, cached=cached)
        assert plain.price(usage) == rate.price(usage)
    for other in ({"seconds": 2.0}, {"cache_write": 3}, {"audio_prompt": 1}, {"unreadable": "x"}):
        usage = replace(Usage(10, 4, 14), **other)
        assert (
            plain.price(usage) == rate.price(usage) != Priced(10 * 3 + 4 * 7, None, (30, 0, 0, 28))
        )
    for apart in ({"audio_input": 9}, {"audio_output": 9}, {"image_input": 9}, {"input": None}):
        assert not with_plain(rate._replace(**apart)).plain
