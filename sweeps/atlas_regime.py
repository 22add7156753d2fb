"""Towards the regime of the paper's theorem, and test loss over a whole training; claims C2r, N1 to N3, N10.

Page 6 of the atlas. The theorem asks for noise of size sigma_p = Omega(d^(1/4) n^3) with s ~ d^(1/2) n^-2, so that
supports are disjoint. Entries `regime` and `regime_small_start`: sigma_p = c d^(1/4) n^3 for c = 1e-4 to 1 and n = 4,
8, 16 with d = (s n^2)^2, so that s = 40 always; sigma_0 = 3e-3 (at mu = 1), and sigma_0 = 3e-4 at sigma_p = 2,
small initial features. Entry `smaller_starts`: c = .3 and 1, sigma_0 = 3e-4, 1e-5 and 3e-7 at sigma_p = 2, SignGD and
GD to a training loss of .1. Entry `whole_training`: the disjoint preset at 7 SNRs, to a training loss of 1e-8 for
SignGD, and as far as 3000 steps go for Adam and GD, every optimizer at two learning rates. 16 seeds, drawn in
distribution.
mu and sigma_0 vary in place of sigma_p, at sigma_p = 2: see sweeps/atlas_error.py.
Command: python sweeps/atlas_regime.py --out results/atlas_regime
Cost: 1.5 minutes on 2 cores of an Intel Xeon, half of it compilation; wall_seconds of the manifests.
All settings are reconstructed; the two laws of sizes are published.
"""

import sys
from argparse import Namespace

import numpy as np
import optax
import presets

import jaxsign as js

#: sigma_p / (d^(1/4) n^3).
CONSTANTS = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
SAMPLES = [4, 8, 16]
SNR = [0.01, 0.02, 0.04, 0.079, 0.16, 0.32, 0.64]
LEVELS = (0.5, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
OPTIMIZERS = {
    "sign_gd": js.grid(js.sign_gd, learning_rate=[5e-5, 1e-4]),
    "adam": js.grid(optax.adam, learning_rate=[1e-4, 5e-4], **presets.ADAM),
    "gd": js.grid(optax.sgd, learning_rate=[0.05, 0.5]),
}
#: c and sigma_0 at sigma_p = 2 of entry `smaller_starts`.
LARGE, STARTS = [0.3, 1.0], [3e-4, 1e-5, 3e-7]
SCALARS = ["train_loss", "test_loss", "test_error", "value_signal"]


def build(args: Namespace) -> dict[str, js.Sweep]:
    problem, hyper = js.presets.disjoint()
    sigma_p, sigma_0 = float(hyper.sigma_p), float(hyper.sigma_0)
    problem = presets.tiny(problem) if args.tiny else problem
    s, some = problem.s, {name: OPTIMIZERS[name] for name in ("sign_gd", "gd")}

    def sweep(axes, steps, optimizers=OPTIMIZERS):
        steps = args.steps or (60 if args.tiny else steps)
        return js.Sweep(
            system=js.two_layer, engine=args.engine or "feature_space_law", problem=problem, hyper=hyper,
            optimizers=some if args.tiny else optimizers,
            steps=steps, record=[0, steps], test_every=[0, steps], levels=LEVELS,
            observables=SCALARS, axes={**axes, "seed": args.seeds or (2 if args.tiny else 16)},
        )  # fmt: skip

    def towards(*starts, constants=CONSTANTS):
        """`starts` give sigma_0 at a mu."""
        points = []
        for n in SAMPLES[:1] if args.tiny else SAMPLES:
            d = (s * n**2) ** 2
            for c in constants[::4] if args.tiny else constants:
                mu = sigma_p / (c * d**0.25 * n**3)
                points += [(n, d, "exact", mu, start(mu)) for start in starts]
        return {("n", "d", "overlap", "mu", "sigma_0"): points}

    snr = np.asarray(SNR[3:4] if args.tiny else SNR) * sigma_p * s**0.5
    return {
        "regime": sweep(towards(lambda mu: sigma_0 / mu), 1500),
        "regime_small_start": sweep(towards(lambda mu: sigma_0 / 10), 1500),
        "smaller_starts": sweep(
            towards(*(lambda mu, start=start: start for start in STARTS), constants=LARGE), 1500, some
        ),
        "whole_training": sweep({("mu", "sigma_0"): [(mu, sigma_0 / mu) for mu in snr]}, 3000),
    }


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
