"""Which page reports results? One HTML file: verdicts, figures, settings and commands; the same bytes every time."""

import base64
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsign.analysis.reading import reading
from jaxsign.analysis.runs import manifest, system_of
from jaxsign.claims.verdicts import HEADER, decide, undecided
from jaxsign.report.drawings import Drawing, drawings
from jaxsign.store.manifest import replace_file
from jaxsign.validation.names import printable
from jaxsign.validation.values import local_path

if TYPE_CHECKING:
    import xarray as xr

    from jaxsign.claims.claim import Claim
    from jaxsign.claims.verdicts import OnDefect

#: A file with this line is an earlier report and may be replaced.
MADE_BY = '<meta name="generator" content="jaxsign report">'
VERDICTS = ("HOLDS", "FAILS", "UNDECIDED")
#: Of a longer list, the page shows both ends.
LIST = 12


@dataclasses.dataclass(frozen=True)
class Section:
    """One Dataset on the page.

    Args:
      name: its name on the page.
      anchor: its id.
      setting: the setting's name.
      system: the system's name.
      runs: {"finished": count, "diverged": count, "not run": count}.
      groups: (heading, drawings) in order.
      facts: (label, words) of the manifest.
      commands: the command lines that made it; empty if none is recorded.
      manifest: (name, JSON) of everything in the manifest.
    """

    name: str
    anchor: str
    setting: str
    system: str
    runs: dict[str, int]
    groups: list[tuple[str, list[Drawing]]]
    facts: list[tuple[str, str]]
    commands: list[str]
    manifest: list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A finished figure from a file, for an <img>: a browser runs no script in it and fetches nothing for it.

    Args:
      name: the file's name without suffix.
      source: data URI of the picture.
      numbers: data URI of the CSV beside it, or "".
    """

    name: str
    source: str
    numbers: str


@dataclasses.dataclass(frozen=True)
class Live:
    """What a page says while its sweeps are under way.

    Args:
      seconds: after which a browser reads the page again.
      states: (name of a results directory, its (label, words)) of all of them, those without results included.
      now: when the page was made.
    """

    seconds: int
    states: Sequence[tuple[str, Sequence[Sequence[str]]]]
    now: str

    @property
    def running(self) -> bool:
        """Whether a process works on one of them."""
        return any(label == "running" for _, state in self.states for label, *_ in state)


def render(
    runs: Mapping[str, "xr.Dataset"],
    figures: str | os.PathLike | None = None,
    live: Live | None = None,
    *,
    claims: "Sequence[Claim | str] | None" = None,
    on_defect: "OnDefect | None" = None,
) -> str:
    """One self-contained HTML page about results.

    Args:
      runs: {name on the page: Dataset}, each of `js.run_sweep`, `js.open_results` or `Run.to_xarray`, of any system;
        runs that have not run are counted and left out of the figures.
      figures: folder whose SVG and PNG files are shown as well, an SVG before a PNG of the same name, with the CSV of
        that name to save; or None.
      live: what the page says while its sweeps are under way, when runs may be empty; None: a finished page.
      claims: claims of your own, or ids, as in `js.check`; default all of jaxsign's.
      on_defect: function of a Dataset and a sentence, called where a claim fails in another way than by
        `js.CannotDecide`; the page lists the claim as not decided. None: the page fails.

    Returns:
      The page: every figure that `js.plot` can draw, the claims table of all Datasets together, every manifest.

    Raises:
      ValueError: for no Dataset, one without a manifest, or a folder without pictures.
      RuntimeError: if a claim or a drawing fails in another way than by `js.CannotDecide`, from what it raised.

    Examples:
      >>> import jax, jaxsign as js
      >>> task = js.two_layer(js.Problem(n=4, d=50, s=5, m_k=3, m_v=3, n_test=10))
      >>> run = js.train(jax.random.key(0), task, js.Hyper(sigma_p=2.0), js.sign_gd(1e-3), steps=20)
      >>> page = js.report.render({"one run": run.to_xarray()})
      >>> page.startswith("<!DOCTYPE html>"), "training loss" in page
      (True, True)
    """
    import jinja2

    if not runs and live is None:
        raise ValueError("runs must hold at least one Dataset, got none")
    pictures = _pictures(local_path("figures", figures)) if figures is not None else []
    table = decide(list(runs.values()), claims, on_defect)
    sections = []
    for i, (name, ds) in enumerate(runs.items()):
        with reading(f"the section of {name!r}"):
            sections.append(_section(name, f"run-{i + 1}", ds))
    script = _asset("page.js")
    words = [row.verdict for row in table.rows]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxsign.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, finalize=_shown,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        made_by=MADE_BY, style=_asset("page.css"), script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        sections=sections, pictures=pictures, header=HEADER, dates=_dates(runs),
        reasons=undecided(table, list(runs.values()), own=claims is not None),
        claims=[list(rows) for _, rows in itertools.groupby(table.rows, lambda row: row.claim.id)],
        total=sum(sum(section.runs.values()) for section in sections),
        counts=[(word, words.count(word)) for word in VERDICTS],
        incomplete=[section for section in sections if section.runs["not run"]], live=live, own=claims is not None,
    )  # fmt: skip


def write(
    file: str | os.PathLike,
    runs: Mapping[str, "xr.Dataset"],
    figures: str | os.PathLike | None = None,
    live: Live | None = None,
    *,
    claims: "Sequence[Claim | str] | None" = None,
    on_defect: "OnDefect | None" = None,
) -> Path:
    """Writes the page of `render` in one move, so that the file is never half written.

    Args:
      file: the HTML file: new, or an earlier report.
      runs: as in `render`.
      figures: as in `render`.
      live: as in `render`.
      claims: as in `render`.
      on_defect: as in `render`.

    Returns:
      The file's path.

    Raises:
      ValueError: as in `render`, or if `file` is something else or cannot be written.
    """
    path = local_path("out", file)
    check_file(path)
    page = render(runs, figures, live, claims=claims, on_defect=on_defect)
    target = Path(os.path.realpath(path))  # the file that a link leads to is replaced, not the link
    try:
        with replace_file(target) as temporary, temporary.open("x", encoding="utf-8") as stream:
            stream.write(page)
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be written: {error.strerror or error}") from None
    return path


def check_file(path: Path) -> None:
    """Checks that a report can be written to a file, before minutes are spent on drawing it.

    Raises:
      ValueError: if the file is a directory or not a report, or its folder is missing or cannot be written.
    """
    if path.is_dir():
        raise ValueError(f"out must be a file, got the directory {str(path)!r}")
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise ValueError(f"out must be in a folder that exists, got {str(path)!r}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"out must be in a folder that can be written, got {str(path)!r}")
    if path.exists() and not (path.is_file() and _is_report(path)):
        raise ValueError(f"{str(path)!r} is not a page that jaxsign report has made: move it away or choose another")


def _is_report(path: Path) -> bool:
    if not path.is_file():  # a pipe would wait for its writer
        return False
    with path.open("rb") as file:
        return MADE_BY.encode() in file.read(2000)


def _shown(value: Any) -> Any:
    """A value as the page shows it: `printable` text; the page's own markup stays as it is."""
    return printable(value) if type(value) is str else value


def _asset(name: str) -> str:
    return resources.files("jaxsign.report").joinpath(name).read_text(encoding="utf-8")


def _section(name: str, anchor: str, ds: "xr.Dataset") -> Section:
    from jaxsign.claims.catalogue import setting_of

    record, panels = manifest(ds), drawings(ds, anchor)
    status = np.asarray(ds["status"].values)
    kinds = {"finished": status == 0, "diverged": status == 1, "not run": status < 0}
    runs = {kind: int(which.sum()) for kind, which in kinds.items()}
    panels = [dataclasses.replace(d, svg="\n".join(map(printable, d.svg.split("\n")))) for d in panels]
    groups = [(group, list(members)) for group, members in itertools.groupby(panels, lambda drawing: drawing.group)]
    recorded = [session.get("command", "") for session in record.get("sessions", [])] or [record.get("command", "")]
    commands = [command for command in dict.fromkeys(recorded) if command]
    whole = [(key, json.dumps(value)) for key, value in sorted(record.items())]
    return Section(
        name, anchor, str(setting_of(ds)), system_of(ds), runs, groups, _facts(ds, record, runs), commands, whole
    )


def _facts(ds: "xr.Dataset", record: Mapping[str, Any], runs: Mapping[str, int]) -> list[tuple[str, str]]:
    """(label, words) of a Dataset's manifest, without empty ones."""
    definition = record["definition"]
    axes = [str(dim) for dim in ds["status"].dims if dim not in ("optimizer", "seed")]
    words = {
        "runs": ", ".join(f"{count} {kind}" for kind, count in runs.items()) + f"; {sum(runs.values())} in all",
        "system": system_of(ds), "engine": definition.get("engine"),
        "problem": _fields(definition.get("problem")), "hyper": _fields(definition.get("hyper")),
        "optimizers": _listed(ds["optimizer"].values), **{f"axis {axis}": _listed(ds[axis].values) for axis in axes},
        "seeds": _listed(ds["seed"].values), "steps": definition.get("steps"),
        "recorded steps": _listed(ds["step"].values) if "step" in ds.coords else None,
        "observables": ", ".join(sorted(str(name) for name, v in ds.data_vars.items() if "step" in v.dims)),
        "trainable": ", ".join(definition.get("trainable") or []),
        "dtype": record.get("dtype"), "matmul precision": record.get("matmul_precision"),
        "device": _fields(record.get("device")), "devices": (record.get("plan") or {}).get("devices"),
        "versions": _fields(record.get("versions")), "flags": _fields(record.get("flags")),
        "accepted changes": "; ".join(map(_accepted, record.get("accepted", ()))),
        "re-run": record.get("resume"), "wall time": _time(record), "content hash": record.get("hash"),
    }  # fmt: skip
    return [(label, str(text)) for label, text in words.items() if text not in (None, "")]


def _accepted(note: Mapping[str, Any]) -> str:
    """One change of code that was accepted, in words."""
    return f"{note['date'][:10]}: {note['reason']} ({', '.join(note['differences'])})"


def _fields(record: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {value}" for name, value in (record or {}).items() if value not in (None, ""))


def _listed(values: Any) -> str:
    """A list in words, a long one by its ends.

    Examples:
      >>> _listed([1, 2]), _listed(range(64))
      ('1, 2', '0, 1, 2, 3, 4, 5, ..., 61, 62, 63 (64 of them)')
    """
    words = [f"{value:.6g}" if isinstance(value, float) else str(value) for value in np.asarray(values).tolist()]
    if len(words) <= LIST:
        return ", ".join(words)
    return f"{', '.join(words[:6])}, ..., {', '.join(words[-3:])} ({len(words)} of them)"


def _time(record: Mapping[str, Any]) -> str:
    """Wall time and sessions in words."""
    if "wall_seconds" not in record:
        return ""
    seconds, count = float(record["wall_seconds"]), len(record.get("sessions", [])) or 1
    spent = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} minutes"
    return f"{spent} in {count} session{'s' if count > 1 else ''}, finished {_ends([record])[-1]}"


def _ends(manifests: Any) -> list[str]:
    """When the sessions of these manifests ended, sorted."""
    return sorted(
        session["finished"]
        for record in manifests
        for session in (record.get("sessions") or [record])
        if "finished" in session
    )


def _dates(runs: Mapping[str, "xr.Dataset"]) -> str:
    """First and last day of the runs; empty if no manifest has dates."""
    days = list(dict.fromkeys(end[:10] for end in _ends([manifest(ds) for ds in runs.values()])))
    return " to ".join(days[:1] + days[1:][-1:])


def _pictures(folder: Path) -> list[Picture]:
    """The finished figures of a folder, sorted by name.

    Raises:
      ValueError: if there is no such folder, no picture in it, or a file is not what its suffix says.
    """
    if not folder.is_dir():
        raise ValueError(f"figures must be a folder that exists, got {str(folder)!r}")
    files = {file.stem: file for suffix in ("png", "svg") for file in sorted(folder.glob(f"*.{suffix}"))}
    if not files:
        raise ValueError(f"figures must be a folder with SVG or PNG files, got {str(folder)!r}")
    out = []
    for name, file in sorted(files.items()):
        content = _read(file)
        if file.suffix == ".png" and not content.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError(f"{str(file)!r} is not a PNG picture")
        if file.suffix == ".svg" and not _is_svg(content):
            raise ValueError(f"{str(file)!r} is not an SVG picture")
        kind = "svg+xml" if file.suffix == ".svg" else "png"
        table = file.with_suffix(".csv")
        numbers = _data("text/csv", _read(table)) if table.is_file() else ""
        out.append(Picture(name, _data(f"image/{kind}", content), numbers))
    return out


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"{str(file)!r} cannot be read: {error.strerror or error}") from None


def _is_svg(content: bytes) -> bool:
    from xml.etree import ElementTree

    try:
        return ElementTree.fromstring(content).tag.rpartition("}")[2] == "svg"
    except ElementTree.ParseError:
        return False


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
