"""The modelled world: the same dispatcher, a clock that jumps, engines that only compute."""

__all__ = ["clock", "driver", "journal", "kv_cache", "network", "records", "workers"]
