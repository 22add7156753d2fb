"""What do `jaxsign plan`, `status` and `verify` print?"""

import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from jaxsign.cli.directories import results_below
from jaxsign.store import checkpoints, files, locks, results, times
from jaxsign.store.manifest import ARRAYS, MANIFEST, UnusableData, check_fit, inspect_manifest
from jaxsign.store.verify import Checked, accepted_words, check_directory
from jaxsign.sweep.forecast import Forecast, forecast
from jaxsign.sweep.sweep import Sweep
from jaxsign.validation.messages import counted, say, show, size_words, time_words


def print_plan(
    sweeps: Mapping[str, Sweep], command: str, memory: int | None, speed: float | None, devices: int, quick: bool
) -> None:
    """Prints what every sweep will take, their total, and the command that runs them; no times if it is to be quick."""
    import jax

    forecasts = []
    for key, sweep in sweeps.items():
        if speed is None and not quick:  # minutes where steps are slow and programs are many
            say(f"{key}: compiling and measuring; --quick or --seed-steps-per-second skips it")
        forecasts.append(forecast(sweep, memory, speed, devices, measure=not quick))
        print("\n".join(plan_lines(key, forecasts[-1])), flush=True)
    local = jax.local_devices()
    if speed is None:
        device = counted(len(local), f"{local[0].platform} device")
        source = f"of training on {device}, measured now"
    else:
        source = f"of training on {counted(devices, 'device')} of {speed:g} seed-steps/s; compiling is extra"
    runs, programs = (sum(getattr(f, name) for f in forecasts) for name in ("runs", "programs"))
    print(f"total: {counted(runs, 'run')}, {counted(programs, 'program')} to compile")
    if compiling := [f.compile_seconds for f in forecasts if f.compile_seconds is not None]:
        print(f"  compiling    {time_words(sum(compiling))}, measured now; partly while other programs run")
    if seconds := [f.seconds for f in forecasts if f.seconds is not None]:
        print(f"  time         {time_words(sum(seconds))} {source}")
    names = ("result_bytes", "entries", "disk_bytes")
    small, entries, large = (sum(getattr(f, name) for f in forecasts) for name in names)
    files = f"{entries:,} files and folders take {size_words(large)}"
    print(f"  results      {size_words(small)} before compression; {files} on disk")
    print(f"  checkpoints  {size_words(max(f.checkpoint_bytes for f in forecasts))} at a time at most")
    if trajectory_bytes := sum(f.trajectory_bytes for f in forecasts):
        print(f"  trajectories {size_words(trajectory_bytes)}, about")
    print(f"  command      {command}" + (f" --memory {memory}" if memory is not None else ""))


def plan_lines(key: str, plan: Forecast) -> list[str]:
    """One sweep's forecast in words: a head line, a line for every group, a line of bytes and time."""
    groups, programs = counted(len(plan.groups), "group"), counted(plan.programs, "program")
    lines = [f"{key}: {counted(plan.runs, 'run')} of {counted(plan.steps, 'step')}, {groups}, {programs}"]
    rows = []
    for g in plan.groups:
        setting = ", ".join(f"{name}={value}" for name, value in g.setting.items())
        calls, lanes = f"in {counted(g.calls, 'call')}", f"lanes of {g.width}"
        compiling = "" if g.compile_seconds is None else "compiled above"
        if g.compile_seconds:
            compiling = f"compiled in {time_words(g.compile_seconds)}"
        training = "" if g.seconds is None else f"trained in {time_words(g.seconds)}"
        rows.append([g.family, g.task, setting, counted(g.runs, "run"), calls, lanes, compiling, training])
    lines += [f"  {row}" for row in _aligned(rows)]
    compiling = "" if plan.compile_seconds is None else f"compiled in {time_words(plan.compile_seconds)}, "
    training = "" if plan.seconds is None else f"trained in {time_words(plan.seconds)}; "
    lines.append(
        f"  {compiling}{training}a call holds up to {counted(plan.call_runs, 'run')} in "
        f"{size_words(plan.call_bytes)}; results {size_words(plan.result_bytes)}, checkpoints "
        f"{size_words(plan.checkpoint_bytes)}"
    )
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of words with every column as wide as its longest word; columns without words are left out."""
    columns = [column for column in zip(*rows) if any(column)]
    widths = [max(map(len, column)) for column in columns]
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in zip(*columns)]


def print_status(*directories: str) -> int:
    """Prints where every sweep at and below some directories stands; reads only.

    Returns:
      How many manifests cannot be read.
    """
    unreadable = 0
    for number, path in enumerate(results_below(*directories)):
        lines, readable = status_lines(path)
        unreadable += not readable
        for line in [*[""] * bool(number), path, *(f"  {line}" for line in _aligned(lines))]:
            show(line)
    return unreadable


def status_lines(path: Path) -> tuple[list[list[str]], bool]:
    """([label, words] of one results directory, whether its manifest can be read)."""
    running, gone = locks.holders(path)
    holders = [["running", words] for words in running] + [["cut off", words] for words in gone]
    try:
        manifest, damage = inspect_manifest(path)
        if manifest and not results.damaged_metadata(path, manifest["crc32"]):
            check_fit(manifest, path / ARRAYS)
    except UnusableData as error:
        return [["damaged", str(error)], *holders, ["next", "jaxsign verify says what is left"]], False
    if odd := files.planted(path, manifest):
        return [["damaged", odd], *holders], False
    if manifest is None:
        if (path / ARRAYS).is_dir():
            return [["damaged", f"{path / MANIFEST} is missing"], ["next", "put it back"]], False
        again = "wait for what is running" if running else "run the sweep's own command again"
        return [["runs", "nothing is stored yet"], *holders, ["next", again]], True
    lines, unfinished = [["damaged", line] for line in damage.values()], True
    try:
        status = results.try_twice(lambda: results.read_status(path))
    except UnusableData as error:
        lines.append(["damaged", str(error)])
    else:
        kinds = {"finished": status == 0, "diverged": status == 1, "not run": status < 0}
        lines.append(["runs", f"{status.size}: " + ", ".join(f"{runs.sum()} {kind}" for kind, runs in kinds.items())])
        unfinished = bool((status < 0).any())
    lines += [*_session_lines(path, manifest), *holders, *_checkpoint_lines(path, manifest["definition"]["steps"])]
    todo = "wait for what is running" if running else "run the sweep's own command again: it goes on from here"
    if damage and not running:
        todo, unfinished = "run the sweep's own command again: it mends what is damaged", True
    lines.append(["next", todo if unfinished else "finished"])
    return lines, True


def _session_lines(path: Path, manifest: Mapping[str, Any]) -> list[list[str]]:
    """When the sweep was begun and worked on, for how long, and what was accepted."""
    begun, last = _times(path, manifest)
    sessions = counted(len(manifest["sessions"]), "session")
    worked = f"{time_words(manifest['wall_seconds'])} in {sessions}" if manifest["sessions"] else "no session has ended"
    if manifest["sessions"] and "compile_seconds" in manifest:
        worked += f", compiling in {time_words(manifest['compile_seconds'])} of them"
    return [
        ["begun", f"{times.words(begun)}, last worked on {times.words(last)}"],
        ["worked", worked],
        *(["accepted", words] for words in accepted_words(manifest)),
    ]


def _times(path: Path, manifest: Mapping[str, Any]) -> tuple[datetime, datetime]:
    """(when a sweep was begun, when it was last worked on).

    A session notes its times when it ends; the work of a killed one shows in the files that it wrote.
    """
    sessions = [(times.parse(s["finished"]), timedelta(seconds=s["seconds"])) for s in manifest["sessions"]]
    ends = [times.parse(manifest["finished"]), *(end for end, _ in sessions)]
    begins = [end - duration for end, duration in sessions]
    written = []
    if manifest["runs"].get("not_run", 1):
        for folder, pattern in ((path / ARRAYS / "status" / "c", "*"), (path / checkpoints.FOLDER, "*.json")):
            for file in files.files_below(folder, pattern):
                with contextlib.suppress(OSError, ValueError, OverflowError):  # gone since, or a time of no calendar
                    written.append(datetime.fromtimestamp(file.stat().st_mtime, UTC))
    return min(ends + begins), max(ends + written)


def _checkpoint_lines(path: Path, steps: int) -> list[list[str]]:
    """The newest checkpoint of every block."""
    newest = {record.parent.name: int(record.stem) for record in checkpoints.records(path)}
    blocks = {name.removeprefix("block-").lstrip("0") or "0": step for name, step in newest.items()}
    return [["checkpoint", f"block {block} at step {step} of {steps}"] for block, step in blocks.items()]


def print_verify(*directories: str) -> bool:
    """Prints what is damaged or not run at and below some directories; returns whether everything is good."""
    checked = []
    for path in results_below(*directories):
        one = check_directory(path)
        checked.append(one)
        show(f"{path}: {one.verdict}: {counted(one.runs, 'run')}, {_read_words([one])}")
        for line in one.damage:
            show(f"  {line}")
        if one.not_run:
            show(f"  incomplete: {one.not_run} of {counted(one.runs, 'run')} not run")
        for line in one.accepted:
            show(f"  accepted {line}")
        for line in one.mend:
            show(f"  -> {line}")
    good = sum(one.verdict == "good" for one in checked)
    if len(checked) > 1:
        show(f"{good} of {len(checked)} directories are good: {_read_words(checked)}")
    return good == len(checked)


def _read_words(checked: Sequence[Checked]) -> str:
    """How much was read."""
    chunks, size, saved, kept = (
        sum(getattr(one, name) for one in checked) for name in ("chunks", "size", "checkpoints", "trajectories")
    )
    words = [f"{counted(chunks, 'chunk')} ({size_words(size)})", counted(saved, "checkpoint")]
    words += [f"trajectories of {counted(kept, 'run')}"] if kept else []
    return f"{', '.join(words[:-1])} and {words[-1]} read"
