"""What do throughput.py and device.py compare? PyTorch and JAX + Optax as the field writes them, and jaxsign's engines.

All train the same draws with full batches, compute the loss at every step and watch that it stays finite, and record
the same scalars. No experiment of its own: it has no command.
"""

import dataclasses
import functools
import multiprocessing
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsign as js
from jaxsign.compilation import compiler_options
from jaxsign.systems.two_layer.observables import observe
from jaxsign.training.loop import Loop
from jaxsign.training.mode import choose_mode
from jaxsign.training.schedule import Schedule
from jaxsign.training.start import begin
from jaxsign.training.train import make_train

#: Engines of js.two_layer, and the lane widths that each is tried at.
ENGINES = {"dense": (1, 2, 4), "support": (1, 2, 8), "feature_space": (1, 8, 32, 128, 256)}
#: Engines that are compared where patches share coordinates.
SHARING = ("support", "hybrid")
TEXTBOOK = (1, 2, 4)
RUNS = PartitionSpec("run")


def clipped_gd(learning_rate):
    return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(learning_rate))


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An Optax factory, its learning rate, its moments a weight, and whether it moves each coordinate alone."""

    factory: Callable[..., optax.GradientTransformation]
    rate: float
    moments: int = 0
    coordinatewise: bool = True


OPTIMIZERS = {
    "SignGD": Optimizer(js.sign_gd, 1e-4),
    "Adam": Optimizer(functools.partial(optax.adam, eps=1e-15), 1e-4, moments=2),
    "GD": Optimizer(optax.sgd, 0.3),
    "GD clipped by global norm": Optimizer(clipped_gd, 0.3, coordinatewise=False),
}


@dataclasses.dataclass(frozen=True)
class Work:
    """What every contender does with a run: `steps` steps, scalars every `every` steps, test metrics or none."""

    problem: js.Problem
    hyper: js.Hyper
    steps: int
    every: int
    test: bool = False


def number(x: float) -> jax.Array:
    """A number in JAX's default float."""
    return jnp.asarray(x, jnp.zeros(()).dtype)


def mean_s21(params, data, test, hyper):
    """The scalar that the library has no name for."""
    return jnp.mean(observe(params, data, None)["s21"])


# ----------------------------------------------------------------------------------------------------------- draws


class Draws:
    """Starts of the seeds 0, 1, 2, ... as NumPy arrays, drawn once: equal seeds are equal runs for every contender.

    Args:
      work: what is drawn for.
      mesh: the devices that draw.
      test: whether test sets are drawn.
      engines: names of engines of js.two_layer that are drawn for.
    """

    BLOCK = 16

    def __init__(self, work: Work, mesh: Any, test: bool, engines: Iterable[str] = ENGINES):
        self.block = self.BLOCK * mesh.size
        self.seconds, self.drawn = 0.0, 0
        self.starts: dict[Any, Any] = {}
        # dense and support share their starts, which textbook and PyTorch take too.
        tasks = {task.prepare: task for task in (js.two_layer(work.problem, name) for name in engines)}
        self.kinds = list(tasks)

        def one(seed, degree):
            key = jax.random.key(seed, impl="threefry2x32")
            starts = [begin(task, key, work.hyper, None, degree) for task in tasks.values()]
            return [start if test else start._replace(test=None) for start in starts]

        def lane(seeds, degree):
            return jax.lax.map(lambda seed: one(seed, degree), seeds)

        # One program for all kinds: XLA merges their equal random draws, the slow part of compiling it.
        mapped = jax.shard_map(lane, mesh=mesh, in_specs=(RUNS, PartitionSpec()), out_specs=RUNS, check_vma=False)
        started = time.perf_counter()
        self.program = jax.jit(mapped).lower(jnp.zeros(self.block, jnp.int32), jnp.zeros(())).compile()
        self.compile_seconds = time.perf_counter() - started
        self.mesh = mesh

    @property
    def seconds_per_run(self) -> float:
        """What drawing one run takes."""
        return self.seconds / max(self.drawn, 1)

    def first(self, runs: int, task: js.Task, degree: float | None) -> Any:
        """The starts of the first `runs` seeds for a task and an optimizer of this degree."""
        kind, degree = (task.prepare, degree), number(degree or 0.0)
        parts = [self.starts[kind]] if kind in self.starts else []
        have = jax.tree.leaves(parts)[0].shape[0] if parts else 0
        for first in range(have, runs, self.block):
            started = time.perf_counter()
            drawn = self.program(jnp.arange(first, first + self.block, dtype=jnp.int32), degree)
            parts.append(jax.tree.map(np.asarray, drawn[self.kinds.index(task.prepare)]))
            self.drawn += self.block
            self.seconds += time.perf_counter() - started
        if have < runs:
            self.starts[kind] = jax.tree.map(lambda *each: np.concatenate(each), *parts)
        return jax.tree.map(lambda a: a[:runs], self.starts[kind])


def written_out(draws: Draws, runs: int, work: Work) -> list[dict[str, np.ndarray]]:
    """Runs as the field holds them: inputs X (n, 2, d), the full weights, and test inputs (n_test, 2, d)."""
    data, test, params, _ = draws.first(runs, js.two_layer(work.problem), None)
    each = np.arange(work.problem.n)
    out = []
    for run in range(runs):
        basis, slot = data.basis[run], data.signal_slot[run]
        x = np.zeros((each.size, 2, work.problem.d), basis.dtype)
        x[each, slot, 0] = data.y_clean[run] * data.mu[run]
        x[each, 1 - slot] = basis[1:]
        one = {"x": x, "y": data.y[run], "slot": slot, "mu": data.mu[run]}
        one |= {"q": params.w_q[run], "k": params.w_k[run], "v": params.w_v[run]}
        if work.test:
            y = test.y[run]
            fresh = np.zeros((y.size, 2, work.problem.d), basis.dtype)
            fresh[:, 0, 0] = y * test.mu[run]
            np.put_along_axis(fresh[:, 1], test.indices[run][:, 0], test.values[run][:, 0], axis=1)
            one |= {"x_test": fresh, "y_test": y}
        out.append(one)
    return out


# ------------------------------------------------------------------------------------------------------------- JAX


def textbook(work: Work, optimizer: Optimizer) -> Callable[[dict], dict]:
    """One run of the textbook model: X as (n, 2, d), full W_V, autodiff through `jax.nn.softmax`, Optax on the tree."""
    transform = optimizer.factory(optimizer.rate)

    def parts(params, x):
        query = jnp.matmul(x, params["q"].T, precision="highest")
        key = jnp.matmul(x, params["k"].T, precision="highest")
        attention = jax.nn.softmax(jnp.matmul(query, key.T, precision="highest"), axis=-1)
        values = jnp.einsum("jrc,ac->jra", params["v"], x, precision="highest")
        out = jnp.mean(jnp.sum(values * jnp.sum(attention, axis=0), axis=-1), axis=-1)
        return query, key, attention, out[0] - out[1]

    def margins(params, x, y):
        return y * jax.vmap(lambda x: parts(params, x)[-1])(x)

    def loss(params, x, y):
        return jnp.mean(jax.nn.softplus(-margins(params, x, y)))

    def look(params, run):
        query, key, attention, logits = jax.vmap(parts, (None, 0))(params, run["x"])
        each, slot, dtype = jnp.arange(run["y"].size), run["slot"], logits.dtype
        value = jnp.mean(params["v"], axis=1)
        agree = jnp.sign(query[each, 1 - slot]) == jnp.sign(key[each, 1 - slot])
        seen = {
            "train_loss": jnp.mean(jax.nn.softplus(-run["y"] * logits)),
            "sign_agreement": jnp.mean(agree, dtype=dtype),
            "mean_s21": jnp.mean(attention[each, 1 - slot, slot]),
            "value_signal": run["mu"] * (value[0, 0] - value[1, 0]),
        }
        if work.test:
            margin = margins(params, run["x_test"], run["y_test"])
            seen["test_loss"] = jnp.mean(jax.nn.softplus(-margin))
            seen["test_error"] = jnp.mean(margin <= 0, dtype=dtype)
        return seen

    def step(_, carry):
        params, state, worst, run = carry
        value, gradient = jax.value_and_grad(loss)(params, run["x"], run["y"])
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, jnp.maximum(worst, value), run

    def train(run):
        params = {name: run[name] for name in ("q", "k", "v")}

        def segment(carry, _):
            after = jax.lax.fori_loop(0, work.every, step, (*carry, run))[:3]
            return after, look(after[0], run)

        carry = (params, transform.init(params), jnp.zeros(()))
        first = look(params, run)
        (_, _, worst), rest = jax.lax.scan(segment, carry, length=work.steps // work.every)
        trace = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
        return jax.tree.map(lambda seen: jnp.where(jnp.isfinite(worst), seen, jnp.nan), trace)

    return train


class Engine:
    """An engine of js.two_layer with one optimizer: its task, its degree if it has one, and `run(start) -> trace`.

    Args:
      work: what a run is.
      name: of the engine.
      optimizer: the optimizer.
      observables: what is recorded; None: the scalars that all contenders record.
      levels: training losses at which they are captured besides.
    """

    def __init__(
        self, work: Work, name: str, optimizer: Optimizer, observables: Iterable[str] | None = None,
        levels: tuple[float, ...] = (),
    ):  # fmt: skip
        rate = {"learning_rate": number(optimizer.rate)}
        self.task = js.two_layer(work.problem, name)
        choice = choose_mode(self.task, optimizer.factory, [rate], work.hyper)
        self.degree = choice.degrees[0].p if choice.degrees else None
        if observables is None:
            observables = ("train_loss", "sign_agreement", mean_s21, "value_signal")
            observables += ("test_loss", "test_error") if work.test else ()
        loop = Loop(choice.mode, optimizer.factory, tuple(observables), levels=levels)
        train = make_train(loop, Schedule.build(work.steps, work.every, work.every))
        # Full batches: training draws nothing, any key does.
        self.train = lambda start: train(jax.random.key(0), start, work.hyper, rate)
        self.run = lambda start: self.train(start)["trace"]


class Lane:
    """The compiled program of one lane of `width` runs on every device; a batch is one call after another.

    As in `run_sweep`: one program serves every number of runs; calls are queued ahead, and one costs far less than a
    lane.
    """

    def __init__(self, run: Callable, example: Any, width: int, mesh: Any, library: bool):
        self.width, self.block = width, width * mesh.size
        self.sharding = NamedSharding(mesh, RUNS)
        mapped = jax.shard_map(jax.vmap(run), mesh=mesh, in_specs=RUNS, out_specs=RUNS, check_vma=False)
        options = compiler_options(mesh.devices.flat[0].platform) if library else None
        started = time.perf_counter()
        block = jax.tree.map(lambda a: jax.ShapeDtypeStruct((self.block, *a.shape[1:]), a.dtype), example)
        # XLA would choose the sharding of an argument that the program does not use, and then refuse ours.
        program = jax.jit(mapped, in_shardings=self.sharding, compiler_options=options)
        self.program = program.lower(block).compile()
        self.compile_seconds = time.perf_counter() - started

    def load(self, runs: Any) -> Callable[[], dict]:
        """The batch of these runs, on the devices; the last run fills up the last block, as in `run_sweep`."""
        runs = jax.tree.map(np.asarray, runs)  # picking blocks of arrays on several devices would need collectives
        count = jax.tree.leaves(runs)[0].shape[0]
        index = np.minimum(np.arange(-(-count // self.block) * self.block), count - 1).reshape(-1, self.block)
        blocks = [jax.device_put(jax.tree.map(lambda a: a[i], runs), self.sharding) for i in index]  # noqa: B023

        def call():
            parts = jax.block_until_ready([self.program(block) for block in blocks])
            return jax.tree.map(lambda *p: np.concatenate([np.asarray(q) for q in p])[:count], *parts)

        return call


def drawn_in_lanes(engine: Engine, work: Work, width: int, mesh: Any) -> tuple[Lane, Callable[[], Any], float]:
    """(the training program, a call that draws one full block of starts, seconds to compile both) of an engine."""

    def starts(seeds, degree):
        return jax.lax.map(
            lambda seed: begin(
                engine.task, jax.random.key(seed, impl="threefry2x32"), work.hyper, None, degree
            ), seeds,
        )  # fmt: skip

    started = time.perf_counter()
    seeds = jnp.arange(width * mesh.size, dtype=jnp.int32)
    mapped = jax.shard_map(starts, mesh=mesh, in_specs=(RUNS, PartitionSpec()), out_specs=RUNS, check_vma=False)
    degree = number(engine.degree or 0.0)
    program = jax.jit(mapped).lower(seeds, degree).compile()

    def draw():
        return jax.block_until_ready(program(seeds, degree))

    lane = Lane(engine.run, draw(), width, mesh, library=True)
    return lane, draw, time.perf_counter() - started


def devices_mesh() -> Any:
    return jax.make_mesh((jax.local_device_count(),), ("run",), axis_types=(AxisType.Auto,))


# --------------------------------------------------------------------------------------------------------- PyTorch


def torch_train(run: dict[str, Any], optimizer: str, rate: float, steps: int, every: int) -> dict[str, list[float]]:
    """One run in eager PyTorch: one seed, full W_V, autograd, a plain optimizer step."""
    import torch

    softplus = torch.nn.functional.softplus
    weights = [torch.nn.Parameter(run[name].clone()) for name in ("q", "k", "v")]
    x, y, slot = run["x"], run["y"], run["slot"].long()
    each = torch.arange(len(y))

    def forward(x):
        w_q, w_k, w_v = weights
        query, key = x @ w_q.T, x @ w_k.T
        attention = torch.softmax(query @ key.transpose(1, 2), dim=-1)
        values = (x @ w_v.flatten(0, 1).T).unflatten(-1, w_v.shape[:2]).mean(-1)  # (n, slot, class)
        out = (attention.sum(1).unsqueeze(-1) * values).sum(1)
        return query, key, attention, out[:, 0] - out[:, 1]

    @torch.no_grad()
    def look():
        query, key, attention, logits = forward(x)
        value = weights[2].mean(1)
        trace["train_loss"].append(softplus(-y * logits).mean().item())
        agree = query[each, 1 - slot].sign() == key[each, 1 - slot].sign()
        trace["sign_agreement"].append(agree.float().mean().item())
        trace["mean_s21"].append(attention[each, 1 - slot, slot].mean().item())
        trace["value_signal"].append((run["mu"] * (value[0, 0] - value[1, 0])).item())
        if "x_test" in run:
            margin = run["y_test"] * forward(run["x_test"])[-1]
            trace["test_loss"].append(softplus(-margin).mean().item())
            trace["test_error"].append((margin <= 0).float().mean().item())

    names = ["train_loss", "sign_agreement", "mean_s21", "value_signal"]
    trace: dict[str, list[float]] = {name: [] for name in names + ["test_loss", "test_error"] * ("x_test" in run)}
    plain = {
        "SignGD": lambda: None,
        "Adam": lambda: torch.optim.Adam(weights, lr=rate, eps=1e-15),
        "GD": lambda: torch.optim.SGD(weights, lr=rate),
    }[optimizer]()
    losses = []
    look()
    for step in range(1, steps + 1):
        loss = softplus(-y * forward(x)[-1]).mean()
        for weight in weights:
            weight.grad = None
        loss.backward()
        if plain is not None:
            plain.step()
        else:
            with torch.no_grad():
                for weight in weights:
                    weight -= rate * weight.grad.sign()
        losses.append(loss.detach())
        if step % every == 0:
            look()
    if not torch.stack(losses).isfinite().all():
        raise FloatingPointError("the PyTorch run diverged")
    return trace


def torch_worker(pipe: Any, threads: int) -> None:
    """A process that holds runs as tensors and trains them, one after the other, whenever it is told to."""
    import torch

    torch.set_num_threads(threads)
    runs: list[dict[str, Any]] = []
    while (order := pipe.recv()) is not None:
        if isinstance(order, list):
            runs = [{name: torch.from_numpy(np.array(value)) for name, value in run.items()} for run in order]
            pipe.send(len(runs))
        else:
            pipe.send([torch_train(run, *order) for run in runs])


class Torch:
    """Processes that share the seeds of a batch: each trains one seed after the other with `threads` threads."""

    def __init__(self, processes: int, threads: int):
        context = multiprocessing.get_context("spawn")  # a fork would copy JAX's threads half-way
        self.pipes, self.processes = [], []
        for _ in range(processes):
            own, other = context.Pipe()
            process = context.Process(target=torch_worker, args=(other, threads), daemon=True)
            process.start()
            other.close()
            self.pipes.append(own)
            self.processes.append(process)

    def load(self, runs: list[dict[str, np.ndarray]], *order: Any) -> Callable[[], dict]:
        """The batch of these runs, in the processes' memory; `order` is the rest of `torch_train`'s arguments."""
        used = self.pipes[: len(runs)]
        for i, pipe in enumerate(used):
            pipe.send(runs[i :: len(used)])
        for pipe in used:
            pipe.recv()

        def call():
            for pipe in used:
                pipe.send(order)
            parts = [pipe.recv() for pipe in used]
            traces = [parts[i % len(used)][i // len(used)] for i in range(len(runs))]
            return {name: np.array([trace[name] for trace in traces], np.float32) for name in traces[0]}

        return call

    def close(self) -> None:
        """Ends the processes."""
        for pipe, process in zip(self.pipes, self.processes):
            pipe.send(None)
            process.join()
