"""Training that stops anywhere and goes on: bit for bit, or with a word on why not."""

import contextlib
import logging
import shutil
import signal

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from test_input_feeds import BATCH, COUNT, setting

from kimiajax.errors import UserError
from kimiajax.io.pytrees import digest, load_tree, quietly, save_tree
from kimiajax.models.head import Classifier
from kimiajax.models.registry import BACKBONES
from kimiajax.runtime.signals import Interrupted, Interruption
from kimiajax.training import checkpoints as module
from kimiajax.training.checkpoints import Checkpoints
from kimiajax.training.freezing import TrainableBlocks
from kimiajax.training.heads import fit_heads
from kimiajax.training.loop import NonFiniteError, fit
from kimiajax.training.steps import Training

__all__ = ["setting"]  # a fixture
STEPS = 6  # 2 epochs of 3


class After(Interruption):
    """Asks a run to end at so manieth look."""

    def __init__(self, looks):
        super().__init__()
        self._left = looks

    def poll(self):
        self._left -= 1
        if self._left == 0:
            self._asked = signal.SIGTERM
        return self.asked


def train(setting, folder=None, looks=0, **options):
    """The end of a training, all its leaves and losses; with `looks` it is asked to end at that look."""
    told = []
    options = {"epochs": 2, "batch_size": BATCH, "seed": 3} | options
    if folder is not None:
        identity = options.pop("identity", {"data": "these"})
        interruption = After(looks) if looks else None
        options["checkpoints"] = Checkpoints(folder, identity, every=1e9, say=told.append, interruption=interruption)
    trained, history = fit(*setting, **options)
    return jax.tree.leaves(trained), [(epoch.epoch, epoch.loss, epoch.accuracy) for epoch in history], told


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left[0], right[0], strict=True)) and left[1] == right[1]


@pytest.mark.parametrize("feed", ["resident", "stream"])
@pytest.mark.parametrize("looks", range(1, STEPS + 1))
def test_a_training_stopped_after_any_step_ends_as_if_it_never_stopped(setting, tmp_path, looks, feed):
    with pytest.raises(Interrupted):
        train(setting, tmp_path / "kept", looks)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [str(looks)]
    resumed = train(setting, tmp_path / "kept", feed=feed)
    assert same(resumed, train(setting))
    epochs, steps = divmod(looks, 3)
    said = f"training: resumed after {epochs} epochs" if not steps else f"{epochs} epochs and {steps} of 3 steps"
    assert resumed[2] == [] or said in resumed[2][0] or "3 of 3 steps" in resumed[2][0]


def test_one_stopped_again_and_again_does_too(setting, tmp_path):
    for _ in range(STEPS):
        with pytest.raises(Interrupted):
            train(setting, tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "6"], "the last two are kept"
    assert same(train(setting, tmp_path), train(setting))


def test_the_epochs_of_the_earlier_process_are_told_again(setting, tmp_path):
    with pytest.raises(Interrupted):
        train(setting, tmp_path, 5)
    told = []
    train(setting, tmp_path, record=told.append)
    assert [epoch.epoch for epoch in told] == [1, 2]


REAL = module._unflatten
FAULTS = {
    "momentum lost": lambda like, arrays: REAL(
        like, {n: np.zeros_like(a) if "opt_state" in n else a for n, a in arrays.items()}
    ),
    "statistics lost": lambda like, arrays: REAL(
        like, {n: np.zeros_like(a) if "batch_stats" in n else a for n, a in arrays.items()}
    ),
    "the key drawn anew": lambda like, arrays: REAL(
        like, {n: a + 1 if n.endswith("/key") else a for n, a in arrays.items()}
    ),
    "the step counted anew": lambda like, arrays: REAL(
        like, {n: np.zeros_like(a) if n.endswith("state/step") else a for n, a in arrays.items()}
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_in_what_is_restored_shows(setting, tmp_path, monkeypatch, fault):
    with pytest.raises(Interrupted):
        train(setting, tmp_path, 4)
    monkeypatch.setattr(module, "_unflatten", FAULTS[fault])
    assert not same(train(setting, tmp_path), train(setting))


def test_a_position_that_is_off_by_a_step_shows(setting, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        train(setting, tmp_path, 4)
    restore = Checkpoints.restore

    def one_less(self, like, facts):
        tree, about = restore(self, like, facts)
        return tree, {**about, "sums": [[], [], []]}

    monkeypatch.setattr(Checkpoints, "restore", one_less)
    assert not same(train(setting, tmp_path), train(setting))


def stopped_twice(setting, folder):
    """Checkpoints after 4 and after 5 steps."""
    for looks in (4, 1):
        with pytest.raises(Interrupted):
            train(setting, folder, looks)
    assert sorted(path.name for path in folder.iterdir()) == ["4", "5"]


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def change_metadata(folder):
    path = folder / "_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace('"seconds":', '"seconds": 1, "was":'))


DAMAGES = {
    "a flipped bit": lambda folder: flip_a_bit(largest(folder)),
    "a missing file": lambda folder: largest(folder).unlink(),
    "a truncated file": lambda folder: largest(folder).write_bytes(largest(folder).read_bytes()[:1000]),
    "metadata changed": change_metadata,
    "no metadata": lambda folder: (folder / "_CHECKPOINT_METADATA").unlink(),
    "an empty folder": lambda folder: [shutil.rmtree(p) if p.is_dir() else p.unlink() for p in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(setting, tmp_path, damage):
    stopped_twice(setting, tmp_path)
    DAMAGES[damage](tmp_path / "5")
    resumed = train(setting, tmp_path)
    assert str(tmp_path / "5") in resumed[2][0]
    assert "the one before it is used" in resumed[2][0]
    assert "1 epochs and 1 of 3 steps" in resumed[2][1]
    assert same(resumed, train(setting))


def test_arrays_that_orbax_reads_but_that_are_not_those_saved_are_named(setting, tmp_path, monkeypatch):
    stopped_twice(setting, tmp_path)
    load = module.pytrees.load_with_metadata

    def one_bit_off(path):
        arrays, metadata = load(path)
        if path.name == "5":
            name = next(name for name in arrays if name.startswith("state/params/block1"))
            arrays[name] = np.nextafter(arrays[name], np.float32(1))
        return arrays, metadata

    monkeypatch.setattr(module.pytrees, "load_with_metadata", one_bit_off)
    told = train(setting, tmp_path)[2]
    assert "its digest does not fit state/params/block1" in told[0]


def test_where_none_is_sound_training_begins_anew_and_says_so(setting, tmp_path):
    with pytest.raises(Interrupted):
        train(setting, tmp_path, 4)
    flip_a_bit(largest(tmp_path / "4"))
    resumed = train(setting, tmp_path)
    assert "this training begins anew" in resumed[2][0]
    assert same(resumed, train(setting))


def test_what_a_killed_save_left_is_no_checkpoint_and_goes(setting, tmp_path):
    with pytest.raises(Interrupted):
        train(setting, tmp_path, 4)
    half = tmp_path / "5.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "4", half)
    assert same(train(setting, tmp_path), train(setting))
    assert not half.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"identity": {"data": "others"}}, 'data was "these" and is "others"'),
        ({"epochs": 3}, "epochs was 2 and is 3"),
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"batch_size": 7}, "batch_size was 8 and is 7"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_with_the_difference(setting, tmp_path, change, said):
    with pytest.raises(Interrupted):
        train(setting, tmp_path, 4)
    with pytest.raises(UserError, match=said):
        train(setting, tmp_path, **change)
    training, variables, images, labels = setting
    with pytest.raises(UserError, match="labels was"):
        train((training, variables, images, labels[::-1].copy()), tmp_path)


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(setting, tmp_path):
    (tmp_path / "kept").write_text("a file where the folder should be")
    resumed = train(setting, tmp_path / "kept" / "folder")
    assert "no checkpoint could be written" in resumed[2][0]
    assert same(resumed, train(setting))


def test_a_loss_that_is_not_finite_after_a_stop_leaves_the_same_as_without_one(setting, tmp_path):
    training, variables, _, labels = setting
    inputs = np.random.default_rng(0).standard_normal((COUNT, 64)).astype(np.float32)
    inputs[int(np.asarray(module.jax.random.permutation(jax.random.key(0), COUNT))[0])] = 1e30
    head = Classifier(training.classifier.backbone, (), 3)
    broken = Training(head, optax.sgd(1e20), TrainableBlocks(("head",)))
    given = broken, {"params": {"head": variables["params"]["head"]}}, inputs, labels
    with pytest.raises(NonFiniteError) as whole:
        fit(*given, epochs=2, batch_size=BATCH, seed=3)
    with pytest.raises((Interrupted, NonFiniteError)):
        train(given, tmp_path, 1)
    with pytest.raises(NonFiniteError) as resumed:
        train(given, tmp_path)
    assert str(resumed.value) == str(whole.value)
    for left, right in zip(jax.tree.leaves(resumed.value.variables), jax.tree.leaves(whole.value.variables)):
        np.testing.assert_array_equal(left, right)


def test_heads_of_several_seeds_go_on_together(rng, tmp_path):
    head = Classifier(BACKBONES["vgg16"], (), 3)
    seeds = (3, 4)
    starts = [{"params": {"head": head.init_head(jax.random.key(seed), (16,))}} for seed in seeds]
    inputs = [rng.standard_normal((COUNT, 16)).astype(np.float32) for _ in seeds]
    labels = [np.arange(COUNT, dtype=np.int32) % 3] * 2
    training = Training(head, optax.sgd(0.01, momentum=0.9), TrainableBlocks(("head",)))
    given = {"seeds": seeds, "epochs": 4, "batch_size": BATCH}

    def end(**options):
        results = fit_heads(training, starts, inputs, labels, **given, **options)
        return jax.tree.leaves([trained for trained, _ in results]), [[e.loss for e in h] for _, h in results]

    with pytest.raises(Interrupted):
        end(checkpoints=Checkpoints(tmp_path, {}, interruption=After(2)))
    told, records = [], [[], []]
    resumed = end(checkpoints=Checkpoints(tmp_path, {}, say=told.append), records=[r.append for r in records])
    assert told == ["heads, seeds 3, 4: resumed after 2 epochs"]
    assert [[epoch.epoch for epoch in epochs] for epochs in records] == [[1, 2, 3, 4]] * 2
    assert same(resumed, end())


def test_a_second_signal_does_not_wait():
    interruption = Interruption()
    with interruption.on_signals(signal.SIGINT), contextlib.suppress(Interrupted), interruption.deferred():
        signal.raise_signal(signal.SIGINT)
        assert interruption.asked
        with pytest.raises(Interrupted) as raised:
            signal.raise_signal(signal.SIGINT)
        assert raised.value.status == 130


def test_trees_that_orbaxs_v1_saved_can_still_be_read(rng, tmp_path):
    from orbax.checkpoint import v1

    tree = {"params": {"block1": {"kernel": rng.standard_normal((2, 3)).astype(np.float32)}}}
    v1.save(tmp_path / "v1", tree)
    save_tree(tmp_path / "now", tree)
    assert digest(load_tree(tmp_path / "v1")) == digest(load_tree(tmp_path / "now")) == digest(tree)


def test_only_what_the_disk_refuses_is_told_as_the_disks(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="object"):
        save_tree(tmp_path / "t", {"a": np.array([object()])})
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(ocp.Checkpointer, "save", raising(MemoryError("1 GiB")))
    with pytest.raises(MemoryError):
        save_tree(tmp_path / "t", {"a": np.ones(3)})


def test_of_tasks_that_nobody_waits_for_orbaxs_are_not_told_of_and_others_are(tmp_path, caplog):
    with quietly():
        pass
    tasks = logging.getLogger("asyncio")
    tasks.error("Task exception was never retrieved\nfuture: <Task coro=<write() at orbax/checkpoint/x.py>>")
    assert not caplog.records
    tasks.error("Task exception was never retrieved\nfuture: <Task coro=<other() at mine.py>>")
    tasks.error("orbax is slow")
    assert len(caplog.records) == 2


def raising(error):
    def fail(*arguments, **options):
        raise error

    return fail
