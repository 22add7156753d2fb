"""Where, in what order and when do the stages of SignGD appear? Over initial scale, step, SNR and the shapes.

The stage map of the atlas; claims T1 to T9. Entry `map`: 6 mu x 17 sigma_0 x 9 learning rates at sigma_p = 2, 8 seeds,
7000 steps. Three numbers without units: the initial size of a noise feature a = sigma_0 sigma_p sqrt(s), 12.6 sigma_0;
its step h = eta sigma_p s sqrt(2/pi), 63.8 eta; SNR = mu/(sigma_p sqrt(s)), mu/12.6. sigma_p is no axis of its own:
(mu, sigma_p, sigma_0, eta) -> (c mu, c sigma_p, sigma_0/c, eta/c) is the same run. Entries `n`, `s`, `m_k`, `m_v` and
`heads` vary one shape at the preset's numbers, 3000 steps. `starts`: up to which initial scale is the order kept, and
does sigma_0 count or a sqrt(m_k)? 5 m_k x 16 sigma_0 at eta = 3e-5, where a feature crosses its start in 17 steps or
more, 16 seeds.
Drawn in distribution, supports disjoint. Kept are the ends of the stages, read at steps 6 % apart, and no traces.
Command: python sweeps/atlas_stages.py --out results/atlas_stages
Cost: 4.6 minutes on 2 cores of an Intel Xeon, 2.5 of them `starts`; wall_seconds of the manifests.
Expected: `figures/gallery/claims_atlas_stages.csv`; in order from sigma_0/eta = 30 to sigma_0 = 1e-2 at mu = 1.
All settings are reconstructed; see jaxsign.presets.
"""

import dataclasses
import sys
from argparse import Namespace

import numpy as np
import presets

import jaxsign as js
from jaxsign.analysis.stage_ends import NEEDS, stage_ends

#: SNR .008 to 2.5.
MU = [0.1, 0.316, 1.0, 3.16, 10.0, 31.6]
#: Four a decade, the preset's 3e-3 among them.
SIGMA_0 = 3e-3 * 10 ** (np.arange(-10, 7) / 4)
#: Four a decade, the preset's 1e-4 among them.
ETA = 10 ** (np.arange(-20, -11) / 4)
SHAPES = {
    "n": [5, 10, 40, 80], "s": [10, 20, 80, 160], "m_k": [5, 10, 40, 80], "m_v": [5, 80], "heads": [2, 8],
}  # fmt: skip


#: Half powers of 2 of m_k, and quarter powers of sigma_0: a sqrt(m_k) takes the same values, .6 and 2^(1/4) times more,
#: for every m_k.
ROWS = [10, 20, 80, 160, 320]
STARTS = 0.6 / (4 * 10**0.5 * 320**0.5) * 2 ** (np.arange(16) / 4)


def recorded(steps: int) -> list[int]:
    """Every step at first, then steps 6 % apart."""
    record = [0, 1]
    while record[-1] < steps:
        record.append(min(max(record[-1] + 1, round(1.06 * record[-1])), steps))
    return record


def build(args: Namespace) -> dict[str, js.Sweep]:
    problem, hyper = js.presets.disjoint()
    problem = dataclasses.replace(presets.tiny(problem) if args.tiny else problem, n_test=1)

    def sweep(axes, etas, full, seeds=8):
        steps = args.steps or (60 if args.tiny else full)
        return js.Sweep(
            system=js.two_layer, engine=args.engine or "feature_space_law", problem=problem, hyper=hyper,
            optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=[float(eta) for eta in etas])},
            axes={**axes, "seed": args.seeds or (2 if args.tiny else seeds)}, steps=steps, record=recorded(steps),
            test_every=[steps], observables=NEEDS, summary=stage_ends, keep_trace=False,
        )  # fmt: skip

    if args.tiny:
        every = {"mu": MU[2:4], "sigma_0": [float(one) for one in SIGMA_0[8:13:2]]}
        starts = {"m_k": [2, 8], "sigma_0": [float(one) for one in STARTS[8:12:2]]}
        return {
            "map": sweep(every, ETA[4:7:2], 60), "heads": sweep({"heads": [1, 2]}, [1e-3], 60),
            "starts": sweep(starts, [1e-3], 60),
        }  # fmt: skip
    sweeps = {"map": sweep({"mu": MU, "sigma_0": [float(one) for one in SIGMA_0]}, ETA, 7000)}
    # 80 patches of 40 coordinates find no room in the preset's d, which nothing here depends on.
    shapes = {name: {(name, "d"): [(value, 4000) for value in values]} for name, values in SHAPES.items()}
    sweeps |= {name: sweep(axes, [1e-4], 3000) for name, axes in shapes.items()}
    starts = {"m_k": ROWS, "sigma_0": [float(one) for one in STARTS]}
    return sweeps | {"starts": sweep(starts, [3e-5], 7000, seeds=16)}


main = js.sweep_cli(build, __doc__)

if __name__ == "__main__":
    sys.exit(main())
