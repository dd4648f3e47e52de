"""Between the page and the disk: who sees what in which order, what a judgement must hold, what people agree on.

Each annotator goes through the prompts in an order of their own, and sees the images of a prompt in an order of their
own, so that what comes late, tired, or on the left is not the same for all. Both are functions of (seed, annotator, id)
and of nothing else, so they survive restarts, and prompts that are added change nothing about the order of the others; both are recorded.
"""

from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..data.rankings import ISSUES, RATINGS, RankedPrompt, Ranking, from_record, to_record
from ..errors import InputError
from ..randomness import generator
from .store import FOLDER, Judgements, annotators

PROMPT_FLAGS = ("ambiguous", "harmful")  # of the prompt itself; ISSUES are of an image


class Session:
    """The prompts of a folder and everybody's judgements of them."""

    def __init__(self, folder: Path, items: list[RankedPrompt], seed: int):
        """Open the folder's judgements; raises InputError where a file of them is damaged."""
        self.folder, self.items, self.seed = folder / FOLDER, items, seed
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
        """Return the places in `items` in the order in which this person meets them."""
        if annotator not in self._orders:
            keys = [generator(self.seed, f"annotate/{annotator}/{item.id}", 0).random() for item in self.items]
            self._orders[annotator] = [int(place) for place in np.argsort(keys, kind="stable")]
        return self._orders[annotator]

    def shown(self, annotator: str, item: RankedPrompt) -> list[int]:
        """Return the numbers of an item's images in the order in which this person sees them."""
        draw = generator(self.seed, f"annotate/{annotator}/{item.id}", 1)
        return [int(number) for number in draw.permutation(len(item.images))]

    def progress(self, annotator: str) -> dict:
        """Return how many items there are and are judged, and which positions are not."""
        done = self._current(annotator)
        todo = [at for at, place in enumerate(self.order(annotator)) if self.items[place].id not in done]
        return {"annotator": annotator, "total": len(self.items), "judged": len(done), "todo": todo}

    def item(self, annotator: str, position: int) -> dict:
        """Return what the page needs to show the item at a position; raises InputError if there is none."""
        if not 0 <= position < len(self.items):
            raise InputError(f"position {position}: there are {len(self.items)} prompts")
        place = self.order(annotator)[position]
        item, shown = self.items[place], self.shown(annotator, self.items[place])
        known = self.of(annotator).latest().get(item.id)
        return {
            "id": item.id,
            "prompt": item.prompt,
            "category": item.category,
            "images": self.images[place],
            "urls": [f"/image/{place}/{number}?v={_version(item.images[number])}" for number in range(len(shown))],
            "display": {"seed": self.seed, "position": position, "shown": shown},
            "revision": known["revision"] if known else 0,
            "judgement": known if known and known.get("images") == self.images[place] else None,
        }

    def save(self, annotator: str, body: dict) -> dict:
        """Check a judgement from the page, write it to the disk and return it as written.

        Raises InputError, naming the field, where it is incomplete or of other images, and what `Judgements.append`
        raises.
        """
        place = self._place.get(str(body.get("id")))
        if place is None or body.get("images") != self.images[place]:
            raise InputError("the prompts or their images have changed since this page was loaded; load it again")
        record = self._checked(annotator, self.items[place], body)
        nonce, replaces = body.get("nonce"), body.get("replaces")
        if not isinstance(nonce, str) or not 8 <= len(nonce) <= 64 or type(replaces) is not int:
            raise InputError("nonce: expected a text of 8 to 64 letters; replaces: a whole number")
        return self.of(annotator).append({**record, "nonce": nonce}, replaces)

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
        """Return the person's last judgements of the items as they are now."""
        latest = self.of(annotator).latest()
        own = [(item.id, latest.get(item.id), images) for item, images in zip(self.items, self.images)]
        return {id: known for id, known, images in own if known and known.get("images") == images}

    def judged(self) -> list[RankedPrompt]:
        """Return the items with everybody's last ranking, and the prompt flags that anybody gave."""
        people = {name: self._current(name) for name in self.everyone()}
        return [
            self._with_rankings(item, [done[item.id] for done in people.values() if item.id in done])
            for item in self.items
        ]

    def _with_rankings(self, item: RankedPrompt, records: list[dict]) -> RankedPrompt:
        given = [from_record(record, self.folder, f"{record['id']} of {self.folder}") for record in records]
        flags = dict.fromkeys(flag for each in (item, *given) for flag in each.prompt_flags)
        rankings = tuple(ranking for each in given for ranking in each.rankings)
        return replace(item, rankings=rankings, prompt_flags=tuple(flags))

    def report(self) -> dict:
        """Return everybody's progress and, for each two people, how far they agree on what both have judged."""
        from ..metrics.preference import agreement  # here, as it imports scipy, and people wait for the page

        judged = self.judged()
        found = agreement(judged)
        shares, names = found.of_each(), found.annotators
        pairs = [(a, b) for b in range(len(names)) for a in range(b)]
        return {
            "total": len(self.items),
            "agreement": _number(found.by_prompt.micro),
            "people": [_person(name, judged, shares.get(name)) for name in self.everyone()],
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
    whole = isinstance(shown, list) and all(type(number) is int for number in (*numbers, *shown))
    if not whole or sorted(shown) != list(range(count)):
        raise InputError("display: give seed, position and shown, the order of the images on the page")
    return {"seed": numbers[0], "position": numbers[1], "shown": shown}


def _kendall(judged: list[RankedPrompt], one: str, other: str) -> float:
    """Return Kendall's τ-b between two people's rankings, averaged over the prompts that both have judged."""
    from ..metrics.preference import rank_correlation

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


def _version(path: Path) -> str:
    """What a browser's cache tells two versions of an image file apart by."""
    status = path.stat()
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"
