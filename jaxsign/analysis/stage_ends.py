"""When do the stages of one run end, at any learning rate? A pure function of its trace, on the device or off it.

`stage_ends` is a sweep's `summary=`: a map of thousands of runs keeps these scalars in place of their traces. The
boundaries t_I to t_IV are those of `jaxsign.find_stages`. That one groups noise by its sign at step 100, which suits
one learning rate; here events of the run itself choose the steps.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxsign.analysis.measures import share

#: Observables that are read.
NEEDS = (
    "value_noise", "query_noise", "key_noise", "query_signal", "key_signal", "sign_agreement", "s11", "s21", "log_s21",
)  # fmt: skip
#: Names of the numbers.
ENDS = (
    "t_I", "t_II", "t_III", "t_IV", "t_key", "t_V", "value_growth", "key_memory", "agreement_start", "votes_followed",
    "signals_opposite", "s11_at_IV", "s21_exponent",
)  # fmt: skip


def stage_ends(run: Mapping[str, Any]) -> dict[str, Any]:
    """The ends of the stages of a run and what holds there, to the resolution of the recorded steps.

        t_I    first t with y_i <v, xi_i> > 0 for all i
        t_II   first t with sign agreement of query and key noise >= .99
        t_III  last change of any sgn(query signal)
        t_IV   first t with mean s_21 < .01
        t_key  first t > t_II at which >= .9 of the opposed key noise has turned
        t_V    first t > max(t_II, t_III) at which >= .9 of the opposed query noise has turned

    Opposed noise has at t_II another sign than the row's query signal in the end; turned noise has that one.

    Args:
      run: {observable: (recorded step, ...)} with the names of `NEEDS`, constants "noise_l1", and the recorded steps as
        "step", known when traced; 0 is the first one.

    Returns:
      {name: ()}, in steps, NaN where a boundary is never reached; and
      value_growth      mean over i of (y_i <v, xi_i>(t_II) - y_i <v, xi_i>(0)) / (2 ||xi_i||_1 t_II): eta, by the law
      key_memory        correlation of key noise at t_I with its start
      agreement_start   sign agreement at t = 0
      votes_followed    share of untied rows whose query signal ends with the sign of the majority of key noise at t_II
      signals_opposite  share of rows with opposite query and key signal at t = 2 max(t_III, t_IV)
      s11_at_IV         mean s_11 at t_IV
      s21_exponent      a of -ln s_21 ~ t^a between t_IV and 2 t_IV

    Examples:
      >>> import jax, jaxsign as js
      >>> task = js.two_layer(js.Problem(n=4, d=50, s=5, m_k=3, m_v=3, n_test=10))
      >>> run = js.train(jax.random.key(0), task, js.Hyper(sigma_p=2.0), js.sign_gd(1e-3), steps=120, record=1)
      >>> ends = stage_ends({**run.trace, **run.constants, "step": run.steps})
      >>> tuple(ends) == ENDS, bool(0 <= ends["t_I"] <= 120)
      (True, True)

    References:
      The stages are the paper's (arXiv 2410.04870); these boundaries are our reconstruction.
    """
    steps = np.asarray(run["step"])
    value, query, key, query_signal, key_signal, agreement, s11, s21, log_s21 = (run[name] for name in NEEDS)
    xp = value.__array_namespace__()
    time = xp.asarray(steps, dtype=value.dtype)

    def first(condition: Any) -> Any:
        """Place of the first record where a condition holds; the last one where it never does."""
        return xp.where(xp.any(condition), xp.argmax(condition), len(steps) - 1)

    def at(condition: Any) -> Any:
        return xp.where(xp.any(condition), time[xp.argmax(condition)], np.nan)

    def mean(x: Any) -> Any:
        """Over all dimensions but the first."""
        return xp.mean(x, axis=tuple(range(1, x.ndim)))

    positive = xp.all(value > 0, axis=tuple(range(1, value.ndim)))
    aligned, decayed = agreement >= 0.99, mean(s21) < 0.01
    t_1, t_2, t_4 = at(positive), at(aligned), at(decayed)
    sign = xp.sign(query_signal)
    changed = xp.any(sign[1:] != sign[:-1], axis=1)
    t_3 = xp.max(xp.where(changed, time[1:], xp.zeros_like(time[1:])), initial=0)

    end, split = sign[-1], first(aligned)
    wanted = end.reshape(-1, *(1,) * (query.ndim - 2))

    def turned(noise: Any) -> Any:
        """Share of the noise opposed at t_II that has turned, at every record."""
        opposed = xp.sign(noise[split]) != wanted
        agrees = (xp.sign(noise) == wanted[None]) & opposed[None]
        count = xp.sum(xp.asarray(opposed, dtype=time.dtype))
        hits = xp.sum(xp.asarray(agrees, dtype=time.dtype), axis=tuple(range(1, noise.ndim)))
        return xp.where(count > 0, hits / xp.maximum(count, xp.ones_like(count)), np.nan)

    t_key = at((turned(key) >= 0.9) & (time > t_2))
    t_5 = at((turned(query) >= 0.9) & (time > t_2) & (time > t_3))
    votes = mean(xp.sign(key[split]))
    later = first(time >= 2 * xp.maximum(t_3, t_4))
    opposite = xp.sign(query_signal[later]) == -xp.sign(key_signal[later])
    near, far = first(decayed), first(time >= 2 * t_4)
    decay = -mean(log_s21)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0/0 = NaN where t_IV is 0 or never reached
        exponent = xp.log(decay[far] / decay[near]) / xp.log(time[far] / time[near])
    return dict(zip(ENDS, (
        t_1, t_2, t_3, t_4, t_key, t_5,
        xp.mean((value[split] - value[0]) / run["noise_l1"]) / (2 * t_2),
        _correlation(key[0], key[first(positive)]), agreement[0], share(xp.sign(votes) == end, votes != 0),
        share(opposite, opposite == opposite), mean(s11)[near], exponent,
    )))  # fmt: skip


def _correlation(x: Any, y: Any) -> Any:
    xp = x.__array_namespace__()
    x, y = x - xp.mean(x), y - xp.mean(y)
    spread = xp.sqrt(xp.sum(x * x) * xp.sum(y * y))
    return xp.sum(x * y) / xp.where(spread > 0, spread, np.nan)
