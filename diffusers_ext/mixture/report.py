"""What a mixture found, a row per component."""

import torch

from .inputs import Label
from .memory import Exemplars
from .spaces import MixtureSpace


def component_rows(space: MixtureSpace, labels: list[Label], exemplars: Exemplars, places: torch.Tensor) -> list[dict]:
    """Return for each component its class, id, samples, share of the class, mean cosine to its mean, and exemplars.

    places (M,): the component of each exemplar. `sessions` are those that the exemplars are of. All values are JSON's.
    """
    total, rows = torch.bincount(space.classes, space.counts, minlength=len(labels)), []
    for at, (count, owner) in enumerate(zip(space.counts.tolist(), space.classes.tolist())):
        own = places == at
        rows.append(
            {
                "class": labels[owner],
                "component": int(space.ids[at]),
                "samples": int(count),
                "share": count / float(total[owner]),
                "mean_cosine": float(space.lengths[at]),
                "exemplars": int(own.sum()),
                "sessions": exemplars.sessions[own].unique().tolist(),
            }
        )
    return rows
