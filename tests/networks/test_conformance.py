"""The battery that every network must pass, and for each of its checks a network that it must catch."""

import sys
import types
from collections.abc import Sequence
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from kimiajax.errors import UserError
from kimiajax.models import conv
from kimiajax.models.backbone import Backbone
from kimiajax.models.batch_norm import INFERENCE, BatchNorm, Normalisation
from kimiajax.models.conformance import check_backbone
from kimiajax.models.registry import BACKBONES
from weights_convert.keras_h5 import batch_norm, dense
from weights_convert.mapping import Convention, Files, KerasModel

BLOCKS = ("first", "second", "pooled")


class Block(nn.Module):
    fault: str

    @nn.compact
    def __call__(self, x, how, mask):
        x = conv.Conv(8, (3, 3), name="conv")(x)
        how = INFERENCE if self.fault == "never trains" else how
        mask = None if self.fault == "padding counts" else mask
        norm = BatchNorm(1e-3, 0.9, name="norm" if self.fault == "another norm" else "bn")
        before, x = x, norm(x, how, mask)
        if self.fault == "always trains":
            norm(before, Normalisation(("first", "second")), mask)
        if self.fault == "mixes images":
            x = x - x.mean(axis=0)
        if self.fault == "no gradient" and self.name == "second":
            x = jax.lax.stop_gradient(x)
        return nn.relu(x)


class Small(nn.Module):
    """Two blocks and a mean, with one fault or none."""

    fault: str = ""
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x, blocks: Sequence[str] = BLOCKS, how=INFERENCE, mask=None):
        taps, start = {}, x
        for name in blocks:
            if name == "pooled":
                x = x[:, 8 if self.fault == "needs more pixels" else 0 :].mean(axis=(1, 2))
            elif self.fault == "a block without parameters" and name == "second":
                x = nn.relu(x)
            else:
                x = Block(self.fault, name=name if self.fault != "another name" else f"my_{name}")(x, how, mask)
            taps[name] = x
            x = FAULTS.get(self.fault, lambda x, *_: x)(x, name, start)
        if self.fault == "a tap too few":
            taps.pop("first", None)
        return x, taps


FAULTS = {  # of what a block gives on, by its name and the network's input
    "looks back": lambda x, name, start: x + start.mean() if name == "first" else x,
    "infinite slope": lambda x, name, _: x + jnp.sqrt(0 * x) if name == "first" else x,
    "small differences": lambda x, name, _: (x + 300) - 300 if name == "first" else x,
    "another way": lambda x, name, _: 2 * x if conv._WAY.get() == "fast" else x,
}
BASE = Backbone(
    *("small", "Small", Small, BLOCKS),
    features="pooled",
    bottleneck="pooled",
    fine_tuned=("second",),
    hidden=None,
    dropout=0.0,
    smallest=8,
)


def with_fault(fault):
    return replace(BASE, options=(("fault", fault),))


def mapping(monkeypatch, table, layers, *older):
    """The network with a mapping of its own."""
    module = types.ModuleType("small_mapping")
    module.FILES = {"keras": Files((table, *older), Convention({}, {}, 1e-3), KerasModel("Small", layers))}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return replace(BASE, mapping=module.__name__)


TABLE = {
    **dense("a", "first", "conv"),
    **batch_norm("b", "first", "bn", scale=True),
    **dense("c", "second", "conv"),
    **batch_norm("d", "second", "bn", scale=True),
}
LAYERS = {"first": "b", "second": "d"}


def test_a_sound_network_passes(monkeypatch):
    assert check_backbone(mapping(monkeypatch, TABLE, LAYERS)) == [
        *("names", "parameters", "taps", "any batch size", "any size", "vmap", "gradients", "padding"),
        *("frozen statistics", "bfloat16", "both convolutions", "mapping"),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": ("first", "first", "pooled")}, "two blocks have one name"),
        ({"features": "third"}, "unknown block 'third' of small; choose from first, second, pooled"),
        ({"fine_tuned": ("first",)}, "must be a run of blocks that ends at the bottleneck"),
        ({"fine_tuned": ()}, "must be a run of blocks"),
        ({"name": "Small-1"}, "its name must be of lower-case letters"),
        ({"features": "second"}, "its features, second, are no vector an image; name a block that gives one"),
        ({"mapping": "nowhere.to_be_found"}, "its mapping, 'nowhere.to_be_found', is no name of a module with FILES"),
    ],
)
def test_what_a_backbone_says_of_itself_must_hold_together(changes, message):
    with pytest.raises(UserError, match=message):
        check_backbone(replace(BASE, **changes))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("another name", "parameters of my_first, which is no block"),
        ("a block without parameters", "block second has no parameters"),
        ("another norm", "statistics first/norm/mean: use `models.batch_norm.BatchNorm`, named `bn`"),
        ("a tap too few", "gives taps of pooled, second; give one for each block"),
        ("looks back", "second run by itself gives other values"),
        ("mixes images", "an image gives other values alone than in a batch"),
        ("needs more pixels", "images of 8 x 8 pixels, its smallest, give NaN"),
        ("infinite slope", "the gradient of first/.* is not finite"),
        ("no gradient", "no parameter of .* has a gradient"),
        ("padding counts", "a padded image changes the others' outputs"),
        ("always trains", "move where they are frozen"),
        ("never trains", "do not move where they train"),
        ("small differences", "bfloat16 gives other values"),
        ("another way", "fast convolutions give other values"),
    ],
)
def test_every_check_catches_its_fault(fault, message):
    with pytest.raises(UserError, match=message):
        check_backbone(with_fault(fault))


def test_a_mapping_that_lacks_an_array_or_a_layer_is_caught(monkeypatch):
    less = {name: entry for name, entry in TABLE.items() if name != "c/bias"}
    with pytest.raises(UserError, match="keras's files and its arrays part at params/second/conv/bias"):
        check_backbone(mapping(monkeypatch, less, LAYERS))
    with pytest.raises(UserError, match="keras's files and its arrays part at params/second/conv/bias"):
        check_backbone(mapping(monkeypatch, TABLE, LAYERS, less))
    with pytest.raises(UserError, match="keras has no layer for second"):
        check_backbone(mapping(monkeypatch, TABLE, {"first": "b"}))


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "cnn"])
@pytest.mark.parity
def test_every_network_passes(name):
    check_backbone(BACKBONES[name])


def test_the_network_from_scratch_passes():
    check_backbone(BACKBONES["cnn"])
