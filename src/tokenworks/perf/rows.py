"""Measured rows as cases: the public schema of silicon samples, with the traps that it has.

Source: ai-dynamo/aiconfigurator's silicon sample (Apache-2.0). What its columns do not say
plainly is read as follows.

* An aggregated row whose ``tp_size`` is ``moe_tp_size`` times an equal ``moe_ep_size`` has the two
  multiplied; the worker has as many GPUs as either.
* A row with more expert ranks than attention ranks attends in groups (attention-DP).
* More than eight ways of tensor parallelism that are no power of two divide no model's heads: such
  a row (72 GPUs of a rack) attends in groups of one, and spreads experts.
* A disaggregated worker whose weights exceed its memory isn't told: it attends in groups of one on
  the least power of two that holds the weights, and the cache of its share of the load. Twins of
  such rows have 4 GPUs under little load and 32 under much (DeepSeek R1 on "1" GPU of GB200).
* More concurrency than ``batch_size`` times its groups means several replicas.
* Blank precision is that of the quantisation columns, or of the model's name, or else BF16.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar

import msgspec

from tokenworks.catalogue.records import Accelerator, Dtype, Engine, Model
from tokenworks.catalogue.shelves import Catalogue
from tokenworks.core.errors import ConfigInvalid
from tokenworks.perf.architecture import Shape, shape_of
from tokenworks.perf.case import Case, Layout, sequences_max, weight_bytes_per_gpu
from tokenworks.perf.passes import has_rates, rates_of

ROWS_MAX: Final = 1_000_000
GPUS_MAX: Final = 4096
_MEASURED: Final = ("ttft", "tpot")
_DTYPES: Final[dict[str, Dtype]] = {
    "bf16": "bf16",
    "fp16": "bf16",
    "float16": "bf16",
    "bfloat16": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8",
    "fp4": "fp4",
    "nvfp4": "fp4",
    "mxfp4": "fp4",
    "w4a8_mxfp4_mxfp8": "fp4",
    "w4a16_mxfp4": "fp4",
    "int4": "int4",
    "int4_wo": "int4",
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One measured row.

    Attributes:
        id: as in the file.
        model: as in the file.
        system: as in the file.
        case: that was measured.
        ttft_ms: measured; None where it is blank, or no measurement.
        tpot_ms: likewise.
        substituted: what was taken for what, for people; empty where all was known.
        unmeasured: why a measurement was left out, for people; empty where none was.
    """

    id: str
    model: str
    system: str
    case: Case
    ttft_ms: float | None
    tpot_ms: float | None
    substituted: str = ""
    unmeasured: str = ""


class Unread(msgspec.Struct, frozen=True, kw_only=True):
    """A row that no case could be made of, or of which something is to be told.

    Attributes:
        id: as in the file.
        why: for people.
    """

    id: str
    why: str


def read_rows(text: str, catalogue: Catalogue) -> Iterator[Row | Unread]:
    """Rows of a CSV file with a header.

    Args:
        text: of the file.
        catalogue: that knows its models and systems; what it doesn't know is taken for what is
            nearest by name.

    Raises:
        ConfigInvalid: the header lacks a column that is needed, or there are too many rows.
    """
    reader = csv.DictReader(text.splitlines())
    needed = {"model_path", "system", "backend", "mode", "isl", "osl"}
    missing = needed - set(reader.fieldnames or ())
    if missing:
        raise ConfigInvalid(
            f"The rows lack {', '.join(sorted(missing))}.",
            hint="The schema is that of docs/perf.md: one header line, then one row a line.",
        )
    find = _Finder(catalogue)
    number = 0
    while True:
        number += 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield Unread(id=f"row {number}", why=f"no line of CSV: {error}")
            continue
        if fields is None:
            return
        if number > ROWS_MAX:
            raise ConfigInvalid(f"More than {ROWS_MAX} rows.", hint="Split the file.")
        # A short line has None for what it lacks; a long one has a list of what is too much.
        values = {key: "" if value is None else value for key, value in fields.items() if key}
        name = values.get("id") or f"row {number}"
        try:
            yield _row(name, values, find)
        except (ValueError, ConfigInvalid) as error:
            yield Unread(id=name, why=str(error))


_Record = TypeVar("_Record", Model, Accelerator)


class _Finder:
    """Records by name, or else by the nearest name; each name is looked up once."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._shapes: dict[str, Shape] = {}
        self._devices: dict[str, Accelerator] = {}
        self._engines = {
            name.lower()
            for engine in catalogue.all_of(Engine)
            for name in (engine.name, *engine.aliases)
        }
        self._taken: dict[tuple[str, str], str] = {}

    def shape(self, name: str) -> Shape:
        if name not in self._shapes:
            model = self._found("model", name, self._catalogue.model, self._nearest_model)
            self._shapes[name] = shape_of(model)
        return self._shapes[name]

    def device(self, name: str) -> Accelerator:
        if name not in self._devices:
            find = self._catalogue.accelerator
            device = self._found("system", name, find, self._nearest_gpu)
            rates_of(device)
            self._devices[name] = device
        return self._devices[name]

    def _found(
        self,
        kind: str,
        name: str,
        exactly: Callable[[str], _Record],
        nearest: Callable[[str], _Record],
    ) -> _Record:
        """A record, and a note where it is not the one that was asked for."""
        try:
            return exactly(name)
        except ConfigInvalid:
            record = nearest(name)
            self._taken[kind, name] = f"{kind} {name!r} taken for {record.name!r}"
            return record

    def _nearest_model(self, name: str) -> Model:
        return _nearest_model(name, self._catalogue.all_of(Model))

    def _nearest_gpu(self, name: str) -> Accelerator:
        return _nearest_gpu(name, self._catalogue.all_of(Accelerator))

    def substituted(self, model: str, system: str, engine: str) -> str:
        """What was taken for what; an unknown engine has no factors of its own."""
        found = [self._taken.get(("model", model)), self._taken.get(("system", system))]
        if engine not in self._engines:
            found.append(f"backend {engine!r} taken for an average engine")
        return "; ".join(each for each in found if each)


def _nearest_gpu(name: str, devices: list[Accelerator]) -> Accelerator:
    """Of those that a prediction can be made for; LPUs decode nothing alone."""

    def likeness(device: Accelerator) -> float:
        return difflib.SequenceMatcher(None, name.lower(), device.name.lower()).ratio()

    return max((d for d in devices if d.family == "gpu" and has_rates(d)), key=likeness)


def _nearest_model(name: str, models: list[Model]) -> Model:
    """By words in common, such as ``qwen3`` and ``235b``; then by letters.

    >>> _words("nvidia/Llama-3.3-70B-Instruct-FP4")
    {'3.3', '70b', 'llama'}
    """
    wanted = _words(name)

    def likeness(model: Model) -> tuple[int, float]:
        known = _words(model.name).union(*map(_words, model.aliases))
        letters = difflib.SequenceMatcher(None, name.lower(), model.name).ratio()
        return len(wanted & known), letters

    return max(models, key=likeness)


def _words(name: str) -> set[str]:
    ignored = {"", "fp8", "fp4", "nvfp4", "instruct", "hf", "it", "base", "chat"}
    return _Sorted(set(re.split(r"[-_]", name.lower().rpartition("/")[2])) - ignored)


class _Sorted(set[str]):
    """A set whose text is in order."""

    def __repr__(self) -> str:
        return "{" + ", ".join(map(repr, sorted(self))) + "}"


def _number(values: Mapping[str, str], name: str) -> float | None:
    """A column; blank, zero and less count as not given."""
    text = values.get(name, "").strip()
    if not text:
        return None
    number = float(text)
    return number if 0 < number < 1e12 else None


def _whole(values: Mapping[str, str], name: str) -> int | None:
    """A column that counts something."""
    number = _number(values, name)
    if number is not None and not number.is_integer():
        raise ValueError(f"{name} is {values[name]!r}; it must be a whole number")
    return None if number is None else int(number)


def _count(values: Mapping[str, str], name: str) -> int:
    return min(_whole(values, name) or 1, GPUS_MAX)


def _dtype(values: Mapping[str, str]) -> Dtype:
    for column in ("precision", "gemm_quant_mode", "moe_quant_mode"):
        text = values.get(column, "").strip().lower()
        if text in _DTYPES:
            return _DTYPES[text]
    name = values["model_path"].lower()
    for mark, dtype in (("fp4", "fp4"), ("fp8", "fp8"), ("int4", "int4"), ("awq", "int4")):
        if mark in name:
            return _DTYPES[dtype]
    return "bf16"


def months(date: str) -> float | None:
    """Months since January 2025 of a date.

    >>> months("2026-02-16"), months("")
    (13.5, None)
    """
    found = re.match(r"(\d{4})-(\d{2})-(\d{2})", date)
    if found is None:
        return None
    year, month, day = map(int, found.groups())
    return (year - 2025) * 12 + month - 1 + (day - 1) / 30


def _row(name: str, values: Mapping[str, str], find: _Finder) -> Row:
    mode = values["mode"].strip().lower()
    isl, osl = _number(values, "isl"), _number(values, "osl")
    if isl is None or osl is None:
        raise ValueError("isl and osl must be positive numbers")
    if not mode.startswith(("agg", "disagg")):
        raise ValueError(f"mode is {values['mode']!r}; it must be agg or disagg")
    for column in ("model_path", "system"):
        if not values[column].strip():
            raise ValueError(f"{column} is blank")
    shape, device = find.shape(values["model_path"]), find.device(values["system"])
    make = _disaggregated if mode.startswith("disagg") else _aggregated
    case = make(values, shape, device, _dtype(values), isl, osl)
    return Row(
        id=name,
        model=values["model_path"],
        system=values["system"],
        case=case,
        ttft_ms=_number(values, "silicon_ttft_ms"),
        tpot_ms=_number(values, "silicon_tpot_ms"),
        substituted=find.substituted(values["model_path"], values["system"], case.engine),
        unmeasured=_unmeasured(values),
    )


def _unmeasured(values: Mapping[str, str]) -> str:
    """Why a measurement is left out; one that is blank beside the other is none that is missing."""
    given = {
        name: text for name in _MEASURED if (text := values.get(f"silicon_{name}_ms", "").strip())
    }
    if not given:
        return "neither TTFT nor TPOT is given"
    wrong = [n for n in given if _number(values, f"silicon_{n}_ms") is None]
    return ", ".join(f"silicon_{name}_ms is {given[name]!r}" for name in wrong)


def _aggregated(
    values: Mapping[str, str],
    shape: Shape,
    device: Accelerator,
    dtype: Dtype,
    isl: float,
    osl: float,
) -> Case:
    tp, ranks = _count(values, "tp_size"), _count(values, "attention_dp_size")
    moe_tp, ep = _count(values, "moe_tp_size"), _count(values, "moe_ep_size")
    pp, domain = _count(values, "pp_size"), device.scaleup_domain or 8
    dp = ranks
    if moe_tp == ep > 1 and moe_tp * ep == tp:
        gpus = moe_tp
    elif moe_tp * ep > tp * ranks:
        gpus = moe_tp * ep
        dp = gpus // tp
    else:
        gpus = max(tp, moe_tp * ep)
    if tp > 8 and tp & (tp - 1):
        dp = ep = gpus
    gpus *= pp
    if domain <= 8:
        gpus = min(gpus, 8)
    batch, asked = _number(values, "batch_size"), _number(values, "concurrency")
    batch = batch or asked or 1.0
    asked = asked or batch
    replicas = max(asked / (batch * ranks), 1.0)
    layout = Layout(gpus=gpus, ep=min(ep, gpus), dp=min(dp, gpus), pp=min(pp, gpus))
    return Case(
        shape=shape,
        device=device,
        engine=values["backend"].strip().lower(),
        dtype=dtype,
        isl=isl,
        osl=osl,
        concurrency=max(asked, batch) / replicas,
        decode=layout,
        prefill=layout,
        version=values.get("backend_version", ""),
        month=months(values.get("measured", "")),
        replicas=replicas,
    )


def _disaggregated(
    values: Mapping[str, str],
    shape: Shape,
    device: Accelerator,
    dtype: Dtype,
    isl: float,
    osl: float,
) -> Case:
    decode_workers = _whole(values, "decode_num_workers")
    prefill_workers = _whole(values, "prefill_num_workers")
    batch = _number(values, "decode_batch_size") or 1.0
    asked = _number(values, "concurrency") or batch * (decode_workers or 1)
    case = Case(
        shape=shape,
        device=device,
        engine=values["backend"].strip().lower(),
        mode="disagg",
        dtype=dtype,
        isl=isl,
        osl=osl,
        concurrency=asked,
        decode=_side(values, "decode", device),
        prefill=_side(values, "prefill", device),
        decode_workers=decode_workers,
        prefill_workers=prefill_workers,
        version=values.get("backend_version", ""),
        month=months(values.get("measured", "")),
    )
    return _that_holds(case)


def _side(values: Mapping[str, str], side: str, device: Accelerator) -> Layout:
    tp, pp = _count(values, f"{side}_tp_size"), _count(values, f"{side}_pp_size")
    moe_tp, ep = _count(values, f"{side}_moe_tp_size"), _count(values, f"{side}_moe_ep_size")
    gpus = max(tp, moe_tp * ep)
    if moe_tp > 1 and ep > 1 and (device.scaleup_domain or 8) <= 8:
        gpus = min(gpus, 8)
    gpus *= pp
    dp = min(_count(values, f"{side}_attention_dp_size"), gpus)
    return Layout(gpus=gpus, ep=min(ep, gpus), dp=dp, pp=pp)


def _that_holds(case: Case) -> Case:
    """A case whose workers hold the weights: as given where they do.

    The whole memory counts, for an engine may be told to take more than it does by default.
    """
    memory, most = case.device.memory_bytes or 0.0, max(case.device.scaleup_domain or 1, 8)

    def lacks(layout: Layout) -> bool:
        return weight_bytes_per_gpu(case.shape, case.dtype, layout) > memory

    decode, prefill = case.decode, case.prefill
    while lacks(prefill) and 2 * prefill.gpus <= most:
        prefill = _twice(prefill)
    if lacks(decode):
        while 2 * decode.gpus <= most and (
            lacks(decode)
            or sequences_max(msgspec.structs.replace(case, decode=decode)) < case.batch
        ):
            decode = _twice(decode)
    return msgspec.structs.replace(case, decode=decode, prefill=prefill)


def _twice(layout: Layout) -> Layout:
    return Layout(gpus=2 * layout.gpus, dp=2 * layout.gpus)


def configuration(row: Row) -> str:
    """Alike for repeats: everything that was chosen, without when and by which version.

    Models that differ in name only count as one, so that a repeat under the other name does not
    slip into another fold.
    """
    case = row.case
    parts = [case.shape.key, case.engine, row.case.device.name, case.mode, case.dtype]
    parts += [str(case.isl), str(case.osl), str(case.concurrency), str(case.replicas)]
    parts += [repr(case.decode), repr(case.prefill)]
    parts += [str(case.decode_workers), str(case.prefill_workers)]
    return "|".join(parts)
