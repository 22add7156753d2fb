"""Trajectories while runs are trained: how the tape of every call becomes a segment on disk."""

import itertools
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsign.optimizers.grid import describe_point
from jaxsign.optimizers.probes import sign_like
from jaxsign.store import trajectory
from jaxsign.store.binding import Binding
from jaxsign.sweep.groups import Group
from jaxsign.sweep.layout import WorkUnit
from jaxsign.sweep.programs import joined
from jaxsign.sweep.sweep import Sweep
from jaxsign.training.loop import Tape
from jaxsign.training.start import Start, changing_fields, field_of, split_params
from jaxsign.training.tape import feature_tape, sign_tape

PyTree = Any
#: Maximum steps per call when every step is recorded.
TAPE_STEPS = 128
#: Steps between raw keyframes of a sign trajectory. Random access replays half of them on average, and keyframes take
#: most of the trajectory's bytes.
KEYFRAME_EVERY = 500


def make_tape(group: Group) -> Tape | None:
    """The tape on which a group's program records every step; None if the trajectory needs none.

    Raises:
      ValueError: if the system cannot be recorded like that.
    """
    if group.sweep.trajectory == "signs":
        return sign_tape(TAPE_STEPS)
    if group.sweep.trajectory == "features":
        if group.task.reduction.project is None:
            raise ValueError(
                f"trajectory='features' needs a task with js.Reduction(project=...), and {group.task.name} has none"
            )
        return feature_tape(TAPE_STEPS, group.task.reduction.project)
    return None


def check_recordable(groups: Sequence[Group]) -> None:
    """Refuses optimizers whose steps are no sign steps, before anything runs; every step is checked again when taken.

    Raises:
      ValueError: naming the optimizer and what was measured.
    """
    sweep = groups[0].sweep
    if sweep.trajectory is None:
        return
    for group in groups:
        make_tape(group)
        if sweep.trajectory != "signs":
            continue
        if group.task.state is not None:
            raise ValueError(
                f"trajectory='signs' needs parameters that the optimizer alone moves, and {group.task.name} has "
                f"state={group.task.state!r}: use trajectory='log2' or a list of steps"
            )
        other = "use trajectory='features', 'log2' or a list of steps"
        if group.task.scale is not None and not _for_weights(group):
            raise ValueError(
                f"trajectory='signs' needs weights, and those behind the parameters of {group.task.name} are not "
                f'known: {other}, or engine="support"'
            )
        trained, _ = _trained(group)
        points = [sweep.optimizer_points[i][2] for i in group.optimizers]
        for point, reason in zip(points, sign_like(group.factory, points, trained)):
            if reason:
                raise ValueError(
                    "trajectory='signs' needs steps of one size, amplitude * {-1, 0, +1}, got "
                    f"{describe_point(group.factory, [point], None)}: {reason} (found by running it); {other}"
                )
        # A single number moves by one size at every step; weights behind it only where the gradient's does not count.
        for point, degree in zip(points, group.choice.degrees):
            if _for_weights(group) and degree.p != 0:
                optimizer = describe_point(group.factory, [point], None)
                raise ValueError(
                    "trajectory='signs' needs steps whose size the gradient's does not change, got "
                    f"{optimizer}: exponent {degree.p:g} (found by running it); {other}"
                )


def _for_weights(group: Group) -> bool:
    """Whether signs are kept from which readers get those of the weights behind the parameters."""
    return group.sweep.trajectory == "signs" and group.task.reduction.weights is not None


def _keyframe_every(group: Group) -> int | None:
    """Steps between raw keyframes; None: there are none. The weights' ones are not known where features are trained."""
    return KEYFRAME_EVERY if group.sweep.trajectory == "signs" and not _for_weights(group) else None


def snapshot_steps(sweep: Sweep) -> tuple[int, ...]:
    """The steps at which parameters are kept raw; () for trajectories of every step."""
    if sweep.trajectory in (None, "signs", "features"):
        return ()
    if sweep.trajectory == "log2":
        powers = [2**k for k in range(sweep.schedule.steps.bit_length())]
        return tuple(sorted({0, *(p for p in powers if p <= sweep.schedule.steps), sweep.schedule.steps}))
    return tuple(int(step) for step in sweep.trajectory)


def _trained(group: Group) -> tuple[PyTree, PyTree]:
    """(parameters of one run that change, all of its parameters in the form that is trained), as abstract arrays."""
    params = jax.eval_shape(group.choice.mode.reduced, group.start.params, group.start.data)
    return split_params(params, changing_fields(group.task, params, group.sweep.trainable))[0], params


def _taped(group: Group) -> PyTree:
    """What a call's tape holds of one run, as abstract arrays; None without a tape."""
    tape = make_tape(group)
    return jax.eval_shape(tape.blank, *_trained(group), group.start.data) if tape is not None else None


def _bytes(tree: PyTree) -> int:
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def most_stops(sweep: Sweep, stops: int) -> int:
    """Stops that a call needs, at most `stops`: with a tape, no more than there are records in its steps."""
    if sweep.trajectory not in ("signs", "features"):
        return stops
    record = sweep.schedule.record
    inside = np.searchsorted(record, record + TAPE_STEPS, side="right") - np.arange(record.size)
    return min(stops, int(inside.max()) + 1)


def tape_bytes(group: Group) -> int:
    """Bytes in memory of a run's tapes: one is being filled, one waits to be fetched, and one is copied."""
    return 3 * _bytes(_taped(group))


def disk_bytes(group: Group) -> int:
    """Estimated bytes of a run's trajectory on disk: codes compress well, everything else hardly does."""
    sweep = group.sweep
    steps, raw = sweep.schedule.steps, _bytes(_trained(group)[0]) if sweep.trajectory is not None else 0
    if sweep.trajectory == "signs":
        every = _keyframe_every(group)
        keyframes = (steps - 1) // every if every else 0
        fewer = 50 if _for_weights(group) else 100  # the coordinates of a patch have one code, not many that are alike
        return raw * keyframes + _bytes(_taped(group)) * steps // TAPE_STEPS // fewer
    if sweep.trajectory == "features":
        return _bytes(_taped(group)) * steps // TAPE_STEPS
    return raw * len(snapshot_steps(sweep))


class TapedCall(NamedTuple):
    """One call for the recorder: its first step, the step after it, every part's tape and trained parameters before it.

    `before` is None where they are not kept raw.
    """

    start: int
    stop: int
    taped: Sequence[Any]
    before: Sequence[PyTree] | None


class Recorder:
    """The trajectory of one unit's runs.

    Args:
      group: the group of the runs.
      unit: the runs.
      path: results directory.
      binding: of the directory.
      starts: data and initial parameters of the runs, one entry a part.
      trained: their trained parameters at step 0, one entry a part.
    """

    def __init__(
        self, group: Group, unit: WorkUnit, path: Path, binding: Binding, starts: Sequence[Start],
        trained: Sequence[PyTree],
    ):  # fmt: skip
        self.sweep, self.kind, self.count = group.sweep, group.sweep.trajectory, len(unit.members)
        self.snapshots, self.every = snapshot_steps(group.sweep), _keyframe_every(group)
        self.for_weights = _for_weights(group)
        places = [
            [int(a) + s.start for a, s in zip(index, box)]
            for box, mine in zip(unit.boxes, unit.mine)
            for index in np.argwhere(mine)
        ]
        self.binding = binding
        self.folder = path / trajectory.FOLDER / trajectory.unit_name(unit.number, places, binding)
        flat = jax.tree_util.tree_flatten_with_path(joined(trained, self.count))[0]
        self.first, self.fields = [x for _, x in flat], [field_of(p) for p, _ in flat]
        self.about = {
            "kind": self.kind if isinstance(self.kind, str) else "steps",
            "keyframe_every": self.every,
            "leaves": [
                [jax.tree_util.keystr(p), list(x.shape[1:]), x.dtype.str] for (p, _), x in zip(flat, self.first)
            ],
            "trained": sorted(set(self.fields)),
            "runs": places,
            "start": start_crcs(joined([(start.data, start.params) for start in starts], self.count)),
        }

    def resume(self, step: int) -> bool:
        """Prepares to record from a step on; False if the segments before it are damaged or missing."""
        needed = [s for s in self.snapshots if s < step] if self.snapshots else None
        return trajectory.begin(self.folder, step, needed, self.binding)

    def limit(self, step: int) -> int:
        """Maximum steps of the next call."""
        if self.snapshots:
            return min((s - step for s in self.snapshots if s > step), default=self.sweep.schedule.steps)
        return min(TAPE_STEPS, self.every - step % self.every) if self.every else TAPE_STEPS

    def before(self, step: int, trained: Sequence[PyTree]) -> Sequence[PyTree] | None:
        """A copy on the device of the trained parameters, if this step is kept raw: a call overwrites its arguments."""
        raw = step in self.snapshots or (self.every is not None and step > 0 and step % self.every == 0)
        return jax.tree.map(lambda x: x.copy(), trained) if raw else None

    def take(self, call: TapedCall) -> None:
        """Writes one call's segment.

        Raises:
          ValueError: if some update was not a sign update.
        """
        if self.snapshots:
            if call.before is not None:
                self._write(call.start, call.start, self._raw(call.before), None)
            return
        steps = call.stop - call.start
        if self.kind == "features":
            runs = (run for taped in call.taped for run in zip(*(_rows(x) for x in taped)))
            self._write(call.start, call.stop, None, ([_bits(x[:steps]) for x in run] for run in runs))
            return
        off = np.concatenate([np.asarray(taped["off"]) for taped in call.taped])[: self.count]
        if self.for_weights and (off < 0).all():
            sizes = np.concatenate([np.asarray(taped["amplitude"]) for taped in call.taped])[: self.count, :steps]
            off = self._apart(sizes)
        if (off >= 0).any():
            run = int(np.argmax(off >= 0))
            raise ValueError(
                f"trajectory='signs' needs steps of one size, amplitude * {{-1, 0, +1}}: a run of "
                f"{self.folder.name} took another one at step {call.start + off[run]}; "
                "use trajectory='features', 'log2' or a list of steps"
            )
        raw = self._raw(call.before) if call.before is not None else None
        rows = (run for taped in call.taped for run in zip(_rows(taped["amplitude"]), _rows(taped["codes"])))
        parts = ([_bits(amplitude[:steps]), codes[:steps]] for amplitude, codes in rows)
        self._write(call.start, call.stop, raw, parts)

    def _apart(self, sizes: np.ndarray) -> np.ndarray:
        """For every run the first step at which arrays of one field move by different sizes, -1 if none.

        The features of a matrix stand for coordinates of one array of weights, whose codes have one amplitude.

        Args:
          sizes: (runs, steps, leaves).
        """
        fields, apart = self.fields, np.zeros(sizes.shape[:2], bool)
        for field in set(fields):
            own = sizes[..., [i for i, name in enumerate(fields) if name == field]]
            least = np.where(own == 0, np.inf, own).min(-1)  # an array that rests fits any size
            most = own.max(-1)
            apart |= (most != 0) & np.isfinite(most) & (most != least)
        return np.where(apart.any(1), apart.argmax(1), -1)

    def _raw(self, trained: Sequence[PyTree]) -> list[np.ndarray]:
        """Trained parameters as the XOR of their bits with those of step 0: coordinates that never move are 0."""
        leaves = jax.tree.leaves(joined(trained, self.count))
        return [_bits(x) ^ _bits(first) for x, first in zip(leaves, self.first)]

    def _write(
        self, start: int, stop: int, raw: list[np.ndarray] | None, parts: Iterable[list[np.ndarray]] | None
    ) -> None:
        """Writes a segment: for every run its raw leaves, and the arrays that change from step to step."""
        record, records = trajectory.Record(), []
        for i, steps in zip(range(self.count), parts if parts is not None else itertools.repeat([])):
            for x in raw or []:
                record.numbers(x[i])
            for x in steps:
                record.deltas(x)
            records.append(record.compressed())
        words = self.binding.words(unit=self.folder.name)
        trajectory.write_segment(self.folder, start, stop, raw is not None, records, words)

    def finish(self, trained: Sequence[PyTree], features: Sequence[PyTree] | None) -> None:
        """Writes the last step, and the index by which the runs count as stored.

        Args:
          trained: the trained parameters at the end, one entry a part.
          features: the features at the end, if the trajectory keeps features.
        """
        end = self.sweep.schedule.steps
        if end in self.snapshots:
            self._write(end, end, self._raw(trained), None)
        if features is not None:
            leaves = jax.tree.leaves(joined(features, self.count))
            self._write(end, end, None, ([_bits(x[i])[None] for x in leaves] for i in range(self.count)))
            self.about["features"] = [[list(x.shape[1:]), x.dtype.str] for x in leaves]
        trajectory.finish(self.folder, self.about, self.binding)

    def flush(self) -> None:
        """Waits until the segments so far are on the disk."""
        trajectory.flush(self.folder)


def start_crcs(arrays: PyTree) -> list[int]:
    """A CRC of the data and initial parameters of every run: a reader draws them again and compares.

    Args:
      arrays: (data, parameters), arrays with the runs along their first axis.
    """
    crcs: list[int] = []
    for leaf in jax.tree.leaves(arrays):
        words = jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        runs = np.ascontiguousarray(np.asarray(words))
        crcs = [zlib.crc32(run.tobytes(), crc) for run, crc in zip(runs, crcs or [0] * len(runs))]
    return crcs


def _rows(array: jax.Array) -> Iterator[np.ndarray]:
    """The runs of an array, as views of the devices' memory where the host can read it."""
    for shard in sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0):
        yield from np.asarray(shard.data)


def _bits(x: np.ndarray) -> np.ndarray:
    """Floats as the integers of their bits."""
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")
