"""Diagnoses of fine-tuning from its losses: a start far above the head, and a head that was lost."""

from collections.abc import Mapping, Sequence

from kimiajax.training.loop import Epoch

SHOCK = 2.0  # a first loss above this multiple of the head's last loss is a wrong start
NEGLIGIBLE = 0.1  # a smaller loss of the head is taken for this
LEARNT, LOST = 1.5, 0.5  # accuracy over that of guessing the largest class; accuracy after over that before


def wrong_start(head: Sequence[Epoch], tuning: Sequence[Epoch], causes: Sequence[str]) -> str | None:
    """Returns a sentence where the first epoch's loss is more than twice the larger of the head's last loss and 0.1.

    Args:
        head, tuning: the epochs of both phases.
        causes: what may be to blame, the likeliest first, each with its flag.
    """
    if not head or not tuning or tuning[0].loss <= SHOCK * max(head[-1].loss, NEGLIGIBLE):
        return None
    return (
        f"fine-tuning starts wrong: the loss of its first epoch is {tuning[0].loss:.3g}, and its head ended at "
        f"{head[-1].loss:.3g}. Likely {'cause' if len(causes) == 1 else 'causes'}: {'; '.join(causes)}."
    )


def learnt_nothing(history: Mapping[str, Sequence[Epoch]], largest_share: float) -> bool:
    """Returns whether a row was trained and no phase ended above 1.5 times the accuracy of guessing.

    Args:
        history: the epochs of each phase.
        largest_share: of the training patches, that of the most frequent class.
    """
    ended = [epochs[-1].accuracy for epochs in history.values() if epochs]
    return bool(ended) and max(ended) <= LEARNT * largest_share


def lost_head(history: Mapping[str, Sequence[Epoch]], largest_share: float) -> str | None:
    """Returns a sentence where a head had learnt and fine-tuning more than halved its training accuracy.

    Args:
        history: the epochs of each phase of a row.
        largest_share: of the training patches, that of the most frequent class.
    """
    head, tuning = history.get("head"), history.get("fine_tuning")
    if not head or not tuning:
        return None
    before, after = head[-1].accuracy, tuning[-1].accuracy
    if before <= LEARNT * largest_share or after >= LOST * before:
        return None
    return (
        f"its head had learnt ({before:.0%} of the training patches right), and fine-tuning lost it (it ended at "
        f"{after:.0%})."
    )
