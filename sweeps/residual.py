"""Transformers with residuals under gradient descent: residuals ablated one by one, depth, temperature, n/d; R1-R8.

Condition numbers and contractions need 64-bit floats, so this experiment needs --x64.
Axes: attention residual x FFN residual, each 1 or 0, five learning rates over two decades, 400 steps; entries
`depth_1` to `depth_4`; `bound`: eta = 1e-5 and 1e-3 at all depths, every step recorded; `temperature`: both
residuals or neither at five temperatures; `width`: the same at n/d from 1/4 to 3/2. 36 seeds, 64 at depth 1, 16 of n/d.
Command: python sweeps/residual.py --x64 --out results/residual
Cost: 5.0 minutes (8.8 of CPU time) on 2 cores of an AMD EPYC that another job used now and then.
Expected: at depth 1 L_400 / L_0 = 8e-17 with both residuals, .2 without; kappa(H) = 5 and 3e4; R2, R4 and R5 hold (R3
undecided at depth 1), R1, R6 and R8 do not, for reasons that the claims state.
All settings are reconstructed; see jaxsign.systems.residual.
"""

import sys
from argparse import Namespace

import optax
import presets

import jaxsign as js

RATES = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
BOTH = {"attention_residual": [1.0, 0.0], "ffn_residual": [1.0, 0.0]}
ALL_OR_NONE = {("attention_residual", "ffn_residual"): [(1.0, 1.0), (0.0, 0.0)]}
TEMPERATURES = [0.01, 0.03, 0.1, 1.0, 10.0]
#: The fewest seeds from which a claim can hold: with all inside, the share's interval begins at .903.
SEEDS = 36
SPECTRA = [
    "train_loss", "attention_sigma_min", "attention_condition", "attention_stable_rank", "feature_sigma_min",
    "feature_condition", "feature_stable_rank",
]  # fmt: skip
CONTRACTION = ["train_loss", "contraction", "sigma_before", "step_curvature"]


def build(args: Namespace) -> dict[str, js.Sweep]:
    presets.need_x64("residual", args)
    steps = args.steps or (40 if args.tiny else 400)
    sizes = {"n": 4, "d": 8, "d_ff": 8, "d_out": 2} if args.tiny else {}

    def sweep(depth, axes, observables, seeds, rates=RATES, record=10):
        return js.Sweep(
            system=js.residual_attention, problem=js.ResidualProblem(depth=depth, **sizes), hyper=js.ResidualHyper(),
            optimizers={"gd": js.grid(optax.sgd, learning_rate=rates)}, steps=steps, record=record,
            axes={**axes, "seed": args.seeds or (2 if args.tiny else seeds)}, observables=observables,
        )  # fmt: skip

    sweeps = {
        f"depth_{depth}": sweep(depth, BOTH, [*SPECTRA, "attention_singular_values"], seeds)
        for depth, seeds in ({1: 2} if args.tiny else {1: 64, 2: SEEDS, 3: SEEDS, 4: SEEDS}).items()
    }
    sweeps["bound"] = sweep(
        1, {"depth": [1] if args.tiny else [1, 2, 3, 4], **BOTH}, CONTRACTION, SEEDS, rates=[1e-5, 1e-3], record=1
    )
    sweeps["temperature"] = sweep(
        1, {**ALL_OR_NONE, "temperature": TEMPERATURES[1:4:2] if args.tiny else TEMPERATURES},
        [*SPECTRA, "value_condition"], SEEDS, record=steps,
    )  # fmt: skip
    sweeps["width"] = sweep(1, {"n": [4] if args.tiny else [8, 16, 32, 48], **ALL_OR_NONE}, SPECTRA, 16, record=steps)
    return sweeps


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
