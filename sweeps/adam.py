"""Adam against SignGD: betas, eps and Signum's momentum; claims A2', A2'f, A3m, V1-V7, V1l.

Second moments are squares of gradients, which underflow in 32 bits, so this experiment needs --x64.
Axes: entry `betas`: b1 x b2 over {0, .5, .9, .99, .999}, and SignGD, 2000 steps, 36 seeds; `late`: b2 = .999 and SignGD
to 10/(1-b2) = 10,000 steps, 36 seeds; `signum`: momentum over the same numbers, 1500 steps, 36 seeds; these in the
disjoint preset and with eps = 1e-150. `eps`: paper-like, eps from 1e-15 to 1e-2 at b2 = .999 and .9 with b1 = .9, and
SignGD, 1500 steps, 10 seeds. eta = 1e-4 everywhere.
Command: python sweeps/adam.py --x64 --out results/adam
Cost: 5.3 minutes of processor time for betas, late and eps, about one more for signum, on an AMD EPYC; 21 minutes of
wall time by the manifests, beside up to eight other jobs on its 2 cores.
Expected: late rate of the loss at b1 = .9, b2 = .999 is ln(1/b2)/2 = 5.0e-4, SignGD's about 2e-2.
All settings are reconstructed; see jaxsign.presets.
"""

import dataclasses
import sys
from argparse import Namespace

import jax
import numpy as np
import optax
import presets

import jaxsign as js

BETAS = [0.0, 0.5, 0.9, 0.99, 0.999]
EPS = [1e-15, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-3, 1e-2]
SIGN_GD = presets.OPTIMIZERS["sign_gd"]
#: Every step while stages I and II pass, then what stages III to V and local rates need.
EARLY = [*range(21), *range(22, 41, 2), *range(45, 101, 5), *range(110, 301, 10)]
RECORD = np.unique([*EARLY, *range(350, 1001, 50), *range(1100, 2001, 100)])
#: The same for losses, then ten to a memory of 1000 steps.
LATE = np.unique([*range(0, 1001, 50), *range(1100, 2001, 100), *range(2500, 10001, 500)])
UPDATES = ["train_loss", "update_agreement_q", "update_agreement_k", "update_agreement_v"]
SCALARS = [*UPDATES, "sign_agreement", "value_noise", "query_signal", "s11", "s21"]
NOISE = ["query_noise", "key_noise"]


def build(args: Namespace) -> dict[str, js.Sweep]:
    presets.need_x64("adam", args)
    wide = jax.config.jax_enable_x64  # in 32 bits Adam with b2 = 0 is not homogeneous: the smoke test takes support
    betas = [0.0, 0.9] if args.tiny else BETAS

    def sweep(preset, optimizers, steps, record, observables, seeds):
        problem, hyper = getattr(js.presets, preset)()
        problem = dataclasses.replace(presets.tiny(problem) if args.tiny else problem, n_test=1)
        steps = args.steps or (120 if args.tiny else steps)
        record = np.asarray(record)
        engine = args.engine or ("feature_space" if wide and preset == "disjoint" else "support")
        return js.Sweep(
            system=js.two_layer_updates, engine=engine, problem=problem, hyper=hyper, optimizers=optimizers,
            steps=steps, record=record[record <= steps], test_every=record[:1], observables=observables,
            axes={"seed": args.seeds or (2 if args.tiny else seeds)},
        )  # fmt: skip

    def adam(*b2):
        return js.grid(optax.adam, learning_rate=1e-4, b1=betas, b2=list(b2), eps=1e-150 if wide else 1e-18)

    signum = {"signum": js.grid(js.signum, learning_rate=1e-4, beta=betas)}
    eps = js.grid(
        optax.adam, learning_rate=1e-4, b1=0.9, b2=[0.999] if args.tiny else [0.999, 0.9],
        eps=EPS[::7] if args.tiny else EPS,
    )  # fmt: skip
    grid, column = ({"sign_gd": SIGN_GD, "adam": adam(*b2)} for b2 in (betas, [0.999]))
    eps = {"sign_gd": SIGN_GD, "adam": eps}
    return {
        "betas": sweep("disjoint", grid, 2000, RECORD, [*SCALARS, *NOISE], 36),
        "late": sweep("disjoint", column, 10000, LATE, UPDATES, 36),
        "signum": sweep("disjoint", signum, 1500, RECORD, [*SCALARS, *NOISE], 36),
        "eps": sweep("paper_like", eps, 1500, RECORD, SCALARS, 10),
    }


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
