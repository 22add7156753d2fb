"""An experiment of a system of one number, its results, and commands run on them."""

import jaxsign as js
from jaxsign.cli import command as cli

#: An experiment of a system of one number; `neighbour` is found only if its folder is on the path.
EXPERIMENT = """
import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

import jaxsign as js
from neighbour import SLOPES


@dataclasses.dataclass(frozen=True)
class Line:
    n: int = 4


@functools.cache
def system(problem):
    def residual(params, data, hyper):
        return params["w"] * data - hyper["slope"] * data

    def observe(params, data, test, hyper):
        gap = residual(params, data, hyper)
        return {"train_loss": jnp.mean(gap**2), "residual": gap, "count": jnp.sum(gap > 0, dtype=jnp.int32)}

    return js.Task(
        sample=lambda key, hyper, shared: 1 + jnp.arange(1.0 * problem.n),
        init=lambda key, data, hyper: {"w": jnp.zeros(())},
        loss=lambda params, data, hyper: jnp.mean(residual(params, data, hyper) ** 2),
        observe=observe, dims={"residual": ("sample",)}, name="line",
    )


def build(args):
    if args.engine:
        assert not (args.help or args.out)  # sweep_cli hands these to build as well
        raise ValueError(f"there is no engine {args.engine!r}")
    seeds = args.seeds or 3
    sweep = js.Sweep(
        system=system, problem=Line(), hyper={"slope": 1.0, "tilt": 0.5}, steps=args.steps or 6, record=2,
        optimizers={"gd": js.grid(optax.sgd, learning_rate=[0.01, 1e30]), "mine": optax.sgd(0.03)},
        axes={"slope": SLOPES, "n": [2, 4], "seed": seeds}, observables=["train_loss", "residual", "count"],
    )
    return {"line": sweep}
"""
RUNS = 2 * 2 * 3 * 3


def write(folder):
    """The experiment's file in a folder."""
    (folder / "neighbour.py").write_text("SLOPES = [1.0, 2.0]\n")
    (folder / "line.py").write_text(EXPERIMENT)
    return folder / "line.py"


def load(file):
    """The sweep of the experiment."""
    args = {"seeds": None, "steps": None, "engine": None, "tiny": False}
    return cli.load_build(str(file))(cli.argparse.Namespace(**args))["line"]


def store(sweep, folder):
    """(results of the whole sweep, results of one of its two shards)."""
    for name, shard in (("whole", None), ("half", (0, 2))):
        js.run_sweep(sweep, folder / name, shard=shard)
    return folder / "whole", folder / "half"


def run(capsys, *argv):
    """(exit status, stdout, stderr) of a command."""
    capsys.readouterr()
    try:
        status = cli.main(list(map(str, argv)))
    except SystemExit as stop:
        status = stop.code
    text = capsys.readouterr()
    return status, text.out, text.err


def refused(capsys, message, *argv, status=2):
    """A command that prints one line on stderr, with the message in it, and nothing else."""
    found, out, err = run(capsys, *argv)
    assert (found, out, err.count("\n")) == (status, "", 1), err
    assert message in err


def files(path):
    return {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in path.rglob("*") if f.is_file()}


def flip(file, place=-1):
    raw = bytearray(file.read_bytes())
    raw[place] ^= 0x10
    file.write_bytes(bytes(raw))


def chunks(path, name):
    return sorted(f for f in (path / "results.zarr" / name / "c").rglob("*") if f.is_file())
