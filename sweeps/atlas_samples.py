"""More data: test error of SignGD and GD at equal training loss over the number of examples and SNR; claims N4 to N9.

Page 5 of the atlas. Axes: 11 numbers of examples from 4 to 128, 15 SNRs from .005 to 1.5, at d = 20,000 and without
overlap (d -> infinity); attention trained; 16 seeds. Entry `start` asks whether GD's gain from data needs large initial
weights: sigma_0 = 3e-4 and 3e-5 at mu = 1 in place of .003, d = 20,000, six n from 4 to 128, seven SNRs about GD's
boundary, GD alone. Entry `wide` asks whether SignGD's harm needs this d: d = 2e5 and 2e6, four n from 16 to 128, seven
SNRs, SignGD alone. Drawn in distribution, supports disjoint; two n share a program.
mu and sigma_0 vary in place of sigma_p, at sigma_p = 2: see sweeps/atlas_error.py.
Command: python sweeps/atlas_samples.py --out results/atlas_samples
Cost: 3.8 minutes on 2 cores of an Intel Xeon, half of it compilation; wall_seconds of the manifests.
All settings are reconstructed; see jaxsign.presets.
"""

import dataclasses
import sys
from argparse import Namespace

import numpy as np
import optax
import presets

import jaxsign as js

SAMPLES = [4, 6, 8, 11, 16, 23, 32, 45, 64, 90, 128]
SNR = np.geomspace(0.005, 1.5, 15)
#: sigma_0 at mu = 1 of entry `start`, and the dimensions of entry `wide`.
STARTS, WIDE = (3e-4, 3e-5), (200_000, 2_000_000)
LEVELS = (0.3, 0.1, 0.01)
OPTIMIZERS = {
    "sign_gd": presets.OPTIMIZERS["sign_gd"],
    # A noise margin grows by .8 eta/n a step at first.
    "gd": js.grid(optax.sgd, learning_rate=[0.05, 0.5, 2.0]),
}


def build(args: Namespace) -> dict[str, js.Sweep]:
    problem, hyper = js.presets.disjoint()
    steps = args.steps or (60 if args.tiny else 1500)
    problem = presets.tiny(problem) if args.tiny else problem
    axis = [6, 10] if args.tiny else slice(None)

    def sweep(overlap, optimizers, axes, snr, starts):
        """`axes` are those of problem sizes; `starts` lists sigma_0 at mu = 1."""
        mu = snr * float(hyper.sigma_p) * problem.s**0.5
        return js.Sweep(
            system=js.two_layer, engine=args.engine or "feature_space_law",
            problem=dataclasses.replace(problem, overlap=overlap), hyper=hyper, optimizers=optimizers,
            steps=steps, record=[0, steps], test_every=[0], levels=LEVELS,
            observables=["train_loss", "test_loss", "test_error"],
            axes={
                **axes, ("mu", "sigma_0"): [(m, start / m) for start in starts for m in mu],
                "seed": args.seeds or (2 if args.tiny else 16),
            },
        )  # fmt: skip

    def sizes(samples):
        return {("n", "d"): [(n, 20_000) for n in (SAMPLES[1:3] if args.tiny else samples)]}

    preset, some = (float(hyper.sigma_0),), ([1, 2] if args.tiny else slice(1, 8))
    return {
        **{overlap: sweep(overlap, OPTIMIZERS, sizes(SAMPLES), SNR[axis], preset) for overlap in ("exact", "none")},
        "start": sweep("exact", {"gd": OPTIMIZERS["gd"]}, sizes(SAMPLES[::2]), SNR[some], STARTS),
        "wide": sweep(
            "exact",
            {"sign_gd": OPTIMIZERS["sign_gd"]},
            {"n": SAMPLES[1:3] if args.tiny else SAMPLES[4::2], "d": WIDE},
            SNR[some if args.tiny else slice(3, 10)],
            preset,
        ),
    }


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
