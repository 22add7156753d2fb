"""Does the library do on this device what it does on a CPU, and how fast? Everything at once, as one table.

Each part is a process of its own: XLA reads its flags when it starts, a device has memory for one process only, and
what ends one part, a crash too, does not end the others. In order of importance:

    device      the device, whether products are float32 ones (not TF32), and draws against a CPU's: integers equal,
                floats within 1e-6
    equal       in 64 bits and on the same draws, every engine against dense, and dense against the textbook program
                and dense on a CPU: losses and observables within 1e-9 of their size over 200 steps; SignGD, then Adam
                and GD; disjoint and independent supports
    resume      a sweep that SIGINT ends at a checkpoint and another process completes, against an undisturbed one:
                bit-identical under --xla_gpu_deterministic_ops=true (and on a CPU); in any case losses within 1e-3
    votes       whether the device keeps subnormal numbers; signs of gradients down to exp(-300) in 32 bits against 64;
                900 steps of feature_space in 32 bits against 64, and the step at which dense freezes
    speed       seed-steps/s of every engine and of the textbook program over lane widths (SignGD, no test metrics),
                compile seconds, bytes of a run; last losses within 1e-4
    plain       `resume` without the flag: for information, except for the losses
    size        the most runs that one call holds, from the compiler's count of bytes, and that they do run
    law         mean losses of runs drawn in distribution against dense draws, within 5 standard errors

A line's verdict is ok or FAIL (the value is or is not at most the limit), info (there is no limit), ERROR with the
message, or skipped, where the time would not do. Programs are compiled afresh, whatever JAX's cache holds. `--tiny` is
a smoke test on any machine: smallest sizes, no measurement.

Command: python sweeps/bench/device.py [--out results/device] [--minutes 8] [--platform gpu] [--tiny]
Cost: at most 8 minutes on any device; --tiny: less than a minute on 2 cores, nearly all of it compilation.
Exit status: 1 if a check fails or ends in an error, or if JAX does not find the platform; else 0.
Writes, with --out: device.csv and device.json, one entry a line of the table, after every part.
"""

import argparse
import csv
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

CHECKS = Path(__file__).with_name("device_checks.py")
FLAG = "--xla_gpu_deterministic_ops"
COLUMNS = (
    "part", "check", "verdict", "value", "unit", "limit", "lane_width", "compile_s", "bytes_per_run", "note",
)  # fmt: skip
BAD = ("FAIL", "ERROR")


@dataclasses.dataclass(frozen=True)
class Part:
    """A process of device_checks.py.

    Args:
      name: in the table.
      runs: the part of device_checks.py.
      least: seconds that must be left to begin it.
      most: seconds after which it is ended: with an error, unless the whole time is over.
      deterministic: whether XLA gets the flag; a smoke test leaves out parts without.
    """

    name: str
    runs: str
    least: float
    most: float
    deterministic: bool = True


PARTS = (
    Part("device", "device", 10, 90),
    Part("equal", "equal", 20, 170),
    Part("resume", "interrupt", 20, 100),
    Part("resume", "resume", 15, 80),
    Part("votes", "votes", 20, 80),
    Part("speed", "speed", 20, 200),
    Part("plain", "interrupt", 30, 100, deterministic=False),
    Part("plain", "resume", 15, 80, deterministic=False),
    Part("size", "size", 20, 120),
    Part("law", "law", 20, 80),
)


def environment(part: Part, tiny: bool, cache: str) -> dict[str, str]:
    """The variables of a part's process."""
    env = dict(os.environ)
    flags = [flag for flag in env.get("XLA_FLAGS", "").split() if not flag.startswith(FLAG)]
    level = "--xla_backend_optimization_level"
    flags += [f"{FLAG}=true"] * part.deterministic + [f"{level}=0"] * (tiny and level not in env.get("XLA_FLAGS", ""))
    env["XLA_FLAGS"] = " ".join(flags)
    platforms = env.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms.split(","):
        env["JAX_PLATFORMS"] = f"{platforms},cpu"  # the reference
    if not tiny:
        env["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    elif "JAX_COMPILATION_CACHE_DIR" not in env:
        env |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return env


def findings(part: Part, command: list[str], seconds: float, last: bool, env: dict[str, str]) -> Iterator[dict]:
    """The lines of one process, each as soon as it is there; one more if it does not end well.

    Args:
      part: the part.
      command: of the process.
      seconds: after which it is ended.
      last: whether the time of all parts is over then.
      env: its variables.
    """
    late = threading.Event()
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=env, text=True) as process,
    ):

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            assert process.stdout is not None
            yield from (json.loads(line) for line in process.stdout if line.startswith("{"))
            process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
        if late.is_set():
            verdict, note = ("skipped", "the time is over") if last else ("ERROR", f"no end after {seconds:.0f} s")
            yield {"check": f"rest of {part.runs}", "verdict": verdict, "note": note}
        elif process.returncode:
            errors.seek(0)
            said = [line.strip() for line in errors if line.strip()]
            note = f"ended with status {process.returncode}: {said[-1][:300] if said else 'it said nothing'}"
            yield {"check": f"rest of {part.runs}", "verdict": "ERROR", "note": note}


def shown(row: dict) -> str:
    """One line of the table."""
    value, limit = row.get("value"), row.get("limit")
    number = "" if value is None else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    number += f" {row['unit']}" if row.get("unit") else ""
    bound = "" if limit is None else f"<= {limit:g}"
    head = f"{row['part']:7s} {row['check']:52s} {row['verdict']:7s} {number:>24s} {bound:>9s}"
    return f"{head}  {row.get('note') or ''}".rstrip()


def write(out: Path, rows: list[dict]) -> None:
    """The table as files."""
    with open(out / "device.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    (out / "device.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def run(out: Path | None, minutes: float, platform: str | None, tiny: bool) -> int:
    """All parts in order; the exit status."""
    end, rows = time.monotonic() + 60 * minutes, []
    started = time.monotonic()
    print(f"{'part':7s} {'check':52s} {'verdict':7s} {'value':>24s} {'limit':>9s}  note", flush=True)

    def add(part: Part, row: dict) -> None:
        rows.append({"part": part.name} | row)
        print(shown(rows[-1]), flush=True)

    with tempfile.TemporaryDirectory(prefix="jaxsign-device-") as folder:
        for part in (part for part in PARTS if part.deterministic or not tiny):
            left = end - time.monotonic()
            if left < part.least:
                note = f"{left:.0f} s left, it takes {part.least:.0f} s or more"
                add(part, {"check": part.runs, "verdict": "skipped", "note": note})
                continue
            seconds = left if tiny else min(left, part.most)
            place = Path(folder) / part.name
            place.mkdir(exist_ok=True)
            command = [sys.executable, str(CHECKS), part.runs, "--seconds", str(seconds), "--folder", str(place)]
            env = environment(part, tiny, str(Path(folder) / "cache"))
            for row in findings(part, command + ["--tiny"] * tiny, seconds, seconds == left, env):
                add(part, row)
            if out is not None:
                write(out, rows)
            found = next((row["platform"] for row in rows if "platform" in row), None)
            if platform is not None and found != platform:
                note = f"JAX has {found or 'not started'}, --platform {platform} was given: is its build installed?"
                add(part, {"check": "platform", "verdict": "ERROR", "note": note})
                break
    if out is not None:
        write(out, rows)
    count = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ("ok", *BAD, "skipped")}
    text = ", ".join(f"{number} {verdict}" for verdict, number in count.items())
    print(f"{text}; {time.monotonic() - started:.0f} s" + (f" -> {out / 'device.csv'}" if out else ""))
    return int(any(count[verdict] for verdict in BAD))


class Parser(argparse.ArgumentParser):
    """Errors are one line and exit status 2."""

    def error(self, message):
        """One line, without the usage."""
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)


def positive(text: str) -> float:
    """A number of minutes."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be > 0 minutes, got {text}")
    return value


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="DIR", type=Path, help="writes the table there, too")
    parser.add_argument("--minutes", type=positive, default=8.0, help="after which everything is ended; default 8")
    parser.add_argument("--platform", choices=["cpu", "gpu", "tpu"], help="what JAX must find; default anything")
    parser.add_argument("--tiny", action="store_true", help="a smoke test on any machine, no measurement")
    args = parser.parse_args(argv)
    if args.out is not None:
        try:
            args.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            print(f"{parser.prog}: --out must be a directory, got {str(args.out)!r}: {error.strerror}", file=sys.stderr)
            return 2
    try:
        return run(args.out, args.minutes, args.platform, args.tiny)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
