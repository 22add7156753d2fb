"""Tests that run the same few sweeps again and again keep their programs."""

import sys
from collections.abc import Callable

import pytest

from jaxsign.sweep import programs
from jaxsign.trajectories import reader


def kept_programs(*modules: str) -> Callable:
    """A fixture for a file: programs of systems in these modules are kept like those of packages.

    A user's functions are traced and compiled anew for every sweep, since what they read may have changed. Those in
    the modules must read nothing that changes; what a sweep computes and stores is the same then.
    """

    @pytest.fixture(scope="module", autouse=True)
    def keeping():
        contents = sys.modules["jaxsign.compilation.content"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(contents, "TRUSTED", (*contents.TRUSTED, *modules))
            for module in (programs, reader):
                patch.setattr(module, "drawing", programs._cached_drawing)
            yield

    return keeping
