"""Which systems are there to train? One place each: problem, data, model and task side by side."""

from collections.abc import Callable
from typing import Any, NamedTuple


class System(NamedTuple):
    """The three public names that a stored sweep of a system is rebuilt from.

    Args:
      build: `(problem, ...) -> Task`.
      problem: its class of problems.
      hyper: its class of numbers.
    """

    build: Callable[..., Any]
    problem: type
    hyper: type


def by_public_name() -> dict[str, System]:
    """{public name: System} of every system, for readers of stored sweeps, which import no particular one.

    Examples:
      >>> sorted(by_public_name())[:3]
      ['jaxsign.deep_transformer', 'jaxsign.kernel_attention', 'jaxsign.linear_attention']
    """
    from jaxsign.systems.deep_transformer import DeepProblem, deep_transformer
    from jaxsign.systems.digits.problem import DigitsHyper, DigitsProblem
    from jaxsign.systems.digits.task import noisy_digits
    from jaxsign.systems.kernels import KernelHyper, KernelProblem, kernel_attention
    from jaxsign.systems.linear_attention import RegressionHyper, RegressionProblem, linear_attention
    from jaxsign.systems.residual import ResidualHyper, ResidualProblem, residual_attention
    from jaxsign.systems.two_layer.engines import two_layer
    from jaxsign.systems.two_layer.problem import Hyper, Problem
    from jaxsign.systems.two_layer.with_curvature import two_layer_curvature
    from jaxsign.systems.two_layer.with_updates import two_layer_updates

    return {
        "jaxsign.two_layer": System(two_layer, Problem, Hyper),
        "jaxsign.two_layer_curvature": System(two_layer_curvature, Problem, Hyper),
        "jaxsign.two_layer_updates": System(two_layer_updates, Problem, Hyper),
        "jaxsign.linear_attention": System(linear_attention, RegressionProblem, RegressionHyper),
        "jaxsign.kernel_attention": System(kernel_attention, KernelProblem, KernelHyper),
        "jaxsign.residual_attention": System(residual_attention, ResidualProblem, ResidualHyper),
        "jaxsign.deep_transformer": System(deep_transformer, DeepProblem, Hyper),
        "jaxsign.noisy_digits": System(noisy_digits, DigitsProblem, DigitsHyper),
    }
