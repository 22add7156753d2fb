"""Test error and loss at equal training loss against SNR, whatever the learning rate: SignGD, Adam and GD.

Axes: 8 SNRs (sigma_p varies, mu = 1), five learning rates per optimizer over two decades, 8 seeds; paper-like, 2000 steps.
Command: python sweeps/snr.py --out results/snr
Cost: COST_SNR
Expected: at SNR .079 (the preset's) test error .45 for SignGD and .10 for GD at training loss .1.
"""

import dataclasses
import sys
from argparse import Namespace

import optax

import jaxsign as js

RATES = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3]
OPTIMIZERS = {
    "sign_gd": js.grid(js.sign_gd, learning_rate=RATES),
    "adam": js.grid(optax.adam, learning_rate=RATES, b1=0.9, b2=0.999, eps=1e-15),
    "gd": js.grid(optax.sgd, learning_rate=[0.03, 0.1, 0.3, 1.0, 3.0]),
}
#: From the preset's SNR, 1/(2 sqrt(40)) = .079, a factor 4 down and 8 up.
SNR = [0.02, 0.04, 0.0790569415042095, 0.12, 0.18, 0.27, 0.4, 0.6]
SCALARS = ["train_loss", "test_loss", "test_error"]


def build(args: Namespace) -> dict[str, js.Sweep]:
    problem, hyper = js.presets.paper_like()
    if args.tiny:
        problem = dataclasses.replace(problem, n=4, d=120, s=6, m_k=4, m_v=4, n_test=20)
    steps = args.steps or (60 if args.tiny else 2000)
    schedule = js.log_steps(steps, per_decade=12)
    sweep = js.Sweep(
        system=js.two_layer, engine=args.engine or "dense", problem=problem, hyper=hyper, optimizers=OPTIMIZERS,
        axes={"snr": SNR[1:4:2] if args.tiny else SNR, "seed": args.seeds or (2 if args.tiny else 8)},
        steps=steps, record=schedule, test_every=schedule, observables=SCALARS,
    )  # fmt: skip
    return {"snr": sweep}


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
