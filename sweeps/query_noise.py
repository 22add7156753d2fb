"""Negative query noise after stage IV, in 64 bit: claims S5 (SignGD) and A3 (Adam).

The gradients that turn the query noise underflow 32-bit floats from t ~ 300 on, so this experiment needs --x64.
Axes: SignGD (eta=1e-4, 600 steps) and Adam (eta=1e-4, b1=.9, b2=.999, eps=1e-15, 2000 steps), 40 seeds; both presets.
Command: python sweeps/query_noise.py --x64 --out results/query_noise
Cost: COST_QUERY
Expected: with SignGD the opposed query noise has turned at t = 500 (share 1.00), with Adam it has not at t = 2000 (.00).
"""

import dataclasses
import sys
from argparse import Namespace

import jax
import optax

import jaxsign as js

RUNS = {
    "sign_gd": (js.grid(js.sign_gd, learning_rate=1e-4), 600),
    "adam": (js.grid(optax.adam, learning_rate=1e-4, b1=0.9, b2=0.999, eps=1e-15), 2000),
}


def build(args: Namespace) -> dict[str, js.Sweep]:
    if not (jax.config.jax_enable_x64 or args.help or args.tiny):
        raise ValueError("query_noise needs 64-bit floats: give --x64")
    sweeps = {}
    for name, preset in {"paper_like": js.presets.paper_like, "theory": js.presets.theory}.items():
        problem, hyper = preset()
        problem = dataclasses.replace(problem, n_test=1)  # no test quantity is measured here
        if args.tiny:
            problem = dataclasses.replace(problem, n=4, d=120, s=6, m_k=4, m_v=4)
        for family, (grid, steps) in RUNS.items():
            sweeps[f"{name}_{family}"] = js.Sweep(
                system=js.two_layer, engine=args.engine or "dense", problem=problem, hyper=hyper, optimizers={family: grid},
                axes={"seed": args.seeds or (2 if args.tiny else 40)}, steps=args.steps or (120 if args.tiny else steps),
                record=20, test_every=steps, observables=["train_loss", "query_signal", "query_noise", "key_noise"],
            )  # fmt: skip
    return sweeps


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
