"""Do a task's functions return what is needed, do seeds differ, is all that is trained used, are levels reached?"""

from typing import TYPE_CHECKING

from jaxsign.store.levels import SUFFIX
from jaxsign.sweep.sweep import Sweep
from jaxsign.training.checks import check_returns, seeds_agree, unused_parameters
from jaxsign.training.task import Task
from jaxsign.validation.messages import say

if TYPE_CHECKING:
    import xarray as xr


def check_tasks(sweep: Sweep) -> None:
    """Checks every task of a sweep once, by tracing, before anything is compiled or written.

    Args:
      sweep: the sweep.

    Raises:
      ValueError: naming function, what it returned and what is needed.
    """
    for task, index in _first_runs(sweep).items():
        check_returns(task, sweep.hyper_at(index), sweep.shared, sweep.trainable)


def say_if_seeds_agree(sweep: Sweep) -> None:
    """Prints one line, before a sweep runs, where all seeds would be the same run.

    Args:
      sweep: the sweep, whose tasks have been checked.
    """
    count, drawn = len(sweep.seeds), any(grid.per_run for grid in sweep.grids.values())
    if count < 2 or drawn:
        return
    first = _first_runs(sweep).items()
    names = [task.name for task, index in first if seeds_agree(task, sweep.hyper_at(index), sweep.shared)]
    for name in dict.fromkeys(names):
        say(
            f"all {count} seeds of {name} are the same run: neither sample nor init nor batch uses its key, so "
            "intervals over seeds have the width 0"
        )


def say_if_unused(sweep: Sweep) -> None:
    """Prints one line, before a sweep runs, about trained parameters that the loss does not read.

    Args:
      sweep: the sweep, whose tasks have been checked.
    """
    lines = {
        f"no gradient reaches {name!r} of {task.name}, which its loss does not read: state=({name!r},) carries what "
        "the loss returns anew, such as statistics of batches; trainable= leaves it out"
        for task, index in _first_runs(sweep).items()
        for name in unused_parameters(task, sweep.hyper_at(index), sweep.shared, sweep.trainable)
    }
    for line in sorted(lines):
        say(line)


def say_if_below(ds: "xr.Dataset") -> None:
    """Prints one line a level, after a sweep has run, about runs that begin at or below it: nothing is read there.

    Args:
      ds: the sweep's Dataset.
    """
    step = ds.get(f"step{SUFFIX}")
    if step is None:
        return
    below = (step.isel(crossing=1) == 0).sum([dim for dim in step.dims if dim not in ("level", "crossing")])
    runs = step.isel(crossing=1, level=0).size
    for level, count in zip(ds["level"].values.tolist(), below.values.tolist()):
        if count:
            say(
                f"level {level:g}: {count:,} of {runs:,} runs begin at or below this training loss, and have no reading"
            )


def _first_runs(sweep: Sweep) -> dict[Task, tuple[int, ...]]:
    """{task: the first point of the axes that it runs}."""
    first: dict[Task, tuple[int, ...]] = {}
    for index in sweep.combinations():
        first.setdefault(sweep.task(index), index)
    return first
