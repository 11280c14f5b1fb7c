"""What the README shows is what happens."""

import re
from pathlib import Path

import pytest

from kimiajax.data.synthetic import write_synthetic_scans

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    write_synthetic_scans(
        tmp_path / "runs/demo/scans.h5", num_scans=3, patch_size=80, grid=(4, 4), test_patches=(2, 3), seed=5
    )
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(compile(example, "README.md", "exec"), {})
    assert 0 <= float(capsys.readouterr().out) <= 1


def test_flags_of_the_readme_exist(capsys):
    from dataclasses import fields

    from kimiajax.config import ParityConfig, TableConfig, flag
    from weights_convert.__main__ import main as weights_convert

    known = {flag(field.name) for config in (TableConfig, ParityConfig) for field in fields(config)}
    with pytest.raises(SystemExit):
        weights_convert(["torch", "--help"])
    known |= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    shown = set(re.findall(r"(?<=[ `])--[a-z0-9-]+", README))
    assert {"--rows", "--require", "--fold-scale"} <= shown
    assert shown <= known
