"""Other architectures: 2 to 8 heads, contexts up to 16, transformers of depth 1 to 4; claims H1-H4 and D1-D8.

Entries: PRESET_heads_H with H = 1, 2, 4, 8 and PRESET_context_L with L = 4, 8, 16, PRESET paper_like or theory: the
two-layer system, SignGD, Adam and GD at the presets' learning rates, 600 steps; all claims of the paper's system are
asked of them too. d = 2000 (L-1), so that n (L-1) patches of s = 40 share as many coordinates as those of context 2 do
(paper-like) and fit in disjointly (theory). The paper-like context 16 has 12,000 active coordinates: SignGD alone, 320
steps. PRESET_heads_H_frozen and PRESET_context_L_frozen: only w_v is trained, the control of the test errors.
depth_D with D = 1..4, and depth_2 and depth_4 with _mlp, _norm and both: `js.deep_transformer` with residual
connections (weight 1) and without, SignGD, and Adam where nothing is added; 600 steps. 36 seeds everywhere.
Command: python sweeps/architecture.py --out results/architecture
Expected: `figures/gallery/claims_architecture.csv`.
All settings are reconstructed.
"""

import dataclasses
import sys
from argparse import Namespace

import numpy as np
import optax

import jaxsign as js

SIGN = {"sign_gd": js.grid(js.sign_gd, learning_rate=1e-4)}
ADAM = {"adam": js.grid(optax.adam, learning_rate=1e-4, b1=0.9, b2=0.999, eps=1e-15)}
GD = {"gd": js.grid(optax.sgd, learning_rate=0.3)}
HEADS, CONTEXTS = (1, 2, 4, 8), (4, 8, 16)
#: Every step to the end of stage II, then a grid that holds the steps of the claims.
RECORD = np.unique([*range(31), *range(30, 601, 10)])
TEST = [0, 20, 50, 100, 150, 200, 300, 500, 600]
SCALARS = ["train_loss", "test_loss", "test_error"]
TRACES = [
    *SCALARS, "value_noise", "query_noise", "key_noise", "query_signal", "key_signal", "s11", "s21", "log_s21",
    "sign_agreement",
]  # fmt: skip
#: Name of an entry -> what is added to the layers.
ADDED = {
    "": {}, "_mlp": {"mlp": True}, "_norm": {"layer_norm": True}, "_mlp_norm": {"mlp": True, "layer_norm": True},
}  # fmt: skip


def build(args: Namespace) -> dict[str, js.Sweep]:
    tiny = args.tiny
    seeds = {"seed": args.seeds or (2 if tiny else 36)}
    small = {"n": 4, "s": 5, "m_k": 3, "m_v": 3, "n_test": 20}

    def sweep(system, problem, hyper, optimizers, observables, steps=600, **more):
        steps = args.steps or (150 if tiny else steps)
        return js.Sweep(
            system=system, problem=problem, hyper=hyper, optimizers=optimizers, steps=steps, observables=observables,
            record=RECORD[steps >= RECORD], test_every=[t for t in TEST if t <= steps], **more,
        )  # fmt: skip

    sweeps = {}
    for preset in ("paper_like", "theory"):
        problem, hyper = getattr(js.presets, preset)()
        d = 60 if tiny else problem.d
        problem = dataclasses.replace(problem, **small, d=d) if tiny else problem
        variants = {f"heads_{heads}": {"heads": heads} for heads in HEADS}
        variants |= {f"context_{long}": {"context": long, "d": d * (long - 1)} for long in CONTEXTS}
        if tiny:
            variants = {name: variants[name] for name in {"paper_like": ["heads_2"], "theory": ["context_4"]}[preset]}
        for name, sizes in variants.items():
            one = dataclasses.replace(problem, **sizes)
            heavy = preset == "paper_like" and name == "context_16" and not tiny
            # Disjoint supports close the dynamics on inner products; coordinates that patches share do not.
            engine = args.engine or ("feature_space" if preset == "theory" else "support")
            alone = SIGN if heavy or tiny else SIGN | ADAM | GD
            sweeps[f"{preset}_{name}"] = sweep(
                js.two_layer, one, hyper, alone, TRACES, steps=320 if heavy else 600, engine=engine, axes=seeds
            )
            if not heavy:
                sweeps[f"{preset}_{name}_frozen"] = sweep(
                    js.two_layer, one, hyper, SIGN if tiny else SIGN | GD, SCALARS, engine=engine, axes=seeds,
                    trainable=("w_v",),
                )  # fmt: skip
    hyper = js.presets.paper_like()[1]
    for depth in (1, 2, 3, 4):
        for name, added in ADDED.items():
            if (added and depth not in (2, 4)) or (tiny and (depth, name) not in ((1, ""), (2, "_mlp_norm"))):
                continue
            problem = js.DeepProblem(depth=depth, **added, **({**small, "d": 60, "hidden": 4} if tiny else {}))
            sweeps[f"depth_{depth}{name}"] = sweep(
                js.deep_transformer, problem, hyper, SIGN if added or tiny else SIGN | ADAM, TRACES,
                axes={"residual": [1.0, 0.0], **seeds},
            )  # fmt: skip
    return sweeps


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
