"""Do SignGD and Adam need cleaner data on real sentences? Claims X1 to X17, TS1 to TS3 and XK1 to XK3."""

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsign.analysis.reading import CannotDecide
from jaxsign.analysis.runs import best_rate, drop_labels, manifest, need, optimizers_of
from jaxsign.claims.claim import Claim, Part, PerSeed, above, at_level, mean_claim
from jaxsign.claims.setting import Setting

if TYPE_CHECKING:
    import xarray as xr

SYSTEM = "noisy_text"
#: Training loss, in nat, at which optimizers are compared.
LEVEL = 0.1
#: What is compared: {name: (family of the sweep, its keywords)}.
OPTIMIZERS: dict[str, tuple[str, dict[str, float]]] = {
    "sign_gd": ("sign_gd", {}),
    "adam": ("adam", {}),
    "momentum": ("gd", {"momentum": 0.9}),
    "gd": ("gd", {"momentum": 0.0}),
}
NAMES = {"sign_gd": "SignGD", "adam": "Adam", "momentum": "GD with momentum", "gd": "GD"}
#: Errors that count as equal, and differences that do not: the trial and the pilot had .06 at K = 12, .03 to .06 at 48.
CLOSE, APART, LESS_APART = (-0.03, 0.03), (0.03, 0.12), (0.02, 0.12)
READ = ("val_error", "test_error", "test_loss", "injected_attention", "test_injected_attention")
_SIZES = {
    "n_train": 500, "vocabulary": 2000, "held_out": "none", "injected": 0, "embedding_noise": 0.0,
    "test_injected": None, "injected_law": "uniform",
}  # fmt: skip


def setting_of(ds: "xr.Dataset") -> Setting:
    """Model, training sentences, what differs, and axes, such as "attention, 500 sentences over kernel, injected"."""
    definition = manifest(ds)["definition"]
    problem = definition["problem"]
    swept = [str(dim) for dim in ds["status"].dims if dim not in ("optimizer", "seed") and ds.sizes[dim] > 1]
    model = {"attention": "attention", "two_layer": "two-layer"}[problem["model"]]
    kernel = problem["kernel"]
    if "kernel" not in swept and kernel != "softmax":
        model = f"{kernel} {model}"
    count = "sentences" if "n_train" in swept else f"{problem['n_train']} sentences"
    words = {
        "injected": "K", "vocabulary": "V", "held_out": "tested on", "embedding_noise": "embedding noise",
        "test_injected": "test K", "injected_law": "words by",
    }  # fmt: skip
    changes = [
        f"{words[name]}{' ' if name in ('held_out', 'injected_law') else '='}{problem[name]}"
        for name, usual in _SIZES.items()
        if name in words and name not in swept and problem.get(name, usual) != usual
    ]
    return Setting(count, model=(model,), changes=tuple(changes), swept=tuple(swept))


def compared(ds: "xr.Dataset", name: str, level: float = LEVEL) -> "xr.Dataset":
    """The runs of an optimizer where the training loss first falls to a level, at every learning rate.

    Args:
      ds: Dataset of a sweep.
      name: "sign_gd", "adam", "momentum" or "gd".
      level: captured training loss, in nat.

    Returns:
      Dataset (axes, optimizer, seed) of errors, losses and attention; NaN where a run never gets there or leaps over
      it.

    Raises:
      CannotDecide: if there are no finished runs of the optimizer.
    """
    need(ds, "train_loss", *READ)
    family, keywords = OPTIMIZERS[name]
    runs = ds.isel(optimizer=optimizers_of(ds, family, **keywords))
    if not bool((runs["status"] == 0).any()):
        raise CannotDecide(f"needs runs of {name}")
    return at_level(runs, level, *READ, leaps=True)[list(READ)].where(runs["status"] == 0)


def tuned(ds: "xr.Dataset", name: str, level: float = LEVEL) -> "xr.Dataset":
    """The runs of an optimizer at the learning rate whose mean validation error over the seeds is the smallest.

    All optimizers have as many rates. The choice looks at validation sentences alone, where the training loss first
    falls to the level: a rate counts only if every seed gets there with it, none by a leap over it.

    Args:
      ds: Dataset of a sweep.
      name: as in `compared`.
      level: captured training loss, in nat.

    Returns:
      Dataset (axes, seed) with the chosen learning_rate as a coordinate; NaN where no rate counts.
    """
    runs = compared(ds, name, level)
    score = runs["val_error"].mean("seed", skipna=False)
    return best_rate(runs, by=score).where(score.notnull().any("optimizer"))


def at_the_edge(ds: "xr.Dataset", name: str, level: float = LEVEL) -> "xr.DataArray":
    """Whether the chosen learning rate is the smallest or the largest of its grid, over the axes."""
    family, keywords = OPTIMIZERS[name]
    grid = ds["learning_rate"].values[optimizers_of(ds, family, **keywords)].astype(float)
    rate = tuned(ds, name, level)["learning_rate"].astype(float)
    return (rate <= grid.min()) | (rate >= grid.max())


def _number(ds: "xr.Dataset", name: str, variable: str, level: float, **at: Any) -> "xr.DataArray":
    """A variable of an optimizer at its tuned rate, one number a seed."""
    for axis, value in at.items():
        if axis not in ds.dims or value not in ds[axis].values.tolist():
            raise CannotDecide(f"needs {axis}={value}")
    ds = ds.sel(at)
    long = [dim for dim in ds["status"].dims if dim not in ("optimizer", "seed") and ds.sizes[dim] > 1]
    if long:
        raise CannotDecide(f"needs one point of every other axis, got several on {long}")
    single = [dim for dim in ds["status"].dims if dim not in ("optimizer", "seed")]
    values = tuned(ds.squeeze(single), name, level)[variable]
    if bool(values.isnull().all()):
        raise CannotDecide(f"no learning rate brings every seed of {name} to training loss {level:g}")
    return drop_labels(values)


def gap(name: str, other: str = "gd", variable: str = "test_error", level: float = LEVEL, **at: Any) -> PerSeed:
    """A measure: a number of one optimizer minus that of another one on the same seeds, each at its tuned rate."""
    return lambda ds: _number(ds, name, variable, level, **at) - _number(ds, other, variable, level, **at)


def _more(name: str, other: str, at: dict[str, Any], than: dict[str, Any]) -> PerSeed:
    """How much larger the gap of two optimizers is at one point than at another one."""
    return lambda ds: gap(name, other, **at)(ds) - gap(name, other, **than)(ds)


def _change(name: str, variable: str, at: dict[str, Any], than: dict[str, Any]) -> PerSeed:
    """How much larger a number of one optimizer is at one point than at another one."""
    return lambda ds: _number(ds, name, variable, LEVEL, **at) - _number(ds, name, variable, LEVEL, **than)


def _memorised(name: str, variable: str, **at: Any) -> PerSeed:
    """Attention on injected tokens minus their share of a sentence's tokens, which uniform attention gives them."""
    return lambda ds: _number(ds, name, variable, LEVEL, **at) - _share(ds, **at)


def _share(ds: "xr.Dataset", **at: Any) -> "xr.DataArray":
    need(ds, "injected_share", steps=False)
    share = ds["injected_share"].sel(at)
    return drop_labels(share.isel(optimizer=0) if "optimizer" in share.dims else share)


def _end_loss(kernel: str, injected: int) -> PerSeed:
    """log10 of GD's training loss at the end, at its best rate: a kernel's minus softmax's, on the same seeds."""

    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        need(ds, "train_loss")
        runs = ds.sel(injected=injected).isel(optimizer=optimizers_of(ds, "gd", momentum=0.0), step=-1)
        loss = runs[["train_loss"]].where(runs["status"] == 0).map(np.log10)
        best = best_rate(loss, by=loss["train_loss"].mean("seed", skipna=False))["train_loss"]
        return drop_labels(best.sel(kernel=kernel)) - drop_labels(best.sel(kernel="softmax"))

    return measure


def _gaps(interval: tuple[float, float], words: str = "", **at: Any) -> tuple[Part, ...]:
    """Errors of SignGD and Adam above those of GD without and with momentum; the other readings are not judged."""
    judged = tuple(
        Part(f"error({NAMES[name]}) - error({NAMES[other]}){words}", gap(name, other, **at), interval)
        for name in ("sign_gd", "adam")
        for other in ("gd", "momentum")
    )
    beside = tuple(
        Part(f"{label}(SignGD) - {label}(GD){words}{where}", gap("sign_gd", "gd", variable, level, **at), None)
        for label, variable, level, where in (
            ("error", "test_error", 0.3, ", loss .3"), ("test loss", "test_loss", LEVEL, "")
        )
    )  # fmt: skip
    return judged + beside


def _widening(
    words: str, at: dict[str, Any], others: str, than: dict[str, Any], interval: tuple[float, float]
) -> tuple[Part, ...]:
    """How much larger the gaps of SignGD and Adam to GD are with words in some sentences than with words in others."""
    judged = tuple(
        Part(f"gap({NAMES[name]}) with words {words} - with {others}", _more(name, "gd", at, than), interval)
        for name in ("sign_gd", "adam")
    )
    return judged + tuple(
        Part(f"error({NAMES[name]}) - error(GD), words {words}", gap(name, **at), None) for name in ("sign_gd", "adam")
    )


_text = functools.partial(mean_claim, system=SYSTEM, source="ours")
_TOKENS = ("attention, 500 sentences over kernel, injected",)
_SPLITS = ("attention, 500 sentences over injected, test_injected",)
_LAWS = ("uniform attention, 500 sentences over injected_law, sigma_0, injected",)
#: 12 words of `laws`, each equally often, or as often as in the training sentences.
_EVENLY: dict[str, Any] = {"injected_law": "uniform", "sigma_0": 0.1, "injected": 12}
_OFTEN: dict[str, Any] = {**_EVENLY, "injected_law": "frequency"}
_LARGE: dict[str, Any] = {**_EVENLY, "sigma_0": 0.5}
#: Where the 12 words of `splits` are.
_BOTH, _TEST, _TRAIN, _NONE = (
    {"injected": train, "test_injected": test} for train, test in ((12, 12), (0, 12), (12, 0), (0, 0))
)
_SOFTMAX: dict[str, Any] = {"kernel": "softmax"}
_UNIFORM: dict[str, Any] = {"kernel": "uniform"}
_INF = math.inf

CLAIMS: tuple[Claim, ...] = (
    _text(
        id="X1",
        statement="Clean sentences (n = 500): at training loss .1 the test errors of SignGD and Adam are within .03 of "
        "GD's",
        settings=_TOKENS,
        parts=_gaps(CLOSE, **_SOFTMAX, injected=0),
    ),
    _text(
        id="X2",
        statement="With 12 injected words a sentence (n = 500) SignGD and Adam err more than GD by .03 or more at "
        "training loss .1",
        settings=_TOKENS,
        parts=_gaps(APART, ", K = 12", **_SOFTMAX, injected=12),
    ),
    _text(
        id="X3",
        statement="With 48 injected words a sentence (n = 500) SignGD and Adam err more than GD by .02 or more at "
        "training loss .1",
        settings=_TOKENS,
        parts=_gaps(LESS_APART, ", K = 48", **_SOFTMAX, injected=48),
    ),
    _text(
        id="X4",
        statement="Injected words widen the gap (n = 500, training loss .1): error(SignGD) - error(GD) is larger by "
        ".02 or more with 12 and with 48 injected words than with none",
        settings=_TOKENS,
        parts=tuple(
            Part(
                f"gap with K = {count} - gap with none{', ' + NAMES[name] if name != 'sign_gd' else ''}",
                _more(name, "gd", {**_SOFTMAX, "injected": count}, {**_SOFTMAX, "injected": 0}),
                (0.02, _INF) if name == "sign_gd" else None,
            )
            for count in (12, 48)
            for name in ("sign_gd", "adam")
        ),
    ),
    _text(
        id="X5",
        statement="Attention is not what makes the gap (n = 500, training loss .1): with uniform attention SignGD and "
        "Adam err more than GD by .03 or more with 12 injected words, too",
        settings=_TOKENS,
        parts=_gaps(APART, ", K = 12, uniform", **_UNIFORM, injected=12),
    ),
    _text(
        id="X6",
        statement="SignGD's attention memorises injected words, GD's does not (n = 500, 12 words, training loss .1): "
        "on training sentences they receive .02 or more above their share of the tokens with SignGD, and less than .01 "
        "with GD",
        settings=_TOKENS,
        parts=(
            Part(
                "attention on injected words - their share, SignGD",
                _memorised("sign_gd", "injected_attention", **_SOFTMAX, injected=12),
                (0.02, 0.3),
                0.0,
            ),
            Part(
                "the same, GD", _memorised("gd", "injected_attention", **_SOFTMAX, injected=12), (-0.01, 0.01), 0.0
            ),
            Part("the same, Adam", _memorised("adam", "injected_attention", **_SOFTMAX, injected=12), None, 0.0),
            Part(
                "attention on injected words of test sentences, SignGD - GD",
                gap("sign_gd", "gd", "test_injected_attention", **_SOFTMAX, injected=12),
                None,
            ),
        ),
    ),
    _text(
        id="X7",
        statement="Attention's own share of SignGD's error is small (n = 500, 12 injected words, training loss .1): "
        "softmax is within .03 of uniform attention",
        settings=_TOKENS,
        parts=tuple(
            Part(
                f"error, softmax - uniform, {NAMES[name]}, K = {count}",
                _change(name, "test_error", {**_SOFTMAX, "injected": count}, {**_UNIFORM, "injected": count}),
                CLOSE if (name, count) == ("sign_gd", 12) else None,
            )
            for name in ("sign_gd", "adam", "gd")
            for count in (12, 48)
        ),
    ),
    _text(
        id="X8",
        statement="With 12 injected words SignGD errs more than GD at training loss .1 from 100 sentences and from "
        "1,000, too",
        settings=("attention, sentences over injected, n_train",),
        parts=tuple(
            Part(
                f"error(SignGD) - error({NAMES[other]}), K = {count}, n = {n}",
                gap("sign_gd", other, injected=count, n_train=n),
                above(0.0) if (other, count) == ("gd", 12) else None,
            )
            for count in (12, 0)
            for n in (100, 1000)
            for other in ("gd", "momentum")
        ),
    ),
    _text(
        id="X9",
        statement="Flipped training labels widen the gap (n = 200, K = 0, training loss .1): error(SignGD) - error(GD) "
        "is larger with a share of .2 flipped than with none",
        settings=("attention, 200 sentences over label_noise",),
        parts=(
            Part(
                "gap with .2 - gap with 0",
                _more("sign_gd", "gd", {"label_noise": 0.2}, {"label_noise": 0.0}),
                above(0.0),
            ),
            Part("gap with .2", gap("sign_gd", "gd", label_noise=0.2), None),
            Part("gap with 0", gap("sign_gd", "gd", label_noise=0.0), None),
        ),
    ),
    _text(
        id="X10",
        statement="Noise on embedded words widens the gap (n = 200, K = 0, training loss .1): error(SignGD) - "
        "error(GD) is larger at a standard deviation of .3 than without noise",
        settings=("attention, 200 sentences over embedding_noise",),
        parts=(
            Part(
                "gap at .3 - gap at 0",
                _more("sign_gd", "gd", {"embedding_noise": 0.3}, {"embedding_noise": 0.0}),
                above(0.0),
            ),
            Part("gap at .3", gap("sign_gd", "gd", embedding_noise=0.3), None),
            Part("gap at 0", gap("sign_gd", "gd", embedding_noise=0.0), None),
        ),
    ),
    _text(
        id="X11",
        statement="On a source that is not trained on the picture is the same (n = 200 of two sources, training loss "
        ".1): SignGD is within .03 of GD on clean sentences, and errs more by .02 or more with 12 injected words",
        settings=("attention, 200 sentences over held_out, injected",),
        parts=tuple(
            Part(
                f"error(SignGD) - error(GD), K = {count}, tested on {source}",
                gap("sign_gd", "gd", held_out=source, injected=count),
                CLOSE if count == 0 else (0.02, 0.15),
            )
            for source in ("imdb", "amazon", "yelp")
            for count in (0, 12)
        ),
    ),
    _text(
        id="X12",
        statement="With 12 injected words SignGD errs more than GD at training loss .1 (n = 200) with softmax and with "
        "Gaussian attention",
        settings=("attention, 200 sentences over kernel, injected",),
        parts=tuple(
            Part(
                f"error(SignGD) - error(GD), K = {count}, {kernel}",
                gap("sign_gd", "gd", kernel=kernel, injected=count),
                above(0.0) if count else None,
            )
            for kernel in ("softmax", "gaussian")
            for count in (12, 0)
        ),
    ),
    _text(
        id="X13",
        statement="The same with linear attention",
        settings=("linear attention, 200 sentences over injected",),
        parts=(
            Part("error(SignGD) - error(GD), K = 12", gap("sign_gd", "gd", injected=12), above(0.0)),
            Part("the same with K = 0", gap("sign_gd", "gd", injected=0), None),
        ),
    ),
    _text(
        id="X14",
        statement="The same with the paper's two-layer model on words as unit vectors",
        settings=("two-layer, 200 sentences over injected",),
        parts=(
            Part("error(SignGD) - error(GD), K = 12", gap("sign_gd", "gd", injected=12), above(0.0)),
            Part("the same with K = 0", gap("sign_gd", "gd", injected=0), None),
        ),
    ),
    _text(
        id="X15",
        statement="The same with a vocabulary of 50 and of 200 words",
        settings=("attention, 200 sentences, K=12 over vocabulary",),
        parts=tuple(
            Part(
                f"error(SignGD) - error(GD), K = 12, {size} words", gap("sign_gd", "gd", vocabulary=size), above(0.0)
            )
            for size in (50, 200)
        ),
    ),
    _text(
        id="X16",
        statement="The gap depends on which words are injected (n = 500, 12 words, uniform attention, training loss "
        ".1): error(SignGD) - error(GD) is smaller by .01 or more if words are injected as often as they stand in the "
        "training sentences than if each is injected equally often",
        settings=_LAWS,
        parts=(
            Part(
                "gap by frequency - gap with each word equally often",
                _more("sign_gd", "gd", _OFTEN, _EVENLY),
                (-_INF, -0.01),
            ),
            Part("gap with each word equally often", gap("sign_gd", "gd", **_EVENLY), None),
            Part("gap by frequency", gap("sign_gd", "gd", **_OFTEN), None),
            Part("gap with none", gap("sign_gd", "gd", **{**_EVENLY, "injected": 0}), None),
        ),
    ),
    _text(
        id="X17",
        statement="The gap depends on initial weights (n = 500, 12 injected words, uniform attention, training loss "
        ".1): error(SignGD) - error(GD) is smaller by .01 or more with initial embeddings of .5 than of .1",
        settings=_LAWS,
        parts=(
            Part(
                "gap with sigma_0 = .5 - gap with .1",
                _more("sign_gd", "gd", _LARGE, _EVENLY),
                (-_INF, -0.01),
            ),
            *(
                Part(f"error({NAMES[name]}), .5 - .1", _change(name, "test_error", _LARGE, _EVENLY), None)
                for name in ("sign_gd", "gd")
            ),
            Part("gap with none, sigma_0 = .5", gap("sign_gd", "gd", **{**_LARGE, "injected": 0}), None),
        ),
    ),
    _text(
        id="TS1",
        statement="Words in test sentences alone widen the gap (n = 500, softmax, training loss .1): SignGD and Adam "
        "err more above GD with 12 words in test sentences than with none",
        settings=_SPLITS,
        parts=_widening("in test sentences alone", _TEST, "none", _NONE, above(0.0)),
    ),
    _text(
        id="TS2",
        statement="Words in training sentences alone do not widen it (n = 500, softmax, training loss .1): with 12 of "
        "them SignGD and Adam err more above GD than with none by .02 at most",
        settings=_SPLITS,
        parts=_widening("in training sentences alone", _TRAIN, "none", _NONE, (-_INF, 0.02)),
    ),
    _text(
        id="TS3",
        statement="Words in test sentences alone make the whole gap (n = 500, softmax, training loss .1): with 12 "
        "words in both it is the same within .03",
        settings=_SPLITS,
        parts=_widening("in both", _BOTH, "in test sentences alone", _TEST, CLOSE),
    ),
    _text(
        id="XK1",
        statement="Regime of clean sentences (n = 200): GD's training loss after 80 steps is lower with Gaussian than "
        "with softmax attention, each at its best learning rate",
        source="paper (arXiv 2411.07538: Gaussian more favourable), ours (task)",
        settings=("attention, 200 sentences over kernel, injected",),
        parts=(Part("log10 training loss, Gaussian - softmax, K = 0", _end_loss("gaussian", 0), (-_INF, 0.0)),),
    ),
    _text(
        id="XK2",
        statement="The same in the regime of 12 injected words",
        source="paper (arXiv 2411.07538: Gaussian more favourable), ours (task)",
        settings=("attention, 200 sentences over kernel, injected",),
        parts=(Part("log10 training loss, Gaussian - softmax, K = 12", _end_loss("gaussian", 12), (-_INF, 0.0)),),
    ),
    _text(
        id="XK3",
        statement="The kernel does not decide the test error (n = 200, training loss .1): with GD Gaussian attention "
        "is within .02 of softmax on clean sentences and with 12 injected words",
        settings=("attention, 200 sentences over kernel, injected",),
        parts=tuple(
            Part(
                f"error(GD), Gaussian - softmax, K = {count}",
                _change(
                    "gd", "test_error", {"kernel": "gaussian", "injected": count},
                    {"kernel": "softmax", "injected": count},
                ),
                (-0.02, 0.02),
            )
            for count in (0, 12)
        ),
    ),
)  # fmt: skip
