"""The check of every file of a data set before anything is loaded, and a sheet of what the network will see.

Faults would stop or spoil a training: files missing, empty, cut short or unreadable; decompression bombs; conditions
of another shape than their picture, blank, of values out of range or of another number of channels; rows that could
not be read; pictures that belong to no row. Notes tell what is handled on the way: transparency, 16 bits, turns by EXIF
data, rows given several times, pictures equal byte for byte, and what the reader decided or did not read.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..errors import InputError
from .deep_colour import top_level
from .files import (
    NPY,
    File,
    Row,
    Rows,
    Size,
    condition_array,
    has_alpha,
    is_deep,
    orientation,
    orientation_of,
    rgb,
    turned_size,
)
from .findings import SHOWN, Finding, listed
from .names import POINTER_ERROR, is_pointer, open_picture, reason

TURN_REMEDY = "they may not match: turn the pixels (PIL.ImageOps.exif_transpose) and save both without the tag"
CHUNK = 4096  # rows given to the threads at once


@dataclass
class Report:
    """What `check` found: the good rows, the sizes of their pictures as turned and the digests of their bytes, faults, notes.

    total: rows read, the unreadable ones too. digest: of the good rows' files and captions, in order; the same pairs have
    the same one in whatever form they come. streamed: only a stream's first rows were seen.
    """

    total: int
    rows: Rows = field(default_factory=Rows)
    sizes: list[Size] = field(default_factory=list)
    faults: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    digest: str = ""
    streamed: bool = False
    pictures: list[bytes] = field(default_factory=list)

    def summary(self, shown: int | None = None) -> str:
        """Counts by kind, then each fault and note, `shown` of either at most."""
        silent = [row.origin for row in self.rows if not any(text.strip() for text in row.texts)]
        head = (
            f"{'the first ' * self.streamed}{self.total} rows checked, {len(self.rows)} good; {len(self.faults)} faults, "
            f"{len(self.notes)} notes; {len(silent)} without a caption" + (f", such as {silent[0]}" if silent else "")
        )
        return "\n".join([head, *listed("fault", self.faults, shown), *listed("note", self.notes, shown)])


@dataclass
class _Seen:
    """What one file turned out to be; size None: nothing that can be used."""

    faults: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    size: Size | None = None
    orientation: int = 1
    channels: int = 3
    digest: bytes = b""


def check(rows: Sequence[Row], on_bad_sample: str = "error", workers: int = 4) -> Report:
    """Decode every file of every row. "error": InputError lists all faults by file; "skip": rows with faults are left out.

    Raises InputError also where no good row is left.
    """
    report = Report(total=len(rows) + len(getattr(rows, "faults", [])))
    report.faults += getattr(rows, "faults", [])
    report.notes += getattr(rows, "notes", [])
    inspected = list(tqdm(_inspect_all(rows, workers), total=len(rows), desc="checking", unit="row", delay=3))
    usual = Counter(condition.channels for _, condition, *_ in inspected if condition and condition.size)
    usual_channels = usual.most_common(1)[0][0] if usual else 3
    seen_rows: dict[tuple, str] = {}
    seen_pictures: dict[bytes, str] = {}
    own: list[Row] = []  # rows whose condition is the picture itself
    digest = blake2b(digest_size=16)
    for row, (image, condition, mask, together) in zip(rows, inspected):
        files = [each for each in (image, condition, mask) if each]
        faults = [*(fault for each in files for fault in each.faults), *together]
        if condition and condition.size and condition.channels != usual_channels:
            text = f"{row.condition}: {condition.channels} channels, the others have {usual_channels} ({row.origin})"
            faults.append(Finding("channels", text))
        report.faults += faults
        report.notes += [*(note for each in files for note in each.notes), *_equal(row, image, seen_pictures)]
        report.notes += _repeated(row, seen_rows)
        if condition and condition.digest and condition.digest == image.digest:
            own.append(row)
        if not faults:
            report.rows.append(row)
            report.sizes.append(image.size)
            report.pictures.append(image.digest)
            digest.update(b"".join(each.digest for each in files) + repr(row.texts).encode())
    report.digest = digest.hexdigest()
    if own:
        text = f"{len(own)} conditions equal their own pictures byte for byte, such as {own[0].condition}"
        report.notes.append(Finding("same picture", f"{text}; see --image_column and --conditioning_image_column"))
    orphans = getattr(rows, "orphans", [])
    report.faults += [Finding("orphan", f"{file}: belongs to no pair; add its row or remove it") for file in orphans]
    _refuse(report, on_bad_sample)
    return report


def check_turns(row: Row) -> None:
    """Raise InputError where EXIF data may have misaligned a row's files: for rows that `check` has not seen."""
    files = [file for file in (row.image, row.condition, row.mask) if file]
    if len(files) > 1 and len({orientation_of(file) for file in files}) > 1:
        for finding in _inspect(row)[3]:
            raise InputError(finding.text)


def scaling_notes(report: Report, resolution: int, cropped: bool) -> list[Finding]:
    """Return a note of the pictures that are scaled up to the resolution, and of those of which a square cuts most off."""
    pairs = list(zip(report.rows, report.sizes))
    small = [f"{row.image} ({w}x{h})" for row, (w, h) in pairs if min(w, h) < resolution]
    wide = [f"{row.image} ({w}x{h})" for row, (w, h) in pairs if cropped and max(w, h) > 2 * min(w, h)]
    told = (
        ("small", small, f"smaller than --resolution {resolution} and scaled up"),
        ("cut", wide, "more than twice as long as wide, of which a square keeps less than half"),
    )
    return [
        Finding(kind, f"{len(names)} pictures are {what}, such as {names[0]}") for kind, names, what in told if names
    ]


def contact_sheet(dataset: torch.utils.data.Dataset, path: str | Path, count: int = 8) -> Path:
    """Draw what the network will see of the first samples in epochs 0 and 1: picture, condition, one over the other."""
    from ..figures import labelled_grid  # not above: data workers need no matplotlib

    cells, labels = [], []
    for index in range(min(count, len(dataset))):
        samples = [dataset[epoch, index] for epoch in (0, 1)]
        cells.append([picture for sample in samples for picture in _views(sample)])
        height, width = samples[0]["pixel_values"].shape[1:]
        labels.append(f"{index}: {width}x{height} " + " | ".join(repr(sample["text"]) for sample in samples))
    names = ["picture", "condition", "both"][: len(cells[0]) // 2]
    columns = [f"{name}, epoch {epoch}" for epoch in (0, 1) for name in names]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    labelled_grid(cells, columns, labels, cell=160, title=f"first of {len(dataset)} samples").save(path)
    return path


def _inspect_all(
    rows: Sequence[Row], workers: int
) -> Iterator[tuple[_Seen, _Seen | None, _Seen | None, list[Finding]]]:
    with ThreadPoolExecutor(workers) as pool:  # decoders release the interpreter
        for first in range(0, len(rows), CHUNK):
            yield from pool.map(_inspect, rows[first : first + CHUNK])


def _inspect(row: Row) -> tuple[_Seen, _Seen | None, _Seen | None, list[Finding]]:
    """Return what picture, condition and mask are, and what is wrong between them."""
    image = _look(row.image, row.origin, _decode_picture)
    files = (row.condition, row.mask)
    condition, mask = (_look(file, row.origin, _decode_condition) if file else None for file in files)
    shapes = [_shape(row, image, file, seen) for file, seen in zip(files, (condition, mask)) if file and seen]
    return image, condition, mask, [finding for finding in shapes if finding]


def _shape(row: Row, image: _Seen, file: File, seen: _Seen) -> Finding | None:
    """The fault of a file that does not have its image's shape, or that one turn too many may have misaligned."""
    if not (image.size and seen.size):
        return None
    if _same_shape(image.size, seen.size):
        return _turn(row, image, file, seen, image.size)
    (width, height), (other_width, other_height) = image.size, seen.size
    text = f"{file}: {other_width}x{other_height} does not have the shape of its image, {width}x{height} ({row.origin})"
    if image.orientation >= 5 > seen.orientation or seen.orientation >= 5 > image.orientation:
        text += "; only one of them is turned by its EXIF data: remove the tag, or turn the pixels"
    return Finding("shape", text)


def _turn(row: Row, image: _Seen, file: File, seen: _Seen, size: Size) -> Finding | None:
    """The fault of two files that EXIF data turn differently, where their sizes cannot tell whether they still match.

    A quarter turn of one of them shows in the sizes of all but square pictures; half turns and mirrors never do.
    """
    quarter = (image.orientation >= 5) != (seen.orientation >= 5)
    if image.orientation == seen.orientation or (quarter and seen.size and not _same_shape(size[::-1], seen.size)):
        return None
    text = (
        f"{file}: its EXIF orientation is {seen.orientation}, that of its image {row.image} is {image.orientation} "
        f"({row.origin}); {TURN_REMEDY}"
    )
    return Finding("turn", text)


def _look(file: File, origin: str, decode) -> _Seen:
    """Read a file's bytes once and decode them; whatever a decoder raises, the file is the fault."""
    seen = _Seen()
    try:
        with file.open("rb") as stream:
            data = stream.read()
        if not data:
            seen.faults.append(Finding("empty", f"{file}: cannot be read (zero bytes) (named in {origin})"))
        elif is_pointer(data):
            seen.faults.append(Finding("pointer", f"{file}: {POINTER_ERROR} (named in {origin})"))
        else:
            decode(file, data, seen)
            seen.digest = blake2b(data, digest_size=16).digest()
    except FileNotFoundError:
        seen.faults.append(Finding("missing", f"{file}: missing (named in {origin})"))
    except Image.DecompressionBombError as error:
        seen.faults.append(Finding("bomb", f"{file}: decompression bomb ({error}); scale it down (named in {origin})"))
    except Exception as error:
        kind = "truncated" if "truncat" in str(error).lower() else "unreadable"
        seen.faults.append(Finding(kind, f"{file}: cannot be read ({reason(error, file.name)}) (named in {origin})"))
    return seen


def _decode_picture(file: File, data: bytes, seen: _Seen) -> None:
    with open_picture(BytesIO(data)) as opened:
        size, deep = turned_size(opened), is_deep(opened)
        _note(file, opened, seen)
        opened.draft(None, (opened.size[0] // 8, opened.size[1] // 8))  # of a JPEG all is read, an eighth is computed
        opened.load()
    if deep:
        rgb(BytesIO(data))  # to meet values out of range
    seen.size = size


def _decode_condition(file: File, data: bytes, seen: _Seen) -> None:
    """Decode as the training does, and refuse what tells the network nothing."""
    if not data.startswith(NPY):
        with open_picture(BytesIO(data)) as opened:
            _note(file, opened, seen)
            if top_level(opened, data):
                seen.notes.append(
                    Finding("16-bit", f"{file}: 16 bits a channel, scaled to [0, 1] with every level kept")
                )
    values = condition_array(BytesIO(data))
    if (values == values[:1, :1]).all():
        seen.faults.append(Finding("blank", f"{file}: blank, every pixel is {values[0, 0].tolist()}"))
    seen.size, seen.channels = (values.shape[1], values.shape[0]), values.shape[2]


def _note(file: File, opened: Image.Image, seen: _Seen) -> None:
    seen.orientation = orientation(opened)
    if opened.mode.startswith("I"):
        seen.notes.append(Finding("16-bit", f"{file}: 16 bits a pixel, scaled to [0, 1] with every level kept"))
    if has_alpha(opened):
        seen.notes.append(Finding("transparent", f"{file}: transparency, laid over white"))
    if getattr(opened, "is_animated", False):
        seen.notes.append(Finding("animated", f"{file}: an animation, of which the first frame is read"))
    if seen.orientation != 1:
        seen.notes.append(Finding("turned", f"{file}: turned or mirrored as its EXIF data say ({seen.orientation})"))


def _same_shape(image: Size, condition: Size) -> bool:
    """Say whether one scale takes image to condition, to within a pixel of the larger one."""
    slack = max(1.0, condition[0] / image[0])
    low = max((side - slack) / length for length, side in zip(image, condition))
    high = min((side + slack) / length for length, side in zip(image, condition))
    return low <= high


def _repeated(row: Row, seen: dict[tuple, str]) -> list[Finding]:
    key = (str(row.image), str(row.condition), str(row.mask), row.texts)
    first = seen.setdefault(key, row.origin)
    if first is row.origin:
        return []
    return [Finding("duplicate", f"{row.origin}: gives the same files and caption as {first}, which so weighs more")]


def _equal(row: Row, image: _Seen, seen: dict[bytes, str]) -> list[Finding]:
    if not image.digest:
        return []
    first = seen.setdefault(image.digest, str(row.image))
    if first == str(row.image):
        return []
    return [Finding("same bytes", f"{row.image}: equals {first} byte for byte")]


def _refuse(report: Report, on_bad_sample: str) -> None:
    if on_bad_sample not in ("error", "skip"):
        raise InputError(f"--on_bad_sample {on_bad_sample}: choose error or skip")
    if report.faults and (on_bad_sample == "error" or not report.rows):
        faults = "\n".join(listed("fault", report.faults, SHOWN))
        raise InputError(
            f"{len(report.faults)} faults in {report.total} rows; fix the files, or remove or skip their rows:\n{faults}"
        )


def _views(sample: dict) -> list[Image.Image]:
    """The picture, its condition and both, as a person can look at them."""
    picture = (sample["pixel_values"].permute(1, 2, 0) + 1) / 2
    if "conditioning_pixel_values" not in sample:
        return [_picture(picture)]
    condition = sample["conditioning_pixel_values"].permute(1, 2, 0).clamp(0, 1)
    if condition.shape[2] != 3:
        condition = condition.mean(2, keepdim=True).expand(-1, -1, 3)
    return [_picture(view) for view in (picture, condition, (picture + condition) / 2)]


def _picture(values: torch.Tensor) -> Image.Image:
    return Image.fromarray(np.rint(values.numpy() * 255).astype(np.uint8))
