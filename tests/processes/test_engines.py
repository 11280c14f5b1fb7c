"""Both engines on eight devices, each with other data, against one device."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from eight_devices import CASES, FAULTS

from kimiajax.errors import UserError
from kimiajax.training.engines import ENGINES, JitEngine, engine_of
from kimiajax.training.steps import Plan


@pytest.fixture(scope="module")
def found(shared):
    def make(folder):
        program = [sys.executable, Path(__file__).parent / "eight_devices.py"]
        done = subprocess.run(program, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        (folder / "found.json").write_text(done.stdout.splitlines()[-1])

    return json.loads((shared("engines", make) / "found.json").read_text())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES)
def test_eight_devices_train_as_one_does(found, case, engine):
    """Two steps with momentum, dropout, mostly augmentation, and batches that do not divide; float64's own rounding."""
    assert found["devices"] == 8
    assert found[f"{case}, {engine}, float64"] < 1e-12


@pytest.mark.parametrize("engine", ENGINES)
def test_in_float32_they_do_so_to_its_rounding(found, engine):
    assert 0 < found[f"keras2017, {engine}, float32"] < 1e-6


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_shows(found, fault):
    assert found[f"fault: {fault}"] > 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_eight_devices_predict_as_one_does(found, engine):
    assert found["classes predicted"] > 1
    assert found[f"predictions, {engine}"] == 0


def test_an_unknown_engine_is_refused_with_the_valid_names():
    with pytest.raises(UserError, match="no engine 'xla'; choose from jit, pmap"):
        engine_of("xla")


@pytest.mark.parametrize(
    ("devices", "groups", "batch_size", "rows"), [(1, 1, 20, 20), (8, 1, 20, 24), (8, 1, 24, 24), (2, 3, 20, 24)]
)
def test_rows_divide_among_devices_and_groups(devices, groups, batch_size, rows):
    assert JitEngine(tuple(jax.devices()[:1] * devices)).rows(batch_size, groups) == rows


def test_a_plan_holds_every_entry_once_and_padding_apart():
    plan = Plan(33, 20, 24)
    assert (plan.steps, plan.places.shape, plan.mask.shape) == (2, (2, 24), (2, 24))
    assert [plan.places[step][plan.mask[step]].tolist() for step in (0, 1)] == [[*range(20)], [*range(20, 33)]]
    assert set(plan.places[1][~plan.mask[1]]) <= {*range(20, 33)}, "padding is of the same step"
