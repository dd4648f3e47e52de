"""A backbone that learns with its mixture: gradient M-steps between a session's expansion and its reduction.

A session, after Xie, Yan & He (CVPR 2022), section 3; what they leave open is decided here:

1. Expansion in the space as it is: a copy of the classifier learns the session in closed form; what it adds are the new components.
2. Gradient steps of `streams.objective` on the session and the memory, classes and, inside a class, components drawn evenly. The
   teacher is the network and the mixture before step 1.
3. All pictures at hand are embedded again. Each counts to the closest mean of its class; an exemplar stands for as many samples
   as its component had for each exemplar. Counts and resultants are summed in float64 over ranks.
4. κ, reduction by evidence, and a new memory, balanced over classes and components: names of picture files, no pixels.

A component without an exemplar is dropped when the space has moved: nothing tells where it is.
"""

import copy
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from huggingface_hub import load_torch_model
from torch.nn import functional as F

from ..data.labelled import LabelledImages
from ..embeddings.backbones import Backbone
from ..engine.loop import claim, start, train
from ..errors import InputError
from ..mixtures.classifier import VMFMixtureClassifier
from ..mixtures.components import Components
from ..mixtures.em import Recipe, Statistics, reduced
from ..mixtures.memory import select
from ..mixtures.vmf import pooled_concentration
from .frozen import shared_settings
from .network import WEIGHTS, BalancedPictures, Pictures, TrainedBackbone
from .objective import LinearHead, MixtureHead, MixtureObjective, assign
from .options import StreamTraining


class TrainedLearner:
    """Network, mixture and memory of one stream; `learn` a session, then `predict`. Every rank holds the same.

    memory: rows of the table, (M,), and the component ids they stood for, (M,).
    """

    def __init__(self, options: StreamTraining, backbone: Backbone, table: LabelledImages):
        self.options, self.state, self.dim = options, PartialState(), backbone.width
        self.linear: LinearHead | None = None
        self.pictures, self.files = Pictures(backbone, table.files), [str(file) for file in table.files]
        self.names, self.labels = np.array(table.labels), table.label_index
        self.network = TrainedBackbone(backbone.model, options.lora_rank, options.seed).to(self.state.device)
        self.classifier, self.scale = self._empty(), 16.0
        self.memory, self.stood_for = np.empty(0, np.int64), torch.empty(0, dtype=torch.int64)

    # Learning.

    def learn(self, session: int, rows: np.ndarray) -> None:
        """Learn the pictures at rows (n,) of the table; a killed training resumes at its last checkpoint, if options say so."""
        seen = np.concatenate([rows, self.memory])
        features, names = self.embed(seen), self.names[self.labels[seen]]
        grown = copy.deepcopy(self.classifier).partial_fit(features[: len(rows)], names[: len(rows)])
        number = {label: at for at, label in enumerate(grown.classes_)}
        classes = torch.tensor([number[name] for name in names])
        head, ids = self._expanded(grown)
        objective = self._objective(head).train()
        with torch.no_grad():
            places = assign(self._cosine(head, features), head.of_class, classes)
        data = BalancedPictures(self.pictures, seen, classes.numpy(), places.numpy(), self.options.seed, session)
        options = replace(
            self.options,
            output_dir=str(Path(self.options.output_dir) / "training" / f"session-{session + 1}"),
            push_to_hub=False,
        )
        accelerator = start(options)
        claim(accelerator, options)
        train(accelerator, objective, data, options)
        accelerator.free_memory()
        objective.eval().cpu()
        self._close(len(rows), seen, classes, grown, head, ids)

    def _expanded(self, grown: VMFMixtureClassifier) -> tuple[MixtureHead, torch.Tensor]:
        """Return a head of the old components, as the teacher has them, then the new ones; and the ids of both, (K,)."""
        old, new = self.classifier.space, grown.space
        fresh = ~torch.isin(new.ids, old.ids)
        head = MixtureHead(self.dim, torch.cat([old.classes, new.classes[fresh]]).tolist(), self.scale)
        head.means.data = torch.cat([old.statistics(None).means, new.statistics(None).means[fresh]]).float()
        return head, torch.cat([old.ids, new.ids[fresh]])

    def _objective(self, head: MixtureHead) -> MixtureObjective:
        options, old = self.options, self.classifier.space
        if options.head == "linear":
            self.linear = LinearHead.grown(self.linear, self.dim, len(head.of_class))
            return MixtureObjective(self.network, self.linear, None, 0.0, 0.0, 0.0)
        teacher = None
        if len(self.memory) and options.distillation:
            kept = MixtureHead(self.dim, old.classes.tolist(), self.scale)
            kept.means.data = old.statistics(None).means.float()
            teacher = self.network, kept
        return MixtureObjective(
            self.network, head, teacher, options.component_weight, options.distillation, options.regulariser
        )

    def _cosine(self, head: MixtureHead, features: torch.Tensor) -> torch.Tensor:
        return F.normalize(features, dim=1) @ F.normalize(head.means.detach(), dim=1).T

    def _close(self, new: int, seen: np.ndarray, classes: torch.Tensor, grown, head: MixtureHead, ids) -> None:
        """Count the pictures at hand in the space that was learnt, reduce, and choose the memory anew."""
        features = F.normalize(self.embed(seen), dim=1)
        places = assign(self._cosine(head, features), head.of_class, classes)
        one = torch.ones(len(seen), dtype=torch.float64)
        counts, resultants = self._sums(features, places, one, len(ids))
        order = torch.argsort(head.of_class, stable=True)
        kappa = pooled_concentration(counts[order], resultants[order], self.dim) or grown.kappa_
        stands = torch.cat([one[:new], self._stands_for()])
        counts, resultants = self._sums(features, places, stands, len(ids))
        recipe = Recipe(**{field.name: self.classifier.config[field.name] for field in fields(Recipe)})
        whole = Statistics(counts[order], resultants[order], head.of_class[order])
        found, target = reduced(whole, kappa, recipe)
        live = target >= 0
        none = torch.full((len(found.counts),), torch.iinfo(torch.int64).max)
        ids = none.scatter_reduce(0, target[live], ids[order][live], "amin")  # the oldest of those that merged
        place = torch.empty_like(target)
        place[order] = target
        component = place[places]
        self.scale = float(head.log_kappa.detach().exp().clamp(1, 200))
        self.classifier = self._rebuilt(grown, found, ids, kappa)
        shared_by = component if self.options.memory_balance == "components" else classes
        kept = select(features, classes, shared_by, found.counts[component], self.options.memory)
        self.memory, self.stood_for = seen[kept.numpy()], ids[component[kept]]

    def _sums(self, features, places, weights, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return counts (K,) and resultants (K, d), float64: each rank sums its share of the rows, and ranks are added up."""
        mine = slice(self.state.process_index, None, self.state.num_processes)
        values = torch.cat([torch.ones(len(features), 1), features], 1).double() * weights[:, None]
        sums = torch.zeros(size, self.dim + 1, dtype=torch.float64).index_add(0, places[mine], values[mine])
        sums = reduce(sums.to(self.state.device), "sum").cpu()
        return sums[:, 0], sums[:, 1:]

    def _stands_for(self) -> torch.Tensor:
        """How many samples each exemplar stands for, (M,) float64."""
        _, position, exemplars = torch.unique(self.stood_for, return_inverse=True, return_counts=True)
        space = self.classifier.space
        own = (self.stood_for[:, None] == space.ids).long().argmax(1) if len(self.stood_for) else self.stood_for
        return space.counts[own] / exemplars[position]

    def _rebuilt(self, grown: VMFMixtureClassifier, found: Statistics, ids, kappa: float) -> VMFMixtureClassifier:
        """Return a classifier that holds the reduced statistics; its temperature makes κ the softmax's scale that was learnt."""
        row = {**grown.session_log_[-1], "components": len(ids), "kappa": kappa, "temperature": self.scale / kappa}
        components = Components(found, ids, int(grown.space.next_id), kappa, self.scale / kappa)
        log = [*self.classifier.session_log_, row]
        return VMFMixtureClassifier.from_components(components, grown.classes_.tolist(), log, **self._settings())

    def _settings(self) -> dict[str, Any]:
        """The settings of a classifier whose features move: without memory, jury and whitening."""
        options = self.options
        most = 1 if options.head == "linear" else options.max_components
        own = {"max_components": most, "shrinkage": options.shrinkage or 0.0, "encoder": "timm:backbone"}
        return {**shared_settings(options), **own}

    def _empty(self) -> VMFMixtureClassifier:
        return VMFMixtureClassifier(self.dim, memory=0, jury=0, transform="none", **self._settings())

    # Predicting.

    @torch.no_grad()
    def embed(self, rows: np.ndarray) -> torch.Tensor:
        """Return the features of the pictures at rows, (n, D) float32 on the CPU; ranks share the work, all get all."""
        self.network.eval().to(self.state.device)
        rank, ranks, size = self.state.process_index, self.state.num_processes, self.options.batch_size
        mine, found = rows[rank::ranks].tolist(), torch.empty(len(rows), self.dim)
        parts = [torch.empty(0, self.dim)]
        for first in range(0, len(mine), size):
            pixels = torch.stack([self.pictures[row] for row in mine[first : first + size]])
            parts.append(self.network(pixels.to(self.state.device)).cpu())
        for each, part in enumerate(gather_object([torch.cat(parts)])):
            found[each::ranks] = part
        return found

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Return the names of the classes of the pictures at rows, (n,)."""
        if self.linear is None:
            return self.classifier.predict(self.embed(rows))
        with torch.no_grad():
            return self.classifier.classes_[self.linear(self.embed(rows)).argmax(1).numpy()]

    # What is kept from session to session.

    def save(self, folder: Path) -> None:
        """Write classifier, weights and memory, the pictures by the names of their files."""
        self.classifier.save_pretrained(folder)
        self.network.save_pretrained(folder / "backbone")
        if self.linear is not None:
            self.linear.save_pretrained(folder / "linear")
        kept = {"files": [self.files[row] for row in self.memory], "components": self.stood_for.tolist()}
        (folder / "memory.json").write_text(json.dumps({**kept, "scale": self.scale}), encoding="utf-8")

    def restore(self, folder: Path) -> None:
        """Continue from what `save` wrote; InputError if a picture of the memory is not among the data."""
        kept = json.loads((folder / "memory.json").read_text(encoding="utf-8"))
        row = {name: at for at, name in enumerate(self.files)}
        if gone := [name for name in kept["files"] if name not in row]:
            raise InputError(f"{folder}/memory.json: {gone[0]} is not among the data; give the data of the first run")
        self.memory, self.scale = np.array([row[name] for name in kept["files"]], np.int64), kept["scale"]
        self.stood_for = torch.tensor(kept["components"], dtype=torch.int64)
        self.classifier = VMFMixtureClassifier.from_pretrained(folder)
        load_torch_model(self.network, folder / "backbone", strict=True, filename_pattern=WEIGHTS)
        self.linear = LinearHead.from_pretrained(folder / "linear") if (folder / "linear").exists() else None

    def finish(self, folder: Path) -> None:
        """Write what is used from now on: the classifier, and the backbone as a timm folder."""
        self.classifier.save_pretrained(folder)
        self.network.export(folder / "backbone")
