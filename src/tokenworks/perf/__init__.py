"""How long engines take: physics as integers of femtoseconds. Pure."""

__all__ = ["calibrated", "fleet_plan", "timing"]
