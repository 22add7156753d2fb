"""Where does a step of feature_space spend its time on a CPU, and what would the runs as the last axis bring?

One process, one device, the same draws, SignGD without test metrics; contenders take turns, and the least processor
time counts (microseconds a run-step):

    engine             the library's program: 64 runs a lane, the runs as the first axis of every array (`jax.vmap`)
    engine, a level    the same, capturing what is recorded where the training loss falls to .1
    engine, 512 bits   the same with XLA's option xla_cpu_prefer_vector_width=512
    runs last          the same arithmetic written by hand with the runs as the last axis: loops over 64 numbers, which
                       fill whole vectors, instead of 20, which leave 4 over
    runs last, kept    the same, with every coefficient of an example divided by a 1 that XLA cannot see. XLA fuses
                       cheap operations into all their consumers and computes them again for each of the 20 rows, and
                       into sums, whose loops LLVM then leaves scalar; it does not fuse a division that is used twice

Then the passes of the engine and of the last one: medians of the profiler's times, nanoseconds a run-step.

Found on an AMD EPYC, jax 0.10.2: 1.4, 1.7, 1.2, 3.3 and .75 (a level: 2.0 as long as XLA copied all captures at every
step); all five train to the same bits. The engine's 35 passes: 830
of 1,450 nanoseconds in 12 passes over the 20 x 20 numbers of a matrix (updates of W_Q and W_K 135 each, their sums over
examples 130 and 100, key_gap 115, sums over rows 140, copies 70), the rest in passes over 20 numbers that take 20 to 45
each whatever they compute. With the runs last and kept, passes over 20 numbers take 5 to 25.

What stands in the way of the last one. `jax.vmap` moves the mapped axis to the front wherever an operation broadcasts.
A loop's state keeps the default layout whatever layout its body asks for: with `with_layout_constraint` on every array
of the gradient a step takes 4.7, since XLA transposes the state twice a step. So it needs a loop that is written for a
lane, with the optimizer applied to arrays of all its runs. XLA drops `optimization_barrier` before it fuses. With the
runs first the same means do not pay: coefficients kept 1.6 to 1.9; sums over rows taken from key_gap 1.45 (1.37 with
512 bits); one logarithm and exponential in place of two for the value votes 1.8 (LLVM leaves the sum scalar); products
in place of sums over examples 1.65. 512 bits bring Adam, dense and support nothing, and change the last bits of dense
and support.

Command: python sweeps/bench/step.py [--repeats 9] [--tiny]
Cost: half a minute on one core.
"""

import argparse
import collections
import dataclasses
import functools
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from contenders import OPTIMIZERS, Draws, Engine, Work, devices_mesh, number

import jaxsign as js
from jaxsign.compilation import compiler_options

WIDTH = 64
RATE = OPTIMIZERS["SignGD"].rate


def weights_last(params, data):
    """(weights, data) of a lane with the runs as the last axis: W_Q and W_K are (row, example, run)."""
    last = lambda x: np.moveaxis(np.asarray(x), 0, -1)  # noqa: E731
    state = {"q_mu": last(params.w_q.signal), "q": last(params.w_q.noise[..., 0]), "k_mu": last(params.w_k.signal)}
    state |= {"k": last(params.w_k.noise[..., 0]), "v_mu": last(params.w_v.signal), "v": last(params.w_v.noise[..., 0])}
    fixed = {"y": last(data.y), "sign": last(data.y_clean * data.mu[:, None]), "weight": last(data.weight)}
    fixed |= {"metric": last(data.metric[..., 0]), "value_metric": last(data.value_metric)}
    return state, fixed | {"one": np.ones_like(fixed["y"])}


def logistic(z):
    exponent = -jnp.abs(z)
    small = jnp.exp(exponent)
    large = 1 / (1 + small)
    small = small * large
    return jnp.where(z > 0, large, small), jnp.where(z > 0, small, large), exponent, large


def along(operation, x):
    """Reduces (example, run) over the examples. Written out, since XLA fuses all that precedes a reduction into it."""
    return functools.reduce(operation, list(x))


def largest(exponent):
    top = along(jnp.maximum, exponent)[None]
    return jnp.where(jnp.isneginf(top), 0, top)


def step_last(state, fixed, kept):
    """One step of SignGD: `value_and_gradient` with signs=True for one head, without feature noise and residual path.

    Args:
      state: from `weights_last`.
      fixed: from `weights_last`.
      kept: whether coefficients of examples are kept out of the fusions that use them.

    Returns:
      (state, loss (run,)).
    """
    keep = (lambda x: x / fixed["one"]) if kept else (lambda x: x)
    q, k, q_mu, k_mu, v, v_mu = (state[name] for name in ("q", "k", "q_mu", "k_mu", "v", "v_mu"))
    y, sign, weight = fixed["y"], fixed["sign"], fixed["weight"]
    z_1 = keep(sign * (sign * jnp.sum(q_mu * k_mu, 0)[None] - jnp.sum(q_mu[:, None] * k, 0)))
    z_2 = keep(sign * jnp.sum(q * k_mu[:, None], 0) - jnp.sum(q * k, 0))
    (s_1, t_1, e_1, large_1), (s_2, t_2, e_2, large_2) = logistic(z_1), logistic(z_2)
    on_signal, on_noise = s_1 + s_2, t_1 + t_2
    value = sign * v_mu[None]
    margin = keep(y * (on_signal * value + on_noise * v))
    small = jnp.exp(-jnp.abs(margin))
    loss = along(jnp.add, keep(weight * (jnp.maximum(-margin, 0) + jnp.log1p(small))))
    rest_p, exponent_p = 1 / (1 + small), jnp.where(weight > 0, -jnp.maximum(margin, 0), -jnp.inf)
    e = -weight * y * (value - v)
    smaller, first = jnp.exp(-jnp.abs(e_1 - e_2)), e_1 > e_2
    over_a, over_b = jnp.where(first, 1, smaller), jnp.where(first, smaller, 1)
    rest_a, rest_b = large_1 * large_1, large_2 * large_2
    a, b, larger, log_e = over_a * rest_a, over_b * rest_b, jnp.maximum(e_1, e_2), jnp.log(jnp.abs(e))

    def votes(exponent):
        total = exponent_p + exponent
        return jnp.exp(jnp.minimum(total - largest(keep(total + log_e)), 80)) * rest_p

    near_1, near_2 = s_1 > t_1, s_2 > t_2
    whole = near_1.astype(y.dtype) + near_2.astype(y.dtype)
    gone = jnp.where(near_1, -over_a, over_a) * large_1 + jnp.where(near_2, -over_b, over_b) * large_2
    number_v = sign * jnp.where(whole == 0, gone, on_signal)
    exponent_v = jnp.where(whole == 0, larger, 0)
    exponent_v = keep(exponent_p + jnp.log(jnp.abs(number_v)) + exponent_v)
    p_v = jnp.sign(number_v) * jnp.exp(exponent_v - largest(exponent_v))
    slope, side = -weight * y, jnp.sign(jnp.where(whole == 2, -gone, on_noise))
    gap = sign[None] * k_mu[:, None] - k
    for_q, for_k = keep(votes(e_1) * sign * rest_a * e), keep(votes(larger) * sign * e)
    on_q_mu, on_q, sign_e = keep(a * sign), keep(b), keep(jnp.sign(e))
    pull = on_q_mu[None] * q_mu[:, None] + on_q[None] * q
    whose = jnp.where(q == 0, sign[None] * q_mu[:, None], jnp.where(q_mu[:, None] == 0, q, pull))
    moved, metric, value_metric = lambda g: -RATE * jnp.sign(g), fixed["metric"], fixed["value_metric"]
    return {
        "q": q + metric[None] * moved(sign_e[None] * gap), "k": k + metric[None] * moved(-sign_e[None] * whose),
        "q_mu": q_mu + moved(jnp.sum(for_q[None] * gap, 1)), "k_mu": k_mu + moved(jnp.sum(for_k[None] * pull, 1)),
        "v": v + value_metric[None] * metric * moved(slope * side),
        "v_mu": v_mu + value_metric * moved(along(jnp.add, keep(slope * p_v * rest_p))),
    }, loss  # fmt: skip


def train_last(steps, kept):
    """(weights, data) -> weights after all steps, and the runs whose loss was not finite."""

    def step(_, carry):
        (state, bad), fixed = carry
        state, loss = step_last(state, fixed, kept)
        return (state, bad | ~jnp.isfinite(loss)), fixed

    def train(state, fixed):
        bad = jnp.zeros(state["v_mu"].shape, bool)
        return jax.lax.fori_loop(0, steps, step, ((state, bad), fixed))[0]

    return train


def passes(call, run_steps, steps):
    """{kernel: median nanoseconds a run-step} of the kernels that run once a step."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        file = next(Path(folder).rglob("*.xplane.pb"))
        times = collections.defaultdict(list)
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    times[event.name].append(event.duration_ns)
    kernels = {name: each for name, each in times.items() if len(each) == steps and not name.startswith("end:")}
    found = {name: float(np.median(each)) * steps / run_steps for name, each in kernels.items()}
    return {name: each for name, each in sorted(found.items(), key=lambda item: -item[1]) if each > 0}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--tiny", action="store_true", help="a smoke test, no measurement")
    args = parser.parse_args(argv)
    problem, hyper = js.presets.paper_like()
    problem, steps = dataclasses.replace(problem, supports="disjoint"), 10 if args.tiny else 200
    if args.tiny:
        problem = dataclasses.replace(problem, n=4, d=60, s=5, m_k=3, m_v=3, n_test=5)
    what = Work(problem, jax.tree.map(number, hyper), steps, steps)
    engine = Engine(what, "feature_space", OPTIMIZERS["SignGD"], ["train_loss"])
    level = Engine(what, "feature_space", OPTIMIZERS["SignGD"], ["train_loss"], levels=(0.1,))
    start = Draws(what, devices_mesh(), False, ["feature_space"]).first(WIDTH, engine.task, engine.degree)
    start = jax.device_put(jax.tree.map(jnp.asarray, start))
    last = jax.device_put(weights_last(start.params, start.data))
    options, wide = compiler_options("cpu"), {"xla_cpu_prefer_vector_width": "512"}
    programs = {
        "engine": (jax.vmap(engine.train), (start,), options),
        "engine, a level": (jax.vmap(level.train), (start,), options),
        "engine, 512 bits": (jax.vmap(engine.train), (start,), options | wide),
        "runs last": (train_last(steps, False), last, options),
        "runs last, kept": (train_last(steps, True), last, options),
    }
    calls, results = {}, {}
    for name, (function, arguments, chosen) in programs.items():
        program = jax.jit(function, compiler_options=chosen).lower(*arguments).compile()
        calls[name] = lambda program=program, arguments=arguments: program(*arguments)
        out = jax.device_get(calls[name]())
        results[name] = weights_last(out["params"], start.data)[0] if isinstance(out, dict) else out[0]
    times = dict.fromkeys(calls, float("inf"))
    for _ in range(1 if args.tiny else args.repeats):
        for name, call in calls.items():
            begun = time.process_time()
            jax.block_until_ready(call())
            times[name] = min(times[name], time.process_time() - begun)
    for name, seconds in times.items():
        apart = max(float(np.max(np.abs(results[name][key] - results["engine"][key]))) for key in results[name])
        print(f"{name:18s} {1e6 * seconds / WIDTH / steps:7.3f} us a run-step, weights differ by at most {apart:.1e}")
    for name in () if args.tiny else ("engine", "runs last, kept"):
        found = passes(calls[name], WIDTH * steps, steps)
        print(f"\n{name}: {len(found)} passes, {sum(found.values()):.0f} ns a run-step")
        for kernel, each in found.items():
            print(f"  {kernel:36s} {each:6.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
