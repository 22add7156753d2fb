"""Does a claim hold on these Datasets? Verdicts as a table in plain text, Markdown, LaTeX, HTML or a DataFrame."""

import dataclasses
import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from jaxsign.analysis.reading import CannotDecide, Defect, reading
from jaxsign.analysis.runs import manifest, system_of
from jaxsign.claims import tables
from jaxsign.claims.claim import Claim, real_numbers
from jaxsign.claims.setting import Setting
from jaxsign.validation.messages import counted
from jaxsign.validation.values import known

if TYPE_CHECKING:
    import xarray as xr

#: Takes a Dataset on which the code of a claim has failed, and words that name the claim and what was raised.
OnDefect: TypeAlias = "Callable[[xr.Dataset, str], None]"
#: Share of seeds that must lie inside for a claim to hold.
SHARE = 0.9
#: Beyond either end of a 95 % interval.
TAIL = 0.025
HEADER = (
    "claim",
    "setting",
    "measured quantity",
    "predicted",
    "median [5 %, 95 %]",
    "interval",
    "judged by",
    "verdict",
)


def verdict(inside: int, seeds: int) -> tuple[str, float, float]:
    """HOLDS, FAILS or UNDECIDED from the exact 95 % interval of the share of seeds inside.

    Args:
      inside: seeds whose numbers lie inside.
      seeds: all seeds, >= 1.

    Returns:
      (verdict, lower, upper): HOLDS if lower > .9, FAILS if upper < .9.

    Examples:
      >>> verdict(64, 64)[0], verdict(8, 8)[0], verdict(3, 64)[0]
      ('HOLDS', 'UNDECIDED', 'FAILS')

    References:
      Clopper and Pearson, Biometrika 1934.
    """
    from scipy.stats import binomtest

    low, high = binomtest(inside, seeds).proportion_ci(0.95, method="exact")
    word = "HOLDS" if low > SHARE else "FAILS" if high < SHARE else "UNDECIDED"
    return word, float(low), float(high)


def chance_of(inside: int, seeds: int) -> float:
    """Probability of so many seeds inside, or more, if the share inside were just the .9 that is not enough.

    Examples:
      >>> round(chance_of(64, 64), 4), round(chance_of(40, 40), 4)
      (0.0012, 0.0148)
    """
    from scipy.stats import binom

    return float(binom.sf(inside - 1, seeds, SHARE))


def chance_of_mean(values: np.ndarray, interval: tuple[float, float]) -> float:
    """Probability of a mean at least so far inside an interval if it were at the nearer end: two one-sided t tests.

    Examples:
      >>> chance_of_mean(np.array([1.9, 2.0, 2.1]), (1.0, 9.0)) < 0.01
      True
    """
    from scipy.stats import t

    if values.size < 2 or not np.isfinite(values).all():
        return math.nan
    error = np.std(values, ddof=1) / math.sqrt(values.size)
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = (np.mean(values) - interval[0]) / error, (interval[1] - np.mean(values)) / error
    return float(max(t.sf(distance, values.size - 1) for distance in inside))


def mean_verdict(values: np.ndarray, interval: tuple[float, float]) -> tuple[str, float, float]:
    """HOLDS, FAILS or UNDECIDED from the 95 % interval of a mean over seeds, by Student's t.

    Args:
      values: one number a seed; one that is not finite leaves the mean undecided.
      interval: (low, high) that the mean must lie in.

    Returns:
      (verdict, lower, upper): HOLDS if all of [lower, upper] lies inside, FAILS if none of it does.

    Examples:
      >>> mean_verdict(np.array([1.9, 2.0, 2.1]), (1.0, 9.0))[0], mean_verdict(np.array([0.5, 2.0]), (1.0, 9.0))[0]
      ('HOLDS', 'UNDECIDED')
    """
    from scipy.stats import t

    if values.size < 2 or not np.isfinite(values).all():
        return "UNDECIDED", math.nan, math.nan
    half = t.ppf(0.975, values.size - 1) * np.std(values, ddof=1) / math.sqrt(values.size)
    low, high = float(np.mean(values) - half), float(np.mean(values) + half)
    if interval[0] <= low and high <= interval[1]:
        return "HOLDS", low, high
    return ("FAILS" if high < interval[0] or low > interval[1] else "UNDECIDED"), low, high


@dataclasses.dataclass(frozen=True)
class Measured:
    """One part of a claim on one Dataset: words, numbers over seeds, interval and prediction (None: there is none)."""

    label: str
    median: float
    low: float
    high: float
    interval: tuple[float, float] | None
    predicted: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """The verdict on one claim in one setting.

    Args:
      claim: the claim.
      setting: the setting's name.
      parts: what was measured.
      inside: seeds inside the intervals of all parts.
      seeds: all seeds.
      share: 95 % interval of the share of seeds inside; of the mean where the claim is judged by it.
      verdict: HOLDS, FAILS or UNDECIDED.
      explanation: why the claim does not hold here, where that is known; empty for one that holds.
      chance: probability of numbers at least as good if the claim just did not hold: a share of .9 inside, or a mean at
        an end of the interval.
    """

    claim: Claim
    setting: str
    parts: tuple[Measured, ...]
    inside: int
    seeds: int
    share: tuple[float, float]
    verdict: str
    explanation: str = ""
    chance: float = math.nan

    def __repr__(self) -> str:
        return f"Row({self.claim.id} {self.setting}: {self.lines()[0][-2]}, {self.verdict})"

    def lines(self) -> list[tuple[str, ...]]:
        """Cells under HEADER, one line per part; the first one carries claim, setting, share and verdict."""
        share = f"{self.inside}/{self.seeds} seeds [{self.share[0]:.2f}, {self.share[1]:.2f}]"
        if self.claim.judge == "mean":
            share = f"mean in [{_number(self.share[0])}, {_number(self.share[1])}], {self.seeds} seeds"
        out: list[tuple[str, ...]] = []
        for i, part in enumerate(self.parts):
            first = (self.claim.id, self.setting) if i == 0 else ("", "")
            last = (share, self.verdict) if i == 0 else ("", "")
            measured = f"{_number(part.median)} [{_number(part.low)}, {_number(part.high)}]"
            out.append((*first, part.label, _number(part.predicted), measured, _interval(part.interval), *last))
        return out


@dataclasses.dataclass(frozen=True)
class ClaimTable:
    """Verdicts, one row per claim and setting, and what could not be decided.

    Args:
      rows: decided claims.
      missing: (claim id, setting, reason) of claims that no Dataset of that setting could answer; where no claim is
        decided at all, of every setting.
      asked: ids of the claims that were asked for; None: all that there are.
      beside: ids of the claims that name one of these settings and are decided in none, where others are: they may be
        about another sweep in it.
    """

    rows: tuple[Row, ...]
    missing: tuple[tuple[str, str, str], ...] = ()
    asked: tuple[str, ...] | None = None
    beside: tuple[str, ...] = ()

    def chances(self) -> str:
        """How many verdicts HOLDS chance alone would give in a table of this size, and how many are beyond chance."""
        held = [row for row in self.rows if row.verdict == "HOLDS"]
        beyond = self.beyond_chance()
        lost = [f"{row.claim.id} {row.setting}" for row in held if (row.claim.id, row.setting) not in beyond]
        text = (
            f"{counted(len(self.rows), 'row')}, {len(held)} HOLDS. If no claim quite held, at most {TAIL:.1%} of the "
            f"rows, {TAIL * len(self.rows):.1f}, would read HOLDS by chance. {len(beyond)} HOLDS "
            f"{'is' if len(beyond) == 1 else 'are'} beyond chance over the whole table (Holm, 5 %)"
        )
        return text + (f"; not {', '.join(lost)}, which need more seeds." if lost else ".")

    def left_open(self) -> str:
        """One line that names the claims `beside`; "" if there are none."""
        if not self.beside:
            return ""
        open_claims = ", ".join(self.beside)
        return f"Not decided by these results, though about such a setting: {open_claims} (--claim ID says why)."

    def beyond_chance(self) -> set[tuple[str, str]]:
        """(claim, setting) of the rows that read HOLDS, also after Holm's correction for the number of rows, at 5 %.

        A verdict leaves 2.5 % beyond each end of its interval: alone in a table, a row may be within 5 % and UNDECIDED.

        References:
          Holm, Scandinavian Journal of Statistics 1979.
        """
        out: set[tuple[str, str]] = set()
        chances = sorted(
            (row.chance if math.isfinite(row.chance) else 1.0, row.claim.id, row.setting, row.verdict)
            for row in self.rows
        )
        for place, (chance, claim, setting, word) in enumerate(chances):
            if chance > 2 * TAIL / (len(chances) - place):
                break
            if word == "HOLDS":
                out.add((claim, setting))
        return out

    def lines(self) -> list[tuple[str, ...]]:
        """Cells under HEADER, one line per part; a claim's first line carries its verdict."""
        return [line for row in self.rows for line in row.lines()]

    def reasons(self) -> list[str]:
        """Why claims are not decided, one sentence per reason and setting with the claims that it stops."""
        stopped: dict[tuple[str, str], list[str]] = {}
        for claim, setting, reason in self.missing:
            stopped.setdefault((setting, reason), []).append(claim)
        return [f"{', '.join(claims)} {setting}: {reason}" for (setting, reason), claims in stopped.items()]

    def __str__(self) -> str:
        lines = [HEADER, *self.lines()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
        text.insert(1, "-" * len(text[0]))
        text += [
            f"note on the full experiment: {row.claim.id} {row.setting}: {row.explanation}"
            for row in self.rows
            if row.explanation
        ]
        text += [f"not decided here: {claim} {setting}: {reason}" for claim, setting, reason in self.missing]
        return "\n".join(text)

    __repr__ = __str__

    def to_markdown(self) -> str:
        """The table in GitHub's Markdown."""
        rule = ["---"] * len(HEADER)
        lines = ([cell.replace("|", "\\|") for cell in line] for line in (HEADER, rule, *self.lines()))
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def to_latex(self) -> str:
        """The table as a LaTeX tabular (booktabs)."""
        special = {c: "\\" + c for c in "%_&{}#$"} | {c: f"${c}$" for c in "<>|"}
        special |= {"^": r"\^{}", "~": r"$\sim$", "\\": r"\textbackslash{}"}

        def cell(text: str) -> str:
            return "".join(special.get(c, c) for c in text)

        body = [" & ".join(map(cell, line)) + r" \\" for line in self.lines()]
        head = " & ".join(map(cell, HEADER)) + r" \\"
        begin = rf"\begin{{tabular}}{{{'l' * len(HEADER)}}}"
        return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])

    def _repr_html_(self) -> str:
        def tr(line: Iterable[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) + "</tr>"

        return "<table>" + tr(HEADER, "th") + "".join(tr(line, "td") for line in self.lines()) + "</table>"

    def to_dataframe(self) -> Any:
        """One pandas row per part, numbers as numbers."""
        import pandas as pd

        return pd.DataFrame(self.records())

    def records(self) -> list[dict[str, Any]]:
        """One dict per part, numbers as numbers."""
        beyond = self.beyond_chance()
        return [
            {
                "claim": row.claim.id, "setting": row.setting, "statement": row.claim.statement,
                "source": row.claim.source, "quantity": part.label, "predicted": part.predicted,
                "median": part.median, "q05": part.low, "q95": part.high,
                "interval_low": part.interval[0] if part.interval else None,
                "interval_high": part.interval[1] if part.interval else None,
                "inside": row.inside, "seeds": row.seeds, "share_low": row.share[0], "share_high": row.share[1],
                "judge": row.claim.judge, "chance": row.chance,
                "beyond_chance": (row.claim.id, row.setting) in beyond, "verdict": row.verdict,
            }
            for row in self.rows for part in row.parts
        ]  # fmt: skip

    def to_csv(self, path: Path) -> None:
        """Writes `records` as CSV in one move, numbers with 6 significant digits so that rounding leaves no trace.

        Args:
          path: new, or an earlier claims table; its folder exists.

        Raises:
          ValueError: if it is anything else, or cannot be written.
        """
        tables.write(Path(path), self.records())

    def changes(self, reference: Path) -> list[str]:
        """Sentences for verdicts that differ from a table written by `to_csv`.

        Args:
          reference: the file; of its claims, those that were asked for count.

        Returns:
          One sentence for every verdict that changed, is new, or is no longer decided.

        Raises:
          ValueError: if the file is not such a table.
        """
        return self.differences(tables.read(Path(reference)))

    def differences(self, before: Mapping[tuple[str, str], str]) -> list[str]:
        """As `changes`, against {(claim, setting): verdict}."""
        before = self.within(before)
        now = {(row.claim.id, row.setting): row.verdict for row in self.rows}
        changed = [f"{c} {s}: {before[c, s]} -> {v}" for (c, s), v in now.items() if before.get((c, s), v) != v]
        new = [f"{c} {s}: new, {v}" for (c, s), v in now.items() if (c, s) not in before]
        return [*changed, *new, *(f"{c} {s}: {v} -> not decided" for (c, s), v in before.items() if (c, s) not in now)]

    def within(self, verdicts: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], str]:
        """Those of {(claim, setting): verdict} whose claim was asked for."""
        return {key: word for key, word in verdicts.items() if self.asked is None or key[0] in self.asked}


def check(
    ds: "xr.Dataset | xr.DataTree | Sequence[xr.Dataset]", claims: Claim | str | Sequence[Claim | str] | None = None
) -> ClaimTable:
    """Decides claims on one Dataset or several.

    Args:
      ds: a Dataset, a list of them, or the DataTree of a folder of results; each answers the claims of its system that
        it can, the one with the most seeds where several in one setting can.
      claims: a Claim or the id of one, or a list of them, with different ids; default all.

    Returns:
      A ClaimTable, claims in order, the settings of a claim below each other.

    Raises:
      ValueError: for an unknown claim id, two claims of one id, an empty list, or a Dataset without a manifest.
      RuntimeError: if the code of a claim fails in another way than by `js.CannotDecide`; it names the claim, the
        setting and the part, and comes from the exception that was raised.

    Examples:
      >>> check([], claims=["S1"]).rows
      ()

    References:
      Claims of arXiv 2410.04870 and ours; each one's `source` says which.
    """
    return decide(ds, claims, None)


def decide(
    ds: "xr.Dataset | xr.DataTree | Sequence[xr.Dataset]",
    claims: Claim | str | Sequence[Claim | str] | None,
    on_defect: "OnDefect | None",
) -> ClaimTable:
    """As `check`, but a claim that fails is listed as not decided and given to `on_defect`; None: raised."""
    from jaxsign.claims.catalogue import CLAIMS, SYSTEMS, known_system, own_system  # late: not needed to import jaxsign

    datasets = _datasets(ds)
    by_id = {claim.id: claim for claim in CLAIMS}
    claims = [claims] if isinstance(claims, (Claim, str)) else claims
    if claims is not None and not len(claims):
        raise ValueError(f"claims must name at least one of {list(by_id)}, got {claims!r}")
    chosen = [c if isinstance(c, Claim) else by_id[known("claim", c, by_id)] for c in (claims or CLAIMS)]
    ids = [claim.id for claim in chosen]
    if twice := [name for i, name in enumerate(ids) if name in ids[:i]]:
        raise ValueError(f"claims must have different ids, got two of {twice[0]!r}")
    places = _places(datasets, known_system)
    for name in {claim.system for claim in chosen} - set(SYSTEMS):  # of tasks of one's own, under their own name
        places |= _places([ds for ds in datasets if own_system(ds) == name], own_system)
    own_tasks = {place for place, candidates in places.items() if own_system(candidates[0]) not in SYSTEMS}
    rows: list[Row] = []
    missing: list[tuple[str, str, str]] = []
    beside: list[tuple[str, str, str]] = []
    for claim in chosen:
        for (system, setting), candidates in places.items():
            if not claim.is_about(system, setting):
                continue
            row, reasons = _first_decided(claim, setting, candidates, on_defect)
            if row is not None:
                rows.append(row)
                continue
            # A variation of a preset, or a sweep beside it, was made for single claims: others would only be noise.
            # A claim of jaxsign that a task of one's own cannot decide was not meant for it.
            custom = setting == Setting("custom") and sum(name == system for name, _ in places) > 1
            other = claim is by_id.get(claim.id) and (custom or (system, setting) in own_tasks)
            kept = beside if setting.is_variation or other else missing
            kept.append((claim.id, str(setting), "; ".join(dict.fromkeys(reasons))))
        if not datasets or any(claim.is_about(*place) for place in places):
            continue
        if claim is not by_id.get(claim.id):
            missing.append((claim.id, "everywhere", _about_none(claim, datasets, places)))
        elif claims is not None and (own := sorted(str(place) for name, place in places if name == claim.system)):
            about = " or ".join(map(repr, claim.settings))
            missing.append(
                (claim.id, "everywhere", f"it is about {about}, these results are of {', '.join(map(repr, own))}")
            )
    asked = None if claims is None else tuple(claim.id for claim in chosen)
    decided = {row.claim.id for row in rows}
    named = {claim.id for claim in chosen if claim.settings} - decided
    open_ids = tuple(dict.fromkeys(claim for claim, _, _ in beside if claim in named)) if rows else ()
    return ClaimTable(tuple(rows), tuple(missing if rows else missing + beside), asked, open_ids)


def _datasets(ds: Any) -> list[Any]:
    """One Dataset, several, or those of a DataTree, as a list."""
    if isinstance(ds, (list, tuple)):
        return list(ds)
    if hasattr(ds, "subtree"):  # of js.open_results on a folder of results
        nodes = sorted(ds.subtree, key=lambda node: node.path)
        return [node.to_dataset() for node in nodes if "manifest" in node.attrs]
    return [ds]


def undecided(table: ClaimTable, datasets: "Sequence[xr.Dataset]", own: bool = False) -> list[str]:
    """Why claims are not decided, where one of the Datasets is of a system that the claims are about.

    Args:
      table: the verdicts on all Datasets.
      datasets: of any system.
      own: whether the claims were given by the user, who means these Datasets.

    Returns:
      A sentence for every reason; none if the claims are about none of the Datasets.
    """
    from jaxsign.claims.catalogue import SYSTEMS

    about = any(system_of(ds) in (*SYSTEMS, "") for ds in datasets)
    return list(table.reasons()) if table.rows or about or own else []


def _about_none(claim: Claim, datasets: "Sequence[xr.Dataset]", places: Iterable[tuple[str, Setting]]) -> str:
    """Why a claim of one's own is about none of these Datasets, and what to write in it."""
    from jaxsign.claims.catalogue import own_system

    settings = sorted({repr(str(setting)) for system, setting in places if system == claim.system})
    if settings:
        return f"settings must hold one of those of these results, {' or '.join(settings)}, got {claim.settings!r}"
    systems = sorted({repr(own_system(ds)) for ds in datasets})
    return f"system must name what made these results: write system={' or '.join(systems)}, got {claim.system!r}"


def _places(
    datasets: "Sequence[xr.Dataset]", name_of: "Callable[[xr.Dataset], str]"
) -> "dict[tuple[str, Setting], list[xr.Dataset]]":
    """The Datasets of every system and setting: those with the most seeds first, all of them side by side at the end.

    Args:
      datasets: any.
      name_of: Dataset -> the name of its system.

    Raises:
      ValueError: for a Dataset without a manifest.
    """
    from jaxsign.claims.catalogue import setting_of

    places: dict[tuple[str, Setting], list[xr.Dataset]] = {}
    for ds in datasets:
        manifest(ds)
        system = name_of(ds)
        with reading(f"naming the setting of a Dataset of {system}"):
            places.setdefault((system, setting_of(ds)), []).append(ds)
    with reading("bringing sweeps of one setting together"):
        for candidates in places.values():
            candidates.sort(key=lambda ds: ds.sizes.get("seed", 0), reverse=True)
            candidates += _joined(candidates)
    return places


def _first_decided(
    claim: Claim, setting: Setting, candidates: "Sequence[xr.Dataset]", on_defect: "OnDefect | None"
) -> tuple[Row | None, list[str]]:
    """The verdict from the first Dataset that can decide a claim, None if none can; why the ones before it cannot."""
    reasons: list[str] = []
    for ds in candidates:
        try:
            return _decide(claim, setting, ds), reasons
        except CannotDecide as reason:
            reasons.append(str(reason))
        except Defect as defect:
            if on_defect is None:
                raise
            words = " ".join(str(defect).split())
            on_defect(ds, words)
            reasons.append(words.removeprefix(f"{_place(claim, setting)}, "))
    return None, reasons


def _place(claim: Claim, setting: Setting) -> str:
    return f"claim {claim.id} in the setting {setting}"


def _joined(datasets: "Sequence[xr.Dataset]") -> "list[xr.Dataset]":
    """Sweeps of different optimizers over the same seeds as one Dataset of the numbers that all have; [] if none are.

    Thousands of seeds keep numbers instead of traces, and only one optimizer may need a test set: claims that compare
    optimizers find them side by side here.
    """
    import xarray as xr

    def scalars(ds: "xr.Dataset") -> "xr.Dataset":
        names = [name for name, v in ds.data_vars.items() if v.dims == ("optimizer", "seed")]
        extra = [name for name in ds.coords if name not in ("optimizer", "seed", "step", "family", "learning_rate")]
        return ds[names].drop_vars(extra, errors="ignore")

    whole = all(
        "status" in ds and ds["status"].dims == ("optimizer", "seed") and {"step", "family"} <= set(ds.coords)
        for ds in datasets
    )
    if len(datasets) < 2 or not whole:
        return []
    first = datasets[0]
    labels = [label for ds in datasets for label in ds["optimizer"].values.tolist()]
    same = all(ds.sizes["seed"] == first.sizes["seed"] and (ds["seed"] == first["seed"]).all() for ds in datasets)
    if not same or len(set(labels)) < len(labels) or any("learning_rate" not in ds.coords for ds in datasets):
        return []
    parts = [scalars(ds) for ds in datasets]
    shared = sorted(set.intersection(*(set(map(str, part.data_vars)) for part in parts)))
    steps = sorted(set.intersection(*(set(ds["step"].values.tolist()) for ds in datasets)))
    numbers = [part[shared].drop_vars("step", errors="ignore") for part in parts]
    side_by_side: xr.Dataset = xr.concat(numbers, "optimizer")
    return [side_by_side.assign_coords(step=steps).assign_attrs(first.attrs)]


def _decide(claim: Claim, setting: Setting, ds: "xr.Dataset") -> Row:
    """The verdict on one claim from one Dataset.

    Raises:
      CannotDecide: saying what the Dataset lacks.
      Defect: if its code fails, naming the claim, the setting and the part.
    """
    place = _place(claim, setting)
    measured: list[np.ndarray] = []
    predicted: list[float | None] = []
    with reading(place):
        runs = claim.select(ds)
        for part in claim.parts:
            with reading(f"{place}, the measure of {part.label!r}"):
                measured.append(_per_seed(part.measure(runs), runs))
            with reading(f"{place}, the prediction of {part.label!r}"):
                predicted.append(None if part.predict is None else _scalar(part.prediction(runs)))
        return _row(claim, setting, measured, predicted)


def _row(claim: Claim, setting: Setting, numbers: Sequence[np.ndarray], predicted: Sequence[float | None]) -> Row:
    """The verdict on a claim from one number a seed of each of its parts."""
    inside = np.ones(numbers[0].shape, bool)
    for part, values in zip(claim.parts, numbers):
        if part.interval is not None:
            inside &= (values >= part.interval[0]) & (values <= part.interval[1])  # NaN is outside
    count, seeds = int(inside.sum()), inside.size
    word, low, high = verdict(count, seeds)
    chance = chance_of(count, seeds)
    if claim.judge == "mean":
        judged = [(values, part.interval) for part, values in zip(claim.parts, numbers) if part.interval is not None]
        judgements = [mean_verdict(*one) for one in judged]
        words = [one[0] for one in judgements]
        word = next((w for w in ("FAILS", "UNDECIDED") if w in words), "HOLDS")
        low, high = judgements[words.index(word)][1:]
        chance = max(chance_of_mean(*one) for one in judged)
    measured = tuple(
        Measured(part.label, *_quantiles(values), part.interval, prediction)
        for part, values, prediction in zip(claim.parts, numbers, predicted)
    )
    explanation = "" if word == "HOLDS" else claim.explanation(setting)
    return Row(claim, str(setting), measured, count, seeds, (low, high), word, explanation, chance)


def _per_seed(numbers: Any, runs: "xr.Dataset") -> np.ndarray:
    """What a measure returned, as one float a seed; axes of one point are no axes.

    Raises:
      TypeError: if it is no DataArray of real numbers over the seeds of the runs.
    """
    dims = getattr(numbers, "dims", None)
    if dims is None or "seed" not in dims:
        raise TypeError(
            f"must return a DataArray over seed, got {type(numbers).__name__}{'' if dims is None else dims}"
        )
    seeds, axes = runs.sizes["seed"], set(runs["status"].dims) - {"seed"}
    numbers = numbers.squeeze([dim for dim in dims if dim in axes and numbers.sizes[dim] == 1], drop=True)
    if numbers.dims != ("seed",) or numbers.size != seeds:
        raise TypeError(f"must return one number for each of {seeds} seeds, got the dimensions {dict(numbers.sizes)}")
    if "seed" in numbers.coords and "seed" in runs.coords and not (numbers["seed"].values == runs["seed"].values).all():
        raise TypeError("must return the seeds in their order")
    return real_numbers(numbers.values)


def _scalar(number: Any) -> float:
    """What a prediction returned, as a float."""
    values = np.asarray(number)
    if values.size != 1:
        raise TypeError(f"must return one number, got the shape {values.shape}")
    return float(real_numbers(values).item())


def _quantiles(values: np.ndarray) -> tuple[float, float, float]:
    """Median, 5 % and 95 % quantile over the seeds that have a number; NaN if none has."""
    values = values[np.isfinite(values)]
    if not values.size:
        return math.nan, math.nan, math.nan
    median, low, high = np.quantile(values, [0.5, 0.05, 0.95])
    return float(median), float(low), float(high)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e3 else f"{value:.1e}"


def _interval(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return "(not judged)"
    low, high = interval
    # The neighbour of a plain number stands for an open end: see `claim.above`.
    above, below = (float(f"{end:g}") if math.isfinite(end) and abs(end) > 1e-300 else 0.0 for end in interval)
    open_low, open_high = low == math.nextafter(above, math.inf), high == math.nextafter(below, -math.inf)
    if high == math.inf:
        return f"{'>' if open_low else '>='} {above if open_low else low:g}"
    if low == -math.inf:
        return f"{'<' if open_high else '<='} {below if open_high else high:g}"
    left, right = ("(", above) if open_low else ("[", low), (below, ")") if open_high else (high, "]")
    return f"{left[0]}{left[1]:g}, {right[0]:g}{right[1]}"
