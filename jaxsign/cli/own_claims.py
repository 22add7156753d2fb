"""Which claims of the user's own does a Python file hold, and which of them fail on what results?"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jaxsign.claims.catalogue import CLAIMS
from jaxsign.claims.claim import Claim
from jaxsign.cli.experiment import load_file
from jaxsign.validation.messages import say
from jaxsign.validation.values import known, one_line

if TYPE_CHECKING:
    import xarray as xr

    from jaxsign.claims.verdicts import OnDefect


class Broken:
    """Claims of a file that have failed, each named on stderr with the results that it failed on.

    Args:
      file: the file of claims; None: claims of jaxsign, whose defects are raised.
      named: {name of a results directory: Dataset}.
    """

    def __init__(self, file: str | None, named: "Mapping[str, xr.Dataset]") -> None:
        self.file = file
        self.named = named
        self.lines: list[str] = []

    @property
    def on_defect(self) -> "OnDefect | None":
        """What is called where a claim fails; None: the failure is raised."""
        return None if self.file is None else self._note

    def _note(self, ds: "xr.Dataset", words: str) -> None:
        names = [name for name, one in self.named.items() if one is ds] or ["several sweeps side by side"]
        self.lines.append(f"{self.file}: on {names[0]}: {words}")
        say(self.lines[-1])
        if len(self.lines) == 1 and len(self.named) > 1:
            say("system='NAME' in a claim makes it one about that task alone, settings=(...) about some settings")


def load_claims(file: str | None, ids: list[str] | None = None) -> list[Claim] | None:
    """The claims of a file's list CLAIMS, or those of jaxsign without a file.

    Args:
      file: path of a Python file with a list `CLAIMS` of `js.Claim`, and of ids of claims of jaxsign; or None.
      ids: only these of them; None: all.

    Returns:
      The claims in order; None for all of jaxsign's.

    Raises:
      ValueError: for a file that cannot be loaded or holds no such list, two claims of one id, or an unknown id.
    """
    of_package = {claim.id: claim for claim in CLAIMS}
    if file is None:
        return None if ids is None else [of_package[known("claim", name, of_package)] for name in ids]
    given = getattr(load_file(file), "CLAIMS", None)
    if not isinstance(given, (list, tuple)) or not given:
        raise ValueError(f"{file!r} must define CLAIMS = [...] with at least one js.Claim, got {one_line(given)}")
    chosen: dict[str, Claim] = {}
    for one in given:
        if not isinstance(one, (Claim, str)):
            raise ValueError(f"CLAIMS of {file!r} must hold js.Claim or ids of jaxsign's claims, got {one_line(one)}")
        claim = of_package[known("claim", one, of_package)] if isinstance(one, str) else one
        if claim.id in chosen:
            raise ValueError(f"CLAIMS of {file!r} must have different ids, got two of {claim.id!r}")
        if isinstance(one, Claim) and claim.id in of_package:
            raise ValueError(f"CLAIMS of {file!r} must not use the id of a claim of jaxsign, got {claim.id!r}")
        chosen[claim.id] = claim
    return list(chosen.values()) if ids is None else [chosen[known("claim", name, chosen)] for name in ids]
