"""Test error at equal training loss over SNR and dimension: SignGD, Adam and GD, attention trained and uniform.

Page 1 of the atlas; claims E1 to E5. Axes of entry `error`: 17 SNRs from 1e-4 to 1; 9 dimensions from just above
n s = 800 to 10^9 and infinity (fresh patches share no coordinate with training; its d is only a label); softmax
attention and the control, in which attention is uniform and only values learn; 16 seeds. Entry `small_start` repeats
SignGD and GD at d = 2000 and infinity with sigma_0 = 3e-4 throughout, a tenth of the preset's at its own SNR, so that
initial weights hardly count.
Drawn in distribution, supports disjoint. mu and sigma_0 vary in place of sigma_p, at sigma_p = 2, so that one learning
rate serves every SNR: (mu, sigma_p, sigma_0, eta) -> (c mu, c sigma_p, sigma_0/c, eta/c) is the same run of SignGD. So
sigma_0 = 3e-3/mu stands for sigma_0 = 3e-3 at mu = 1 and sigma_p = 1/(SNR sqrt(s)), the presets' way to vary the SNR.
Command: python sweeps/atlas_error.py --out results/atlas_error
Cost: 21 minutes on 2 cores of an AMD EPYC beside up to ten other jobs, a third of it compilation.
All settings are reconstructed; see jaxsign.presets.
"""

import dataclasses
import sys
from argparse import Namespace

import numpy as np
import optax
import presets

import jaxsign as js

#: 1e-4 to 1, four a decade.
SNR = np.logspace(-4, 0, 17)
#: (d, overlap law of fresh patches); the last is the limit d -> infinity.
DIMENSIONS = [*((d, "exact") for d in (801, 1200, 2000, 5000, 20_000, 100_000, 10**6, 10**9)), (2 * 10**9, "none")]
LEVELS = (0.5, 0.3, 0.1, 0.03, 0.01)
OPTIMIZERS = {
    "sign_gd": presets.OPTIMIZERS["sign_gd"],
    "adam": presets.OPTIMIZERS["adam"],
    # A noise margin grows by .04 eta a step at first; where the signal is strong the smaller rates do not leap.
    "gd": js.grid(optax.sgd, learning_rate=[0.01, 0.1, 0.5]),
}
SCALARS = ["train_loss", "test_loss", "test_error", "value_signal"]


def build(args: Namespace) -> dict[str, js.Sweep]:
    problem, hyper = js.presets.disjoint()
    steps = args.steps or (60 if args.tiny else 1500)

    def sweep(start, optimizers, dimensions, kernels):
        snr, sizes = SNR, problem
        if args.tiny:
            sizes, snr, dimensions = presets.tiny(problem), SNR[[8, 13]], [(30, "exact"), (60, "exact")]
        mu = snr * float(hyper.sigma_p) * sizes.s**0.5
        return js.Sweep(
            system=js.two_layer, engine=args.engine or "feature_space_law", problem=dataclasses.replace(sizes, d=10**9),
            hyper=hyper, optimizers=optimizers, steps=steps, record=[0, steps], test_every=[0], levels=LEVELS,
            observables=SCALARS,
            axes={
                **kernels, ("d", "overlap"): dimensions,
                ("mu", "sigma_0"): [(m, start(m)) for m in mu], "seed": args.seeds or (2 if args.tiny else 16),
            },
        )  # fmt: skip

    some = {name: OPTIMIZERS[name] for name in ("sign_gd", "gd")}
    return {
        "error": sweep(
            lambda mu: float(hyper.sigma_0) / mu,
            some if args.tiny else OPTIMIZERS,
            DIMENSIONS,
            {"kernel": ["softmax", "uniform"]},
        ),
        "small_start": sweep(lambda mu: float(hyper.sigma_0) / 10, some, [DIMENSIONS[2], DIMENSIONS[-1]], {}),
    }


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
