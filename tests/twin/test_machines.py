"""Workers of the catalogue's systems: what they hold, how fast they are, and who is sent there."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from tokenworks.catalogue.records import System
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.ids import RequestID
from tokenworks.core.slo import Tier
from tokenworks.core.units import NANODOLLARS_PER_DOLLAR
from tokenworks.live.calibration_file import read_calibration
from tokenworks.live.catalogue_files import read_catalogue
from tokenworks.perf.architecture import BYTES, shape_of
from tokenworks.perf.demand import decode_demand
from tokenworks.perf.roofline import parts_ms
from tokenworks.perf.speculative import verified_tokens
from tokenworks.perf.split import lpu_ms, lpus_needed, whole_bytes
from tokenworks.plan.projection import NEAR, Work, layout_of, lpus_of, machine_of, sizes_of
from tokenworks.twin.bound import run_bound
from tokenworks.twin.driver import run
from tokenworks.twin.faults import _slower
from tokenworks.twin.machine_fleet import chart_book, kind_reports, machines_setting
from tokenworks.twin.machine_paces import CONTEXT_TYPICAL, Measured
from tokenworks.twin.machines import Machines, machines, parse_wanted
from tokenworks.twin.records import End, Outcomes, Scenario, TwinRequest
from tokenworks.twin.report import report
from tokenworks.twin.scenarios import with_policy
from tokenworks.twin.swarm import run_case
from tokenworks.twin.swarm_draw import draw
from tokenworks.twin.workload import MIX_DEFAULT, Demand, generated_trace, requests_of

CATALOGUE = read_catalogue()
HOW = CATALOGUE.projection("keynote")
SITE = CATALOGUE.site("us-hyperscale")
MEASURED = Measured(read_calibration())
FS_PER_MS = 10**12


def kind(text: str, model: str = "gpt-oss-120b", **given: Any) -> Machines:
    catalogue = given.pop("catalogue", CATALOGUE)
    return machines(
        catalogue,
        parse_wanted(catalogue, text),
        catalogue.model(model),
        given.pop("projection", HOW),
        given.pop("site", SITE),
        given.pop("measured", MEASURED),
    )


def factory(*texts: str, model: str = "gpt-oss-120b", policy: str = "economic") -> Scenario:
    kinds = [kind(text, model) for text in texts]
    setting = machines_setting(kinds, SITE, chart_book(model, CATALOGUE.tiers("keynote")))
    return with_policy(setting.scenario, policy)


def workload(scenario: Scenario, rate: float, seconds: float, seed: int = 1) -> list[TwinRequest]:
    spec = scenario.workers[0]
    demand = Demand(model=spec.model, mix=MIX_DEFAULT, tenants=8, block_tokens=spec.block_tokens)
    trace = generated_trace(seed, rate_per_s=rate, duration_s=seconds)
    return requests_of(trace, demand, seed)


def test_workers_of_fixed_roles_earn_under_prices_what_they_earn_under_any_policy() -> None:
    # Long enough to learn what comes: in its first seconds this earns up to 12 % less.
    for texts, model, rate, seconds in (
        (("vr-nvl72:prefill", "vr-nvl72+lpx:decode=2"), "kimi-k2.5", 30, 6),
        (("hgx-b200:prefill=2", "hgx-b200:decode=2"), "gpt-oss-120b", 60, 20),
    ):
        found = {}
        for policy in ("economic", "least-loaded"):
            scenario = factory(*texts, model=model, policy=policy)
            requests = workload(scenario, rate, seconds)
            found[policy] = report(scenario, requests, run(scenario, requests)).all
        paid = found["economic"].revenue_nanodollars
        assert paid >= found["least-loaded"].revenue_nanodollars > 0
        assert found["economic"].done == len(requests)


# What is written.


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hgx-h200=6", ("hgx-h200", None, "gpu", "both", 6, None)),
        ("h200x4", ("hgx-h200", 4, "gpu", "both", 1, None)),
        (" vr-nvl72x8:prefill=2", ("vr-nvl72", 8, "gpu", "prefill", 2, None)),
        ("rubin-nvl72:both=2..6", ("vr-nvl72", None, "gpu", "both", 6, 2)),
        ("lpx", (None, None, "lpu", "both", 1, None)),
        ("lp30x2", (None, None, "lpu", "both", 1, None)),
    ],
)
def test_a_kind_is_read(text: str, found: tuple[Any, ...]) -> None:
    wanted = parse_wanted(CATALOGUE, text)
    gpus = wanted.gpus
    seen = (gpus and gpus.system.name, gpus and gpus.size, wanted.mode, wanted.role)
    assert (*seen, wanted.count, wanted.least) == found
    assert wanted.name == text.strip().split("=")[0]


def test_lpus_beside_gpus_are_read() -> None:
    wanted = parse_wanted(CATALOGUE, "vr-nvl72x8+lpxx12:decode")
    assert wanted.mode == "gpu+lpu"
    assert wanted.gpus is not None
    assert wanted.lpus is not None
    assert (wanted.gpus.size, wanted.lpus.size, wanted.lpus.system.name) == (8, 12, "lpx")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no kind of worker"),
        ("hgx-h200=", "no kind of worker"),
        ("hgx-h200=" + 5000 * "9", "no kind of worker"),
        ("hgx-h200=\u0663", "no kind of worker"),
        ("hgx-h200x\u0663", "no system"),
        ("hgx-h200+lpx+lpx", "no kind of worker"),
        ("hgx-h200:draft", "both, prefill, decode"),
        ("hgx-h200=0", "Have 1 to 1024"),
        ("hgx-h200=3..2", "the fewest first"),
        ("hgx-h200=0..3", "Have one at least"),
        ("hgx-h200:prefill=1..2", "come and go"),
        ("hgx-h200x0", "of size 0"),
        ("hgx-h200x9", "take 1 to 8"),
        ("hgx-h20", "hgx-h200"),
        ("rubin", "hgx-rubin-nvl8, vr-nvl72"),
        ("rubin-cpx", "Add a system that has it"),
        ("vr-nvl72+hgx-h200", "Beside GPUs are lpx, lpx-lp35"),
        ("lpx+lpx", "no GPUs to keep attention on"),
        ("vera-cpu-rack", "cannot serve a model"),
        ("lpx:prefill", "Let the GPUs alone prefill"),
        ("vr-nvl72+lpx:prefill", "Let the GPUs alone prefill"),
        ("vr-nvl72x8+lpxx1", "Take lpxx9"),
        ("lpxx2", "Take lpxx9"),
        ("vr-nvl72x1", "Take more GPUs a worker"),
        ("vr-nvl72x1+lpx", "let it only decode"),
        ("hgx-h200x1", "fewer bits"),
    ],
)
def test_what_cannot_be_says_what_can(text: str, said: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        kind(text, "kimi-k2.5" if "hgx" not in text else "deepseek-r1")
    assert said in f"{caught.value.message} {caught.value.hint}"


# What they hold, and where their speed is from.


def test_what_was_measured_is_calibrated_and_the_rest_is_projected() -> None:
    measured = kind("hgx-h200", "llama-3.1-70b")
    assert (measured.source, measured.mode, measured.gpus, measured.lpus) == (
        "calibrated",
        "gpu",
        8,
        0,
    )
    assert "63 measured rows of trtllm with fp8 weights" in measured.told
    assert measured.excess < 0.15
    assert [each.what for each in measured.assumptions] == ["system hgx-h200 price_usd"]
    # TPOT of llama 3.1 70B in FP8 on eight H200 is 6 to 8 ms alone (bench/data/silicon_rows.csv).
    assert 110 < measured.spec.timing.speed_tokens_per_s(1, 1_024) < 220
    projected = kind("hgx-h200", "llama-3.1-70b", measured=None)
    assert projected.source == "projected"
    assert kind("vr-nvl72x4").source == "projected"
    # A device that was measured, but not with this model.
    assert kind("hgx-h200", "glm-5").source == "projected"


def test_each_mode_says_what_it_assumes() -> None:
    shared, alone = kind("vr-nvl72x2+lpx"), kind("lpx")
    for each in (shared, alone):
        named = {assumption.what for assumption in each.assumptions}
        assert {"system lpx all_in_power_w", "system lpx price_usd"} <= named
        assert "projection keynote peak_share" in named
    assert "system lpx lpu_layer_latency_s" in {each.what for each in alone.assumptions}


def test_kv_cache_is_what_memory_leaves() -> None:
    """HBM of the GPUs, which hold experts besides only if they prefill; SRAM of LPUs alone."""
    kimi = CATALOGUE.model("kimi-k2.5")
    shape = shape_of(kimi)
    each = shape.cache_bytes(CONTEXT_TYPICAL, 1.0) / CONTEXT_TYPICAL
    whole, decoding = (
        kind("vr-nvl72x8+lpx", "kimi-k2.5"),
        kind("vr-nvl72x8+lpx:decode", "kimi-k2.5"),
    )
    rubin = CATALOGUE.accelerator("rubin").known("memory_bytes") * 8 * 0.9
    for found, experts in ((whole, shape.ffn_weights * BYTES["fp4"]), (decoding, 0.0)):
        tokens = found.spec.kv_blocks * 512
        near = (
            shape.attention_weights * 8 / found.tensor + 2 * shape.head_weights * 8 / found.tensor
        )
        assert tokens * each == pytest.approx(rubin - experts - near, rel=0.01)
    assert decoding.spec.kv_blocks > whole.spec.kv_blocks
    assert (whole.lpus, whole.tokens_per_step) == (9 * 256, HOW.lpu_tokens_per_step)
    alone = kind("lpxx10", "kimi-k2.5")
    sram = 10 * 256 * 5e8 * 0.9
    assert alone.spec.kv_blocks * 512 * each == pytest.approx(
        sram - whole_bytes(shape, "fp8"), rel=0.01
    )
    assert 10 * alone.spec.kv_blocks < whole.spec.kv_blocks
    assert whole.spec.kv_bytes_per_token == round(each)


def test_hardware_costs_what_it_is_of_systems() -> None:
    eighth, rack = kind("vr-nvl72x9"), kind("vr-nvl72")
    assert eighth.usd_per_hour * 8 == pytest.approx(rack.usd_per_hour)
    assert eighth.spec.power_w == pytest.approx(rack.spec.power_w / 8, abs=1)
    with_lpus, lpus = kind("vr-nvl72x9+lpxx2"), kind("lpxx2")
    assert with_lpus.usd_per_hour == pytest.approx(eighth.usd_per_hour + lpus.usd_per_hour)
    assert rack.spec.power_w == CATALOGUE.system("vr-nvl72").all_in_power_w
    elsewhere = kind("vr-nvl72", site=CATALOGUE.site("colocation"))
    assert elsewhere.spec.power_w == pytest.approx(rack.spec.power_w * 1.5 / 1.15, abs=1)
    assert 0 < rack.spec.start_ns < kind("hgx-h200").spec.start_ns


def test_a_system_without_a_number_is_refused() -> None:
    lpx = msgspec.structs.replace(CATALOGUE.system("lpx"), lpu_layer_latency_s=None)
    with pytest.raises(ConfigInvalid, match="lpu_layer_latency_s"):
        kind("lpx", catalogue=CATALOGUE.with_records(lpx))


def test_sparse_attention_prefills_as_much_faster() -> None:
    glm = CATALOGUE.model("glm-5")
    assert glm.sparse_tokens
    dense = msgspec.structs.replace(glm, name="dense", sparse_tokens=0)
    catalogue = CATALOGUE.with_records(dense)
    picked = kind("vr-nvl72x8", "glm-5").spec.timing.prefill_context_fs
    every = kind("vr-nvl72x8", "dense", catalogue=catalogue).spec.timing.prefill_context_fs
    assert picked == pytest.approx(every * 2 * glm.sparse_tokens / CONTEXT_TYPICAL, rel=0.01)


def test_a_kind_of_one_slot_still_runs() -> None:
    small = msgspec.structs.replace(CATALOGUE.system("lpx"), lpus=157)
    alone = kind("lpx", "llama-3.1-70b", catalogue=CATALOGUE.with_records(small))
    assert alone.lpus == 2 * 157


# Laws and physics.


@pytest.mark.heavy
@settings(max_examples=60)
@given(
    model=st.sampled_from(["gpt-oss-120b", "kimi-k2.5", "qwen3-235b", "llama-3.1-70b"]),
    gpus=st.sampled_from([4, 8, 72]),
    batch=st.integers(1, 4_096),
    context=st.sampled_from([256, 1_024, 8_192, 32_768]),
)
def test_gpus_with_lpus_are_no_faster_than_any_of_their_parts(
    model: str, gpus: int, batch: int, context: int
) -> None:
    found = kind(f"vr-nvl72x{gpus}+lpx", model)
    batch = min(batch, found.spec.slots, found.spec.kv_blocks * 512 // context)
    shape = shape_of(CATALOGUE.model(model))
    machine = machine_of(CATALOGUE, "vr-nvl72+lpx", HOW)
    made = found.tokens_per_step
    verified = verified_tokens(made)
    layout = layout_of(gpus, found.tensor)
    work = Work(machine=machine, shape=shape, context=context, how=HOW)
    need = decode_demand(shape, layout, sizes_of(work), batch, context, verified)
    attention = parts_ms(need, machine.rates, layout, machine.dtype, NEAR).attention_ms
    rack = CATALOGUE.system("lpx")
    lpus = lpus_of(CATALOGUE, rack, HOW.peak_share, found.lpus // rack.lpus)
    assert found.lpus >= lpus_needed(shape, lpus)
    slowest = max(attention, lpu_ms(shape, lpus, batch * verified, 1)) / made
    law = found.spec.timing.decode_fs(batch, batch * context) / FS_PER_MS
    assert law >= slowest * (1 - 1e-3)
    more = kind(f"vr-nvl72x{gpus}+lpxx{found.lpus // rack.lpus + 1}", model)
    faster = more.spec.timing.decode_fs(batch, batch * context) / FS_PER_MS
    assert faster <= law * (1 + more.excess)


def test_lpus_alone_gain_nothing_from_a_batch() -> None:
    timing = kind("lpx", "llama-3.1-70b").spec.timing
    one, thirty = (timing.decode_fs(n, n * 1_024) for n in (1, 30))
    assert thirty < one * 1.01


def columns(outcomes: Outcomes) -> dict[str, list[int]]:
    return {name: list(getattr(outcomes, name)) for name in Outcomes.__slots__}


@pytest.mark.parametrize(
    ("texts", "rate"),
    [
        (("vr-nvl72x1", "vr-nvl72x1+lpx"), 150),
        (("lpx", "hgx-h200"), 40),
        (("vr-nvl72x1:prefill", "vr-nvl72x2+lpx:decode"), 100),
        (("hgx-h200=1..2",), 30),
    ],
)
def test_runs_in_closed_form_end_as_iterations_one_by_one(
    texts: tuple[str, ...], rate: float
) -> None:
    scenario = factory(*texts)
    requests = workload(scenario, rate, 2)
    closed, exact = (run(scenario, requests, exact=each) for each in (False, True))
    assert columns(closed.outcomes) == columns(exact.outcomes)
    assert closed.workers == exact.workers
    assert closed.journal_digest == exact.journal_digest
    for spec, use in zip(scenario.workers, closed.workers, strict=True):
        assert use.kv_blocks_max <= spec.kv_blocks
    assert not report(scenario, requests, closed).violations


def test_sram_bounds_the_cache() -> None:
    """More long sequences than SRAM holds wait or are preempted; no block is there twice."""
    scenario = factory("lpx", model="llama-3.1-70b", policy="round-robin")
    (spec,) = scenario.workers
    crowd = [
        msgspec.structs.replace(each, input_tokens=30_000, output_tokens=400, blocks=())
        for each in workload(scenario, 50, 1)
    ]
    result = run(scenario, crowd)
    (use,) = result.workers
    assert spec.kv_blocks - 60 < use.kv_blocks_max <= spec.kv_blocks
    assert not report(scenario, crowd, result).violations


def test_slower_is_slower_at_every_batch() -> None:
    timing = kind("vr-nvl72x1+lpx").spec.timing
    slower = _slower(timing, 2_000_000)
    for batch in (1, 7, 100):
        assert slower.decode_fs(batch, 10**5) == pytest.approx(2 * timing.decode_fs(batch, 10**5))


@pytest.mark.parametrize("seed", range(12))
def test_what_must_hold_holds_for_workers_with_lpus(seed: int) -> None:
    """Under everything that a swarm's seed has go wrong; iterations are those of real kinds."""
    case = draw(seed)
    laws = [kind(text).spec.timing for text in ("vr-nvl72x1+lpx", "vr-nvl72x1", "lpx")]
    mixed = tuple(
        msgspec.structs.replace(spec, timing=laws[place % 3].slower(5, 1))
        for place, spec in enumerate(case.workers)
    )
    assert not run_case(msgspec.structs.replace(case, workers=mixed)).violations


# Factories.


@pytest.mark.heavy
def test_dear_tiers_go_to_lpus_by_themselves() -> None:
    """Nobody tells the dispatcher what a kind is for: its speed curve and what tiers pay do."""
    scenario = factory("vr-nvl72x1=4", "vr-nvl72x1+lpx")
    requests = workload(scenario, 870, 12)
    result = run(scenario, requests)
    found = report(scenario, requests, result)
    assert not found.violations
    gpus, lpus = kind_reports(scenario, requests, result)

    def on_lpus(tier: Tier) -> float:
        return lpus.requests[tier] / (lpus.requests[tier] + gpus.requests[tier])

    assert on_lpus(Tier.ULTRA) > 0.9
    assert on_lpus(Tier.PREMIUM) > 0.7
    assert on_lpus(Tier.FREE) < 0.2
    assert on_lpus(Tier.MEDIUM) < 0.5
    assert found.tiers[Tier.ULTRA].promise_kept_share > 0.8
    bound = run_bound(scenario, requests, result.ended_ns)
    assert 0.8 < found.revenue_usd / bound.bound_dollars <= 1.0
    blind = with_policy(scenario, "round-robin")
    other = report(blind, requests, run(blind, requests))
    assert found.revenue_nanodollars > 1.3 * other.revenue_nanodollars


def test_kinds_add_up_to_the_run() -> None:
    scenario = factory("vr-nvl72x1:prefill", "vr-nvl72x1:decode", "vr-nvl72x2+lpx:decode")
    requests = workload(scenario, 50, 2)
    whole = requests[-1]
    long = msgspec.structs.replace(whole, request=RequestID("long"), input_tokens=10**9, blocks=())
    requests.append(long)
    result = run(scenario, requests)
    assert result.outcomes.end[-1] == End.REJECTED
    found, kinds = report(scenario, requests, result), kind_reports(scenario, requests, result)
    assert [each.pool for each in kinds] == [spec.pool for spec in scenario.workers]
    assert sum(each.revenue_nanodollars for each in kinds) == found.revenue_nanodollars
    assert sum(each.cost_nanodollars for each in kinds) == pytest.approx(
        found.cost_nanodollars, abs=9
    )
    assert sum(each.energy_kwh for each in kinds) == pytest.approx(found.energy_kwh)
    assert sum(sum(each.requests.values()) for each in kinds) == found.all.done
    assert sum(sum(each.kept.values()) for each in kinds) == found.all.promise_kept
    prefills, decodes, _ = kinds
    assert prefills.requests[Tier.FREE] == 0 < decodes.requests[Tier.FREE]
    tokens = decodes.output_tokens / 1e6
    usd = decodes.cost_nanodollars / NANODOLLARS_PER_DOLLAR
    assert decodes.cost_usd_per_mtok == pytest.approx(usd / tokens)


def test_a_kind_that_did_nothing_has_no_cost_per_token() -> None:
    scenario = factory("vr-nvl72x1", "lpx")
    (first, second) = kind_reports(scenario, [], run(scenario, []))
    assert first.cost_usd_per_mtok is second.cost_usd_per_mtok is None
    assert first.utilisation == 0.0


def test_a_kind_may_come_and_go() -> None:
    scenario = factory("hgx-h200=1..3", "vr-nvl72x1")
    (pool,) = scenario.configured.scaling or ()
    assert (pool.pool, pool.workers_min, pool.workers_max) == ("hgx-h200", 1, 3)
    starts = [spec.start_ns for spec in scenario.workers]
    assert starts == [0, pool.start_ns, pool.start_ns, 0]
    assert pool.start_ns > 0
    assert factory("hgx-h200=3").configured.scaling is UNSET


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("hgx-h200", "hgx-h200=2"), "named twice"),
        (("hgx-h200=1000", "vr-nvl72x1=100"), "Have up to 1024"),
        (("hgx-h200:prefill",), "Add some that decode: hgx-h200:decode."),
        (("hgx-h200:decode",), "Add some that prefill: hgx-h200:prefill."),
        (("vr-nvl72x8+lpx:decode",), "Add some that prefill: vr-nvl72x8:prefill."),
    ],
)
def test_kinds_that_make_no_factory(texts: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        factory(*texts)
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_a_book_prices_the_model() -> None:
    tiers = CATALOGUE.tiers("keynote")
    with pytest.raises(ConfigInvalid, match="has no price"):
        machines_setting([kind("hgx-h200")], SITE, chart_book("glm-5", tiers))
    book = chart_book("gpt-oss-120b", tiers)
    assert book.promises[Tier.ULTRA].interactivity_tokens_per_s == 1_000
    fewer = msgspec.structs.replace(tiers, tiers=tiers.tiers[1:])
    with pytest.raises(ConfigInvalid, match="no free"):
        chart_book("gpt-oss-120b", fewer)


def test_every_system_can_be_asked_for() -> None:
    """Whatever computes and ships serves a small model."""
    asked = [each.name for each in CATALOGUE.all_of(System) if each.accelerator or each.lpu]
    assert len(asked) > 10
    for name in asked:
        assert kind(name, "llama-3.1-8b").spec.slots >= 1
