"""Which systems are there to train? One place each: problem, data, model and task side by side."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

Build = TypeVar("Build", bound=Callable[..., Any])


class System(NamedTuple):
    """A stored sweep of a system is rebuilt from these.

    Args:
      build: `(problem, ...) -> Task`.
      problem: its class of problems.
      hyper: its class of numbers.
    """

    build: Callable[..., Any]
    problem: type
    hyper: type


_SYSTEMS: dict[str, System] = {}


def system(problem: type, hyper: type) -> Callable[[Build], Build]:
    """Registers the factory of a system's tasks under its public name.

    Args:
      problem: its class of problems.
      hyper: its class of numbers.
    """

    def register(build: Build) -> Build:
        _SYSTEMS[f"jaxsign.{build.__name__}"] = System(build, problem, hyper)
        return build

    return register


def by_public_name() -> dict[str, System]:
    """{public name: System} of every system, for readers of stored sweeps, which import no particular one.

    Examples:
      >>> import jaxsign
      >>> sorted(by_public_name())[:3]
      ['jaxsign.deep_transformer', 'jaxsign.kernel_attention', 'jaxsign.linear_attention']
    """
    return dict(_SYSTEMS)
