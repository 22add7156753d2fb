"""How a system may be trained in another form that gives the same result for less work."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxsign.training.task import Task

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Padding:
    """How a task is run by the program of a larger one, so that several sizes share one compiled program.

    Args:
      task: the larger task; it has no padding itself.
      case: `hyper -> hyper of the larger task`, which says how much of the larger task is used.
      sizes: {dimension: size} of the task's observables; the larger task's observables are cut to it.
    """

    task: "Task"
    case: Callable[[Any], Any]
    sizes: Mapping[str, int]

    def kept(self, dims: tuple[str, ...]) -> tuple[slice, ...]:
        """The index that cuts the padding off an observable with these dimensions."""
        return tuple(slice(self.sizes.get(dim)) for dim in dims)


@dataclasses.dataclass(frozen=True, eq=False)
class Reduction:
    """Exact shortcuts of a system, and the optimizers for which they are exact.

    A system without shortcuts needs none of these fields. The trainer decides by running the optimizer on small inputs
    (`jaxsign.training.mode`), and takes a shortcut only where it is exact.

    Args:
      compact: `(params, data) -> params`, an equivalent smaller parametrisation. It is exact for optimizers that move
        each coordinate by its own gradients only. `loss`, `observe` and `watch` of the task accept both forms.
      expand: the inverse of `compact`, applied once to the final parameters.
      compact_only: refuse optimizers for which `compact` is not exact, instead of training the full parameters.
      compact_decays: whether `compact` stays exact under decoupled weight decay.
      frozen: names of the fields of params (in either form) that are never trained.
      project: `(params, data) -> params`, the projection of parameters of any form on the training set, as one more
        form that `observe` takes with the same data and test=None. None: there is no smaller form.
      homogeneous: refuse optimizers that are not coordinate-wise, odd and homogeneous of some degree (their updates are
        u(c g) = sgn(c)|c|^p u(g)), decoupled weight decay aside.
      choices: the tasks that run this very system, fastest first; the first one that is exact for the optimizer is
        trained in this task's place. (): this task itself.
      padding: a larger task whose program runs this one too, or None.
    """

    compact: Callable[[PyTree, PyTree], PyTree] | None = None
    expand: Callable[[PyTree], PyTree] | None = None
    compact_only: bool = False
    compact_decays: bool = False
    frozen: tuple[str, ...] = ()
    project: Callable[[PyTree, PyTree], PyTree] | None = None
    homogeneous: bool = False
    choices: tuple["Task", ...] = ()
    padding: Padding | None = None
