"""How random tests of many steps are run."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

STEPS_PER_RUN = 50


def run_steps(machine: type[RuleBasedStateMachine], steps: int, *, same: bool) -> None:
    """Run a machine for about so many steps; the same ones every time, if wanted."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            # More runs than would do, for some end early.
            max_examples=max(1, steps * 3 // (2 * STEPS_PER_RUN)),
            stateful_step_count=STEPS_PER_RUN,
            derandomize=same,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
