"""``up --twin``: the whole factory with modelled workers in this process, and its journal."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import UNSET

from tests.cli.command_line import ask, data, done, invoke
from tokenworks.cli.twin_factory import Modelled, claim, modelled
from tokenworks.core.errors import (
    ConfigInvalid,
    InvalidRequest,
    JournalInvalid,
    LedgerUnavailable,
)
from tokenworks.dispatch.events import Configured, WorkerUp
from tokenworks.dispatch.journal_records import JournalEntry
from tokenworks.live.home import Home
from tokenworks.live.journal import journal_files, read_journal

WhenReady = Callable[..., list[Any]]
FAST = ("up", "--twin", "--port", "0", "--speedup", "50", "--workers", "2")
MINE = """
name = "mine"
policy = "edf"
[limits]
queue_len_max = 7
hedge_percent = 20
[worker.a]
kind = "fast"
count = 1
[worker.b]
kind = "even"
count = 2
"""


def asks(home: Home, times: int = 1, **more: object) -> Callable[[], list[dict[str, Any]]]:
    return lambda: [ask(home, **more) for _ in range(times)]


def events_of(home: Home, kind: type[Any]) -> list[Any]:
    (path,) = journal_files(home.journal)
    records = [each for each in read_journal(path) if isinstance(each, JournalEntry)]
    return [each.event for each in records if isinstance(each.event, kind)]


# The whole factory.


def test_a_modelled_factory_serves_bills_and_says_what_it_is(
    home: Home,
    when_ready: WhenReady,
) -> None:
    results = when_ready(home, asks(home, 3, model="twin"))
    result = invoke(home, *FAST)
    assert result.exit_code == 0, result.exception
    assert "THIS IS A MODEL" in result.stdout
    assert "2 modelled workers of 'homogeneous', 50 times as fast as the clock." in result.stdout
    assert f"tokenworks --home {home.path} report" in result.stdout
    assert "chat --model twin," in result.stdout
    assert "curl -sN" in result.stdout
    (answers,) = results
    assert all(
        said["choices"][0]["message"]["content"].startswith("This is filler of a modelled worker")
        for said in answers
    )
    tokens = sum(said["usage"]["completion_tokens"] for said in answers)
    total = data(home, "report")["rows"][-1]
    assert (total["requests"], total["output"]) == (3, tokens)
    assert total["revenue_nanodollars"] > 0
    assert total["cost_nanodollars"] > 0

    again = data(home, "twin", "replay")
    assert again["decisions"]["identical"]
    assert again["recorded"]["all"]["output_tokens"] == tokens
    assert again["recorded"]["revenue_nanodollars"] == total["revenue_nanodollars"]
    assert again["replayed"]["revenue_nanodollars"] > 0


def test_a_model_lives_in_a_folder_of_its_own(
    home: Home,
    attached: Home,
    when_ready: WhenReady,
) -> None:
    done_home = home.path
    home.write_private(home.key, "tw_of_a_real_factory\n")
    result = invoke(home, *FAST)
    assert isinstance(result.exception, ConfigInvalid)
    assert "a real factory" in str(result.exception)
    assert not (done_home / "twin.json").exists()


def test_a_real_factory_does_not_go_on_with_a_models_books(home: Home) -> None:
    claim(home, fleet())
    result = invoke(home, "up", "--port", "0")
    assert isinstance(result.exception, ConfigInvalid)
    assert "modelled revenue" in str(result.exception)


def test_without_a_folder_named_it_is_beside_the_real_one(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    when_ready: WhenReady,
) -> None:
    from click.testing import CliRunner

    from tokenworks.cli.main import cli
    from tokenworks.live.home import HOME_VARIABLE

    monkeypatch.delenv(HOME_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    beside = Home(tmp_path / ".tokenworks-twin")
    when_ready(beside, lambda: None)
    result = CliRunner().invoke(cli, [*FAST, "--json"])
    assert result.exit_code == 0, result.exception
    facts = json.loads(result.stdout)
    assert (facts["modelled"], facts["speedup"], facts["models"]) == ("homogeneous", 50, ["twin"])
    assert beside.ledger.exists()
    assert not (tmp_path / ".tokenworks").exists()


def test_a_measured_engine_serves_under_its_own_name(
    home: Home,
    when_ready: WhenReady,
) -> None:
    model = "meta-llama/Llama-3.1-70B"
    results = when_ready(home, asks(home, model=model, max_tokens=5))
    words = ("--engine", "h200-70b-fp8-trtllm-tp4", "--policy", "economic", "--quiet")
    result = invoke(home, *FAST, *words)
    assert result.exit_code == 0, result.exception
    assert result.stdout == ""
    assert results[0][0]["model"] == model
    (told,) = events_of(home, Configured)
    assert told.policy.name == "economic"
    assert model in told.prices
    for up in events_of(home, WorkerUp):
        assert up.timing.launch_fs > 0
        assert up.kv_blocks > 0
        assert (up.block_tokens, up.batch_tokens_max) == (64, 8_192)


def test_a_factory_file_says_workers_limits_and_policy(
    home: Home,
    tmp_path: pathlib.Path,
    when_ready: WhenReady,
) -> None:
    (tmp_path / "mine.toml").write_text(MINE)
    home.make()
    home.settings.write_text(
        "[dispatch]\nretry_percent = 3\nhedge_percent = 4\nhedge_after_percent = 5\n"
        "[pool.x]\nengine = 'embedded'\nmodel = 'foreman'\n"
    )
    when_ready(home, asks(home, model="twin"))
    words = ("up", "--twin", "--port", "0", "--speedup", "50")
    result = invoke(home, *words, "--scenario", str(tmp_path / "mine.toml"))
    assert result.exit_code == 0, result.exception
    (told,) = events_of(home, Configured)
    limits = told.limits
    assert (limits.retry_percent, limits.hedge_percent, limits.hedge_after_percent) == (3, 20, 5)
    assert told.policy.name == "edf"
    assert set(told.limits.queue_len_max.values()) == {7}
    assert [up.worker for up in events_of(home, WorkerUp)] == ["a-0", "b-0", "b-1"]


def test_what_a_factory_file_says_of_engines_the_dispatcher_is_told(
    home: Home,
    tmp_path: pathlib.Path,
    when_ready: WhenReady,
) -> None:
    more = "workers_min = 1\npreempts = true\nhost_kv_blocks = 9\nhost_bytes_per_s = 1_000_000\n"
    (tmp_path / "mine.toml").write_text(MINE + more)
    when_ready(home, asks(home, model="twin"))
    words = ("up", "--twin", "--port", "0", "--speedup", "50")
    result = invoke(home, *words, "--scenario", str(tmp_path / "mine.toml"))
    assert result.exit_code == 0, result.exception
    (told,) = events_of(home, Configured)
    (pool,) = told.scaling
    assert (pool.pool, pool.workers_min, pool.workers_max) == ("b", 1, 2)
    ups = {up.worker: up for up in events_of(home, WorkerUp)}
    assert list(ups) == ["a-0", "b-0"]
    said = {name: (up.preempts, up.host_bytes_per_s) for name, up in ups.items()}
    assert said == {"a-0": (UNSET, UNSET), "b-0": (True, 1_000_000)}
    assert (ups["a-0"].kv_bytes_per_token, ups["b-0"].kv_bytes_per_token) == (0, 163_840)
    assert fleet().scaling == ()


def test_settings_choose_the_policy_unless_the_command_line_does(
    home: Home,
    when_ready: WhenReady,
) -> None:
    home.make()
    page = pathlib.Path(__file__).parents[2] / "docs" / "policies.md"
    source = page.read_text().split("```python\n")[1].split("```")[0]
    (home.path / "half.py").write_text(source)
    home.settings.write_text(
        "[dispatch]\npolicy_file = 'half.py'\n[pool.x]\nengine = 'embedded'\nmodel = 'foreman'\n"
    )
    when_ready(home, asks(home, model="twin"))
    assert invoke(home, *FAST).exit_code == 0
    (told,) = events_of(home, Configured)
    assert told.policy.name == "half"
    replay = ("journal", "replay")
    assert isinstance(invoke(home, *replay).exception, ConfigInvalid)
    own = ("--policy-file", str(home.path / "half.py"))
    assert data(home, *replay, *own)[0]["identical"]
    found = data(home, "twin", "replay", *own)
    assert found["decisions"]["identical"]
    assert found["replayed"]["policy"] == "half"
    other = data(home, "twin", "replay", *own, "--policy", "economic")
    assert other["decisions"] == found["decisions"]
    assert other["recorded"] == found["recorded"]
    assert other["replayed"]["policy"] == "economic"
    without = invoke(home, "twin", "replay", "--policy", "economic").exception
    assert isinstance(without, ConfigInvalid)
    assert "--policy-file" in (without.hint or "")
    when_ready(home, lambda: None)
    assert invoke(home, *FAST, "--policy", "vtc").exit_code == 0


# What the options come to.


def fleet(**changes: Any) -> Modelled:
    given = {"scenario": None, "engine": None, "workers": None, "speedup": 1.0, "output_tokens": 9}
    return modelled(**given | changes)


def test_what_a_factory_costs_follows_its_clock() -> None:
    plain, fast = fleet(), fleet(speedup=10.0, scenario="mixed")
    pool = plain.pools(by_date=True)["even"]
    assert pool == plain.pools(by_date=False)["even"]
    assert (pool.workers, pool.power_w) == (8, 8 * 10_200)
    assert pool.capital_udollars_per_hour == 8 * 24_000_000
    by_date, by_clock = fast.pools(by_date=True), fast.pools(by_date=False)
    for name in ("large", "fast"):
        hour = 3_600 * 10**9
        assert by_date[name].capital_nanodollars(hour) == by_clock[name].capital_nanodollars(
            10 * hour
        )
        assert by_date[name].energy_nanodollars(hour) == by_clock[name].energy_nanodollars(
            10 * hour
        )


def test_engines_serve_in_blocks_of_the_gateways_size() -> None:
    for served, spec in zip(fleet().specs(), fleet().setting.scenario.workers, strict=True):
        assert served.block_tokens * served.kv_blocks == spec.block_tokens * spec.kv_blocks
        assert served.block_tokens == 64


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--engine", "x"], InvalidRequest, "--engine is for modelled workers"),
        (["--output-tokens", "5"], InvalidRequest, "--output-tokens is for modelled"),
        (["--twin", "--engine", "x"], ConfigInvalid, "No engine is named 'x'"),
        (["--twin", "--engine", "x", "--scenario", "mixed"], InvalidRequest, "Give one"),
        (["--twin", "--scenario", "huge"], ConfigInvalid, "no scenario 'huge'"),
        (["--twin", "--scenario", "x.toml", "--workers", "2"], InvalidRequest, "named scenarios"),
        (["--twin", "--scenario", "x.toml"], ConfigInvalid, "cannot be read"),
        (["--twin", "--policy", "nobody"], ConfigInvalid, "no policy 'nobody'"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    home: Home, words: list[str], error: type[Exception], said: str
) -> None:
    caught = invoke(home, "up", "--port", "0", *words).exception
    assert isinstance(caught, error)
    assert said in str(caught)


def test_workers_that_only_prefill_are_not_served(home: Home, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "split.toml"
    path.write_text(
        'name = "split"\n[worker.p]\nkind = "even"\ncount = 1\nrole = "prefill"\n'
        '[worker.d]\nkind = "even"\ncount = 1\nrole = "decode"\n'
    )
    caught = invoke(home, "up", "--twin", "--scenario", str(path)).exception
    assert isinstance(caught, ConfigInvalid)
    assert "both prefill and decode" in str(caught)


# Prices.


def test_the_scenarios_prices_hold_until_somebody_writes_others(home: Home) -> None:
    first = fleet()
    book = first.setting.scenario.book
    assert [each.price_id for each in claim(home, first).all()] == [book.price_id]
    assert "twin" in done(home, "tiers")
    engine = fleet(engine="h200-70b-fp8-trtllm-tp4")
    other = engine.setting.scenario.book
    assert other.price_id != book.price_id
    assert [each.price_id for each in claim(home, engine).all()] == [other.price_id]
    mine = other.text.replace('name = "twin"', 'name = "mine"')
    home.price_book.write_text(mine)
    (kept,) = claim(home, engine).all()
    assert kept.text == mine
    result = invoke(home, *FAST)
    assert isinstance(result.exception, ConfigInvalid)
    assert "has no price in mine" in str(result.exception)


def test_a_running_models_prices_are_not_written_over(home: Home) -> None:
    engine = "h200-70b-fp8-trtllm-tp4"
    claim(home, fleet())
    with contextlib.closing(home.open_ledger("runs", sole=True)):
        before = home.price_book.read_bytes(), home.twin_mark.read_bytes()
        with pytest.raises(LedgerUnavailable):
            claim(home, fleet(engine=engine))
        assert (home.price_book.read_bytes(), home.twin_mark.read_bytes()) == before
        claim(home, fleet())
    claim(home, fleet(engine=engine))
    assert home.price_book.read_bytes() != before[0]


def test_a_mark_that_cannot_be_read_is_said(home: Home) -> None:
    claim(home, fleet())
    home.twin_mark.write_text("no JSON")
    with pytest.raises(ConfigInvalid, match=r"twin\.json"):
        claim(home, fleet())


# Replays.


def test_a_real_factorys_journal_is_replayed_in_the_twin(
    attached: Home,
    when_ready: WhenReady,
) -> None:
    when_ready(attached, asks(attached, 4))
    assert invoke(attached, "up", "--policy", "economic").exit_code == 0
    found = data(attached, "twin", "replay")
    assert found["decisions"]["identical"]
    assert found["timings_estimated"] == 1
    revenue = data(attached, "report")["rows"][-1]["revenue_nanodollars"]
    assert found["recorded"]["revenue_nanodollars"] == revenue
    assert found["recorded"]["policy"] == found["replayed"]["policy"] == "economic"
    assert found["replayed"]["all"]["done"] == 4
    other = data(attached, "twin", "replay", "--policy", "round-robin")
    assert other["replayed"]["policy"] == "round-robin"
    assert other["recorded"] == found["recorded"]
    (path,) = journal_files(attached.journal)
    assert data(attached, "twin", "replay", str(path)) == found
    text = done(attached, "twin", "replay", str(attached.journal), "--policy", "edf")
    assert "events decided again: all as recorded." in text
    assert "Recorded under economic: $" in text
    assert "1 workers say only a speed curve" in text


def test_the_last_run_is_replayed(home: Home, when_ready: WhenReady) -> None:
    for times in (3, 2):
        when_ready(home, asks(home, times, model="twin"))
        assert invoke(home, *FAST).exit_code == 0
    first, last = journal_files(home.journal)
    found = data(home, "twin", "replay")
    assert found["decisions"]["files"] == [last.name]
    assert found["recorded"]["requests"] == 2
    assert data(home, "twin", "replay", str(first))["recorded"]["requests"] == 3


def test_there_is_nothing_to_replay(home: Home) -> None:
    assert isinstance(invoke(home, "twin", "replay").exception, JournalInvalid)


def test_a_decision_that_differs_is_said_and_the_rest_is_run(
    home: Home,
    when_ready: WhenReady,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    when_ready(home, asks(home, 2, model="twin"))
    assert invoke(home, *FAST).exit_code == 0
    from tokenworks.dispatch import journal_format

    monkeypatch.setattr(journal_format, "commands_digest", lambda _: b"another!")
    result = invoke(home, "twin", "replay", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["decisions"]["first_difference"] == "journal-0000000001.twj: event 0"
    assert found["replayed"]["all"]["done"] == 2
    assert "the first that differs is in" in invoke(home, "twin", "replay").stdout
