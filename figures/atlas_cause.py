"""Which part of Adam makes its test error: SignGD's and Adam's rules exchanged on attention, signal and value noise.

Reads DIR/atlas_error/exchanged (sweeps/atlas_error.py).
Command: python figures/atlas_cause.py --results results --out results/figures
"""

import matplotlib.pyplot as plt

from jaxsign import plot
from jaxsign.analysis.runs import optimizers_of
from jaxsign.claims import atlas

LEVEL = 0.01
#: Who moves attention and the value vector's products with the noise: (what the legend says, look).
REST = {
    "": ("SignGD on both", {"color": plot.COLOURS["sign_gd"]}),
    "attention": ("attention Adam, noise SignGD", {"color": plot.NEUTRAL, "ls": "--"}),
    "noise": ("attention SignGD, noise Adam", {"color": plot.NEUTRAL, "ls": "-."}),
    "attention_noise": ("Adam on both", {"color": plot.COLOURS["adam"]}),
}
SLOW = ("SignGD on both, eta/4", {"color": plot.COLOURS["sign_gd"], "ls": ":"})
#: {rule for <v, mu>: {optimizer of the sweep: its line}}
PANELS = {
    "the signal's rule: SignGD": {
        **{f"adam_on_{parts}" if parts else "sign_gd": line for parts, line in REST.items()}, "slow_sign_gd": SLOW,
    },
    "the signal's rule: Adam": {
        "adam_on_signal": REST[""], "adam_on_attention_signal": REST["attention"],
        "adam_on_signal_noise": REST["noise"], "adam_on_attention_signal_noise": REST["attention_noise"],
    },
}  # fmt: skip


def draw(ds):
    fig, axes = plt.subplots(1, 2, figsize=(plot.WIDE, 2.6), sharey=True)
    snr = atlas.snr_of(ds).values
    for ax, lines in zip(axes, PANELS.values()):
        for name, (label, look) in lines.items():
            slowest = optimizers_of(ds, name)[-1:]  # of the rates, which fall
            errors = atlas.errors(ds.isel(optimizer=slowest), name, LEVEL).isel(d=0)
            plot.band(ax, snr, errors.transpose("seed", "mu"), label, **look)
        ax.set(xscale="log", xlabel="SNR", ylim=(0, 0.52))
    axes[1].legend(*axes[0].get_legend_handles_labels(), loc="lower left", title="the rest, in both panels")
    axes[0].set_ylabel(f"test error at training loss {LEVEL:g}")
    plot.letter_panels(axes, list(PANELS))
    plot.small_print(fig, f"d = 2000, disjoint supports, attention trained, {ds.sizes['seed']} seeds; reconstructed")
    return fig


main = plot.figure_script(draw, __doc__, reads="atlas_error/exchanged")

if __name__ == "__main__":
    main()
