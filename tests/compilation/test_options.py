"""The options that programs are compiled with."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxsign as js
from jaxsign.compilation.options import LEVEL, drawing_options
from jaxsign.training.start import begin

slow_options = {LEVEL: "3", "xla_cpu_use_fusion_emitters": True}


def test_draws_keep_every_bit_with_the_options_that_compile_fast(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    options = drawing_options.__wrapped__("cpu")
    assert options, "this version of XLA does not know them"
    problem = js.Problem(n=5, d=120, s=6, m_k=3, m_v=4, n_test=30)
    hyper = js.Hyper(*(jnp.asarray(x) for x in (2.0, 1.0, 0.05)))
    lowered = jax.jit(lambda key: begin(js.two_layer(problem), key, hyper)).lower(jax.random.key(3))
    fast, slow = (lowered.compile(compiler_options=chosen)(jax.random.key(3)) for chosen in (options, slow_options))
    for one, other in zip(jax.tree.leaves(fast[:3]), jax.tree.leaves(slow[:3]), strict=True):
        np.testing.assert_array_equal(one, other)
    for name, value in slow.constants.items():  # sums over draws
        np.testing.assert_allclose(fast.constants[name], value, rtol=1e-6)


def test_a_level_in_xla_flags_goes_first(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--{LEVEL}=2")
    assert drawing_options.__wrapped__("cpu") == {}
    assert drawing_options.__wrapped__("gpu") == {}
