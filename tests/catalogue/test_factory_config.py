"""A factory's settings are right when they are parsed, or refused by the setting's name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenworks.catalogue.factory_config import (
    CURVE_POINTS_MAX,
    WORKERS_MAX,
    PoolConfig,
    check_curve,
    parse_factory_config,
)
from tokenworks.core.errors import ConfigInvalid
from tokenworks.core.needs import NO_OFFERS, Offers
from tokenworks.core.units import NS_PER_HOUR

POOL = '[pool.laptop]\nengine = "embedded"\nmodel = "foreman"\n'
ATTACHED = '[pool.big]\nengine = "attached"\nmodel = "m"\n'
OIDC = "[oidc]\nissuer = 'https://x'\naudience = 'x'\n[oidc.groups]\n"


def test_the_smallest_settings_listen_on_loopback() -> None:
    config = parse_factory_config(POOL)
    assert config.gateway.host == "127.0.0.1"
    assert config.pool["laptop"].engine == "embedded"


def test_settings_are_read_as_written() -> None:
    text = "[gateway]\nport = 0\n" + POOL + "curve = [[1, 200], [8, 90]]\n"
    text += ATTACHED + 'urls = ["http://127.0.0.1:8001"]\n'
    text += '[telemetry]\notlp = "https://c:4318"\ncontent = true\n'
    config = parse_factory_config(text)
    assert config.gateway.port == 0
    assert (config.telemetry.otlp, config.telemetry.content) == ("https://c:4318", True)
    assert config.pool["laptop"].curve == ((1, 200), (8, 90))
    assert config.pool["big"].urls == ("http://127.0.0.1:8001",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pool =", "cannot be read"),
        ("[gateway]\nport = 1\n", "pool"),
        ("[pool]\n", "There is no pool"),
        (POOL + "wokers = 2\n", "wokers"),
        (POOL.replace("embedded", "imagined"), "imagined"),
        (POOL + "[gateway]\nadmin = 'maybe'\n", "maybe"),
        (POOL + "[oidc]\naudience = 'x'\n", "[oidc] has no issuer"),
        (POOL + "[oidc]\nissuer = 'https://x'\n", "[oidc] has no audience"),
        (POOL + "[oidc]\nissuer = 'https://x'\naudience = 'x'\n", "[oidc.groups] is empty"),
        (POOL + OIDC + "a = 'everything'\n", "[oidc.groups] 'a' manages 'everything'"),
        (POOL + OIDC + "a = 'tenant:'\n", "manages 'tenant:'"),
        (POOL + OIDC + "a = 'tenant:x/y'\n", "manages 'tenant:x/y'"),
        (POOL + "[gateway]\nport = 65536\n", "[gateway] port is 65536"),
        (POOL + "[gateway]\nport = -1\n", "[gateway] port is -1"),
        (POOL + "[gateway]\ntrusted_proxies = ['all']\n", "[gateway] trusted_proxies has 'all'"),
        (POOL + "workers = 0\n", "[pool.laptop] workers is 0; it must be 1 to"),
        (POOL + "slots = 5000\n", "[pool.laptop] slots is 5000"),
        (POOL + "context_tokens = 255\n", "[pool.laptop] context_tokens"),
        (POOL + "threads = 0\n", "[pool.laptop] threads"),
        (POOL + "power_w = -1\n", "[pool.laptop] power_w"),
        (POOL + "energy_udollars_per_kwh = -1\n", "energy_udollars_per_kwh"),
        (POOL + "capital_udollars_per_hour = -1\n", "capital_udollars_per_hour"),
        (POOL + "curve = [[8, 90], [1, 200]]\n", "[pool.laptop] curve"),
        (ATTACHED, "names no server"),
        (POOL + "[telemetry]\notlp = 'c:4318'\n", "[telemetry] otlp is 'c:4318'"),
        (POOL + "[telemetry]\notpl = 'http://c'\n", "otpl"),
    ],
)
def test_wrong_settings_are_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse_factory_config(text)
    assert said in str(caught.value)


@pytest.mark.parametrize("curve", [((0, 5),), ((1, 0),), ((1, 5), (1, 4)), ((2, 5), (1, 6))])
def test_a_curve_rises_from_one(curve: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ConfigInvalid, match="batches must rise"):
        check_curve(curve, "here")


def test_a_curve_has_a_limit() -> None:
    points = tuple((batch, 5) for batch in range(1, CURVE_POINTS_MAX + 2))
    check_curve(points[:-1], "here")
    with pytest.raises(ConfigInvalid, match="more than"):
        check_curve(points, "here")


@given(st.integers(0, 10**6), st.integers(0, 10**7), st.integers(0, 10**8))
def test_an_hour_costs_what_the_settings_say(power_w: int, energy: int, capital: int) -> None:
    pool = PoolConfig(
        engine="embedded",
        model="m",
        power_w=power_w,
        energy_udollars_per_kwh=energy,
        capital_udollars_per_hour=capital,
    )
    # W x micro-dollars per kWh is nano-dollars per hour.
    assert pool.energy_nanodollars(NS_PER_HOUR) == power_w * energy
    assert pool.capital_nanodollars(NS_PER_HOUR) == 1_000 * capital
    assert pool.energy_nanodollars(0) == pool.capital_nanodollars(0) == 0


BOUNDS = {
    "workers": (1, 1_024),
    "slots": (1, 4_096),
    "context_tokens": (256, 1 << 30),
    "threads": (1, 1_024),
    "power_w": (0, 1 << 40),
    "energy_udollars_per_kwh": (0, 1 << 40),
    "capital_udollars_per_hour": (0, 1 << 50),
}


@pytest.mark.parametrize("field", BOUNDS)
def test_a_figure_may_be_its_bound_and_nothing_beyond(field: str) -> None:
    low, high = BOUNDS[field]
    for value in (low, high):
        config = parse_factory_config(f"{POOL}{field} = {value}\n")
        assert getattr(config.pool["laptop"], field) == value
    for value in (low - 1, high + 1):
        with pytest.raises(ConfigInvalid, match=rf"\[pool\.laptop\] {field} is {value}; it must"):
            parse_factory_config(f"{POOL}{field} = {value}\n")


@pytest.mark.parametrize("port", [0, 65_535])
def test_a_port_may_be_its_bound(port: int) -> None:
    assert parse_factory_config(f"{POOL}[gateway]\nport = {port}\n").gateway.port == port


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (POOL.replace('"foreman"', '""'), "model is empty"),
        (POOL + 'urls = ["http://127.0.0.1:8001"]\n', "embedded but names servers"),
        (ATTACHED + f"urls = {['u'] * (WORKERS_MAX + 1)}\n", "names 1025 servers, more than 1024"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigInvalid, match=said):
        parse_factory_config(text)


def test_as_many_servers_as_workers_are_allowed() -> None:
    config = parse_factory_config(ATTACHED + f"urls = {['u'] * WORKERS_MAX}\n")
    assert len(config.pool["big"].urls) == WORKERS_MAX


LEDGER = POOL + "[ledger]\n"
URL = "postgresql://u:secret@h:5432/d"


def test_the_ledger_is_a_file_unless_a_database_is_named() -> None:
    assert parse_factory_config(POOL).ledger.url_in({}) is None
    assert parse_factory_config(LEDGER).ledger.url_in({"url": URL}) is None
    for url in (URL, "postgres://h/d"):
        assert parse_factory_config(f"{LEDGER}url = {url!r}\n").ledger.url_in({}) == url


def test_the_ledgers_url_may_be_in_the_environment() -> None:
    ledger = parse_factory_config(LEDGER + 'url_env = "LEDGER_URL"\n').ledger
    assert ledger.url_in({"LEDGER_URL": URL}) == URL
    for environment in ({}, {"LEDGER_URL": ""}):
        with pytest.raises(ConfigInvalid, match="'LEDGER_URL', which is not set"):
            ledger.url_in(environment)
    with pytest.raises(ConfigInvalid, match="'LEDGER_URL' does not begin with") as caught:
        ledger.url_in({"LEDGER_URL": "mysql://u:secret@h/d"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('url = "mysql://u:secret@h/d"', "[ledger] url does not begin with postgresql://"),
        ('url = "host=h password=secret"', "[ledger] url does not begin with postgresql://"),
        (f'url = "{URL}"\nurl_env = "X"', "[ledger] has both url and url_env"),
        (f'url_env = "{URL}"', "[ledger] url_env is not the name of an environment variable"),
        ("url = 5", "ledger.url"),
        ("path = 5", "ledger.path"),
        (f'url = "{URL}"\npath = "x"', "[ledger] has both url and path"),
    ],
)
def test_a_wrong_ledger_is_refused_without_its_password(text: str, said: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse_factory_config(f"{LEDGER}{text}\n")
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_settings_that_nest_too_deeply_are_refused_as_others_are() -> None:
    with pytest.raises(ConfigInvalid, match="settings cannot be read"):
        parse_factory_config("x = " + "[" * 20_000)


def test_who_decides_is_said_once() -> None:
    assert parse_factory_config(POOL).dispatch.policy == ""
    config = parse_factory_config(f"{POOL}[dispatch]\npolicy = 'economic'\n")
    assert config.dispatch.policy == "economic"
    with pytest.raises(ConfigInvalid, match="both"):
        parse_factory_config(f"{POOL}[dispatch]\npolicy = 'edf'\npolicy_file = 'x.py'\n")


def test_second_tries_are_a_part_of_what_is_sent() -> None:
    told = parse_factory_config(POOL).dispatch
    assert (told.retry_percent, told.hedge_percent, told.hedge_after_percent) == (20, 0, 50)
    for name in ("retry_percent", "hedge_percent", "hedge_after_percent"):
        config = parse_factory_config(f"{POOL}[dispatch]\n{name} = 7\n")
        assert getattr(config.dispatch, name) == 7
        for percent in (-1, 101):
            with pytest.raises(ConfigInvalid, match=f"{name} is {percent}; it must be 0 to 100"):
                parse_factory_config(f"{POOL}[dispatch]\n{name} = {percent}\n")


def test_modelled_workers_stand_in_no_file() -> None:
    with pytest.raises(ConfigInvalid, match="is modelled"):
        parse_factory_config("[pool.x]\nengine = 'modelled'\nmodel = 'm'\n")


def test_a_pool_offers_labels_and_adapters() -> None:
    text = ATTACHED + 'urls = ["http://127.0.0.1:8001"]\ncache_salt = true\n'
    text += 'labels = ["medical", "eu"]\nadapters = ["support"]\n'
    pool = parse_factory_config(text).pool["big"]
    assert pool.offers == Offers(labels=("eu", "medical"), adapters=("support",))
    assert pool.cache_salt
    assert PoolConfig(engine="embedded", model="m").offers == NO_OFFERS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('labels = ["-"]', "labels has '-'"),
        ('labels = ["eu", "eu"]', "labels is ['eu', 'eu']"),
        ('labels = ["two words"]', "labels is ['two words']"),
        (f"labels = {[f'l{number}' for number in range(17)]}", "more than 16"),
        ('adapters = ["support"]', "is embedded; it takes neither"),
        ("cache_salt = true", "is embedded; it takes neither"),
        ("workers = 3\nworkers_max = 2", "workers_max is 2; it must be 3 to 1024"),
        ("workers_max = 0", "workers_max is 0; it must be 1 to 1024"),
    ],
)
def test_a_wrong_offer_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse_factory_config(f"{POOL}{text}\n")
    assert said in str(caught.value)


SERVED = f'{ATTACHED}urls = ["http://127.0.0.1:8001"]\n'


def test_a_pool_may_be_asked_for_whole_answers() -> None:
    assert not parse_factory_config(SERVED).pool["big"].whole_answers
    config = parse_factory_config(f"{SERVED}whole_answers = true\n{POOL}")
    assert config.pool["big"].whole_answers


PASSING = """
[gateway]
pass_through = true
[pool.out]
engine = "attached"
model = "*"
urls = ["https://api.example.com/v1"]
"""


def test_a_factory_that_passes_requests_on() -> None:
    found = parse_factory_config(PASSING)
    assert found.gateway.pass_through
    assert found.pool["out"].model == "*"


@pytest.mark.parametrize(
    "text",
    [
        PASSING.replace("true", "false"),
        PASSING.replace('"*"', '"m"'),
        PASSING + '[pool.more]\nengine = "embedded"\nmodel = "m"\n',
        PASSING.replace('engine = "attached"', "").replace("urls", "#") + 'engine = "embedded"\n',
    ],
)
def test_only_one_provider_is_passed_on_to(text: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"\*"):
        parse_factory_config(text)


def test_whom_people_sign_in_with() -> None:
    found = parse_factory_config(f"{POOL}{OIDC}ops = 'factory'\nacme = 'tenant:acme'\n").oidc
    assert found.groups == {"ops": "factory", "acme": "tenant:acme"}
    assert parse_factory_config(POOL).oidc.issuer == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{POOL}whole_answers = true\n", "embedded workers stream"),
        (f"{PASSING}whole_answers = true\n", "is asked for as its callers ask"),
        (f"{SERVED}whole_answers = true\n[dispatch]\nhedge_percent = 2\n", "hedge_percent"),
        (
            f"{SERVED}whole_answers = true\n{SERVED.replace('big', 'small')}",
            "[pool.small] does not set whole_answers, but others that serve 'm' do",
        ),
    ],
)
def test_whole_answers_are_refused_where_tokens_must_be_seen(text: str, said: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        parse_factory_config(text)
    assert said in str(caught.value)
    assert caught.value.hint
