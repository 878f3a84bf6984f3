from __future__ import annotations

import pytest

from tests.ledger.memory_store import Memory, MemoryStore
from tests.ledger.store_conformance import OpenStore, StoreConformance


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def open_store(self) -> OpenStore:
        memory = Memory()
        return lambda owner: MemoryStore(owner, memory)
