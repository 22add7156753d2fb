"""What the whole suite shares: strict JAX on two CPU devices, one compilation cache, small inputs, a NumPy oracle."""

import atexit
import contextlib
import gc
import os
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsign as js
from jaxsign.store import checkpoints, results
from jaxsign.sweep import progress
from jaxsign.systems.two_layer.data import TestSet

# The tests' small programs are compiled far longer than they run: without LLVM's optimisations in half of the time, and
# with XLA's older emitters, which make worse code, in a fifth of it; undivided, since every core has its own tests, a
# seventh faster again. `make test-slow` compiles as users do; to do the same here, set
# XLA_FLAGS=--xla_backend_optimization_level=3.
LEVEL = "--xla_backend_optimization_level"
if LEVEL not in os.environ.get("XLA_FLAGS", ""):
    quick = f"{LEVEL}=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}".strip()

# One persistent cache for every process: pytest-xdist's workers and subprocesses inherit the variables, and the process
# that made the folder, the one that found no variable set, removes it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxsign-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# A process that is killed while it writes leaves half of a program there, and others compile it, with a warning. Tests
# that read a subprocess's stderr are not about it (pyproject.toml says the same for this process).
os.environ["PYTHONWARNINGS"] = "ignore:Error reading persistent compilation cache"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

# Tests compare what a sweep says on stderr. Its progress would be a part of that on slow machines only.
progress.FIRST_LINE = float("inf")
# So would be the cores of a machine that has more than two.
progress.idle_cores = lambda: ""
# Damaged results are read twice, some 300 times in the suite. No sweep takes longer than this to replace metadata.
results.RETRY_AFTER = 0.05
# Tracing makes and drops many small objects among the millions that JAX keeps: looked through less often.
gc.set_threshold(50_000, 20, 50)

X64 = os.environ.get("JAXSIGN_TEST_X64") == "1"
jax.config.update("jax_enable_x64", X64)
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_collection_modifyitems(config, items):
    """With JAXSIGN_TEST_X64=1 tests marked x64 run; otherwise all but x64(only=True), the longest of them first."""

    def belongs(item):
        mark = item.get_closest_marker("x64")
        return mark is not None if X64 else not (mark and mark.kwargs.get("only"))

    config.hook.pytest_deselected(items=[item for item in items if not belongs(item)])
    items[:] = [item for item in items if belongs(item)]
    items.sort(key=lambda item: item.path.name != "test_x64.py")


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps():
    """Drops compiled programs between files: XLA may crash where they use up the process's memory maps (jax #27201).

    Not before they are needed, since what is dropped is traced and compiled again.
    """
    yield
    maps, limit = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
    if maps.exists() and limit.exists() and maps.read_text().count("\n") > 0.55 * int(limit.read_text()):
        jax.clear_caches()


@pytest.fixture(scope="session")
def eps():
    """Rounding of the default float: tolerances are multiples of it."""
    return float(jnp.finfo(jnp.zeros(()).dtype).eps)


@pytest.fixture(scope="session")
def problem():
    """The one small problem of the suite: its programs are compiled once."""
    return js.Problem(n=6, d=60, s=5, m_k=4, m_v=3, n_test=16)


@pytest.fixture(scope="session")
def hyper():
    """Its numbers, as arrays like those that `js.train` passes on: the same programs, hence cached ones."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.zeros(()).dtype), js.Hyper(sigma_p=2.0, mu=1.0, sigma_0=0.05)
    )


@pytest.fixture
def killed_at_a_checkpoint(monkeypatch):
    """A context in which a sweep ends right after its first checkpoint, as a killed process does."""

    class Killed(Exception):
        pass

    save = checkpoints.save

    def killed(*arguments):
        save(*arguments)
        raise Killed

    @contextlib.contextmanager
    def sweeps_end():
        monkeypatch.setattr(checkpoints, "save", killed)
        with pytest.raises(Killed):
            yield
        monkeypatch.undo()

    return sweeps_end


class Oracle:
    """The two-layer system in float64 NumPy loops, written from the paper's formula; and random inputs for it."""

    @staticmethod
    def draw(problem, seed, *, sigma_p=2.0, mu=1.0, sigma_0=0.3, alpha=0.0, label_noise=0.0):
        """(params, data, test) drawn by NumPy: disjoint supports where the problem says so, all in default floats."""
        rng = np.random.default_rng(seed)
        p, dtype = problem, jnp.zeros(()).dtype
        patches = p.n * p.patches
        if p.supports == "disjoint":
            support = rng.permutation(np.arange(1, p.d))[: patches * p.s].reshape(patches, p.s)
        else:
            support = np.stack([rng.choice(np.arange(1, p.d), p.s, replace=False) for _ in range(patches)])
        y = rng.choice([-1.0, 1.0], p.n)
        xi = np.zeros((patches, p.d))
        np.put_along_axis(xi, support, sigma_p * rng.standard_normal(support.shape), 1)
        xi[:, 0] = -alpha * mu * np.repeat(y, p.patches)
        params = js.Params(
            *(
                jnp.asarray(sigma_0 * rng.standard_normal(shape), dtype)
                for shape in ((p.rows, p.d), (p.rows, p.d), (2, p.m_v, p.d))
            ),
            heads=p.heads,
        )
        data = js.Dataset(
            basis=jnp.asarray(np.concatenate([np.eye(1, p.d), xi]), dtype),
            support=jnp.asarray(support.reshape(p.n, p.patches, p.s), jnp.int32),
            y=jnp.asarray(np.where(rng.random(p.n) < label_noise, -y, y), dtype),
            y_clean=jnp.asarray(y, dtype),
            signal_slot=jnp.asarray(rng.integers(0, p.context, p.n), jnp.int32),
            mu=jnp.asarray(mu, dtype),
            weight=jnp.full(p.n, 1 / p.n, dtype),
        )
        shape = (p.n_test, p.patches, p.s)
        indices = np.stack([rng.choice(np.arange(1, p.d), p.s, replace=False) for _ in range(p.n_test * p.patches)])
        test = TestSet(
            indices=jnp.asarray(indices.reshape(shape), jnp.int32),
            values=jnp.asarray(sigma_p * rng.standard_normal(shape), dtype),
            y=jnp.asarray(rng.choice([-1.0, 1.0], p.n_test), dtype),
            mu=jnp.asarray(mu, dtype),
            alpha=jnp.asarray(alpha, dtype),
        )
        return params, data, test

    @staticmethod
    def inputs(data):
        """(n, context, d) inputs: the signal patch in its slot, the noise patches elsewhere in order."""
        noise = np.asarray(data.basis)[1:].reshape(*data.support.shape[:2], -1)
        n, patches, d = noise.shape
        x = np.zeros((n, patches + 1, d), noise.dtype)
        for i in range(n):
            waiting = list(noise[i])
            for slot in range(patches + 1):
                if slot == int(data.signal_slot[i]):
                    x[i, slot, 0] = data.y_clean[i] * data.mu
                else:
                    x[i, slot] = waiting.pop(0)
        return x

    @staticmethod
    def dense(test, d):
        """(n_test, context, d) inputs of a sparse test set, signal first."""
        indices, values, y = (np.asarray(a) for a in (test.indices, test.values, test.y))
        x = np.zeros((len(y), 1 + indices.shape[1], d))
        for i in range(len(y)):
            x[i, 0, 0] = y[i] * float(test.mu)
            for patch in range(indices.shape[1]):
                for place, value in zip(indices[i, patch], values[i, patch]):
                    x[i, 1 + patch, place] += value
                x[i, 1 + patch, 0] -= float(test.alpha) * float(test.mu) * y[i]
        return x

    @staticmethod
    def attention(params, x):
        """(heads, context, context) softmax(X^T W_K^T W_Q x_l) of one example, query token first."""
        x, w_q, w_k = (np.asarray(a, np.float64) for a in (x, params.w_q, params.w_k))
        rows = len(w_q) // params.heads
        out = np.zeros((params.heads, len(x), len(x)))
        for head in range(params.heads):
            own = slice(head * rows, (head + 1) * rows)
            for query, x_l in enumerate(x):
                z = x @ (w_k[own].T @ (w_q[own] @ x_l))
                out[head, query] = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        return out

    @staticmethod
    def logit(params, x):
        """F = F_1 - F_{-1}, F_j = (1/m_v) sum_l 1^T W_{V,j} X softmax(X^T W_K^T W_Q x_l), heads summed."""
        x, w_v = np.asarray(x, np.float64), np.asarray(params.w_v, np.float64)
        total = 0.0
        for head in Oracle.attention(params, x):
            for s in head:
                for j, sign in enumerate((1, -1)):
                    total += sign * np.sum(w_v[j] @ (x.T @ s)) / w_v.shape[1]
        return total

    @staticmethod
    def loss(params, xs, ys):
        """Mean logistic loss."""
        ys = np.asarray(ys, np.float64)
        return np.mean([np.logaddexp(0, -y * Oracle.logit(params, x)) for x, y in zip(xs, ys)])

    @staticmethod
    def gradient(params, xs, ys):
        """Gradient of `loss` by hand: (w_q, w_k, w_v)."""
        w_q, w_k, w_v = (np.asarray(a, np.float64) for a in (params.w_q, params.w_k, params.w_v))
        rows, m_v = len(w_q) // params.heads, w_v.shape[1]
        v = w_v[0].mean(0) - w_v[1].mean(0)
        out = [np.zeros_like(w) for w in (w_q, w_k, w_v)]
        for x, y in zip(np.asarray(xs, np.float64), np.asarray(ys, np.float64)):
            slope = -y / (1 + np.exp(y * Oracle.logit(params, x))) / len(xs)  # dL/dF
            u = x @ v
            for head, attention in enumerate(Oracle.attention(params, x)):
                own = slice(head * rows, (head + 1) * rows)
                for query, s in enumerate(attention):
                    for a in range(len(x)):
                        dz = slope * s[a] * sum(s[b] * (u[a] - u[b]) for b in range(len(x)))
                        out[0][own] += dz * np.outer(w_k[own] @ x[a], x[query])
                        out[1][own] += dz * np.outer(w_q[own] @ x[query], x[a])
                        out[2] += slope * s[a] * x[a] * np.array([1.0, -1.0])[:, None, None] / m_v
        return out


@pytest.fixture(scope="session")
def oracle():
    return Oracle


def at_first_crossing(x, y, level):
    """Value of y where x first gets to the level, linear in x between the known y around that.

    The last axis is that of the records. NaN where x never gets there, is there from the start, or y ends before.
    """
    x, y = np.broadcast_arrays(x, np.asarray(y, float))
    there, known = x >= level, np.isfinite(y)
    later = np.arange(x.shape[-1]) >= there.argmax(-1)[..., None]
    after, before = known & later, known & ~later
    right = after.argmax(-1)[..., None]
    left = np.where(before.any(-1), x.shape[-1] - 1 - before[..., ::-1].argmax(-1), right[..., 0])[..., None]
    (x0, y0), (x1, y1) = (tuple(np.take_along_axis(a, place, -1)[..., 0] for a in (x, y)) for place in (left, right))
    with np.errstate(invalid="ignore", divide="ignore"):
        between = (y1 - y0) / (x1 - x0) * (level - x0) + y0
    value = np.where((left != right)[..., 0] & (level < x1), between, y1)
    return np.where(there.any(-1) & ~there[..., 0] & after.any(-1), value, np.nan)


def with_levels(ds, levels):
    """A made-up Dataset as runs with these levels give it: both sides of a crossing are read off between its records.

    A variable is linear in log loss between the records around the crossing at which it is known.
    """
    loss = ds["train_loss"].transpose(..., "step")
    runs, log_loss = loss.dims[:-1], np.log(np.maximum(loss.values.astype(float), 1e-300))
    out = {}
    stepped = {"step": ds["step"].astype(float), **{n: v for n, v in ds.data_vars.items() if "step" in v.dims}}
    for name, variable in stepped.items():
        spread = variable.broadcast_like(loss.isel(step=0, drop=True)).transpose(*runs, ..., "step")
        own = spread.dims[len(runs) : -1]
        fallen = -log_loss.reshape(*log_loss.shape[:-1], *[1] * len(own), -1)
        read = [at_first_crossing(fallen, spread.values, -np.log(level)) for level in levels]
        table = np.stack([np.stack(read, len(runs))] * 2, len(runs) + 1)
        if name == "step":
            reached = np.isfinite(table)
            table = np.where(reached, np.floor(np.nan_to_num(table)) + np.arange(2), -1).astype(np.int32)
        if name == "train_loss":
            table = table * 0 + np.array(levels)[:, None] * [1.001, 0.999]
        out[f"{name}_at_level"] = ((*runs, "level", "crossing", *own), table, variable.attrs)
    return ds.assign(out).assign_coords(level=list(levels), crossing=["before", "at"])
