"""Classifying many pictures with either kind of classifier: rows written as they come, resumed by content.

A row is {"image", "key", "model", "label", "probability", "top"} and what the classifier adds, or has "error" instead of
a label. key: the digest of the picture's bytes; model: a digest of the classifier's weights, backbone and settings.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from ..cache import digest_of, digest_of_file, digest_of_tensors, write_atomically
from ..data.files import File, is_picture
from ..data.labelled import METADATA, read_labelled
from ..data.labelled_tables import is_table
from ..data.tables import find_table
from ..embeddings.backbones import Backbone, check_device, load_backbone
from ..errors import InputError
from ..lads.classifier import LADSClassifier
from ..mixtures.classifier import VMFMixtureClassifier
from ..publish.model_files import read_json

KEY = 32  # hexadecimal digits of a digest in a row


class PictureClassifier(Protocol):
    """What classifies embeddings of pictures: LADSClassifier or VMFMixtureClassifier behind one face."""

    @property
    def model(self) -> torch.nn.Module: ...

    @property
    def backbone(self) -> Backbone: ...

    @property
    def classes(self) -> list[Any]: ...

    def __call__(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, list[dict[str, Any]]]: ...


@dataclass
class ByWords:
    """A LADSClassifier with one of its heads: probabilities, and the domain that text sees."""

    model: LADSClassifier
    head: str
    share: float

    @property
    def backbone(self) -> Backbone:
        return self.model.backbone

    @property
    def classes(self) -> list[Any]:
        return list(self.model.config.classes)

    def __call__(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        found = self.model.predict(embeddings, self.head, self.share)
        return found.probabilities, [{"domain": domain} for domain in found.domains]


@dataclass
class ByMixture:
    """A VMFMixtureClassifier: probabilities, and the component."""

    model: VMFMixtureClassifier
    backbone: Backbone

    @property
    def classes(self) -> list[Any]:
        return self.model.classes_.tolist()

    def __call__(self, embeddings: torch.Tensor) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        probabilities = torch.from_numpy(self.model.predict_proba(embeddings))
        return probabilities, [{"component": part} for part in self.model.predict_component(embeddings).tolist()]


def load_classifier(
    name: str, head: str = "probe", share: float = 0.5, backbone: str | None = None, device: Any = "cpu"
) -> PictureClassifier:
    """Load a folder or Hub name of either classifier, with its backbone; `backbone` says where that lies here.

    Raises InputError for anything else, and where the backbone is gone or another.
    """
    kind = class_name(name)
    check_device(device)
    loaded = load_backbone(backbone, device) if backbone else None
    if kind == "LADSClassifier":
        by_words = LADSClassifier.from_pretrained(name).to(device)
        if loaded:
            by_words.backbone = loaded
        _ = by_words.backbone  # what is wrong with it is said before any picture is read
        return ByWords(by_words, head, share)
    if head != "probe" or share != 0.5:
        raise InputError(
            f"--head and --share are of LADSClassifier; {name} is a VMFMixtureClassifier, whose head is saved"
        )
    mixture = VMFMixtureClassifier.from_pretrained(name)
    if not len(mixture.classes_):
        raise InputError(f"{name}: has learnt nothing yet; see diffusers-ext learn")
    if loaded:
        mixture.backbone = loaded
    mixture.backbone.model.to(device)
    return ByMixture(mixture, mixture.backbone)


def class_name(name: str) -> str:
    """Return the class that a folder or Hub name was saved by; InputError if it is none of the two."""
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(f"--model {name}: holds no config.json; give the run folder of a finished training")
    try:
        config = read_json(folder / "config.json") if folder.is_dir() else VMFMixtureClassifier.load_config(name)
        kind = config.get("_class_name")
    except InputError as error:
        raise InputError(f"--model {error}") from None
    except (OSError, ValueError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"--model {name}: no folder or Hub name of a classifier ({reason})") from None
    if kind not in ("LADSClassifier", "VMFMixtureClassifier"):
        raise InputError(
            f"--model {name}: {f'a {kind}' if kind else 'no classifier'}; give a LADSClassifier or a VMFMixtureClassifier"
        )
    return kind


def identity(classifier: PictureClassifier, settings: Mapping[str, Any]) -> str:
    """Return a digest of all that rows depend on."""
    about = [digest_of_tensors([classifier.model]), classifier.backbone.weights, classifier.classes, dict(settings)]
    return digest_of(json.dumps(about, default=str))[:KEY]


@dataclass(frozen=True)
class Pictures:
    """files in order; of labelled ones class and domain, else None; what was left out and why, as lines to print."""

    files: list[File]
    truth: dict[str, tuple[str, str]]
    notes: list[str]


@dataclass(frozen=True)
class Classified:
    """The rows of the pictures asked for, in their order, and how many of other pictures `output` keeps."""

    rows: list[dict[str, Any]]
    others: int


def find_pictures(path: Path) -> Pictures:
    """Return the pictures at a path: a file, all below a folder, or labelled ones; InputError where there are none."""
    if path.is_file() and not is_table(path.name):
        return Pictures([path], {}, [])
    if not path.exists():
        raise InputError(f"{path}: no such picture or folder")
    if path.is_file():
        return _labelled(path, [])
    inside = [file for file in sorted(path.rglob("*")) if file.is_file() and not _hidden(file.relative_to(path))]
    pictures = [file for file in inside if is_picture(file.name) or _opens(file)]
    table = find_table(path, METADATA)
    others = sorted(set(inside) - {*pictures, table})
    notes = [f"files left out, which are no pictures ({len(others)}): {_some(others)}"] if others else []
    if not pictures and not table:
        raise InputError(f"{path}: holds no pictures{': ' + notes[0] if notes else ''}")
    if not table and any(file.parent == path for file in pictures):
        return Pictures(list(pictures), {}, notes)
    try:
        labelled = _labelled(path, notes)
    except InputError as error:
        if not pictures:
            raise
        return Pictures(list(pictures), {}, [*notes, f"read without labels: {error}"])
    unlabelled = sorted(set(pictures) - {Path(str(file)) for file in labelled.files})
    return Pictures([*labelled.files, *unlabelled], labelled.truth, notes)


def classify(
    classifier: PictureClassifier,
    files: Sequence[File],
    output: Path,
    model: str,
    top: int,
    batch_size: int,
    show: bool = True,
) -> Classified:
    """Classify what `output` has no row of yet, a batch at a time, each written before the next begins.

    Rows are looked up by the pictures' content, whatever their names; those of other pictures stay, above. A picture that cannot be read gets a row with "error", and is tried again in the next run. Raises InputError where
    `output` holds anything else, or cannot be written.
    """
    from tqdm import tqdm

    keys = {str(file): _key(file) for file in files}
    earlier = _read(output, model)
    by_key = {row["key"]: row for row in earlier}
    done = {image: {**by_key[key], "image": image} for image, key in keys.items() if key in by_key}
    here = set(keys.values())
    others = [row for row in earlier if row["key"] not in here and row["image"] not in keys]
    left = [file for file in files if str(file) not in done]
    _write(output, [*others, *done.values()])
    with open(output, "a", encoding="utf-8") as stream:
        for start in tqdm(range(0, len(left), batch_size), desc="classifying", unit="batch", disable=not show):
            for row in _rows(classifier, left[start : start + batch_size], top):
                row = {"image": row["image"], "key": keys[row["image"]], "model": model, **row}
                done[row["image"]] = row
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            stream.flush()
    rows = [done[str(file)] for file in files]
    _write(output, [*others, *rows])
    return Classified(rows, len(others))


def _rows(classifier: PictureClassifier, batch: Sequence[File], top: int) -> Iterable[dict[str, Any]]:
    """Yield a row for each picture of a batch, in order."""
    images = {str(file): _decoded(classifier.backbone, file) for file in batch}
    good = [name for name, image in images.items() if not isinstance(image, str)]
    results: dict[str, dict[str, Any]] = {}
    if good:
        probabilities, more = classifier(classifier.backbone.embed_images([images[name] for name in good]))
        for name, row, extra in zip(good, probabilities, more):
            best = row.topk(min(top, len(row)))
            labels = [classifier.classes[place] for place in best.indices.tolist()]
            ranked = {str(label): round(value, 6) for label, value in zip(labels, best.values.tolist())}
            results[name] = {"label": labels[0], "probability": best.values[0].item(), **extra, "top": ranked}
    for name, image in images.items():
        yield {"image": name, **results.get(name, {"error": image})}


def _decoded(backbone: Backbone, file: File) -> Any:
    """Return the picture, or a sentence saying why there is none."""
    try:
        return backbone.picture(file)
    except InputError as error:
        return str(error)
    except Exception as error:  # decoders raise whatever they like at damaged bytes
        return f"{file}: cannot be read ({error or type(error).__name__})"


def _read(output: Path, model: str) -> list[dict[str, Any]]:
    """Return the rows of earlier runs; a line cut by a kill and errors are left out. InputError for any other content."""
    rows: list[dict[str, Any]] = []
    text = output.read_bytes().decode("utf-8-sig", errors="replace") if output.exists() else ""
    lines = [line for line in text.split("\n") if line.strip()]
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            by = row["model"]
            if not all(isinstance(row[name], str | None) for name in ("image", "key")) or not {"label", "error"} & set(
                row
            ):
                raise KeyError("label")
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and number > 1 and isinstance(error, json.JSONDecodeError):
                continue
            raise InputError(
                f"{output}:{number}: no row of classify; name another --output, or remove the file"
            ) from None
        if by != model:
            raise InputError(
                f"{output}:{number}: of another classifier, or other settings; name another --output, or remove the file"
            )
        if "error" not in row:
            rows.append(row)
    return rows


def _write(output: Path, rows: list[dict[str, Any]]) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written ({error})") from None


def _key(file: File) -> str | None:
    try:
        return digest_of_file(file)[:KEY]
    except OSError:
        return None  # its row will say why


def _labelled(path: Path, notes: list[str]) -> Pictures:
    table = read_labelled(path)
    truth = {str(sample.file): (sample.label, sample.domain) for sample in table.samples}
    return Pictures(table.files, truth, notes)


def _opens(file: Path) -> bool:
    """Whether a file of another suffix is a picture, by its first bytes."""
    try:
        with Image.open(file):
            return True
    except Exception:  # decoders raise whatever they like
        return False


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "@")) for part in path.parts)


def _some(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files[:3]) + (" ..." if len(files) > 3 else "")
