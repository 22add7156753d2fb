"""Negative query noise of SignGD after stage IV, in 64 bit: claim S5.

The gradients that turn the query noise underflow 32-bit floats from t ~ 300 on, so this experiment needs --x64. Adam's
do not within 2000 steps (sweeps/dynamics.py records that they do not), so claim A3 needs no run of its own.
Axes: SignGD (eta=1e-4), 900 steps, 64 seeds; both presets. Figure 1 (d) is drawn from it: in 64 bits nothing
freezes within 900 steps (4 seeds, paper-like).
Command: python sweeps/query_noise.py --x64 --out results/query_noise
Cost: 0.2 minutes on 2 cores of an AMD EPYC; wall_seconds of the manifests.
Expected: at t = 500 all of the opposed query noise has turned (share 1.00).
"""

import dataclasses
import sys
from argparse import Namespace

import presets

import jaxsign as js


def build(args: Namespace) -> dict[str, js.Sweep]:
    presets.need_x64("query_noise", args)
    sweeps = {}
    steps = args.steps or (120 if args.tiny else 900)
    for name, (problem, hyper) in presets.settings(args.tiny).items():
        problem = dataclasses.replace(problem, n_test=1)  # no test quantity is measured here
        sweeps[name] = js.Sweep(
            system=js.two_layer, engine=args.engine or presets.engine_for(name), problem=problem, hyper=hyper,
            optimizers={"sign_gd": presets.OPTIMIZERS["sign_gd"]},
            axes={"seed": args.seeds or (2 if args.tiny else 64)}, steps=steps, record=20,
            test_every=[step for step in (0, 900) if step <= steps],
            observables=["train_loss", "query_signal", "query_noise", "key_noise"],
        )  # fmt: skip
    return sweeps


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
