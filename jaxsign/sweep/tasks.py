"""Do the functions of a sweep's tasks return what the trainer needs, and do its seeds differ?"""

from jaxsign.sweep.sweep import Sweep
from jaxsign.training.checks import check_returns, seeds_agree
from jaxsign.training.task import Task
from jaxsign.validation.messages import say


def check_tasks(sweep: Sweep) -> None:
    """Checks every task of a sweep once, by tracing, before anything is compiled or written.

    Prints one line where all seeds would be the same run.

    Args:
      sweep: the sweep.

    Raises:
      ValueError: naming function, what it returned and what is needed.
    """
    first: dict[Task, tuple[int, ...]] = {}
    for index in sweep.combinations():
        first.setdefault(sweep.task(index), index)
    drawn = any(grid.per_run for grid in sweep.grids.values())
    for task, index in first.items():
        hyper = sweep.hyper_at(index)
        check_returns(task, hyper, sweep.shared, sweep.trainable)
        if len(sweep.seeds) > 1 and not drawn and seeds_agree(task, hyper, sweep.shared):
            say(
                f"all {len(sweep.seeds)} seeds of {task.name} are the same run: neither sample nor init nor batch uses "
                "its key, so intervals over seeds have the width 0"
            )
