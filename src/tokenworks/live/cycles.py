"""The search for cycles of objects that nobody uses any more, a little of it at a time."""

from __future__ import annotations

import gc


def search_for_cycles() -> None:
    """Search the newest objects, and the older ones with them when that is due.

    Python counts how often it has searched those of an age, and searches the older ones when the
    thresholds say so; but only once there are many new objects. Whoever searches these before there
    are many must look at the older ones, too: nobody else does.
    """
    _, middle, old = gc.get_count()
    _, middle_max, old_max = gc.get_threshold()
    if middle <= middle_max:
        gc.collect(0)
    else:
        gc.collect(1 if old <= old_max else 2)
