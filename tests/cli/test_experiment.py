"""What an experiment's command says of its folder before it runs."""

from types import SimpleNamespace

import jaxsign as js
from jaxsign.cli import experiment


def test_results_of_another_experiment_in_the_folder_are_named(tmp_path, capsys, monkeypatch):
    ran = []
    monkeypatch.setattr(experiment, "run_sweep", lambda sweep, out, **options: ran.append(out))
    made = SimpleNamespace(size=1, schedule=SimpleNamespace(steps=1))
    several, one = js.sweep_cli(lambda args: {"a": made, "b": made}), js.sweep_cli(lambda args: {"a": made})

    def said(main):
        assert main(["--out", str(tmp_path)]) == 0
        return capsys.readouterr().err

    def holds(*names):
        for name in names:
            (tmp_path / name).mkdir()
            (tmp_path / name / "manifest.json").write_text("{}")

    holds("a")
    (tmp_path / "figures").mkdir()
    assert not said(several)
    holds("kernels")
    assert f"{tmp_path} also holds kernels: not of this experiment" in said(several)
    assert not said(one)  # its results are the folder itself
    holds("w", "x", "y", "z")
    assert "also holds kernels, w, x and 2 more" in said(several)
    assert ran == [tmp_path / "a", tmp_path / "b"] * 2 + [tmp_path] + [tmp_path / "a", tmp_path / "b"]
