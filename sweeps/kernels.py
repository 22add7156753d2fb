"""Softmax against Gaussian attention: what W_V can fit, who wins where when W_Q is trained, landscapes, retrieval.

Axes: `value` trains W_V alone over kernel x (embed, d_out); `query` W_Q alone over kernel x d x init_scale x c_scale;
`all` every weight over kernel x d x init_scale; `two_stage` W_V for 500 steps, then W_Q, with the landscape in W_Q
after either stage; `retrieval` a learned task over samples, tested on fresh ones. Full batch, several learning rates.
Command: python sweeps/kernels.py --out results/kernels
Cost: 443 seconds of processor time; 7.7 minutes on 2 cores of an AMD EPYC shared with another job.
Expected: W_V alone has a solution of zero loss where H D >= N n and d_out <= d, and nowhere else. With W_Q alone
softmax ends lower at small scales (loss ratio .20 against .35 at g = .5, d = 4), the Gaussian kernel at large ones
(.58 against 1.2 at g = 3), and at g = 3, d = 16 it does not move. All sizes, laws, scales and constants are
reconstructed.
"""

import dataclasses
import sys
from argparse import Namespace

import jax
import jax.numpy as jnp
import optax

import jaxsign as js
from jaxsign.systems.kernels import KernelHyper, KernelProblem, kernel_attention
from jaxsign.training.start import field_of

KERNELS = ["softmax", "gaussian"]
#: H D against N n = 32 with d_out <= d, and one case where only the width fails (d_out = 8 > d = 4).
SIZES = [(16, 1), (64, 1), (256, 1), (48, 8)]
#: Random targets; for the landscape W_V must leave something for W_Q to do, hence H D < N n; a task to be learned.
RANDOM = KernelProblem(samples=8, tokens=4, embed=64, d=4)
NARROW = dataclasses.replace(RANDOM, embed=16)
MARKED = KernelProblem(tokens=4, embed=8, d=4, targets="retrieval")
SEEDS = {"value": 64, "query": 40, "all": 40, "two_stage": 64, "retrieval": 40}
LANDSCAPE = ["landscape", "roughness", "mean_curvature", "robust_condition"]


def two_stage(learning_rate, value_rate, switch):
    """Gradient descent on W_V with `value_rate` up to step `switch`, on the others with `learning_rate` after it."""
    stages = {
        "first": optax.sgd(lambda step: jnp.where(step < switch, value_rate, 0.0)),
        "second": optax.sgd(lambda step: jnp.where(step < switch, 0.0, learning_rate)),
    }

    def stage(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: "first" if field_of(path) == "w_v" else "second", params
        )

    return optax.partition(stages, stage)


def build(args: Namespace) -> dict[str, js.Sweep]:
    tiny = args.tiny
    steps = args.steps or (30 if tiny else 1500)
    switch = steps // 3

    def gd(*rates):
        return {"gd": js.grid(optax.sgd, learning_rate=rates[:2] if tiny else rates)}

    def sweep(name, problem, axes, optimizers, observables, test, trainable=None):
        return js.Sweep(
            system=kernel_attention, problem=problem, hyper=KernelHyper(), optimizers=optimizers,
            axes={"kernel": KERNELS, **axes, "seed": args.seeds or (2 if tiny else SEEDS[name])}, steps=steps,
            record=max(steps // 15, 1), test_every=test, observables=["train_loss", "train_ratio", *observables],
            trainable=trainable,
        )  # fmt: skip

    narrow = dataclasses.replace(NARROW, plane_points=5 if tiny else 41)
    stages = {"two_stage": js.grid(two_stage, learning_rate=[10.0, 30.0], value_rate=[0.1, 0.3, 1.0], switch=[switch])}
    sizes, heads = (SIZES[1:2], [4]) if tiny else (SIZES, [4, 16])
    scales = {"init_scale": [0.5, 1.0, 3.0], "c_scale": [1.0] if tiny else [0.25, 1.0, 4.0]}
    return {
        "value": sweep(
            "value", RANDOM, {("embed", "d_out"): sizes}, gd(0.1, 0.3, 1.0, 3.0), ["best_ratio", "value_rank"], [0],
            ["w_v"],
        ),
        "query": sweep(
            "query", RANDOM, {"d": heads, **scales}, gd(1.0, 10.0, 30.0, 100.0), ["gradient_norm"], [0], ["w_q"]
        ),
        "all": sweep("all", RANDOM, {"d": heads, "init_scale": [0.5, 3.0]}, gd(0.03, 0.1, 0.3, 1.0), [], [0]),
        "two_stage": sweep("two_stage", narrow, {}, stages, LANDSCAPE, [switch, steps], ["w_q", "w_v"]),
        "retrieval": sweep(
            "retrieval", MARKED, {"samples": [32] if tiny else [32, 96]}, gd(0.01, 0.03, 0.1),
            ["test_loss", "test_ratio"], [0, steps],
        ),
    }  # fmt: skip


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
