"""In which two settings is every claim reported? Both are reconstructed, since the paper states no sizes."""

import dataclasses

from jaxsign.systems.two_layer.problem import Hyper, Problem

__all__ = ["disjoint", "paper_like", "theory"]


def paper_like() -> tuple[Problem, Hyper]:
    """n=20, d=2000, s=40, m_k=m_v=20, sigma_p=2, mu=1, sigma_0=3e-3: sizes that reproduce the published behaviour.

    Reconstructed: the published sources do not state the sizes. Noise supports are drawn independently, so training
    patches share coordinates with each other and with fresh test noise, unlike in the paper's theory.

    Returns:
      (Problem, Hyper).

    Examples:
      >>> paper_like()[0].d
      2000
    """
    return Problem(n=20, d=2000, s=40, m_k=20, m_v=20), Hyper(sigma_p=2.0, mu=1.0, sigma_0=3e-3)


def disjoint() -> tuple[Problem, Hyper]:
    """`paper_like` with disjoint supports and test noise outside every training support: the limit d -> infinity.

    Reconstructed, like `paper_like`. It is not the regime of the paper's theorem, which asks for sigma_p =
    Omega(d^(1/4) n^3): that is an SNR of about 1/(sqrt(d) n^2), 6e-5 at these d and n, and here it is .079.

    Returns:
      (Problem, Hyper).

    Examples:
      >>> disjoint()[0].supports
      'disjoint'
    """
    problem, hyper = paper_like()
    return dataclasses.replace(problem, supports="disjoint", overlap="none"), hyper


def theory() -> tuple[Problem, Hyper]:
    """The old name of `disjoint`, kept for programs that were written with it.

    Returns:
      (Problem, Hyper).

    Examples:
      >>> theory() == disjoint()
      True
    """
    return disjoint()
