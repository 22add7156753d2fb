"""Negative query noise of SignGD after stage IV, in 64 bit: claim S5.

The gradients that turn the query noise underflow 32-bit floats from t ~ 300 on, so this experiment needs --x64. Adam's
do not within 2000 steps (sweeps/dynamics.py records that they do not), so claim A3 needs no run of its own.
Axes: SignGD (eta=1e-4), 900 steps, 64 seeds; both presets. Figure 1 (d) is drawn from it: in 64 bits nothing
freezes within 900 steps (4 seeds, paper-like).
Command: python sweeps/query_noise.py --x64 --out results/query_noise
Cost: 0.4 minutes on 2 cores of an Intel Xeon (AVX-512); wall_seconds of the manifests.
Expected: at t = 500 all of the opposed query noise has turned (share 1.00).
"""

import dataclasses
import sys
from argparse import Namespace

import jax

import jaxsign as js

#: Disjoint supports close the dynamics on inner products; coordinates that patches share do not.
ENGINES = {"paper_like": "support", "theory": "feature_space"}


def build(args: Namespace) -> dict[str, js.Sweep]:
    if not (jax.config.jax_enable_x64 or args.help or args.tiny):
        raise ValueError("query_noise needs 64-bit floats: give --x64")
    sweeps = {}
    for name, preset in {"paper_like": js.presets.paper_like, "theory": js.presets.theory}.items():
        problem, hyper = preset()
        problem = dataclasses.replace(problem, n_test=1)  # no test quantity is measured here
        if args.tiny and name == "theory":
            continue
        if args.tiny:
            problem = dataclasses.replace(problem, n=4, d=120, s=6, m_k=4, m_v=4)
        sweeps[name] = js.Sweep(
            system=js.two_layer, engine=args.engine or ENGINES[name], problem=problem, hyper=hyper,
            optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=1e-4)},
            axes={"seed": args.seeds or (2 if args.tiny else 64)}, steps=args.steps or (120 if args.tiny else 900),
            record=20, test_every=900, observables=["train_loss", "query_signal", "query_noise", "key_noise"],
        )  # fmt: skip
    return sweeps


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
