"""Figures of runs that have nothing to show: drawn and saved, with the reason in the panel, without a warning."""

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxsign as js

#: Why there is no reading at a training loss; a warning for whoever draws it.
pytestmark = pytest.mark.filterwarnings("ignore:NaN at training loss")

OBSERVABLES = [
    "train_loss", "test_loss", "test_error", "value_noise", "query_noise", "key_noise", "query_signal", "key_signal",
    "s21", "sign_agreement",
]  # fmt: skip


@pytest.fixture(scope="module")
def base(problem):
    return js.run_sweep(
        js.Sweep(
            system=js.two_layer, problem=problem, hyper=js.Hyper(sigma_p=2.0), axes={"snr": [0.1, 1.0], "seed": 2},
            optimizers={"sign_gd": js.grid(js.sign_gd, learning_rate=[1e-3])}, steps=120, record=1, test_every=1,
            observables=OBSERVABLES,
        )
    )  # fmt: skip


def filled(ds, value, status=0):
    """The same runs with one number in every trace."""
    traces = {name: ds[name].where(False, value) for name in ds.data_vars if "step" in ds[name].dims}
    return ds.assign(traces).assign(status=ds["status"].where(False, np.int8(status)))


KINDS = {
    "diverged": lambda ds: filled(ds, np.nan, 1), "not run": lambda ds: filled(ds, np.nan, -1),
    "zero": lambda ds: filled(ds, 0.0), "negative": lambda ds: filled(ds, -1.0),
    "infinite": lambda ds: filled(ds, np.inf),
    "subnormal": lambda ds: filled(ds, 1e-320), "one record": lambda ds: ds.isel(step=[100]),
    "one record, diverged": lambda ds: filled(ds.isel(step=[100]), np.nan, 1), "constant": lambda ds: filled(ds, 0.5),
    "one seed": lambda ds: ds.isel(seed=[0]), "never tested": lambda ds: ds.assign(
        {name: ds[name].where(False) for name in ("test_error", "test_loss")}
    ), "one snr": lambda ds: ds.isel(snr=[0]),
}  # fmt: skip
DRAWINGS = {
    "loss": lambda ds, ax: js.plot.loss(ds.isel(snr=0), ax),
    "test loss": lambda ds, ax: js.plot.loss(ds.isel(snr=0), ax, "test_loss"),
    "error": lambda ds, ax: js.plot.error_at_loss(ds.isel(snr=0), ax),
    "error at one level": lambda ds, ax: js.plot.error_at_loss(ds.isel(snr=0), ax, levels=[0.5]),
    "snr": lambda ds, ax: js.plot.snr(ds, ax),
    "snr of the loss": lambda ds, ax: js.plot.snr(ds, ax, name="test_loss"),
    "query noise": lambda ds, ax: js.plot.dynamics(ds.isel(snr=0), "query_noise", ax),
    "value noise": lambda ds, ax: js.plot.dynamics(ds.isel(snr=0), "value_noise", ax),
    "phase": lambda ds, ax: js.plot.phase(ds.isel(snr=0), ax),
}


LOSSES, ERRORS = ("loss", "test loss"), ("error", "error at one level", "snr", "snr of the loss")
#: Panels that say why they are empty.
EMPTY = {
    **dict.fromkeys(["diverged", "not run"], set(DRAWINGS) - {"phase"}), "zero": LOSSES, "negative": LOSSES,
    "infinite": (*LOSSES, *ERRORS), "never tested": ("test loss", *ERRORS),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_is_drawn_and_saved_whatever_the_runs_have_come_to(base, kind):
    ds = KINDS[kind](base)
    fig, axes = plt.subplots(3, 3, figsize=(12, 9))
    for place, (name, draw) in zip(axes.flat, DRAWINGS.items()):
        ax = draw(ds, None if kind == "constant" else place)
        if kind == "constant":  # in figures of their own
            js.plot.svg(ax.figure)
            plt.close(ax.figure)
        said = " ".join(text.get_text() for text in ax.texts)
        if name in EMPTY.get(kind, ()):
            assert said.startswith("no "), (kind, name, said)
        if kind in ("diverged", "not run") and name != "phase":
            assert f"{4 if name.startswith('snr') else 2} {kind}" in said
        if kind in ("one seed", "one snr"):
            assert not said.startswith("no ")
    js.plot.svg(fig)
    plt.close(fig)


def test_panels_with_nothing_on_them_fit_into_a_grid_and_are_saved(base, tmp_path):
    fig, axes = plt.subplots(3, 3, figsize=(9, 9))
    for ax, draw in zip(axes.flat, DRAWINGS.values()):
        assert draw(KINDS["diverged"](base), ax) is ax
    fig.tight_layout()
    assert all(path.stat().st_size for path in js.plot.save(fig, tmp_path, "nothing"))
    scales = [ax.get_xscale() for ax in axes.flat]
    assert (scales[2], scales[4], axes.flat[0].get_yscale()) == ("log", "log", "log")
    low, high = sorted(axes.flat[2].get_xlim())
    assert 1e-5 < low < high < 1  # the levels that were asked for


def test_stages_of_one_record_have_no_last_change(base):
    stages = js.find_stages(base.isel(step=[100]))
    assert (stages["t_III"] == 0).all()


def test_a_single_level_is_a_point_with_its_interval(base):
    ds = base.isel(snr=0)
    ax = js.plot.error_at_loss(ds, levels=[0.5])
    (line,) = [line for line in ax.lines if line.get_label() == "SignGD"]
    at = js.at_train_loss(ds, [0.5], ["test_error"], leaps=False)["test_error"]
    assert line.get_marker() == "o"
    assert line.get_markersize() == 3
    np.testing.assert_allclose(line.get_xydata(), [[0.5, float(at.median())]])
    (interval,) = [line.get_segments()[0] for line in ax.collections]
    np.testing.assert_allclose(interval[:, 1], np.quantile(at.values, [0.05, 0.95]))


def test_points_of_several_levels_are_a_line_without_markers(base):
    ax = js.plot.error_at_loss(base.isel(snr=0), levels=[0.6, 0.5])
    (line,) = [line for line in ax.lines if line.get_label() == "SignGD"]
    assert len(line.get_xdata()) == 2
    assert line.get_marker() == "None"
