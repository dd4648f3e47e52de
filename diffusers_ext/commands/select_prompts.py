"""Choose the prompts that are worth annotating: diverse ones, each standing for many others.

A graph of nearest neighbours by sentence embedding, and the "vote-k" selection on it, as ImageReward's prompts were
chosen. Writes a line per chosen prompt, best first, so that the first m lines are the choice of m; and a report beside.

    diffusers-ext select-prompts --prompts prompts.txt --encoder path/to/all-MiniLM-L6-v2 --count 1000 --output chosen.jsonl
    diffusers-ext select-prompts --prompts prompts.jsonl --embeddings prompts.npy --count 100 --shard_field part
"""

from dataclasses import asdict, dataclass

from diffusers_ext.options import group, option


@group("prompts")
@dataclass
class Prompts:
    prompts: str | None = option(None, "file of prompts: .txt, .json, .jsonl or .csv")
    prompt_field: str = option("prompt", "the field that holds the prompt")
    duplicates: str = option(
        "drop", "what to do with prompts that differ in case and spaces at most", ("drop", "keep", "refuse")
    )


@group("embeddings")
@dataclass
class Embeddings:
    encoder: str | None = option(
        None, "sentence encoder, mean-pooled: a transformers folder or an owner/name on the Hub"
    )
    embeddings: str | None = option(
        None, "instead: .npy or .safetensors, a row per row of the file of prompts, duplicates included"
    )
    cache_dir: str = option("runs/sentences", "folder where embeddings are kept by content")
    batch_size: int = option(64, "prompts per forward pass of the encoder")
    device: str = option("cpu", "where prompts are embedded and compared: cpu, cuda, ...")


@group("selection")
@dataclass
class Options(Embeddings, Prompts):
    count: int = option(1000, "how many prompts to choose; with shard_field, from each shard")
    k: int = option(150, "neighbours that a prompt votes for")
    centre: bool = option(False, "subtract the mean embedding first, as ImageReward's authors did")
    approximate: bool = option(
        False, "find neighbours with faiss instead of all pairs: from some 100,000 prompts on a CPU"
    )
    shard_field: str | None = option(None, "choose within the rows that share this field's value")
    output: str = option("chosen.jsonl", "the chosen rows, in order of selection; a report is written beside it")


def main(options: Options) -> None:
    from diffusers_ext.data.texts import read_prompts, without_duplicates
    from diffusers_ext.errors import InputError
    from diffusers_ext.prompts import by_shard, check, select_prompts, unit_rows

    if not options.prompts or bool(options.encoder) == bool(options.embeddings):
        raise InputError("give --prompts FILE, and either --encoder or --embeddings")
    everything = read_prompts(options.prompts, options.prompt_field)
    rows = without_duplicates(everything, options.duplicates)
    shards = shard_labels(rows, options.shard_field)
    sizes = by_shard(shards, len(rows)) if shards is not None else {"": rows}
    for name, members in sizes.items():
        check(len(members), options.count, options.k, name)
    unit = unit_rows(embeddings_of(rows, len(everything), options), options.centre)
    chosen = select_prompts(
        unit,
        options.count,
        options.k,
        shards=shards,
        approximate=options.approximate,
        device=options.device,
        show=True,
    )
    write(options, [rows[index] for index in chosen], report(options, unit, chosen, len(everything)))


def shard_labels(rows: list[dict], field: str | None):
    """Return each row's shard, (n,), or None; InputError names a row without the field."""
    import numpy as np

    from diffusers_ext.errors import InputError

    for row in rows if field else []:
        if row.get(field) is None:
            raise InputError(f"{row['origin']}: no '{field}'; see --shard_field")
    return np.array([str(row[field]) for row in rows]) if field else None


def embeddings_of(rows: list[dict], total: int, options: Options):
    """Return the rows' embeddings, (n, d), given or computed; InputError if the given ones are unusable."""
    from diffusers_ext import sentences
    from diffusers_ext.errors import InputError
    from diffusers_ext.prompts import unit_rows

    if options.encoder:
        texts = [row["prompt"] for row in rows]
        return sentences.embed(options.encoder, texts, options.cache_dir, options.batch_size, options.device, show=True)
    given = sentences.read_embeddings(options.embeddings)
    if len(given) != total:
        raise InputError(f"{options.embeddings}: {len(given):,} embeddings for {total:,} rows of {options.prompts}")
    unit_rows(given, source=options.embeddings)  # names rows as the file counts them, before duplicates leave
    return given[[row["index"] for row in rows]]


def report(options: Options, unit, chosen, total: int) -> dict:
    """Compare the selection with as many prompts at random; print both."""
    from diffusers_ext.prompts import NEAR, coverage, random_choice

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


def write(options: Options, rows: list[dict], measures: dict) -> None:
    """Write the rows and the report, each whole or not at all."""
    import json
    from pathlib import Path

    from diffusers_ext.cache import write_atomically

    path = Path(options.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [{name: value for name, value in row.items() if name != "origin"} for row in rows]
    lines = [json.dumps({**row, "order": order}, ensure_ascii=False) + "\n" for order, row in enumerate(kept)]
    write_atomically(path, "".join(lines).encode())
    write_atomically(path.with_suffix(".report.json"), (json.dumps(measures, indent=1) + "\n").encode())
    print(f"{path}, {path.with_suffix('.report.json')}")
