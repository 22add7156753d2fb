"""Do the functions of a sweep's tasks return what the trainer needs, and do its seeds differ?"""

from jaxsign.sweep.sweep import Sweep
from jaxsign.training.checks import check_returns, seeds_agree
from jaxsign.training.task import Task
from jaxsign.validation.messages import say


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


def _first_runs(sweep: Sweep) -> dict[Task, tuple[int, ...]]:
    """{task: the first point of the axes that it runs}."""
    first: dict[Task, tuple[int, ...]] = {}
    for index in sweep.combinations():
        first.setdefault(sweep.task(index), index)
    return first
