"""Fit the projection's assumptions to the keynote's chart, also with one point held out.

``python -m bench.fit_keynote`` fits five continuous assumptions (share of peaks, new tokens of
prompt, tokens per step with and without LPUs, Rubin's latency per layer) to eight points, four
multiples, three sums of dollars and the multiple with LPUs. The shape of the 2T model (experts that
are active, heads of its KV cache) and the power of an LPX rack are taken from the catalogue as they
are: they are whole numbers, chosen by hand. ``--hold-out vr-nvl72:high`` leaves out one point,
every multiple and every sum that needs it, and says what is predicted for it.
"""

from __future__ import annotations

import argparse
import math

import msgspec
from scipy.optimize import least_squares

from tokenworks.catalogue.records import Projection
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.live.catalogue_files import read_catalogue
from tokenworks.plan.keynote import Check, Comparison, compare

FITTED = {
    "peak_share": (0.5, 0.95),
    "new_tokens_per_output": (0.3, 10.0),
    "tokens_per_step": (1.2, 3.4),
    "lpu_tokens_per_step": (1.5, 7.0),
}
LATENCY = (10e-6, 40e-6)
WEIGHT = {"points": 1 / 0.182, "multiples": 1 / 0.182, "dollars": 1 / 0.14}
"""Over the logarithm of what a bar allows, so that 1 is just allowed."""


def found_at(catalogue: Catalogue, base: Projection, values: list[float]) -> Comparison:
    """The comparison with other values of what is fitted."""
    *own, latency_s = values
    projection = msgspec.structs.replace(base, **dict(zip(FITTED, own, strict=True)))
    rubin = msgspec.structs.replace(catalogue.accelerator("rubin"), layer_latency_s=latency_s)
    return compare(
        catalogue.with_records(rubin),
        catalogue.chart("keynote"),
        catalogue.tiers("keynote"),
        projection,
    )


def residuals(found: Comparison, held_out: tuple[str, str] | None) -> list[float]:
    """Weighted logarithms of computed over charted; Hopper is left out."""
    out = []
    for group, weight in WEIGHT.items():
        for check in getattr(found, group):
            if "hopper" in check.systems or "h100" in check.systems or leans_on(check, held_out):
                continue
            error = math.log(max(1e-6, 1 + check.error)) * weight
            out.append(math.copysign(abs(error) ** 2.6, error))
    return out


def leans_on(check: Check, held_out: tuple[str, str] | None) -> bool:
    """Whether a figure is computed from the point that is held out."""
    if held_out is None:
        return False
    systems, tier = held_out
    of_it = check.systems == systems or f"multiple of {systems}," in check.what
    if check.what.startswith("multiple") and "lpx" in check.systems and check.tier:
        of_it = f"multiple of {systems}," in check.what  # LPUs' own point, over another's
    elif "lpx" in check.systems and tier != "premium":
        of_it = of_it or systems == "vr-nvl72"  # GPUs alone serve the tiers below
    return of_it and check.tier in {tier, ""}


def main() -> None:
    """Fit, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hold-out", help="SYSTEM:TIER")
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--afresh", action="store_true", help="start in the middle of the bounds")
    options = parser.parse_args()
    held_out = tuple(options.hold_out.split(":")) if options.hold_out else None
    catalogue = read_catalogue()
    base = catalogue.projection("keynote")
    bounds = [*FITTED.values(), LATENCY]
    latency_s = catalogue.accelerator("rubin").layer_latency_s
    start = [*(getattr(base, field) for field in FITTED), latency_s]
    if options.afresh:
        start = [math.sqrt(low * high) for low, high in bounds]

    def errors(logs: list[float]) -> list[float]:
        return residuals(found_at(catalogue, base, [math.exp(v) for v in logs]), held_out)

    fit = least_squares(
        errors,
        [math.log(v) for v in start],
        bounds=[[math.log(b[i]) for b in bounds] for i in (0, 1)],
        diff_step=0.03,
        max_nfev=options.evaluations,
    )
    values = [math.exp(v) for v in fit.x]
    for name, value in zip([*FITTED, "rubin layer_latency_s"], values, strict=True):
        print(f"{name:24} {value:.4g}")
    found = found_at(catalogue, base, values)
    for group in WEIGHT:
        for check in getattr(found, group):
            left = "  held out" if leans_on(check, held_out) else ""
            computed = check.computed or 0
            print(
                f"{check.what:44} {check.systems:14} {check.tier:8} {check.charted:12.4g} "
                f"{computed:12.4g} {check.error:+7.1%}{left}"
            )


if __name__ == "__main__":
    main()
