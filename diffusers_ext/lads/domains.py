"""What domains there are, in words: declared once, checked, and embedded for every class.

    {"source": ["a photo of a {}"], "targets": {"painting": ["a painting of a {}"], "sketch": ["a sketch of a {}"]}}
    {"swap": {"forest": ["a photo of a {} in the forest"], "water": ["a photo of a {} on water"]}}

"source" describes the images there are, "targets" the domains there are none of, each by templates with one {} for the
class. "swap" is the bias setting: two domains that both occur, with which the classes are correlated. "class_text", if
given, is the template that says what a class is, whatever the domain.

Shapes: n_s source sentences, K domains, C classes, D the width of the embeddings.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from ..errors import InputError

CLASS_TEXT = "a photo of a {}"
GENERIC = ("a photo of a {}", "an image of a {}")  # of the generic zero-shot classifier, as in the official code
KEYS = ("source", "targets", "swap", "class_text")
Encode = Callable[[list[str]], torch.Tensor]  # sentences -> (n, D), of any length


@dataclass(frozen=True)
class Domains:
    """Templates of the source, of the unseen domains by name, and of what a class is.

    swap: the targets are the two domains that occur, and source is empty.

    >>> domains = Domains.read({'source': ['a photo of a {}'], 'targets': {'sketch': ['a sketch of a {}']}})
    >>> domains.names
    ['source', 'sketch']
    """

    source: tuple[str, ...]
    targets: dict[str, tuple[str, ...]]
    class_text: str = CLASS_TEXT
    swap: bool = False

    @classmethod
    def read(cls, declared: "Domains | Mapping[str, Any] | str | Path") -> "Domains":
        """Return the domains declared by a mapping of the form above, by JSON text, or by a file of it.

        Raises InputError for an unknown key, an empty domain, a template without {}, and domains without names.
        """
        if isinstance(declared, Domains):
            return declared
        origin, declared = _load(declared)
        if unknown := sorted(set(declared) - set(KEYS)):
            raise InputError(f"{origin}: unknown key {unknown[0]!r}; there are {', '.join(KEYS)}")
        swap = "swap" in declared
        if swap == ("targets" in declared) or swap == ("source" in declared):
            raise InputError(f'{origin}: give "source" and "targets", or "swap" alone')
        named = declared["swap" if swap else "targets"]
        if not isinstance(named, Mapping) or not named:
            what = "swap" if swap else "targets"
            raise InputError(
                f'{origin}: "{what}" must name each domain, as in {{"painting": ["a painting of a {{}}"]}}; a list '
                "does not say where one domain ends and the next begins"
            )
        if swap and len(named) != 2:
            raise InputError(f'{origin}: "swap" is between two domains, got {len(named)}')
        targets = {name: _templates(f"{origin}: domain {name!r}", given) for name, given in named.items()}
        source = () if swap else _templates(f"{origin}: source", declared["source"])
        (class_text,) = _templates(f"{origin}: class_text", declared.get("class_text", CLASS_TEXT))
        return cls(source, targets, class_text, swap)

    def as_dict(self) -> dict[str, Any]:
        """Return the declaration, JSON-ready."""
        named = {name: list(templates) for name, templates in self.targets.items()}
        body = {"swap": named} if self.swap else {"source": list(self.source), "targets": named}
        return {**body, "class_text": self.class_text}

    @property
    def names(self) -> list[str]:
        """The domains an image can be of, in the order of `DomainText.domains`: the source, which has no name, and the targets."""
        return [*([] if self.swap else ["source"]), *self.targets]

    @property
    def adaptive(self) -> tuple[str, ...]:
        """All templates, of the source and of every target: what the adaptive zero-shot classifier averages."""
        return tuple(
            dict.fromkeys([*self.source, *(text for templates in self.targets.values() for text in templates)])
        )


@dataclass(frozen=True)
class DomainText:
    """Embeddings of the declared sentences for every class; all rows are unit vectors, float32.

    source (n_s, C, D), kept apart; in the bias setting the two domains, (2, C, D). targets (K, C, D), each the mean of its
    templates. classes, generic and adaptive (C, D): class text, and the two zero-shot classifiers. swap: the bias setting.
    moves: what images say of the moves in place of these words, (K, 1, C, D), in the bias setting (1, 2, C, D).
    """

    source: torch.Tensor
    targets: torch.Tensor
    classes: torch.Tensor
    generic: torch.Tensor
    adaptive: torch.Tensor
    swap: bool = False
    moves: torch.Tensor | None = None

    @property
    def domains(self) -> torch.Tensor:
        """One (C, D) per domain an image can be of: the source first, then the targets; in the bias setting those two."""
        if self.swap:
            return self.targets
        return torch.cat([F.normalize(self.source.mean(0), dim=-1)[None], self.targets])

    def to(self, device: torch.device | str) -> "DomainText":
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **moved)


def embed_domains(domains: Domains, classes: Sequence[str], encode: Encode) -> DomainText:
    """Embed every declared sentence for every class, each sentence once. Raises InputError for a class twice or empty."""
    if len(set(classes)) < len(classes) or not all(name.strip() for name in classes):
        raise InputError(f"class names must be different and not empty, got {list(classes)[:10]}")
    templates = dict.fromkeys([*domains.adaptive, domains.class_text, *GENERIC])
    sentences = list(dict.fromkeys(fill(template, name) for template in templates for name in classes))
    rows = dict(zip(sentences, F.normalize(encode(sentences).float(), dim=-1)))

    def ensemble(templates: Sequence[str]) -> torch.Tensor:
        each = torch.stack([torch.stack([rows[fill(text, name)] for name in classes]) for text in templates])
        return F.normalize(each.mean(0), dim=-1)

    targets = torch.stack([ensemble(templates) for templates in domains.targets.values()])
    source = targets if domains.swap else torch.stack([ensemble([text]) for text in domains.source])
    return DomainText(
        source, targets, ensemble([domains.class_text]), ensemble(GENERIC), ensemble(domains.adaptive), domains.swap
    )


def fill(template: str, name: str) -> str:
    """Put a class name into a template."""
    return template.replace("{}", name)


def _load(declared: Mapping[str, Any] | str | Path) -> tuple[str, Mapping[str, Any]]:
    """Return where a declaration stands, and the declaration."""
    if isinstance(declared, Mapping):
        return "domains", declared
    text = str(declared)
    inline = text.lstrip().startswith("{")
    origin = "--domains" if inline else text
    try:
        read = json.loads(text if inline else Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{origin}: no JSON declaration of domains ({error})") from None
    if not isinstance(read, dict):
        raise InputError(f"{origin}: expected an object with the keys {', '.join(KEYS[:2])}, or swap")
    return origin, read


def _templates(where: str, given: Any) -> tuple[str, ...]:
    """Return templates given as a list, or as one string; InputError unless each is text with one {}."""
    templates = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, (list, tuple)) else ()
    if not templates:
        raise InputError(f"{where} has no template; give one, such as {CLASS_TEXT!r}")
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise InputError(f"{where}: the template {template!r} must be text with one {{}} for the class name")
    return templates
