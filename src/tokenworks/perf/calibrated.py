"""Timings of engines that were measured, from the catalogue's figures."""

from __future__ import annotations

from tokenworks.catalogue.timings import EngineTiming
from tokenworks.perf.timing import Timing


def timing_of(engine: EngineTiming) -> Timing:
    """An engine's timing.

    Source: fitted to measured rows; ``bench/fit_timings.py`` says how, the record how well.
    """
    return Timing(
        launch_fs=engine.launch_fs,
        sequence_fs=engine.sequence_fs,
        context_token_fs=engine.context_token_fs,
        prefill_token_fs=engine.prefill_token_fs,
        prefill_context_fs=engine.prefill_context_fs,
    )
