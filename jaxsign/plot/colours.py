"""Which colour means what? One table for all figures: a colour has one meaning in the whole gallery.

Optimizers have the colours of Okabe and Ito, which colour-blind readers tell apart; every other kind of thing has a hue
of its own, from dark to light. Laws are dashed in black and grey, and solid greys have no meaning but that in the key.
"""

from collections.abc import Sequence

#: Optimizers.
COLOURS = {
    "sign_gd": "#0072B2", "adam": "#D55E00", "gd": "#009E73", "signum": "#CC79A7", "smooth_sign_gd": "#56B4E9",
    "momentum": "#7FCDB4",
}  # fmt: skip
#: Of lines without a colour of their own, such as those of a reader's optimizers, in turn.
OTHERS = ("#E69F00", "#8C6D8C", "#A6D854", "#B15928")
#: Attention maps.
KERNELS = {"softmax": "#882255", "gaussian": "#8A8A00", "linear": "#E6C229"}
#: Residual connections: of attention and FFN, of attention alone, of the FFN alone; a plain model has none.
RESIDUALS = {"both": "#5B2C06", "attention": "#C08A4E", "ffn": "#E3C9A8", "none": "#7A7A7A"}
#: Groups of weights.
GROUPS = {"query": "#00363D", "key": "#1792A4", "value": "#8AD3DC"}
#: Programs whose speed is compared, with their markers.
ENGINES = {
    "pytorch, one process": ("#B5B5B5", "v"), "pytorch": ("#6B6B6B", "^"), "textbook": ("#333333", "s"),
    "dense": ("#F09FDC", "D"), "support": ("#AA4499", "o"), "feature_space": ("#5A0F4B", "*"),
}  # fmt: skip
#: Seconds on the wall and of processors.
SECONDS = {"wall": "#34495E", "cpu": "#A9B7C6"}
#: The sign of a feature, or whether it is that of the query signal.
POSITIVE, NEGATIVE = "#B2182B", "#F08A7B"
#: What is no member of a kind: named in the key.
NEUTRAL = "#4D4D4D"
#: Ends of the shades of a number that is swept: the smallest pale, the largest dark.
PALE, DARK = (0.83, 0.72, 0.89), (0.20, 0.04, 0.36)
#: Predictions in closed form; those of a second optimizer in the same panel are paler.
LAW, LAW_OF_GD = "#1A1A1A", "#8C8C8C"
#: Solid greys for things in an order that is no number, such as stages and layers, with their markers.
PLACES = (
    {"color": "#000000", "marker": "o"}, {"color": "#595959", "marker": "^"}, {"color": "#949494", "marker": "s"},
    {"color": "#C0C0C0", "marker": "D"},
)  # fmt: skip


def shades(count: int) -> list[str]:
    """Colours of the values of a swept number, from the smallest, pale, to the largest, dark.

    Args:
      count: how many, >= 1.

    Returns:
      Hexadecimal colours.

    Examples:
      >>> shades(2)
      ['#d4b8e3', '#330a5c']
    """
    return _between(PALE, DARK, count)


def tints(colour: str, count: int) -> list[str]:
    """Colours of the grid points of one family, from a pale tint of its colour to a dark one; of one point, its colour.

    Args:
      colour: the family's, as hexadecimal digits.
      count: how many points, >= 1.

    Returns:
      Hexadecimal colours.

    Examples:
      >>> tints("#0072B2", 1), tints("#0072B2", 2)
      (['#0072B2'], ['#8cc0dc', '#00446b'])
    """
    if count == 1:
        return [colour]
    full = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return _between([0.45 * part + 0.55 for part in full], [0.6 * part for part in full], count)


def _between(pale: Sequence[float], dark: Sequence[float], count: int) -> list[str]:
    """Equal steps from one colour to another; one step is the second."""
    steps = [i / (count - 1) if count > 1 else 1.0 for i in range(count)]
    mixed = [[a + step * (b - a) for a, b in zip(pale, dark)] for step in steps]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in mixed]
