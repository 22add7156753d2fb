"""Real digits in a noisy border, 20 to 1,000 training images: who has the smaller test error? Claims F2d, FS.

Digits 3 and 7. Entries: MODEL over the number of training images, MODEL_frozen its control on the same seeds, in which
queries and keys stay as they began and attention almost uniform; MODEL_scales, 50 images at many image scales;
`two_layer_splits`, noise in training images alone, in validation and test images alone, in both and in neither;
`two_layer_everywhere`, noise on every pixel instead of the border; `two_layer_faint`, scale .15 with fewer and more
images than noisy pixels; `two_layer_large`, 700 and 1,000 images and SignGD's rates five times as large. Models:
`two_layer`, the paper's attention model on 16 patches of 7 x 7 pixels; `vit`, a vision transformer of one layer on the
same patches, 16 wide. Axes: SignGD, Adam and GD (frozen: without Adam) with five learning rates each, factors of 5
apart (`vit`: of 3), of which figure and claims take the one with the smallest validation error among those with which
all seeds fit their training images; 20 to 1,000 training images (`vit` to 200, frozen to 100; splits 20 and 400;
everywhere 20, 100 and 400; faint 400, 700 and 1,000); image scale .25, .5 and 1 (`vit` and splits .5, everywhere .5 and
1), or .25 to 4; 5 seeds (splits 10). 200 validation and 600 test images a run; 80 full-batch steps, 300 of `vit` and
160 of splits, everywhere and faint, since GD takes longer to fit images without noise, and faint ones.
Command: python sweeps/digits.py --out results/digits [--data-dir DIR], DIR the MNIST files, plain or gzipped; without
it the 10,000 digits of the package.
Cost: 63 minutes of CPU time on an Intel Xeon, beside other work.
Expected: `jaxsign claims results/digits/*`: at scale .5 SignGD errs less than GD at 50 images and more at 1,000.
Learning rates and steps were set by training losses and, at 50 images, by validation errors. All sizes, rates and
scales are reconstructed.
"""

import dataclasses
import sys
from argparse import Namespace

import numpy as np
import optax

import jaxsign as js

CLASSES = (3, 7)
SCALES = {
    "two_layer": [0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 4.0],
    "vit": [0.25, 0.5, 0.7, 1.0, 4.0],
}
SAMPLES = {"two_layer": [20, 50, 100, 400, 1000], "vit": [20, 100, 200]}
RECORD = np.array([0, 2, 4, 7, 11, 16, 23, 32, 43, 57, 80, 110, 160, 230, 300])
#: The middle one of five learning rates, and the factor from one to the next.
RATES = {
    "two_layer": {"sign_gd": 1e-3, "adam": 2.5e-3, "gd": 0.5},
    "vit": {"sign_gd": 1.5e-3, "adam": 1.5e-3, "gd": 0.3},
}
FACTORS = {"two_layer": 5, "vit": 3}
#: Everything but queries and keys.
FROZEN = {
    "two_layer": ("w_v",),
    "vit": ("embed", "position", "norm_1", "value", "out", "norm_2", "hidden", "shrink", "norm_3", "head"),
}


def optimizers(model, tiny, adam, large):
    """SignGD, with its large rates if asked for, GD and, where asked for, Adam, each with its rates."""
    powers = (-1, 0) if tiny else range(-2, 3)

    def rates(name, up=0):
        return [round(RATES[model][name] * float(FACTORS[model]) ** (power + up), 9) for power in powers]

    found = {"sign_gd": js.grid(js.sign_gd, learning_rate=rates("sign_gd", up=int(large)))}
    if adam:
        found["adam"] = js.grid(optax.adam, learning_rate=rates("adam"), b1=0.9, b2=0.999)
    return found | {"gd": js.grid(optax.sgd, learning_rate=rates("gd"))}


def entries(tiny):
    """{name: (model, whether attention is frozen, axes, seeds, steps)}."""
    samples = {model: [8, 12] for model in SAMPLES} if tiny else SAMPLES
    scales = {model: [0.5, 1.0] for model in SCALES} if tiny else SCALES
    three = {"n_train": samples["two_layer"], "scale": scales["two_layer"] if tiny else [0.25, 0.5, 1.0]}
    fifty = {"n_train": [10 if tiny else 50]}
    few_and_many = {"n_train": samples["two_layer"] if tiny else [20, 400]}
    splits = {"noise": [0.0, 1.0], "test_noise": [0.0, 1.0]}
    everywhere = {"n_train": samples["two_layer"] if tiny else [20, 100, 400], "scale": [0.5, 1.0]}
    large = {"n_train": few_and_many["n_train"] if tiny else [700, 1000], "scale": [0.25, 0.5]}
    faint = {"n_train": samples["two_layer"] if tiny else [400, 700, 1000], "scale": [0.15]}
    return {
        "two_layer": ("two_layer", False, three, 5, 80),
        "two_layer_frozen": ("two_layer", True, three, 5, 80),
        "vit": ("vit", False, {"n_train": samples["vit"], "scale": [0.5]}, 5, 300),
        "vit_frozen": ("vit", True, {"n_train": samples["vit"][:2], "scale": [0.5]}, 5, 300),
        "two_layer_scales": ("two_layer", False, {**fifty, "scale": scales["two_layer"]}, 5, 80),
        "two_layer_splits": ("two_layer", False, {**few_and_many, "scale": [0.5], **splits}, 10, 160),
        "two_layer_everywhere": ("two_layer", False, everywhere, 5, 160),
        "two_layer_faint": ("two_layer", False, faint, 5, 160),
        "two_layer_large": ("two_layer", False, large, 5, 160),
        "vit_scales": ("vit", False, {**fifty, "scale": scales["vit"]}, 5, 300),
    }  # fmt: skip


def build(args: Namespace) -> dict[str, js.Sweep]:
    sweeps = {}
    sizes = {"n_val": 10, "n_test": 20, "width": 4, "hidden": 4} if args.tiny else {"n_val": 200, "n_test": 600}
    for name, (model, control, axes, seeds, length) in entries(args.tiny).items():
        problem = js.DigitsProblem(classes=CLASSES, n_train=max(axes["n_train"]), model=model, **sizes)
        if name.endswith("_everywhere"):
            problem = dataclasses.replace(problem, noise_on="image")
        steps = args.steps or (7 if args.tiny else length)
        record = RECORD[steps >= RECORD]
        sweeps[name] = js.Sweep(
            system=js.noisy_digits, problem=problem, hyper=js.DigitsHyper(),
            shared=js.load_digits(args.data_dir, problem),
            optimizers=optimizers(model, args.tiny, adam=not control, large=name.endswith("_large")),
            axes={**axes, "seed": args.seeds or (2 if args.tiny else seeds)}, steps=steps, record=record,
            test_every=record, levels=(0.1,), trainable=FROZEN[model] if control else None,
        )  # fmt: skip
    return sweeps


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
