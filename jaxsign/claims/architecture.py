"""Which of the paper's stages persist with several heads, longer contexts and more layers? Claims H1-H4 and D1-D8."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsign.analysis.reading import CannotDecide
from jaxsign.analysis.runs import manifest, need, one_point, select
from jaxsign.analysis.stages import find_stages
from jaxsign.claims.claim import Claim, Part, PerSeed, above, all_runs, at_level, one_family
from jaxsign.claims.setting import Setting
from jaxsign.store.levels import SUFFIX
from jaxsign.systems.deep_transformer import DeepProblem
from jaxsign.systems.two_layer.presets import paper_like
from jaxsign.validation.values import field_names

if TYPE_CHECKING:
    import xarray as xr

INF = math.inf
PRESETS = ("paper_like", "disjoint")
HEADS = tuple(f"heads {heads}, {preset}" for preset in PRESETS for heads in (2, 4, 8))
CONTEXTS = tuple(f"context {context}, {preset}" for preset in PRESETS for context in (4, 8, 16))
_ADDED = ("", " with mlp", " with layer norm", " with mlp and layer norm")
DEEP = ("depth 2", "depth 3", *(f"depth 4{added}" for added in _ADDED))
#: The paper's last step of stage III, from which on query signals should not turn any more.
SETTLED = 100
ERRATIC = above(0.0)


def setting_of(ds: "xr.Dataset") -> Setting:
    """The depth of a Dataset of deep transformers of the standard sizes, and what its layers hold besides attention.

    Such as "depth 4 with mlp"; anything of other sizes or numbers is "custom", residual connections are free.
    """
    definition = manifest(ds)["definition"]
    fields, hyper = (dict(definition.get(name) or {}) for name in ("problem", "hyper"))
    if not set(fields) <= set(field_names(DeepProblem)):  # of a later version
        return Setting("custom")
    problem = DeepProblem(**fields)
    free = {name: getattr(problem, name) for name in ("depth", "mlp", "layer_norm", "n_test")}
    numbers = dataclasses.asdict(paper_like()[1])
    same = {name: hyper.get(name) for name in numbers if name != "residual"}
    swept = {str(dim) for dim in ds.get("status", ds).dims} - {"optimizer", "seed", "step", "residual"}
    if DeepProblem(**free) != problem or any(same[name] != numbers[name] for name in same) or swept:
        return Setting("custom")
    added = [word for word, has in (("mlp", problem.mlp), ("layer norm", problem.layer_norm)) if has]
    return Setting(f"depth {problem.depth}" + (f" with {' and '.join(added)}" if added else ""))


def of_layer(runs: "xr.Dataset", layer: int) -> "xr.Dataset":
    """The runs of a deep transformer as those of one layer, which `js.find_stages` and the paper's numbers read.

    Args:
      runs: Dataset of js.deep_transformer.
      layer: from 0, that on the patches.

    Returns:
      Dataset without the dimension layer; sign_agreement is averaged over the heads.
    """
    need(runs, "sign_agreement")
    one = runs.isel(layer=layer)
    names = ("sign_agreement", f"sign_agreement{SUFFIX}")
    return one.assign({name: one[name].mean("head") for name in names if name in one})


def connected(ds: "xr.Dataset", residual: float, family: str = "sign_gd") -> "xr.Dataset":
    """The runs of one optimizer with residual connections of this weight, dims (seed, step, ...).

    Raises:
      CannotDecide: if there are none.
    """
    if "residual" not in ds.dims:
        raise CannotDecide("needs an axis residual")
    place = np.flatnonzero(ds["residual"].values == residual)
    if not place.size:
        raise CannotDecide(f"needs runs with residual {residual:g}")
    return select(one_point(ds.isel(residual=int(place[0]))), family)


def four_in_order(runs: "xr.Dataset") -> "xr.DataArray":
    """1 where t_I < t_II < t_III and t_II < t_IV, else 0.

    t_V is left out: in 32-bit floats the gradients that turn query noise underflow before it; S5 is the claim about it.
    """
    t = find_stages(runs)
    return ((t.t_I < t.t_II) & (t.t_II < t.t_III) & (t.t_II < t.t_IV)).astype(float)


def head_agreement(runs: "xr.Dataset") -> "xr.DataArray":
    """Sign agreement of query and key noise in every head, dims (..., head), averaged over its rows and patches."""
    need(runs, "query_noise", "key_noise", "s21", steps=False)
    same = np.sign(runs["query_noise"]) == np.sign(runs["key_noise"])
    heads = runs.sizes["head"]
    same = same.assign_coords(row=np.repeat(np.arange(heads), same.sizes["row"] // heads))
    inner = [dim for dim in ("sample", "patch") if dim in same.dims]
    return same.mean(inner).groupby("row").mean().rename(row="head")


def _worst_head_agreement(runs: "xr.Dataset") -> "xr.DataArray":
    return head_agreement(runs.sel(step=20, drop=True)).min("head")


def head_attention(runs: "xr.Dataset", name: str, step: int) -> "xr.DataArray":
    """Attention on the signal at a step in every head, dims (..., head), averaged over samples and patches."""
    need(runs, name)
    inner = [dim for dim in ("sample", "patch") if dim in runs[name].dims]
    return runs[name].sel(step=step, drop=True).mean(inner)


def context_of(runs: "xr.Dataset") -> int:
    """Patches per example; attention on the signal starts at its inverse."""
    need(runs, "s21")
    return int(runs["s21"].sizes.get("patch", 1)) + 1


def _times_context(name: str) -> PerSeed:
    return lambda ds: head_attention(ds, name, 150).mean("head") * context_of(ds)


def _exponent(runs: "xr.Dataset") -> "xr.DataArray":
    """Exponent a of -ln s_21 ~ t^a on [50, 300], from what s_21 has lost since it was 1/context."""
    need(runs, "log_s21")
    inner = [dim for dim in ("head", "sample", "patch") if dim in runs["log_s21"].dims]
    lost = (
        -(runs["log_s21"].mean(inner) + math.log(context_of(runs))).sel(step=slice(50, 300)).transpose("seed", "step")
    )
    x = np.log(lost["step"].values.astype(float))
    y = np.log(np.where(lost.values > 0, lost.values, np.nan))
    centred = x - x.mean()
    return lost.isel(step=0, drop=True).copy(data=y @ centred / (centred @ centred))


def vote_spread(runs: "xr.Dataset") -> "xr.DataArray":
    """max_i p_i / min_i p_i at t = 70, context 2: how unequal the weights of the votes have become.

    p_i = 1/(1 + exp(y_i F_i)), of y_i F_i the part sum_heads (s_12 + s_22) y_i <v, xi_i>.
    """
    need(runs, "value_noise", "s11", "s21")
    at = runs[["value_noise", "s11", "s21"]].sel(step=70, drop=True)
    margin = (2 - at["s11"] - at["s21"]).sum("head") * at["value_noise"]
    p: Any = 1 / (1 + np.exp(margin))
    return p.max("sample") / p.min("sample")


def turns(runs: "xr.Dataset", layer: int = 0) -> "xr.DataArray":
    """How often a row's query signal changes sign after t = 100, averaged over the rows of a layer."""
    need(runs, "query_signal")
    sign: Any = np.sign(runs["query_signal"].isel(layer=layer).where(runs["step"] >= SETTLED, drop=True))
    return (sign.diff("step") != 0).sum("step").mean("row").where(runs["status"] == 0)


def excess_variation(runs: "xr.Dataset", layer: int = 0) -> "xr.DataArray":
    """How far s_21 goes back and forth: total variation in excess of |end - start|, averaged over heads and samples."""
    need(runs, "s21")
    s21 = runs["s21"].isel(layer=layer)
    total = abs(s21.diff("step")).sum("step", skipna=False)
    return (total - abs(s21.isel(step=-1) - s21.isel(step=0))).mean(["head", "sample"])


def most(measure: Callable[["xr.Dataset", int], "xr.DataArray"]) -> PerSeed:
    """`turns` or `excess_variation` of the layer where it is largest."""

    def of(runs: "xr.Dataset") -> "xr.DataArray":
        import xarray as xr

        return xr.concat([measure(runs, layer) for layer in range(runs.sizes["layer"])], "layer").max("layer")

    return of


def token_difference(runs: "xr.Dataset") -> "xr.DataArray":
    """|mean_i query noise - query signal| / |mean_i query noise| of the last layer at t = 100: 0 for equal tokens."""
    need(runs, "query_noise", "query_signal")
    last = runs.isel(layer=-1).sel(step=SETTLED, drop=True)
    noise = last["query_noise"].mean("sample")
    difference: Any = np.sqrt(((noise - last["query_signal"]) ** 2).sum("row") / (noise**2).sum("row"))
    return difference


def rises(runs: "xr.Dataset") -> "xr.DataArray":
    """Share of the recorded stretches of ten steps in which the training loss increases, until it is below 1e-4."""
    need(runs, "train_loss")
    loss = runs["train_loss"].where(runs["step"] % 10 == 0, drop=True)
    before, after = loss.isel(step=slice(None, -1)), loss.isel(step=slice(1, None)).values
    counted = before >= 1e-4
    return ((before < after) & counted).sum("step") / counted.sum("step")


def time_to(runs: "xr.Dataset", level: float = 0.1) -> "xr.DataArray":
    """First recorded step at which the training loss is below a level; inf if never."""
    need(runs, "train_loss")
    return runs["step"].where(runs["train_loss"] < level).min("step").fillna(INF)


def _deep(residual: float, measure: PerSeed, layer: int | None = None) -> PerSeed:
    """A measure of the runs with or without residual connections, of one layer or of the whole."""

    def of(ds: "xr.Dataset") -> "xr.DataArray":
        runs = connected(ds, residual)
        return measure(runs if layer is None else of_layer(runs, layer))

    return of


def _layers(residual: float, measure: PerSeed, worst: str) -> PerSeed:
    """The worst layer's number."""

    def of(ds: "xr.Dataset") -> "xr.DataArray":
        import xarray as xr

        runs = connected(ds, residual)
        numbers = xr.concat([measure(of_layer(runs, layer)) for layer in range(runs.sizes["layer"])], "layer")
        return getattr(numbers, worst)("layer", skipna=False)

    return of


def _at(name: str, step: int) -> PerSeed:
    """An observable at a step, averaged over all of its dimensions but the seed."""

    def of(runs: "xr.Dataset") -> "xr.DataArray":
        need(runs, name)
        one = runs[name].sel(step=step, drop=True)
        return one.mean([dim for dim in one.dims if dim != "seed"])

    return of


def _at_loss(name: str, level: float) -> PerSeed:
    """An observable where the training loss falls to a level, averaged over all of its dimensions but the seed.

    NaN for a seed that does not get there, or one step of which leaps over the level.
    """

    def of(runs: "xr.Dataset") -> "xr.DataArray":
        one = at_level(runs, level, *([] if name == "step" else [name]), leaps=True)[name]
        return one.mean([dim for dim in one.dims if dim != "seed"], skipna=False)

    return of


#: Why claims do not hold, from numbers beside them and figures/architecture.py and figures/depth.py.
_OWN_KEY = {
    f"context {context}": "queries come to agree with the key of the noise patch that their example attends to, not "
    "with their own patch's, so that t_II, which asks for .99 of own pairs, is not reached or comes too late"
    for context in (4, 8, 16)
}
_BARE, _NORMED = ("depth 2", "depth 3", "depth 4", "depth 4 with mlp"), ("depth 4 with layer norm", DEEP[-1])
_NOISY = {
    **dict.fromkeys(
        _BARE,
        "at this loss signs are aligned and s_11 is near 1/2 in every layer, but s_21 is .39 to .47 in the worst layer "
        "and .07 to .18 in layer 1: deeper models fit in fewer steps than depth 1, and attention goes by steps; later, "
        "s_21 decays in every layer, and behind layer 1 s_11 with it",
    ),
    **dict.fromkeys(
        _NORMED,
        "the layer norm brings out what both tokens have in common: those of the last layer differ by less than a "
        "hundredth (D4), attention behind layer 1 stays near 1/2, and signs do not align there",
    ),
}
_LATER = {
    "depth 2": "layer 1 reads the raw patches and keeps all three behaviours without residual connections, too; "
    "layer 2 keeps the alignment and leaves the signal later (s_21 = .10 at t=150)",
    **dict.fromkeys(
        ("depth 3", "depth 4", "depth 4 with mlp"),
        "layer 1 reads the raw patches and mostly keeps the behaviours; they are lost behind it, where uniform "
        "attention makes both tokens equal: those of the last layer differ by rounding at depth 4, its s stays 1/2",
    ),
}
_BACK = {
    "depth 2": "s_21 falls once, with residual connections and without, in both layers",
    **dict.fromkeys(
        ("depth 3", "depth 4", "depth 4 with mlp"),
        "not in layer 1; the layer where it is largest varies 5 to 20 times as much as with residual connections",
    ),
}
_TURNS = {
    **dict.fromkeys(
        ("depth 2", "depth 3"), "query signals have settled by t=100, with residual connections and without"
    ),
    **dict.fromkeys(
        ("depth 4", "depth 4 with mlp", *_NORMED),
        "not in layer 1; in a later layer, whose tokens are equal so that gradients are rounding, a row turns 1.4 "
        "times or more",
    ),
}
_CALM = dict.fromkeys(DEEP, "SignGD's loss falls in every stretch of ten steps, with residual connections and without")

AGREE, OFF_SIGNAL, UNIFORM = (0.95, 1.0), (0.0, 0.01), (0.4, 0.6)
#: A tenth of 1/2. At training loss .1 depth 1 has s_21 = .020 [.017, .026], s_11 = .496 and agreement 1.00 (8 seeds,
#: residual connection): deeper models are asked at this loss for what the paper's depth has there.
LEAVING = (0.0, 0.05)


def kept(runs: "xr.Dataset") -> "xr.DataArray":
    """How many of three behaviours a layer has: signs aligned at t = 20, s_21 < .01 and s_11 in [.4, .6] at t = 150."""
    behaviours = (("sign_agreement", 20, AGREE), ("s21", 150, OFF_SIGNAL), ("s11", 150, UNIFORM))
    numbers = [(_at(name, step)(runs), interval) for name, step, interval in behaviours]
    count: Any = sum(((value >= low) & (value <= high)).astype(float) for value, (low, high) in numbers)
    return count


def _twice(measure: PerSeed) -> PerSeed:
    """What a measure is without residual connections, less twice what it is with them, on the same seeds."""
    return lambda ds: measure(connected(ds, 0.0)) - 2 * measure(connected(ds, 1.0))


def _slower(ds: "xr.Dataset") -> "xr.DataArray":
    return time_to(connected(ds, 0.0)) / time_to(connected(ds, 1.0))


def _pair(label: str, measure: PerSeed) -> tuple[Part, ...]:
    """A measure with and without residual connections, not judged."""
    return tuple(
        Part(f"{label}, {words}", functools.partial(lambda ds, r: measure(connected(ds, r)), r=residual), None)
        for words, residual in (("residual", 1.0), ("plain", 0.0))
    )


def _behind(level: float, residual: float, words: str, judged: bool) -> tuple[Part, ...]:
    """The three behaviours of the worst layer at a training loss."""
    asked = (
        ("sign agreement", "sign_agreement", AGREE, "min", "worst"), ("mean s_21", "s21", LEAVING, "max", "worst"),
        ("mean s_11", "s11", UNIFORM, "min", "least"), ("mean s_11", "s11", UNIFORM, "max", "largest"),
    )  # fmt: skip
    return tuple(
        Part(
            f"{label} at training loss {level:g}{words}, {word} layer",
            _layers(residual, _at_loss(name, level), worst),
            interval if judged else None,
        )
        for label, name, interval, worst, word in asked
    )


_wide = functools.partial(Claim, runs=one_family("sign_gd"))
_claim = functools.partial(Claim, runs=all_runs, system="deep_transformer", settings=DEEP)
_BEHAVIOURS = (
    ("sign agreement at t=20", _at("sign_agreement", 20), AGREE, "min"),
    ("mean s_21 at t=150", _at("s21", 150), OFF_SIGNAL, "max"),
)

CLAIMS: tuple[Claim, ...] = (
    _wide(
        id="H1",
        statement="With 2, 4 and 8 heads the stages come in their order, t_I < t_II < t_III and t_II < t_IV",
        source="paper (the behaviours persist), ours (order)",
        steps=(0, 20, 70, 100, 150, 300),
        parts=(
            Part("in order (1) or not (0)", four_in_order, (1.0, 1.0), 1.0),
            Part("largest / smallest weight of a vote at t=70 (S3)", vote_spread, None),
        ),
        settings=HEADS,
    ),
    _wide(
        id="H2",
        statement="Each single head aligns its signs and leaves the signal while s_11 is near 1/2",
        source="paper (the behaviours persist), ours (each head)",
        steps=(20, 150),
        parts=(
            Part("sign agreement at t=20, worst head", _worst_head_agreement, AGREE, 1.0),
            Part(
                "mean s_21 at t=150, worst head",
                lambda ds: head_attention(ds, "s21", 150).max("head"),
                OFF_SIGNAL,
                0.0,
            ),
            Part("mean s_11 at t=150, least head", lambda ds: head_attention(ds, "s11", 150).min("head"), UNIFORM),
            Part("mean s_11 at t=150, largest head", lambda ds: head_attention(ds, "s11", 150).max("head"), UNIFORM),
        ),
        explanations=dict.fromkeys(
            ("heads 4", "heads 8"),
            "the more heads, the lower the worst: at one or two of 36 seeds it aligns a little later",
        ),
        settings=HEADS,
    ),
    _wide(
        id="H3",
        statement="With contexts of 4, 8 and 16 the stages come in their order, t_I < t_II < t_III and t_II < t_IV",
        source="paper (the behaviours persist), ours (order)",
        steps=(0, 20, 100, 150, 300),
        parts=(Part("in order (1) or not (0)", four_in_order, (1.0, 1.0), 1.0),),
        explanations=_OWN_KEY,
        settings=CONTEXTS,
    ),
    _wide(
        id="H4",
        statement="In a longer context noise queries leave the signal at least exponentially, the signal's query "
        "stays uniform",
        source="paper (the behaviours persist), ours (in units of 1/context)",
        steps=(50, 150, 300),
        parts=(
            Part("mean s_21 at t=150 / (1/context)", _times_context("s21"), (0.0, 0.02), 0.0),
            Part("mean s_11 at t=150 / (1/context)", _times_context("s11"), (0.8, 1.2), 1.0),
            Part("exponent a of -ln(context s_21) ~ t^a on [50,300]", _exponent, (1.0, INF)),
        ),
        settings=CONTEXTS,
    ),
    _claim(
        id="D1",
        statement="With residual connections layer 1 keeps the paper's behaviours: signs align, s_21 decays while "
        "s_11 is near 1/2, and the training loss falls below .1",
        source="paper",
        steps=(20, 150, 300),
        parts=(
            *(Part(f"{label}, layer 1", _deep(1.0, m, 0), interval) for label, m, interval, _ in _BEHAVIOURS),
            Part("mean s_11 at t=150, layer 1", _deep(1.0, _at("s11", 150), 0), UNIFORM),
            Part("training loss at t=300", _deep(1.0, _at("train_loss", 300)), (0.0, 0.1)),
        ),
    ),
    _claim(
        id="D2",
        statement="With residual connections every layer has them at training loss .1: signs are aligned, s_21 is "
        "below a tenth of its start and s_11 near 1/2 (not read at t=150, when deep models have long fitted)",
        source="ours",
        explanations=_NOISY,
        parts=(
            *_behind(0.1, 1.0, "", judged=True),
            Part("mean s_21 at training loss .1, layer 1", _deep(1.0, _at_loss("s21", 0.1), 0), None),
            Part("step at which the training loss is .1", _deep(1.0, _at_loss("step", 0.1)), None),
            *_behind(0.01, 1.0, "", judged=False),
            *_behind(0.1, 0.0, ", plain", judged=False),
        ),
    ),
    _claim(
        id="D3",
        statement="With residual connections the stages of layer 1 come in order, t_I < t_II < t_III and t_II < t_IV",
        source="ours",
        steps=(0, 20, 100, 150, 300),
        parts=(
            Part("in order (1) or not (0)", _deep(1.0, four_in_order, 0), (1.0, 1.0), 1.0),
            Part("the same without residual connections", _deep(0.0, four_in_order, 0), None),
        ),
    ),
    _claim(
        id="D4",
        statement="Without residual connections layer 1 loses at least one of the behaviours",
        source="paper (erratic), ours (the number)",
        steps=(20, 150),
        explanations=_LATER,
        parts=(
            Part("behaviours of three, plain", _deep(0.0, kept, 0), (0.0, 2.0)),
            *(Part(f"{label}, plain, layer 1", _deep(0.0, m, 0), None) for label, m, *_ in _BEHAVIOURS),
            Part("mean s_11 at t=150, plain, layer 1", _deep(0.0, _at("s11", 150), 0), None),
            Part("behaviours of three, plain, worst layer", _layers(0.0, kept, "min"), None),
            Part("sign agreement at t=20, plain, worst layer", _layers(0.0, _BEHAVIOURS[0][1], "min"), None),
            Part("mean s_21 at t=150, plain, worst layer", _layers(0.0, _BEHAVIOURS[1][1], "max"), None),
            *_pair("difference of the two tokens in the last layer at t=100", token_difference),
        ),
    ),
    _claim(
        id="D5",
        statement="Without residual connections attention is erratic: s_21 goes back and forth more than twice as much",
        source="paper (erratic), ours (the number)",
        steps=(0, 400),
        explanations=_BACK,
        parts=(
            Part("excess variation, plain - 2 residual, layer 1", _twice(excess_variation), ERRATIC),
            *_pair("excess variation", excess_variation),
            *_pair("the same of the layer where it is largest", most(excess_variation)),
        ),
    ),
    _claim(
        id="D6",
        statement="Without residual connections query signals are erratic: after t=100 they turn more than twice as "
        "often",
        source="paper (erratic), ours (the number)",
        steps=(100, 400),
        explanations=_TURNS,
        parts=(
            Part("turns a row, plain - 2 residual, layer 1", _twice(turns), ERRATIC),
            *_pair("turns", turns),
            *_pair("the same of the layer where it is largest", most(turns)),
        ),
    ),
    _claim(
        id="D7",
        statement="Without residual connections training is erratic: the loss rises more than twice as often",
        source="paper (erratic), ours (the number)",
        steps=(0, 400),
        explanations=_CALM,
        parts=(
            Part("share of stretches in which the loss rises, plain - 2 residual", _twice(rises), ERRATIC),
            *_pair("share of stretches of ten steps", rises),
        ),
    ),
    _claim(
        id="D8",
        statement="Without residual connections training to a loss of .1 takes more than twice the steps",
        source="ours",
        steps=(0, 400),
        parts=(Part("steps, plain / residual", _slower, above(2.0)), *_pair("steps", time_to)),
    ),
)
