"""Paths as users give them: whatever the system allows works, anything else is refused before something is written."""

import os
import pickle
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsign as js
from jaxsign.cli import command as cli
from jaxsign.cli.experiment import load_build
from jaxsign.store import checkpoints
from jaxsign.store.manifest import UnusableData
from jaxsign.sweep import execute as blocks
from jaxsign.validation.values import local_path


def system(problem):
    """Least squares on one point: a program of milliseconds."""

    def loss(params, data, hyper):
        return jnp.mean((params["w"] - hyper["goal"]) ** 2)

    return js.Task(
        sample=lambda key, hyper, shared: jnp.zeros(()),
        init=lambda key, data, hyper: {"w": jax.random.normal(key, (3,))},
        loss=loss,
        observe=lambda params, data, test, hyper: {"train_loss": loss(params, data, hyper)},
        name="point",
    )


def sweep(**changes):
    base = {
        "system": system, "problem": None, "hyper": {"goal": 1.0}, "steps": 20, "record": 5,
        "optimizers": {"sign_gd": js.sign_gd(1e-2)}, "axes": {"seed": 2}, "trajectory": "signs",
    }  # fmt: skip
    return js.Sweep(**(base | changes))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished results directory, to be copied."""
    out = tmp_path_factory.mktemp("finished") / "out"
    js.run_sweep(sweep(), out)
    return out


def refused(capsys, *command):
    """The one line by which a command refuses its input."""
    assert cli.main(list(map(str, command))) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def held(folder):
    """Names of everything below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("a/b", "a/b"), (b"a/b", "a/b"), (Path("a"), "a"), (".", "."), ("a/", "a"), ("$HOME/x", "$HOME/x"), (" ", " "),
        ("a\nb", "a\nb"), ("\u00fc", "\u00fc"), ("a:b", "a:b"), ("a::b", "a::b"), ("x" * 255, "x" * 255),
        ("../a", "../a"), ("new/../a", "a"), ("/dev/null", "/dev/null"), ("far/a[b]#?%*|", "far/a[b]#?%*|"),
    ],
)  # fmt: skip
def test_local_paths_are_taken_as_they_are(here, given, meant):
    assert local_path("out", given) == Path(meant)
    assert local_path("out", local_path("out", given)) == Path(meant)


def test_home_folders_are_expanded_and_nothing_else_is_taken_for_one(here, monkeypatch):
    monkeypatch.setenv("HOME", "/some/home")
    assert local_path("out", "~") == Path("/some/home")
    assert local_path("out", Path("~/x")) == Path("/some/home/x")
    for name in ("~", "~/x", "s3:/b"):  # read again, they are still the local ones
        again = local_path("out", local_path("out", f"./{name}"))
        assert again == here / name


def test_dots_after_a_link_lead_where_the_system_goes(here):
    (here / "far" / "in").mkdir(parents=True)
    (here / "link").symlink_to("far/in")
    assert local_path("out", "link/../x") == (here / "far" / "x").resolve()
    js.run_sweep(sweep(), "link/../x")
    assert held(here / "far" / "x")
    assert sorted(os.listdir(here)) == ["far", "link"]


BAD = [
    ("s3://bucket/x", "URL"), ("gs://", "URL"), ("file:///tmp/x", "URL"), ("memory://x", "URL"), ("http://", "URL"),
    (Path("s3://bucket/x"), "URL"), ("simplecache::s3://b/x", "URL"), ("C:\\x", "Windows"), ("C:/x", "Windows"),
    ("", "empty"), (b"", "empty"), (b"\xff", "UTF-8"), ("a\0b", "zero byte"), ("file/x", "Not a directory"),
    ("loop", "symbolic links"), ("loop/x", "symbolic links"), ("x" * 256, "name too long"),
    ("a/" * 3000 + "x", "name too long"), ("~no_such_user_here/x", "home directory"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "reason"), [*BAD, (5, "str, bytes or os.PathLike"), (True, "str, bytes")])
def test_what_is_no_local_path_is_refused_by_name_everywhere_and_nothing_is_written(here, value, reason):
    (here / "file").write_text("")
    (here / "loop").symlink_to("loop")
    before = held(here)
    calls = {
        "out": lambda: js.run_sweep(sweep(), value), "open": lambda: js.open_results(value),
        "trajectory": lambda: js.open_trajectory(value), "digits": lambda: js.load_digits(value),
        "report": lambda: js.report.write(value, {"x": None}), "save": lambda: js.plot.save(None, value, "x"),
        "build": lambda: load_build(value),
    }  # fmt: skip
    for call in calls.values():
        with pytest.raises(ValueError, match=rf"(?s)must be a path.*{reason}") as caught:
            call()
        assert len(str(caught.value).splitlines()) <= 1 + (value if isinstance(value, str) else "").count("\n")
    assert held(here) == before


@pytest.mark.parametrize(
    ("value", "reason"), [case for case in BAD if isinstance(case[0], str) and "\0" not in case[0]]
)
def test_commands_refuse_them_with_exit_status_2(here, finished, capsys, value, reason):
    (here / "file").write_text("")
    (here / "loop").symlink_to("loop")
    before = held(here)
    main = js.sweep_cli(lambda args: {"x": sweep()})
    assert main([f"--out={value}"]) == 2
    assert reason in capsys.readouterr().err
    for command in (
        ["status", value], ["verify", value], ["export", value, "--format", "netcdf"], ["plan", value],
        ["export", finished, "--format", "netcdf", "--out", value], ["report", finished, "--out", value],
        ["report", finished, "--out", "page.html", "--figures", value], ["claims", finished, "--csv", value],
        ["claims", finished, "--against", value],
    ):  # fmt: skip
        assert reason in refused(capsys, *command)
    assert held(here) == before


def test_results_go_below_no_other_results_and_through_no_dangling_link(here, finished):
    shutil.copytree(finished, "done")
    before = held(here)
    for inside in ("done/more", "done/results.zarr", "done/a/b"):
        with pytest.raises(ValueError, match=r"lies in the results directory '.*/done': give one beside it"):
            js.run_sweep(sweep(), inside)
    (here / "dangling").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"dangling' is a link to 'nowhere', which does not exist"):
        js.run_sweep(sweep(), "dangling")
    with pytest.raises(ValueError, match=r"at most [0-9]+ bytes"):
        js.run_sweep(sweep(), "/".join(["x" * 200] * 18))
    for special in ("/dev/null", "/proc/x"):
        with pytest.raises(ValueError, match="out must be a directory"):
            js.run_sweep(sweep(), special)
    assert held(here) == sorted([*before, "dangling"])


#: What a shell, a URL, a glob or a home directory would read as something else.
ODD = "~a[b] #?%41*|:;&'\"$HOME\\\u00fc\n{x}"


def test_any_name_holds_results_checkpoints_trajectories_exports_and_reports(here, monkeypatch, capsys):
    out = Path("gs:") / ODD / "-x"
    monkeypatch.setattr(blocks, "CALL_SECONDS", 1e-6)
    first = js.run_sweep(sweep(steps=60), here / out, checkpoint_every=1e-6)
    kept = here / out / "checkpoints" / "block-000000"
    state = {"w": np.arange(3.0), "b": np.zeros(())}
    checkpoints.save(kept, 5, state, {"x": 1})
    step, found = checkpoints.load(kept, state, {"x": 1})
    assert (step, found["w"].tolist()) == (5, [0.0, 1.0, 2.0])
    assert checkpoints.damage(here / out) == []
    again = js.run_sweep(sweep(steps=60), f"./{out}")  # removes what is left of checkpoints
    np.testing.assert_array_equal(again["train_loss"], first["train_loss"])
    assert js.open_trajectory(os.fsencode(here / out), sweep(steps=60))[1].params(7)["w"].shape == (3,)
    assert cli.main(["verify", "."]) == 0
    assert cli.main(["status", f"./{out}"]) == 0
    assert cli.main(["export", ".", "--format", "netcdf"]) == 0
    assert cli.main(["export", ".", "--format", "netcdf", "--out", f"./{ODD}.nc"]) == 0
    assert cli.main(["report", ".", "--out", f"./{ODD}.html"]) == 0
    capsys.readouterr()
    assert sorted(os.listdir(here)) == sorted([f"{ODD}.nc", f"{ODD}.html", "gs:"])
    assert "results.nc" in os.listdir(here / out)
    with pytest.raises(ValueError, match=r"folder must have a path that Orbax can read"):
        js.open_trajectory(here / out, sweep(steps=60))[0].export(7, here / "a[b]")
    assert not (here / "a[b]").exists()


def test_home_is_home_for_everything(here, tmp_path, monkeypatch, finished, capsys):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    js.run_sweep(sweep(), "~/r")
    assert js.open_results("~/r")["status"].shape == (1, 2)
    js.open_trajectory("~/r", sweep())[0].export(3, "~/exported")
    assert js.sweep_cli(lambda args: {"x": sweep()})(["--out=~/r"]) == 0
    for command in ("verify ~/r", "status ~", "export ~/r --format netcdf --out ~/r.nc", "report ~/r --out ~/r.html"):
        assert cli.main(command.split()) == 0
    from matplotlib.figure import Figure

    assert cli.main(["claims", "~/r", "--csv", "~/t.csv"]) == 0
    capsys.readouterr()
    assert "would replace the table" in refused(
        capsys, "claims", "~/r", "--csv", "~/t.csv", "--against", home / "t.csv"
    )

    figure = Figure()
    figure.subplots().plot([1, 2])
    assert js.plot.save(figure, "~/figures", "x")[0] == home / "figures" / "x.png"
    with pytest.raises(ValueError, match=f"^{re.escape(str(home))}/nowhere/train-images"):
        js.load_digits("~/nowhere")
    assert sorted(os.listdir(home)) == ["exported", "figures", "r", "r.html", "r.nc", "t.csv"]
    assert held(here) == []
    capsys.readouterr()


def test_a_changed_current_folder_changes_nothing(here, monkeypatch):
    made = js.run_sweep(sweep(), "r")
    ds, trajectory = js.open_results("r"), js.open_trajectory("r", sweep())
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert np.isfinite(made["train_loss"]).all()
    assert np.isfinite(ds["train_loss"]).all()
    assert trajectory[1].params(9)["w"].shape == (3,)


def test_names_as_long_as_names_can_be(here, finished, capsys):
    for suffix, command in ((".nc", ["export", finished, "--format", "netcdf"]), (".html", ["report", finished])):
        name = "x" * (255 - len(suffix)) + suffix
        assert cli.main([*map(str, command), "--out", name]) == 0
        assert cli.main([*map(str, command), "--out", name]) == 0  # an earlier one is replaced
        assert os.listdir(here) == [name]
        os.remove(name)
    name = "x" * 251 + ".csv"
    assert cli.main(["claims", str(finished), "--csv", name]) == 0
    assert os.listdir(here) == [name]
    os.remove(name)
    shutil.copytree(finished, "x" * 255)
    assert cli.main(["verify", "."]) == 0
    capsys.readouterr()
    for name in ("x" * 252, "a/b", ""):
        with pytest.raises(ValueError, match="name must be a file name of at most 250 bytes without a folder"):
            js.plot.save(None, "figures", name)
    assert not (here / "figures").exists()


def test_links_to_files_are_written_through_and_pipes_are_not_waited_for(here, finished, capsys):
    for name, command in (("x.nc", ["export", finished, "--format", "netcdf"]), ("x.html", ["report", finished])):
        command = [*map(str, command), "--out"]
        (here / "far").mkdir(exist_ok=True)
        assert cli.main([*command, f"far/{name}"]) == 0
        before = os.stat(f"far/{name}").st_ino
        (here / name).symlink_to(f"far/{name}")
        assert cli.main([*command, name]) == 0
        assert (here / name).is_symlink()
        assert os.stat(f"far/{name}").st_ino != before
        os.mkfifo(f"pipe.{name}")
        capsys.readouterr()
        assert "is not a" in refused(capsys, *command, f"pipe.{name}")
    assert sorted(os.listdir("far")) == ["x.html", "x.nc"]


def test_linked_results_are_read_once_each_under_the_name_given(here, finished, capsys):
    shutil.copytree(finished, "scratch/a")
    shutil.copytree(finished, "scratch/more/c")
    shutil.copytree(finished, "runs/b")
    for link, target in {
        "a": "../scratch/a", "again": "../scratch/a", "z": "b", "more": "../scratch/more", "up": "..", "loop": "loop",
        "gone": "../nowhere",
    }.items():  # fmt: skip
        (here / "runs" / link).symlink_to(target)
    assert cli.main(["verify", "runs"]) == 0
    said = capsys.readouterr()
    assert [line.split(":")[0] for line in said.out.splitlines()] == [
        "runs/a",
        "runs/b",
        "runs/more/c",
        "3 of 3 directories are good",
    ]
    assert [line.split(": ")[0] for line in said.err.splitlines()] == ["runs/gone", "runs/loop"]
    assert "left out: a link to '../nowhere' that cannot be read" in said.err
    assert cli.main(["report", "runs", "--out", "page.html"]) == 0
    assert "3 sweeps" in capsys.readouterr().out
    page = (here / "page.html").read_text()
    assert all(f"runs/{name}" in page for name in ("a", "b", "more/c"))
    shutil.rmtree("runs/b")
    for name in ("again", "z", "more", "up", "loop", "gone"):
        (here / "runs" / name).unlink()
    assert cli.main(["status", "runs"]) == 0  # with nothing but a link
    assert capsys.readouterr().out.startswith("runs/a\n")


def test_names_that_are_no_text_are_found_and_shown(here, finished, capsys):
    shutil.copytree(finished, os.fsdecode(b"runs/\xff"))
    assert cli.main(["verify", "runs"]) == 0
    assert "runs/\\udcff: good" in capsys.readouterr().out


#: Two runs a block.
SMALL = {"lane_width": 1, "memory": 100}


@pytest.fixture
def opened(tmp_path):
    """A results directory of three chunks a variable, and it opened."""
    out = tmp_path / "out"
    js.run_sweep(sweep(axes={"seed": 5}, trajectory=None), out, **SMALL)
    assert len(list(out.glob("results.zarr/train_loss/c/0/*"))) == 3
    return out, js.open_results(out)


def test_a_lost_chunk_is_an_error_while_results_are_open(opened):
    out, ds = opened
    copied = pickle.loads(pickle.dumps(ds))
    for name in ("train_loss", "status"):
        file = sorted(f for f in out.glob(f"results.zarr/{name}/c/**/*") if f.is_file())[0]
        file.rename(out.parent / "lost")
        for one in (ds, copied):
            with pytest.raises(UnusableData, match=rf"^{file} is missing, although its runs are stored"):
                one[name].copy().load()
        (out.parent / "lost").rename(file)
    assert np.isfinite(ds["train_loss"].values).all()


def test_moved_removed_and_replaced_results_are_errors_while_they_are_open(opened):
    out, ds = opened
    out.rename(out.parent / "moved")
    with pytest.raises(UnusableData, match=rf"^{out}/results.zarr was moved or removed while its results were open"):
        ds["train_loss"].copy().load()
    shutil.copytree(out.parent / "moved", out)
    with pytest.raises(UnusableData, match=rf"^{out}/results.zarr was replaced while its results were open"):
        ds["status"].copy().load()
    shutil.rmtree(out)
    (out.parent / "moved").rename(out)
    assert np.isfinite(ds["train_loss"].values).all()


def test_runs_that_have_not_run_read_as_that_also_when_they_run_meanwhile(tmp_path):
    made, out = sweep(axes={"seed": 5}, trajectory=None), tmp_path / "out"
    js.run_sweep(made, out, shard=(0, 2), **SMALL)
    ds = js.open_results(out)
    status = ds["status"].copy().values
    assert sorted(set(status.ravel().tolist())) == [-1, 0]
    np.testing.assert_array_equal(np.isnan(ds["train_loss"].copy().values).any(-1), status == -1)
    js.run_sweep(made, out, **SMALL)
    assert np.isfinite(ds["train_loss"].copy().values).all()
    number = np.flatnonzero(status.ravel() == -1)[0]  # one that was stored after the results were opened
    chunk = ds["status"].encoding["chunks"][-1]
    shutil.rmtree(out / "results.zarr" / "train_loss" / "c" / "0" / str(number // chunk))
    with pytest.raises(UnusableData, match="is missing, although its runs are stored"):
        ds["train_loss"].copy().load()
