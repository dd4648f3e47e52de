"""A stream learnt session by session, each kept whole before the next begins; then baselines, plots and pictures.

The run folder holds `protocol.json` (which classes and domains came when), `metrics.jsonl` (a row per session), `session-3/`
(the classifier after session 3), `baselines.jsonl`, `accuracy.png`, `components.png`, `samples/components.png`, the card and
the classifier itself.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from .backbones import features, load_backbone
from .cache import write_atomically
from .cards.incremental import write_incremental_card
from .checkpoints import damage, seal
from .data.files import load
from .data.labelled import LabelledImages
from .data.sessions import Sessions
from .grids import labelled_grid, plot_curves
from .incremental_baselines import baselines
from .metrics.incremental import StreamState, evaluate_stream
from .mixtures import VMFMixtureClassifier
from .run_folder import METRICS, read_metrics, write_options

BASELINES = "baselines.jsonl"
SHOWN = 8  # components of a picture sheet, and pictures of each


class Run:
    """What train_incremental.py does, in the order of its methods."""

    def __init__(
        self, options: Any, accelerator: Accelerator, table: LabelledImages, test: np.ndarray, sessions: Sessions
    ):
        self.options, self.accelerator, self.table, self.test, self.sessions = (
            options,
            accelerator,
            table,
            test,
            sessions,
        )
        self.folder = Path(options.output_dir)

    def encode(self) -> None:
        """Load the backbone and compute what the cache lacks; ranks share the work."""
        backbone = load_backbone(self.options.backbone, self.accelerator.device)
        if self.accelerator.is_main_process:
            write_options(self.folder, self.options)
            protocol = self.sessions.as_dict(self.table.labels, self.table.domains)
            write_atomically(self.folder / "protocol.json", json.dumps(protocol, indent=1).encode())
        self.accelerator.wait_for_everyone()
        cache = self.options.encoder_cache_dir or self.folder / "cache"
        show = self.accelerator.is_main_process
        found = features(backbone, self.table.files, cache, self.options.batch_size, show)
        self.features = torch.from_numpy(found)

    def learn(self) -> None:
        """Learn what no session folder holds yet; every rank learns the same, the main one writes."""
        self.classifier, state = self._resumed()
        if self.accelerator.is_main_process:
            self._note(state)  # a kill may have come between the last session and its row
        names, main = np.array(self.table.labels), self.accelerator.is_main_process
        bar = tqdm(range(state.done, len(self.sessions)), desc="sessions", disable=not main)
        for now in bar:
            rows = self.sessions.rows(now, ~self.test)
            if len(rows):
                self.classifier.partial_fit(self.features[rows], names[self.sessions.labels[rows]])
            row = state.test(self._predict, self.classifier.n_components_)
            bar.set_postfix(accuracy=f"{row['accuracy']:.1f}", components=len(self.classifier.space.counts))
            if main:
                self._keep(now, state)
        self.state = state
        self.accelerator.wait_for_everyone()

    def compare(self) -> None:
        """Run the baselines that have no row yet, on the same sessions."""
        rows = self._baselines()
        done = {row["learner"] for row in rows}
        made = self._rivals() if self.options.baselines else {}
        for name, learner in tqdm(made.items(), desc="baselines"):
            if name not in done:
                result = evaluate_stream(learner, self.features, self.sessions, self.test)
                rows.append({"learner": name, **result})
                self._write_rows(BASELINES, rows)

    def finish(self) -> None:
        """Write classifier, plots, pictures and card."""
        self.classifier.save_pretrained(self.folder)
        rows = self.state.rows
        steps = [row["step"] for row in rows]
        curves = {"vMF mixture": (steps, [row["accuracy"] for row in rows])}
        for result in self._baselines():
            curves[result["learner"]] = (steps, result["accuracy"])
        plot_curves(self.folder / "accuracy.png", curves, "session", "accuracy on all seen, %")
        labels = list(self.classifier.n_components_)
        grown = {str(label): (steps, [row["components"].get(str(label), 0) for row in rows]) for label in labels[:12]}
        plot_curves(self.folder / "components.png", grown, "session", "components")
        self._sheet().save(_made(self.folder / "samples" / "components.png"))
        ours = {**self.state.summary(), "stored_floats": self.classifier.stored_floats}
        write_incremental_card(self.folder, ours, self._baselines(), self.classifier)

    def _rivals(self) -> dict:
        options = self.options
        return baselines(self.features.shape[1], options.seed, options.memory, (options.projections,))

    def _baselines(self) -> list[dict]:
        return read_metrics(self.folder, BASELINES)

    def _predict(self, rows: np.ndarray) -> np.ndarray:
        """Labels of rows, as positions in the table's names."""
        number = {label: at for at, label in enumerate(self.table.labels)}
        return np.array([number[label] for label in self.classifier.predict(self.features[rows])])

    def _resumed(self) -> tuple[VMFMixtureClassifier, StreamState]:
        """Return the classifier and measures after the last whole session, or new ones."""
        state = StreamState(self.sessions, self.test)
        if self.options.resume_from_checkpoint:
            for now in reversed(range(len(self.sessions))):
                folder = self.folder / f"session-{now + 1}"
                if folder.exists() and damage(folder) is None:
                    state.restore(json.loads((folder / "measures.json").read_text(encoding="utf-8")))
                    return VMFMixtureClassifier.from_pretrained(folder), state
        return self._new(), state

    def _new(self) -> VMFMixtureClassifier:
        options = self.options
        return VMFMixtureClassifier(
            self.features.shape[1],
            memory=options.memory,
            transform=options.transform,
            seed=options.seed,
            k_new=options.k_new,
            estep=options.estep,
            reduction=options.reduction,
            alpha=options.alpha,
            threshold=options.threshold,
            max_components=options.max_components,
            weights=options.weights,
            score=options.score,
            shrinkage=options.shrinkage,
            encoder=options.backbone,
        )

    def _keep(self, now: int, state: StreamState) -> None:
        """Write session-N beside, then rename it: whole or absent. Earlier ones but the last go."""
        final, partial = self.folder / f"session-{now + 1}", self.folder / f".session-{now + 1}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        self.classifier.save_pretrained(partial)
        (partial / "measures.json").write_text(json.dumps(state.as_dict()), encoding="utf-8")
        seal(partial, now + 1)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        self._note(state)
        for old in range(1, now):
            shutil.rmtree(self.folder / f"session-{old}", ignore_errors=True)

    def _note(self, state: StreamState) -> None:
        self._write_rows(METRICS, state.rows)

    def _write_rows(self, name: str, rows: list[dict]) -> None:
        write_atomically(self.folder / name, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def _sheet(self):
        """What did each component find? Pictures that are closest to the largest components, several classes."""
        report = sorted(self.classifier.report(), key=lambda row: -row["samples"])[:SHOWN]
        train = (~self.test).nonzero()[0]
        component = self.classifier.predict_component(self.features[train])
        rows, labels = [], []
        for row in report:
            mine = train[component == row["component"]][:SHOWN]
            rows.append([load(self.table.files[at]) for at in mine])
            domains = {self.table.samples[at].domain for at in train[component == row["component"]]}
            labels.append(
                f"{row['class']}, component {row['component']}: {row['samples']} samples; {', '.join(sorted(domains))}"
            )
        return labelled_grid(rows, [""] * SHOWN, labels, 96, "pictures of the largest components")


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
