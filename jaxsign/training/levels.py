"""Captures of the training loop: the observables where a run's loss first falls to a level."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsign.store.levels import SUFFIX

Array = jax.Array
PyTree = Any


class Crossings(NamedTuple):
    """The captures of a run so far, for L levels.

    Args:
      loss: () training loss of the step before; infinite at step 0.
      step: (L, 2) int32, the step before the first one with a training loss at or below each level, and that one; -1
        where there is none.
      values: {observable: (L, 2, ...)} at these steps; NaN where there is none.
    """

    loss: Array
    step: Array
    values: dict[str, Array]

    @classmethod
    def none(cls, levels: tuple[float, ...], shapes: Mapping[str, Any]) -> "Crossings":
        """Nothing captured yet, for observables of these shapes."""
        size = len(levels)
        values = {name: jnp.full((size, 2, *x.shape), jnp.nan, x.dtype) for name, x in shapes.items()}
        loss = jnp.full((), jnp.inf)
        return cls(loss, jnp.full((size, 2), -1, jnp.int32), values | {"train_loss": jnp.full((size, 2), jnp.nan)})

    def after(
        self,
        levels: tuple[float, ...],
        t: Array,
        loss: Array,
        look: Callable[[PyTree], dict[str, Array]],
        context: PyTree,
        now: Array | bool = True,
    ) -> "Crossings":
        """The captures after step t, of crossings that are packed.

        Args:
          levels: the levels.
          t: () int, the step.
          loss: () training loss of the parameters at step t.
          look: context -> {observable: (2, ...)} at step t-1 and at step t. It is evaluated only where a run crosses a
            level, for one run of a lane after the other: few runs of a lane cross at the same step.
          context: all arrays that `look` reads.
          now: () bool; False changes nothing.
        """
        crossing = (self.step[:, 1] < 0) & (loss <= jnp.asarray(levels, loss.dtype)) & now

        def take(crossing: Array, old: Crossings, t: Array, loss: Array, context: PyTree) -> Crossings:
            pairs = _packed(look(context) | {"train_loss": jnp.stack([old.loss, loss])}, 1)
            exists = jnp.stack([t > 0, True])
            pairs = {
                names: jnp.where(exists.reshape(2, *(1,) * (pair.ndim - 1)), pair, jnp.nan)
                for names, pair in pairs.items()
            }
            steps = jnp.where(crossing[:, None], jnp.stack([t - 1, t]).astype(jnp.int32)[None], old.step)
            values = {
                name: jnp.where(crossing.reshape(-1, *(1,) * pairs[name].ndim), pairs[name][None], value)
                for name, value in old.values.items()
            }
            return Crossings(old.loss, steps, values)

        captured = _where_any(take)(crossing, self, t, loss, context)
        return captured._replace(loss=jnp.where(now, loss, self.loss))

    def packed(self) -> "Crossings":
        """The same with observables of one shape in one array, for the loop: each array costs every step some time."""
        return self._replace(values=_packed(self.values, 2))

    def unpacked(self) -> "Crossings":
        """The inverse of `packed`."""
        values = {}
        for names, together in self.values.items():
            for i, name in enumerate(names.split(BETWEEN)):
                values[name] = together[:, :, i]
        return self._replace(values=values)

    @property
    def waiting(self) -> Array:
        """() bool, whether some level has not been crossed yet."""
        return jnp.any(self.step[:, 1] < 0)

    def results(self) -> dict[str, Any]:
        """Captured variables by name, (..., L, 2, ...): of one run, of several, or abstract."""
        return {f"{name}{SUFFIX}": value for name, value in self.values.items()} | {f"step{SUFFIX}": self.step}


#: Between the names of observables that are packed into one array; no name contains it.
BETWEEN = "+"


def packed_scalars(values: Mapping[str, Array]) -> dict[str, Array]:
    """Scalars of one dtype as one array, (M,), under their names; nothing where there are none."""
    return _packed(values, 0)


def unpacked_scalars(packed: Mapping[str, Array]) -> dict[str, Array]:
    """The inverse of `packed_scalars`."""
    return {name: array[i] for names, array in packed.items() for i, name in enumerate(names.split(BETWEEN))}


def _packed(values: Mapping[str, Array], axis: int) -> dict[str, Array]:
    """{names: arrays of equal shape and dtype along a new axis}; sorted, as JAX sorts the keys of its trees."""
    alike: dict[Any, list[str]] = {}
    for name in sorted(values):
        alike.setdefault((values[name].shape[axis:], values[name].dtype), []).append(name)
    return {BETWEEN.join(names): jnp.stack([values[name] for name in names], axis) for names in alike.values()}


def _where_any(take: Callable[..., Crossings]) -> Callable[..., Crossings]:
    """`take(wanted, old, ...)` where some entry of `wanted` is true, `old` elsewhere.

    A `cond` on a predicate that is mapped evaluates both branches for every run. Here mapped runs go one after the
    other through a loop that has no turn where no run has a true entry; a lane of one run keeps the `cond`.
    """

    @jax.custom_batching.custom_vmap
    def one(wanted: Array, old: Crossings, *rest: PyTree) -> Crossings:
        return jax.lax.cond(jnp.any(wanted), lambda: take(wanted, old, *rest), lambda: old)

    @one.def_vmap
    def _(size: int, mapped: Sequence[PyTree], *arguments: PyTree) -> tuple[Crossings, PyTree]:
        leaves = jax.tree.leaves(arguments)
        structure: Any = jax.tree.structure(arguments)
        each: list[bool] = jax.tree.leaves(list(mapped))
        if size == 1:  # XLA would move what the loop below computes of the one run to before it: at every step
            out = one(*structure.unflatten([x[0] if is_mapped else x for x, is_mapped in zip(leaves, each)]))
            return jax.tree.map(lambda x: x[None], out), jax.tree.map(lambda _: True, out)
        wanted, old = (
            jax.tree.map(lambda x, is_mapped: x if is_mapped else jnp.broadcast_to(x, (size, *x.shape)), argument, axes)
            for argument, axes in zip(arguments[:2], mapped[:2])
        )

        def turn(carry: tuple[Array, Crossings]) -> tuple[Array, Crossings]:
            waiting, out = carry
            run = jnp.argmax(waiting)
            picked = [
                jax.lax.dynamic_index_in_dim(x, run, 0, False) if is_mapped else x for x, is_mapped in zip(leaves, each)
            ]
            new = take(*structure.unflatten(picked))
            out = jax.tree.map(lambda whole, row: jax.lax.dynamic_update_index_in_dim(whole, row, run, 0), out, new)
            return waiting & (jnp.arange(size) != run), out

        out = jax.lax.while_loop(lambda carry: jnp.any(carry[0]), turn, (jnp.any(wanted, axis=1), old))[1]
        return out, jax.tree.map(lambda _: True, out)

    return one
