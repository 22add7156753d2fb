"""When does the Gaussian kernel train better than softmax? Claims K1 to K10, one per regime, and their settings."""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsign.analysis.reading import CannotDecide
from jaxsign.analysis.runs import best_rate, manifest, need, one_point
from jaxsign.claims.claim import Claim, Part, PerSeed, all_runs
from jaxsign.claims.setting import Setting

if TYPE_CHECKING:
    import xarray as xr

INF = math.inf
#: The step at which training ends, and the last one of the first of two stages.
END, SWITCH = 1500, 500
#: (embed, d_out) at which W_V is trained alone: H D too small, large enough, far larger; and d_out > d.
SIZES = ((16, 1), (64, 1), (256, 1), (48, 8))
KERNELS = ("softmax", "gaussian")
#: A loss of 0 in 32 bits, and what is called "fitted" and "not fitted", as shares of a zero output's loss.
ZERO, FITTED, LEFT = 1e-6, 0.01, 0.1


def setting_of(ds: "xr.Dataset") -> Setting:
    """What was trained: "value", "query", "two_stage", "all", or "retrieval" where the targets can be learned."""
    definition = manifest(ds)["definition"]
    if definition["problem"].get("targets") == "retrieval":
        return Setting("retrieval")
    names = {None: "all", ("w_v",): "value", ("w_q",): "query", ("w_q", "w_v"): "two_stage"}
    trained = definition.get("trainable")
    return Setting(names.get(None if trained is None else tuple(sorted(trained)), "custom"))


def at(ds: "xr.Dataset", **labels: Any) -> "xr.Dataset":
    """The runs at labelled points of the axes, dims (optimizer, seed, step, ...).

    Raises:
      CannotDecide: if a label is no coordinate, or an axis that is not named has several points.
    """
    for name, label in labels.items():
        labelled = name in ds.coords and ds[name].ndim == 1
        place = np.flatnonzero(ds[name].values == label) if labelled else np.zeros(0, int)
        if not place.size:
            raise CannotDecide(f"needs runs at {name}={label}")
        ds = ds.isel({ds[name].dims[0]: place})
    return one_point(ds)


def at_end(ds: "xr.Dataset", name: str, by: str = "train_ratio") -> "xr.DataArray":
    """A number at the end of training, at each seed's own best learning rate: the one whose `by` ends lowest.

    Args:
      ds: Dataset at one point of every axis.
      name: an observable.
      by: the observable that chooses.

    Returns:
      DataArray over seed; NaN where every learning rate diverged.
    """
    need(ds, name, by)
    end = ds.sel(step=END)
    finished = end[[name, by]].where(end["status"] == 0)
    return best_rate(finished, by=finished[by])[name].drop_vars(["optimizer", "family"], errors="ignore")


def _start(name: str, **labels: Any) -> PerSeed:
    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        need(ds, name)
        return at(ds, **labels)[name].sel(step=0).isel(optimizer=0, drop=True)

    return measure


def _end(name: str, **labels: Any) -> PerSeed:
    return lambda ds: at_end(at(ds, **labels), name)


def _advantage(**labels: Any) -> PerSeed:
    """log10 of the Gaussian kernel's final loss over softmax's, each at its best learning rate, seed by seed."""

    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        gaussian, softmax = (at_end(at(ds, kernel=k, **labels), "train_loss", "train_loss") for k in KERNELS[::-1])
        decades: Any = np.log10(gaussian) - np.log10(softmax)
        return decades

    return measure


def _factor(**labels: Any) -> PerSeed:
    """The same of the final loss over the initial one."""

    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        gaussian, softmax = (_start("train_loss", kernel=k, **labels)(ds) for k in KERNELS[::-1])
        return _advantage(**labels)(ds) - np.log10(gaussian) + np.log10(softmax)

    return measure


def _difference(name: str) -> PerSeed:
    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        gaussian, softmax = (at_end(at(ds, kernel=kernel), name) for kernel in KERNELS[::-1])
        return gaussian - softmax

    return measure


def _gradients(**labels: Any) -> PerSeed:
    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        gaussian, softmax = (_start("gradient_norm", kernel=kernel, **labels)(ds) for kernel in KERNELS[::-1])
        return gaussian / softmax

    return measure


def _law(embed: int, d_out: int) -> Callable[["xr.Dataset"], float]:
    """1 - rank / (N n d_out), the mean share of i.i.d. targets outside what W_V alone can reach."""

    def predict(ds: "xr.Dataset") -> float:
        problem = manifest(ds)["definition"]["problem"]
        rows = problem["samples"] * problem["tokens"]
        reach = min(problem["heads"] * embed, rows) * min(problem["d"], d_out)  # one head, or d_out <= d
        return 1 - reach / (rows * d_out)

    return predict


def _size(embed: int, d_out: int, kernel: str) -> str:
    return f"embed={embed}, d_out={d_out}, {kernel}"


def _about(value: float) -> tuple[float, float]:
    return value - 0.05, value + 0.05


_SMALL: dict[str, Any] = {"d": 4, "init_scale": 0.5, "c_scale": 1.0}
_FEW: dict[str, Any] = {"d": 4, "init_scale": 3.0, "c_scale": 1.0}
_LARGE: dict[str, Any] = {"d": 16, "init_scale": 3.0, "c_scale": 1.0}


def _losses(interval: tuple[float, float], **labels: Any) -> tuple[Part, ...]:
    """The ratio of the final losses, judged, and both of them, reported."""
    return (
        Part("log10 of final loss, Gaussian / softmax", _advantage(**labels), interval),
        Part("final loss ratio, Gaussian", _end("train_ratio", kernel="gaussian", **labels), None),
        Part("final loss ratio, softmax", _end("train_ratio", kernel="softmax", **labels), None),
    )


def _retrieved(samples: int) -> tuple[Part, ...]:
    return tuple(
        Part(f"final {where} loss ratio, {kernel}", _end(name, kernel=kernel, samples=samples), (0.0, bound))
        for kernel in KERNELS
        for where, name, bound in (("training", "train_ratio", 0.05), ("test", "test_ratio", 0.1))
    )


_claim = functools.partial(Claim, runs=all_runs, steps=(0, END), system="kernel_attention")
_SHARES = {(16, 1): 0.5, (64, 1): 0.0, (256, 1): 0.0, (48, 8): 0.5}

CLAIMS: tuple[Claim, ...] = (
    _claim(
        id="K1",
        statement="The least loss that W_V alone can reach is on average 1 - min(HD, Nn) min(d, d_out) / (N n d_out) "
        "of a zero output's, with either kernel",
        source="ours",
        parts=tuple(
            Part(
                f"best loss ratio, {_size(*size, kernel)}",
                _start("best_ratio", embed=size[0], d_out=size[1], kernel=kernel),
                _about(_SHARES[size]),
                _law(*size),
            )
            for size in SIZES
            for kernel in KERNELS
        ),
        judge="mean",
        settings=("value",),
    ),
    _claim(
        id="K2",
        statement="Training W_V alone has a solution of zero loss if HD >= N n and d_out <= d, and none otherwise, "
        "with either kernel",
        source="paper (rank condition), ours (both directions)",
        parts=tuple(
            Part(
                f"best loss ratio, {_size(*size, kernel)}",
                _start("best_ratio", embed=size[0], d_out=size[1], kernel=kernel),
                (0.0, ZERO) if size in ((64, 1), (256, 1)) else (LEFT, 1.0),
            )
            for size in SIZES
            for kernel in KERNELS
        ),
        settings=("value",),
    ),
    _claim(
        id="K3",
        statement="Gradient descent on W_V alone brings the loss below 1 % of a zero output's where the rank "
        "condition holds, and leaves more than 10 % where it fails",
        source="ours",
        parts=tuple(
            Part(
                f"final loss ratio, {_size(*size, kernel)}",
                _end("train_ratio", embed=size[0], d_out=size[1], kernel=kernel),
                (0.0, FITTED) if size == (64, 1) else (LEFT, INF),
            )
            for size in ((16, 1), (64, 1), (48, 8))
            for kernel in KERNELS
        ),
        explanations={
            "value": "a solution of zero loss exists (K2) but is out of reach in 1500 steps: at g = .5 attention is "
            "nearly uniform, and the singular values of S X span a factor of about 2000, of which descent "
            "fits the sample means first"
        },
        settings=("value",),
    ),
    _claim(
        id="K3w",
        statement="The same with an embedding of eight times N n, HD = 256",
        source="ours",
        parts=tuple(
            Part(
                f"final loss ratio, {_size(256, 1, kernel)}",
                _end("train_ratio", embed=256, d_out=1, kernel=kernel),
                (0.0, FITTED),
            )
            for kernel in KERNELS
        ),
        explanations={
            "value": "a wider embedding does not mend it: what is ill-conditioned is attention, nearly uniform at g "
            "= .5, not X; the singular values of S X still span a factor of about 1000"
        },
        settings=("value",),
    ),
    _claim(
        id="K4",
        statement="Regime-dependent: with W_Q trained alone from a small initialisation (g = .5, d = 4), the Gaussian "
        "kernel ends at the lower loss on average",
        source="paper (Gaussian more favourable), ours (regime)",
        parts=_losses((-INF, 0.0), **_SMALL),
        judge="mean",
        explanations={
            "query": "the Gaussian kernel is not normalised and starts at a loss several times softmax's: it removes "
            "the larger share of its own loss (K4f) and still ends higher"
        },
        settings=("query",),
    ),
    _claim(
        id="K4f",
        statement="Regime-dependent: there (g = .5, d = 4) the Gaussian kernel's loss falls by the larger factor on "
        "average",
        source="ours",
        parts=(Part("log10 of final / initial loss, Gaussian / softmax", _factor(**_SMALL), (-INF, 0.0)),),
        judge="mean",
        settings=("query",),
    ),
    _claim(
        id="K5",
        statement="Regime-dependent: with W_Q trained alone from a large initialisation (g = 3, d = 16), softmax ends "
        "at the lower loss on average",
        source="ours",
        parts=_losses((0.0, INF), **_LARGE),
        judge="mean",
        explanations={
            "query": "the Gaussian kernel does not move (K6): its outputs vanish, and the loss of a zero output is "
            "below what softmax reaches from outputs that start several times too large"
        },
        settings=("query",),
    ),
    _claim(
        id="K5f",
        statement="Regime-dependent: there (g = 3, d = 16) softmax's loss falls by the larger factor on average",
        source="ours",
        parts=(Part("log10 of final / initial loss, Gaussian / softmax", _factor(**_LARGE), (0.0, INF)),),
        judge="mean",
        settings=("query",),
    ),
    _claim(
        id="K6",
        statement="There (g = 3, d = 16) the Gaussian kernel's gradient in W_Q vanishes: it starts below .001 of "
        "softmax's",
        source="ours",
        parts=(Part("initial gradient norm, Gaussian / softmax", _gradients(**_LARGE), (0.0, 1e-3), 0.0),),
        settings=("query",),
    ),
    _claim(
        id="K6w",
        statement="Regime-dependent: with W_Q trained alone from a large initialisation of small heads (g = 3, d = "
        "4), the Gaussian kernel ends at the lower loss on average",
        source="ours (found in a pilot of 8 seeds)",
        parts=_losses((-INF, 0.0), **_FEW),
        judge="mean",
        settings=("query",),
    ),
    _claim(
        id="K7",
        statement="With all weights trained, a suitable initialisation (g = .5) and a large embedding (D = 64 >= N "
        "n), gradient descent brings the loss of either kernel below 1 % of a zero output's",
        source="paper (global optimum), ours (1 %)",
        parts=tuple(
            Part(f"final loss ratio, {kernel}", _end("train_ratio", kernel=kernel, d=4, init_scale=0.5), (0.0, FITTED))
            for kernel in KERNELS
        ),
        explanations={
            "all": "some seeds of the Gaussian kernel end above 1 %: at every learning rate of the grid either the "
            "kernel has vanished or 1500 steps are too few"
        },
        settings=("all",),
    ),
    _claim(
        id="K8",
        statement="Regime-dependent: with all weights trained from a large initialisation (g = 3, d = 16), softmax "
        "ends at the lower loss on average",
        source="ours",
        parts=_losses((0.0, INF), d=16, init_scale=3.0),
        judge="mean",
        settings=("all",),
    ),
    _claim(
        id="K9",
        statement="Around the solution of two-stage training (W_V, then W_Q) the Gaussian kernel's landscape in W_Q "
        "is smoother than softmax's on average",
        source="paper (more favourable landscape), ours (measure)",
        steps=(SWITCH, END),
        parts=(
            Part("roughness, Gaussian - softmax", _difference("roughness"), (-INF, 0.0)),
            Part("mean curvature, Gaussian - softmax", _difference("mean_curvature"), None),
            Part("final loss ratio, Gaussian - softmax", _difference("train_ratio"), None),
        ),
        judge="mean",
        explanations={
            "two_stage": "most planes of either kernel are nearly single valleys (median roughness 0 and .01), but the "
            "Gaussian kernel's, whose solutions fit less, have the longer tail (95 % quantile .32 against .05)"
        },
        settings=("two_stage",),
    ),
    _claim(
        id="K10",
        statement="Either kernel learns to retrieve a marked token from 32 samples: trained below 5 % of a zero "
        "output's loss, it stays below 10 % on fresh samples",
        source="ours",
        parts=_retrieved(32),
        explanations={
            "retrieval": "32 samples are too few: 28 of 40 seeds end below both bounds with softmax, 2 with the "
            "Gaussian kernel; with 96 samples 40 and 33 do (K10w)"
        },
        settings=("retrieval",),
    ),
    _claim(
        id="K10w",
        statement="The same from 96 samples",
        source="ours",
        parts=_retrieved(96),
        explanations={
            "retrieval": "all softmax seeds do, some seeds of the Gaussian kernel end above 5 % on the training "
            "samples already"
        },
        settings=("retrieval",),
    ),
)
