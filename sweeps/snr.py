"""Test error and loss at equal training loss, whatever the learning rate: SignGD, Adam, GD, against SNR; claim G1.

Axes: five learning rates per optimizer over two decades, 2000 steps; entry `snr`: 8 SNRs (sigma_p varies, mu = 1)
with 8 seeds, paper-like; entries `paper_like` and `disjoint`: the presets' own SNR, .079, with 40 seeds for claim G1.
Command: python sweeps/snr.py --out results/snr
Cost: 1.2 minutes on 2 cores of an AMD EPYC, a good part of it compilation; wall_seconds of the manifests.
Expected: at SNR .079 and training loss .1, test error about .45 for SignGD and .11 for GD (paper-like).
"""

import sys
from argparse import Namespace

import optax
import presets

import jaxsign as js

RATES = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3]
OPTIMIZERS = {
    "sign_gd": js.grid(js.sign_gd, learning_rate=RATES),
    "adam": js.grid(optax.adam, learning_rate=RATES, **presets.ADAM),
    "gd": js.grid(optax.sgd, learning_rate=[0.03, 0.1, 0.3, 1.0, 3.0]),
}
#: From the preset's SNR, 1/(2 sqrt(40)) = .079, a factor 4 down and 8 up.
SNR = [0.02, 0.04, 0.0790569415042095, 0.12, 0.18, 0.27, 0.4, 0.6]
SCALARS = ["train_loss", "test_loss", "test_error"]
#: Training losses at which the optimizers are compared; those of claim G1 are among them.
LEVELS = (0.6, 0.5, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


def build(args: Namespace) -> dict[str, js.Sweep]:
    steps = args.steps or (60 if args.tiny else 2000)
    schedule = js.log_steps(steps, per_decade=8)
    settings = {
        "snr": js.presets.paper_like(),
        "paper_like": js.presets.paper_like(),
        "disjoint": js.presets.disjoint(),
    }
    sweeps = {}
    for name, (problem, hyper) in settings.items():
        if args.tiny and name != "snr":
            continue
        problem = presets.tiny(problem) if args.tiny else problem
        seeds = args.seeds or (2 if args.tiny else 8 if name == "snr" else 40)
        axes = {"snr": SNR[1:4:2] if args.tiny else SNR} if name == "snr" else {}
        sweeps[name] = js.Sweep(
            system=js.two_layer, engine=args.engine or presets.engine_for(name), problem=problem, hyper=hyper,
            optimizers=OPTIMIZERS, axes={**axes, "seed": seeds}, steps=steps, record=schedule,
            test_every=schedule[[0, -1]], levels=LEVELS, observables=SCALARS,
        )  # fmt: skip
    return sweeps


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
