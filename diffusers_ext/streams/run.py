"""A stream learnt session by session, each kept whole before the next begins; then baselines, plots and pictures.

The run folder holds `protocol.json` (which classes and domains came when), `metrics.jsonl` (a row per session), `session-3/`
(the learner after session 3), `results.json`, `baselines.jsonl`, `accuracy.png`, `components.png`, `samples/components.png`, the
card, `pictures.jsonl` (what was learnt and what held out, by content) and the classifier itself; where the backbone learns, `backbone/`, and in `training/session-3/` the steps of session 3.
"""

import json
import os
import shutil
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..cache import digest_of, write_atomically
from ..data.files import load
from ..data.labelled import LabelledImages
from ..embeddings.backbones import features, load_backbone
from ..engine.checkpoints import damage, seal
from ..engine.hub import open_repository
from ..engine.provenance import Source, compare, digest_of_values, record_of
from ..engine.resume import refusal, refuse_together
from ..engine.run_folder import METRICS, read_metrics, write_options
from ..errors import InputError
from ..figures import labelled_grid, plot_curves
from ..options import as_dict
from .baselines import baselines
from .card import name_of, write_incremental_card
from .frozen import FrozenLearner
from .measures import StreamState, evaluate_stream
from .options import StreamTraining
from .sessions import Sessions
from .trained import TrainedLearner
from .weeks import PICTURES, picture_rows

BASELINES = "baselines.jsonl"
SHOWN = 8  # components of a picture sheet, and pictures of each
INCIDENTAL = {  # options that may differ when a stream is resumed: where things lie, how often they are kept, who is told
    *("output_dir", "data", "domains", "encoder_cache_dir", "batch_size", "dataloader_num_workers", "baselines"),
    *("logging_steps", "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "dry_run"),
    *("report_to", "logging_dir", "tracker_project_name", "push_to_hub", "hub_model_id", "hub_token"),
}


class Run:
    """What train_incremental.py does, in the order of its methods."""

    def __init__(
        self,
        options: StreamTraining,
        accelerator: Accelerator,
        table: LabelledImages,
        test: np.ndarray,
        sessions: Sessions,
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
        """Load the backbone and compute what the cache lacks; ranks share the work. InputError if it would resume another stream."""
        self._claim()
        assert self.options.backbone is not None
        backbone = load_backbone(self.options.backbone, self.accelerator.device)
        if self.accelerator.is_main_process:
            protocol = self.sessions.as_dict(self.table.labels, self.table.domains)
            write_atomically(self.folder / "protocol.json", json.dumps(protocol, indent=1).encode())
        self.accelerator.wait_for_everyone()
        if self.options.regime == "frozen" or self.options.baselines:
            cache = self.options.encoder_cache_dir or self.folder / "cache"
            show = self.accelerator.is_main_process
            known = features(backbone, self.table.files, cache, self.options.batch_size, show)
            self.features = torch.from_numpy(known)
        if self.options.regime == "frozen":
            self.learner: FrozenLearner | TrainedLearner = FrozenLearner(
                self.options, self.features, self.table, backbone.weights
            )
        else:
            self.learner = TrainedLearner(self.options, backbone, self.table)

    def learn(self) -> None:
        """Learn what no session folder holds yet; every rank learns the same, the main one writes."""
        state, main = self._resumed(), self.accelerator.is_main_process
        if main:
            self._note(state)  # a kill may have come between the last session and its row
        bar = tqdm(range(state.done, len(self.sessions)), desc="sessions", disable=not main)
        for now in bar:
            rows = self.sessions.rows(now, ~self.test)
            if len(rows):
                self.learner.learn(now, rows)
            row = state.test(self._predict, self.learner.classifier.n_components_)
            bar.set_postfix(accuracy=f"{row['accuracy']:.1f}", components=sum(row["components"].values()))
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

    def sheet(self) -> None:
        """Draw the picture of components; ranks share the embedding, where the backbone has moved."""
        embedded = self.learner.embed((~self.test).nonzero()[0])
        if self.accelerator.is_main_process:
            self._sheet(embedded).save(_made(self.folder / "samples" / "components.png"))

    def finish(self) -> None:
        """Write classifier, plots and card."""
        self.learner.finish(self.folder)
        rows, classifier = self.state.rows, self.learner.classifier
        steps = [row["step"] for row in rows]
        curves = {name_of(self.options.head): (steps, [row["accuracy"] for row in rows])}
        for result in self._baselines():
            curves[result["learner"]] = (steps, result["accuracy"])
        plot_curves(self.folder / "accuracy.png", curves, "session", "accuracy on all seen, %")
        labels = list(classifier.n_components_)
        grown = {str(label): (steps, [row["components"].get(str(label), 0) for row in rows]) for label in labels[:12]}
        plot_curves(self.folder / "components.png", grown, "session", "components")
        ours = {**self.state.summary(), "stored_floats": classifier.stored_floats}
        write_atomically(self.folder / "results.json", (json.dumps(ours, indent=1) + "\n").encode())
        pictures = picture_rows(self.table.samples, self.test, 0)
        self._write_rows(PICTURES, pictures)
        write_incremental_card(self.folder, ours, self._baselines(), classifier)

    def _rivals(self) -> dict:
        options = self.options
        return baselines(self.features.shape[1], options.seed, options.memory, (options.projections,))

    def _baselines(self) -> list[dict]:
        return read_metrics(self.folder, BASELINES)

    def _predict(self, rows: np.ndarray) -> np.ndarray:
        """Labels of rows, as positions in the table's names."""
        number = {label: at for at, label in enumerate(self.table.labels)}
        return np.array([number[label] for label in self.learner.predict(rows)])

    @cached_property
    def _stream(self) -> str:
        """A digest of what is learnt in which order, and how."""
        options = {name: value for name, value in as_dict(self.options).items() if name not in INCIDENTAL}
        protocol = self.sessions.as_dict(self.table.labels, self.table.domains)
        samples = [[Path(str(row.file)).name, row.label, row.domain, row.split] for row in self.table.samples]
        return digest_of(json.dumps([options, protocol, samples], default=str))

    def _last_whole(self) -> Path | None:
        """The newest session folder that is whole, if the run is resumed."""
        if not self.options.resume_from_checkpoint:
            return None
        folders = sorted(self.folder.glob("session-*"), key=lambda folder: -int(folder.name.removeprefix("session-")))
        return next((folder for folder in folders if damage(folder) is None), None)

    def _claim(self) -> None:
        """Make the folder this run's, unless it would resume another stream; every rank comes to the same end."""
        self.accelerator.wait_for_everyone()
        problem = None
        if self.accelerator.is_main_process:
            try:
                self._check_resumed()
                if self.options.push_to_hub:
                    open_repository(self.folder, self.options)
                write_options(self.folder, self.options, self._sources)
            except InputError as error:
                problem = str(error)
        refuse_together(self.accelerator, problem)

    @cached_property
    def _sources(self) -> dict[str, dict]:
        """The pictures by name, class, domain and split, as `_stream` has them."""
        samples = [[Path(str(row.file)).name, row.label, row.domain, row.split] for row in self.table.samples]
        source = Source(("data", "domains"), digest_of_values(samples), f"{len(samples)} pictures")
        backbone = Source(("backbone",), digest_of_values(self.options.backbone))
        return {"data": vars(source), "backbone": vars(backbone)}

    def _check_resumed(self) -> None:
        folder = self._last_whole()
        learn = f"to learn new pictures: diffusers-ext learn {self.folder} --data FOLDER"
        if (self.folder / "weeks").exists():
            raise InputError(f"{self.folder}: has learnt more since this stream, which would be lost; {learn}")
        if folder and json.loads((folder / "measures.json").read_text(encoding="utf-8"))["stream"] != self._stream:
            options = as_dict(self.options)
            refused = compare(record_of(folder), options, self._sources, options.keys() - INCIDENTAL).refused
            raise InputError(refusal(folder, refused, f"start a new stream in another --output_dir; {learn}"))

    def _resumed(self) -> StreamState:
        """Return the measures after the last whole session, the learner standing there too; or new ones."""
        state, folder = StreamState(self.sessions, self.test), self._last_whole()
        if folder:
            state.restore(json.loads((folder / "measures.json").read_text(encoding="utf-8")))
            self.learner.restore(folder)
        return state

    def _keep(self, now: int, state: StreamState) -> None:
        """Write session-N beside, then rename it: whole or absent. Earlier ones but the last go."""
        final, partial = self.folder / f"session-{now + 1}", self.folder / f".session-{now + 1}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        self.learner.save(partial)
        (partial / "measures.json").write_text(
            json.dumps({**state.as_dict(), "stream": self._stream}), encoding="utf-8"
        )
        seal(partial, now + 1)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        self._note(state)
        for old in range(1, now):
            shutil.rmtree(self.folder / f"session-{old}", ignore_errors=True)
        for steps in (self.folder / "training" / f"session-{now + 1}").glob("checkpoint-*"):
            shutil.rmtree(steps)  # the session is whole

    def _note(self, state: StreamState) -> None:
        self._write_rows(METRICS, state.rows)

    def _write_rows(self, name: str, rows: list[dict]) -> None:
        write_atomically(self.folder / name, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def _sheet(self, embedded: torch.Tensor):
        """What did each component find? Of the largest components, the training pictures closest to the middle of theirs."""
        classifier = self.learner.classifier
        report = sorted(classifier.report(), key=lambda row: -row["samples"])[:SHOWN]
        train = (~self.test).nonzero()[0]
        component = classifier.predict_component(embedded)
        rows, labels = [], []
        for row in report:
            mine = (component == row["component"]).nonzero()[0]
            unit = F.normalize(embedded[mine], dim=1)
            closest = mine[(unit @ unit.mean(0)).argsort(descending=True)[:SHOWN].numpy()] if len(mine) else mine
            rows.append([load(self.table.files[at]) for at in train[closest]])
            domains = {self.table.samples[at].domain for at in train[mine]}
            labels.append(
                f"{row['class']}, component {row['component']}: {row['samples']} samples; {', '.join(sorted(domains))}"
            )
        return labelled_grid(rows, [""] * SHOWN, labels, 96, "pictures of the largest components")


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
