"""Other architectures: 2 to 8 heads, contexts up to 16, transformers of depth 1 to 4; claims H1-H4 and D1-D8.

depth_D with D = 1..4, and depth_4 with _mlp, _norm and both: `js.deep_transformer` with residual connections (weight
1) and without, SignGD, 400 steps, captured at training losses .1 and .01 (D2 compares layers there). PRESET_heads_H
with H = 1, 2, 4, 8 (600 steps) and PRESET_context_L with L = 4, 8, 16 (320 steps), PRESET paper_like or disjoint: the
two-layer system, SignGD; all claims of the paper's system are asked of them too. d = 2000 (L-1), so that n (L-1)
patches of s = 40 share as many coordinates as those of context 2 do (paper-like) and fit in disjointly (disjoint). 36
seeds; paper-like contexts 8 and 16, whose supports have 6,000 and 12,000 coordinates, 8 and 4. GD beside SignGD
paper-like up to context 4, and as controls of their test errors the same with w_v alone trained, _frozen. Adam in
adam_heads_4, adam_context_4 (disjoint) and adam_depth_2, 12 seeds. targets: which noise patch the noise queries of
longer contexts attend to, disjoint preset, 12 seeds.
In 32 bits gradients of transformers of depth 4 are 0 from t ~ 200 on, and those of layers 3 and 4 without residual
connections from the start, as rounding makes their tokens equal. So this experiment needs --x64; there layer 4 alone,
without residual connections, has a gradient of exactly 0 before t = 360.
Command: python sweeps/architecture.py --x64 --out results/architecture
Cost: 12 minutes on 2 cores of an AMD EPYC, 15 of CPU time.
Expected: `figures/gallery/claims_architecture.csv`; with residual connections layer 1 keeps the paper's numbers at
every depth (D1), without them only a transformer with layer norm is erratic in layer 1 (D4, D5).
All settings are reconstructed.
"""

import dataclasses
import sys
from argparse import Namespace

import jax.numpy as jnp
import numpy as np
import presets

import jaxsign as js
from jaxsign.systems.two_layer import model as model

SIGN, ADAM, GD = ({name: presets.OPTIMIZERS[name]} for name in ("sign_gd", "adam", "gd"))
#: Every step to the end of stage II, then a grid that holds the steps of the claims.
RECORD = np.unique([*range(31), *range(30, 601, 10)])
TEST = [0, 20, 50, 100, 150, 200, 300, 500, 600]
SCALARS = ["train_loss", "test_loss", "test_error"]
TRACES = [
    *SCALARS, "value_noise", "query_noise", "key_noise", "query_signal", "key_signal", "s11", "s21", "log_s21",
    "sign_agreement",
]  # fmt: skip
#: Depth and what every layer holds besides attention.
DEEP = {
    "depth_1": {"depth": 1}, "depth_2": {"depth": 2}, "depth_3": {"depth": 3}, "depth_4": {"depth": 4},
    "depth_4_mlp": {"depth": 4, "mlp": True}, "depth_4_norm": {"depth": 4, "layer_norm": True},
    "depth_4_mlp_norm": {"depth": 4, "mlp": True, "layer_norm": True},
}  # fmt: skip
#: Entries of the smoke test.
TINY = (
    "depth_1",
    "depth_4_mlp_norm",
    "paper_like_heads_2",
    "paper_like_heads_2_frozen",
    "disjoint_context_4",
    "targets",
)


def _attended(params, data):
    """(query patch, sample): the noise patch that a noise query attends to most, heads averaged."""
    attention = jnp.exp(model.log_attention(params.features(data), data.y_clean * data.mu, params.heads))
    return jnp.argmax(jnp.mean(attention[1:, 1:], axis=2), axis=1)


def target_agreement(params, data, test, hyper):
    """Share of noise queries with the sign of the key of the patch that they attend to most."""
    f, attended = params.features(data), _attended(params, data)
    key = jnp.take_along_axis(f.k, attended.T[None], axis=2)
    return jnp.mean((jnp.sign(f.q) == jnp.sign(key)).astype(f.q.dtype))


def on_heaviest(params, data, test, hyper):
    """Share of noise queries that attend most to their example's noise patch of largest l1 norm."""
    heaviest = jnp.argmax(data.metric, axis=1)
    return jnp.mean((_attended(params, data) == heaviest[None]).astype(data.metric.dtype))


def build(args: Namespace) -> dict[str, js.Sweep]:
    tiny = args.tiny
    presets.need_x64("architecture", args)
    small = {"n": 4, "d": 60, "s": 5, "m_k": 3, "m_v": 3, "n_test": 20} if tiny else {}

    def sweep(system, problem, hyper, optimizers, steps, seeds=36, observables=TRACES, axes=(), **more):
        steps = args.steps or (150 if tiny else steps)
        return js.Sweep(
            system=system, problem=problem, hyper=hyper, optimizers=optimizers, steps=steps, observables=observables,
            record=RECORD[steps >= RECORD], test_every=[t for t in TEST if t <= steps],
            axes={**dict(axes), "seed": args.seeds or (2 if tiny else seeds)}, **more,
        )  # fmt: skip

    def deep(name, optimizers=SIGN, **more):
        problem = js.DeepProblem(**DEEP[name], **small, **({"hidden": 4} if tiny else {}))
        hyper = js.presets.paper_like()[1]
        axes = {"residual": [1.0, 0.0]}
        return sweep(js.deep_transformer, problem, hyper, optimizers, 400, axes=axes, levels=(0.1, 0.01), **more)

    def shallow(preset, heads=1, context=2, optimizers=SIGN, **more):
        problem, hyper = getattr(js.presets, preset)()
        problem = dataclasses.replace(problem, **small)
        problem = dataclasses.replace(problem, heads=heads, context=context, d=problem.d * (context - 1))
        engine = args.engine or presets.engine_for(preset)
        steps = 600 if context == 2 else 320
        return sweep(js.two_layer, problem, hyper, optimizers, steps, engine=engine, levels=(0.1,), **more)

    sweeps = {name: deep(name) for name in DEEP if name in ("depth_1", "depth_2", "depth_3", "depth_4")}
    sizes = {f"heads_{heads}": {"heads": heads} for heads in (1, 2, 4, 8)}
    sizes |= {f"context_{long}": {"context": long} for long in (4, 8, 16)}
    for name, size in sizes.items():
        sweeps[f"disjoint_{name}"] = shallow("disjoint", **size)
    both = {name: size for name, size in sizes.items() if name not in ("context_8", "context_16")}
    for name, size in both.items():
        sweeps[f"paper_like_{name}"] = shallow("paper_like", **size, optimizers=SIGN | GD)
    for name in ("depth_4_mlp", "depth_4_norm", "depth_4_mlp_norm"):
        sweeps[name] = deep(name)
    frozen = {"optimizers": SIGN | GD, "trainable": ("w_v",), "observables": SCALARS}
    for name, size in both.items():
        sweeps[f"paper_like_{name}_frozen"] = shallow("paper_like", **size, **frozen)
    sweeps["paper_like_context_8"] = shallow("paper_like", context=8, seeds=8)
    sweeps["paper_like_context_16"] = shallow("paper_like", context=16, seeds=4)
    problem, hyper = js.presets.disjoint()
    lengths = [(long, (60 if tiny else problem.d) * (long - 1)) for long in ((4,) if tiny else (4, 8, 16))]
    sweeps["targets"] = sweep(
        js.two_layer, dataclasses.replace(problem, **small), hyper, SIGN, 320, seeds=12, engine="feature_space",
        axes={("context", "d"): lengths}, observables=["sign_agreement", target_agreement, on_heaviest],
    )  # fmt: skip
    sweeps["adam_heads_4"] = shallow("disjoint", heads=4, optimizers=ADAM, seeds=12)
    sweeps["adam_context_4"] = shallow("disjoint", context=4, optimizers=ADAM, seeds=12)
    sweeps["adam_depth_2"] = deep("depth_2", ADAM, seeds=12)
    return {name: sweeps[name] for name in (TINY if tiny else sweeps)}


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
