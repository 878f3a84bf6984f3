"""A policy of the operator's own: loaded from a file, run in the twin, refused with a reason."""

from __future__ import annotations

import pathlib
from pathlib import Path

import pytest

from tests import doc_blocks
from tests.cli.command_line import data, invoke
from tokenworks.cli.policy_file import METHODS, chosen, load_policy
from tokenworks.core.errors import ConfigInvalid, InvalidRequest
from tokenworks.dispatch.events import PolicySettings
from tokenworks.dispatch.policy import Forgetful
from tokenworks.live.home import Home

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"
SMALL = ("--rate", "30", "--duration", "5", "--workers", "2")


@pytest.fixture
def half(tmp_path: Path) -> str:
    """The page's own example."""
    (block,) = [each for each in doc_blocks.blocks(PAGE) if each.language == "python"]
    path = tmp_path / "half.py"
    path.write_text(block.text)
    return str(path)


def test_the_pages_example_decides_a_run(home: Home, half: str) -> None:
    found = data(home, "twin", "run", *SMALL, "--policy-file", half)
    assert found["policy"] == "half"
    assert found["all"]["done"] == found["requests"]
    plain = data(home, "twin", "run", *SMALL, "--policy", "least-loaded:8")
    assert plain["policy"] == "least-loaded"
    assert plain["journal_digest"] != found["journal_digest"]
    assert data(home, "twin", "run", *SMALL)["policy"] == "economic"


def test_it_is_compared_with_others(home: Home, half: str) -> None:
    words = ("twin", "compare", *SMALL, "--policies", "promises", "--policy-file", half)
    found = data(home, *words)
    assert {row["policy"] for row in found["policies"]} == {"promises", "half"}
    found = data(home, *(word.replace("promises", "promises,half") for word in words))
    assert len(found["policies"]) == 2


def test_a_maker_may_have_another_name(half: str) -> None:
    name, own = load_policy(f"{half}:HalfForFree")
    assert (name, isinstance(own[name](), Forgetful)) == ("half", True)
    name, own = load_policy("tokenworks.dispatch.economics:Economics")
    assert (name, type(own[name]()).__name__) == ("economics", "Economics")


def test_a_file_cannot_take_the_name_of_a_policy_of_the_package(half: str) -> None:
    taken = pathlib.Path(half).with_name("edf.py")
    taken.write_text(pathlib.Path(half).read_text())
    with pytest.raises(ConfigInvalid, match="has the name of a policy"):
        load_policy(str(taken))


def test_one_of_the_two_options_says_who_decides(half: str) -> None:
    assert chosen(None, None).settings is None
    assert chosen("", "").settings is None
    assert chosen("edf:3", None).settings == PolicySettings(name="edf", batch_cap=3)
    told = chosen(None, half)
    assert told.settings == PolicySettings(name="half")
    assert set(told.own) == {"half"}
    with pytest.raises(InvalidRequest, match="both"):
        chosen("edf", half)
    with pytest.raises(ConfigInvalid, match="no policy 'nobody'"):
        chosen("nobody", None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "defines no function 'make_policy'"),
        ("make_policy = 3", "defines no function"),
        ("def make_policy(:", "SyntaxError"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("def make_policy():\n    raise ValueError('no')", "raises ValueError('no') instead"),
        ("def make_policy():\n    return 3", "lacks configure, arrived, place"),
        ("class make_policy:\n    place = drain = 3", "lacks"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(text)
    with pytest.raises(ConfigInvalid) as caught:
        load_policy(str(path))
    assert said in caught.value.message
    assert "docs/policies.md" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("missing.py", "cannot be read"),
        ("nothing_of_that_name:make_policy", "cannot be imported"),
        ("half", "--policy-file is 'half'"),
        ("half.py:", "--policy-file is 'half.py:'"),
        ("half.py:a b", "--policy-file is"),
    ],
)
def test_what_cannot_be_found_is_refused(where: str, said: str) -> None:
    with pytest.raises(ConfigInvalid, match=said):
        load_policy(where)


def test_a_policy_has_seven_methods() -> None:
    assert (
        *("configure", "arrived", "place", "drain", "finished", "record", "restore"),
    ) == METHODS


def test_the_command_line_says_it_in_one_message(home: Home, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("1 / 0")
    result = invoke(home, "twin", "run", *SMALL, "--policy-file", str(tmp_path / "x.py"))
    assert isinstance(result.exception, ConfigInvalid)
    assert "ZeroDivisionError" in str(result.exception)
