"""Whether spans and metrics leave the factory, and what of them: settings and standard variables.

It imports no OpenTelemetry: a factory that exports nothing needs none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from tokenworks.core.errors import ConfigInvalid

ENDPOINTS: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)
"""Variables of OpenTelemetry's that say where to; any of them turns export on."""

CONTENT: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
DISABLED: Final = "OTEL_SDK_DISABLED"
PROTOCOL: Final = "OTEL_EXPORTER_OTLP_PROTOCOL"

_ON_SPANS: Final = frozenset({"true", "span_only", "span_and_event"})


class Telemetry(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be exported.

    Attributes:
        endpoint: where to; None for what the variables say.
        content: prompts and answers, too.
    """

    endpoint: str | None
    content: bool


def telemetry_of(otlp: str, content: bool, environment: Mapping[str, str]) -> Telemetry | None:  # noqa: FBT001
    """What settings and variables ask for; None for nothing, which is the default.

    Args:
        otlp: the setting: where to; empty if it is not set.
        content: the setting: whether prompts and answers are to be exported.
        environment: the process's variables.

    Raises:
        ConfigInvalid: they ask for a protocol other than HTTP.
    """
    named = any(environment.get(name) for name in ENDPOINTS)
    off = environment.get(DISABLED, "").strip().lower() == "true"
    if off or not (otlp or named):
        return None
    protocol = environment.get(PROTOCOL) or "http/protobuf"
    if protocol != "http/protobuf":
        raise ConfigInvalid(
            f"{PROTOCOL} is {protocol!r}; spans and metrics are exported by http/protobuf alone.",
            hint="Unset it, and name the collector's HTTP port, which is 4318 as a rule.",
        )
    wish = environment.get(CONTENT, "").strip().lower()
    return Telemetry(endpoint=otlp or None, content=content or wish in _ON_SPANS)
