"""Names of things, each its own type so that one is not passed for another."""

from __future__ import annotations

from typing import NewType

RequestID = NewType("RequestID", str)
BatchID = NewType("BatchID", str)
FileID = NewType("FileID", str)
WorkerID = NewType("WorkerID", str)
PoolID = NewType("PoolID", str)
TenantID = NewType("TenantID", str)
"""An organisation: the root of a quota tree, and who pays."""
TeamID = NewType("TeamID", str)
EngineerID = NewType("EngineerID", str)
AgentName = NewType("AgentName", str)
RunID = NewType("RunID", str)
LimitID = NewType("LimitID", str)
KeyID = NewType("KeyID", str)
ModelName = NewType("ModelName", str)
PriceID = NewType("PriceID", str)
"""A price book's name, ``@`` and the first 12 hex digits of its text's sha256."""
