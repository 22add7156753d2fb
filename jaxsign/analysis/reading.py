"""How may reading a Dataset end? With an answer, with `CannotDecide`, or with an error that names what failed."""

import contextlib
from collections.abc import Iterator

from jaxsign.store.manifest import UnusableData


class CannotDecide(ValueError):
    """A Dataset cannot answer what it is asked; the message says what it lacks.

    A claim's measure or prediction raises it where runs lack a step, an axis, an observable or an optimizer: the claim
    is then listed as not decided, with this reason. Every other exception is an error in the code that reads, and
    `js.check` and `js.report` fail with it. It is a ValueError, so that `except ValueError` around `js.find_stages` or
    `js.plot` keeps its meaning.

    Examples:
      >>> import xarray as xr, jaxsign as js
      >>> try:
      ...     js.at_train_loss(xr.Dataset(), 0.1)
      ... except js.CannotDecide as reason:
      ...     print(reason)
      ds must hold the observables ['train_loss'], got a Dataset without ['train_loss']
    """


class Defect(RuntimeError):
    """Code that reads a Dataset has failed: a claim's measure or prediction, the name of a setting, or a drawing.

    It is no ValueError, which the commands print in one line as bad input: a defect shows its traceback.
    """


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Runs code that reads a Dataset; what it raises becomes a Defect that says which code it was.

    `CannotDecide` passes, and so do damaged data and a Defect that something inside has named already.

    Args:
      what: the code, such as "claim S2 in the setting theory".

    Raises:
      Defect: from the exception that was raised.

    Examples:
      >>> with reading("claim X1"):
      ...     {}["seed"]
      Traceback (most recent call last):
      jaxsign.analysis.reading.Defect: claim X1 has failed: KeyError: 'seed'
    """
    try:
        yield
    except (CannotDecide, UnusableData, Defect):
        raise
    except Exception as error:
        raise Defect(f"{what} has failed: {type(error).__name__}: {error}") from error
