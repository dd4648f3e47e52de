"""What a stream's run drives: a learner of frozen features, with the methods of `streams.trained.TrainedLearner`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.labelled import LabelledImages
from ..mixtures.classifier import VMFMixtureClassifier
from .options import StreamTraining


def shared_settings(options: StreamTraining) -> dict[str, Any]:
    """Return what a classifier of either regime is made with."""
    return {
        "k_new": options.k_new,
        "estep": options.estep,
        "reduction": options.reduction,
        "alpha": options.alpha,
        "threshold": options.threshold,
        "weights": options.weights,
        "score": options.score,
        "seed": options.seed,
    }


class FrozenLearner:
    """The classifier on features (N, D) of all rows of a table.

    digest: of the backbone's weights.
    """

    def __init__(
        self, options: StreamTraining, features: torch.Tensor, table: LabelledImages, digest: str | None = None
    ):
        self.features, self.names, self.labels = features, np.array(table.labels), table.label_index
        self.classifier = VMFMixtureClassifier(
            features.shape[1],
            **shared_settings(options),
            memory=options.memory,
            jury=options.jury,
            transform=options.transform,
            head=options.head,
            projections=options.projections,
            max_components=options.max_components,
            shrinkage=options.shrinkage,
            encoder=options.backbone,
            encoder_digest=digest,
        )

    def learn(self, session: int, rows: np.ndarray) -> None:
        """Learn the pictures at rows (n,) of the table."""
        self.classifier.partial_fit(self.features[rows], self.names[self.labels[rows]])

    def embed(self, rows: np.ndarray) -> torch.Tensor:
        """Return the features of the pictures at rows, (n, D) float32."""
        return self.features[rows]

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Return the names of the classes of the pictures at rows, (n,)."""
        return self.classifier.predict(self.features[rows])

    def save(self, folder: Path) -> None:
        """Write the classifier."""
        self.classifier.save_pretrained(folder)

    def restore(self, folder: Path) -> None:
        """Go on from what `save` wrote."""
        self.classifier = VMFMixtureClassifier.from_pretrained(folder)

    finish = save
