"""Between the page and the disk: who sees what in which order, what a judgement must hold, what people agree on.

Each annotator goes through the prompts in an order of their own, and sees the images of a prompt in an order of their
own, so that what comes late, tired, or on the left is not the same for all. Both are functions of (seed, annotator, id)
and of nothing else, so they survive restarts, and prompts that are added change nothing about the order of the others; both are recorded.

A judgement counts for the prompt and the pictures that it was made of, which are told by their bytes: pictures that were
renamed keep it, others under the same names do not get it.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ...data.pictures import examine_all, examined
from ...errors import InputError
from ...randomness import generator
from ..rankings import ISSUES, RATINGS, RankedPrompt, Ranking, from_record, to_record
from .store import FOLDER, Judgements, annotators

CHANGED = "the prompts or their images have changed since this page was loaded; load it again"
PROMPT_FLAGS = ("ambiguous", "harmful")  # of the prompt itself; ISSUES are of an image


class Session:
    """The prompts of a folder and everybody's judgements of them."""

    def __init__(
        self,
        folder: Path,
        items: list[RankedPrompt],
        seed: int,
        shares: Mapping[str, set[str]] | None = None,
    ):
        """Open the folder's judgements; raises InputError where a file of them is damaged.

        shares: the ids that each annotator is asked for (`campaign.assign`); None: anybody judges everything.
        """
        self.folder, self.items, self.seed, self.shares = folder / FOLDER, items, seed, shares
        looks = examine_all([image for item in items for image in item.images])
        self.digests = [[looks[image].digest for image in item.images] for item in items]
        self.images = [to_record(item, self.folder)["images"] for item in items]  # as the lines of judgements name them
        self._place = {item.id: place for place, item in enumerate(items)}
        self._people: dict[str, Judgements] = {}
        self._orders: dict[str, list[int]] = {}
        self.everyone()

    def of(self, annotator: str) -> Judgements:
        """Return the judgements of one person, whose name must have been through `annotator_name`."""
        if annotator not in self._people:
            self._people[annotator] = Judgements(self.folder, annotator)
        return self._people[annotator]

    def everyone(self) -> dict[str, Judgements]:
        """Return the judgements of all who have a file, whoever wrote it."""
        return {name: self.of(name) for name in annotators(self.folder)}

    def order(self, annotator: str) -> list[int]:
        """Return the places in `items` of what this person is asked for, in the order in which they meet them.

        Raises InputError for somebody who is asked for nothing.
        """
        if annotator not in self._orders:
            keys = [generator(self.seed, f"annotate/{annotator}/{item.id}", 0).random() for item in self.items]
            places = [int(place) for place in np.argsort(keys, kind="stable")]
            own = self._share(annotator)
            self._orders[annotator] = [place for place in places if own is None or self.items[place].id in own]
        return self._orders[annotator]

    def _share(self, annotator: str) -> set[str] | None:
        if self.shares is None:
            return None
        if annotator not in self.shares:
            raise InputError(f"{annotator} is none of the annotators of this campaign: {', '.join(self.shares)}")
        return self.shares[annotator]

    def shown(self, annotator: str, item: RankedPrompt) -> list[int]:
        """Return the numbers of an item's images in the order in which this person sees them."""
        draw = generator(self.seed, f"annotate/{annotator}/{item.id}", 1)
        return [int(number) for number in draw.permutation(len(item.images))]

    def progress(self, annotator: str) -> dict:
        """Return how many items this person is asked for and has judged, and which positions are still to do."""
        order, records = self.order(annotator), self._current(annotator)
        known = [records.get(self.items[place].id) for place in order]
        todo = [at for at, record in enumerate(known) if record is None]
        judged = sum(record is not None and not _skipped(record) for record in known)
        return {"annotator": annotator, "total": len(order), "judged": judged, "todo": todo}

    def skipped(self, annotator: str) -> list[int]:
        """Return the positions that this person skipped."""
        records = self._current(annotator)
        ids = [self.items[place].id for place in self.order(annotator)]
        return [at for at, id in enumerate(ids) if id in records and _skipped(records[id])]

    def item(self, annotator: str, position: int) -> dict:
        """Return what the page needs to show the item at a position; raises InputError if there is none."""
        order = self.order(annotator)
        if not 0 <= position < len(order):
            raise InputError(f"position {position}: there are {len(order)} prompts")
        place = order[position]
        item, shown, missing = self.items[place], self.shown(annotator, self.items[place]), self._look(place)
        known, last = self._current(annotator).get(item.id), self.of(annotator).latest().get(item.id)
        return {
            "id": item.id,
            "prompt": item.prompt,
            "category": item.category,
            "images": self.images[place],
            "digests": self.digests[place],
            "urls": [f"/image/{place}/{number}?v={digest[:16]}" for number, digest in enumerate(self.digests[place])],
            "missing": missing,
            "display": {"seed": self.seed, "position": position, "shown": shown},
            "revision": last["revision"] if last else 0,
            "judgement": known if known and not _skipped(known) else None,
            "skipped": bool(known and _skipped(known)),
        }

    def _look(self, place: int) -> list[int]:
        """Return the numbers of an item's images that are missing or damaged now; note those that became others."""
        looks = [examined(Path(str(image))) for image in self.items[place].images]  # all lie in the folder
        missing = [number for number, look in enumerate(looks) if look.fault]
        self.digests[place] = [old if look.fault else look.digest for look, old in zip(looks, self.digests[place])]
        return missing

    def save(self, annotator: str, body: dict) -> dict:
        """Check a judgement from the page, write it to the disk and return it as written.

        Raises InputError, naming the field, where it is incomplete or of other images, and what `Judgements.append`
        raises.
        """
        place = self._place_of(annotator, body)
        if missing := self._look(place):
            raise InputError(f"{len(missing)} of {len(self.images[place])} pictures missing: skip this prompt with K")
        self._check_digests(place, body)
        return self._append(annotator, self._checked(annotator, self.items[place], body), place, body)

    def skip(self, annotator: str, body: dict) -> dict:
        """Write to the disk that this person leaves an item out; a judgement that follows takes its place."""
        place = self._place_of(annotator, body)
        item = self.items[place]
        display = _check_display(body.get("display"), len(item.images))
        record = {**to_record(item, self.folder), "rankings": [], "display": display, "skipped": True}
        return self._append(annotator, record, place, body)

    def _place_of(self, annotator: str, body: dict) -> int:
        place = self._place.get(str(body.get("id")))
        if place is None or body.get("images") != self.images[place]:
            raise InputError(CHANGED)
        share = self._share(annotator)
        if share is not None and self.items[place].id not in share:
            raise InputError(f"{annotator} is not asked for this prompt")
        return place

    def _check_digests(self, place: int, body: dict) -> None:
        if body.get("digests", self.digests[place]) != self.digests[place]:
            raise InputError(CHANGED)

    def _append(self, annotator: str, record: dict, place: int, body: dict) -> dict:
        nonce, replaces = body.get("nonce"), body.get("replaces")
        good = isinstance(nonce, str) and 8 <= len(nonce) <= 64 and not re.search(r"[\ud800-\udfff]", nonce)
        if not good or type(replaces) is not int:
            raise InputError("nonce: expected a text of 8 to 64 letters; replaces: a whole number")
        return self.of(annotator).append({**record, "digests": self.digests[place], "nonce": nonce}, replaces)

    def _checked(self, annotator: str, item: RankedPrompt, body: dict) -> dict:
        """Return a judgement as a line of a rankings file, with what was displayed beside it."""
        fields = {name: body.get(name) for name in ("ranking", "ratings", "issues", "time_s")}
        given = {**to_record(item, self.folder), "prompt_flags": body.get("prompt_flags")}
        ranked = from_record({**given, "rankings": [{"annotator": annotator, **fields}]}, self.folder, "judgement")
        _check_complete(ranked.rankings[0], len(item.images))
        display = _check_display(body.get("display"), len(item.images))
        _check_words(ranked.prompt_flags, PROMPT_FLAGS, "prompt_flags")
        return {**to_record(ranked, self.folder), "display": display}

    def _current(self, annotator: str) -> dict[str, dict]:
        """Return the person's last records of the items as they are now, judgements and skips, under the items' ids."""
        latest = self.of(annotator).latest()
        moved = {_content(record): record for id, record in latest.items() if id not in self._place}
        found = {}
        for place, item in enumerate(self.items):
            record = latest.get(item.id)
            if record is None or not self._is_of(record, place):
                record = moved.get((item.prompt, tuple(self.digests[place])))
            if record is not None:
                found[item.id] = record
        return found

    def _is_of(self, record: dict, place: int) -> bool:
        """Say whether a record is of an item's text and pictures; by name, where it was written before digests were."""
        if record.get("prompt") != self.items[place].prompt:
            return False
        if "digests" in record:
            return record["digests"] == self.digests[place]
        return record.get("images") == self.images[place]

    def notes(self) -> list[str]:
        """Return what whoever starts the server should know of the records: which count by name, which do not count."""
        notes = []
        for name in self.everyone():
            latest, current = self.of(name).latest(), self._current(name)
            by_name = sum("digests" not in record for record in current.values())
            others = sum(id in self._place and id not in current for id in latest)
            gone = len(latest) - others - len(current)
            if by_name:
                notes.append(
                    f"{name}: {by_name} judgements of an earlier version name no digests; they count by file names"
                )
            if others:
                notes.append(
                    f"{name}: {others} judgements are of other pictures or texts than now; they stay, and do not count"
                )
            if gone > 0:
                notes.append(
                    f"{name}: {gone} judgements are of prompts that are not in the table; they stay, and do not count"
                )
        return notes

    def judged(self) -> list[RankedPrompt]:
        """Return the items with everybody's last ranking, and the prompt flags that anybody gave."""
        people = {name: self._current(name) for name in self.everyone()}
        return [
            self._with_rankings(item, [records[item.id] for records in people.values() if item.id in records])
            for item in self.items
        ]

    def _with_rankings(self, item: RankedPrompt, records: list[dict]) -> RankedPrompt:
        given = [from_record(record, self.folder, f"{item.id!r} in {FOLDER}") for record in records]
        flags = dict.fromkeys(flag for each in (item, *given) for flag in each.prompt_flags)
        rankings = tuple(ranking for each in given for ranking in each.rankings)
        return replace(item, rankings=rankings, prompt_flags=tuple(flags))

    def report(self) -> dict:
        """Return everybody's progress and, for each two people, how far they agree on what both have judged."""
        from ..agreement import agreement  # here, as it imports scipy, and people wait for the page

        judged = self.judged()
        found = agreement(judged)
        shares, names = found.of_each(), found.annotators
        pairs = [(a, b) for b in range(len(names)) for a in range(b)]
        return {
            "total": len(self.items),
            "agreement": _number(found.by_prompt.micro),
            "people": [{**_person(name, judged, shares.get(name)), **self._counts(name)} for name in self._everybody()],
            "pairs": [
                {
                    "people": [names[a], names[b]],
                    "count": int(found.total[a, b]),
                    "agreement": _number(found.matrix[a, b]),
                    "kendall": _number(_kendall(judged, names[a], names[b])),
                }
                for a, b in pairs
            ],
        }

    def _everybody(self) -> list[str]:
        """Return the names of all who have judged or are asked to."""
        return sorted({*annotators(self.folder), *(self.shares or ())})

    def _counts(self, name: str) -> dict:
        """Return how many items a person is asked for and skipped; nobody is asked twice for one."""
        asked = self.shares is None or name in self.shares
        return {"asked": len(self.order(name)) if asked else 0, "skipped": len(self.skipped(name)) if asked else 0}


def _person(name: str, judged: list[RankedPrompt], share: float | None) -> dict:
    """Return one person's line of the report: prompts judged, median seconds for one, agreement with all others."""
    own = [ranking for item in judged for ranking in item.rankings if ranking.annotator == name]
    times = [ranking.time_s for ranking in own if ranking.time_s is not None]
    seconds = round(median(times), 1) if times else None
    return {"annotator": name, "judged": len(own), "median_s": seconds, "agreement": _number(share)}


def _check_complete(ranking: Ranking, count: int) -> None:
    """Raise InputError unless every image has a rank, every rating, and issues that there are."""
    if not all(isinstance(rank, int) and 1 <= rank <= count for rank in ranking.ranking):
        raise InputError(f"ranking: {list(ranking.ranking)}; give each image a whole rank from 1 to {count}")
    if len(ranking.ratings) != count or not all(rating and set(rating) == set(RATINGS) for rating in ranking.ratings):
        raise InputError(f"ratings: give each image {', '.join(RATINGS)}")
    if len(ranking.issues) != count:
        raise InputError("issues: give each image a list, empty for none")
    for issues in ranking.issues:
        _check_words(issues, ISSUES, "issues")


def _check_words(words: tuple[str, ...], known: tuple[str, ...], field: str) -> None:
    if len(set(words)) < len(words) or not set(words) <= set(known):
        raise InputError(f"{field}: {list(words)}; of {', '.join(known)}, each once")


def _check_display(display: Any, count: int) -> dict:
    """Return what the page says it showed, which may be of another seed than this server's."""
    fields = display if isinstance(display, dict) else {}
    shown, numbers = fields.get("shown"), [fields.get(name) for name in ("seed", "position")]
    numeric = isinstance(shown, list) and all(type(number) is int for number in (*numbers, *shown))
    if not isinstance(shown, list) or not numeric or sorted(shown) != list(range(count)):
        raise InputError("display: give seed, position and shown, the order of the images on the page")
    return {"seed": numbers[0], "position": numbers[1], "shown": shown}


def _kendall(judged: list[RankedPrompt], one: str, other: str) -> float:
    """Return Kendall's τ-b between two people's rankings, averaged over the prompts that both have judged."""
    from ..agreement import rank_correlation

    both = []
    for item in judged:
        rankings = {ranking.annotator: ranking for ranking in item.rankings}
        if one in rankings and other in rankings:
            both.append((replace(item, rankings=(rankings[one],)), -np.array(rankings[other].ranking, dtype=float)))
    if not both:
        return float("nan")
    return rank_correlation("kendall", [scores for _, scores in both], [item for item, _ in both]).micro


def _number(value: float | None) -> float | None:
    """JSON has no nan."""
    return None if value is None or np.isnan(value) else round(float(value), 4)


def _skipped(record: dict) -> bool:
    return record.get("skipped") is True


def _content(record: dict) -> tuple:
    """What a record is of: the text, and the bytes of the pictures."""
    digests = record.get("digests")
    return record.get("prompt"), tuple(map(str, digests)) if isinstance(digests, list) else None
