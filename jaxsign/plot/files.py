"""How do figures look, and how are they kept? As PNG, PDF and SVG, and their numbers as CSV."""

import contextlib
import csv
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxsign.plot.colours import COLOURS, OTHERS
from jaxsign.plot.numbers import COLUMNS, table
from jaxsign.store.manifest import replace_file
from jaxsign.validation.values import local_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The paper style as a context: 7 and 7.5 pt, embedded TrueType fonts, thin axes, no top and right spines.

    Examples:
      >>> with style():
      ...     pass
    """
    import matplotlib as mpl
    from cycler import cycler

    settings: Any = {
        "font.size": 7.5, "axes.titlesize": 7.5, "axes.labelsize": 7.5, "legend.fontsize": 7, "xtick.labelsize": 7,
        "ytick.labelsize": 7, "font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans", "pdf.fonttype": 42,
        "ps.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "jaxsign", "axes.linewidth": 0.6,
        "lines.linewidth": 1.1, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
        "xtick.major.width": 0.6, "ytick.major.width": 0.6, "figure.dpi": 200, "savefig.dpi": 200,
        "hatch.linewidth": 0.4, "axes.titlelocation": "left", "figure.constrained_layout.use": True,
        "axes.prop_cycle": cycler(color=[*OTHERS, *COLOURS.values()]),
    }  # fmt: skip
    with mpl.rc_context(settings):
        yield
        interactive = mpl.is_interactive()  # a notebook's backend is loaded, and turns this on, with the first figure
    mpl.interactive(interactive)


def svg(fig: "Figure") -> str:
    """A figure as SVG: the same bytes for the same figure, text as text, with fonts to fall back on.

    Args:
      fig: matplotlib Figure.

    Returns:
      The SVG document.

    Examples:
      >>> from matplotlib.figure import Figure
      >>> svg(Figure()).startswith("<?xml")
      True
    """
    file = io.StringIO()
    with style(), warnings.catch_warnings():
        # Text stays text: the viewer's own fonts may have the glyph.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        fig.savefig(file, format="svg", metadata=dict.fromkeys(["Creator", "Date", "Format", "Type"]))
    return file.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")


def save(fig: "Figure", directory: str | os.PathLike, name: str) -> list[Path]:
    """Saves a figure as PNG, PDF and SVG, and every line, band and map it shows as NAME.csv.

    Args:
      fig: matplotlib Figure; each labelled panel's title names it in the CSV.
      directory: created if needed.
      name: file name without folder and suffix; files of an earlier figure of this name are replaced.

    Returns:
      The paths written.

    Raises:
      ValueError: if `directory` or a file in it cannot be made, or a file of that name is not of an earlier figure;
        nothing is written then.
    """
    import matplotlib.pyplot as plt

    if not isinstance(name, str) or not name or "/" in name or len(os.fsencode(name)) > 250:
        raise ValueError(f"name must be a file name of at most 250 bytes without a folder, got {name!r}")
    folder = local_path("directory", directory)
    paths = [local_path("name", folder / f"{name}.{suffix}") for suffix in ("png", "pdf", "svg", "csv")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"directory={str(folder)!r} cannot be made: {error.strerror or error}") from None
    for path in paths:
        if not os.access(path if path.exists() else folder, os.W_OK) or path.is_dir():
            raise ValueError(f"{str(path)!r} cannot be written")
    existing = [path for path in paths if path.exists()]
    if existing and not _is_table(paths[3]):
        raise ValueError(
            f"{str(existing[-1])!r} is not of a figure that was saved here, with its numbers in {name}.csv: move it "
            "away or choose another name"
        )
    # The table comes first: if writing is cut off, it shows that the other files belong to a figure.
    with _replacing(paths[3]) as temporary, open(temporary, "x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(table(fig))
    with _replacing(paths[0]) as temporary, open(temporary, "xb") as file:
        fig.savefig(file, format="png", metadata={"Software": None})
    with _replacing(paths[1]) as temporary, open(temporary, "xb") as file:
        fig.savefig(file, format="pdf", metadata={"CreationDate": None, "Producer": None})
    with _replacing(paths[2]) as temporary, open(temporary, "x", encoding="utf-8") as file:
        file.write(svg(fig))
    plt.close(fig)
    return paths


def _is_table(path: Path) -> bool:
    """Whether a file begins as the tables of figures do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline(1000).strip() == ",".join(COLUMNS).encode()


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """The path of a temporary file, which replaces `path`, or the file that a link leads to, in one move."""
    with replace_file(Path(os.path.realpath(path))) as temporary:
        yield temporary
