"""What predicting needs of a classifier's state, computed once and kept until the classifier learns again."""

import functools

import numpy as np
import torch

from ..errors import InputError
from .heads import Scores
from .prediction import Predictor
from .state import MixtureState
from .vmf import log_normalizer


class Prepared:
    """A state of `count` classes, ready to predict on unit features (N, d). It does not follow what is learnt afterwards.

    Raises InputError where nothing was learnt.
    """

    def __init__(self, state: MixtureState, count: int):
        if not count:
            raise InputError("nothing has been learnt yet; call partial_fit first")
        self.state, self.count = state, count

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The mixture, laid out."""
        return self.state.predictor(self.count)

    @functools.cached_property
    def _head_scores(self) -> Scores:
        mixture, heads = self.predictor.class_scores, self.state.whole.heads
        if heads is None:
            return mixture
        judged = len(self.state.jury.classes) > 0
        return heads.scores(mixture, float(self.state.choice.temperature), judged)

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Return the head's scores of classes, (N, C) float32."""
        return self._head_scores(features)

    def winners(self, features: torch.Tensor) -> torch.Tensor:
        """Return the most probable class of each row, (N,) places."""
        if self.state.head != "mixture":
            return self.scores(features).argmax(1)
        return self.predictor.winners(features)

    def component_ids(self, features: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        """Return the id of each row's component, (N,): the closest of its class (N,), or the most probable of all."""
        space = self.state.space
        if classes is None:
            return space.ids[self.predictor.components(features)]
        whitener = self.state.whitener()
        return space.ids[space.nearest(space.embed(features, whitener), classes, space.statistics(whitener))]

    def log_density(self, features: torch.Tensor) -> torch.Tensor:
        """Return ln p(z) with equally likely classes, (N,) float64."""
        space, dim = self.state.space, self.state.settings["dim"]
        density = float(log_normalizer(torch.tensor(float(space.kappa)), dim))
        return self.predictor.class_scores(features).double().logsumexp(1) + density - np.log(self.count)
