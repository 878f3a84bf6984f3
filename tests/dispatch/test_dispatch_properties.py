"""Whatever happens: each request ends once, nothing is over its bound, nothing depends on luck."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dispatch.dispatch_world import World, digest_of_seed
from tokenworks.dispatch.dispatcher import Dispatcher
from tokenworks.dispatch.policies import NAMES

ROOT = pathlib.Path(__file__).parents[2]
each_policy = pytest.mark.parametrize("policy", NAMES)


@pytest.mark.heavy
@each_policy
@settings(max_examples=25)
@given(st.integers(0, 1 << 30), st.integers(0, 250))
def test_every_request_ends_exactly_once(policy: str, seed: int, steps: int) -> None:
    world = World(seed, policy)
    for _ in range(steps):
        world.step()
    world.heal()


@pytest.mark.heavy
@each_policy
@settings(max_examples=12)
@given(st.integers(0, 1 << 30), st.integers(0, 150))
def test_a_restored_dispatcher_decides_alike(policy: str, seed: int, middle: int) -> None:
    world = World(seed, policy)
    for _ in range(middle):
        world.step()
    copy = Dispatcher.restore(world.dispatcher.snapshot())
    assert copy.digest() == world.dispatcher.digest()
    known = len(world.log)
    for _ in range(80):
        world.step()
    for now_ns, event, commands in world.log[known:]:
        assert copy.handle(now_ns, event) == commands
    assert copy.snapshot() == world.dispatcher.snapshot()


@each_policy
def test_the_same_events_give_the_same_commands(policy: str) -> None:
    world = World(7, policy)
    for _ in range(400):
        world.step()
    again = Dispatcher()
    for now_ns, event, commands in world.log:
        assert again.handle(now_ns, event) == commands
    assert again.digest() == world.dispatcher.digest()


def test_no_hash_seed_matters() -> None:
    program = (
        "from tests.dispatch.dispatch_world import digest_of_seed as d;"
        "from tokenworks.dispatch.policies import NAMES;"
        "print([d(seed, name) for name in NAMES for seed in range(2)])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT}/src:{ROOT}"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("0", "1", "4242")
    }
    assert said == {str([digest_of_seed(seed, name) for name in NAMES for seed in range(2)])}
