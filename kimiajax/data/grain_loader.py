"""Patches in batches, read by Grain: shuffled, shared among processes, and resumable to the batch."""

from typing import TYPE_CHECKING, Any

from kimiajax.data.resize import FILTERS, resize
from kimiajax.data.sources.source import PatchSource, Sample
from kimiajax.errors import UserError, check_known

if TYPE_CHECKING:
    import grain


def batches(
    patches: PatchSource,
    batch_size: int,
    *,
    image_size: int | None = None,
    filter: str = "box",
    seed: int | None = None,
    epochs: int | None = 1,
    shard: tuple[int, int] = (0, 1),
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
    """
    import grain  # here only: it brings jax along

    number, count = shard
    for name, value, least in (("batch_size", batch_size, 1), ("epochs", epochs, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise UserError(f"{name} {value}: must be {least} or more")
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
