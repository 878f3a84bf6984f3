"""What tests of every room share holds in every process that runs some."""

from __future__ import annotations

import gc
import sys


def test_no_search_for_cycles_goes_through_what_was_imported() -> None:
    searched = {id(each) for each in gc.get_objects()}
    assert gc.get_freeze_count() > 0
    assert id(vars(sys.modules["hypothesis"])) not in searched
