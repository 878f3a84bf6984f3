"""How long engines take: physics as integers of femtoseconds. Pure."""

__all__ = ["fleet_plan", "timing"]
