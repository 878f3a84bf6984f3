"""A home for every test of the command line."""

from __future__ import annotations

import pathlib

import pytest

from tokenworks.live.home import HOME_VARIABLE, Home


@pytest.fixture
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A folder that is not there yet; nothing reaches the one of whoever runs the tests."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "elsewhere"))
    monkeypatch.delenv("TOKENWORKS_KEY", raising=False)
    return Home(tmp_path / "home")
