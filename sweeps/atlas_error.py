"""Test error at equal training loss over SNR and dimension: SignGD, Adam and GD, attention trained and uniform.

Page 1 of the atlas; claims E1 to E9. Axes of entry `error`: 17 SNRs from 1e-4 to 1; 9 dimensions from just above
n s = 800 to 10^9 and infinity (fresh patches share no coordinate with training; its d is only a label); softmax
attention and the control, in which attention is uniform and only values learn; 16 seeds. Entry `small_start` repeats
SignGD and GD at d = 2000 and infinity with sigma_0 = 3e-4 throughout, a tenth of the preset's at its own SNR, so that
initial weights hardly count. Entry `exchanged` asks which part of Adam makes its error: at d = 2000 and nine SNRs, all
eight ways to give SignGD's or Adam's rule to attention, to the value vector's product with the signal and to its
products with the noise; SignGD at a half and a quarter of its learning rate trains as long as Adam. Entry `slowed`
asks how a rule for the signal makes it: there, Adam with b2 = .9 and .99, and SignGD at .06 to .5 of its rate. Entry
`uniform` repeats the exchange of the signal's and the noise's rule with uniform attention, d = 2000 and infinity. Entry
`start` varies sigma_0 from 3e-5 to .03 at SNR .032 and .1, d = 2000 and infinity, for SignGD and GD.
Drawn in distribution, supports disjoint. mu and sigma_0 vary in place of sigma_p, at sigma_p = 2, so that one learning
rate serves every SNR: (mu, sigma_p, sigma_0, eta) -> (c mu, c sigma_p, sigma_0/c, eta/c) is the same run of SignGD. So
sigma_0 = 3e-3/mu stands for sigma_0 = 3e-3 at mu = 1 and sigma_p = 1/(SNR sqrt(s)), the presets' way to vary the SNR.
Command: python sweeps/atlas_error.py --out results/atlas_error
Cost: 3.6 minutes on 2 cores of an Intel Xeon, a third of it compilation; wall_seconds of the manifests.
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

#: 1e-4 to 1, four a decade.
SNR = np.logspace(-4, 0, 17)
#: (d, overlap law of fresh patches); the last is the limit d -> infinity.
DIMENSIONS = [*((d, "exact") for d in (801, 1200, 2000, 5000, 20_000, 100_000, 10**6, 10**9)), (2 * 10**9, "none")]
LEVELS = (0.5, 0.3, 0.1, 0.03, 0.01)
OPTIMIZERS = {
    "sign_gd": presets.OPTIMIZERS["sign_gd"],
    "adam": presets.OPTIMIZERS["adam"],
    # A noise margin grows by .04 eta a step at first; where the signal is strong the smaller rates do not leap.
    "gd": js.grid(optax.sgd, learning_rate=[0.01, 0.1, 0.5]),
}
#: sigma_0, four a decade; the error map has .0075 at SNR .032.
STARTS = np.logspace(-4.5, -1.5, 13)
PARTS = ("attention", "signal", "noise")
SCALARS = ["train_loss", "test_loss", "test_error", "value_signal"]


def parts(learning_rate, attention="sign", signal="sign", noise="sign", b2=0.999, share=1.0):
    """A rule for each part of the model in feature space: "sign", "adam", or "slow", SignGD at a share of the rate."""
    rules = {"sign": js.sign_gd(learning_rate), "adam": optax.adam(learning_rate, b1=0.9, b2=b2, eps=1e-15)}
    rules["slow"] = js.sign_gd(share * learning_rate)

    def rule(path, _):
        matrix, part = (entry.name for entry in path)
        return {"signal": signal, "noise": noise, "kept": noise}[part] if matrix == "w_v" else attention

    return optax.partition(rules, lambda params: jax.tree_util.tree_map_with_path(rule, params))


def exchanged():
    """{name: optimizer} of the eight ways to give two rules to three parts, and of SignGD that trains longer."""
    with_adam = [[part for bit, part in enumerate(PARTS) if number >> bit & 1] for number in range(2 ** len(PARTS))]
    optimizers = {
        "_".join(["adam_on", *chosen]) if chosen else "sign_gd": js.grid(
            parts, learning_rate=1e-4, **dict.fromkeys(chosen, "adam")
        )
        for chosen in with_adam
    }
    return {**optimizers, "slow_sign_gd": js.grid(js.sign_gd, learning_rate=[5e-5, 2.5e-5])}


def values():
    """{name: optimizer} of the four ways to give two rules to the value vector's products, attention at its start."""
    chosen = {"sign_gd": {}, "adam_on_signal": {"signal": "adam"}, "adam_on_noise": {"noise": "adam"}}
    chosen["adam_on_signal_noise"] = {"signal": "adam", "noise": "adam"}
    return {name: js.grid(parts, learning_rate=1e-4, **which) for name, which in chosen.items()}


def slowed():
    """{name: optimizer} of SignGD, and of SignGD with another rule for the value vector's product with the signal."""
    return {
        "sign_gd": presets.OPTIMIZERS["sign_gd"],
        "adam_on_signal": js.grid(parts, learning_rate=1e-4, signal="adam", b2=[0.9, 0.99, 0.999]),
        "slow_signal": js.grid(parts, learning_rate=1e-4, signal="slow", share=[0.06, 0.12, 0.25, 0.5]),
    }


def build(args: Namespace) -> dict[str, js.Sweep]:
    problem, hyper = js.presets.disjoint()
    steps = args.steps or (60 if args.tiny else 1500)

    def sweep(starts, optimizers, dimensions, kernels, snr=SNR):
        """`starts` gives sigma_0 at a mu, or is a list of them, each at every mu."""
        sizes = problem
        if args.tiny:
            sizes, snr, dimensions = (
                presets.tiny(problem),
                snr[[-8, -4]] if snr.size > 2 else snr,
                [(30, "exact"), (60, "exact")],
            )
        mu = snr * float(hyper.sigma_p) * sizes.s**0.5
        zipped = callable(starts)
        start = {("mu", "sigma_0"): [(m, starts(m)) for m in mu]} if zipped else {"mu": mu, "sigma_0": starts}
        return js.Sweep(
            system=js.two_layer, engine=args.engine or "feature_space_law", problem=dataclasses.replace(sizes, d=10**9),
            hyper=hyper, optimizers=optimizers, steps=steps, record=[0, steps], test_every=[0],
            levels=LEVELS, observables=SCALARS,
            axes={
                **kernels, ("d", "overlap"): dimensions,
                **start, "seed": args.seeds or (2 if args.tiny else 16),
            },
        )  # fmt: skip

    some = {name: OPTIMIZERS[name] for name in ("sign_gd", "gd")}
    return {
        "error": sweep(
            lambda mu: float(hyper.sigma_0) / mu,
            some if args.tiny else OPTIMIZERS,
            DIMENSIONS,
            {"kernel": ["softmax", "uniform"]},
        ),
        "small_start": sweep(lambda mu: float(hyper.sigma_0) / 10, some, [DIMENSIONS[2], DIMENSIONS[-1]], {}),
        "exchanged": sweep(lambda mu: float(hyper.sigma_0) / mu, exchanged(), [DIMENSIONS[2]], {}, SNR[8:]),
        "slowed": sweep(lambda mu: float(hyper.sigma_0) / mu, slowed(), [DIMENSIONS[2]], {}, SNR[8:]),
        "uniform": sweep(
            lambda mu: float(hyper.sigma_0) / mu,
            values(),
            [DIMENSIONS[2], DIMENSIONS[-1]],
            {"kernel": ["uniform"]},
            SNR[8:],
        ),
        "start": sweep(
            STARTS, some, [DIMENSIONS[2], DIMENSIONS[-1]], {"kernel": ["softmax", "uniform"]}, SNR[[10, 12]]
        ),
    }


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
