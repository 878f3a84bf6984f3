"""What to build and what it can earn at most. Pure."""

__all__ = [
    "certificate",
    "earnings",
    "fleet_plan",
    "fluid_bound",
    "fluid_inputs",
    "fluid_program",
    "frontier",
    "keynote",
    "projection",
]
