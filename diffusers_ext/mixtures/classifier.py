"""A classifier that keeps learning: per-class mixtures of von Mises-Fisher distributions that grow with the sessions.

After General Incremental Learning with Domain-aware Categorical Representations (Xie, Yan & He, CVPR 2022): a class is a mixture
on the unit sphere whose components stand for domains that nobody labelled; a session first expands the mixtures of its classes,
then learns, then reduces them, and rewrites a memory that is balanced across classes and across components. What the paper leaves
open is decided, and said, in mixtures/em.py, mixtures/reduction.py and mixtures/memory.py; mixtures/state.py is the session.
"""

import warnings
from os import PathLike
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from huggingface_hub import ModelCard

from ..embeddings.backbones import Backbone
from ..embeddings.owner import BackboneOwner
from ..errors import InputError
from ..publish.carded import CardedModel
from .batched import BatchedSession, Batches
from .card import mixture_card
from .components import Components
from .inputs import Label, as_rows, check_kind, directions, number, pack, share_right
from .memory import Exemplars
from .prepared import Prepared
from .report import calibration_text, component_rows, is_calibrated, session_row
from .settings import check_settings, kind_of, plain_settings
from .spaces import MixtureSpace
from .state import MixtureState


class VMFMixtureClassifier(BackboneOwner, CardedModel):
    """Mixtures of von Mises-Fisher distributions on features (N, dim), for labels of any one JSON type.

    memory: exemplars kept in all, as features. jury: samples, of a session and class at most a tenth, that are kept as features
    to choose what is not given: they are never learnt, but count when predicting, see mixture.judge. transform: "none" clusters
    the features' directions, "whiten" those after whitening by the covariance within classes, "auto" keeps both mixtures and
    lets the jury choose. seed: of the seeding of components and of the jury; nothing else is random.
    k_new: components proposed per class and session, at most one for n_min samples or part of them. estep: "soft" or "hard".
    reduction: "evidence", "icl", "kl" or "cosine" with alpha or threshold, see mixture.reduction. max_components: of a class.
    weights: of a class's components, "uniform" or by "counts". score: a component's density, "plugin" or "predictive", see
    mixture.scores, or "auto", which of them the jury finds better. shrinkage: of components' means towards their class's when
    predicting, as many pseudo-samples; 0 is the paper's rule, None lets the jury choose. Without a jury score "auto" is
    "plugin", and None is 0. head: what predicts, "mixture", linear "lda", "ridge" or, on so many random projections, "ranpac",
    "pooled" of mixture and ranpac, or "auto", which of them the jury finds best, see mixture.heads; components, densities and the
    report are the mixture's in any case. standardise: divide each column by its root mean square in the first session before
    rows get unit length; None does so, with a warning, where columns differ more than a hundredfold, see mixture.columns.
    encoder: what the features are of, a backbone's name, for the card and the loader; encoder_digest: of its weights.

    Until there is a jury, that is until ten samples of a class have come, in one session or in several smaller ones, the plain
    space and density predict, linear heads choose their ridge by generalised cross-validation, "pooled" is the mean of both
    heads at equal spread, and probabilities are not calibrated.
    labels, log and grown are what growth left in the configuration: leave them out.

    What was learnt stays in double precision on the CPU, wherever the module is moved; features may be of any device and type.

    >>> rng = np.random.default_rng(0)
    >>> cats, dogs = rng.normal(size=(2, 30, 8)) * 0.1 + np.eye(8)[:2, None]
    >>> classifier = VMFMixtureClassifier(8).partial_fit(np.concatenate([cats, dogs]), ['cat'] * 30 + ['dog'] * 30)
    >>> classifier.predict(np.eye(8)[:2]).tolist()
    ['cat', 'dog']
    >>> classifier.partial_fit(rng.normal(size=(30, 8)) * 0.1 + np.eye(8)[2], ['bird'] * 30).classes_.tolist()
    ['cat', 'dog', 'bird']
    """

    named_by = ("encoder", "encoder_digest")

    @register_to_config
    def __init__(
        self,
        dim: int,
        *,
        memory: int = 2000,
        jury: int = 500,
        transform: str = "auto",
        seed: int = 0,
        k_new: int = 16,
        n_min: int = 4,
        estep: str = "soft",
        reduction: str = "evidence",
        alpha: float = 1.0,
        threshold: float | None = None,
        max_components: int = 32,
        weights: str = "uniform",
        score: str = "auto",
        shrinkage: float | None = None,
        head: str = "mixture",
        projections: int = 2000,
        encoder: str | None = None,
        encoder_digest: str | None = None,
        standardise: bool | None = None,
        labels: list[Label] | None = None,
        log: list[dict] | None = None,
        grown: dict | None = None,
    ):
        super().__init__()
        self.register_to_config(**plain_settings(self.config))
        check_settings(self.config)
        self.learnt = MixtureState(self.config)
        self._labels, self._log = list(labels or []), list(log or [])
        self._prepared: Prepared | None = None
        self._warned = False

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike | None, **kwargs: Any
    ) -> "VMFMixtureClassifier":
        """Load from a folder or the Hub, as every diffusers model; a `torch_dtype` is ignored, statistics stay exact."""
        kwargs.pop("torch_dtype", None)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def of(cls, backbone: Backbone, **settings: Any) -> "VMFMixtureClassifier":
        """Return a classifier of a backbone's embeddings, which notes whose they are and checks it when loaded again."""
        made = cls(backbone.width, **settings, encoder=backbone.name, encoder_digest=backbone.weights)
        return made._with_backbone(backbone)

    @classmethod
    def from_components(
        cls, components: Components, labels: list[Label], log: list[dict] | None = None, **settings: Any
    ) -> "VMFMixtureClassifier":
        """Return a classifier that predicts with components which something else fitted, such as a network that learns.

        labels: names of the classes, by the components' numbers. log: rows of `session_log_`. settings: of the classifier,
        which has no memory, no jury and no whitening.

        >>> from diffusers_ext.mixtures.em import Statistics
        >>> statistics = Statistics(torch.ones(2).double(), torch.eye(2).double(), torch.arange(2))
        >>> components = Components(statistics, ids=torch.arange(2), next_id=2, kappa=50.0)
        >>> VMFMixtureClassifier.from_components(components, ["cat", "dog"]).predict(np.array([[0.9, 0.1]])).tolist()
        ['cat']
        """
        count, dim = components.statistics.resultants.shape
        fixed = {"memory": 0, "jury": 0, "transform": "none"} | {"shrinkage": settings.pop("shrinkage", None) or 0.0}
        made = cls(dim, **fixed, **settings, labels=labels, log=log, grown={"plain": count, "memory": 0, "jury": 0})
        made.learnt.hold(components)
        return made

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_prepared": None}  # a copy prepares its own

    def card(self, name: str) -> ModelCard:
        """Return the card that `save_pretrained` writes."""
        return mixture_card(self, name)

    # What was learnt.

    @property
    def classes_(self) -> np.ndarray:
        """The labels in the order of the columns of `predict_proba`: by session, sorted within."""
        return pack(self._labels)

    @property
    def space(self) -> MixtureSpace:
        """The mixture that predicts."""
        return self.learnt.space

    @property
    def head_(self) -> str:
        """What predicts now: "mixture", "lda", "ridge", "ranpac" or "pooled"."""
        return self.learnt.head

    @property
    def calibrated_(self) -> bool:
        """Whether the jury is large enough for probabilities to be believed: 30 samples, and of half the classes."""
        return is_calibrated(self.learnt, len(self._labels))

    @property
    def exemplars(self) -> Exemplars:
        """The memory as tensors."""
        return self.learnt.exemplars

    @property
    def n_components_(self) -> dict[Label, int]:
        """Components of each class."""
        counts = torch.bincount(self.space.classes, minlength=len(self._labels))
        return dict(zip(self._labels, counts.tolist()))

    @property
    def kappa_(self) -> float:
        """The concentration of every component's density; temperature times it is the softmax's scale."""
        return float(self.space.kappa)

    @property
    def session_log_(self) -> list[dict]:
        """A row per session: samples, classes, components, the space chosen, κ, temperature, accuracies on the jury."""
        return list(self._log)

    @property
    def stored_floats(self) -> int:
        """Numbers carried from session to session, without the memory's exemplars."""
        return sum(value.numel() for name, value in self.named_buffers() if not name.startswith("learnt.exemplars."))

    # Learning.

    def partial_fit(self, features: Any, labels: Any) -> "VMFMixtureClassifier":
        """Learn a session of features (N, dim) and N labels, in any order of classes and domains; returns self.

        Raises InputError for zero or infinite rows, another dimension, labels of another type than before. A session given
        twice counts twice: it adds no components, and predictions hardly move.
        """
        self._learn_session(as_rows(features, self.config.dim), labels)
        return self

    def score(self, features: Any, labels: Any) -> float:
        """Return the share of rows (N, dim) that are predicted as their labels say, 0 to 1."""
        return share_right(self.predict(features).tolist(), labels, self._labels)

    def partial_fit_batches(self, batches: Batches) -> "VMFMixtureClassifier":
        """Learn one session that does not fit in memory, from batches of (features, labels) that can be read several times.

        Up to 1,024 samples of a class, drawn by the seed, are learnt as a session; the others are then counted to their
        nearest components. A session of fewer is learnt exactly as by `partial_fit`. Raises InputError if batches come in
        another order when read again.
        """
        session = BatchedSession(batches, self.config.dim, self.config.seed, len(self._log))
        if not session.sizes:
            return self
        self._learn_session(*session.sample())
        for rows, labels in session.others():
            classes, _ = number(labels, len(rows), self._labels)
            self.learnt.count(self._unit(rows), classes)
            self._log[-1]["samples"] += len(rows)
        self._record()
        return self

    def forget(self, label: Label) -> "VMFMixtureClassifier":
        """Drop a class: its components and exemplars. κ is estimated again; nothing else of other classes changes.

        The tied covariance keeps the class's scatter around its own mean, which is not kept by class.
        """
        if label not in self._labels:
            raise InputError(f"forget: no class {label!r}; classes_ has those that are known")
        gone = self._labels.index(label)
        self.learnt.drop(gone)
        del self._labels[gone]
        self._log.append({"session": len(self._log), "forgotten": label, "classes": len(self._labels)})
        self._record()
        return self

    def merge(self, other: "VMFMixtureClassifier") -> "VMFMixtureClassifier":
        """Take up what another classifier of the same settings learnt, without its data; returns self.

        Statistics add up; components of a class that both know are then reduced. κ is the mean of both, weighted by
        samples, until the next session; both juries choose space, shrinkage, temperature and head together.
        """
        if not isinstance(other, VMFMixtureClassifier) or other is self:
            raise InputError("merge takes one other VMFMixtureClassifier; call it once for each")
        self.learnt.columns.check_mergeable(other.learnt.columns)
        if kind_of(self.config) != kind_of(other.config):
            raise InputError(
                "merge: dim, transform or head of the two classifiers differ, or the draw of their projections"
            )
        check_kind(other._labels, self._labels)
        self._labels += [label for label in other._labels if label not in self._labels]
        places = torch.tensor([self._labels.index(label) for label in other._labels], dtype=torch.int64)
        self.learnt.absorb(other.learnt, places, len(self._labels))
        self._log.append({"session": len(self._log), "merged": len(other._log), "classes": len(self._labels)})
        self._record()
        return self

    # Predicting.

    def decision_function(self, features: Any) -> torch.Tensor:
        """Return the head's scores of classes, (N, C) float32, columns as in `classes_`: the mixture's are ln p(z | class) up to
        a common constant."""
        return self._ready().scores(self._rows(features))

    forward = decision_function  # for those who compose modules

    def predict(self, features: Any) -> np.ndarray:
        """Return the most probable label of each row, (N,)."""
        return self.classes_[self._ready().winners(self._rows(features)).numpy()]

    def predict_proba(self, features: Any) -> np.ndarray:
        """Return class probabilities, (N, C) float64 rows that sum to one, with the temperature fitted on the jury.

        Warns once for each state that is not `calibrated_`.
        """
        if not self.calibrated_ and not self._warned:
            self._warned = True
            warnings.warn(
                f"predict_proba: {calibration_text(self.learnt, len(self._labels))}", UserWarning, stacklevel=2
            )
        scores = self.decision_function(features).double() * self.learnt.temperature
        return scores.softmax(1).numpy()

    def predict_component(self, features: Any, labels: Any = None) -> np.ndarray:
        """Return the id of each row's component, (N,) int64: the closest of its class where labels are given (equation 6),
        else the most probable of all. Ids are never used again."""
        rows = self._rows(features)
        if labels is None:
            return self._ready().component_ids(rows).numpy()
        classes, known = number(labels, len(rows), self._labels)
        if len(known) > len(self._labels):
            raise InputError(f"no class {known[len(self._labels)]!r}; classes_ has those that are known")
        return self._ready().component_ids(rows, classes).numpy()

    def score_samples(self, features: Any) -> np.ndarray:
        """Return ln p(z) with equally likely classes, (N,) float64: low values are novel. Comparable within one session only."""
        return self._ready().log_density(self._rows(features)).numpy()

    def report(self) -> list[dict]:
        """Return a row per component: class, id, samples, share of its class, mean cosine, exemplars and their sessions."""
        return component_rows(self.space, self._labels, self.exemplars, self._places())

    @property
    def memory_(self) -> dict[str, np.ndarray]:
        """The exemplars: features (M, dim), labels, component ids and sessions."""
        memory = self.exemplars
        labels, ids = self.classes_[memory.classes.numpy()], self.space.ids[self._places()].numpy()
        features, sessions = memory.features.numpy(), memory.sessions.numpy()
        return {"features": features, "labels": labels, "components": ids, "sessions": sessions}

    def _places(self) -> torch.Tensor:
        """The component of each exemplar, (M,) positions."""
        return self.exemplars.places(self.space, self.learnt.whitener())

    def _rows(self, features: Any) -> torch.Tensor:
        """Return features as they are learnt: checked, their columns scaled, of unit length."""
        return self._unit(as_rows(features, self.config.dim))

    def _unit(self, rows: torch.Tensor) -> torch.Tensor:
        return directions(self.learnt.columns(rows))

    def _learn_session(self, rows: torch.Tensor, labels: Any) -> None:
        """Learn rows (N, dim) as they came and N labels, or refuse them before anything is learnt."""
        classes, known = number(labels, len(rows), self._labels)
        directions(rows)
        if not len(rows):
            return
        self.learnt.columns.learn(rows, first=not self._labels)
        self._labels = known
        accuracies = self.learnt.learn(self._unit(rows), classes, len(known), len(self._log))
        self._log.append(session_row(self.learnt, len(self._log), classes, len(known), accuracies))
        self._record()

    def _record(self) -> None:
        """Write what grew into the configuration, from which a loaded classifier is built."""
        self._prepared, self._warned = None, False
        log = [dict(row) for row in self._log]
        self.register_to_config(labels=list(self._labels), log=log, grown=self.learnt.grown)

    def _ready(self) -> Prepared:
        """What predicts, prepared once for each state."""
        if self._prepared is None:
            self._prepared = Prepared(self.learnt, len(self._labels))
        return self._prepared
