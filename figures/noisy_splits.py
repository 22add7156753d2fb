"""Is it noise in training data or in test data that makes SignGD and Adam err more than GD? Digits and sentences.

Reads DIR/digits/two_layer_splits and DIR/text/splits (sweeps/digits.py, text.py).
Command: python figures/noisy_splits.py --results results --out results/figures
"""

import matplotlib.pyplot as plt
import numpy as np

from jaxsign import plot
from jaxsign.analysis.runs import drop_labels
from jaxsign.claims import digits, text

FAMILIES = ("sign_gd", "adam", "gd")
#: {where the noise is: whether it is in training data, in test data}
PLACES = {"none": (0, 0), "train": (1, 0), "test": (0, 1), "both": (1, 1)}
IMAGES = (20, 400)
#: Injected words a sentence.
WORDS = 12


def of_images(ds, family, trained, tested, n_train):
    """Test errors of every seed at the tuned rate; noise of standard deviation 1 or 0."""
    return drop_labels(digits.tuned(ds.sel(noise=trained, test_noise=tested), family, "loss")["test_error"]).sel(
        n_train=n_train
    )


def of_sentences(ds, family, trained, tested):
    """The same with injected words."""
    runs = ds.sel(injected=WORDS * trained, test_injected=WORDS * tested)
    return drop_labels(text.tuned(runs, family)["test_error"])


def interval(values):
    """Mean over the seeds and its 95 % interval, (3,)."""
    from scipy.stats import t

    values = np.asarray(values.squeeze(), float)
    half = t.ppf(0.975, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size)
    return values.mean() + half * np.array([0, -1, 1])


def panels(top, below, errors):
    """Test errors in one panel, and those of SignGD and Adam minus GD's in the other."""
    for i, family in enumerate(FAMILIES):
        look = {"color": plot.COLOURS[family], "marker": plot.MARKERS[family], "ms": 4, "ls": "none"}
        moved = np.arange(len(PLACES)) + 0.22 * (i - 1)
        rows = [interval(errors(family, *where)) for where in PLACES.values()]
        plot.dots(top, moved, *np.transpose(rows), plot.NAMES[family], **look)
        if family != "gd":
            gaps = [interval(errors(family, *where) - errors("gd", *where)) for where in PLACES.values()]
            plot.dots(below, moved, *np.transpose(gaps), plot.NAMES[family], **look)
    plot.level_line(below)
    for ax in (top, below):
        ax.set_xticks(range(len(PLACES)), list(PLACES))
        ax.set(xlim=(-0.5, len(PLACES) - 0.5), xlabel="data with noise")


def draw(images, sentences):
    fig, axes = plt.subplots(2, 3, figsize=(plot.WIDE, 4.3))
    for column, n_train in enumerate(IMAGES):
        panels(*axes[:, column], lambda *given, n=n_train: of_images(images, *given, n))
    panels(*axes[:, 2], lambda *given: of_sentences(sentences, *given))
    for row, words in zip(axes, ("test error", "test error minus GD's")):
        for ax in row:
            ax.set_ylabel(words)
    plot.key(fig, ncols=3, axes=list(axes[0]))
    titles = [*(f"digits, n = {n}" for n in IMAGES), "sentences, n = 500"]
    plot.letter_panels(list(axes.flat), [*titles, *(f"n = {n}: gap" for n in IMAGES), "sentences: gap"])
    plot.small_print(
        fig,
        f"training loss .1, mean of {images.sizes['seed']} seeds and its 95 % interval, each optimizer at the learning "
        "rate with the smallest validation error · digits 3 and 7, two-layer model, scale .5, noise N(0, 1) in the "
        f"border · softmax attention, {WORDS} random words of the vocabulary · all reconstructed",
    )
    return fig


main = plot.figure_script(draw, __doc__, reads=("digits/two_layer_splits", "text/splits"))

if __name__ == "__main__":
    main()
