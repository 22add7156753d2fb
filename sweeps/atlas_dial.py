"""Between SignGD and GD, what makes the test error rise? Test error and loss at equal training loss along every dial.

Page 3 of the atlas; claims DM1 to DM13. Two settings: NAME_overlap is the paper-like one (d = 2000, independent
supports), NAME_limit the limit d -> infinity, in which fresh noise shares no coordinate with training. In both, softmax
attention and the control, in which attention is uniform and only values learn. Entries:
power: the main dial, |g|^p sgn g for 11 p from 0 (SignGD) to 1 (GD), 5 SNRs, 16 seeds.
memory: Signum's beta and RMSprop's decay. batch: mini-batches of 1 and 5 at p = 0 and p = 1. smooth: tanh(g/tau), and
Adam's eps. norm: every tensor's, or every row's, gradient over its norm, and Muon. All with 3 SNRs and 8 seeds.
sizes_overlap: does the middle of the main dial move with d and sigma_0? SNR .079, softmax attention; d = 2000, 4000 and
8000, and sigma_0 = 3e-4 at mu = 1; 8 seeds. attention_overlap: is it the speed of queries and keys? The rules of norm
with that speed over ten, and GD with it times ten and a hundred; SNR .079, 8 seeds.
The SNR is set by mu and sigma_0 at sigma_p = 2; (mu, sigma_p, sigma_0, eta) -> (c mu, c sigma_p, sigma_0/c, eta/c) is
the same run of SignGD, so that sigma_0 = 3e-3/mu stands for 3e-3 at mu = 1 and sigma_p = 1/(SNR sqrt(s)).
Learning rates: where a gradient is GRADIENT, about that of a noise coordinate at the start, every optimizer steps as
SignGD does at rate `base`.
Command: python sweeps/atlas_dial.py --out results/atlas_dial
Cost: 7.5 minutes on 2 cores of an Intel Xeon, half of it compilation, and 2 for sizes_overlap; wall_seconds of the
manifests.
All settings are reconstructed; see jaxsign.presets.
"""

import dataclasses
import sys
from argparse import Namespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import presets

import jaxsign as js

#: 1/(2 sqrt(40)) is the presets' own SNR.
SNR = (0.025, 0.04, 1 / (2 * 40**0.5), 0.13, 0.2)
FEW = (SNR[1], SNR[2], SNR[4])
POWERS = np.linspace(0, 1, 11).round(6).tolist()
#: (d, sigma_0 at mu = 1) of entry sizes_overlap.
SIZES = [(2000, 3e-3), (4000, 3e-3), (8000, 3e-3), (2000, 3e-4)]
LEVELS = (0.1, 0.01)
SCALARS = ["train_loss", "test_loss", "test_error", "value_signal", "s11", "s21"]
GRADIENT = 2.5e-3


def dial(base, p):
    """|g|^p sgn g."""
    return js.power_gd(base * GRADIENT**-p, p)


def smooth(base, temperature):
    """tanh(g/tau): SignGD for small tau, GD for large."""
    return js.smooth_sign_gd(base / jnp.tanh(GRADIENT / temperature), temperature)


def adam(base, eps):
    """Adam at the presets' betas: g/|g| for small eps, GD with momentum for large."""
    return optax.adam(base * (1 + eps / GRADIENT), b1=0.9, b2=0.999, eps=eps)


def _normalised(axes):
    """Divides every gradient by its norm over the last `axes` axes, None for all; a gradient of 0 stays 0."""

    def unit(g):
        norm = jnp.sqrt(jnp.sum(g**2, axis=axes, keepdims=True))
        return g / jnp.where(norm > 0, norm, 1)

    def update(updates, state, params=None):
        del params
        return jax.tree.map(unit, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def tensor_gd(length):
    """Each of W_Q, W_K and W_V moves by `length`."""
    return optax.chain(_normalised(None), optax.scale_by_learning_rate(length))


def row_gd(length):
    """Each row of W_Q, W_K and W_V moves by `length`."""
    return optax.chain(_normalised(-1), optax.scale_by_learning_rate(length))


def muon(length):
    """Muon on the last two axes of every parameter: also on the values, a matrix for each sign."""
    from optax.contrib import MuonDimensionNumbers
    from optax.contrib import muon as transform

    def matrices(params):
        return jax.tree.map(lambda w: MuonDimensionNumbers(w.ndim - 1, w.ndim - 2), params)

    return transform(length, muon_weight_dimension_numbers=matrices)


def _attention(share):
    """Multiplies the steps of W_Q and W_K."""

    def update(updates, state, params=None):
        del params
        return dataclasses.replace(updates, w_q=share * updates.w_q, w_k=share * updates.w_k), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def tensor_apart(length, share):
    """`tensor_gd`, queries and keys at a share of its length."""
    return optax.chain(tensor_gd(length), _attention(share))


def row_apart(length, share):
    """`row_gd`, queries and keys at a share of its length."""
    return optax.chain(row_gd(length), _attention(share))


def muon_apart(length, share):
    """`muon`, queries and keys at a share of its length."""
    return optax.chain(muon(length), _attention(share))


def gd_apart(learning_rate, share):
    """GD, queries and keys at a multiple of its learning rate."""
    return optax.chain(optax.sgd(learning_rate), _attention(share))


OPTIMIZERS = {
    "power": {"power": js.grid(dial, base=1e-3, p=POWERS)},
    "memory": {
        "signum": js.grid(js.signum, learning_rate=1e-4, beta=[0.0, 0.5, 0.9, 0.99]),
        "rmsprop": js.grid(optax.rmsprop, learning_rate=1e-4, decay=[0.5, 0.9, 0.99], eps=1e-15, eps_in_sqrt=False),
    },
    "batch": {"power": js.grid(dial, base=1e-3, p=[0.0, 1.0])},
    "smooth": {
        "smooth": js.grid(smooth, base=3e-4, temperature=[1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]),
        "adam": js.grid(adam, base=3e-4, eps=[1e-15, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]),
    },
    # The value rows, which are equal for each sign, move by `length` over the root of 40, as with `row_gd`.
    "norm": {
        "tensor_gd": js.grid(tensor_gd, length=[0.03]),
        "row_gd": js.grid(row_gd, length=[0.005]),
        "muon": js.grid(muon, length=[0.02]),
    },
}
#: Of entry attention_overlap: the lengths of "norm", and the presets' GD.
APART = {
    "tensor_apart": js.grid(tensor_apart, length=0.03, share=[0.1, 1.0]),
    "row_apart": js.grid(row_apart, length=0.005, share=[0.1, 1.0]),
    "muon_apart": js.grid(muon_apart, length=0.02, share=[0.1, 1.0]),
    "gd_apart": js.grid(gd_apart, learning_rate=0.3, share=[1.0, 10.0, 100.0]),
}
#: {entry: (engine in the paper-like setting, in the limit, steps)}
RUNS = {
    "power": ("hybrid", "feature_space_law", 500),
    "memory": ("hybrid", "feature_space_law", 600),
    "batch": ("hybrid", "feature_space_law", 1000),
    "smooth": ("support", "support", 1500),
    "norm": ("dense", "dense", 400),
}


def build(args: Namespace) -> dict[str, js.Sweep]:
    def sweep(kind, place):
        problem, hyper = js.presets.paper_like() if place == "overlap" else js.presets.disjoint()
        problem = presets.tiny(problem) if args.tiny else problem
        *engines, steps = RUNS[kind]
        steps = args.steps or (60 if args.tiny else steps)
        main = kind == "power"
        mu = np.array((SNR if main else FEW)[::2] if args.tiny else SNR if main else FEW) * 2 * problem.s**0.5
        batches = {"batch_size": [1, 2] if args.tiny else [1, 5]} if kind == "batch" else {}
        return js.Sweep(
            system=js.two_layer, engine=args.engine or engines[place == "limit"], problem=problem, hyper=hyper,
            optimizers=OPTIMIZERS[kind], steps=steps, record=[0, steps], test_every=[0], levels=LEVELS,
            observables=SCALARS,
            axes={
                **batches, "kernel": ["softmax", "uniform"],
                ("mu", "sigma_0"): [(m, float(hyper.sigma_0) / m) for m in mu],
                "seed": args.seeds or (2 if args.tiny else 16 if main else 8),
            },
        )  # fmt: skip

    def sizes():
        problem, hyper = js.presets.paper_like()
        problem = presets.tiny(problem) if args.tiny else problem
        steps = args.steps or (60 if args.tiny else 500)
        return js.Sweep(
            system=js.two_layer, engine=args.engine or "hybrid", problem=problem, hyper=hyper,
            optimizers=OPTIMIZERS["power"], steps=steps, record=[0, steps], test_every=[0], levels=(0.5, *LEVELS),
            observables=SCALARS,
            axes={
                ("d", "sigma_0"): [(problem.d, 3e-3), (2 * problem.d, 3e-3)] if args.tiny else SIZES,
                "seed": args.seeds or (2 if args.tiny else 8),
            },
        )  # fmt: skip

    def attention():
        problem, hyper = js.presets.paper_like()
        problem = presets.tiny(problem) if args.tiny else problem
        steps = args.steps or (60 if args.tiny else RUNS["norm"][2])
        return js.Sweep(
            system=js.two_layer, engine=args.engine or "dense", problem=problem, hyper=hyper, optimizers=APART,
            steps=steps, record=[0, steps], test_every=[0], levels=LEVELS, observables=SCALARS,
            axes={"kernel": ["softmax", "uniform"], "seed": args.seeds or (2 if args.tiny else 8)},
        )  # fmt: skip

    mapped = {f"{kind}_{place}": sweep(kind, place) for place in ("overlap", "limit") for kind in OPTIMIZERS}
    return {**mapped, "sizes_overlap": sizes(), "attention_overlap": attention()}


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
