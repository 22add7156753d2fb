"""Linear transformers on in-context regression: SGD with momentum against Adam, noise, curvature, depth, softmax.

Entries: normal_20, normal_5, gamma_20 (settings 1, 2, 3), spherical_20 and relu_20 (nonlinear regression: normal_20
with the targets of a random ReLU network); 10,000 steps on 1000 fresh prompts each, both optimizers on the same prompts
and initial weights, learning rates and clipping as published; condition numbers every 250 steps, smoothness along the
last step every 25 up to 2000, then every 250. Every entry has 6 seeds.
relu_rates: relu_20 at every learning rate of the published grid, 500 steps. noise: gradient noise at the start, 10,000
batches of normal, gamma and spherical inputs. depth: layers 2 to 8, two learning rates an optimizer, 500 steps.
softmax: linear and softmax attention, Adam at seven learning rates each, 500 steps. full: form="full" of normal_20, 500
steps. tuning, tuning_spherical: a grid of learning rates, 200 steps, to compare its best ones with the published ones;
the grid itself is not published.
Command: python sweeps/linear_attention.py --out results/linear_attention
Cost: 87 minutes of processor time on an Intel Xeon core beside other work; forecast 58 alone.
Expected: `figures/gallery/claims_linear_attention.csv`.
The learning rates, sizes and settings are the published ones; the width and scale of the ReLU network, depth, softmax
and full are reconstructed.
"""

import sys
from argparse import Namespace

import numpy as np
import optax

import jaxsign as js

#: {entry: (inputs, n_context, learning rate of SGD, of Adam, clipping)}, as published; linear targets.
SETTINGS = {
    "normal_20": ("normal", 20, 0.02, 0.02, 1.0),
    "normal_5": ("normal", 5, 0.01, 0.005, 1.0),
    "gamma_20": ("gamma", 20, 0.02, 0.02, 1.0),
    "spherical_20": ("spherical", 20, 5.0, 0.1, 0.1),
}
#: Nonlinear regression: the published grid, and its best learning rates of SGD and Adam.
RELU_RATES, RELU_BEST = [0.001, 0.01, 0.05, 0.1], (0.05, 0.01)
#: Learning rates of Adam for either kind of attention: from a tenth of the published one for linear to a hundred of it.
ATTENTION_RATES = [0.002, 0.005, 0.02, 0.05, 0.2, 0.5, 2.0]
SCATTER = ["train_loss", "gradient_norm", "directional_smoothness", "gradient_before"]
CURVES = [*SCATTER, "robust_condition", "robust_condition_eigen"]


def sgd(learning_rate, clip=1.0):
    """SGD with momentum .9 after clipping by the global norm."""
    return optax.chain(optax.clip_by_global_norm(clip), optax.sgd(learning_rate, momentum=0.9))


def adam(learning_rate, clip=1.0):
    """Adam with both betas .9 after clipping by the global norm."""
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(learning_rate, b1=0.9, b2=0.9))


def optimizers(sgd_rates, adam_rates, clip):
    """Both families."""
    return {
        "sgd": js.grid(sgd, learning_rate=sgd_rates, clip=clip),
        "adam": js.grid(adam, learning_rate=adam_rates, clip=clip),
    }


def build(args: Namespace) -> dict[str, js.Sweep]:
    steps, seeds = args.steps or (60 if args.tiny else 10_000), args.seeds or (2 if args.tiny else 6)
    batch = 16 if args.tiny else 1000

    def problem(inputs="normal", n_context=20, **fields):
        return js.RegressionProblem(
            inputs=inputs, n_context=n_context, batch_size=batch, n_eval=batch,
            **({"d": 2, "depth": 2} if args.tiny else {}) | fields,
        )  # fmt: skip

    def sweep(problem, optimizers, steps, axes=None, seeds=seeds, **changes):
        every = min(100, max(steps // 3, 1))
        tested = [step for step in (0, steps) if step % every == 0]
        plain = {"record": every, "test_every": tested, "observables": SCATTER[:2]}
        return js.Sweep(
            system=js.linear_attention, problem=problem, hyper=js.RegressionHyper(), optimizers=optimizers, steps=steps,
            axes={**(axes or {}), "seed": seeds}, **plain | changes,
        )  # fmt: skip

    sweeps = {}
    record = np.unique(np.concatenate([np.arange(0, 2001, 25), np.arange(0, 10_001, 250)]))
    curves = {"record": record[record <= steps], "test_every": np.arange(0, steps + 1, 250), "observables": CURVES}
    for name, (inputs, n_context, sgd_rate, adam_rate, clip) in SETTINGS.items():
        if not args.tiny or name == "normal_20":
            sweeps[name] = sweep(
                problem(inputs, n_context), optimizers(sgd_rate, adam_rate, clip), steps,
                **curves,
            )  # fmt: skip
    sweeps["relu_20"] = sweep(problem(targets="relu"), optimizers(*RELU_BEST, 1.0), steps, **curves)
    settings = [(inputs, n) for inputs, n, *_ in SETTINGS.values()]
    laws = [inputs for inputs, n in settings if n == 20]
    draws = {"noise_draws": 40, "noise_mean": 64} if args.tiny else {"noise_draws": 10_000}
    sweeps["noise"] = sweep(
        problem(**draws), {"sgd": js.grid(sgd, learning_rate=0.01)}, 1,
        {"inputs": laws[:2] if args.tiny else laws}, record=[0], test_every=[0],
        observables=["gradient_noise", "train_loss"],
    )  # fmt: skip
    few = {"steps": min(steps, 500)}
    sweeps["relu_rates"] = sweep(problem(targets="relu"), optimizers(RELU_RATES, RELU_RATES, 1.0), **few)
    pair = [0.005, 0.02]
    depths = [1, 2] if args.tiny else [2, 3, 4, 6, 8]
    sweeps["depth"] = sweep(problem(), optimizers(pair, pair, 1.0), axes={"depth": depths}, **few)
    adams = {"adam": js.grid(adam, learning_rate=pair if args.tiny else ATTENTION_RATES, clip=1.0)}
    sweeps["softmax"] = sweep(problem(), adams, axes={"attention": ["linear", "softmax"]}, **few)
    sweeps["full"] = sweep(problem(form="full"), optimizers(0.02, 0.02, 1.0), **few)
    tuning = {"steps": min(steps, 200)}
    grid = [round(digit * 10.0**power, 4) for power in (-4, -3, -2, -1) for digit in (1, 2, 5)]
    sweeps["tuning"] = sweep(
        problem(),
        optimizers(grid, grid, 1.0),
        axes={("inputs", "n_context"): settings[: 1 if args.tiny else 3]},
        **tuning,
    )
    if not args.tiny:
        wider = [*grid, 1.0, 2.0, 5.0, 10.0]
        sweeps["tuning_spherical"] = sweep(problem("spherical"), optimizers(wider, grid, 0.1), **tuning)
    return sweeps


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
