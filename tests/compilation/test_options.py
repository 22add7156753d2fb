"""Python's garbage collector waits while programs are traced, and is afterwards what it was before."""

import gc

import jax.numpy as jnp
import pytest

import jaxsign as js
from jaxsign.compilation import collecting_later


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    gc.enable()


@collecting_later()
def failing():
    with collecting_later():
        assert not gc.isenabled()
    assert not gc.isenabled()
    raise KeyError


def test_it_waits_inside_and_goes_on_after_an_error_too():
    with pytest.raises(KeyError):
        failing()
    assert gc.isenabled()


def test_a_user_who_has_switched_it_off_finds_it_off():
    gc.disable()
    with collecting_later():
        pass
    assert not gc.isenabled()


def test_a_sweep_traces_without_it_trains_with_it_and_leaves_it_on(problem):
    seen = {}

    def watched(*given):
        seen["traced"] = gc.isenabled()
        return jnp.zeros(())

    sweep = js.Sweep(
        system=js.two_layer, problem=problem, hyper=js.Hyper(2.0), axes={"seed": 1}, steps=2, record=1,
        optimizers={"sign_gd": js.sign_gd(1e-3)}, observables=["train_loss", watched],
    )  # fmt: skip
    js.run_sweep(sweep)
    assert seen == {"traced": False}
    assert gc.isenabled()
