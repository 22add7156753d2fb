"""Which numbers of one run do claims read? Pure functions of its trace, on the device or off it.

`claim_numbers` is a sweep's `summary=`: with `keep_trace=False` thousands of seeds keep these scalars instead of their
traces, and claims are decided from them. The functions take the namespace of their arrays, so that NumPy arrays read
from disk and traced JAX arrays are treated alike.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

#: The step at which noise is grouped by its sign relative to the query signal.
GROUPING_STEP = 100
Run = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Measure:
    """One number of a run.

    Args:
      number: `run -> ()`, where run holds arrays (recorded step, own dimensions), constants, and "step" as an int
        array known when traced.
      needs: names of the variables it reads.
      steps: recorded steps it reads.
    """

    number: Callable[[Run], Any]
    needs: tuple[str, ...]
    steps: tuple[int, ...]


def _np(x: Any) -> Any:
    return x.__array_namespace__()


def at(run: Run, name: str, step: int) -> Any:
    """An observable at one recorded step."""
    return run[name][int(np.flatnonzero(np.asarray(run["step"]) == step)[0])]


def between(run: Run, name: str, low: int, high: int | None = None) -> tuple[np.ndarray, Any]:
    """(steps, values) of an observable on [low, high]; high None: to the end."""
    steps = np.asarray(run["step"])
    place = np.flatnonzero((steps >= low) & (steps <= (steps[-1] if high is None else high)))
    return steps[place], run[name][int(place[0]) : int(place[-1]) + 1]


def slope(x: np.ndarray, y: Any) -> Any:
    """Least-squares slope of y over x; NaN where a value is missing, as after a divergence."""
    centred = np.asarray(x - np.mean(x), dtype=y.dtype)
    return _np(y).sum(y * _np(y).asarray(centred)) / float(np.sum(centred**2))


def share(chosen: Any, among: Any) -> Any:
    """Share of `chosen` among the entries where `among` is true; NaN if there are none."""
    xp = _np(chosen)
    wide = np.float64 if xp.__name__.startswith("numpy") else np.float32  # 19 of 20 must not be less than .95
    count = xp.sum(xp.asarray(among, dtype=wide))
    hits = xp.sum(xp.asarray(chosen & among, dtype=wide))
    return xp.where(count > 0, hits / xp.maximum(count, xp.ones_like(count)), np.nan)


def _mean_at(name: str, step: int) -> Measure:
    return Measure(lambda run: _np(run[name]).mean(at(run, name, step)), (name,), (step,))


def _value_noise_rate(run: Run) -> Any:
    """Slope of mean value noise on [2, 20] over 2 ||xi||_1."""
    steps, noise = between(run, "value_noise", 2, 20)
    xp = _np(noise)
    inner = tuple(range(1, noise.ndim))
    return slope(steps, xp.mean(noise, axis=inner)) / (2 * xp.mean(run["noise_l1"]))


def _key_noise_memory(run: Run) -> Any:
    """Correlation of key noise at t = 2 with t = 0."""
    x, y = at(run, "key_noise", 0), at(run, "key_noise", 2)
    xp = _np(x)
    x, y = x - xp.mean(x), y - xp.mean(y)
    spread = xp.sqrt(xp.sum(x * x) * xp.sum(y * y))
    return xp.minimum(xp.sum(x * y) / xp.where(spread > 0, spread, np.nan), xp.ones_like(spread))  # rounding


def _votes(run: Run) -> Any:
    """Votes of sgn(key noise) of each row at t = 50, for minus against."""
    noise = at(run, "key_noise", 50)
    return _np(noise).sum(_np(noise).sign(noise), axis=tuple(range(1, noise.ndim)))


def _follows(run: Run, sign: Any) -> Any:
    """Whether each row's query signal has this sign at every recorded t >= 150."""
    signal = between(run, "query_signal", 150)[1]
    xp = _np(signal)
    return xp.all(xp.sign(signal) == sign[None], axis=0)


def _vote_followed(margin: int) -> Callable[[Run], Any]:
    def number(run: Run) -> Any:
        votes = _votes(run)
        xp = _np(votes)
        return share(_follows(run, xp.sign(votes)), xp.abs(votes) > margin)

    return number


def _own_start_followed(run: Run) -> Any:
    votes, first = _votes(run), at(run, "query_signal", 0)
    return share(_follows(run, _np(first).sign(first)), votes != 0)


def _tied_rows(run: Run) -> Any:
    votes = _votes(run)
    return share(votes == 0, votes == votes)


def _opposite_signals(run: Run) -> Any:
    query, key = at(run, "query_signal", 200), at(run, "key_signal", 200)
    opposite = _np(query).sign(query) == -_np(key).sign(key)
    return share(opposite, opposite == opposite)


def _s21_exponent(run: Run) -> Any:
    """Exponent a of -ln s_21 ~ t^a on [50, 300]."""
    steps, log_s21 = between(run, "log_s21", 50, 300)
    xp = _np(log_s21)
    return slope(np.log(steps), xp.log(xp.mean(-log_s21, axis=tuple(range(1, log_s21.ndim)))))


def _turned(name: str, step: int) -> Measure:
    """Share of the noise opposed to its query signal at t = 100 that agrees with it at `step`."""

    def number(run: Run) -> Any:
        def agrees(when: int) -> Any:
            noise, signal = at(run, name, when), at(run, "query_signal", when)
            xp = _np(noise)
            return xp.sign(noise) == xp.sign(signal).reshape(-1, *(1,) * (noise.ndim - 1))

        return share(agrees(step), ~agrees(GROUPING_STEP))

    return Measure(number, (name, "query_signal"), (GROUPING_STEP, step))


def _loss_rate(low: int, high: int) -> Callable[[Run], Any]:
    """The local rate -d ln L/dt on [low, high]."""

    def number(run: Run) -> Any:
        steps, loss = between(run, "train_loss", low, high)
        return -slope(steps, _np(loss).log(loss))

    return number


def _late_rate(run: Run) -> Any:
    """Loss rate on [1100, 1500] over 4 min_i ||xi_i||_1."""
    return _loss_rate(1100, 1500)(run) / (4 * _np(run["noise_l1"]).min(run["noise_l1"]))


def _extreme(name: str, sign: int, low: int, high: int) -> Callable[[Run], Any]:
    """Smallest (sign 1) or largest (sign -1) of what was measured on [low, high]."""

    def number(run: Run) -> Any:
        values = between(run, name, low, high)[1]
        xp = _np(values)
        known = xp.where(xp.isnan(values), np.inf, sign * values)
        least = xp.min(known)
        return sign * xp.where(xp.isinf(least), np.nan, least)

    return number


MEASURES: Mapping[str, Measure] = {
    "value_noise_rate": Measure(_value_noise_rate, ("value_noise", "noise_l1"), tuple(range(2, 21))),
    "key_noise_memory": Measure(_key_noise_memory, ("key_noise",), (0, 2)),
    "sign_agreement_0": _mean_at("sign_agreement", 0),
    "sign_agreement_20": _mean_at("sign_agreement", 20),
    "sign_agreement_30": _mean_at("sign_agreement", 30),
    "vote_followed": Measure(_vote_followed(0), ("key_noise", "query_signal"), (50, 150)),
    "clear_vote_followed": Measure(_vote_followed(2), ("key_noise", "query_signal"), (50, 150)),
    "own_start_followed": Measure(_own_start_followed, ("key_noise", "query_signal"), (0, 50, 150)),
    "tied_rows": Measure(_tied_rows, ("key_noise",), (50,)),
    "opposite_signals": Measure(_opposite_signals, ("query_signal", "key_signal"), (200,)),
    "s21_150": _mean_at("s21", 150),
    "s11_150": _mean_at("s11", 150),
    "s21_exponent": Measure(_s21_exponent, ("log_s21",), (50, 300)),
    "key_noise_turned_300": _turned("key_noise", 300),
    "query_noise_turned_500": _turned("query_noise", 500),
    "key_noise_turned_2000": _turned("key_noise", 2000),
    "query_noise_turned_2000": _turned("query_noise", 2000),
    "late_rate": Measure(_late_rate, ("train_loss", "noise_l1"), (1100, 1500)),
    "rate_300": Measure(_loss_rate(250, 350), ("train_loss",), (250, 350)),
    "rate_900": Measure(_loss_rate(850, 950), ("train_loss",), (850, 950)),
    "least_test_error": Measure(_extreme("test_error", 1, 50, 500), ("test_error",), (50, 500)),
    "largest_test_error": Measure(_extreme("test_error", -1, 50, 500), ("test_error",), (50, 500)),
    "test_error_100": _mean_at("test_error", 100),
}


def claim_numbers(run: Run) -> dict[str, Any]:
    """All numbers of a run that its trace can answer: a sweep's `summary=`.

    Args:
      run: {variable: (recorded step, ...)}, constants, and the recorded steps as "step".

    Returns:
      {name of a measure: ()}.

    Examples:
      >>> sorted(claim_numbers({"step": np.array([0, 20]), "sign_agreement": np.array([0.5, 1.0])}))
      ['sign_agreement_0', 'sign_agreement_20']
    """
    recorded = set(np.asarray(run["step"]).tolist())
    return {
        name: measure.number(run)
        for name, measure in MEASURES.items()
        if set(measure.needs) <= set(run) and set(measure.steps) <= recorded
    }
