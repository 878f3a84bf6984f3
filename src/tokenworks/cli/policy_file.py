"""An operator's own policy: Python from a file or a module, loaded at run time."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

import click
import msgspec

from tokenworks.core.errors import ConfigInvalid, InvalidRequest
from tokenworks.dispatch.events import PolicySettings
from tokenworks.dispatch.policies import NAMES
from tokenworks.dispatch.policy import MakePolicy, Policy
from tokenworks.dispatch.settings import parse_policy

MAKER: Final = "make_policy"
"""What a file defines, unless another name follows it."""
METHODS: Final = tuple(name for name in vars(Policy) if not name.startswith("_"))
_PAGE: Final = "docs/policies.md has one that works."

OwnPolicies = dict[str, MakePolicy]
"""Policies that the operator has brought, by name."""

policy_option = click.option(
    "--policy",
    help=f"Who decides: one of {', '.join(NAMES)}; NAME:24 caps the requests on one worker, and "
    "static-split:3/2/1/1/1 says how many workers each tier has.",
)
policy_file_option = click.option(
    "--policy-file",
    metavar="FILE.py|MODULE:NAME",
    help=f"A policy of your own: a Python file that defines {MAKER}(), FILE.py:NAME for another "
    "name, or a module that can be imported. docs/policies.md shows how to write one.",
)


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """Who decides.

    Attributes:
        settings: what the dispatcher is told; None for its own.
        own: policies that the operator has brought.
    """

    settings: PolicySettings | None
    own: OwnPolicies


def chosen(policy: str | None, policy_file: str | None) -> Chosen:
    """What the options say of policies.

    Raises:
        ConfigInvalid: there is no such policy, or the file is wrong.
        InvalidRequest: both are given.
    """
    if policy_file:
        if policy:
            raise InvalidRequest("--policy and --policy-file both say who decides.")
        name, own = load_policy(policy_file)
        return Chosen(settings=PolicySettings(name=name), own=own)
    return Chosen(settings=parse_policy(policy) if policy else None, own={})


def load_policy(where: str) -> tuple[str, OwnPolicies]:
    """A policy of the operator's own.

    It runs in this process, with all that this process may do; it is as trusted as the package.

    Args:
        where: ``FILE.py``, ``FILE.py:NAME`` or ``MODULE:NAME``.

    Returns:
        The name under which settings and journals call it, and how it is made.

    Raises:
        ConfigInvalid: it cannot be read, raises, or is no policy.
    """
    path, colon, wanted = where.partition(":")
    is_file = path.endswith(".py")
    if (colon and not wanted.isidentifier()) or not (colon or is_file):
        raise ConfigInvalid(
            f"--policy-file is {where!r}.", hint="Write FILE.py, FILE.py:NAME or MODULE:NAME."
        )
    wanted = wanted or MAKER
    module = _from_file(Path(path)) if is_file else _from_module(path)
    make = getattr(module, wanted, None)
    if not callable(make):
        raise ConfigInvalid(
            f"{path!r} defines no function {wanted!r}.",
            hint=f"Add `def {wanted}()` that returns a policy. {_PAGE}",
        )
    try:
        policy = make()
    except Exception as error:
        raise ConfigInvalid(
            f"{wanted!r} of {path!r} raises {error!r} instead of returning a policy.", hint=_PAGE
        ) from error
    missing = [name for name in METHODS if not callable(getattr(policy, name, None))]
    if missing:
        raise ConfigInvalid(
            f"What {wanted!r} of {path!r} returns lacks {', '.join(missing)}.",
            hint=f"Derive it from tokenworks.dispatch.policy.Forgetful. {_PAGE}",
        )
    name = Path(path).stem if is_file else path.rpartition(".")[2]
    if name in NAMES:
        raise ConfigInvalid(
            f"{path!r} has the name of a policy that comes with the package, {name!r}.",
            hint="Rename it: what is recorded under that name would mean either.",
        )
    return name, {name: make}


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_own_policy_{path.stem}", path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that its own classes find their module
    try:
        spec.loader.exec_module(module)
    except OSError as error:
        raise ConfigInvalid(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    except Exception as error:
        raise ConfigInvalid(
            f"{str(path)!r} raises {error!r} when it is loaded.",
            hint=f"`python {path}` shows where. {_PAGE}",
        ) from error
    return module


def _from_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ConfigInvalid(
            f"The module {name!r} cannot be imported: {error!r}.",
            hint="It must be installed, or lie on PYTHONPATH.",
        ) from error
