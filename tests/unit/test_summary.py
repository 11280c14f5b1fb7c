"""`kimiajax blocks`, and the operations it counts."""

import jax
import jax.numpy as jnp
import pytest

from kimiajax.cli.main import main
from kimiajax.models.flops import flops_of
from kimiajax.models.registry import BACKBONES
from kimiajax.training.freezing import PRESETS, TrainableBlocks
from kimiajax.training.summary import list_blocks


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["inception_v3"], "11114880 backbone parameters train, of 21768352"),
        (["vgg16"], "7079424 backbone parameters train, of 14714688"),
        (["inception_v3", "--blocks", "inception_172"], "16215936 backbone parameters train"),
        (["vgg16", "--blocks", "nothing"], "0 backbone parameters train"),
        (["inception_v3", "--blocks", "adabn_only"], "frozen batch normalisation: keras2017."),
        (["inception_v3", "--trained-bn", "inference"], "frozen batch normalisation: inference, trained: inference."),
        (["inception_v3", "--blocks", "adabn_only"], "Running statistics of frozen blocks adapt."),
        (["inception_v3", "--blocks", "mixed10", "head", "--frozen-bn", "batch"], "6073536 backbone parameters train"),
    ],
)
def test_the_command_tells_what_trains(capsys, arguments, line):
    assert main(["blocks", *arguments]) == 0
    assert line in capsys.readouterr().out


def test_each_block_says_whether_it_trains(capsys):
    assert main(["blocks", "inception_v3", "--blocks", "inception_172"]) == 0
    words = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines() if line[:2].strip()}
    trains = {"mixed5": "-", "mixed7": "yes", "pooled": "-", "head": "yes"}
    assert {name: words[name] for name in trains} == trains
    assert words["mixed6"] == "them", "1264000 of them"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one of vgg16, inception_v3, cnn"),
        (["resnet"], "no such network; choose from vgg16"),
        (["vgg16", "--blocks", "mixed9"], "unknown block 'mixed9' of vgg16; choose from block1"),
        (["inception_v3", "--blocks", "mixed6/branch9"], "unknown part 'branch9' of mixed6; choose from branch1_conv1"),
        (["vgg16", "--blocks", "block5/conv1/kernel/x"], "choose from nothing: it is an array"),
        (["inception_v3", "--image-size", "20"], "20 is too small"),
        (["vgg16", "--classes", "0"], "--classes 0"),
        (["vgg16", "--blocks"], "no block of vgg16 is named"),
    ],
)
def test_bad_input_is_one_line_and_a_status(capsys, arguments, message):
    assert main(["blocks", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_names_every_preset(capsys):
    with pytest.raises(SystemExit):
        main(["blocks", "-h"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*PRESETS, "inception_172"))


def test_operations_are_those_of_a_count_by_hand():
    """VGG16's first block: two convolutions at every pixel. Inception-v3 at 299: the 5.71 G multiply-adds on record."""
    entries = {e.name: e for e in list_blocks(BACKBONES["vgg16"], TrainableBlocks(("head",)), 224, 24)}
    assert entries["block1"].flops == 2 * 224 * 224 * (9 * 3 * 64 + 9 * 64 * 64)
    assert entries["head"].flops == 2 * (7 * 7 * 512 * 256 + 256 * 24)
    whole = sum(e.flops for e in list_blocks(BACKBONES["inception_v3"], TrainableBlocks(("head",)), 299, 24))
    assert whole / 2 == pytest.approx(5.71e9, rel=0.01)


def test_operations_inside_a_nested_program_count_and_a_loop_is_refused():
    x = jax.ShapeDtypeStruct((4, 5), jnp.float32)
    assert flops_of(jax.jit(lambda x: jax.jit(lambda x: x @ x.T)(x)), x) == 2 * 4 * 4 * 5
    with pytest.raises(AssertionError, match="how often its body runs"):
        flops_of(lambda x: jax.lax.scan(lambda c, row: (c, row @ row), 0.0, x)[1], x)
