"""How does a script become a figure? The command line, the reading and the writing of every figures/NAME.py."""

import argparse
import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxsign.analysis.reading import CannotDecide
from jaxsign.plot.checks import faults
from jaxsign.plot.files import save, style
from jaxsign.plot.panels import tick_log
from jaxsign.store.manifest import UnusableData, has_manifest
from jaxsign.store.results import open_dataset
from jaxsign.validation.values import local_path

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

Draw = Callable[..., "Figure | Mapping[str, Figure]"]


def loaded(path: Path) -> "xr.Dataset":
    """The Dataset of a results directory, read into memory."""
    return open_dataset(path).load()


def figure_script(
    draw: Draw, description: str | None = None, *, reads: str | Sequence[str], opens: Callable[[Path], Any] = loaded
) -> Callable[..., None]:
    """The command line of one figure: `python figures/NAME.py --results DIR --out DIR`.

    The results are opened, `draw` makes the figure in the style of a paper, and `save` writes it as OUT/NAME.png, .pdf,
    .svg and .csv, NAME being the name of the file that defines `draw`. The paths are printed, and what keeps a reader
    from reading the figure is a warning, see `js.plot.faults`. Results that cannot be opened or lack what the figure
    shows, and files that cannot be written, end in one line on stderr and exit status 1.

    Args:
      draw: `(*inputs) -> Figure`, with one input for every entry of `reads`; {name: Figure} for several figures.
      description: shown by `--help`; give the module's docstring.
      reads: results directories below DIR. "snr/snr" is one Dataset; "restore/*" is {folder's name: Dataset} of all
        folders that match, in the order of their names, possibly none.
      opens: how a directory is opened; default: as a Dataset that is read into memory.

    Returns:
      `main(argv=None)`.

    Examples:
      >>> main = figure_script(lambda runs: None, reads="restore/*")
    """
    patterns = [reads] if isinstance(reads, str) else list(reads)
    name = Path(inspect.getfile(draw)).stem

    def main(argv: Sequence[str] | None = None) -> None:
        parser = figure_parser(description)
        args = parser.parse_args(argv)
        with _in_one_line(parser.prog, UnusableData, CannotDecide):
            with _in_one_line(parser.prog, ValueError, OSError):
                inputs = _inputs(local_path("--results", args.results), patterns, opens)
            with style():
                with _lacking(parser.prog, args.results):
                    drawn = draw(*inputs)
                figures = drawn if isinstance(drawn, Mapping) else {name: drawn}
                with _in_one_line(parser.prog, ValueError, OSError):
                    for key, figure in figures.items():
                        for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
                            tick_log(axis)
                        for fault in faults(figure):
                            warnings.warn(f"{key}: {fault}", UserWarning, stacklevel=2)
                        for path in save(figure, args.out, key):
                            print(path)

    return main


def figure_parser(description: str | None = None) -> argparse.ArgumentParser:
    """The options that every figure has; the documentation is generated from it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--results", default="results", metavar="DIR", help="folder of the results, default results")
    parser.add_argument(
        "--out", default="results/figures", metavar="DIR", help="folder of the pictures, default results/figures"
    )
    return parser


def _inputs(results: Path, patterns: Sequence[str], opens: Callable[[Path], Any]) -> list[Any]:
    """What every pattern below a directory stands for, opened.

    Raises:
      ValueError: if nothing matches.
    """
    places = {pattern: _place(results, pattern) for pattern in patterns if "*" not in pattern}
    for pattern, place in places.items():
        if not place.exists():
            experiment = pattern.partition("/")[0]
            raise ValueError(
                f"--results: {str(results / pattern)!r} is not there: the experiment {experiment} makes it"
            )
    inputs = [
        {path.name: opens(path) for path in sorted(results.glob(pattern)) if path.is_dir()}
        if "*" in pattern
        else opens(places[pattern])
        for pattern in patterns
    ]
    if all(isinstance(entries, dict) and not entries for entries in inputs):
        raise ValueError(f"--results: {str(results)!r} holds nothing that matches {' or '.join(patterns)}")
    return inputs


def _place(results: Path, pattern: str) -> Path:
    """Where an entry's results are: in its experiment's folder, or that folder itself if it holds one entry alone."""
    place = results / pattern
    return place.parent if not place.exists() and has_manifest(place.parent) and place.parent != results else place


@contextlib.contextmanager
def _lacking(prog: str, results: str) -> Iterator[None]:
    """Ends the process with one line where a figure asks for a point of an axis that the results do not have."""
    try:
        yield
    except KeyError as error:
        point = " ".join(str(error.args[0] if error.args else error).split()).partition(". Try ")[0]
        raise SystemExit(
            f"{prog}: the results in {results!r} lack a point that this figure shows ({point}): run the experiment in "
            f"full, neither --tiny nor with axes of its own"
        ) from error


@contextlib.contextmanager
def _in_one_line(prog: str, *errors: type[Exception]) -> Iterator[None]:
    """Ends the process with one line on stderr and exit status 1 where one of these errors is raised."""
    try:
        yield
    except errors as error:
        raise SystemExit(f"{prog}: {' '.join(str(error).split())}") from None
