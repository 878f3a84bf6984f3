from __future__ import annotations

import pytest

from tests.ledger.memory_store import MemoryStore
from tests.ledger.store_conformance import StoreConformance
from tokenworks.ledger.store_port import LedgerStore


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def store(self) -> LedgerStore:
        return MemoryStore()
