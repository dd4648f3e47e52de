"""The data of a ControlNet's training: rows to learn from, rows kept aside to measure on, pairs to draw."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from accelerate import Accelerator

from ..conditions.catalogue import resolve
from ..data.files import Columns, Row, Size
from ..data.findings import Finding
from ..data.geometry import assign_buckets
from ..data.held_out import hold_out
from ..data.pairs import Pairs
from ..data.preflight import Report, check, scaling_notes
from ..data.rows import read_rows
from ..data.stream import Stream, StreamedPairs
from ..diffusion.encoded import Encoded, EncoderCache
from ..diffusion.files import BaseFiles
from ..engine.provenance import Source, Sources, digest_of_model, digest_of_values
from ..errors import InputError
from .options import ControlOptions
from .previews import ValidationPair, validation_pairs

FROM_CONTROLNET = (
    "start a new run from these weights: another --output_dir, and --controlnet_model_name_or_path {checkpoint}/controlnet "
    "(of a run with --lora_rank its finished run folder, where adapters are merged; then without --lora_rank)"
)


@dataclass(frozen=True)
class ControlData:
    """dataset: to learn from. held_out: to measure on. shown: what can be looked at before, the data set itself or a stream's
    first rows. pairs: to draw. report: of the check."""

    dataset: Pairs | StreamedPairs | Encoded
    held_out: Pairs | Encoded
    shown: Pairs
    pairs: list[ValidationPair]
    report: Report


def read_data(options: ControlOptions) -> ControlData:
    """Read the data that options name and check them; InputError lists what is wrong."""
    source = options.train_data_dir or options.dataset_name
    if source is None:
        raise InputError(
            "--train_data_dir is missing: name an image folder; python -m diffusers_ext.toy.circles makes one"
        )
    return _read_stream(source, options) if options.streaming else _read_rows(source, options)


def _read_rows(source: str, options: ControlOptions) -> ControlData:
    image, caption, condition, mask = _columns(options)
    hub = (options.dataset_config_name, options.cache_dir)
    found = read_rows(source, image, caption, condition, options.max_train_samples, *hub, mask)
    report = check(found, options.on_bad_sample)
    report.notes += scaling_notes(report, options.resolution, not options.aspect_buckets)
    learnt, aside = hold_out(len(report.rows), options.held_out_samples, options.seed)
    report.notes += _fewer_held_out(options, len(aside), len(report.rows))
    learnt = without_repeats(report.rows, learnt, aside)
    report.notes += _copies_learnt(report, learnt, aside)
    sizes = [report.sizes[row] for row in learnt]
    buckets = assign_buckets(sizes, options.resolution) if options.aspect_buckets else None
    rows = [report.rows[row] for row in learnt]
    dataset, held_out = _pairs(options, rows, [report.rows[row] for row in aside], buckets)
    return ControlData(dataset, held_out, dataset, _to_draw(options, held_out, report.rows), report)


def _read_stream(source: str, options: ControlOptions) -> ControlData:
    """Rows that are read while training: only the first ones are checked before."""
    stream = Stream(
        source,
        _columns(options),
        options.held_out_samples,
        options.seed,
        options.shuffle_buffer,
        options.on_bad_sample,
        config=options.dataset_config_name,
        cache_dir=options.cache_dir,
    )
    report = replace(check(stream.head, options.on_bad_sample), streamed=True)
    report.notes += scaling_notes(report, options.resolution, cropped=True)
    aside = check(stream.held_out, options.on_bad_sample).rows if stream.held_out else []
    pairs, held_out = _pairs(options, report.rows, aside)
    return ControlData(StreamedPairs(stream, pairs), held_out, pairs, _to_draw(options, held_out, report.rows), report)


def _columns(options: ControlOptions) -> Columns:
    """A computed condition comes from the picture; only label maps are read, to be coloured."""
    condition = None if options.condition and not options.label_maps else options.conditioning_image_column
    return Columns(options.image_column, options.caption_column, condition, options.mask_column)


def _pairs(
    options: ControlOptions, rows: Sequence[Row], aside: Sequence[Row], buckets: Sequence[Size] | None = None
) -> tuple[Pairs, Pairs]:
    """Rows to learn from, with what varies from epoch to epoch, and rows kept aside, without; buckets: of the former."""
    top, left = options.crops_coords_top_left_h, options.crops_coords_top_left_w
    fixed = Pairs(
        aside,
        options.resolution,
        options.seed,
        condition=resolve(options.condition) if options.condition else None,
        label_maps=options.label_maps,
        interpolation=options.image_interpolation_mode,
        told_corner=None if top is None and left is None else (top or 0, left or 0),
    )
    varied = fixed.varied(
        rows,
        proportion_empty_prompts=options.proportion_empty_prompts,
        random_crop=options.random_crop,
        flip=0.5 if options.random_flip else 0.0,
        buckets=buckets,
    )
    return varied, fixed


def _to_draw(options: ControlOptions, held_out: Pairs, rows: Sequence[Row]) -> list[ValidationPair]:
    """The first held-out pairs, unless others are given."""
    return validation_pairs(options, held_out if len(held_out) else held_out.with_rows(rows))


def _fewer_held_out(options: ControlOptions, aside: int, count: int) -> list[Finding]:
    """The note that fewer rows are kept aside than were asked for; none of the default, which asks for what there is."""
    wanted = options.held_out_samples
    if aside >= wanted or wanted == type(options).held_out_samples:
        return []
    text = f"--held_out_samples {wanted}: {aside} rows are kept aside, at most a tenth of the {count}"
    return [Finding("held out", text)]


def _copies_learnt(report: Report, learnt: Sequence[int], aside: Sequence[int]) -> list[Finding]:
    """The note that pictures kept aside are learnt all the same, under another name or with another caption."""
    known = {report.pictures[row]: report.rows[row] for row in learnt}
    copies = [(report.rows[row], known[report.pictures[row]]) for row in aside if report.pictures[row] in known]
    if not copies:
        return []
    row, twin = copies[0]
    text = (
        f"{len(copies)} of {len(aside)} rows kept aside to measure on show a picture that is learnt too, such as {row.image} "
        f"({row.origin}), which equals {twin.image} ({twin.origin}): their measure flatters; remove one of the two"
    )
    return [Finding("held out", text)]


def sources_of(options: ControlOptions, data: ControlData, files: BaseFiles) -> Sources:
    """What the weights of a ControlNet's training come from."""
    columns = ("image_column", "conditioning_image_column", "mask_column", "caption_column", "max_train_samples")
    named_by = ("train_data_dir", "dataset_name", "dataset_config_name", *columns)
    counted = (
        f"the first {len(data.report.rows)} rows of a stream" if options.streaming else f"{len(data.report.rows)} rows"
    )
    found = {"data": Source(named_by, data.report.digest, counted), "base": files.source(options.tokenizer_name)}
    if options.controlnet_model_name_or_path:
        named = (options.controlnet_model_name_or_path, options.transfer_from)
        digests = [digest_of_model(named[0]), named[1] and digest_of_model(named[1], [files.family.network])]
        found["initial ControlNet"] = Source(
            ("controlnet_model_name_or_path", "transfer_from"), digest_of_values(*digests)
        )
    return found


def without_repeats(rows: Sequence[Row], learnt: Sequence[int], aside: Sequence[int]) -> list[int]:
    """Return the row numbers to learn from but those that repeat a row kept aside, which would measure memory."""
    content = [(str(row.image), str(row.condition), str(row.mask), row.texts) for row in rows]
    measured = {content[index] for index in aside}
    return [index for index in learnt if content[index] not in measured]


def encode(data: ControlData, files: BaseFiles, options: ControlOptions, accelerator: Accelerator) -> ControlData:
    """Put what --encoder_cache_dir holds in place of pictures and captions; encoders are loaded for what is missing."""
    assert options.encoder_cache_dir is not None
    assert isinstance(data.dataset, Pairs) and isinstance(data.held_out, Pairs), "pictures are encoded once"
    cache = EncoderCache.of(options.encoder_cache_dir, files, accelerator, tokenizer=options.tokenizer_name)
    texts = cache.texts([*data.dataset.captions(), *data.held_out.captions()])
    # All that a picture's tensor depends on beside its file and bucket: change this with the geometry, or stale values are served.
    transform = {"fit": "cover", "resolution": options.resolution, "interpolation": options.image_interpolation_mode}

    def encoded(pairs: Pairs) -> Encoded:
        images = pairs.images()
        moments = cache.moments(images, pairs.picture, transform, pairs.buckets) if images else None
        return Encoded(pairs, moments, texts, conditions=True)

    return replace(data, dataset=encoded(data.dataset), held_out=encoded(data.held_out))
