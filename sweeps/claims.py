"""The paper's claims from thousands of seeds: their numbers are measured on the device, no trace is kept.

Axes: optimizer (SignGD and Adam eta=1e-4, GD eta=.3), 4096 seeds; 2000 steps; both presets. Engine hybrid for the
paper-like preset, whose patches share coordinates; feature_space_law, exact in distribution, for the disjoint preset.
G1 needs five learning rates: sweeps/snr.py.
Command: make claims-4096, or python sweeps/claims.py --out results-4096 && jaxsign claims results-4096
Cost: 5.5 minutes on 2 cores of an AMD EPYC, with compilation and the table.
Expected: `figures/gallery/claims_4096.csv`.
All settings are reconstructed; see jaxsign.presets.
"""

import dataclasses
import sys
from argparse import Namespace

import numpy as np
import presets

import jaxsign as js

SIGN_GD, OTHERS = ({name: presets.OPTIMIZERS[name] for name in names} for names in (["sign_gd"], ["adam", "gd"]))
#: The steps that the claims read; majorities are followed every 50 steps.
RECORD = np.unique([0, *range(2, 21), 30, *range(50, 351, 25), *range(350, 2001, 50)])
#: Steps with a test set of 500.
TEST = [50, 100, 200, 300, 500, 900, 2000]
READ = [
    "train_loss", "value_noise", "query_noise", "key_noise", "query_signal", "key_signal", "s11", "s21", "log_s21",
    "sign_agreement",
]  # fmt: skip
TESTED = ["test_loss", "test_error"]


def build(args: Namespace) -> dict[str, js.Sweep]:
    steps = args.steps or (120 if args.tiny else 2000)
    record = RECORD[steps >= RECORD]
    settings = {
        "paper_like": ("hybrid", js.presets.paper_like()),
        "disjoint": ("feature_space_law", js.presets.disjoint()),
    }
    sweeps = {}
    for name, (engine, (problem, hyper)) in settings.items():
        if args.tiny and name == "disjoint":
            continue
        if args.tiny:
            problem = presets.tiny(problem)
        common = {
            "system": js.two_layer, "engine": args.engine or engine, "hyper": hyper,
            "axes": {"seed": args.seeds or (2 if args.tiny else 4096)}, "steps": steps, "record": record,
            "summary": js.claim_numbers, "keep_trace": False,
        }  # fmt: skip
        # Claims about test error and loss are SignGD's: the others need no test set.
        sweeps[f"{name}_sign_gd"] = js.Sweep(
            problem=dataclasses.replace(problem, n_test=20 if args.tiny else 500), optimizers=SIGN_GD,
            test_every=[step for step in TEST if step <= steps], observables=[*READ, *TESTED], **common,
        )  # fmt: skip
        sweeps[f"{name}_others"] = js.Sweep(
            problem=dataclasses.replace(problem, n_test=1), optimizers=OTHERS, observables=READ,
            test_every=[step for step in (0, steps) if step in record], **common,
        )  # fmt: skip
    return sweeps


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
