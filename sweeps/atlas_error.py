"""Test error at equal training loss over SNR and dimension: SignGD, Adam and GD, attention trained and uniform.

Page 1 of the atlas; claims E1 to E4. Axes of entry `error`: 13 SNRs from 1e-4 to 1; 9 dimensions from just above
n s = 800 to 10^9 and infinity (fresh patches share no coordinate with training); softmax attention and the control, in
which attention is uniform and only values learn; 16 seeds. Entry `small_start` repeats it for SignGD and GD with
initial features a tenth of the disjoint preset's at every SNR, so that initial weights hardly count.
Drawn in distribution, supports disjoint. mu and sigma_0 vary in place of sigma_p, at sigma_p = 2, so that one learning
rate serves every SNR: (mu, sigma_p, sigma_0, eta) -> (c mu, c sigma_p, sigma_0/c, eta/c) is the same run of SignGD. So
sigma_0 = 3e-3/mu stands for sigma_0 = 3e-3 at mu = 1 and sigma_p = 1/(SNR sqrt(s)), the presets' way to vary the SNR.
Command: python sweeps/atlas_error.py --out results/atlas_error
Cost: COST
All settings are reconstructed; see jaxsign.presets.
"""

import dataclasses
import sys
from argparse import Namespace

import numpy as np
import optax
import presets

import jaxsign as js

#: 1e-4 to 1, three a decade.
SNR = np.logspace(-4, 0, 13)
#: (d, overlap law of fresh patches); the last is the limit d -> infinity.
DIMENSIONS = [*((d, "exact") for d in (801, 1200, 2000, 5000, 20_000, 100_000, 10**6, 10**9)), (10**9, "none")]
LEVELS = (0.5, 0.3, 0.1, 0.03, 0.01)
OPTIMIZERS = {
    "sign_gd": presets.OPTIMIZERS["sign_gd"],
    "adam": presets.OPTIMIZERS["adam"],
    # Noise moves margins by .012 eta/.03 a step at first; where the signal is strong the smaller rates do not leap.
    "gd": js.grid(optax.sgd, learning_rate=[0.01, 0.1, 0.5]),
}
SCALARS = ["train_loss", "test_loss", "test_error", "value_signal"]


def build(args: Namespace) -> dict[str, js.Sweep]:
    problem, hyper = js.presets.theory()
    steps = args.steps or (60 if args.tiny else 1500)

    def sweep(start, optimizers):
        snr, dimensions = SNR, DIMENSIONS
        sizes = problem
        if args.tiny:
            sizes, snr, dimensions = presets.tiny(problem), SNR[[6, 10]], [(30, "exact"), (10**9, "none")]
        mu = snr * float(hyper.sigma_p) * sizes.s**0.5
        return js.Sweep(
            system=js.two_layer, engine=args.engine or "feature_space_law", problem=dataclasses.replace(sizes, d=10**9),
            hyper=hyper, optimizers=optimizers, steps=steps, record=[0, steps], test_every=[0], levels=LEVELS,
            observables=SCALARS,
            axes={
                "kernel": ["softmax", "uniform"], ("d", "overlap"): dimensions,
                ("mu", "sigma_0"): [(m, start(m)) for m in mu], "seed": args.seeds or (2 if args.tiny else 16),
            },
        )  # fmt: skip

    some = {name: OPTIMIZERS[name] for name in ("sign_gd", "gd")}
    return {
        "error": sweep(lambda mu: float(hyper.sigma_0) / mu, OPTIMIZERS),
        "small_start": sweep(lambda mu: float(hyper.sigma_0) / 10, some),
    }


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
