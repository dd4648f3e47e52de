"""What LADS has to beat, on the same embeddings, splits and seeds; one table.

Every entry is a function of unit rows: (N, D) -> probabilities (R, N, C), R the seeds. Nearly all are linear heads.

    zero-shot, generic      text of class names alone
    zero-shot, adaptive     text that names source and target domains
    linear probe            on the source images; "from zero-shot" starts at the adaptive text's weights
    WiSE                    the mean of those weights and that text (Wortsman et al. 2022)
    ensemble                the mean of zero-shot and probe probabilities
    calibrated ensemble     the same, each with the temperature that fits the validation images (Guo et al. 2017); of SLERP too
    text delta              a probe on images and images moved by the plain difference of texts (TextManiA, 2023)
    addition, SLERP         the same, by a unit move towards the target, and half of the way on the sphere
    debiased                text, or images of a probe, without what tells the domains apart (Chuang et al. 2023)
    few images              the move is the difference of mean images; needs some of each target domain
    mean images             the same between the two domains of the bias setting, where all are at hand
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import torch
from torch.nn import functional as F

from .. import randomness
from .data import Embedded, Splits
from .domains import DomainText
from .measures import Difference, extension, paired
from .objective import Probe
from .options import LADSOptions
from .training import ProbeRows, domain_means, row_weights, starts_of, train_probe

Classify = Callable[[torch.Tensor], torch.Tensor]
TEMPERATURE = 100.0  # of zero-shot probabilities, CLIP's
BASELINE = "linear probe"  # that the others are compared with
MOVES = ("text delta", "addition", "SLERP")  # that need no training
FACTORS = torch.logspace(-1, 3, 81)  # that logits may be scaled by
KEEP_PAIRS = 1000.0  # λ of calibrated debiasing


def zero_shot(classes: torch.Tensor) -> Classify:
    """softmax(100·cos): classes (C, D) unit rows.

    >>> zero_shot(torch.eye(2))(torch.eye(2)).argmax(-1).tolist()
    [[0, 1]]
    """
    return lambda x: (TEMPERATURE * x @ classes.T).softmax(-1)[None]


def linear(probe: Probe) -> Classify:
    return lambda x: probe.logits(x.expand(len(probe.bias), -1, -1)).softmax(-1)


def ensemble(first: Classify, second: Classify) -> Classify:
    """The mean of two classifiers' probabilities.

    >>> text = zero_shot(torch.eye(2))
    >>> ensemble(text, text)(torch.eye(2)).shape
    torch.Size([1, 2, 2])
    """
    return lambda x: (first(x) + second(x)) / 2


def temperatures(probe: Probe, classes: torch.Tensor, val: Embedded) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors of zero-shot cosines, (), and of each probe's logits, (R,), that make the images of `val` likeliest.

    classes (C, D). No target image is needed: of two calibrated classifiers the surer one counts more, image by image.
    """

    def best(logits: torch.Tensor) -> torch.Tensor:
        losses = [F.cross_entropy(factor * logits, val.labels) for factor in FACTORS]
        return FACTORS[torch.stack(losses).argmin()]

    each = probe.logits(val.x.expand(len(probe.bias), -1, -1))
    return best(val.x @ classes.T), torch.stack([best(logits) for logits in each])


def calibrated(probe: Probe, classes: torch.Tensor, val: Embedded) -> Classify:
    """The mean of calibrated zero-shot and probe probabilities; see `temperatures`."""
    by_text, by_probe = (factor.to(val.x) for factor in temperatures(probe, classes, val))
    scaled = Probe(by_probe[:, None, None] * probe.weight, by_probe[:, None] * probe.bias)
    return ensemble(lambda x: (by_text * x @ classes.T).softmax(-1)[None], linear(scaled))


def wise(probe: Probe, classes: torch.Tensor, share: float = 0.5) -> Classify:
    """A probe with weights (1 − share)·E + share·W, its bias scaled alike; it should have started from E (C, D)."""
    return linear(Probe((1 - share) * classes + share * probe.weight, share * probe.bias))


def slerp(x: torch.Tensor, towards: torch.Tensor, share: float) -> torch.Tensor:
    """Go a share of the way on the great circle: (sin((1−t)ω)·x + sin(tω)·y) / sin ω, ω the angle; (..., D) each.

    >>> slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0.5)
    tensor([0.7071, 0.7071])
    """
    cosine = (F.normalize(x, dim=-1) * F.normalize(towards, dim=-1)).sum(-1, keepdim=True)
    angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()
    return (((1 - share) * angle).sin() * x + (share * angle).sin() * towards) / angle.sin()


def text_pairs(train: Embedded, text: DomainText) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each image's start and targets in text, (N, D) and (K, N, D); in the bias setting K is 1, the other domain."""
    starts = starts_of(train, text)
    targets = text.source[1 - starts, train.labels][None] if text.swap else text.targets[:, train.labels]
    return text.source[starts, train.labels], targets


def moved_by_text(train: Embedded, text: DomainText, how: str) -> torch.Tensor:
    """Return the images moved to each target without any training, (K, N, D) unit rows; how: of MOVES."""
    start, targets = text_pairs(train, text)
    if how == "SLERP":
        return F.normalize(slerp(train.x, targets, 0.5), dim=-1)
    difference = targets - start
    return F.normalize(train.x + (F.normalize(difference, dim=-1) if how == "addition" else difference), dim=-1)


def moved_by_images(train: Embedded, few: Iterable[Embedded]) -> torch.Tensor:
    """Return the images moved by mean(few images of a target) − mean(training images), (K, N, D) unit rows."""
    return F.normalize(torch.stack([train.x + (each.x.mean(0) - train.x.mean(0)) for each in few]), dim=-1)


def swapped_by_images(train: Embedded) -> torch.Tensor:
    """Return the images moved to the other of two domains by the difference of their mean images, (1, N, D) unit rows."""
    means = domain_means(train)
    return F.normalize(train.x + means[1 - train.domains] - means[train.domains], dim=-1)[None]


def debiasing(text: DomainText) -> torch.Tensor:
    """Return P, (D, D), that forgets the domains: P₀(I + λ/|S| Σ (z_i − z_j)(z_i − z_j)ᵀ)⁻¹, symmetric P₀ = I − V Vᵀ.

    V spans the differences of the domains' mean texts; S are pairs of one class in two domains, which are to become equal
    (Chuang et al. 2023, the calibrated projection).
    """
    means = text.domains.mean(1)
    spanned, sizes, _ = torch.linalg.svd((means[1:] - means[:1]).T, full_matrices=False)
    v = spanned[:, sizes > 1e-6 * sizes.max()]
    identity = torch.eye(means.shape[1], device=means.device)
    first, second = torch.triu_indices(len(means), len(means), 1)
    pairs = (text.domains[first] - text.domains[second]).flatten(0, 1)
    return (identity - v @ v.T) @ torch.linalg.inv(identity + KEEP_PAIRS / len(pairs) * pairs.T @ pairs)


def baselines(
    splits: Splits,
    text: DomainText,
    options: LADSOptions,
    seeds: Sequence[int],
    few: Mapping[str, Embedded] | None = None,
) -> dict[str, Classify]:
    """Train all that LADS is compared with. few: some images of each domain, or none."""
    train, common = splits.train, (splits, options, seeds)
    adaptive, projection = zero_shot(text.adaptive), debiasing(text)
    plain, started = probe_with([], *common), probe_with([], *common, text.adaptive)
    moved = {how: probe_with(moved_by_text(train, text, how), *common) for how in MOVES}
    found = {
        "zero-shot, generic": zero_shot(text.generic),
        "zero-shot, adaptive": adaptive,
        "zero-shot, debiased": zero_shot(F.normalize(text.generic @ projection.T, dim=-1)),
        BASELINE: linear(plain),
        "linear probe from zero-shot": linear(started),
        "WiSE": wise(started, text.adaptive),
        "ensemble of zero-shot and probe": ensemble(adaptive, linear(plain)),
        "calibrated ensemble of zero-shot and probe": calibrated(plain, text.adaptive, splits.val),
        "probe, debiased": probe_debiased(projection, *common),
        **{f"probe + {how}": linear(probe) for how, probe in moved.items()},
        "calibrated ensemble of zero-shot and probe + SLERP": calibrated(moved["SLERP"], text.adaptive, splits.val),
    }
    if text.swap:
        found["probe + mean images"] = linear(probe_with(swapped_by_images(train), *common))
    if few:
        found["probe + few images"] = linear(probe_with(moved_by_images(train, few.values()), *common))
    return found


def of_lads(probe: Probe, text: DomainText, val: Embedded, name: str = "LADS") -> dict[str, Classify]:
    """LADS, and its ensembles with text."""
    return {
        name: linear(probe),
        f"ensemble of zero-shot and {name}": ensemble(zero_shot(text.adaptive), linear(probe)),
        f"calibrated ensemble of zero-shot and {name}": calibrated(probe, text.adaptive, val),
    }


def probe_with(
    moved: torch.Tensor | Sequence[torch.Tensor],
    splits: Splits,
    options: LADSOptions,
    seeds: Sequence[int],
    start: torch.Tensor | None = None,
) -> Probe:
    """Train a probe on the images and on what each of K training-free moves makes of them, (K, N, D); K may be 0."""
    return train_probe(equal_rows(splits.train, moved), splits.val, options, seeds, start).probe


def equal_rows(train: Embedded, moved: torch.Tensor | Sequence[torch.Tensor] = ()) -> ProbeRows:
    """Return the training images and what each move makes of them, (K, N, D), as rows whose classes weigh alike."""
    labels = train.labels.repeat(len(moved) + 1)
    kept = torch.ones(1, len(labels), dtype=torch.bool, device=labels.device)
    return ProbeRows(torch.cat([train.x, *moved]), labels, row_weights(labels, kept, len(train.classes)))


def probe_debiased(projection: torch.Tensor, splits: Splits, options: LADSOptions, seeds: Sequence[int]) -> Classify:
    """A probe of images that went through a projection (D, D)."""

    def projected(data: Embedded) -> Embedded:
        return replace(data, x=F.normalize(data.x @ projection.T, dim=-1))

    classify = linear(
        probe_with([], replace(splits, train=projected(splits.train), val=projected(splits.val)), options, seeds)
    )
    return lambda x: classify(F.normalize(x @ projection.T, dim=-1))


def take_few(splits: Splits, count: int, seed: int = 0) -> tuple[dict[str, Embedded], Splits]:
    """Take some images of each target domain out of its test set; return them and the splits without them."""
    few, rest = {}, {}
    for name, test in splits.out_of_domain.items():
        order = torch.from_numpy(randomness.generator(seed, f"lads-few-{name}").permutation(len(test)))
        few[name] = test.where(order[:count])
        rest[name] = test.where(order[count:].sort().values)
    return few, Splits(splits.train, splits.val, splits.in_domain, rest)


@dataclass
class Row:
    """A method: for each measure its value with each seed; and its difference to the baseline out of domain."""

    method: str
    values: dict[str, list[float]]
    difference: Difference | None = None

    def cell(self, measure: str) -> str:
        each = self.values[measure]
        spread = f" ± {stdev(each):.2f}" if len(each) > 1 and stdev(each) > 0 else ""
        return f"{fmean(each):.2f}{spread}"


@torch.no_grad()
def measure(classifiers: dict[str, Classify], splits: Splits, seeds: Sequence[int]) -> list[Row]:
    """Measure every classifier on every test set with every seed."""
    tests, rows = splits.tests, []
    for method, classify in classifiers.items():
        predictions = {name: classify(test.x).argmax(-1).expand(len(seeds), -1) for name, test in tests.items()}
        each = [extension({name: p[run] for name, p in predictions.items()}, tests) for run in range(len(seeds))]
        rows.append(Row(method, {name: [one[name] for one in each] for name in each[0]}))
    baseline = [row.values["out_of_domain"] for row in rows if row.method == BASELINE and len(tests) > 1]
    if baseline and len(seeds) > 1:
        for row in rows:
            if row.method != BASELINE:
                row.difference = paired(row.values["out_of_domain"], *baseline)
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The table: accuracies in percent, mean ± standard deviation over seeds, and p of a paired t-test out of domain."""
    names = {"out_of_domain": "OOD", "extended_micro": "extended, micro", "worst_group": "worst group"}
    measures = list(rows[0].values)
    if measures[2:3] == ["out_of_domain"]:  # of one other domain, it is that domain's
        measures.remove("out_of_domain")
    head = ["method", *(names.get(name, name.replace("_", " ")) for name in measures), f"OOD − {BASELINE}"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        change = f"{row.difference.mean:+.2f} (p {row.difference.p:.2g})" if row.difference else "–"
        lines.append([row.method, *(row.cell(name) for name in measures), change])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
