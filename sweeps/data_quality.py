"""Data quality: test error over n x SNR, label noise, feature noise, dense and heavy-tailed noise; claims Q1-Q10.

Entries, all in the paper-like setting with SignGD, Adam and GD at its learning rates, 320 steps. n_snr: n in 5..40 x 8
SNRs, .045..1.3, 36 seeds. label_noise: 0...3. alpha: feature noise 0..1. dense: s from 40 to d-1 at one norm of the
noise. tails: Gaussian, Laplace and Student's t_3 noise of one variance. dense and tails at the SNRs .079 and .36. These
have 20 seeds, dense 12. Every entry NAME has a control NAME_frozen on the same seeds, 20 of them: attention stays at
1/2, w_v alone is trained. SNRs are set through mu, at the preset's noise: one learning rate then takes all of them to a
training loss of .1 in about as many steps. The same runs have mu = 1 and another sigma_p, if sigma_0 and the rate are
scaled against it. GD has a second rate in n_snr, .01: with .3 one step takes it from chance to a loss
of 0 where the SNR is 1.3, which is no reading at any level.
Command: python sweeps/data_quality.py --out results/data_quality
Cost: 6.8 minutes on 2 cores of an Intel Xeon (12 of CPU time), half of it compilation; wall_seconds of the manifests.
Expected: `figures/gallery/claims_data_quality.csv`; the test error is .1 at SNR .78 for SignGD (law: .73), .086 for GD
(law: .080) and beyond 1.3 for Adam, at n = 20.
All settings are reconstructed; see jaxsign.presets.
"""

import dataclasses
import math
import sys
from argparse import Namespace

import optax
import presets

import jaxsign as js
from jaxsign.systems.two_layer.problem import NOISES

#: On the cleanest data the first step at GD's own rate takes the loss from log 2 to 0: these runs are read at this one.
SLOW = {"gd": js.grid(optax.sgd, learning_rate=[0.3, 0.01])}
#: The preset's own SNR, 1/(2 sqrt(40)), between others about a factor of 1.6 apart.
OWN = 1 / (2 * math.sqrt(40))
SNR = [0.045, OWN, 0.13, 0.22, 0.36, 0.55, 0.85, 1.3]
#: SNRs of the other kinds of noise: GD's boundary is near the first, SignGD's beyond the second.
TWO = [OWN, 0.36]
SCALARS = ["train_loss", "test_loss", "test_error"]


def build(args: Namespace) -> dict[str, js.Sweep]:
    tiny = args.tiny
    problem, hyper = js.presets.paper_like()
    problem = presets.tiny(problem) if tiny else problem
    norm = 2.0 * math.sqrt(problem.s)  # of the noise, as in the preset
    steps = args.steps or 320
    record = js.log_steps(steps, per_decade=12)

    def sweep(axes, seeds, n_test, frozen):
        optimizers = presets.OPTIMIZERS | SLOW if "n" in axes else presets.OPTIMIZERS
        return js.Sweep(
            system=js.two_layer, engine=args.engine or "support", optimizers=optimizers, hyper=hyper, steps=steps,
            problem=dataclasses.replace(problem, n_test=n_test), axes={**axes, "seed": args.seeds or seeds},
            record=record, test_every=record[[0, -1]], levels=(0.1, 0.01), observables=SCALARS,
            trainable=("w_v",) if frozen else None,
        )  # fmt: skip

    def through_mu(snrs):
        return {("snr", "mu"): [(snr, snr * norm) for snr in snrs]}

    spread = [(s, norm / math.sqrt(s)) for s in ([6, 119] if tiny else [40, 250, 1999])]
    entries = {
        "n_snr": {"n": [3, 4] if tiny else [5, 10, 20, 40], **through_mu(SNR[1::5] if tiny else SNR)},
        "label_noise": {"label_noise": [0.0, 0.3] if tiny else [0.0, 0.05, 0.1, 0.2, 0.3]},
        "alpha": {"alpha": [0.0, 1.0] if tiny else [0.0, 0.25, 0.5, 0.75, 1.0]},
        "dense": {("s", "sigma_p"): spread, "mu": [snr * norm for snr in TWO]},
        "tails": {"noise": NOISES, **through_mu(TWO)},
    }
    # A dense test patch costs 50 times a sparse one.
    sizes = {"n_snr": (36, 500), "dense": (12, 100), "dense_frozen": (12, 100)}
    both = {f"{name}{end}": (axes, bool(end)) for name, axes in entries.items() for end in ("", "_frozen")}
    return {
        name: sweep(axes, *((2, 20) if tiny else sizes.get(name, (20, 500))), frozen)
        for name, (axes, frozen) in both.items()
    }


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
