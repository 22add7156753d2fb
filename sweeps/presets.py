"""What do the experiments share? Both presets, the optimizers at their learning rates, and the sizes of a smoke test.

Every script beside this file imports it. Functions that a sweep trains with or records are not here but in the script
that uses them: a Dask worker gets those of the script, and cannot import this file.
"""

import dataclasses
from argparse import Namespace

import jax
import optax

import jaxsign as js

#: Of Adam, as in the paper; an eps of 1e-8 is larger than late gradients.
ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-15}
#: At the learning rates of the presets.
OPTIMIZERS = {
    "sign_gd": js.grid(js.sign_gd, learning_rate=1e-4),
    "adam": js.grid(optax.adam, learning_rate=1e-4, **ADAM),
    "gd": js.grid(optax.sgd, learning_rate=0.3),
}


def engine_for(preset: str) -> str:
    """The fastest exact engine for a preset and homogeneous optimizers.

    Disjoint supports close the dynamics on inner products; coordinates that patches share are trained as weights.
    """
    return "feature_space" if preset == "disjoint" else "hybrid"


def tiny(problem: js.Problem) -> js.Problem:
    """A problem at the sizes of a smoke test, with at most 20 test examples."""
    return dataclasses.replace(problem, n=4, d=120, s=6, m_k=4, m_v=4, n_test=min(problem.n_test, 20))


def settings(smoke_test: bool) -> dict[str, tuple[js.Problem, js.Hyper]]:
    """{preset: (problem, hyper)} of both presets; in a smoke test the paper-like one alone, at tiny sizes."""
    if smoke_test:
        problem, hyper = js.presets.paper_like()
        return {"paper_like": (tiny(problem), hyper)}
    return {"paper_like": js.presets.paper_like(), "disjoint": js.presets.disjoint()}


def need_x64(name: str, args: Namespace) -> None:
    """Raises ValueError unless an experiment has the 64-bit floats that it needs, is a smoke test or shows its help."""
    if not (jax.config.jax_enable_x64 or args.help or args.tiny):
        raise ValueError(f"{name} needs 64-bit floats: give --x64")
