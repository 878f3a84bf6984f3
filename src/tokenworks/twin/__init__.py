"""The modelled world: the same dispatcher, a clock that jumps, engines that only compute."""

__all__ = ["bound", "records"]
