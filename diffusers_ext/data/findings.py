"""What is wrong or worth knowing about a data set: faults and notes, listed for a person."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SHOWN = 50  # faults listed before the rest is only counted


@dataclass(frozen=True)
class Finding:
    """One fault or note: its kind in a word, for counting, and the file and what is the matter with it."""

    kind: str
    text: str


def listed(word: str, findings: Sequence[Finding], shown: int | None = SHOWN) -> Iterator[str]:
    """Yield counts by kind, then the findings, `shown` of them at most and how many more there are."""
    if not findings:
        return
    counts = Counter(finding.kind for finding in findings)
    yield f"{word}s: " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    yield from (f"  {finding.text}" for finding in findings[:shown])
    if shown is not None and len(findings) > shown:
        yield f"  and {len(findings) - shown} more"
