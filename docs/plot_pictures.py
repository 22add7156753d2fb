"""Draws the pictures beside `js.plot` in the reference, from two small sweeps of sizes that are our own.

Command: python docs/plot_pictures.py [FOLDER], default docs/pictures.
Cost: 2 minutes on 2 CPU cores beside other jobs, most of it compilation.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import optax

import jaxsign as js
from jaxsign import plot

SNRS = [0.05, 0.1, 0.2, 0.4, 0.8]
POWERS = [0.0, 0.25, 0.5, 0.75, 1.0]
#: What the panels of one SNR read.
OBSERVED = ["query_noise", "key_noise", "query_signal", "key_signal", "value_noise", "s11", "s21", "log_s21"]
OBSERVED += ["sign_agreement", "majority_agreement", "train_loss", "test_loss", "test_error"]


def swept(optimizers, snr, observables):
    """A Dataset of 8 seeds and 400 steps."""
    sweep = js.Sweep(
        system=js.two_layer,
        problem=js.Problem(n=10, d=500, s=20, m_k=10, m_v=10, n_test=200),
        hyper=js.Hyper(sigma_p=2.0),
        optimizers=optimizers,
        axes={"snr": snr, "seed": 8},
        steps=400,
        record=2,
        test_every=20,
        levels=[0.5, 0.3, 0.1, 0.03],
        observables=observables,
    )
    return js.run_sweep(sweep)


def panels() -> dict[str, Callable]:
    """{function of js.plot: how to draw its picture into Axes}."""
    two = {"sign_gd": js.sign_gd(5e-4), "gd": optax.sgd(0.2)}
    one = swept(two, [0.1], OBSERVED).sel(snr=0.1)
    # At a gradient of 2.5e-3 every power steps as SignGD does.
    dial = {f"p = {p:g}": js.power_gd(5e-4 / 2.5e-3**p, p) for p in POWERS}
    many = swept(two | dial, SNRS, ["train_loss", "test_error"])
    sign = one.isel(optimizer=[0])
    agreement = sign["sign_agreement"].isel(optimizer=0)
    agreement = agreement.mean(set(agreement.dims) - {"seed", "step"}).transpose("seed", "step")

    def dynamics(ax):
        plot.dynamics(sign, "query_noise", ax, 400)
        plot.mark_stages(ax, sign, 400)
        ax.legend()

    def steps(draw, title):
        def panel(ax):
            draw(ax, agreement["step"], agreement)
            ax.set(xlabel="step t", xlim=(0, 40), ylabel="equal signs of query, key noise", title=title)

        return panel

    def heat_map(ax):
        error = js.at_train_loss(many, 0.3)["test_error"].mean("seed").isel(optimizer=slice(2, None))
        cells = error.assign_coords(optimizer=POWERS).transpose("optimizer", "snr")
        ax.figure.colorbar(plot.heat_map(ax, cells, (0.0, 0.5), contours=(0.1, 0.25)), label="test error")
        ax.set(xlabel="SNR", ylabel="power p of $|g|^p$ sgn g")

    return {
        "dynamics": dynamics,
        "loss": lambda ax: plot.loss(one, ax).legend(),
        "error_at_loss": lambda ax: plot.error_at_loss(one, ax).legend(),
        "snr": lambda ax: plot.snr(many.isel(optimizer=[0, 1]), ax, level=0.3).legend(),
        "phase": lambda ax: plot.phase(sign, ax),
        "heat_map": heat_map,
        "band": steps(plot.band, "median and 5 to 95 % of seeds"),
        "traces": steps(plot.traces, "median and every seed"),
    }


def main(folder: Path) -> None:
    """Writes FOLDER/plot_NAME.png for every function."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, panel in panels().items():
        with plot.style():
            fig, ax = plt.subplots(figsize=(plot.NARROW, 2.4))
            panel(ax)
            for axis in (ax.xaxis, ax.yaxis):
                plot.tick_log(axis)
            fig.savefig(folder / f"plot_{name}.png", dpi=150, bbox_inches="tight", metadata={"Software": None})
            plt.close(fig)
        print(folder / f"plot_{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "pictures")
