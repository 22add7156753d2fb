"""Draws the starts of runs, each once for all optimizers that train from it."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxsign.sweep.groups import Index
from jaxsign.sweep.programs import RUNS, Compiled
from jaxsign.sweep.sizes import BLOCK_BYTES
from jaxsign.training.start import Start


class Starts:
    """Draws starts of runs and keeps them on the host, since optimizers of one task train from the same ones.

    Args:
      limit: bytes that are kept; those that were drawn first go first.
    """

    def __init__(self, limit: int = BLOCK_BYTES):
        self.limit, self.bytes = limit, 0
        self.kept: OrderedDict[Hashable, list[Any]] = OrderedDict()

    def parts(self, compiled: Compiled, members: Sequence[Index]) -> list[Start]:
        """The starts of some runs on the devices, one entry a part; the last part is padded with its last run.

        Args:
          compiled: programs of the runs' group.
          members: indices of the runs on (axes, optimizer, seed).
        """
        program = compiled.program
        structure: Any = jax.tree.structure(compiled.start)
        keys = self._keys(compiled, members)
        runs = {key: self.kept[key] for key in keys if key in self.kept}
        missing = {key: member for key, member in zip(keys, members) if key not in runs}
        for key, run in self._draw(compiled, missing):
            runs[key] = run
            self._keep(key, run)
        sharding = NamedSharding(program.mesh, RUNS)
        out = []
        for part in program.parts(len(members)):
            chosen = [runs[key] for key in keys[part]]
            chosen += [chosen[-1]] * (program.part - len(chosen))
            stacked = [_stacked(column) for column in zip(*chosen)]
            out.append(structure.unflatten(jax.device_put(stacked, sharding)))
        return out

    def _keys(self, compiled: Compiled, members: Sequence[Index]) -> list[Hashable]:
        """What the start of each run depends on: the drawing program, the seed, the numbers and the degree."""
        given = compiled.program.arguments(members, len(members))
        columns = [given.seeds, given.degrees, *jax.tree.leaves(given.hyper)]
        return [(id(compiled.begin), *(column[i].tobytes() for column in columns)) for i in range(len(members))]

    def _draw(self, compiled: Compiled, missing: dict[Hashable, Index]) -> list[tuple[Hashable, list[Any]]]:
        """(key, leaves) of the starts of some runs."""
        program, keys, members = compiled.program, list(missing), list(missing.values())
        begin = compiled.wait()[0]
        calls = []
        for first in range(0, len(keys), program.drawn):
            chunk = slice(first, first + program.drawn)
            given = program.arguments(members[chunk], program.drawn)
            calls.append((keys[chunk], begin(given.seeds, given.hyper, given.degrees, program.group.sweep.shared)))
        return [
            (key, [leaf[i] for leaf in hosts])
            for chunk_keys, start in calls
            for hosts in [[_host(leaf) for leaf in jax.tree.leaves(start)]]
            for i, key in enumerate(chunk_keys)
        ]

    def _keep(self, key: Hashable, run: list[Any]) -> None:
        self.kept[key] = run
        self.bytes += _bytes(run)
        while self.bytes > self.limit and len(self.kept) > 1:
            self.bytes -= _bytes(self.kept.popitem(last=False)[1])


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _host(leaf: Any) -> Any:
    """An array on the host; typed keys, which NumPy does not know, stay as they are."""
    return leaf if _is_key(leaf) else np.asarray(leaf)


def _stacked(runs: Sequence[Any]) -> Any:
    """The arrays of some runs as one."""
    return jnp.stack(runs) if _is_key(runs[0]) else np.stack(runs)


def _bytes(run: Sequence[Any]) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in run)
