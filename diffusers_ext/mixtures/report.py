"""What a mixture found, a row per component, and how far its probabilities can be believed."""

import torch

from .inputs import Label
from .memory import Exemplars
from .spaces import MixtureSpace
from .state import MixtureState

ENOUGH = 30  # samples that a temperature is fitted on; seven, all right, would make any probability one


def component_rows(space: MixtureSpace, labels: list[Label], exemplars: Exemplars, places: torch.Tensor) -> list[dict]:
    """Return for each component its class, id, samples, share of the class, mean cosine to its mean, and exemplars.

    places (M,): the component of each exemplar. `sessions` are those that the exemplars are of. All values are JSON's.
    """
    total, rows = torch.bincount(space.classes, space.counts, minlength=len(labels)), []
    for index, (count, owner) in enumerate(zip(space.counts.tolist(), space.classes.tolist())):
        own = places == index
        rows.append(
            {
                "class": labels[owner],
                "component": int(space.ids[index]),
                "samples": int(count),
                "share": count / float(total[owner]),
                "mean_cosine": float(space.lengths[index]),
                "exemplars": int(own.sum()),
                "sessions": exemplars.sessions[own].unique().tolist(),
            }
        )
    return rows


def session_row(
    state: MixtureState, session: int, of_samples: torch.Tensor, classes: int, accuracies: dict[str, float]
) -> dict:
    """Return the row of a session of samples of classes (N,); accuracies: of spaces and heads on the jury."""
    return {
        "session": session,
        "samples": len(of_samples),
        "session_classes": len(of_samples.unique()),
        "classes": classes,
        "components": len(state.space.counts),
        "space": state.chosen,
        "score": state.score,
        "kappa": float(state.space.kappa),
        "head": state.head,
        "shrinkage": float(state.choice.setting),
        "temperature": state.temperature,
        "held_out_accuracy": accuracies,
    }


def is_calibrated(state: MixtureState, classes: int) -> bool:
    """Say whether the jury is large enough, and of half the classes or more."""
    jury = state.jury.classes
    return len(jury) >= ENOUGH and 2 * len(jury.unique()) >= classes


def calibration_text(state: MixtureState, classes: int) -> str:
    """Say in words what the probabilities are worth."""
    jury = state.jury.classes
    samples = f"{len(jury)} samples of {len(jury.unique())} of {classes} classes, held out over all sessions"
    if is_calibrated(state, classes):
        return f"probabilities are calibrated on {samples}"
    if not len(jury):
        why = "no samples are held out (jury=0)" if not state.settings["jury"] else "too few samples to hold any out"
        return f"probabilities are not calibrated, and mostly far too sure: {why}; the ranking of classes can be used"
    return f"probabilities are not calibrated yet, only fitted on {samples}; they may be far too sure"
