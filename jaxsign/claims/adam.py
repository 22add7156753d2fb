"""When does Adam train as SignGD does? Claims on its rates over the betas, on eps, and on Signum's momentum.

The intervals follow from the laws of `jaxsign.theory` and were written before the first run of sweeps/adam.py.
"""

import functools
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsign import theory
from jaxsign.analysis.reading import CannotDecide
from jaxsign.analysis.runs import need, numbers_of, select
from jaxsign.analysis.stages import flipped
from jaxsign.claims.claim import Claim, Part
from jaxsign.claims.dynamics import problem_of

if TYPE_CHECKING:
    import xarray as xr

if TYPE_CHECKING:
    pass

INF = math.inf
BETAS = (0.0, 0.5, 0.9, 0.99, 0.999)
#: Betas for which |m|/sqrt(v) has a bound, b1^2 < b2, and (0, 0), where it is 1.
BOUNDED = tuple((b1, b2) for b1 in BETAS for b2 in BETAS if b1 * b1 < b2 or b1 == b2 == 0)
#: Those whose late rate is reached in `late_window`: at (.999, .999) m forgets, relative to the gradient, in
#: 1/(ln(1/b1) - r) = 2000 steps, and scalar descent is at half of the law there.
SETTLED = tuple(pair for pair in BOUNDED if pair != (0.999, 0.999))
#: Steps between which local rates are read to find where Adam departs from SignGD.
STRETCHES = (*range(100, 1001, 50), *range(1100, 2001, 100))
#: Steps between which the sublinear law is compared with the loss, from one memory of b2 = .999 to ten.
MEMORIES = (1000, 2000, 3000, 5000, 10000)


def late_window(b2: float) -> tuple[int, int]:
    """Steps on which a late rate is read: C1's for SignGD, and five to ten memories of the second moment.

    Examples:
      >>> late_window(0.9), late_window(0.999)
      ((1100, 1500), (5000, 10000))
    """
    memory = round(1 / (1 - b2))
    return max(1100, 5 * memory), max(1500, 10 * memory)


def rate(runs: "xr.Dataset", low: int, high: int) -> "xr.DataArray":
    """Mean local rate -d ln L/dt between two recorded steps, NaN where a loss is NaN or 0."""
    need(runs, "train_loss")
    first, last = (runs["train_loss"].sel(step=step, drop=True) for step in (low, high))
    log_ratio: Any = np.log((first / last.where(last > 0)).where(first > 0))
    return log_ratio / (high - low)


def late_law(runs: "xr.Dataset", b1: float = 0.0, b2: float = 0.0) -> "xr.DataArray":
    """The predicted late rate of every seed, dims (seed,)."""
    import xarray as xr

    need(runs, "noise_l1")
    norms = runs["noise_l1"].transpose("seed", ...).values.reshape(runs.sizes["seed"], -1)
    law = theory.adam_loss_rate(1e-4, norms, b1, b2)
    return xr.DataArray(law, dims="seed", coords={"seed": runs["seed"]})


def _eta(ds: "xr.Dataset") -> None:
    if "learning_rate" not in ds.coords or not np.allclose(numbers_of(ds, "learning_rate"), 1e-4, rtol=1e-9):
        raise CannotDecide("needs the learning rate 1e-4 for every optimizer")


def _worst(numbers: "list[xr.DataArray]") -> "xr.DataArray":
    """The largest of several numbers of each seed; NaN where one is."""
    import xarray as xr

    return xr.concat(numbers, "case").max("case", skipna=False)


def _least(numbers: "list[xr.DataArray]") -> "xr.DataArray":
    """The smallest of several numbers of each seed; NaN where one is."""
    return -_worst([-number for number in numbers])


def _relative_late_rate(ds: "xr.Dataset", b2: float) -> "xr.DataArray":
    """Rate on [5/(1-b2), 10/(1-b2)] over ln(1/b2)/2, b1 = .9."""
    memory = round(1 / (1 - b2))
    return rate(select(ds, "adam", b1=0.9, b2=b2), 5 * memory, 10 * memory) / theory.adam_late_loss_rate(b2)


def _predicted_late_rate(ds: "xr.Dataset", b2: float) -> float:
    """The late law, times the ratio of the sublinear law on these steps to its limit."""
    limit, memory = theory.adam_late_loss_rate(b2), round(1 / (1 - b2))
    on_the_way = np.mean(theory.adam_sublinear_rate(np.linspace(5 * memory, 10 * memory, 1001), b2))
    return float(late_law(select(ds, "adam", b1=0.9, b2=b2), 0.9, b2).mean() * on_the_way) / limit**2


def _late_rate_miss(ds: "xr.Dataset", points: tuple[tuple[float, float], ...]) -> "xr.DataArray":
    """Largest |late rate / law - 1| over these betas."""
    _eta(ds)

    def miss(b1: float, b2: float) -> "xr.DataArray":
        runs = select(ds, "adam", b1=b1, b2=b2)
        return abs(rate(runs, *late_window(b2)) / late_law(runs, b1, b2) - 1)

    return _worst([miss(b1, b2) for b1, b2 in points])


def _sublinear_miss(ds: "xr.Dataset") -> "xr.DataArray":
    """Largest |fall of ln L / fall by the sublinear law - 1| over stretches from one memory on, b1=.9, b2=.999."""
    runs = select(ds, "adam", b1=0.9, b2=0.999)

    def miss(low: int, high: int) -> "xr.DataArray":
        law = np.mean(theory.adam_sublinear_rate(np.linspace(low, high, 1001), 0.999))
        return abs(rate(runs, low, high) / law - 1)

    return _worst([miss(low, high) for low, high in itertools.pairwise(MEMORIES)])


def rate_ratio(ds: "xr.Dataset", b1: float, b2: float, until: int = 2000) -> "xr.DataArray":
    """Local rate of Adam over SignGD's, dims (seed, step), step the middle of each of STRETCHES."""
    import xarray as xr

    adam, sign = select(ds, "adam", b1=b1, b2=b2), select(ds, "sign_gd")
    pairs = [(low, high) for low, high in itertools.pairwise(STRETCHES) if high <= until]
    table = xr.concat([rate(adam, *pair) / rate(sign, *pair) for pair in pairs], "step")
    return table.assign_coords(step=[(low + high) / 2 for low, high in pairs]).transpose("seed", "step")


def departure(ds: "xr.Dataset", b1: float, b2: float) -> "xr.DataArray":
    """First step at which Adam's local rate is below half of SignGD's; NaN if never up to 2000, dims (seed,)."""
    below = rate_ratio(ds, b1, b2) < 0.5
    return below["step"].where(below).min("step")


def _predicted_departure(ds: "xr.Dataset", b2: float) -> float:
    """Where the sublinear law passes half of SignGD's late rate."""
    t = np.linspace(1, 20000, 20000)
    half = float(late_law(select(ds, "sign_gd")).mean()) / 2
    return float(t[np.argmax(theory.adam_sublinear_rate(t, b2) < half)])


def _turned(ds: "xr.Dataset", name: str, step: int, family: str, *points: dict[str, float]) -> "list[xr.DataArray]":
    """Share of opposed noise that has turned, of several optimizers."""
    return [flipped(select(ds, family, **numbers), name, step) for numbers in points]


def _betas(*values: float) -> list[dict[str, float]]:
    return [{"b1": 0.9, "b2": b2} for b2 in values]


def _momenta(*values: float) -> list[dict[str, float]]:
    return [{"beta": beta} for beta in values]


def value_slope(ds: "xr.Dataset", b2: float, eps: float) -> "xr.DataArray":
    """Slope of mean value noise on [2, 20] over the one with eps = 1e-15, dims (seed,)."""

    def rise(eps: float) -> "xr.DataArray":
        runs = select(ds, "adam", b1=0.9, b2=b2, eps=eps)
        need(runs, "value_noise")
        noise = runs["value_noise"].mean("sample")
        return noise.sel(step=20, drop=True) - noise.sel(step=2, drop=True)

    return rise(eps) / rise(1e-15)


def value_slope_law(ds: "xr.Dataset", eps: float) -> float:
    """The share of the value layer's first steps left by eps: E |xi| g/(g + eps) / E |xi| with g = |xi|/(2 n m_v)."""
    problem, hyper = problem_of(ds)
    x = np.linspace(0, 8, 4001) * float(hyper.sigma_p)
    weight = np.exp(-((x / float(hyper.sigma_p)) ** 2) / 2) * x
    g = x / (2 * problem.n * problem.m_v)
    return float(np.sum(weight * g / (g + eps)) / np.sum(weight))


def _slope_miss(ds: "xr.Dataset", eps: float) -> "xr.DataArray":
    return value_slope(ds, 0.999, eps) - value_slope_law(ds, eps)


def _eps_rate(ds: "xr.Dataset", b2: float) -> "xr.DataArray":
    """Late rate with eps = 1e-8 over the one with 1e-15."""
    small, large = (rate(select(ds, "adam", b1=0.9, b2=b2, eps=eps), 1100, 1500) for eps in (1e-15, 1e-8))
    return large / small


def _signum_rate_miss(ds: "xr.Dataset") -> "xr.DataArray":
    """Largest |late rate of Signum / 4 eta min ||xi||_1 - 1|, beta in .5, .9, .99."""
    _eta(ds)
    runs = [select(ds, "signum", beta=beta) for beta in (0.5, 0.9, 0.99)]
    return _worst([abs(rate(one, 1100, 1500) / late_law(one) - 1) for one in runs])


_ours = functools.partial(Claim, source="ours", system="two_layer_updates", settings=("disjoint",))

CLAIMS: tuple[Claim, ...] = (
    *(
        _ours(
            id=name,
            statement=f"Beyond 5/(1-b2) steps Adam's loss falls linearly, too, at the rate ln(1/b2)/2: b2 = {b2:g}",
            steps=(5 * memory, 10 * memory),
            parts=(
                Part(
                    "rate on [5, 10]/(1-b2) over ln(1/b2)/2",
                    functools.partial(_relative_late_rate, b2=b2),
                    (0.95, 1.05),
                    functools.partial(_predicted_late_rate, b2=b2),
                ),
            ),
            explanations={"disjoint": why},
        )
        for name, b2, memory, why in (
            ("A2'", 0.999, 1000, ""),
            (
                "A2'f",
                0.99,
                100,
                "500 steps are early for the model: s_11 still falls, from .23 at t=500 to .06 at t=1000, and adds to "
                "y F beside the steps of the values; on [1100,1500] the rate is the law's",
            ),
        )
    ),
    Claim(
        id="A3m",
        statement="With b1 = .9 Adam's negative query noise stays negative for b2 >= .9 and turns for b2 <= .5, in 64 "
        "bit",
        source="paper (b2=.999), ours",
        steps=(100, 2000),
        parts=(
            Part(
                "turned query noise at t=2000, largest of b2 = .9, .99, .999",
                lambda ds: _worst(_turned(ds, "query_noise", 2000, "adam", *_betas(0.9, 0.99, 0.999))),
                (0.0, 0.1),
                0.0,
            ),
            Part(
                "the same, smaller of b2 = 0, .5",
                lambda ds: _least(_turned(ds, "query_noise", 2000, "adam", *_betas(0.0, 0.5))),
                (0.9, 1.0),
                1.0,
            ),
            Part(
                "turned key noise, smallest of the five",
                lambda ds: _least(_turned(ds, "key_noise", 2000, "adam", *_betas(*BETAS))),
                None,
            ),
        ),
        explanations={
            "disjoint": "it turns for b2 <= .5 with b1 <= .5 (figure, panel g): with b1 = .9 the first moment keeps "
            "its old sign, since the gradient falls faster than .9^t, and for b1 > b2 steps have no bound besides"
        },
        system="two_layer_updates",
        settings=("disjoint",),
    ),
    *(
        _ours(
            id=name,
            statement="Late, Adam's loss falls at the fixed point of its step size, "
            f"for b1 < b2 and b1 = b2 < .999: {which}",
            steps=steps,
            parts=(
                Part(
                    f"largest |rate / law - 1|, {len(points)} pairs of betas",
                    functools.partial(_late_rate_miss, points=points),
                    (0.0, 0.1),
                    0.0,
                ),
            ),
            explanations={"disjoint": why},
        )
        for name, which, steps, points, why in (
            (
                "V1",
                "b2 <= .99",
                (1100, 1500),
                tuple(pair for pair in SETTLED if pair[1] < 0.999),
                "at (.99, .99) alone, where the rate still swings about the law: .7 of it on [1100,1500], 1.0 on "
                "[1800,2000]; the nine other pairs are within .04 (figure, panel f)",
            ),
            ("V1l", "b2 = .999", (5000, 10000), tuple(pair for pair in SETTLED if pair[1] == 0.999), ""),
        )
    ),
    _ours(
        id="V2",
        statement="From 1/(1-b2) steps on Adam's loss (b2=.999) follows the sublinear law and its crossover to the "
        "late rate",
        steps=MEMORIES,
        parts=(Part("largest |fall of ln L / law - 1|, four stretches", _sublinear_miss, (0.0, 0.1), 0.0),),
    ),
    _ours(
        id="V3",
        statement="Adam leaves SignGD as its loss begins to fall, before .5/(1-b2) steps at b2=.999, and never for b2 "
        "<= .9",
        steps=STRETCHES,
        parts=(
            Part(
                "first step with rate(Adam) < rate(SignGD)/2, b2=.999",
                lambda ds: departure(ds, 0.9, 0.999),
                (0.0, 500.0),
                lambda ds: _predicted_departure(ds, 0.999),
            ),
            Part(
                "the same, b2=.99",
                lambda ds: departure(ds, 0.9, 0.99),
                None,
                lambda ds: _predicted_departure(ds, 0.99),
            ),
            Part(
                "smallest rate(Adam) / rate(SignGD) on [100,1000], b2 = 0, .5, .9",
                lambda ds: _least([rate_ratio(ds, 0.9, b2, 1000).min("step", skipna=False) for b2 in (0.0, 0.5, 0.9)]),
                (0.5, INF),
            ),
        ),
        explanations={
            "disjoint": "the first part is inside; of the last, b2 = .9 is, at .93 or more; with b1 = .9 and b2 <= .5 "
            "steps have no bound and the loss jumps up once; with b1 <= b2 <= .9 none departs (figure, panel i)"
        },
    ),
    _ours(
        id="V4",
        statement="eps slows the value layer when it is as large as its gradients, xi/(2 n m_v)",
        steps=(2, 20),
        settings=("paper_like",),
        judge="mean",
        parts=tuple(
            Part(
                f"slope of value noise with eps={eps:g} over that with 1e-15, minus law",
                functools.partial(_slope_miss, eps=eps),
                (-0.1, 0.1),
                0.0,
            )
            for eps in (1e-3, 1e-2)
        ),
    ),
    _ours(
        id="V5",
        statement="eps = 1e-8 at least halves the late rate for b2 = .9, which forgets, and leaves it for b2 = .999",
        steps=(1100, 1500),
        settings=("paper_like",),
        judge="mean",
        parts=(
            Part("rate on [1100,1500], eps=1e-8 over 1e-15, b2=.9", lambda ds: _eps_rate(ds, 0.9), (-INF, 0.5)),
            Part("the same, b2=.999", lambda ds: _eps_rate(ds, 0.999), (0.9, 1.1), 1.0),
        ),
    ),
    _ours(
        id="V6",
        statement="Signum's late rate is SignGD's, 4 eta min_i ||xi_i||_1, whatever its momentum",
        steps=(1100, 1500),
        parts=(Part("largest |rate on [1100,1500] / law - 1|, three momenta", _signum_rate_miss, (0.0, 0.1), 0.0),),
        explanations={
            "disjoint": "one seed of 36, at beta = .99: the signal query of one example still attends to the signal, "
            "s_11 = .95, so that its y F grows more slowly; at .999, not judged, it is .56 of the law"
        },
    ),
    _ours(
        id="V7",
        statement="Signum's negative query noise turns for beta <= .5 and stays for beta >= .9: momentum keeps the "
        "old sign where the gradient falls faster than beta^t",
        steps=(100, 600),
        parts=(
            Part(
                "turned query noise at t=600, largest of beta = .9, .99, .999",
                lambda ds: _worst(_turned(ds, "query_noise", 600, "signum", *_momenta(0.9, 0.99, 0.999))),
                (0.0, 0.1),
                0.0,
            ),
            Part(
                "the same, smaller of beta = 0, .5",
                lambda ds: _least(_turned(ds, "query_noise", 600, "signum", *_momenta(0.0, 0.5))),
                (0.9, 1.0),
                1.0,
            ),
        ),
        explanations={
            "disjoint": "at beta = .9, where the gradient falls about as fast as .9^t, a quarter turns; at .99 and "
            ".999 no query noise changes its sign: what counts as turned there are rows whose query signal did after "
            "t=100"
        },
    ),
)
