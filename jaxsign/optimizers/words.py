"""How are the values of an optimizer's keywords written in labels?"""

import functools
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxsign.compilation import filled


def value_word(value: Any) -> str:
    """Short text of a keyword's value.

    Examples:
      >>> value_word(0.1), value_word(None)
      ('0.1', 'None')
    """
    if isinstance(value, float) and math.isfinite(value):
        if float(f"{value:g}") == value:
            return f"{value:g}"
        narrow = np.float32(value) if abs(value) <= np.finfo(np.float32).max else np.float32(0)
        if float(narrow) == value and float(np.float32(f"{narrow:g}")) == value:  # a 32-bit 0.1 is shown as 0.1
            return f"{narrow:g}"
        return repr(float(value))
    return static_word(value)


def static_word(value: Any, whole: bool = False) -> str:
    """Short text of a keyword that is no float, the same in every process: never with a memory address.

    A schedule is written by its kind and its first number.

    Args:
      value: any value.
      whole: write all numbers of a schedule that are not the default.

    Examples:
      >>> import optax
      >>> static_word(optax.sgd), static_word(True), static_word(functools.partial(optax.sgd, 0.1))
      ('sgd', 'True', 'sgd(0.1)')
      >>> static_word(optax.cosine_decay_schedule(0.1, 200)), static_word(optax.cosine_decay_schedule(0.1, 200), True)
      ('cosine(0.1)', 'cosine(0.1, 200)')
      >>> static_word(optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 200))
      'join(polynomial(0), cosine(0.1))'
    """
    if isinstance(value, functools.partial):
        bound = [*map(static_word, value.args), *(f"{k}={static_word(v)}" for k, v in value.keywords.items())]
        return f"{static_word(value.func)}({', '.join(bound)})"
    if "<locals>" in getattr(value, "__qualname__", "") and value.__name__ != "<lambda>":
        return _closure_word(value, whole)
    if hasattr(value, "__name__"):
        return str(value.__name__)
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


def different_words(values: Sequence[Any]) -> list[str]:
    """Texts of the values of one keyword; schedules of one kind and first number are written with all numbers.

    Examples:
      >>> import optax
      >>> different_words([optax.cosine_decay_schedule(0.1, 200), optax.cosine_decay_schedule(0.1, 400), 0.1])
      ['cosine(0.1, 200)', 'cosine(0.1, 400)', '0.1']
    """
    words = [value_word(value) for value in values]
    alike = [words.count(word) > 1 for word in words]
    return [static_word(value, True) if same else word for value, word, same in zip(values, words, alike)]


def _closure_word(function: Callable, whole: bool) -> str:
    """A function that another one has made: its maker without "_schedule", and the numbers that it was made with."""
    maker = function.__qualname__.rpartition(".<locals>.")[0].rpartition(".")[2]
    cells = (
        dict(zip(function.__code__.co_freevars, function.__closure__ or ())) if hasattr(function, "__code__") else {}
    )
    held = {name: cell.cell_contents for name, cell in cells.items() if filled(cell)}
    made_by = getattr(sys.modules.get(function.__module__), maker, None)
    defaults = {name: inspect.Parameter.empty for name in held}
    if inspect.isfunction(made_by):
        defaults = {name: p.default for name, p in inspect.signature(made_by).parameters.items() if name in held}
    kept = [name for name, default in defaults.items() if repr(held[name]) != repr(default)]
    shown = [text for name in kept if (text := _held_word(held[name], whole))]
    if not shown:
        return function.__name__
    kind = maker.removesuffix("_schedules").removesuffix("_schedule").removesuffix("_decay")
    return f"{kind}({', '.join(shown if whole else shown[:1])})"


def _held_word(value: Any, whole: bool) -> str:
    """Text of what a schedule was made with; "" for anything but numbers, schedules and lists of them."""
    if isinstance(value, (list, tuple)):
        return ", ".join(filter(None, (_held_word(one, whole) for one in value)))
    if hasattr(value, "shape"):
        return value_word(np.asarray(value).item()) if np.size(value) == 1 else ""
    if inspect.isfunction(value):
        return static_word(value, whole)
    return value_word(float(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else ""
