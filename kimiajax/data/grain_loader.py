"""Patches in batches, read by Grain: shuffled, shared among processes, and resumable to the batch."""

from typing import TYPE_CHECKING, Any

from kimiajax.checks import kind_of, whole
from kimiajax.data.resize import FILTERS, resize
from kimiajax.data.sources.source import PatchSource, Sample
from kimiajax.errors import UserError, check_known

if TYPE_CHECKING:
    import grain


def batches(
    patches: PatchSource | Any,
    batch_size: int | Any,
    *,
    image_size: int | Any = None,
    filter: str | Any = "box",
    seed: int | Any = None,
    epochs: int | Any = 1,
    shard: tuple[int, int] | Any = (0, 1),
    drop_remainder: bool = False,
    threads: int = 16,
) -> "grain.IterDataset":
    """An iterable of batches, each a dictionary of `pixels` [b s s] uint8, `scan` [b] and `patch_id` [b].

    Its iterator's `get_state()` is a small dictionary; `set_state` on a fresh iterator goes on with the next batch.

    Args:
        patches: what to read.
        batch_size: patches in a batch of this process; an epoch's last may run into the next epoch.
        image_size: side to which pixels are resized; by default they stay as they are.
        filter: of resizing, see `resize`.
        seed: of the order, another in each epoch; without it the order is that of `patches`.
        epochs: how often every patch comes; None for ever.
        shard: this process's number and how many there are. Together they read every patch once an epoch.
        drop_remainder: leave the last batch out where it is smaller.
        threads: that read ahead.

    Raises:
        UserError: no source of patches, a number out of its range, or an unknown filter.
    """
    kind_of("patches", patches, PatchSource, "make one as kimiajax.PatchSource(source, manifest.patches)")
    import grain  # here only: it brings jax along

    least = {"batch_size": 1, "epochs": 1, "seed": 0, "image_size": 1, "threads": 1}
    for name, value in zip(least, (batch_size, epochs, seed, image_size, threads)):
        if value is not None or name in ("batch_size", "threads"):
            whole(name, value, least[name])
    if not isinstance(shard, tuple | list) or [type(each) for each in shard] != [int, int]:
        raise UserError(f"shard {shard}: must be this process's number and how many there are")
    number, count = shard
    if not 0 <= number < count:
        raise UserError(f"shard {shard}: of {count} processes the numbers go from 0 to {count - 1}")
    check_known("filter", filter, FILTERS)

    def prepare(sample: Sample) -> dict[str, Any]:
        pixels = sample.pixels if image_size is None else resize(sample.pixels, image_size, filter)
        return {"pixels": pixels, "scan": sample.scan, "patch_id": sample.patch_id}

    order = grain.MapDataset.source(patches)
    if seed is not None:
        order = order.shuffle(seed=seed)
    order = order.slice(slice(number, None, count)).repeat(epochs).map(prepare)
    return order.batch(batch_size, drop_remainder=drop_remainder).to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    )
