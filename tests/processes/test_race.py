"""Races: a fault that is planted into a contender ends INVALID or is refused, and no ratio is printed of it."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import race, suite
from benchmarks.compare import compare
from benchmarks.race import OURS, Case, Contender
from benchmarks.show import line_of, lines_of
from benchmarks.workloads import features
from kimiajax.cli.main import main
from kimiajax.errors import UserError


def contender(name, **options):
    return Contender(name, "tests.processes.contenders", None, tuple(options.items()))


def write(folder):
    rng = np.random.default_rng(0)
    np.savez(folder / "matrices.npz", a=rng.standard_normal((20, 30)), b=rng.standard_normal((30, 10)))


def case_of(*contenders, **options):
    return Case(
        **{
            "workload": "product",
            "settings": {"rows": 20},
            "amount": 20,
            "unit": "rows",
            "contenders": contenders,
            "tolerance": {"product": 1e-9},
            "write": write,
            "judge": contender("judge"),
            "target": 1.5,
        }
        | options
    )


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    monkeypatch.setattr(race, "TURN", 0.02)


def run(*contenders, rounds=3, **options):
    result = race.race(case_of(*contenders, **options), rounds)
    return result, {each["name"]: each for each in result["contenders"]}


def test_contenders_that_agree_take_turns_and_give_a_ratio_with_every_sample():
    ours, slow, slower = contender(OURS), contender("slow", pause=0.03), contender("slower", pause=0.06)
    result, shown = run(ours, slow, slower)
    assert (result["best_peer"], result["verdict"]) == ("slow", "ok")
    assert 1.5 < result["ratio"]["low"] <= result["ratio"]["median"] <= result["ratio"]["high"] < 4
    assert [len(each["turns"]) for each in shown.values()] == [3, 3, 2]  # the slower one cannot be the best any more
    assert set(shown[OURS]["phases"]) == {"import", "prepare", "first_run"}
    assert shown[OURS]["error"] == {"product": 0}
    assert "ok" in line_of(result)
    assert "slow" in line_of(result)
    assert [line.split()[0] for line in lines_of(result)] == [OURS, "slow", "slower"]


def test_a_peer_that_is_faster_is_below_target_and_an_absent_one_is_absent():
    result, shown = run(contender(OURS), contender("fast", pause=0.005), Contender("gone", "x", environment="gone"))
    assert result["verdict"] == "below target"
    assert shown["gone"]["state"] == "absent"
    assert run(contender(OURS), rounds=1)[0]["verdict"] == "no peer"


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("other weights", "product is .* from the judge's"),
        ("not awaited", "the run was not awaited"),
        ("not finite", "product is not finite"),
    ],
)
@pytest.mark.parametrize("whose", [OURS, "peer"])
def test_a_fault_of_either_side_is_invalid_and_gives_no_ratio(fault, why, whose):
    given = {name: contender(name, **({"fault": fault} if name == whose else {})) for name in (OURS, "peer")}
    result, shown = run(*given.values())
    assert (result["verdict"], result["ratio"]) == ("INVALID", None)
    assert shown[whose]["state"] == "INVALID"
    assert re.search(why, shown[whose]["why"])
    assert "INVALID" in line_of(result)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("second configuration", "RuntimeError: a process measures one configuration"),
        ("no start", "RuntimeError: no such device"),
        ("dies later", "RuntimeError: fell over"),
    ],
)
def test_a_contender_that_fails_is_named_with_its_last_words(fault, why):
    result, shown = run(contender(OURS), contender("peer", fault=fault))
    assert shown["peer"]["state"] == "failed"
    assert why in shown["peer"]["why"]
    assert result["verdict"] == "no peer"
    assert run(contender(OURS, fault=fault), contender("peer"))[0]["verdict"] == "INVALID"


def test_outputs_of_another_shape_are_invalid():
    assert "has shape" in run(contender(OURS), contender("peer", rows=3))[1]["peer"]["why"]


def test_long_work_takes_no_more_rounds_than_it_says():
    result, _ = run(contender(OURS), contender("peer"), rounds=3, once=True, most_rounds=1)
    assert [len(each["turns"]) for each in result["contenders"]] == [1, 1]


def test_work_that_is_done_once_is_timed_from_the_start_of_its_process():
    result, shown = run(contender(OURS), contender("peer", pause=0.5), rounds=2, once=True)
    assert result["verdict"] in ("ok", "below target")
    assert [len(each["turns"]) for each in shown.values()] == [2, 2]
    assert min(turn for (turn,) in shown["peer"]["turns"]) > 0.5


def test_a_contender_that_is_stopped_does_not_outlive_its_parent(tmp_path):
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom benchmarks import race\nfrom tests.processes import test_race\n"
        "case = test_race.case_of(test_race.contender(race.OURS))\nfolder = Path(sys.argv[1])\n"
        "test_race.write(folder)\nprocess = race._Process(case.contenders[0], case, folder)\nprocess.answer()\n"
        "process.pause()\nprint(process.process.pid, flush=True)\nos._exit(0)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=race.ROOT, env={**os.environ, "PYTHONPATH": "tests"}
    )
    assert done.returncode == 0, done.stderr
    status, until = Path(f"/proc/{int(done.stdout)}/stat"), time.monotonic() + 10
    while status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_judge_that_fails_ends_the_race():
    with pytest.raises(SystemExit, match=r"the judge failed: .*no such device"):
        run(contender(OURS), judge=contender("judge", fault="no start"))


@pytest.mark.parity
def test_features_with_a_wrong_constant_or_without_bias_are_invalid_and_as_they_are_valid(monkeypatch):
    faults = [contender(fault, fault=fault, conv="fast") for fault in ("wrong constant", "missing bias")]
    honest = replace(contender(OURS, conv="fast"), module="benchmarks.workloads.features")
    monkeypatch.setattr(features, "PEERS", ())
    case = features.case("vgg16", 32, 2, "float32")
    shown = race.race(replace(case, contenders=(honest, *faults)), 1)["contenders"]
    assert [each["state"] for each in shown] == ["valid", "INVALID", "INVALID"], shown
    assert all("from the judge's" in each["why"] for each in shown[1:])


@pytest.fixture
def records(monkeypatch, tmp_path, capsys):
    """Two records of `kimiajax bench`, the second twice as fast."""
    paths = []
    for pause in (0.04, 0.02):
        case = case_of(contender(OURS, pause=pause), contender("peer"))
        monkeypatch.setattr("benchmarks.workloads.svm.cases", lambda full, case=case, **given: [case])
        paths.append(tmp_path / f"{pause}.json")
        assert main(["bench", "svm", "--rounds", "4", "--out", str(paths[-1])]) == 0
        assert "no peer" in capsys.readouterr().out
    return paths


def test_records_are_compared_and_noise_is_no_difference(records, capsys):
    assert main(["bench", "compare", *map(str, records)]) == 0
    assert "times as fast" in capsys.readouterr().out
    assert main(["bench", "compare", str(records[0]), str(records[0])]) == 0
    assert "no difference" in capsys.readouterr().out
    assert main(["bench", "compare", *map(str, reversed(records))]) == 0
    assert "slower: takes" in capsys.readouterr().out


def test_records_of_other_hardware_or_no_records_are_refused(records, capsys, tmp_path):
    before, after = (json.loads(path.read_text()) for path in records)
    after["environment"]["processor"] = "another"
    with pytest.raises(UserError, match="of different hardware"):
        compare(before, after)
    (tmp_path / "none.json").write_text("[]")
    assert main(["bench", "compare", str(records[0]), str(tmp_path / "none.json")]) == 2
    assert "none.json: no record" in capsys.readouterr().err


def test_the_command_ends_with_1_where_a_race_is_invalid(monkeypatch):
    case = case_of(contender(OURS), contender("peer", fault="other weights"))
    monkeypatch.setattr("benchmarks.workloads.svm.cases", lambda full, **given: [case])
    assert suite.main(["svm", "--peers", "all", "--rounds", "1"]) == 1
    assert suite.main(["svm", "--rounds", "1"]) == 0
