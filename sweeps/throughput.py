"""Seed-steps per second of the dense engine beside the textbook vmapped model, same work, same process.

Both train the paper-like problem and compute the loss every step; no test evaluation. The textbook model is what the
field writes: X as (n, 2, d), full W_V, autodiff through `jax.nn.softmax`, Optax on the full tree, vmapped over seeds.
Each contender runs in lanes of every width in WIDTHS, spread over all CPU devices, and is quoted at its best one; runs
alternate, the median of REPEATS counts. Compilation and data drawing are outside the clock.
Optimizers: SignGD, Adam, GD (value rows tied), and GD clipped by the global norm, which needs the full tree.
Command: python sweeps/throughput.py
Cost: 4 minutes on 2 cores of an Intel Xeon with AVX-512, compilation included.
Expected: ratios 3.4, 2.9, 3.0 for SignGD, Adam and GD, 2.5 for clipped GD; last losses equal to 1e-6.
"""

import argparse
import functools
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, PartitionSpec

import jaxsign as js
from jaxsign.cli import configure
from jaxsign.exactness import use_compact
from jaxsign.schedule import Schedule
from jaxsign.start import abstract_start, begin
from jaxsign.training import make_train

WIDTHS = (1, 2, 4, 8)
REPEATS = 5


def clipped_gd(learning_rate):
    return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(learning_rate))


OPTIMIZERS = {
    "SignGD": (js.sign_gd, 1e-4),
    "Adam": (functools.partial(optax.adam, eps=1e-15), 1e-4),
    "GD": (optax.sgd, 0.3),
    "GD, clipped by global norm": (clipped_gd, 0.3),
}


def textbook(factory, rate, steps):
    """One run of the textbook model: x (n, 2, d), y (n,), params -> last loss."""

    def forward(params, x):
        query = jnp.matmul(x, params["q"].T, precision="highest")
        key = jnp.matmul(x, params["k"].T, precision="highest")
        attention = jax.nn.softmax(jnp.matmul(query, key.T, precision="highest"), axis=-1)
        values = jnp.einsum("jrc,ac->jra", params["v"], x, precision="highest")
        out = jnp.mean(jnp.sum(values * jnp.sum(attention, axis=0), axis=-1), axis=-1)
        return out[0] - out[1]

    def loss(params, x, y):
        return jnp.mean(jax.nn.softplus(-y * jax.vmap(forward, (None, 0))(params, x)))

    def run(params, x, y):
        transform = factory(rate)

        def step(_, carry):
            params, state, worst = carry
            value, gradient = jax.value_and_grad(loss)(params, x, y)
            updates, state = transform.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, jnp.maximum(worst, value)

        params, _, worst = jax.lax.fori_loop(0, steps, step, (params, transform.init(params), jnp.zeros(())))
        return jnp.where(jnp.isfinite(worst), loss(params, x, y), jnp.nan)  # both watch every loss

    return run


def dense(task, hyper, factory, rate, steps):
    """One run of the dense engine: key, start -> last loss."""
    compact = use_compact(task, factory, [{"learning_rate": rate}], abstract_start(task, hyper))
    schedule = Schedule.build(steps, steps, steps)
    train = make_train(task, factory, schedule, observables=("train_loss",), compact=compact, keep_params=False)
    return lambda key, start: train(key, start, hyper, {"learning_rate": rate})["trace"]["train_loss"][-1]


def compiled(run, arguments, width, mesh):
    """The program of a block: lanes of `width` runs, one after the other on each device."""

    def lanes(*block):
        cut = jax.tree.map(lambda a: a.reshape(-1, width, *a.shape[1:]), block)
        return jax.lax.map(lambda lane: jax.vmap(run)(*lane), cut).reshape(-1)

    runs = PartitionSpec("run")
    program = jax.jit(jax.shard_map(lanes, mesh=mesh, in_specs=runs, out_specs=runs, check_vma=False))
    started = time.perf_counter()
    ready = program.lower(*arguments).compile()
    return ready, time.perf_counter() - started


def seconds(program, arguments):
    started = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return time.perf_counter() - started


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    configure()
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("run",), axis_types=(AxisType.Auto,))
    problem, hyper = js.presets.paper_like()
    widths, repeats, steps = WIDTHS, REPEATS, args.steps
    if args.tiny:
        problem = js.Problem(n=4, d=60, s=5, m_k=3, m_v=3, n_test=5)
        widths, repeats, steps = (1,), 1, 5
    hyper = jax.tree.map(jnp.float32, hyper)
    task = js.two_layer(problem)
    runs = max(widths) * len(devices)
    keys = jax.random.split(jax.random.key(0), runs)
    start = jax.jit(lambda keys: jax.lax.map(lambda key: begin(task, key, hyper), keys))(keys)
    x, y = jax.jit(jax.vmap(lambda data: data.x))(start.data), start.data.y
    params = {"q": start.params.w_q, "k": start.params.w_k, "v": start.params.w_v}
    print(f"{runs} runs x {steps} steps on {len(devices)} {devices[0].device_kind} devices, jax {jax.__version__}")
    print(f"{'optimizer':28s}{'textbook':>16s}{'dense':>16s}{'ratio':>8s}   seed-steps/s at the best lane width")
    for name, (factory, rate) in OPTIMIZERS.items():
        contenders = {
            "textbook": (textbook(factory, rate, steps), (params, x, y)),
            "dense": (dense(task, hyper, factory, jnp.float32(rate), steps), (keys, start)),
        }
        programs = {
            (label, width): (compiled(run, arguments, width, mesh)[0], arguments)
            for label, (run, arguments) in contenders.items()
            for width in widths
        }
        last = {key: jax.block_until_ready(program(*arguments)) for key, (program, arguments) in programs.items()}
        difference = float(jnp.max(jnp.abs(last["dense", 1] - last["textbook", 1])))
        times = {key: [] for key in programs}
        for _ in range(repeats):
            for key, (program, arguments) in programs.items():
                times[key].append(seconds(program, arguments))
        best = {}
        for label in contenders:
            width = min(widths, key=lambda w: statistics.median(times[label, w]))
            best[label] = (runs * steps / statistics.median(times[label, width]), width)
        cells = "".join(f"{best[label][0]:10.0f} (W={best[label][1]})" for label in contenders)
        ratio = best["dense"][0] / best["textbook"][0]
        print(f"{name:28s}{cells}{ratio:8.2f}   last losses differ by at most {difference:.1e}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
