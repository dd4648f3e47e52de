"""A classifier that learns week after week from new pictures, in its run folder.

    weeks = Weeks(Path("runs/stream"))
    weeks.learn(table, backbone, options)        # learn, measure, save; or nothing at all
    weeks.roll_back()                            # as before the last week

`weeks/3/` is the whole state after week 3: classifier, card, `pictures.jsonl` (every picture learnt or held out, by the
digest of its bytes) and `weeks.jsonl` (a row of measures per week). It is written beside and renamed, whole or absent; then
its files are copied to the run folder itself. A kill between the two is made good by the next command. The state before is kept.
A run of train_incremental.py becomes week 0. Features lie in `cache/`, so that held-out pictures need not be kept.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..cache import Digests, Store, digest_of_file, write_atomically
from ..data.labelled import LabelledImages, Sample, with_splits
from ..data.readable import check_readable, unreadable
from ..data.splits import check_split_names
from ..embeddings.backbones import Backbone, features
from ..engine.checkpoints import MANIFEST, damage, seal
from ..errors import InputError
from ..lines import parse_json, read_text
from ..mixtures.classifier import VMFMixtureClassifier
from ..mixtures.report import calibration_text
from .card import week_card

FILES = ("config.json", "diffusion_pytorch_model.safetensors", "README.md")
PICTURES, WEEKS = "pictures.jsonl", "weeks.jsonl"
FIELDS = {
    PICTURES: {"key", "label", "domain", "held_out", "week"},
    WEEKS: {"week", "learnt", "held_out", "classes", "components", "before", "after"},
}
KEPT = 2  # states: the newest, and the one before for a rollback
HELD_OUT = ("test", "val")  # splits that are never learnt


@dataclass(frozen=True)
class Settings:
    """How a week is learnt. skip: leave pictures out that cannot be read, instead of refusing the week."""

    test_fraction: float = 0.2
    seed: int = 0
    batch_size: int = 16
    skip: bool = False


@dataclass(frozen=True)
class Week:
    """A week's pictures that are new: samples, their digests, and which are held out, (N,) bool."""

    samples: tuple[Sample, ...]
    keys: tuple[str, ...]
    held_out: np.ndarray


class Weeks:
    """The weeks of a run folder. cache: where features are kept, by default inside it."""

    def __init__(self, folder: Path, cache: Path | None = None):
        self.folder, self.states = folder, folder / "weeks"
        self.cache = cache or folder / "cache"
        self._recover()

    @property
    def exists(self) -> bool:
        """Whether the folder holds a classifier."""
        return (self.folder / FILES[0]).is_file()

    def load(self) -> VMFMixtureClassifier:
        """Return the classifier; InputError if the folder holds none, or another kind."""
        try:
            kind = json.loads((self.folder / FILES[0]).read_text(encoding="utf-8")).get("_class_name")
        except (OSError, ValueError, AttributeError):
            raise InputError(f"{self.folder}: holds no classifier; give --backbone to start one there") from None
        if kind != "VMFMixtureClassifier":
            raise InputError(
                f"{self.folder}: holds a {kind}, which cannot learn on; give a VMFMixtureClassifier's folder"
            )
        return VMFMixtureClassifier.from_pretrained(self.folder)

    def learn(
        self, table: LabelledImages, classifier: VMFMixtureClassifier, settings: Settings
    ) -> dict[str, Any] | None:
        """Learn the pictures of a table that are new, and save; return the week's measures, None if nothing is new."""
        known, weeks = self._rows(PICTURES), self._rows(WEEKS)
        _check_names(table)
        week = self._new(table, known, settings)
        if not len(week.samples):
            return None
        backbone = classifier.backbone
        week = self._readable(week, backbone, settings)
        embedded = torch.from_numpy(
            features(backbone, [sample.file for sample in week.samples], self.cache, settings.batch_size, show=True)
        )
        held = self._held_out(known, week, embedded, backbone)
        if (known and not self.states.exists()) or (not self.states.exists() and self.exists):
            self._keep_first(known)
        before = _accuracies(classifier, held)
        components = sum(classifier.n_components_.values())
        learnt = ~week.held_out
        if learnt.any():
            labels = [sample.label for sample, use in zip(week.samples, learnt) if use]
            classifier.partial_fit(embedded[torch.from_numpy(learnt)], _as_known(labels, classifier))
        number = max([self._number(), *(row["week"] for row in weeks)]) + 1  # a damaged state may lack
        row = _measures(number, week, classifier, before, _accuracies(classifier, held), components)
        self._save(classifier, [*known, *_picture_rows(week, row["week"])], [*weeks, row])
        return row

    @property
    def can_roll_back(self) -> bool:
        """Whether the state before the last week is kept."""
        return len(self._numbers()) > 1

    def roll_back(self) -> int:
        """Return to the state before the last week, and say which week that is; InputError if there is none."""
        numbers = self._numbers()
        if len(numbers) < 2:
            raise InputError(f"{self.folder}: no earlier state is kept; a rollback goes back one week, and only once")
        shutil.rmtree(self.states / str(numbers[-1]))
        self._copy(self.states / str(numbers[-2]))
        return numbers[-2]

    # What is new.

    def _new(self, table: LabelledImages, known: list[dict], settings: Settings) -> Week:
        """Return the pictures that were not seen before, split by content; say which are left out."""
        learnt = {row["key"]: row for row in known}
        seen: dict[str, Sample] = {}
        for sample in table.samples:
            key = digest_of_file(sample.file)
            before = learnt[key]["label"] if key in learnt else seen[key].label if key in seen else sample.label
            if before != sample.label:
                _note(f"{sample.file}: the same picture was {before!r} before; left out")
            if key not in learnt:
                seen.setdefault(key, sample)
        repeated = len(table.samples) - len(seen)
        if repeated:
            _note(f"{repeated} of {len(table.samples)} pictures are known already; each is learnt once")
        if not seen:
            return Week((), (), np.zeros(0, bool))
        fresh = LabelledImages.of(seen.values())
        drawn = with_splits(fresh, {"train": 1 - settings.test_fraction, "test": settings.test_fraction}, settings.seed)
        splits = [old.split or new.split for old, new in zip(fresh.samples, drawn.samples)]
        return Week(fresh.samples, tuple(seen), np.array([split in HELD_OUT for split in splits]))

    def _readable(self, week: Week, backbone: Backbone, settings: Settings) -> Week:
        """Return the week without what cannot be decoded; InputError naming all of it unless that is to be skipped."""
        if not settings.skip:
            check_readable([sample.file for sample in week.samples])
            return week
        faults = [unreadable(sample.file) for sample in week.samples]
        good = [place for place, fault in enumerate(faults) if fault is None]
        for fault in filter(None, faults):
            _note(f"left out: {fault}")
        if not good:
            raise InputError("none of the new pictures can be read")
        return Week(
            tuple(week.samples[place] for place in good), tuple(week.keys[place] for place in good), week.held_out[good]
        )

    def _held_out(self, known: list[dict], week: Week, embedded: torch.Tensor, backbone: Backbone) -> "HeldOut":
        """Return the held-out pictures of all weeks, the earlier ones' features from the cache."""
        store = Store(self.cache, {"value": "features", **backbone.identity}, Digests(self.cache))
        earlier = [row for row in known if row["held_out"]]
        gone = set(store.missing([row["key"] for row in earlier]))
        if gone:
            _note(f"{self.cache}: the features of {len(gone)} held-out pictures are gone; accuracy is without them")
        earlier = [row for row in earlier if row["key"] not in gone]
        own = week.held_out.nonzero()[0]
        rows = [store[row["key"]] for row in earlier] + list(embedded[torch.from_numpy(own)])
        labels = [row["label"] for row in earlier] + [week.samples[place].label for place in own]
        domains = [row["domain"] for row in earlier] + [week.samples[place].domain for place in own]
        return HeldOut(torch.stack(rows) if rows else embedded[:0], labels, domains)

    # What is kept.

    def _numbers(self) -> list[int]:
        """The weeks whose whole state is kept, oldest first."""
        names = [path.name for path in self.states.glob("*") if path.name.isdigit()]
        return sorted(int(name) for name in names if damage(self.states / name) is None)

    def _number(self) -> int:
        return max(self._numbers(), default=0)

    def _rows(self, name: str) -> list[dict]:
        path = self.folder / name
        text = read_text(path) if path.is_file() else ""
        rows = [
            (number, parse_json(line, f"{path}:{number}")) for number, line in enumerate(text.split("\n"), 1) if line
        ]
        for number, row in rows:
            if not isinstance(row, dict) or not FIELDS[name] <= row.keys():
                raise InputError(
                    f"{path}:{number}: not as diffusers-ext learn writes it, with {', '.join(sorted(FIELDS[name]))}; "
                    "restore the file"
                )
        return [row for _, row in rows]

    def _keep_first(self, known: list[dict]) -> None:
        """Keep the classifier as a training left it, as week 0."""
        if not known:
            _note(
                f"{self.folder}: it is not recorded which pictures were learnt before, so that they would be learnt again"
            )
        partial = self._partial(0)
        for name in (*FILES, PICTURES):
            if (self.folder / name).is_file():
                shutil.copy(self.folder / name, partial / name)
        self._put(partial, 0)

    def _save(self, classifier: VMFMixtureClassifier, pictures: list[dict], weeks: list[dict]) -> None:
        number = weeks[-1]["week"]
        partial = self._partial(number)
        classifier.save_pretrained(partial)
        week_card(classifier, self.folder.resolve().name, weeks).save(partial / "README.md")
        for name, rows in ((PICTURES, pictures), (WEEKS, weeks)):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_atomically(partial / name, lines.encode())
        self._put(partial, number)
        self._copy(self.states / str(number))
        for old in self._numbers()[:-KEPT]:
            shutil.rmtree(self.states / str(old))

    def _partial(self, number: int) -> Path:
        partial = self.states / f".{number}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def _put(self, partial: Path, number: int) -> None:
        seal(partial, number)
        shutil.rmtree(self.states / str(number), ignore_errors=True)
        os.rename(partial, self.states / str(number))

    def _copy(self, state: Path) -> None:
        """Make the run folder what a state is."""
        for name in (*FILES, PICTURES, WEEKS):
            if (state / name).is_file():
                write_atomically(self.folder / name, (state / name).read_bytes())
            else:
                (self.folder / name).unlink(missing_ok=True)

    def _recover(self) -> None:
        """After a kill: the newest whole state is what the run folder holds."""
        if numbers := self._numbers():
            state = self.states / str(numbers[-1])
            names = [name for name in json.loads((state / MANIFEST).read_text(encoding="utf-8"))["files"]]
            if any(not _same(state / name, self.folder / name) for name in names):
                self._copy(state)


@dataclass(frozen=True)
class HeldOut:
    """Held-out pictures of all weeks: features (N, D), labels and domains."""

    features: torch.Tensor
    labels: list[str]
    domains: list[str]


def picture_rows(samples: Sequence[Sample], held_out: np.ndarray, week: int) -> list[dict[str, Any]]:
    """Return rows of pictures.jsonl for samples of which some are held out, (N,) bool."""
    keys = tuple(digest_of_file(sample.file) for sample in samples)
    return _picture_rows(Week(tuple(samples), keys, held_out), week)


def _picture_rows(week: Week, number: int) -> list[dict[str, Any]]:
    return [
        {"key": key, "label": sample.label, "domain": sample.domain, "held_out": bool(held), "week": number}
        for sample, key, held in zip(week.samples, week.keys, week.held_out)
    ]


def _measures(
    number: int, week: Week, classifier: VMFMixtureClassifier, before: dict, after: dict, components: int
) -> dict[str, Any]:
    """Return a row of weeks.jsonl."""
    learnt = [sample for sample, held in zip(week.samples, week.held_out) if not held]
    return {
        "week": number,
        "learnt": len(learnt),
        "held_out": int(week.held_out.sum()),
        "pictures": dict(sorted(Counter(sample.label for sample in learnt).items())),
        "classes": len(classifier.classes_),
        "components": sum(classifier.n_components_.values()),
        "components_before": components,
        "head": classifier.head_,
        "before": before,
        "after": after,
        "probabilities": calibration_text(classifier.learnt, len(classifier.classes_)),
    }


def _accuracies(classifier: VMFMixtureClassifier, held: HeldOut) -> dict[str, Any]:
    """Return the share that is right, of each domain and of all ("all"), with their numbers; empty before anything is learnt."""
    if not len(held.labels) or not len(classifier.classes_):
        return {}
    hits = np.array([str(label) for label in classifier.predict(held.features)]) == np.array(held.labels)
    domains = np.array(held.domains)
    parts = {domain: hits[domains == domain] for domain in sorted(set(held.domains))}
    return {
        name: {"accuracy": float(part.mean()), "pictures": len(part)} for name, part in {**parts, "all": hits}.items()
    }


def _as_known(labels: list[str], classifier: VMFMixtureClassifier) -> list:
    """Return labels in the type of those that are known: folders name classes 0, 1 ... by text."""
    kind = type(classifier.classes_.tolist()[0]) if len(classifier.classes_) else str
    try:
        return labels if kind in (str, bool) else [kind(label) for label in labels]
    except ValueError:
        raise InputError(
            f"labels: {labels[0]!r}, but earlier classes are of type {kind.__name__}; name them alike"
        ) from None


def _same(first: Path, second: Path) -> bool:
    return (
        second.is_file() and first.stat().st_size == second.stat().st_size and first.read_bytes() == second.read_bytes()
    )


def _check_names(table: LabelledImages) -> None:
    """Raise InputError for splits of unknown names, and for a domain called as the sum of all is."""
    check_split_names(table)
    if alike := next((sample for sample in table.samples if sample.domain == "all"), None):
        raise InputError(
            f"{alike.origin}: domain 'all' is what all domains together are called; rename it, or give --domain"
        )


def _note(text: str) -> None:
    tqdm.write(f"note: {text}")  # between the lines of a bar
