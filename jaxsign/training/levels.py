"""Captures of the training loop: the parameters where a run's loss first falls to a level, and what they show."""

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
      losses: (L, 2) training loss at these steps.
      sides: the parameters that change at these steps, (L, 2, ...); any where there is none. What they show is looked
        at when the run ends, where the program looks at records too: observables are compiled once.
    """

    loss: Array
    step: Array
    losses: Array
    sides: PyTree

    @classmethod
    def none(cls, levels: tuple[float, ...], trained: PyTree) -> "Crossings":
        """Nothing captured yet, for parameters of these shapes."""
        size = len(levels)
        sides = jax.tree.map(lambda x: jnp.broadcast_to(x, (size, 2, *x.shape)), trained)
        return cls(jnp.full((), jnp.inf), jnp.full((size, 2), -1, jnp.int32), jnp.full((size, 2), jnp.nan), sides)

    def after(
        self, levels: tuple[float, ...], t: Array, loss: Array, pair: tuple[PyTree, PyTree], now: Array | bool = True
    ) -> "Crossings":
        """The captures after step t.

        Args:
          levels: the levels.
          t: () int, the step.
          loss: () training loss of the parameters at step t.
          pair: the parameters that change at step t-1 and at step t. They are copied only where a run crosses a level,
            for one run of a lane after the other: few runs of a lane cross at the same step.
          now: () bool; False changes nothing.
        """
        crossing = (self.step[:, 1] < 0) & (loss <= jnp.asarray(levels, loss.dtype)) & now

        def take(crossing: Array, old: Crossings, t: Array, loss: Array, pair: tuple[PyTree, PyTree]) -> Crossings:
            def chosen(new: Array, old: Array) -> Array:
                return jnp.where(crossing.reshape(-1, *(1,) * new.ndim), new[None], old)

            steps, losses = jnp.stack([t - 1, t]).astype(jnp.int32), jnp.stack([old.loss, loss])
            sides = jax.tree.map(lambda *both: jnp.stack(both), *pair)
            return Crossings(
                old.loss, chosen(steps, old.step), chosen(losses, old.losses), jax.tree.map(chosen, sides, old.sides)
            )

        captured = _where_any(take)(crossing, self, t, loss, pair)
        return captured._replace(loss=jnp.where(now, loss, self.loss))

    def side(self, i: Array) -> tuple[PyTree, tuple[PyTree, PyTree], Array]:
        """(the parameters of side i, those before and after the step across its level, that step), i in 0..2L-1."""
        level = i // 2
        before, after = (jax.tree.map(lambda x, k=k: x[level, k], self.sides) for k in (0, 1))
        return jax.tree.map(lambda x: x[level, i % 2], self.sides), (before, after), self.step[level, 1]

    @property
    def waiting(self) -> Array:
        """() bool, whether some level has not been crossed yet."""
        return jnp.any(self.step[:, 1] < 0)

    def results(self, seen: Mapping[str, Array]) -> dict[str, Array]:
        """Captured variables of one run by name, (L, 2, ...).

        Args:
          seen: {observable: (2L, ...)} at the sides.
        """
        exists = self.step >= 0

        def blanked(value: Array) -> Array:
            return jnp.where(exists.reshape(*exists.shape, *(1,) * (value.ndim - 2)), value, jnp.nan)

        pairs = {name: value.reshape(*exists.shape, *value.shape[1:]) for name, value in seen.items()}
        values = {name: blanked(value) for name, value in (pairs | {"train_loss": self.losses}).items()}
        return {f"{name}{SUFFIX}": value for name, value in values.items()} | {f"step{SUFFIX}": self.step}


#: Between the names of monitors that are packed into one array; no name contains it.
BETWEEN = "+"


def packed_scalars(values: Mapping[str, Array]) -> dict[str, Array]:
    """Scalars of one dtype as one array, (M,), under their names; nothing where there are none."""
    alike: dict[Any, list[str]] = {}
    for name in sorted(values):  # as JAX sorts the keys of its trees
        alike.setdefault((values[name].shape, values[name].dtype), []).append(name)
    return {BETWEEN.join(names): jnp.stack([values[name] for name in names]) for names in alike.values()}


def unpacked_scalars(packed: Mapping[str, Array]) -> dict[str, Array]:
    """The inverse of `packed_scalars`."""
    return {name: array[i] for names, array in packed.items() for i, name in enumerate(names.split(BETWEEN))}


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
        if size == 1:  # XLA would move what the loop below computes of the one run to before it: at every step
            single = [
                jax.tree.map(lambda x, is_mapped: x[0] if is_mapped else x, *both) for both in zip(arguments, mapped)
            ]
            return (out := jax.tree.map(lambda x: x[None], one(*single))), jax.tree.map(lambda _: True, out)
        wanted, old = (
            jax.tree.map(lambda x, is_mapped: x if is_mapped else jnp.broadcast_to(x, (size, *x.shape)), *both)
            for both in zip(arguments[:2], mapped[:2])
        )

        def turn(carry: tuple[Array, Crossings]) -> tuple[Array, Crossings]:
            waiting, out = carry
            run = jnp.argmax(waiting)

            def row(x: Array, is_mapped: bool = True) -> Array:
                return jax.lax.dynamic_index_in_dim(x, run, 0, False) if is_mapped else x

            # The old captures are read from what is written: XLA would copy all of them at every step otherwise.
            rest = [jax.tree.map(row, *both) for both in zip(arguments[2:], mapped[2:])]
            new = take(row(wanted), jax.tree.map(row, out), *rest)
            out = jax.tree.map(lambda whole, one: jax.lax.dynamic_update_index_in_dim(whole, one, run, 0), out, new)
            return waiting & (jnp.arange(size) != run), out

        out = jax.lax.while_loop(lambda carry: jnp.any(carry[0]), turn, (jnp.any(wanted, axis=1), old))[1]
        return out, jax.tree.map(lambda _: True, out)

    return one
