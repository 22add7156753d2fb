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


def test_an_option_that_an_experiment_does_not_read_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(experiment, "run_sweep", lambda sweep, out, **options: None)
    made = SimpleNamespace(size=1, schedule=SimpleNamespace(steps=1))
    main = js.sweep_cli(lambda args: {str(args.seeds or args.tiny): made})
    for options in (["--seeds", "3"], ["--tiny"], ["--seeds", "3", "--quiet"]):
        assert main(["--out", str(tmp_path), *options]) == 0
    capsys.readouterr()
    for option, value in (("--engine", "dense"), ("--data-dir", "/nope"), ("--steps", "7")):
        assert main(["--out", str(tmp_path), option, value]) == 2
        assert f"{option} would have no effect: this experiment does not read it\n" in capsys.readouterr().err
    whole = js.sweep_cli(lambda args: {"a": made} if vars(args) else {})
    assert whole(["--out", str(tmp_path), "--engine", "dense"]) == 0


def test_keys_of_build_are_names_of_folders(tmp_path, capsys):
    for key in ("..", "a/b", "", 3):
        assert js.sweep_cli(lambda args, key=key: {key: None, "b": None})(["--out", str(tmp_path)]) == 2
        assert f"keys of build must be names of folders, got {key!r}\n" in capsys.readouterr().err
