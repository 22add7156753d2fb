"""Commands: `jaxsign claims DIR`, and the command line that every sweeps/NAME.py shares."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxsign.store.results import UnusableData, is_results, open_results
from jaxsign.sweep.grid import Sweep
from jaxsign.sweep.runner import run_sweep
from jaxsign.validation import positive_int
from jaxsign.verdicts import check

Build = Callable[[argparse.Namespace], Mapping[str, Sweep]]
DONE, FAILED, BAD_INPUT, UNUSABLE, INTERRUPTED = 0, 1, 2, 3, 130


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line with exit status 2."""

    def error(self, message: str) -> Any:
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(BAD_INPUT)


def _count(text: str) -> int:
    try:
        return positive_int("value", int(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an int >= 1, got {text!r}") from None


def _guarded(prog: str, work: Callable[[], int]) -> int:
    """Runs a command; bad input, damaged data and interrupts end in one line and their exit status."""
    try:
        return work()
    except UnusableData as error:
        status, message = UNUSABLE, str(error)
    except ValueError as error:
        status, message = BAD_INPUT, str(error)
    except KeyboardInterrupt:
        status, message = INTERRUPTED, "interrupted; sweeps finished so far are kept"
    print(f"{prog}: {' '.join(message.split())}", file=sys.stderr)
    return status


def configure(devices: int | None = None, x64: bool = False) -> None:
    """Sets what JAX fixes when it starts: CPU devices (default one per core), 64-bit floats, deterministic GPU kernels.

    Args:
      devices: CPU devices, int >= 1; None leaves a backend that has already started as it is.
      x64: 64-bit floats.

    Raises:
      ValueError: if `devices` is given but JAX has already started.
    """
    import jax

    flag = "--xla_gpu_deterministic_ops=true"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    if x64:
        jax.config.update("jax_enable_x64", True)
    try:
        jax.config.update("jax_num_cpu_devices", devices or len(os.sched_getaffinity(0)))
    except RuntimeError:
        if devices is not None:
            raise ValueError(f"devices={devices} cannot be set: JAX has already started in this process") from None


def _axes_text(sweeps: Mapping[str, Sweep]) -> str:
    """One line per axis of every sweep, for --help; lines that all sweeps share come once."""
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


def sweep_cli(build: Build, description: str = "") -> Callable[..., int]:
    """The command line of one experiment: `python sweeps/NAME.py --out DIR [--seeds N] [--steps N] [--tiny] ...`.

    Every sweep that `build` returns is run into DIR/KEY (DIR itself if there is one), the finished ones are loaded.
    Bad input ends in one line on stderr and exit status 2. --help lists every axis.

    Args:
      build: `args -> {key: Sweep}`; args has seeds, steps, engine (None: the experiment's own), tiny and x64.
      description: shown by --help; give the module's docstring.

    Returns:
      `main(argv=None) -> exit status`.

    Examples:
      >>> main = sweep_cli(lambda args: {}, "An experiment without sweeps.")
    """

    def main(argv: Sequence[str] | None = None) -> int:
        parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False)
        parser.add_argument("-h", "--help", action="store_true", help="show this text and every axis")
        parser.add_argument("--out", metavar="DIR", help="results directory: new, empty, or of this very definition")
        parser.add_argument("--seeds", type=_count, help="number of seeds, 0..N-1")
        parser.add_argument("--steps", type=_count, help="optimizer steps")
        parser.add_argument("--engine", help="engine of the two-layer system")
        parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes: a smoke test, no science")
        parser.add_argument("--x64", action="store_true", help="64-bit floats")
        parser.add_argument("--devices", type=_count, help="CPU devices, default one per core")
        args = parser.parse_args(argv)

        def work() -> int:
            configure(args.devices, args.x64)
            sweeps = build(args)
            if args.help:
                print(parser.format_help() + "\n" + _axes_text(sweeps))
                return DONE
            if args.out is None:
                raise ValueError("--out DIR is needed, a new or empty directory or results of this definition")
            for key, sweep in sweeps.items():
                out = Path(args.out) / key if len(sweeps) > 1 else Path(args.out)
                print(f"{key}: {sweep.size} runs of {sweep.schedule.steps} steps -> {out}", flush=True)
                run_sweep(sweep, out)
            return DONE

        return _guarded(parser.prog, work)

    return main


def find_results(directory: str) -> list[Path]:
    """The results directories at and below a directory, sorted by path.

    Raises:
      ValueError: if there is none.
    """
    root = Path(directory)
    found = (
        [root] if is_results(root) else sorted(p.parent for p in root.rglob("manifest.json") if is_results(p.parent))
    )
    if not found:
        raise ValueError(f"DIR must hold finished results (manifest.json and results.zarr), got {directory!r}")
    return found


def _claims(args: argparse.Namespace) -> int:
    """Prints the claims table of all results below DIR."""
    table = check([open_results(path) for path in find_results(args.dir)], claims=args.claim)
    if table.rows:
        print(table.to_markdown() if args.markdown else table)
    for reason in [] if table.rows else table.reasons():
        print(f"no claim can be decided from {args.dir}: {reason}")
    if args.csv:
        table.to_csv(Path(args.csv))
    if args.against:
        if not Path(args.against).is_file():
            raise ValueError(f"--against must be a claims table written by --csv, got {args.against!r}")
        changed = table.changes(Path(args.against))
        for line in changed:
            print(f"differs from {args.against}: {line}")
        if table.rows and not changed:
            print(f"all verdicts are those of {args.against}")
    failed = [row for row in table.rows if row.verdict == "FAILS"]
    return FAILED if args.strict and failed else DONE


def main(argv: Sequence[str] | None = None) -> int:
    """The command `jaxsign`."""
    parser = _Parser(prog="jaxsign", description="Read results of jaxsign sweeps.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    claims = commands.add_parser("claims", help="predicted, measured and verdict of every claim that DIR can decide")
    claims.add_argument("dir", metavar="DIR", help="a results directory, or one that holds several")
    claims.add_argument("--claim", action="append", metavar="ID", help="only this claim; may be repeated")
    claims.add_argument("--strict", action="store_true", help="exit with 1 if a claim FAILS")
    claims.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    claims.add_argument("--csv", metavar="FILE", help="also write the table as CSV")
    claims.add_argument("--against", metavar="FILE", help="point out verdicts that differ from this CSV")
    claims.set_defaults(work=_claims)
    args = parser.parse_args(argv)
    return _guarded(parser.prog, lambda: args.work(args))


if __name__ == "__main__":
    raise SystemExit(main())
