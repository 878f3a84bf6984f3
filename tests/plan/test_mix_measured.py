"""Offers of a measured engine in each mode, and plans that choose among them."""

from __future__ import annotations

import functools
import math

import msgspec
import pytest

from tests.plan.mix_samples import SHIPPED, START
from tokenworks.live.calibration_file import read_calibration
from tokenworks.perf.architecture import shape_of
from tokenworks.perf.case import Case as PerfCase
from tokenworks.perf.case import Layout
from tokenworks.perf.estimate import Estimator
from tokenworks.perf.split import lpus_needed
from tokenworks.plan.mix import MixPlan, plan_mix
from tokenworks.plan.mix_assumptions import assumptions
from tokenworks.plan.mix_inputs import Offer
from tokenworks.plan.mix_measured import UNIT_MAX, Measured, rack_of
from tokenworks.plan.mix_offers import Market, Offerer
from tokenworks.plan.mix_question import Case, case_of, parse_question
from tokenworks.plan.worker_speed import PREFILL_TOKENS

ESTIMATOR = Estimator(read_calibration())
SIZES = {
    name: SHIPPED.system(name).accelerators for name in ("hgx-h200", "vr-nvl72", "gb200-nvl72")
}


@functools.cache
def offerer(engine: str = "trtllm") -> Offerer:
    return Offerer(Measured(ESTIMATOR, engine))


def posed(
    model: str,
    systems: str,
    *,
    rate: float = 100.0,
    speed: float = 40.0,
    prompt: int = 2000,
    ttft_s: float = 5.0,
    **more: object,
) -> Case:
    names = ", ".join(f'"{name}"' for name in systems.split("+"))
    top = "\n".join(f"{key} = {value}" for key, value in more.items())
    text = f"""{top}
systems = [{names}]
[tier.high]
model = "{model}"
requests_per_s = {rate}
prompt_tokens = {prompt}
output_tokens = 400
interactivity_tokens_per_s = {speed}
ttft_s = {ttft_s}
usd_per_mtok = 30
at_least = 1
"""
    return case_of(parse_question(text, "it"), SHIPPED, START)


def market(case: Case, engine: str = "trtllm") -> Market:
    return offerer(engine).market(case.catalogue, case.projection, case.question)


def planned(case: Case, engine: str = "trtllm") -> MixPlan:
    return plan_mix(market(case, engine), case.question)


def of_mode(case: Case, mode: str, engine: str = "trtllm") -> list[Offer]:
    return [offer for offer in market(case, engine).offers if offer.mode == mode]


def test_workers_that_do_both_make_what_perf_predicts() -> None:
    case = posed("llama-3.1-70b", "hgx-h200")
    assert market(case).offers == market(case).offers
    for offer in of_mode(case, "aggregated"):
        layout = Layout(gpus=offer.gpus_per_replica)
        told = ESTIMATOR.predict(
            PerfCase(
                shape=shape_of(SHIPPED.model("llama-3.1-70b")),
                device=SHIPPED.accelerator("h200"),
                engine="trtllm",
                dtype="fp8",
                isl=2000,
                osl=400,
                concurrency=offer.batch_max,
                decode=layout,
                prefill=layout,
            )
        )
        assert offer.interactivity_tokens_per_s == pytest.approx(told.tokens_per_s_per_user)
        # Little's law: a request is there for its first token and 400 more.
        stay_s = (told.ttft_ms + 400 * told.tpot_ms) / 1e3
        made = 8 / offer.gpus_per_replica * offer.batch_max * 400 / stay_s
        assert offer.tokens_per_s == pytest.approx(made)
        assert offer.ttft_s(case.question.tiers[0], 0.8) == pytest.approx(
            (told.ttft_ms + told.tpot_ms) / 1e3
        )


@pytest.mark.parametrize("engine", ["trtllm", "vllm", "sglang"])
@pytest.mark.parametrize("system", ["hgx-h200", "gb200-nvl72", "vr-nvl72"])
def test_workers_of_both_kinds_are_whole_and_keep_up(engine: str, system: str) -> None:
    case = posed("deepseek-r1", system, prompt=8000)
    offers = of_mode(case, "disaggregated", engine)
    assert offers
    for offer in offers:
        prefilling = offer.prefill_replicas * offer.prefill_gpus_per_replica
        decoding = offer.replicas * offer.gpus_per_replica
        assert offer.prefill_replicas >= 1
        assert offer.replicas >= 1
        assert prefilling + decoding <= offer.unit * SIZES[system]
        assert offer.unit <= (UNIT_MAX if system == "hgx-h200" else 1)
        assert offer.prefill_share == pytest.approx(prefilling / (prefilling + decoding))
        # No faster than the batch allows, nor than prompts are prefilled one after another.
        users = offer.replicas * offer.batch_max
        most = max(users, offer.replicas * 1.5) * 1.5 * offer.interactivity_tokens_per_s
        assert offer.tokens_per_s * offer.unit <= most
        prompts_per_s = offer.tokens_per_s * offer.unit / 400
        alone_s = offer.prefill_s_per_output * 400
        together = max(1, PREFILL_TOKENS // 8000)
        assert prompts_per_s <= offer.prefill_replicas * together / alone_s * (1 + 1e-9)


def test_a_worker_as_large_as_a_server_is_split_from_others_over_servers() -> None:
    # DeepSeek R1 takes all eight H200 of a server.
    case = posed("deepseek-r1", "hgx-h200", prompt=8000, rate=30, speed=20, power_mw=1)
    units = {offer.unit for offer in of_mode(case, "disaggregated")}
    assert units <= {2, 3, 4}
    assert units
    found = planned(case)
    for pool in found.pools:
        if pool.mode == "disaggregated":
            assert pool.prefill_workers is not None
            assert pool.prefill_gpus_per_worker == 8
            assert pool.workers + pool.prefill_workers == pool.gpu_systems
        else:
            assert pool.prefill_workers is None


def test_the_plan_chooses_the_mode() -> None:
    # Short prompts stall nobody for long; long ones stall those who decode beside them.
    chat = planned(posed("llama-3.1-8b", "hgx-h200", prompt=200, speed=30))
    assert {pool.mode for pool in chat.pools} == {"aggregated"}
    for engine in ("trtllm", "vllm"):
        long = planned(posed("deepseek-r1", "gb200-nvl72", prompt=8000, speed=90), engine)
        assert "disaggregated" in {pool.mode for pool in long.pools}
    # One server is enough for three requests a second, and can't be both kinds of workers.
    few = planned(posed("deepseek-r1", "hgx-h200", prompt=200, speed=20, rate=3))
    assert {pool.mode for pool in few.pools} == {"aggregated"}


@pytest.mark.parametrize("engine", ["trtllm", "vllm", "sglang"])
def test_a_worker_that_only_decodes_is_never_faster_with_more_to_do(engine: str) -> None:
    case = posed("gpt-oss-120b", "hgx-h200", prompt=200)
    groups: dict[tuple[int, ...], list[Offer]] = {}
    for offer in of_mode(case, "disaggregated", engine):
        key = (offer.gpus_per_replica, offer.prefill_gpus_per_replica, offer.unit)
        groups.setdefault(key, []).append(offer)
    assert groups
    for offers in groups.values():
        offers.sort(key=lambda offer: offer.batch_max)
        speeds = [offer.interactivity_tokens_per_s for offer in offers]
        assert speeds == sorted(speeds, reverse=True)


def test_lpus_speed_up_decoding_and_need_room_for_the_weights() -> None:
    case = posed("deepseek-r1", "vr-nvl72+lpx", prompt=8000)
    shape = shape_of(SHIPPED.model("deepseek-r1"))
    rack = rack_of(SHIPPED, "lpx", case.projection)
    beside, alone = of_mode(case, "disaggregated+lpu"), of_mode(case, "disaggregated")
    least = math.ceil(lpus_needed(shape, rack.lpus) / rack.lpus.count)
    assert {offer.lpu_systems_min for offer in beside} == {least}
    assert all(offer.lpu_systems > 0 for offer in beside)
    fastest = max(offer.interactivity_tokens_per_s for offer in alone)
    assert max(offer.interactivity_tokens_per_s for offer in beside) > fastest

    def most(offers: list[Offer], speed: float) -> float:
        kept = [o.tokens_per_s for o in offers if o.interactivity_tokens_per_s >= speed]
        return max(kept, default=0.0)

    assert most(beside, 150) > most(alone, 150) > 0


def test_lpus_are_worth_it_where_there_is_much_fast_traffic() -> None:
    much = posed("deepseek-r1", "vr-nvl72+lpx", rate=20_000, speed=150, prompt=8000, power_mw=100)
    found = planned(much)
    assert {pool.mode for pool in found.pools} == {"disaggregated+lpu"}
    assert found.lpu_power_share > 0
    little = planned(posed("deepseek-r1", "vr-nvl72+lpx", rate=50, speed=60, prompt=8000))
    assert not little.lpu_power_share


def test_more_link_or_bandwidth_for_lpus_is_never_slower() -> None:
    case = posed("deepseek-r1", "vr-nvl72+lpx", prompt=8000)
    rack = rack_of(SHIPPED, "lpx", case.projection)
    faster = msgspec.structs.replace(
        rack, lpus=msgspec.structs.replace(rack.lpus, link_bytes_per_ms=1e12, round_trip_ms=0.0)
    )
    system, device = SHIPPED.system("vr-nvl72"), SHIPPED.accelerator("rubin")
    shape, work = shape_of(SHIPPED.model("deepseek-r1")), case.question.tiers[0].work
    measured = Measured(ESTIMATOR, "trtllm")
    slow = measured.offers(system, device, shape, work, rack)
    fast = measured.offers(system, device, shape, work, faster)
    assert max(o.interactivity_tokens_per_s for o in fast) >= max(
        o.interactivity_tokens_per_s for o in slow
    )


def test_a_mixture_of_experts_may_attend_apart_and_may_not_fit() -> None:
    case = posed("kimi-k2.5", "hgx-h200+gb200-nvl72")
    # Kimi K2.5 has a thousand billion weights.
    assert {offer.system for offer in market(case).offers} == {"gb200-nvl72"}


def test_what_lpus_reach_is_listed_as_assumed_and_no_more_of_the_projection() -> None:
    beside = posed("deepseek-r1", "vr-nvl72+lpx", prompt=8000)
    names = {each.what for each in assumptions(beside, market(beside), measured=True)}
    assert {name for name in names if name.startswith("projection")} == {
        "projection keynote peak_share"
    }
    alone = posed("deepseek-r1", "vr-nvl72", prompt=8000)
    names = {each.what for each in assumptions(alone, market(alone), measured=True)}
    assert not any(name.startswith("projection") for name in names)
