"""Curves around a table: which places are run, of which rows, none twice, and what is told of them."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kimiajax.cli.main import main
from kimiajax.errors import UserError
from kimiajax.evaluation.stored import read_run
from kimiajax.experiments.sweep import Place, plan_of, run_sweep
from kimiajax.experiments.sweep_config import SweepConfig
from kimiajax.experiments.table1 import all_rows
from kimiajax.io.json_records import sealed
from kimiajax.report.sweep import render_sweep, sweep_csv, values_of
from kimiajax.runs.reader import read_results
from kimiajax.runs.sweep_file import read_sweep
from kimiajax.runtime.progress import Silent

CENTRE = {"rows": ("fe_two", "tl_two", "floor_histogram"), "patches_per_scan": 4, "augmentation": "none"}
AXES = {"patches": (2, 4), "augmentations": ("none", "strong"), "depths": (0, 1, 2, 9)}
AT_CENTRE = Place(4, "none", ("paper",))


def planned(**changes):
    config = SweepConfig().replace(**{**CENTRE, **AXES, **changes})
    rows = [row for row in all_rows() if row.name in config.output.rows]
    return {place: [row.name for row in here] for place, here in plan_of(config, rows).items()}


def test_each_axis_goes_through_the_centre_and_has_the_rows_that_it_concerns():
    assert planned() == {
        AT_CENTRE: ["fe_two", "tl_two", "floor_histogram"],
        Place(2, "none", ("paper",)): ["fe_two", "tl_two", "floor_histogram"],
        Place(4, "strong", ("paper",)): ["tl_two"],
        Place(4, "none", ("last0",)): ["tl_two"],
        Place(4, "none", ("last2",)): ["tl_two"],
    }, "last1 is what the centre trains, and the network has not nine blocks"


def test_what_the_centre_trains_is_told_from_the_same_blocks_with_other_statistics():
    blocks = planned(blocks=("adabn_only",), patches=(), augmentations=(), depths=(0, 1))
    assert [place.blocks for place in blocks] == [("adabn_only",), ("last0",), ("last1",)]


def test_crossed_axes_meet_everywhere_but_rows_that_know_no_training_stay_on_theirs():
    places = planned(crossed=True)
    assert len(places) == 2 * 2 * 3
    assert {place: rows for place, rows in places.items() if "fe_two" in rows}.keys() == {
        AT_CENTRE,
        Place(2, "none", ("paper",)),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patches": (2, 2)}, "--patches 2 2: names a value twice"),
        ({"patches": (0,)}, "--patches 0: must be 1 or more"),
        ({"depths": (-1,)}, "--depths -1: must be 0 or more"),
        ({"patches": (), "augmentations": (), "depths": ()}, "a sweep needs values to try: give --patches"),
        ({"seeds": 0}, "--seeds 0: must be 1 or more"),
        ({"manifest": Path("m.csv")}, "--patches 2 4: --manifest says which patches train"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        SweepConfig().replace(**{**CENTRE, **AXES, **changes}).validate()


def test_a_depth_that_no_network_has_is_refused(tmp_path):
    with pytest.raises(UserError, match="--depths 9: no network of these rows has so many blocks"):
        run_sweep("quick", SweepConfig().replace(**{**CENTRE, **AXES}, out=tmp_path / "out"))


def test_the_name_of_a_place_fits_into_a_folder_and_is_its_own():
    long = tuple(f"two={'one/' * 40}{number}" for number in range(2))
    names = {Place(4, "none", blocks).name for blocks in (long, long[::-1], ("paper",))}
    assert len(names) == 3
    assert max(map(len, names)) < 200


class Said(Silent):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def config(scans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return SweepConfig().replace(
        **CENTRE,
        **{**AXES, "patches": (2,), "depths": (0,)},
        scans=scans,
        out=folder / "out",
        cache=folder / "cache",
        weights=("random",),
        image_size=32,
        head_epochs=2,
        epochs=1,
        seeds=2,
        batch_size=8,
        conv="plain",
    )


@pytest.fixture(scope="module")
def swept(config):
    said = Said()
    return run_sweep("quick", config, said), said.lines


def test_curves_hold_what_the_runs_of_their_places_found(swept, config):
    results, _ = swept
    assert results["complete"]
    assert results["seeds"] == [0, 1]
    patches, augmentations, depths = results["axes"]
    assert [values_of(axis) for axis in results["axes"]] == [[2, 4], ["none", "strong"], [0, 1]]
    assert [curve["row"] for curve in patches["curves"]] == ["fe_two", "tl_two", "floor_histogram"]
    assert [curve["row"] for curve in augmentations["curves"]] == ["tl_two"]
    assert depths["curves"][0]["centre"] == 1, "the paper's blocks are the last one"
    for axis in results["axes"]:
        for curve in axis["curves"]:
            for point in curve["points"]:
                run = read_run(config.output.out / point["run"])
                right = run.correct(curve["row"]).mean(axis=1)
                assert point["by_seed"]["eta_p"] == pytest.approx(right)
                assert point["eta_p"] == pytest.approx(right.mean())
                low, high = point["intervals"]["eta_total"]
                assert low <= point["eta_total"] <= high
                assert (point["against_centre"] is None) == (point["value"] == curve["centre"])
    first, second = patches["curves"][0]["points"]
    assert (first["train"], second["train"]) == (2, 4)
    assert first["against_centre"]["difference"]["eta_p"] == pytest.approx(first["eta_p"] - second["eta_p"])


def test_heads_and_features_are_computed_once_for_all_places(swept):
    _, said = swept
    assert sum("head: found in" in line for line in said) == 2, "of strong augmentation, and of no block"
    assert any("of 8 found in" in line or "found in" in line for line in said if line.startswith("two on training"))


def test_a_sweep_that_is_finished_computes_nothing_and_a_longer_axis_only_what_is_new(swept, config):
    again = Said()
    run_sweep("quick", config, again)
    assert sum("all rows were finished before" in line for line in again.lines) == 2 * 4, "seeds and places"
    longer = Said()
    results = run_sweep("quick", config.replace(patches=(2, 3)), longer)
    assert values_of(results["axes"][0]) == [2, 3, 4]
    assert sum("all rows were finished before" in line for line in longer.lines) == 2 * 4


def test_what_is_begun_anew_and_interrupted_goes_on_and_keeps_nothing_older(swept, config, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(config.output.out, out)
    own = config.replace(out=out, augmentations=(), depths=())
    before = {place.name: read_results(place)["seal"] for place in (out / "places").iterdir()}

    class Stop(Silent):
        def say(self, text):
            if text.startswith("place 2"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep("quick", own.replace(fresh=True), Stop())
    said = Said()
    run_sweep("quick", own, said)
    assert sum("all rows were finished before" in line for line in said.lines) == 2, "seeds, of the place begun anew"
    after = {place.name: read_results(place)["seal"] for place in (out / "places").iterdir()}
    assert len(after) == 2
    assert not set(before.values()) & set(after.values())


def test_a_sweep_taken_for_a_run_is_told_to_be_one(swept, config, capsys):
    assert main(["compare", str(config.output.out), str(config.output.out)]) == 2
    assert "this is a sweep, whose runs are the folders in" in capsys.readouterr().err


def test_it_is_told_as_text_as_csv_and_as_one_page(swept, config, capsys):
    results = read_sweep(config.output.out)
    shown = render_sweep(results)
    assert "SYNTHETIC" in shown
    assert "eta_total over training patches a scan" in shown
    lines = list(csv.DictReader(sweep_csv(results).splitlines()))
    assert {(line["axis"], line["row"]) for line in lines} >= {("patches", "fe_two"), ("depths", "tl_two")}
    assert main(["report", str(config.output.out)]) == 0
    page = (config.output.out / "report.html").read_text()
    assert page.count("<img") == 6
    assert "SYNTHETIC SCANS" in page
    assert "kimiajax sweep quick" in page
    assert main(["report", str(config.output.out), "--format", "latex"]) == 2
    assert "told as html or csv" in capsys.readouterr().err


def test_a_record_that_was_changed_is_refused(swept, config, tmp_path):
    record = json.loads((config.output.out / "sweep.json").read_text())
    for text, message in (
        (json.dumps({**record, "complete": False}), "was changed after it was written"),
        (json.dumps(sealed({**record, "schema_version": 99})), "of schema version 99"),
        ("{", "no sweep of this program, or damaged"),
    ):
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(UserError, match=message):
            read_sweep(tmp_path)


def test_a_sweep_of_the_version_before_is_read_with_the_meanings_of_its_settings(swept, config, tmp_path):
    record = json.loads((config.output.out / "sweep.json").read_text())
    record |= {"schema_version": 1, "config": {**record["config"], "trained_bn": "inference", "optimizer": "rmsprop"}}
    (tmp_path / "sweep.json").write_text(json.dumps(sealed(record)))
    every_place = {"dark": "none", "darkness": None, "flat": "none"}  # of all versions before the one that asks
    assert read_sweep(tmp_path)["config"] == {**record["config"], **every_place}  # the last name what they mean
    del record["config"]["trained_bn"], record["config"]["head_optimizer"]
    (tmp_path / "sweep.json").write_text(json.dumps(sealed(record)))
    read = read_sweep(tmp_path)["config"]
    assert [read[name] for name in ("trained_bn", "head_optimizer", "optimizer")] == [
        "keras2017",
        "rmsprop2017",
        "rmsprop2017",
    ]


def test_the_command_takes_presets_and_refuses_others(capsys):
    assert main(["sweep", "large"]) == 2
    assert "no such preset; choose from demo, quick, paper" in capsys.readouterr().err
    assert main(["sweep", "--help"]) == 0
    assert "quick" in capsys.readouterr().out


def test_a_failed_row_has_no_point_that_could_be_taken_for_one(swept, config):
    results = read_sweep(config.output.out)
    point = results["axes"][1]["curves"][0]["points"][1]
    point |= dict.fromkeys(("eta_p", "eta_w", "eta_total", "intervals", "against_centre")) | {"failure": "nan"}
    assert " -" in render_sweep(results)
    assert np.isfinite(results["axes"][0]["curves"][0]["points"][0]["eta_p"])
