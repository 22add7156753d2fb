"""Which options does every sweeps/NAME.py have, and how is such a file loaded?"""

import argparse
import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxsign.cli.console import DONE, Parser, configure, count, guarded, positive
from jaxsign.store.files import LINKABLE
from jaxsign.store.manifest import MANIFEST
from jaxsign.sweep.run import check_shard, run_sweep
from jaxsign.sweep.sweep import Sweep
from jaxsign.validation.messages import say
from jaxsign.validation.values import known, local_path

Build = Callable[[argparse.Namespace], Mapping[str, Sweep]]


def sweep_cli(build: Build, description: str = "") -> Callable[..., int]:
    """The command line of one experiment: `python sweeps/NAME.py --out DIR [--seeds N] [--steps N] [--tiny] ...`.

    Every sweep that `build` returns is run into DIR/KEY (into DIR if it is the only one); finished ones are loaded.
    Bad input ends in one line on stderr and exit status 2. `--help` lists every axis.

    Args:
      build: `args -> {key: Sweep}`; args has seeds, steps, engine (None: the experiment's own), data_dir, tiny and x64.
      description: shown by `--help`; give the module's docstring.

    Returns:
      `main(argv=None) -> exit status`.

    Examples:
      >>> main = sweep_cli(lambda args: {}, "An experiment without sweeps.")
    """

    def main(argv: Sequence[str] | None = None) -> int:
        parser = experiment_parser(description)
        args = parser.parse_args(argv)

        def work() -> int:
            shard = args.shard if args.shard in (None, "auto") else check_shard(args.shard)
            configure(args.devices, args.x64)
            if args.help:  # first, since build may refuse what is not given
                print(parser.format_help())
            sweeps = built(build, args)
            if args.help:
                print(_axes_text(sweeps))
                return DONE
            if args.out is None:
                raise ValueError("--out DIR is needed, a new or empty directory or results of this definition")
            folder = local_path("--out", args.out)
            chosen = args.only.split(",") if args.only else list(sweeps)
            for key in chosen:
                known("sweep", key, sweeps)
            if len(sweeps) > 1:
                _say_others(folder, sweeps)
            for key in chosen:
                sweep = sweeps[key]
                out = folder / key if len(sweeps) > 1 else folder
                say(f"{key}: {sweep.size} runs of {sweep.schedule.steps} steps -> {out}", "stdout")
                run_sweep(
                    sweep, out, shard=shard, scheduler=args.scheduler, memory=args.memory, lane_width=args.lane_width,
                    checkpoint_every=args.checkpoint_every, accept=args.accept, wait_for_workers=args.wait_for_workers,
                    links=args.allow_link, progress=not args.quiet,
                )  # fmt: skip
            return DONE

        return guarded(parser.prog, work, resumes=True)

    return main


#: Options of `build` that an experiment may not have.
BUILD_OPTIONS = ("seeds", "steps", "engine", "data_dir", "tiny")


class _Heard(argparse.Namespace):
    """Arguments that remember which of them were read."""

    def __init__(self, given: argparse.Namespace) -> None:
        super().__init__(**vars(given))
        object.__setattr__(self, "_read", set())

    def __getattribute__(self, name: str) -> Any:
        if name == "__dict__":  # vars(args) reads all of them
            object.__getattribute__(self, "_read").update(BUILD_OPTIONS)
        elif name in BUILD_OPTIONS:
            object.__getattribute__(self, "_read").add(name)
        return object.__getattribute__(self, name)


def built(build: Build, args: argparse.Namespace) -> Mapping[str, Sweep]:
    """What `build` makes of some arguments.

    Raises:
      ValueError: for an option that was given and that `build` does not look at, or a key that names no folder.
    """
    heard = _Heard(args)
    sweeps = build(heard)
    read = object.__getattribute__(heard, "_read")
    for name in BUILD_OPTIONS:
        if vars(args)[name] not in (None, False) and name not in read:
            raise ValueError(f"--{name.replace('_', '-')} would have no effect: this experiment does not read it")
    for key in sweeps:
        if not isinstance(key, str) or key in ("", ".", "..") or {"/", "\\", "\0"} & set(key):
            raise ValueError(f"keys of build must be names of folders, got {key!r}")
    return sweeps


def _say_others(folder: Path, sweeps: Mapping[str, Sweep]) -> None:
    """Names results beside this experiment's own, which claims and figures of the folder would read, too."""
    others = [path.parent.name for path in sorted(folder.glob(f"*/{MANIFEST}")) if path.parent.name not in sweeps]
    if others:
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        say(f"{folder} also holds {shown}: not of this experiment; jaxsign claims {folder} reads them, too")


def experiment_parser(description: str = "") -> Parser:
    """The options that every experiment has; the documentation is generated from it."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False)
    parser.add_argument("-h", "--help", action="store_true", help="show this text and every axis")
    parser.add_argument("--out", metavar="DIR", help="results directory: new, empty, or of this very definition")
    build_options(parser)
    _run_options(parser)
    return parser


def _axes_text(sweeps: Mapping[str, Sweep]) -> str:
    """One line per axis of every sweep, for --help; lines that all sweeps share are listed once."""
    axes = {key: _axis_lines(sweep) for key, sweep in sweeps.items()}
    first, *others = axes.values() if len(axes) > 1 else ([],)
    shared = [line for line in first if all(line in lines for lines in others)]
    lines = ["sweeps and their axes:"]
    if shared:
        lines += ["  all of them:", *(f"    {line}" for line in shared)]
    for key, sweep in sweeps.items():
        lines.append(f"  {key}: {sweep.size} runs of {sweep.schedule.steps} steps")
        lines += [f"    {line}" for line in axes[key] if line not in shared]
    return "\n".join(lines)


def _axis_lines(sweep: Sweep) -> list[str]:
    """One line per axis of one sweep."""
    lines = []
    for axis in sweep.grid_axes:
        values = [point if len(point) > 1 else point[0] for point in axis.values]
        lines.append(f"{', '.join(axis.members)}: {', '.join(map(str, values))}")
    lines.append(f"optimizer: {', '.join(label for label, _, _ in sweep.optimizer_points)}")
    lines.append(f"seed: {len(sweep.seeds)} seeds")
    return lines


def build_options(parser: argparse.ArgumentParser) -> None:
    """Options of an experiment's `build`."""
    parser.add_argument("--seeds", type=count, help="number of seeds, 0..N-1")
    parser.add_argument("--steps", type=count, help="optimizer steps")
    parser.add_argument("--engine", help="engine of the two-layer system")
    parser.add_argument("--data-dir", metavar="DIR", help="an experiment's real data; default those of the package")
    parser.add_argument(
        "--tiny", action="store_true", help="smallest sizes: a smoke test, no science; most of its time compiles"
    )
    parser.add_argument("--x64", action="store_true", help="64-bit floats")


def _run_options(parser: argparse.ArgumentParser) -> None:
    """Options of running the sweeps; none of them changes a definition."""
    parser.add_argument("--only", metavar="KEY[,KEY]", help="these of several sweeps; the others are left as they are")
    parser.add_argument("--devices", type=count, metavar="N", help="CPU devices, default one per core")
    parser.add_argument(
        "--shard", metavar="I/N", help="part I of N, beside other processes; auto: as jax.distributed says"
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help="run blocks as tasks of this Dask scheduler")
    parser.add_argument(
        "--wait-for-workers", type=positive, default=300.0, metavar="SECONDS",
        help="for which a scheduler may be without workers, default 300",
    )  # fmt: skip
    parser.add_argument("--memory", type=count, metavar="BYTES", help="memory of one call; kept once a sweep is begun")
    parser.add_argument("--lane-width", type=count, metavar="W", help="runs of a vmap; kept once a sweep is begun")
    parser.add_argument("--accept", metavar="REASON", help="take a change of code; the manifest keeps the reason")
    parser.add_argument(
        "--allow-link", action="append", default=[], choices=LINKABLE, metavar="NAME",
        help="the folder NAME of DIR, trajectories or checkpoints, may be a link; the manifest keeps where it leads",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint-every", type=positive, default=60.0, metavar="SECONDS", help="between checkpoints, default 60"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress on stderr, only messages")


def load_build(file: str) -> Build:
    """The function `build` of an experiment's file; its folder is on the path while the file and `build` run.

    Args:
      file: path of a Python file that defines `build(args) -> {key: Sweep}`.

    Raises:
      ValueError: if there is no such file, it cannot be loaded, or it defines no `build`.
    """
    path, module = local_path("FILE", file), load_file(file)
    if not callable(getattr(module, "build", None)):
        raise ValueError(f"{file!r} defines no build(args) that returns {{key: js.Sweep}}")

    def build(args: argparse.Namespace) -> Mapping[str, Sweep]:
        with _importable(path.parent):
            sweeps = module.build(args)
        if not isinstance(sweeps, Mapping) or not sweeps or not all(isinstance(s, Sweep) for s in sweeps.values()):
            raise ValueError(f"build of {file!r} must return {{key: js.Sweep}} with at least one sweep")
        return sweeps

    return build


def load_file(file: str) -> ModuleType:
    """A user's Python file as a module; its folder is on the path while it runs.

    Raises:
      ValueError: if there is no such file, or it cannot be loaded.
    """
    path = local_path("FILE", file)
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"FILE must be a Python file that exists and ends in .py, got {file!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as an import does, since dataclasses look their module up
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's file: any error means that it cannot be loaded
        raise ValueError(f"{file!r} cannot be loaded: {type(error).__name__}: {error}") from None
    return module


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Puts a folder first on the import path, as Python does for the folder of a script."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
