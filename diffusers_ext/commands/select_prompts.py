"""Choose the prompts that are worth annotating: diverse ones, each standing for many others.

A graph of nearest neighbours by sentence embedding, and the "vote-k" selection on it, as ImageReward's prompts were
chosen. Writes a line per chosen prompt, best first, so that the first m lines are the choice of m; and a report beside.

    diffusers-ext select-prompts --prompts prompts.txt --encoder path/to/all-MiniLM-L6-v2 --count 1000 --output chosen.jsonl
    diffusers-ext select-prompts --prompts prompts.jsonl --embeddings prompts.npy --count 100 --shard_field part
"""

from dataclasses import asdict, dataclass

from diffusers_ext.options import COUNT, group, option


@group("prompts")
@dataclass
class Prompts:
    prompts: str | None = option(None, "file of prompts: .txt, .json, .jsonl or .csv", path="read")
    prompt_field: str = option("prompt", "the field that holds the prompt")
    duplicates: str = option(
        "drop", "what to do with prompts that differ in case and spaces at most", ("drop", "keep", "refuse")
    )


@group("embeddings")
@dataclass
class Embeddings:
    encoder: str | None = option(
        None, "sentence encoder, mean-pooled: a transformers folder or an owner/name on the Hub", path="read"
    )
    embeddings: str | None = option(
        None, "instead: .npy or .safetensors, a row per row of the file of prompts, duplicates included", path="read"
    )
    cache_dir: str = option(
        "runs/sentences", "folder where embeddings are kept by content", requires={"encoder": True}, path="folder"
    )
    batch_size: int = option(64, "prompts per forward pass of the encoder", COUNT, requires={"encoder": True})
    device: str = option("cpu", "where prompts are embedded and compared: cpu, cuda, ...")


@group("selection")
@dataclass
class Options(Embeddings, Prompts):
    count: int = option(1000, "how many prompts to choose; with shard_field, from each shard", COUNT)
    k: int = option(150, "neighbours that a prompt votes for", COUNT)
    centre: bool = option(False, "subtract the mean embedding first, as ImageReward's authors did")
    approximate: bool = option(
        False, "find neighbours with faiss instead of all pairs: from some 100,000 prompts on a CPU"
    )
    shard_field: str | None = option(None, "choose within the rows that share this field's value")
    output: str = option(
        "chosen.jsonl", "the chosen rows, in order of selection; a report is written beside it", path="file"
    )


def main(options: Options) -> None:
    from diffusers_ext.data.texts import read_prompts, without_duplicates
    from diffusers_ext.embeddings.backbones import check_device
    from diffusers_ext.errors import InputError
    from diffusers_ext.options.outputs import check_output
    from diffusers_ext.preferences.select import check, load_faiss, select_prompts, unit_rows

    if not options.prompts or bool(options.encoder) == bool(options.embeddings):
        raise InputError("give --prompts FILE, and either --encoder or --embeddings")
    for written in (options.output, report_path(options)):
        check_output("--output", written, [options.prompts, options.embeddings])
    check_device(options.device)
    if options.approximate:
        load_faiss()
    everything = read_prompts(options.prompts, options.prompt_field)
    prompts = without_duplicates(everything, options.duplicates)
    shards = shard_labels(prompts, options.shard_field) if options.shard_field else None
    check(len(prompts), options.count, options.k, shards)
    embeddings = embeddings_of(prompts, len(everything), options)
    chosen = select_prompts(
        embeddings,
        options.count,
        options.k,
        shards=shards,
        centre=options.centre,
        approximate=options.approximate,
        device=options.device,
        show=True,
    )
    measures = report(options, unit_rows(embeddings, options.centre), chosen, len(everything))
    write(options, [prompts[index] for index in chosen], measures)


def shard_labels(prompts: list, field: str):
    """Return each prompt's shard, (n,) strings; InputError names a row without the field."""
    import numpy as np

    from diffusers_ext.errors import InputError

    for prompt in prompts:
        if prompt.fields.get(field) is None:
            raise InputError(f"{prompt.origin}: no '{field}'; see --shard_field")
    return np.array([str(prompt.fields[field]) for prompt in prompts])


def embeddings_of(prompts: list, total: int, options: Options):
    """Return the prompts' embeddings, (n, d), computed or given; InputError if the given ones are unusable."""
    from diffusers_ext.embeddings import sentences
    from diffusers_ext.errors import InputError
    from diffusers_ext.preferences.select import unit_rows

    if options.encoder:
        texts = [prompt.text for prompt in prompts]
        return sentences.embed(options.encoder, texts, options.cache_dir, options.batch_size, options.device, show=True)
    assert options.embeddings, "main asks for an encoder or embeddings"
    given = sentences.read_embeddings(options.embeddings)
    if len(given) != total:
        raise InputError(f"{options.embeddings}: {len(given):,} embeddings for {total:,} rows of {options.prompts}")
    unit_rows(given, source=options.embeddings)  # names rows as the file counts them, before duplicates leave
    return given[[prompt.index for prompt in prompts]]


def report(options: Options, unit, chosen, total: int) -> dict:
    """Compare the selection with as many prompts at random; print both."""
    from diffusers_ext.preferences.select import NEAR, coverage, random_choice

    measures = {
        "chosen": coverage(unit, chosen),
        "random": coverage(unit, random_choice(len(unit), len(chosen))),
    }
    print(f"{total:,} prompts, {total - len(unit):,} duplicates left out, {len(chosen):,} chosen")
    for name, values in measures.items():
        print(
            f"{name:>8}: similarity of a prompt to the nearest {values['nearest']:.3f}, "
            f"{values['near_duplicates']:,} within {NEAR} of an earlier one"
        )
    counts = {"prompts": total, "different": len(unit), "count": len(chosen)}
    return {"options": asdict(options), **counts, **measures}


def report_path(options: Options):
    from pathlib import Path

    return Path(options.output).with_suffix(".report.json")


def write(options: Options, chosen: list, measures: dict) -> None:
    """Write each chosen prompt's row with its "index" in the file and its "order", and the report: each whole or not at all."""
    import json
    from pathlib import Path

    from diffusers_ext.cache import write_atomically
    from diffusers_ext.errors import InputError

    path, beside = Path(options.output), report_path(options)
    rows = [
        {**prompt.fields, "prompt": prompt.text, "index": prompt.index, "order": order}
        for order, prompt in enumerate(chosen)
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        write_atomically(beside, (json.dumps(measures, indent=1) + "\n").encode())
    except OSError as error:
        raise InputError(f"--output {path}: cannot be written ({error.strerror})") from None
    print(f"{path}, {beside}")
