"""How fast engines were measured to be: coefficients with their errors, power and cost."""

from __future__ import annotations

import datetime
from typing import Final

import msgspec

from tokenworks.catalogue.toml_text import read_toml
from tokenworks.core.errors import ConfigInvalid

TIMINGS_BYTES_MAX: Final = 1_000_000


class EngineTiming(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One engine on one system, fitted to measured rows.

    The errors are medians of the absolute relative error, in millionths. A TTFT of the rows holds
    the queue of their load, which the five coefficients don't know.

    Attributes:
        system: the accelerators, as the rows name them.
        engine: the program that ran.
        model: that it served.
        precision: of its weights.
        gpus: in tensor parallel.
        launch_fs: each iteration, in femtoseconds.
        sequence_fs: each sequence that decodes.
        context_token_fs: each token of KV cache that these read.
        prefill_token_fs: each token of prompt that is computed.
        prefill_context_fs: each pair of such a token and one before it.
        rows: that it was fitted to.
        batch_max: the largest batch among them; beyond it the fit is a guess.
        input_tokens_max: their longest prompt; likewise.
        tpot_error_ppm: of TPOT, of those rows.
        ttft_error_ppm: of TTFT.
        tpot_error_unseen_ppm: of TPOT, of lengths that were left out of the fit.
        ttft_error_unseen_ppm: of TTFT.
        kv_tokens_assumed: room in the KV cache.
        kv_bytes_per_token_assumed: what a KV transfer moves.
        power_w: of all the GPUs at work.
        capital_udollars_per_hour: of all the GPUs.
    """

    system: str
    engine: str
    model: str
    precision: str
    gpus: int
    launch_fs: int
    sequence_fs: int
    context_token_fs: int
    prefill_token_fs: int
    prefill_context_fs: int
    rows: int
    batch_max: int
    input_tokens_max: int
    tpot_error_ppm: int
    ttft_error_ppm: int
    tpot_error_unseen_ppm: int
    ttft_error_unseen_ppm: int
    kv_tokens_assumed: int
    kv_bytes_per_token_assumed: int
    power_w: int
    capital_udollars_per_hour: int


class TimingsSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the figures come from.

    Attributes:
        rows: the measured rows.
        licence: of these.
        retrieved: the day.
        power: where the watts are from.
        capital: where the cost is from.
        assumed: what nobody has measured.
    """

    rows: str
    licence: str
    retrieved: datetime.date
    power: str
    capital: str
    assumed: str


class Timings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Engines by name, as in ``h200-70b-fp8-trtllm-tp4``, and their source."""

    source: TimingsSource
    engine: dict[str, EngineTiming]

    def named(self, name: str) -> EngineTiming:
        """An engine by name.

        Raises:
            ConfigInvalid: there is none of that name.
        """
        if name not in self.engine:
            raise ConfigInvalid(
                f"No engine is named {name!r}.",
                hint=f"Those that were measured: {', '.join(sorted(self.engine))}.",
            )
        return self.engine[name]


def parse_timings(text: str) -> Timings:
    """Read engines' timings from TOML.

    Raises:
        ConfigInvalid: not TOML, an unknown or missing key, or a figure below 0; below 1 for what
            an engine cannot be without.
    """
    if len(text) > TIMINGS_BYTES_MAX:
        raise ConfigInvalid(f"Timings of {len(text)} characters; at most {TIMINGS_BYTES_MAX}.")
    timings = read_toml(text, Timings, what="The timings", hint="bench/fit_timings.py writes them.")
    for name, engine in timings.engine.items():
        for field, value in msgspec.structs.asdict(engine).items():
            least = 1 if field in {"gpus", "launch_fs", "kv_tokens_assumed", "rows"} else 0
            if isinstance(value, int) and value < least:
                raise ConfigInvalid(
                    f"[engine.{name}] {field} is {value!r}; it must be {least} or more."
                )
    return timings
