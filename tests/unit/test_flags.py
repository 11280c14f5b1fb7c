"""Flags made of settings: groups as headings, defaults told once, no None."""

from contextlib import nullcontext

import pytest

from kimiajax.cli import flags
from kimiajax.experiments.config import PRESETS, QUICK, TableConfig
from kimiajax.experiments.sweep_config import SWEEPS, SweepConfig
from kimiajax.runs.layout import NO_RESULT


def help_of(capsys, kind, default):
    with pytest.raises(SystemExit):
        flags.parse(kind, "table quick", "", ["--help"], default)
    return capsys.readouterr().out


@pytest.mark.parametrize(("kind", "default"), [(TableConfig, QUICK), (SweepConfig, SWEEPS["quick"][1])])
def test_the_help_is_grouped_and_knows_no_none(capsys, kind, default):
    told = help_of(capsys, kind, default)
    assert "None" not in told
    for group in vars(default):
        assert f"{group} options " in told
    assert "--scans PATH" in told
    assert "--patches-per-scan INT|{all}" in told
    assert "Training patches drawn from each scan. (default: 20)" in " ".join(told.replace("│", " ").split())


def test_a_parser_without_the_rule_would_show_none(capsys, monkeypatch):
    monkeypatch.setattr(flags, "REGISTRY", nullcontext())
    assert "{None}" in help_of(capsys, TableConfig, QUICK)


@pytest.mark.parametrize("preset", PRESETS)
def test_flags_change_the_settings_of_their_name_and_no_others(preset):
    default = PRESETS[preset][1]
    assert flags.parse(TableConfig, "table", "", [], default) == default
    given = ["--epochs", "3", "--scans", "a.h5", "--no-cache-frozen", "--patches-per-scan", "all", "--rows", "cnn"]
    changed = {"epochs": 3, "cache_frozen": False, "patches_per_scan": "all", "rows": ("cnn",)}
    parsed = flags.parse(TableConfig, "table", "", given, default)
    assert parsed.as_dict() == {**default.as_dict(), **changed, "scans": "a.h5"}
    assert parsed == default.replace(**changed, scans=parsed.data.scans)


def test_what_changes_no_result_is_a_setting():
    assert set(NO_RESULT) <= QUICK.as_dict().keys()


def test_a_setting_of_no_group_is_refused():
    with pytest.raises(TypeError, match="no settings of a table: epoch"):
        QUICK.replace(epoch=3)


def test_a_setting_that_must_be_given_is_asked_for(capsys):
    from kimiajax.parity.config import ParityConfig

    with pytest.raises(SystemExit):
        flags.parse(ParityConfig, "parity", "", [])
    assert "--reference" in capsys.readouterr().err
