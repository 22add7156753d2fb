"""Who has the smaller test error on noisy digits, with how many images, at which scale? Claims F2d and FS."""

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from jaxsign.analysis.reading import CannotDecide
from jaxsign.analysis.runs import best_rate, drop_labels, family_runs, manifest, need, numbers_of, one_point
from jaxsign.claims.claim import Claim, Part, PerSeed, above, all_runs, at_level
from jaxsign.claims.setting import Setting
from jaxsign.validation.values import known

if TYPE_CHECKING:
    import xarray as xr

SYSTEM = "noisy_digits"
#: Training loss, in nat, at which runs are compared, and the low image scale of the claims about optimizers.
LEVEL, LOW = 0.1, 0.5
AXES = ("n_train", "scale")
#: Standard deviations of the noise of training images, and of validation and test images.
NOISES = ("noise", "test_noise")
#: A difference of the law, in error, whose sign F2d-10 takes for a prediction.
CLEAR = 0.01
#: Image scales between which the source's curve is not monotone.
DISPUTED = (0.5, 1.0)
#: Where a run is looked at: where its training loss falls below LEVEL, and at its end.
POINTS = ("loss", "end")
#: Cells (n_train, scale) that had been looked at, with two layers, when the intervals of F2d-5 to F2d-11 were written.
SEEN = ((50, 0.25), (50, 0.5), (50, 1.0), (1000, 0.5))
MODELS = {"two_layer": "two-layer", "vit": "ViT"}
_POSITIVE, _NEGATIVE = above(0.0), (-math.inf, math.nextafter(0.0, -1.0))
_VARIABLES = ("val_loss", "val_error", "test_loss", "test_error", "calibrated_loss")


def setting_of(ds: "xr.Dataset") -> Setting:
    """Model, classes, whether attention is frozen, and the axes, such as "ViT 3 vs 7 over n_train"."""
    definition = manifest(ds)["definition"]
    problem = definition["problem"]
    classes = problem["classes"]
    digits = "ten classes" if len(classes) == 10 else " vs ".join(map(str, classes))
    return Setting(
        f"{MODELS[problem['model']]} {digits}",
        changes=(
            *(("noise on every pixel",) if problem.get("noise_on", "border") == "image" else ()),
            *(("attention frozen",) if definition["trainable"] else ()),
        ),
        swept=tuple(axis for axis in (*AXES, *NOISES) if ds.sizes.get(axis, 1) > 1),
    )


def compared(ds: "xr.Dataset", point: str) -> "xr.Dataset":
    """Every run where it is compared.

    Args:
      ds: Dataset of a sweep.
      point: "loss": training loss LEVEL; "end": the last recorded step.

    Returns:
      Dataset (..., optimizer, seed) of losses and errors. NaN where a run never fits its training images to LEVEL, or
      leaps over it, or ends above it: a run that has not learned is compared with none.

    Raises:
      ValueError: for an unknown point.
      CannotDecide: if the Dataset lacks what is needed.
    """
    known("point", point, POINTS)
    need(ds, "train_loss", *_VARIABLES)
    if point == "loss":
        return at_level(ds, LEVEL, *_VARIABLES, leaps=True)[list(_VARIABLES)].where(ds["status"] == 0)
    end = ds[["train_loss", *_VARIABLES]].isel(step=-1)
    return end[list(_VARIABLES)].where((ds["status"] == 0) & (end["train_loss"] <= LEVEL))


def tuned(ds: "xr.Dataset", family: str, point: str) -> "xr.Dataset":
    """The runs of an optimizer family at the learning rate with the smallest mean validation error over the seeds.

    Every family has the same number of rates; the choice is made for every n_train and scale apart, and looks at
    validation images only, at the very point at which test images are looked at then. A rate counts only if all seeds
    fit their training images with it, so that a run which has not learned is never preferred.

    Args:
      ds: Dataset of a sweep with the axes n_train and scale.
      family: "sign_gd", "adam" or "gd".
      point: as in `compared`.

    Returns:
      Dataset (n_train, scale, seed) with the chosen learning_rate as a coordinate, and `edge`, whether that is the
      first or last rate of the grid; NaN where no rate counts.

    Raises:
      CannotDecide: if there are no runs of the family, or no axes n_train and scale.
    """
    if not {"n_train", "scale"} <= set(ds.dims):
        raise CannotDecide("needs the axes n_train and scale")
    runs = family_runs(one_point(ds, "n_train", "scale"), family)
    if not bool((runs["status"] == 0).any()):
        raise CannotDecide(f"needs runs of {family}")
    rates = runs["learning_rate"].values
    runs = compared(runs, point)
    score = runs["val_error"].mean("seed", skipna=False)
    chosen = best_rate(runs, by=score).where(score.notnull().any("optimizer"))
    return chosen.assign_coords(edge=chosen["learning_rate"].isin([rates.min(), rates.max()]))


def _at(runs: "xr.Dataset", name: str, n_train: int | None = None, scale: float | None = None) -> "xr.DataArray":
    """A variable, at one n_train and scale where they are given, with no coordinates but those of its dimensions."""
    values = runs[name]
    for axis, value in (("n_train", n_train), ("scale", scale)):
        if value is None:
            if axis in values.dims and values.sizes[axis] == 1:
                values = values.isel({axis: 0})
        elif not np.isclose(values[axis], value).any():
            raise CannotDecide(f"{axis}={value:g} is not among the runs")
        else:
            values = values.sel({axis: value}, method="nearest")
    return drop_labels(values)


def _fall(ds: "xr.Dataset", family: str, point: str = "loss") -> "xr.DataArray":
    """Test loss at the smallest image scale minus that at the largest one."""
    loss = _at(tuned(ds, family, point), "test_loss")
    if "scale" not in loss.dims or "n_train" in loss.dims:
        raise CannotDecide("needs a sweep over the image scale at one n_train")
    order = loss["scale"].argsort()
    return loss.isel(scale=int(order[0]), drop=True) - loss.isel(scale=int(order[-1]), drop=True)


def gap(
    ds: "xr.Dataset", family: str, name: str = "test_error", point: str = "loss",
    n_train: int | None = None, scale: float | None = None,
) -> "xr.DataArray":  # fmt: skip
    """A number of one family minus the same of GD, on the same seeds, each at its tuned rate.

    Args:
      ds: Dataset of a sweep with the axes n_train and scale.
      family: "sign_gd" or "adam".
      name: what is compared, such as "test_error".
      point: as in `compared`.
      n_train: the one n_train of the result, None for all; likewise scale.

    Returns:
      DataArray (n_train, scale, seed), without an axis that was chosen or has one point.
    """
    one, other = (_at(tuned(ds, each, point), name, n_train, scale) for each in (family, "gd"))
    return one - other


def _rate_change(n_train: int, scale: float) -> PerSeed:
    """A measure: SignGD's test error at the learning rate .125 minus that at .001, where they cross LEVEL."""

    def measure(ds: "xr.Dataset") -> "xr.DataArray":
        runs = compared(family_runs(one_point(ds, "n_train", "scale"), "sign_gd"), "loss")
        rates = numbers_of(runs, "learning_rate")
        places = [np.flatnonzero(np.isclose(rates, rate)) for rate in (0.125, 0.001)]
        if not all(place.size for place in places):
            raise CannotDecide("needs SignGD with the learning rates .125 and .001")
        large, small = (_at(runs.isel(optimizer=int(place[0])), "test_error", n_train, scale) for place in places)
        return large - small

    return measure


def law_gap(ds: "xr.Dataset") -> "xr.DataArray":
    """The first-step law of error(SignGD) - error(GD), (n_train, scale, seed); see `models.one_step_margins`."""
    if not {"sign_step_error", "gd_step_error"} <= set(ds):
        raise CannotDecide("needs the constants sign_step_error and gd_step_error, of two classes")
    runs = one_point(ds, "n_train", "scale")[["sign_step_error", "gd_step_error"]]
    runs = runs.isel(optimizer=0) if "optimizer" in runs.dims else runs
    return drop_labels(runs["sign_step_error"] - runs["gd_step_error"])


def _law_at(ds: "xr.Dataset", n_train: int) -> "xr.DataArray":
    """`law_gap` at one n_train of a sweep over n_train alone."""
    law = law_gap(ds)
    if n_train not in law["n_train"]:
        raise CannotDecide(f"n_train={n_train} is not among the runs")
    return law.sel(n_train=n_train).isel(scale=0)


def unseen(ds: "xr.Dataset") -> "xr.DataArray":
    """Which cells (n_train, scale) nobody had looked at when the claims were written: they decide F2d-10."""
    import xarray as xr

    cells = [
        [not any(n == a and math.isclose(scale, b) for a, b in SEEN) for scale in ds["scale"].values.tolist()]
        for n in ds["n_train"].values.tolist()
    ]
    return xr.DataArray(cells, dims=("n_train", "scale"), coords={axis: ds[axis].values for axis in AXES})


def _as_the_law(ds: "xr.Dataset", point: str = "loss") -> "xr.DataArray":
    """Share of the unseen cells at which a seed's gap has the law's sign; cells where the law is undecided left out."""
    law = law_gap(ds)
    cells = unseen(ds) & (abs(law.mean("seed")) > CLEAR)
    if int(cells.sum()) < 2:
        raise CannotDecide(f"needs two unseen cells or more at which the law's gap is above {CLEAR:g}")
    measured = gap(ds, "sign_gd", point=point)
    agrees = (np.sign(measured) == np.sign(law)).where(measured.notnull())
    return agrees.where(cells).mean(AXES)


def rise(loss: "xr.DataArray", of: "xr.DataArray | None" = None) -> "xr.DataArray":
    """The largest rise between neighbouring scales in DISPUTED, at the place where the other half of the seeds sees it.

        r_s = of_s(b) - of_s(a),   (a, b) the neighbours with the largest mean of loss(b) - loss(a) over the half of the
                                   seeds, every other one, that s is not in

    A seed's own largest rise is positive by chance alone; with the place chosen by others, the mean of r_s is the rise
    at that place, and negative if the curve falls everywhere. (All seeds but s may not choose: where two places are
    close, they prefer the one at which s is small.)

    Args:
      loss: DataArray (scale, seed).
      of: DataArray (scale, seed) whose rise is returned; default `loss`.

    Returns:
      DataArray (seed).

    Raises:
      CannotDecide: if there are fewer than two scales or two seeds, or a number is missing.
    """
    import xarray as xr

    inside = (loss["scale"] >= DISPUTED[0] - 1e-9) & (loss["scale"] <= DISPUTED[1] + 1e-9)
    loss, of = (one.isel(scale=inside.values).sortby("scale") for one in (loss, loss if of is None else of))
    steps, shown = (np.diff(one.transpose("scale", "seed").values, axis=0) for one in (loss, of))
    if not steps.size or steps.shape[1] < 2 or not np.isfinite(steps).all():
        raise CannotDecide(f"needs the test loss of two seeds or more at two scales or more in {list(DISPUTED)}")
    rises = np.empty(steps.shape[1])
    for half in (0, 1):
        rises[half::2] = shown[steps[:, 1 - half :: 2].mean(1).argmax(), half::2]
    return xr.DataArray(rises, dims="seed")


def _rise(ds: "xr.Dataset", family: str, point: str = "end", name: str = "test_loss") -> "xr.DataArray":
    runs = tuned(ds, family, point)
    if runs.sizes["n_train"] > 1:
        raise CannotDecide("needs a sweep over the image scale at one n_train")
    return rise(_at(runs, "test_loss"), _at(runs, name))


_NAMES = {"sign_gd": "SignGD", "adam": "Adam", "gd": "GD"}
_WHERE = {"loss": f"at training loss {LEVEL:g}", "end": "at the end"}
OVER_SCALES = tuple(f"{model} 3 vs 7 over scale" for model in MODELS.values())
OVER_SAMPLES = tuple(f"two-layer 3 vs 7{control} over n_train, scale" for control in ("", ", attention frozen"))
_MANY_FAINT, _EVERYWHERE = "two-layer 3 vs 7 over n_train", "two-layer 3 vs 7, noise on every pixel over n_train, scale"
VIT_OVER_SAMPLES = tuple(f"ViT 3 vs 7{control} over n_train" for control in ("", ", attention frozen"))
_TWO_LAYER, _VIT = OVER_SCALES
_BELOW_THE_CROSSING = {
    _TWO_LAYER: "50 images at scale .5 are below n scale^2 = 35, where the first-step law gives GD the larger error; "
    "measured errors cross at scale .8, the law's at .79"
}
_digits = functools.partial(Claim, runs=all_runs, system=SYSTEM, judge="mean")
_paper = functools.partial(_digits, source="paper", settings=OVER_SCALES)
_ours = functools.partial(_digits, source="ours")


def _gaps(name: str, words: str) -> tuple[Part, ...]:
    """Both gaps to GD at the low scale, at equal training loss and at the end."""
    return tuple(
        Part(
            f"{words}({_NAMES[family]}) - {words}(GD), scale {LOW:g}, {_WHERE[point]}",
            functools.partial(gap, family=family, name=name, point=point, scale=LOW),
            _POSITIVE,
        )
        for point in POINTS
        for family in ("sign_gd", "adam")
    )


def _at_cells(
    family: str, point: str, interval: tuple[float, float] | None, *cells: tuple[int, float]
) -> tuple[Part, ...]:
    """The gap in test error to GD at cells (n_train, scale)."""
    return tuple(
        Part(
            f"error({_NAMES[family]}) - error(GD), {_WHERE[point]}, n = {n:,}, scale {scale:g}",
            functools.partial(gap, family=family, point=point, n_train=n, scale=scale),
            interval,
        )
        for n, scale in cells
    )


def split_gap(
    ds: "xr.Dataset", family: str, noise: float, test_noise: float, n_train: int | None = None
) -> "xr.DataArray":
    """`gap` in test error at training loss LEVEL, with one noise in training and one in validation and test images."""
    for axis, value in zip(NOISES, (noise, test_noise)):
        if axis not in ds.dims or not np.isclose(ds[axis], value).any():
            raise CannotDecide(f"needs {axis}={value:g}")
    return gap(ds.sel(noise=noise, test_noise=test_noise), family, n_train=n_train)


def _widening(
    words: str, at: tuple[float, float], others: str, than: tuple[float, float],
    intervals: dict[int, tuple[float, float] | None],
) -> tuple[Part, ...]:  # fmt: skip
    """How much larger the gaps to GD are with (noise, test noise) `at` than with `than`, at each n_train."""

    def more(ds: "xr.Dataset", family: str, n_train: int) -> "xr.DataArray":
        return split_gap(ds, family, *at, n_train) - split_gap(ds, family, *than, n_train)

    judged = tuple(
        Part(
            f"gap({_NAMES[family]}) with noise {words} - with {others}, n = {n}",
            functools.partial(more, family=family, n_train=n),
            interval if family == "sign_gd" else None,
        )
        for n, interval in intervals.items()
        for family in ("sign_gd", "adam")
    )
    beside = tuple(
        Part(
            f"error(SignGD) - error(GD), noise {words}, n = {n}",
            functools.partial(split_gap, family="sign_gd", noise=at[0], test_noise=at[1], n_train=n),
            None,
        )
        for n in intervals
    )
    return judged + beside


_BOTH, _TEST, _TRAIN, _NONE = (1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)
_SPLITS = (f"{MODELS['two_layer']} 3 vs 7 over n_train, noise, test_noise",)
_MANY, _FEW = ((400, 0.5), (400, 1.0), (1000, 1.0)), ((20, 0.25), (20, 0.5), (100, 0.25))

CLAIMS: tuple[Claim, ...] = (
    _paper(
        id="F2d-1",
        statement="Noisy digits, 50 images: the test loss falls from the smallest image scale to the largest, with "
        "each optimizer",
        parts=tuple(
            Part(
                f"test loss({_NAMES[family]}) at the smallest scale - at the largest, at training loss {LEVEL:g}",
                functools.partial(_fall, family=family),
                _POSITIVE,
            )
            for family in ("sign_gd", "adam", "gd")
        ),
    ),
    _paper(
        id="F2d-2",
        statement="Noisy digits, 50 images: SignGD and Adam have the larger test loss than GD at low scale, at equal "
        "training loss and at the end",
        parts=_gaps("test_loss", "test loss"),
        explanations={
            **_BELOW_THE_CROSSING,
            _VIT: "at equal training loss the three are within .02 nat (medians); at the end SignGD's and Adam's are "
            ".3 nat below GD's, at their smallest rates",
        },
    ),
    _paper(
        id="F2d-3",
        statement="Noisy digits, 50 images: SignGD and Adam have the larger test error than GD at low scale, at equal "
        "training loss and at the end",
        parts=_gaps("test_error", "error"),
        explanations={**_BELOW_THE_CROSSING, _VIT: "the three are within .02 of each other"},
    ),
    _paper(
        id="F2d-4",
        statement="Noisy digits, 50 images: between the scales .5 and 1 SignGD's test loss at the end rises "
        "somewhere, it is not monotone",
        parts=(
            Part("largest rise between neighbouring scales", functools.partial(_rise, family="sign_gd"), _POSITIVE),
            Part("the same of Adam", functools.partial(_rise, family="adam"), None),
            Part("the same of GD", functools.partial(_rise, family="gd"), None),
            Part(
                f"the same of SignGD at training loss {LEVEL:g}",
                functools.partial(_rise, family="sign_gd", point="loss"),
                None,
            ),
            Part("its test error there", functools.partial(_rise, family="sign_gd", name="test_error"), None),
            Part("its calibrated loss there", functools.partial(_rise, family="sign_gd", name="calibrated_loss"), None),
        ),
        explanations={
            _TWO_LAYER: "the chosen rate jumps from .025 at scale .6 to .0002 at .7, and single seeds' losses with it"
        },
    ),
    *(
        _ours(
            id=name,
            settings=OVER_SAMPLES[:1] if family == "adam" else OVER_SAMPLES,
            statement=f"Noisy digits, two layers, {words}",
            parts=(
                *_at_cells(family, "loss", interval, *cells),
                *_at_cells(family, "loss", None, *((n, scale) for n, scale in SEEN if scale == LOW)),
            ),
        )
        for name, family, interval, cells, words in (
            ("F2d-5", "sign_gd", _POSITIVE, _MANY, "400 images or more: SignGD has the larger test error than GD"),
            ("F2d-6", "adam", _POSITIVE, _MANY, "400 images or more: Adam has the larger test error than GD"),
            ("F2d-7", "sign_gd", _NEGATIVE, _FEW, "few images and low scale: SignGD has the smaller test error"),
            ("F2d-8", "adam", _NEGATIVE, _FEW, "few images and low scale: Adam has the smaller test error"),
        )
    ),
    _ours(
        id="F2d-9",
        settings=OVER_SAMPLES,
        statement="Noisy digits, two layers, 400 images: SignGD has the larger test error than GD at the end, too",
        parts=(
            *_at_cells("sign_gd", "end", _POSITIVE, (400, 0.5), (400, 1.0)),
            *_at_cells("sign_gd", "end", None, (1000, 0.5)),
        ),
        explanations={
            OVER_SAMPLES[0]: "at its largest rate, .025, it errs .03 less at scale .5: after loss .1 its error goes on "
            "falling, from .16 to .07, and GD's stays at .10; at scale 1 it errs .015 more, with an interval around 0"
        },
    ),
    _ours(
        id="F2d-10",
        settings=OVER_SAMPLES,
        statement="Noisy digits, two layers: the first-step law says who has the smaller error at training loss .1",
        parts=(
            Part("share of the unseen cells with the law's sign", _as_the_law, (0.8, math.inf), 1.0),
            Part("the same at the end", functools.partial(_as_the_law, point="end"), None),
        ),
    ),
    _ours(
        id="F2d-11",
        settings=VIT_OVER_SAMPLES[:1],
        statement="Noisy digits, vision transformer, scale .5, 100 and 200 images: SignGD has the larger test error "
        "than GD at training loss .1",
        parts=(
            *_at_cells("sign_gd", "loss", _POSITIVE, (100, 0.5), (200, 0.5)),
            *_at_cells("sign_gd", "end", None, (100, 0.5), (200, 0.5)),
        ),
        explanations={
            VIT_OVER_SAMPLES[0]: "at equal loss the three are within .011 of each other on average, at 20, 100 and 200 "
            "images; at the end SignGD errs .06 less at 100 and .08 less at 200, at the largest of its rates"
        },
    ),
    _ours(
        id="F2d-12",
        settings=(_MANY_FAINT,),
        statement="Noisy digits, two layers, scale .15, training loss .1: with more images (1,000) than the 460 noisy "
        "pixels SignGD has the larger test error, against the first-step law; with fewer (400) the smaller, as it says",
        parts=(
            *_at_cells("sign_gd", "loss", _POSITIVE, (1000, 0.15)),
            *_at_cells("sign_gd", "loss", _NEGATIVE, (400, 0.15)),
            *_at_cells("sign_gd", "loss", None, (700, 0.15)),
            Part("the law's difference, n = 1,000", functools.partial(_law_at, n_train=1000), None),
        ),
        explanations={
            _MANY_FAINT: "with three rates up to .005 it held; with .025 SignGD errs less with 1,000 images, too"
        },
    ),
    _ours(
        id="F2d-13",
        settings=(_EVERYWHERE,),
        statement="Noisy digits, two layers, noise on every pixel: SignGD has the larger test error than GD at "
        "training loss .1 with 20, 100 and 400 images, at scales .5 and 1",
        parts=_at_cells("sign_gd", "loss", _POSITIVE, *((n, scale) for n in (20, 100, 400) for scale in (0.5, 1.0))),
    ),
    _ours(
        id="F2d-14",
        settings=OVER_SAMPLES[:1],
        statement="Noisy digits, two layers, scale .25, training loss .1, 700 and 1,000 images: SignGD's test error is "
        "smaller by .03 or more at a learning rate of .125 than at .001",
        parts=(
            *(
                Part(f"error at .125 - at .001, n = {n:,}", _rate_change(n, 0.25), (-math.inf, -0.03))
                for n in (700, 1000)
            ),
            *(Part(f"the same at scale .5, n = {n:,}", _rate_change(n, 0.5), None) for n in (700, 1000)),
        ),
    ),
    _ours(
        id="FS1",
        settings=_SPLITS,
        statement="Noisy digits, two layers, scale .5, training loss .1: noise in test images alone costs SignGD more "
        "test error than GD, with 20 and with 400 images",
        parts=_widening("in test images alone", _TEST, "none", _NONE, {20: _POSITIVE, 400: _POSITIVE}),
    ),
    _ours(
        id="FS2",
        settings=_SPLITS,
        statement="Noisy digits, two layers, scale .5, training loss .1: noise in training images alone costs SignGD "
        "no more than GD, or .02 more at most, with 20 and with 400 images",
        parts=_widening(
            "in training images alone", _TRAIN, "none", _NONE, {20: (-math.inf, 0.02), 400: (-math.inf, 0.02)}
        ),
    ),
    _ours(
        id="FS3",
        settings=_SPLITS,
        statement="Noisy digits, two layers, scale .5, training loss .1, noise in test images: noise in training "
        "images, too, costs GD more than SignGD with 20 images",
        parts=_widening("in both", _BOTH, "in test images alone", _TEST, {20: _NEGATIVE, 400: None}),
    ),
)
