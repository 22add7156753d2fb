"""A follow-up's two-layer CNN: Adam and AdamW with all examples and with 2, SignGD, GD, weight decay; claims W1 to W8.

Entries: `full`, all 200 examples a step, 15,000 steps; `mini`, 2 examples drawn anew at every step, 30,000 steps (300
times as many examples as there are; the source says 10,000 epochs). Axes: optimizers, of Adam (decay as a penalty of
the loss) and AdamW (decoupled) several strengths of weight decay; 4 seeds. n=200, d=1000, s=100, sigma_p=.1, alpha=.2,
q=3, learning rate 5e-5 are published; the layout of patches, 20 filters a class, initial weights of .01, Adam's betas
and eps, and GD's learning rates are reconstructed.
Command: python sweeps/cnn.py --out results/cnn
Cost: 8.7 minutes of CPU time; 25 minutes on 2 cores that many other jobs used too.
Expected: `jaxsign claims results/cnn/*`: with decay 1e-5 Adam's test error is 0 with mini-batches, and with all
examples .86 after 10,000 steps and .95 after 15,000.
References: arXiv 2510.11354, whose two numbers are .95 (all examples) and 0 (mini-batches of 2, decay 1e-5).
"""

import sys
from argparse import Namespace

import numpy as np
import optax

import jaxsign as js

ETA = 5e-5
#: Of a penalty (lambda/2) ||w||^2 of the loss, and decoupled, which acts within 1/(eta lambda) steps.
PENALTIES, DECOUPLED = [0.0, 1e-5, 1e-4, 1e-3], [0.3, 1.0, 3.0]
STEPS = {"full": 15_000, "mini": 30_000}


def adam(learning_rate, weight_decay):
    """Adam on the loss with the penalty (weight_decay/2) ||w||^2."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(learning_rate))


def optimizers(entry, tiny):
    """All rules at the published learning rate; GD, whose gradients are small at first, at others."""
    penalties = PENALTIES if entry == "full" else [0.0, 1e-5, 1e-3]
    found = {
        "adam": js.grid(adam, learning_rate=ETA, weight_decay=penalties[:2] if tiny else penalties),
        "adamw": js.grid(optax.adamw, learning_rate=ETA, weight_decay=DECOUPLED if entry == "full" else [1.0]),
        "sign_gd": js.grid(js.sign_gd, learning_rate=ETA),
        "gd": js.grid(optax.sgd, learning_rate=[0.1, 1.0]),
    }
    return {name: grid for name, grid in found.items() if entry == "full" or name != "gd"}


def build(args: Namespace) -> dict[str, js.Sweep]:
    sweeps = {}
    for entry, batch_size in (("full", None), ("mini", 2)):
        steps = args.steps or (40 if args.tiny else STEPS[entry])
        tens = 10 ** np.arange(1, 6)
        record = np.union1d(js.log_steps(steps, per_decade=6), tens[tens <= steps])
        sizes = {"n": 6, "d": 40, "s": 4, "width": 3, "n_test": 10} if args.tiny else {}
        sweeps[entry] = js.Sweep(
            system=js.two_layer_cnn, problem=js.CnnProblem(batch_size=batch_size, **sizes), hyper=js.CnnHyper(),
            optimizers=optimizers(entry, args.tiny), axes={"seed": args.seeds or (2 if args.tiny else 4)},
            steps=steps, record=record, test_every=record, levels=(0.1, 0.01),
        )  # fmt: skip
    return sweeps


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
