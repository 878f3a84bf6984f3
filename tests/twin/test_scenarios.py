"""Named fleets can keep the promises they are run under; a scenario file is read strictly."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests import doc_blocks
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.slo import Tier
from tokenworks.core.units import NS_PER_S, PPM
from tokenworks.perf.timing import FS_PER_NS
from tokenworks.twin.kinds import KINDS, MODEL, twin_book
from tokenworks.twin.scenarios import (
    NAMES,
    SHIFTING,
    Setting,
    build,
    load_scenario,
    parse_scenario,
    with_policy,
)
from tokenworks.twin.workload import MIX_DEFAULT

LONG_PROMPT_TOKENS = 12_000


@pytest.mark.parametrize("name", NAMES)
def test_every_promise_can_be_kept_by_two_at_once(name: str) -> None:
    setting = build(name)
    assert len(setting.scenario.workers) == 8
    for tier, promise in setting.scenario.configured.promises.items():
        speeds = [
            spec.timing.speed_tokens_per_s(2, 2 * LONG_PROMPT_TOKENS)
            for spec in setting.scenario.workers
        ]
        assert max(speeds) >= promise.interactivity_tokens_per_s, tier
        for spec in setting.scenario.workers:
            prefill_ns = spec.timing.prefill_fs(LONG_PROMPT_TOKENS, 0) // FS_PER_NS
            chunks = -(-LONG_PROMPT_TOKENS // spec.batch_tokens_max)
            launches_ns = chunks * spec.timing.launch_fs // FS_PER_NS
            assert 2 * (prefill_ns + launches_ns) <= promise.ttft_ns, (tier, spec.worker)


def test_kinds_differ_as_their_names_say() -> None:
    large, fast = KINDS["large"], KINDS["fast"]
    assert large.timing.launch_fs > fast.timing.launch_fs
    assert large.slots > fast.slots
    assert large.capital_udollars_per_hour < fast.capital_udollars_per_hour
    ultra = twin_book().promises[Tier.ULTRA].interactivity_tokens_per_s
    assert large.timing.speed_tokens_per_s(8, 8 * 12_000) < ultra
    for spec in KINDS.values():
        assert spec.kv_blocks * spec.block_tokens >= 128_000  # the longest prompts fit
        assert spec.batch_tokens_max >= spec.slots


def test_mixes_are_those_of_their_names() -> None:
    assert build("mixed").mix == MIX_DEFAULT
    assert build("shifting").mix == SHIFTING
    assert build("shifting").scenario.workers == build("homogeneous").scenario.workers
    ultra = [SHIFTING.tier(place, 2**64 - 1) for place in (1, PPM // 2)]
    assert ultra == [Tier.ULTRA, Tier.ULTRA]
    assert SHIFTING.tier(0, 2**64 - 1) is Tier.PREMIUM


@pytest.mark.parametrize(
    ("workers", "large", "fast"), [(None, 6, 2), (2, 1, 1), (3, 2, 1), (4, 3, 1), (16, 12, 4)]
)
def test_a_fleet_keeps_its_proportion(workers: int | None, large: int, fast: int) -> None:
    names = [spec.worker for spec in build("mixed", workers).scenario.workers]
    assert names == [f"large-{i}" for i in range(large)] + [f"fast-{i}" for i in range(fast)]


def test_a_fleet_that_cannot_be_is_refused() -> None:
    for name, workers in (("mixed", 1), ("homogeneous", 0), ("homogeneous", 1_025)):
        with pytest.raises(ConfigInvalid, match="There cannot be"):
            build(name, workers)
    with pytest.raises(ConfigInvalid, match="no scenario 'fleet'") as caught:
        build("fleet")
    assert "homogeneous" in caught.value.hint
    assert len(build("homogeneous", 1).scenario.workers) == 1


FILE = """
name = "mine"
energy_udollars_per_kwh = 90_000
tenants = 3

[limits]
queue_len_max = 64

[[mix]]
free = 1

[[mix]]
at_ppm = 1_000_000
ultra = 1

[worker.old]
kind = "large"
count = 2
slots = 32

[worker.new]
count = 1
slots = 8
kv_blocks = 500
block_tokens = 512
batch_tokens_max = 1_024

[worker.new.timing]
launch_fs = 2_000_000_000_000
sequence_fs = 1
context_token_fs = 1
prefill_token_fs = 1
prefill_context_fs = 0
"""


def parse(text: str) -> Setting:
    return parse_scenario(text, pytest.fail)


def test_a_file_describes_a_factory() -> None:
    setting = parse(FILE)
    scenario = setting.scenario
    assert [spec.worker for spec in scenario.workers] == ["old-0", "old-1", "new-0"]
    old, _, new = scenario.workers
    assert old == msgspec.structs.replace(
        KINDS["large"], worker=old.worker, pool=old.pool, slots=32
    )
    assert (new.pool, new.model, new.timing.launch_fs) == ("new", MODEL, 2_000_000_000_000)
    assert (new.power_w, new.role) == (0, "both")
    assert scenario.energy_udollars_per_kwh == 90_000
    assert setting.tenants == 3
    assert set(scenario.configured.limits.queue_len_max.values()) == {64}
    assert setting.mix.tier(PPM, 0) is Tier.ULTRA
    plain = parse('name = "x"\n[worker.a]\nkind = "even"\ncount = 1\n')
    assert plain.mix == MIX_DEFAULT
    assert plain.scenario.book == twin_book()


def test_a_file_may_name_its_price_book(tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_text(twin_book().text.replace("twin", "mine"))
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "x"\nprice_book = "prices.toml"\n[worker.a]\nkind = "even"\ncount = 1\nmodel="mine"'
    )
    scenario = load_scenario(path).scenario
    assert scenario.book.price_id.startswith("mine@")
    assert scenario.workers[0].model == "mine"
    assert scenario.configured.promises[Tier.ULTRA].ttft_ns == 4 * NS_PER_S
    (tmp_path / "prices.toml").unlink()
    with pytest.raises(ConfigInvalid, match=r"prices.toml' cannot be read"):
        load_scenario(path)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("", "oops", "cannot be read"),
        ("tenants", "tenant", "unknown field `tenant`"),
        ("slots = 32", "slot = 32", "unknown field `slot`"),
        ("queue_len_max", "queue_max", "unknown field"),
        ("sequence_fs", "sequences_fs", "unknown field"),
        ("at_ppm", "at", "unknown field"),
        ("count = 2", "count = 0", r"\$.worker\[...\].count"),
        ("count = 2", "count = 2_000", "more than 1024"),
        ("tenants = 3", "tenants = 0", "tenants"),
        ('"large"', '"huge"', r"\[worker.old\] kind is 'huge'"),
        ("kv_blocks = 500\n", "", r"\[worker.new\] lacks \['kv_blocks'\]"),
        ("block_tokens = 512", "block_tokens = 64", "differ in block_tokens"),
        ("slots = 8", 'slots = 8\nmodel = "other"', "differ in model"),
        ("slots = 8", "slots = 8_000", "each slot needs a token"),
        ("at_ppm = 1_000_000", "at_ppm = 0", "must rise from 0"),
        ("ultra = 1", "", "one above 0"),
    ],
)
def test_a_file_is_read_strictly(before: str, after: str, said: str) -> None:
    assert before in FILE
    with pytest.raises(ConfigInvalid, match=said):
        parse(FILE.replace(before, after, 1) if before else after)


def test_more_that_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="more than 1000000"):
        parse("#" * 1_000_001)
    with pytest.raises(ConfigInvalid, match="0 workers"):
        parse('name = "x"\n[worker]\n')
    with pytest.raises(ConfigInvalid, match="'m' has no price") as caught:
        parse('name = "x"\n[worker.a]\nkind = "even"\ncount = 1\nmodel = "m"\n')
    assert "twin" in caught.value.hint


def test_a_policy_reaches_the_dispatcher_where_it_has_a_choice() -> None:
    scenario = build("homogeneous").scenario
    if "policy" in type(scenario.configured).__struct_fields__:
        told = with_policy(scenario, "promises").configured
        assert "promises" in msgspec.json.encode(told).decode()
        assert build("homogeneous", policy="promises").scenario.configured == told
    else:
        with pytest.raises(ConfigInvalid, match="cannot be told to use 'promises'"):
            with_policy(scenario, "promises")


def test_the_example_in_the_docs_is_a_factory() -> None:
    page = Path(__file__).parents[2] / "docs" / "twin.md"
    (block,) = [each for each in doc_blocks.blocks(page) if each.language == "toml"]
    setting = parse(block.text)
    assert len(setting.scenario.workers) == 5
    assert setting.mix.tier(PPM, 2**64 - 1) is Tier.ULTRA
