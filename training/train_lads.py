"""Train a classifier that reaches domains it has no images of, from words that describe them (LADS, Dunlap et al. 2023).

On pictures with "label" and "domain" in metadata.jsonl, or in folders domain/class/:
    accelerate launch training/train_lads.py --train_data_dir data/pacs --source_domain photo \\
        --domains '{"source": ["a photo of a {}"], "targets": {"sketch": ["a sketch of a {}"]}}' \\
        --backbone ViT-L-14/openai --output_dir runs/lads --runs 5

In the bias setting, where class and background go together (Waterbirds, ColoredMNIST):
    accelerate launch training/train_lads.py --train_data_dir data/waterbirds --dataset_format waterbirds \\
        --domains '{"swap": {"forest": ["a photo of a {} in the forest"], "water": ["a photo of a {} on water"]}}' \\
        --backbone ViT-L-14/openai --output_dir runs/waterbirds --alpha 0.75 --hidden_dim 512 --neighbour_weight 0.1

Prints one table: LADS, the linear probe, zero-shot, WiSE and the other baselines, in and out of domain, over --runs seeds.
Images are embedded once. Run the same command with --resume_from_checkpoint latest to resume after an interruption.
The run folder is itself the classifier: LADSClassifier.from_pretrained("runs/lads").predict(["a.png"]).
"""

from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.errors import InputError
from diffusers_ext.lads.options import USED_BY, LADSOptions, LADSTraining
from diffusers_ext.options import check_declared, check_used, run


@dataclass
class Options(LADSTraining):
    pass


def main(options: Options) -> None:
    from accelerate import Accelerator

    from diffusers_ext.embeddings.backbones import load_backbone
    from diffusers_ext.engine.hub import check_push, publish
    from diffusers_ext.engine.launch import check_parallelism
    from diffusers_ext.engine.resume import claim
    from diffusers_ext.engine.run_folder import check_run_folder, versions
    from diffusers_ext.lads import run as lads_run
    from diffusers_ext.lads.classifier import LADSClassifier
    from diffusers_ext.lads.domains import Domains, embed_domains
    from diffusers_ext.lads.training import Trained
    from diffusers_ext.options import as_dict, command_line

    # What the user can get wrong, before anything heavy.
    check_options(options)
    check_parallelism()
    check_run_folder(options)
    if options.push_to_hub and not options.dry_run:
        check_push(Path(options.output_dir), options)
    assert options.domains and options.backbone, "check_options asks for both"
    domains = Domains.read(options.domains)
    check_used(options, USED_BY, domains="swap" if domains.swap else "targets")
    table = lads_run.read_table(options)
    lads_run.check_domains(table, domains, options)

    accelerator = Accelerator()
    backbone = load_backbone(options.backbone, accelerator.device)
    if not backbone.has_text:
        raise InputError(f"--backbone {options.backbone}: has no text tower; words need an open_clip model")
    text = embed_domains(domains, table.labels, backbone.embed_texts)
    if options.dry_run:
        accelerator.print(plan(options, table, domains, backbone.width))
        return

    run_folder, seeds = Path(options.output_dir), range(options.seed, options.seed + options.runs)
    states = run_folder / lads_run.FITS  # of an earlier, interrupted run
    resumed = states if options.resume_from_checkpoint and any(states.glob("*.safetensors")) else None
    claim(
        accelerator,
        options,
        lambda: lads_run.sources_of(options, table, domains),
        checkpoint=resumed,
        fixed=lads_run.FIXED,
    )
    splits = lads_run.embed_splits(table, domains, text, backbone, options, accelerator.is_main_process)
    few, splits, text = lads_run.set_aside(splits, text, list(domains.targets), options)
    fits = lads_run.train(splits, text, options, seeds, accelerator)

    if accelerator.is_main_process:
        rows = lads_run.table_of(splits, fits, text, options, seeds, few)
        names = ["the other"] if domains.swap else list(domains.targets)
        found = lads_run.describe(splits, fits, text, names)
        shown = lads_run.leave_behind(run_folder, fits, rows, found, splits, names)
        print(shown)
        training = {
            "command": command_line(),
            "versions": versions(),
            "options": {name: as_dict(options)[name] for name in LADSOptions.__dataclass_fields__},
            "counts": f"{len(splits.train):,} training images, {len(splits.val):,} to choose epochs by.",
            "table": shown,
            "measured_on": "; ".join(f"{name}: {len(test):,} images" for name, test in splits.tests.items())
            + f". Mean ± standard deviation over {options.runs} seed(s); p of a paired t-test.",
        }
        trained = Trained(fits.probe, fits.bank)
        classifier = LADSClassifier.assemble(trained, text, domains, splits, backbone, training)
        classifier.save_pretrained(run_folder)
        publish(run_folder, options)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def check_options(options: Options) -> None:
    """Refuse what is missing or cannot be, before any data are read."""
    for name, example in (
        ("train_data_dir", "a folder of labelled pictures"),
        ("domains", "JSON, or a file of it; see --help"),
        ("backbone", "such as ViT-L-14/openai, or a folder"),
    ):
        if getattr(options, name) is None:
            raise InputError(f"--{name} is missing: give {example}")
    check_declared(options)
    if options.compat == "official" and options.residual:
        raise InputError("--compat official: the official networks are not residual; leave one of the two out")


def plan(options: Options, table, domains, width: int) -> str:
    """Say what a run would do."""
    from diffusers_ext.options import as_dict

    networks = 1 if domains.swap else len(domains.targets)
    size = 2 * options.hidden_dim * width + options.hidden_dim + width
    lines = ["options", *(f"  {name}: {value}" for name, value in as_dict(options).items()), "data"]
    lines += [f"  {domain}: {sum(s.domain == domain for s in table.samples):,} images" for domain in table.domains]
    lines += [f"  {len(table.labels)} classes: {', '.join(table.labels[:20])}", "domains"]
    lines += [f"  {name}: {'; '.join(templates)}" for name, templates in domains.targets.items()]
    lines += ["models", f"  {networks} networks x {options.runs} runs of {size:,} parameters on {width} dimensions"]
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, Options)
