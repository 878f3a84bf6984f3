"""What to build and what it can earn at most. Pure."""

__all__ = [
    "assumptions",
    "certificate",
    "earnings",
    "fleet_plan",
    "fluid_bound",
    "fluid_inputs",
    "fluid_program",
    "frontier",
    "keynote",
    "mix",
    "mix_assumptions",
    "mix_cost",
    "mix_inputs",
    "mix_limits",
    "mix_measured",
    "mix_offers",
    "mix_program",
    "mix_question",
    "mix_sweeps",
    "projection",
]
