"""The bridge: does the sign-descent picture survive another kernel, a residual path, another system? Claims B1-B7.

Entries: paper_like_KERNEL and disjoint_KERNEL with KERNEL softmax, gaussian, linear and the same with _residual, a
residual path of weight 1 around the attention: SignGD, Signum, Adam and GD at the presets' learning rates, 1500 steps,
36 seeds; all claims of the paper's system are asked of them too. curvature: directional smoothness and robust condition
number along the paper-like runs, 12 seeds. regression: the four optimizers on linear attention, three learning rates
each, 800 steps, 6 seeds (at its first run SignGD and GD had smaller rates, and each was best at its largest). residual:
on the transformer with both residuals or none, five learning rates each, 400 steps, 36 seeds.
Command: python sweeps/bridge.py --out results/bridge
Cost: 30 minutes on 2 cores of an AMD EPYC that other jobs used too; wall_seconds of the manifests.
Expected: `figures/gallery/claims_bridge.csv`.
All settings are reconstructed; linear attention's sizes are the published ones.
"""

import dataclasses
import sys
from argparse import Namespace

import numpy as np
import optax
import presets

import jaxsign as js

SIGN_GD = presets.OPTIMIZERS["sign_gd"]
TWO_LAYER = {"sign_gd": SIGN_GD, "signum": js.grid(js.signum, learning_rate=1e-4)} | presets.OPTIMIZERS
#: What the claims about the paper's system read, and a grid for curves.
RECORD = np.unique([*range(21), 30, *range(50, 351, 10), *range(350, 1501, 50)])
TEST = [0, 20, 50, 100, 150, 200, 300, 500, 700, 900, 1200, 1500]
TRACES = [
    "train_loss", "test_loss", "test_error", "value_noise", "query_noise", "key_noise", "query_signal", "key_signal",
    "s11", "s21", "log_s21", "s22", "sign_agreement",
]  # fmt: skip
#: Training losses at which curvature is compared.
LEVELS = (0.6, 0.5, 0.3, 0.2, 0.1, 0.03, 0.01, 0.003, 0.001)
CURVED = [
    "train_loss", "test_error", "directional_smoothness", "gradient_before", "robust_condition",
    "robust_condition_eigen",
]  # fmt: skip


def rates(sign, adam, gd, clip=None):
    """The four families with their learning rates; signs do not see clipping by the global norm, GD does."""
    return {
        "sign_gd": js.grid(js.sign_gd, learning_rate=sign),
        "signum": js.grid(js.signum, learning_rate=sign),
        "adam": js.grid(optax.adam, learning_rate=adam, b1=0.9, b2=0.9),
        "gd": js.grid(clipped_gd, learning_rate=gd, clip=clip) if clip else js.grid(optax.sgd, learning_rate=gd),
    }


def clipped_gd(learning_rate, clip):
    """Gradient descent after clipping by the global norm, as in the sweep of linear attention."""
    return optax.chain(optax.clip_by_global_norm(clip), optax.sgd(learning_rate))


def build(args: Namespace) -> dict[str, js.Sweep]:
    tiny = args.tiny
    steps = args.steps or (120 if tiny else 1500)

    def seeds(full):
        return args.seeds or (2 if tiny else full)

    sweeps = {}
    for name, preset in {"paper_like": js.presets.paper_like, "disjoint": js.presets.disjoint}.items():
        problem, hyper = preset()
        problem = presets.tiny(problem) if tiny else problem
        engine = args.engine or presets.engine_for(name)
        for kernel in ("softmax", "gaussian", "linear"):
            for path in (0.0, 1.0):
                if tiny and (name, kernel) != ("disjoint", "gaussian"):
                    continue
                sweeps[f"{name}_{kernel}{'_residual' if path else ''}"] = js.Sweep(
                    system=js.two_layer, problem=dataclasses.replace(problem, kernel=kernel), engine=engine,
                    hyper=dataclasses.replace(hyper, residual=path), optimizers=TWO_LAYER, steps=steps,
                    record=RECORD[steps >= RECORD], test_every=[t for t in TEST if t <= steps], observables=TRACES,
                    levels=(0.1,),
                    axes={"seed": seeds(36)},
                )  # fmt: skip
    problem, hyper = js.presets.paper_like()
    record = np.unique([0, min(100, steps), steps])
    sweeps["curvature"] = js.Sweep(
        system=js.two_layer_curvature, problem=presets.tiny(problem) if tiny else problem, hyper=hyper,
        optimizers=TWO_LAYER, steps=steps, record=record, test_every=record, levels=LEVELS, observables=CURVED,
        axes={"seed": seeds(12)},
    )  # fmt: skip
    sizes = {"d": 2, "depth": 2, "batch_size": 16, "n_eval": 16} if tiny else {}
    sweeps["regression"] = js.Sweep(
        system=js.linear_attention, problem=js.RegressionProblem(**sizes), hyper=js.RegressionHyper(),
        optimizers=rates([0.005, 0.01, 0.02], [0.005, 0.01, 0.02], [0.03, 0.1, 0.3], clip=1.0),
        steps=min(steps, 800), record=20, observables=["train_loss"],
        test_every=[step for step in (0, min(steps, 800)) if step % 20 == 0],
        axes={"seed": seeds(6)},
    )  # fmt: skip
    sizes = {"n": 4, "d": 8, "d_ff": 8, "d_out": 2} if tiny else {}
    signs = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
    sweeps["residual"] = js.Sweep(
        system=js.residual_attention, problem=js.ResidualProblem(**sizes), hyper=js.ResidualHyper(),
        optimizers=rates(signs, signs, [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]), steps=min(steps, 400), record=2,
        observables=["train_loss"],
        axes={("attention_residual", "ffn_residual"): [(1.0, 1.0), (0.0, 0.0)], "seed": seeds(36)},
    )  # fmt: skip
    return sweeps


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
