"""The training dynamics of SignGD, Adam and GD: every trace of the paper's Figure 1, claims S1-S4, C1, C2e, A1-A3.

Axes: optimizer (sign_gd eta=1e-4, adam eta=1e-4 b1=.9 b2=.999 eps=1e-15, gd eta=.3), 64 seeds; 2000 steps;
both presets.
Two more entries run SignGD with n = 21, where majority votes cannot tie (claim S3).
Command: python sweeps/dynamics.py --out results/dynamics
Cost: 1.2 minutes on 2 cores of an AMD EPYC, most of it compilation; wall_seconds of the manifests.
Expected: s_21 about 1e-4 and s_11 about .467 at t = 150 for SignGD; `jaxsign claims results/dynamics`.
All settings are reconstructed; see jaxsign.presets.
"""

import dataclasses
import sys
from argparse import Namespace

import numpy as np
import presets

import jaxsign as js

#: Every step at first, where stages I and II pass within 20 steps, then ever coarser.
RECORD = np.concatenate([np.arange(21), np.arange(25, 101, 5), np.arange(110, 301, 10), np.arange(320, 2001, 20)])
RECORD = np.unique(np.concatenate([RECORD, [50, 150, 250, 350, 850, 950, 1100, 1500]]))
TEST = [0, 5, 10, 20, 50, 75, 100, 150, 200, 250, 300, 400, 500, 600, 700, 800, 900, 1000, 1200, 1500, 1740, 2000]
#: Training losses at which the optimizers' test errors are compared.
LEVELS = (0.6, 0.5, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 1e-4)
TRACES = [
    "train_loss", "test_loss", "test_error", "value_signal", "value_noise", "query_noise", "key_noise", "query_signal",
    "key_signal", "s11", "s21", "log_s21", "s22", "sign_agreement", "majority_agreement",
]  # fmt: skip


def build(args: Namespace) -> dict[str, js.Sweep]:
    steps = args.steps or (120 if args.tiny else 2000)
    seeds = args.seeds or (2 if args.tiny else 64)
    record = RECORD[steps >= RECORD]
    sweeps = {}
    for name, (problem, hyper) in presets.settings(args.tiny).items():
        engine = args.engine or presets.engine_for(name)
        common = {"system": js.two_layer, "engine": engine, "axes": {"seed": seeds}}
        sweeps[name] = js.Sweep(
            problem=problem, hyper=hyper, optimizers=presets.OPTIMIZERS, steps=steps, record=record,
            test_every=[step for step in TEST if step <= steps], levels=LEVELS, observables=TRACES, **common,
        )  # fmt: skip
        if not args.tiny:
            sweeps[f"{name}_n21"] = js.Sweep(
                problem=dataclasses.replace(problem, n=21), hyper=hyper, steps=min(steps, 400), record=50,
                optimizers={"sign_gd": presets.OPTIMIZERS["sign_gd"]},
                test_every=[step for step in (0, 400) if step <= steps],
                observables=["query_signal", "key_signal", "key_noise"], **common,
            )  # fmt: skip
    return sweeps


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
