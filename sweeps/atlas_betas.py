"""Which of Adam's betas train, and which generalise, like SignGD? b1 x b2, to a training loss of 1e-4, with a test set.

Page 4 of the atlas; claims BM1 to BM13. Entries: `overlap`, the paper-like setting (d = 2000, independent supports), at
SNR .079 and .2, 1500 steps, 6 seeds; `limit`, the limit d -> infinity, in which fresh noise shares no coordinate with
training, at SNR .04 as well, with softmax attention and the control, in which attention is uniform and only values
learn, 3000 steps, 16 seeds. Axes: b1 x b2 over 0, .5, .9, .99 and .999, and SignGD, at eta = 1e-4. The SNR is set by mu
and sigma_0 at sigma_p = 2, as in sweeps/atlas_error.py. `memory`: does b2 itself count, or the steps 1/(1 - b2) that it
remembers against the length of training, which goes as 1/eta? b1 = 0, b2 from .9 to .9999, and SignGD, at eta = 1e-5,
1e-4 and 1e-3; without overlap, SNR .04 and .06, to a training loss of .01 within 9000 steps, 16 seeds. `around`: where
and why does b2 = .99 err more? Without overlap, four SNRs and four sigma_0; Adam's rule for one part of the model
alone; two pairs of betas at eta = 1e-3; 3000 steps, 16 seeds.
Squares of gradients underflow in 32 bits: eps is so small that it counts for nothing in 64 bits only.
Command: python sweeps/atlas_betas.py --x64 --out results/atlas_betas
Cost: 2.6 minutes on 2 cores of an Intel Xeon, a third of it compilation; wall_seconds of the manifests.
All settings are reconstructed; see jaxsign.presets.
"""

import sys
from argparse import Namespace

import jax
import optax
import presets

import jaxsign as js

BETAS = [0.0, 0.5, 0.9, 0.99, 0.999]
#: 1/(2 sqrt(40)) is the presets' own.
SNR = (0.04, 1 / (2 * 40**0.5), 0.2)
LEVELS = (0.1, 0.01, 1e-4)
RATES = [1e-5, 1e-4, 1e-3]
#: (SNR, sigma_0 at mu = 1) of entry `around`.
AROUND = [(0.025, 3e-3), (0.04, 3e-3), (0.06, 3e-3), (0.1, 3e-3), (0.04, 3e-4), (0.04, 1e-3), (0.04, 1e-2)]
SCALARS = ["train_loss", "test_loss", "test_error", "value_signal", "value_noise", "s11", "s21", "sign_agreement"]


def parts(learning_rate, eps, attention="sign", signal="sign", noise="sign"):
    """A rule for each part of the model in feature space, "sign" or "adam", which is Adam 0, .99."""
    rules = {"sign": js.sign_gd(learning_rate), "adam": optax.adam(learning_rate, b1=0.0, b2=0.99, eps=eps)}

    def rule(path, _):
        matrix, part = (entry.name for entry in path)
        return {"signal": signal, "noise": noise, "kept": noise}[part] if matrix == "w_v" else attention

    return optax.partition(rules, lambda params: jax.tree_util.tree_map_with_path(rule, params))


def around(eps):
    """{name: optimizer} of entry `around`."""
    rate = {"learning_rate": 1e-4, "eps": eps}
    return {
        "sign_gd": js.grid(js.sign_gd, learning_rate=[1e-4, 1e-3]),
        "adam": js.grid(optax.adam, b1=0.0, b2=0.99, **rate),
        **{f"adam_on_{part}": js.grid(parts, **{part: "adam"}, **rate) for part in ("attention", "signal", "noise")},
        "fast": js.grid(optax.adam, learning_rate=1e-3, b1=[0.9, 0.99], b2=0.9, eps=eps),
    }


def build(args: Namespace) -> dict[str, js.Sweep]:
    presets.need_x64("atlas_betas", args)
    wide = jax.config.jax_enable_x64  # in 32 bits Adam is not homogeneous at this eps: the smoke test takes support
    eps = 1e-150 if wide else 1e-18
    betas = [0.0, 0.9] if args.tiny else BETAS
    over_betas = {
        "sign_gd": presets.OPTIMIZERS["sign_gd"],
        "adam": js.grid(optax.adam, learning_rate=1e-4, b1=betas, b2=betas, eps=eps),
    }
    b2 = [0.9, 0.99] if args.tiny else [0.9, 0.99, 0.999, 0.9999]
    over_rates = {
        "sign_gd": js.grid(js.sign_gd, learning_rate=RATES),
        "adam": js.grid(optax.adam, learning_rate=RATES, b1=0.0, b2=b2, eps=eps),
    }

    def sweep(place, engine, seeds, steps, snr, kernels, optimizers=over_betas, levels=LEVELS):
        """`snr` lists SNRs, or (SNR, sigma_0 at mu = 1)."""
        problem, hyper = js.presets.paper_like() if place == "overlap" else js.presets.disjoint()
        problem = presets.tiny(problem) if args.tiny else problem
        steps = args.steps or (60 if args.tiny else steps)
        cells = [each if isinstance(each, tuple) else (each, float(hyper.sigma_0)) for each in snr]
        cells = [(ratio * 2 * problem.s**0.5, start) for ratio, start in (cells[-2:] if args.tiny else cells)]
        return js.Sweep(
            system=js.two_layer, engine=args.engine or (engine if wide else "support"), problem=problem, hyper=hyper,
            optimizers=optimizers, steps=steps, record=js.log_steps(steps, per_decade=12), test_every=[0],
            levels=levels, observables=SCALARS,
            axes={
                **kernels, ("mu", "sigma_0"): [(mu, start / mu) for mu, start in cells],
                "seed": args.seeds or (2 if args.tiny else seeds),
            },
        )  # fmt: skip

    return {
        "overlap": sweep("overlap", "hybrid", 6, 1500, SNR[1:], {}),
        "limit": sweep("limit", "feature_space_law", 16, 3000, SNR, {"kernel": ["softmax", "uniform"]}),
        "memory": sweep("limit", "feature_space_law", 16, 9000, (0.04, 0.06), {}, over_rates, LEVELS[:2]),
        **(
            {"around": sweep("limit", "feature_space_law", 16, 3000, AROUND, {}, around(eps), LEVELS[:2])}
            if wide
            else {}
        ),
    }


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
