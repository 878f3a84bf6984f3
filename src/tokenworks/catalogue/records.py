"""What a catalogue holds: devices, systems, models and prices, each number with where it is from.

A file in TOML describes one thing. Words stand at its top; numbers stand in ``[[figures]]``, each
of which names one source, a date and a confidence for all the numbers in it. So a number without
a source cannot be written down. ``parse_record`` reads such a file.
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Mapping
from typing import ClassVar, Final, Literal

import msgspec

from tokenworks.core.errors import ConfigInvalid

RECORD_BYTES_MAX: Final = 1_000_000

Confidence = Literal["high", "medium", "low", "assumed"]
"""``assumed``: nothing public says it. Answers list every assumed number that they used."""

Dtype = Literal["bf16", "fp8", "fp4", "int4"]


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a number is from.

    Attributes:
        source: a document for people to find.
        date: it was published, or read where that is not known.
        confidence: of the number.
        note: how it was worked out, or what contradicts it.
    """

    source: str
    date: datetime.date
    confidence: Confidence
    note: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all records have.

    Attributes:
        name: unique in its catalogue.
        kind: which of the records it is.
        title: for people.
        provenance: by the name of the field that holds the number.
        aliases: other names that mean the same.
        ship: when it can be bought, as far as is known.
        notes: for people.
    """

    SECTION: ClassVar[str]

    name: str
    kind: str
    title: str
    provenance: dict[str, Provenance]
    aliases: tuple[str, ...] = ()
    ship: str = ""
    notes: str = ""

    def assumed(self) -> tuple[str, ...]:
        """Its fields that nothing public backs, in order."""
        return tuple(sorted(f for f, p in self.provenance.items() if p.confidence == "assumed"))

    def known(self, field: str) -> float:
        """A number that nothing can be computed without.

        Raises:
            ConfigInvalid: it is None.
        """
        value = getattr(self, field)
        if value is None:
            raise ConfigInvalid(
                f"The catalogue has no {field} of {self.kind} {self.name!r}.",
                hint="Add it to a record of yours, as assumed if nothing public says it.",
            )
        return float(value)


class Accelerator(Record, frozen=True, kw_only=True, tag=False):
    """A GPU or an LPU: one package as the engines count it. None where nothing is known.

    Attributes:
        family: what it computes with.
        fp4_flop_per_s: dense, as are the others.
        fp8_flop_per_s: likewise.
        bf16_flop_per_s: likewise.
        fp4_sparse_flop_per_s: what is advertised with sparsity; never for a roofline.
        memory_bytes: beside the compute: HBM of a GPU, SRAM of an LPU.
        memory_bandwidth_bytes_per_s: of it.
        scaleup_bandwidth_bytes_per_s: both directions together, as it is advertised.
        scaleup_domain: accelerators that reach each other so.
        scaleout_bandwidth_bytes_per_s: one direction.
        tdp_w: of the package.
        tdp_low_w: in its low-power mode.
        all_in_power_w: of the utility's, with its share of host, network and cooling.
        tco_usd_per_h: what owning it costs a hyperscaler.
        tco_neocloud_usd_per_h: what owning it costs a neocloud.
        rental_usd_per_h: on a contract of three years.
        price_usd: of the package.
        layer_latency_s: of launches and small collectives in each layer of a decode step, however
            small the batch.
    """

    SECTION: ClassVar[str] = "accelerators"

    family: Literal["gpu", "lpu"]
    fp4_flop_per_s: float | None = None
    fp8_flop_per_s: float | None = None
    bf16_flop_per_s: float | None = None
    fp4_sparse_flop_per_s: float | None = None
    memory_bytes: float | None = None
    memory_bandwidth_bytes_per_s: float | None = None
    scaleup_bandwidth_bytes_per_s: float | None = None
    scaleup_domain: int | None = None
    scaleout_bandwidth_bytes_per_s: float | None = None
    tdp_w: float | None = None
    tdp_low_w: float | None = None
    all_in_power_w: float | None = None
    tco_usd_per_h: float | None = None
    tco_neocloud_usd_per_h: float | None = None
    rental_usd_per_h: float | None = None
    price_usd: float | None = None
    layer_latency_s: float | None = None


class System(Record, frozen=True, kw_only=True, tag=False):
    """A rack or a server that is bought as one.

    Attributes:
        accelerator: the name of its accelerators; empty for a rack of CPUs or storage.
        lpu: the name of its LPUs; empty where it has none.
        cpu: the name of its CPUs; empty where they don't matter.
        accelerators: in it.
        lpus: in it.
        cpus: in it.
        domain: accelerators that scale-up links connect, where that is not all.
        all_in_power_w: of the utility's, with its share of network and cooling.
        rack_power_w: of the rack alone.
        price_usd: of the system.
        capex_usd_per_gw: of a data centre full of them.
        tco_usd_per_accelerator_h: what owning costs a hyperscaler.
        install_h: to put one rack in place and wire it.
        host_memory_bytes: of its CPUs.
        dram_bytes: beside LPUs.
        link_latency_s: a round trip from the GPUs it is paired with, for each layer.
        link_bandwidth_bytes_per_s: to the GPUs it is paired with, one direction, of the whole.
        lpu_layer_latency_s: of the exchanges between LPUs in each layer, where they hold all of a
            model, however small the batch.
        storage_bytes: of a rack of storage.
        storage_bandwidth_bytes_per_s: likewise.
    """

    SECTION: ClassVar[str] = "systems"

    accelerator: str = ""
    lpu: str = ""
    cpu: str = ""
    accelerators: int = 0
    lpus: int = 0
    cpus: int = 0
    domain: int | None = None
    all_in_power_w: float | None = None
    rack_power_w: float | None = None
    price_usd: float | None = None
    capex_usd_per_gw: float | None = None
    tco_usd_per_accelerator_h: float | None = None
    install_h: float | None = None
    host_memory_bytes: float | None = None
    dram_bytes: float | None = None
    link_latency_s: float | None = None
    link_bandwidth_bytes_per_s: float | None = None
    lpu_layer_latency_s: float | None = None
    storage_bytes: float | None = None
    storage_bandwidth_bytes_per_s: float | None = None


class Cpu(Record, frozen=True, kw_only=True, tag=False):
    """A CPU.

    Attributes:
        cores: in it.
        threads: in it.
        memory_bytes: at most.
        memory_bandwidth_bytes_per_s: of it.
        link_bandwidth_bytes_per_s: to a GPU, both directions together.
        price_usd: of one.
    """

    SECTION: ClassVar[str] = "cpus"

    cores: int
    threads: int
    memory_bytes: float | None = None
    memory_bandwidth_bytes_per_s: float | None = None
    link_bandwidth_bytes_per_s: float | None = None
    price_usd: float | None = None


class Model(Record, frozen=True, kw_only=True, tag=False):
    """A model's architecture. A count of 0 says that it has no such part.

    Attributes:
        attention: how keys and values are kept: grouped queries, or latent (MLA).
        checkpoint: the dtype of most weights as published.
        layers: with attention of any kind.
        hidden: width.
        heads: of queries.
        kv_heads: of keys and values; without meaning for MLA.
        head_dim: of each; for MLA see the next four.
        q_lora_rank: of MLA's queries.
        kv_lora_rank: of MLA's cache, beside ``qk_rope_head_dim``.
        qk_nope_head_dim: of MLA.
        qk_rope_head_dim: of MLA.
        v_head_dim: of MLA.
        intermediate: of a dense feed-forward block.
        dense_layers: that have one; in a dense model, all.
        experts: routed, in each of the other layers.
        experts_active: routed to, per token.
        experts_shared: that every token takes.
        moe_intermediate: of each expert.
        linear_layers: whose attention keeps a state of fixed size instead of a KV cache.
        linear_key_heads: of these.
        linear_value_heads: of these.
        linear_head_dim: of their keys and values.
        window_layers: that attend to the latest tokens only.
        window_tokens: how many these are.
        sparse_tokens: that sparse attention picks from the cache; 0 where it reads all.
        mtp_layers: that predict more than one token, for speculative decoding.
        vocab: entries of the vocabulary.
        context_tokens_max: that it was trained for.
        parameters: in all, as published.
        parameters_active: per token, as published.
    """

    SECTION: ClassVar[str] = "models"

    attention: Literal["gqa", "mla"]
    checkpoint: Dtype
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    intermediate: int = 0
    dense_layers: int = 0
    experts: int = 0
    experts_active: int = 0
    experts_shared: int = 0
    moe_intermediate: int = 0
    linear_layers: int = 0
    linear_key_heads: int = 0
    linear_value_heads: int = 0
    linear_head_dim: int = 0
    window_layers: int = 0
    window_tokens: int = 0
    sparse_tokens: int = 0
    mtp_layers: int = 0
    context_tokens_max: int = 0
    parameters: float | None = None
    parameters_active: float | None = None


class Engine(Record, frozen=True, kw_only=True, tag=False):
    """A program that serves models.

    Attributes:
        image: that its manifests start.
        memory_share: of an accelerator's memory that it takes by default.
        block_tokens: in a KV block, by default.
        prefill_chunk_tokens: that it prefills in one iteration, by default.
    """

    SECTION: ClassVar[str] = "engines"

    image: str = ""
    memory_share: float = 0.9
    block_tokens: int = 16
    prefill_chunk_tokens: int = 8192


class Storage(Record, frozen=True, kw_only=True, tag=False):
    """A tier that KV blocks can be kept in, fastest first by ``level``.

    Attributes:
        level: G1 to G4 by 1, 2, 3, 3.5 and 4.
        bytes_per_accelerator: room.
        bandwidth_bytes_per_s_per_accelerator: to the accelerator.
        latency_s: of the first byte.
        usd_per_tb: of its medium.
        power_w_per_tb: likewise.
    """

    SECTION: ClassVar[str] = "storage"

    level: float
    bytes_per_accelerator: float
    bandwidth_bytes_per_s_per_accelerator: float
    latency_s: float
    usd_per_tb: float | None = None
    power_w_per_tb: float | None = None


class Network(Record, frozen=True, kw_only=True, tag=False):
    """A switch, NIC or DPU.

    Attributes:
        bandwidth_bytes_per_s: of the whole part, one direction.
        ports: of a switch.
        latency_s: of one hop.
        power_w: of the part.
        price_usd: of the part.
    """

    SECTION: ClassVar[str] = "networks"

    bandwidth_bytes_per_s: float
    ports: int = 1
    latency_s: float | None = None
    power_w: float | None = None
    price_usd: float | None = None


class Site(Record, frozen=True, kw_only=True, tag=False):
    """What a data centre costs besides its systems.

    Attributes:
        usd_per_kwh: electricity.
        pue: power of the utility's over power of the systems.
        idle_power_share: of their all-in power, that systems draw with models loaded and no work.
        facility_usd_per_mw: building, power and cooling plant.
        facility_years: it is written off in.
        system_years: systems are written off in.
        network_share: of the systems' price, for the network between them.
        people_usd_per_mw_year: to run it.
        interest_per_year: on what is not written off yet.
        install_crews: racks that are put in place at one time.
        install_h_per_day: that a crew works.
    """

    SECTION: ClassVar[str] = "sites"

    usd_per_kwh: float
    pue: float
    idle_power_share: float
    facility_usd_per_mw: float
    facility_years: float
    system_years: float
    network_share: float
    people_usd_per_mw_year: float
    interest_per_year: float
    install_crews: int
    install_h_per_day: float


class Projection(Record, frozen=True, kw_only=True, tag=False):
    """How software will use hardware that nobody has measured.

    Attributes:
        speculating: models that are decoded with speculation.
        peak_share: of bandwidth and of FLOP/s that is reached.
        flop_share: of FLOP/s, where it is another.
        layer_latency_scales: on accelerators' floors per layer, by their names; 1 for others.
        replica_gpus_max: that experts are spread over; 0 for all that scale-up links connect.
        new_tokens_per_output: tokens of prompt that no cache holds, for each token of output.
        tokens_per_step: accepted in each step of a model that speculates, one more than which is
            verified.
        lpu_tokens_per_step: the same where LPUs draft.
        memory_share: of an accelerator's memory that holds weights and KV blocks.
        kv_bytes_per_value: of the KV cache.
        declared: numbers of other records that are assumed with it: ``kind name field``.
    """

    SECTION: ClassVar[str] = "projections"

    speculating: tuple[str, ...]
    peak_share: float
    new_tokens_per_output: float
    tokens_per_step: float
    lpu_tokens_per_step: float
    memory_share: float
    kv_bytes_per_value: float
    flop_share: float | None = None
    layer_latency_scales: dict[str, float] = {}
    replica_gpus_max: int = 0
    declared: tuple[str, ...] = ()


class TierLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tier of a price list.

    Attributes:
        tier: its name.
        interactivity_tokens_per_s: that it promises each user.
        usd_per_mtok: of output.
        model: that it sells.
        context_tokens: of its requests.
    """

    tier: str
    interactivity_tokens_per_s: float
    usd_per_mtok: float
    model: str
    context_tokens: int


class TierList(Record, frozen=True, kw_only=True, tag=False):
    """Tiers as somebody sells them.

    Attributes:
        tiers: slowest first.
    """

    SECTION: ClassVar[str] = "tiers"

    tiers: tuple[TierLine, ...]


class ChartPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A point that was read off a public chart.

    Attributes:
        system: a system of the catalogue, or several joined by ``+``.
        x: along the chart.
        y: likewise.
        error: of the reading, as a fraction.
        tier: that the point stands for; empty where the chart has none.
    """

    system: str
    x: float
    y: float
    error: float
    tier: str = ""


class ChartSum(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A figure that is printed with a chart.

    Attributes:
        what: it is, for people.
        system: a system of the catalogue, or several joined by ``+``.
        value: as printed.
        against: the system that a multiple compares with; empty for dollars.
        tier: of a multiple at one tier; of dollars, the one tier that a second system serves,
            while the first serves the others. Empty for all of them.
    """

    what: str
    system: str
    value: float
    against: str = ""
    tier: str = ""


class Chart(Record, frozen=True, kw_only=True, tag=False):
    """What a public chart shows, to compare answers with; no answer is computed from it.

    Attributes:
        x_is: what is along.
        y_is: what is up.
        model: that points of no tier are of.
        points: read off.
        dollars: printed: revenue per GW and year.
        multiples: printed.
        context_tokens: of points of no tier.
        counted_per_output: tokens that the chart counts for each of output, its own included.
    """

    SECTION: ClassVar[str] = "charts"

    x_is: str
    y_is: str
    model: str = ""
    points: tuple[ChartPoint, ...] = ()
    dollars: tuple[ChartSum, ...] = ()
    multiples: tuple[ChartSum, ...] = ()
    context_tokens: int = 0
    counted_per_output: float = 1.0


KINDS: Final[Mapping[str, type[Record]]] = {
    "accelerator": Accelerator,
    "cpu": Cpu,
    "system": System,
    "model": Model,
    "engine": Engine,
    "storage": Storage,
    "network": Network,
    "site": Site,
    "projection": Projection,
    "tiers": TierList,
    "chart": Chart,
}
"""The records by the word that ``kind`` says."""

_HINT: Final = "docs/planning.md has a file that works."


def parse_record(text: str, where: str) -> Record:
    """Read one file.

    Args:
        text: TOML.
        where: the file, for messages.

    Raises:
        ConfigInvalid: not TOML, no known kind, a number outside ``[[figures]]`` or in two of
            them, an unknown or a missing key, or a negative number.
    """
    if len(text) > RECORD_BYTES_MAX:
        raise ConfigInvalid(f"{where} has {len(text)} characters; at most {RECORD_BYTES_MAX}.")
    try:
        table = tomllib.loads(text)
        kind = KINDS.get(str(table.get("kind")))
        if kind is None:
            raise ConfigInvalid(
                f"{where}: kind is {table.get('kind')!r}.", hint=f"It is one of {', '.join(KINDS)}."
            )
        return msgspec.convert(_merged(table, where), kind)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise ConfigInvalid(f"{where} cannot be read: {error}.", hint=_HINT) from error


def _merged(table: dict[str, object], where: str) -> dict[str, object]:
    """Words and figures side by side, and where each figure is from."""
    groups = msgspec.convert(table.pop("figures", []), list[dict[str, object]])
    for key, value in table.items():
        if not _is_words(value):
            raise ConfigInvalid(
                f"{where}: {key} is {value!r}, a number without a source.",
                hint="Move it into [[figures]], which names source, date and confidence.",
            )
    provenance: dict[str, Provenance] = {}
    merged = dict(table)
    for group in groups:
        said = {key: group.pop(key) for key in Provenance.__struct_fields__ if key in group}
        origin = msgspec.convert(said, Provenance)
        for key, value in group.items():
            if key in merged:
                raise ConfigInvalid(f"{where}: {key} is given twice.", hint="Keep one of them.")
            if isinstance(value, int | float) and not 0 <= value < float("inf"):
                raise ConfigInvalid(f"{where}: {key} is {value!r}; it must be 0 or more.")
            merged[key] = value
            provenance[key] = origin
    return merged | {"provenance": provenance}


def _is_words(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(each, str) for each in value)
    )
