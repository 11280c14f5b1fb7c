"""What a run's classes are and what they are called: numbered scans, slides, or whatever folders somebody named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kimiajax import paper
from kimiajax.data.sources.folder_layout import SCAN
from kimiajax.text import PLURALS, first_of

OF_CLASSES = ("folder of images", "prepared data set")  # kinds of data whose patches are of classes that have names
LISTED = 12  # names in a sentence


@dataclass(frozen=True)
class Classes:
    """Attributes:
    word: what each of them is, "scan" or "class".
    labels: what each is called: its number, unless somebody named it.
    """

    word: str
    labels: tuple[str, ...]

    @property
    def plural(self) -> str:
        return PLURALS[self.word]

    @property
    def named(self) -> bool:
        """Whether they have names."""
        return self.labels != tuple(map(str, range(len(self.labels))))

    def call(self, number: int) -> str:
        """One of them in a sentence: "scan 3", "class liver"."""
        known = 0 <= number < len(self.labels)
        return f"{self.word} {self.labels[number] if known else number}"

    def called(self, numbers: Sequence[int]) -> str:
        """Some of them: "scans 3, 7"."""
        return f"{self.word if len(numbers) == 1 else self.plural} {', '.join(self.labels[k] for k in numbers)}"

    def numbered(self, number: int) -> str:
        """One of them in a table: "3", "3 liver"."""
        return f"{number} {self.labels[number]}" if self.named else str(number)


def classes_of(data: Mapping[str, Any]) -> Classes:
    """The classes of the data of a run's results, or of a manifest's source."""
    names = data.get("names") or []
    count = data.get("scans", len(names))
    named = len(names) == count and not all(map(SCAN.fullmatch, names))
    word = "class" if named and data.get("kind") in OF_CLASSES else "scan"
    return Classes(word, tuple(names) if named else tuple(map(str, range(count))))


def is_kimia(data: Mapping[str, Any]) -> bool:
    """Whether the data of a run's results are Kimia Path24's, by the test patches of each scan: as they were published.

    Only beside such data do the paper's figures stand, and only of such are its conclusions ruled on.
    """
    counts = data.get("test_per_scan") or []
    return not data["synthetic"] and not classes_of(data).named and paper.is_kimia(counts)


def what_they_are(data: Mapping[str, Any]) -> str:
    """Returns a sentence on data that are not Kimia Path24's."""
    classes = classes_of(data)
    kind = f"The data are a {data.get('kind', 'set')} of {data['scans']} {classes.plural}"
    if classes.named:
        return f"{kind}: {first_of(classes.labels, LISTED)}."
    return f"{kind} with {data['test']:,} test patches, other than Kimia Path24's as they were published."
