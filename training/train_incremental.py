"""Teach a classifier a stream of sessions, new classes, new domains or both, and measure what it keeps.

From any folder of pictures with classes and domains (diffusers_ext/data/labelled.py), on the frozen features of any backbone, in
seconds a session:
    accelerate launch training/train_incremental.py --data path/to/pacs --setting NCD \\
        --backbone timm:tf_efficientnet_lite0@weights.safetensors --output_dir runs/stream

Domains from several places, in their own order:
    accelerate launch training/train_incremental.py --domains photo=data/photos sketch=hub/sketches --setting ND \\
        --backbone ViT-B-32/laion2b_s34b_b79k --output_dir runs/stream

A backbone that learns too, as a whole or by LoRA, with replay from a memory of pictures:
    accelerate launch training/train_incremental.py --data path/to/pacs --setting NCD --regime trainable --lora_rank 8 \\
        --backbone timm:tf_efficientnet_lite0@weights.safetensors --output_dir runs/stream

Digits of several sources, as iDigits, and CIFAR-100's superclasses, as iCIFAR-20, are read from local copies:
    accelerate launch training/train_incremental.py --data_format digits --domains mnist=data/mnist svhn=data/svhn \\
        --setting ND --backbone timm:resnet18.a1_in1k --output_dir runs/digits

Run the same command with --resume_from_checkpoint latest to resume after the last whole session. The run folder is itself the
classifier: VMFMixtureClassifier.from_pretrained("runs/stream").partial_fit(features, labels) learns the next session.
"""

from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.errors import InputError
from diffusers_ext.options import check_used, run
from diffusers_ext.streams.options import StreamTraining


@dataclass
class Options(StreamTraining):
    pass


def main(options: Options) -> None:
    from diffusers_ext.engine.hub import publish
    from diffusers_ext.engine.loop import check, start
    from diffusers_ext.streams.run import Run

    check(options)
    check_regime(options)
    table, test = read_data(options)
    sessions = make_sessions(options, table, test)
    if options.dry_run:
        print(plan(options, table, test, sessions))
        return
    accelerator = start(options)
    stream = Run(options, accelerator, table, test, sessions)
    stream.encode()
    stream.learn()
    stream.sheet()
    if accelerator.is_main_process:
        stream.compare()
        stream.finish()
        publish(Path(options.output_dir), options)
    accelerator.end_training()


def check_regime(options: Options) -> None:
    """Raise InputError where a regime lacks what it needs."""
    from diffusers_ext.mixtures.heads import HEADS

    if not options.backbone:
        raise InputError(
            "--backbone is missing: name a backbone, such as timm:resnet50.a1_in1k; see embeddings/backbones.py"
        )
    if options.regime == "trainable" and not options.backbone.startswith("timm:"):
        raise InputError(f"--backbone {options.backbone}: of the trainable regime it must be timm's; write timm:...")
    heads = ["mixture", "linear"] if options.regime == "trainable" else list(HEADS)
    if options.head not in heads:
        raise InputError(f"--head {options.head}: the {options.regime} regime has {', '.join(heads)}")
    if not options.baselines:
        check_used(options, {"encoder_cache_dir": {"regime": ("frozen",)}})
    if options.validation_steps != Options.validation_steps:
        raise InputError("--validation_steps: a session is measured when it ends; leave it out")
    if options.regime == "trainable" and options.memory < 1:
        raise InputError("--memory 0: a backbone that learns needs pictures to replay; give 1 or more")


def read_data(options: Options):
    """Return the labelled pictures and their test half, (N,) bool, drawn in each domain that names none."""
    import numpy as np

    from diffusers_ext.data.splits import with_tests

    if bool(options.data) == bool(options.domains):
        raise InputError("give either --data FOLDER or --domains name=folder ..., the labelled pictures to learn")
    table = with_tests(_table(options), options.test_fraction, options.seed)
    return table, np.array([sample.split == "test" for sample in table.samples])


def _table(options: Options):
    from diffusers_ext.data.labelled import LabelledImages, columns_of, read_labelled
    from diffusers_ext.data.published import cifar20, digits

    columns = columns_of(options)
    parts = [_domain(given) for given in options.domains or []]
    if options.data_format != "labelled" and bool(parts) != (options.data_format == "digits"):
        raise InputError("--data_format digits takes --domains name=folder ..., cifar20 takes --data FOLDER")
    if options.data_format == "digits":
        return digits(dict(parts))
    if options.data_format == "cifar20":
        assert options.data, "read_data asks for data or domains"
        return cifar20(options.data)
    if options.data:
        return read_labelled(options.data, **columns)
    read = [read_labelled(folder, **columns, domain=name) for name, folder in parts]
    return LabelledImages.of(sample for part in read for sample in part.samples)


def _domain(given: str) -> tuple[str, str]:
    name, separator, folder = given.partition("=")
    if not separator or not name or not folder:
        raise InputError(f"--domains {given}: write name=folder")
    return name, folder


def make_sessions(options: Options, table, test):
    from diffusers_ext.data.splits import check_learnable
    from diffusers_ext.streams.sessions import build_sessions

    names = [_domain(given)[0] for given in options.domains or []]
    for name in names:
        if name not in table.domains:
            raise InputError(
                f"--domains {name}=...: its table names other domains ({', '.join(table.domains)}); "
                "give it by --data, or name another --domain_column"
            )
    check_learnable(table)
    order = [table.domains.index(name) for name in names] or None
    sessions = build_sessions(
        table.label_index, table.domain_index, options.setting, options.groups, options.seed, order
    )
    if not len(sessions.rows(0, test)):
        cells = ", ".join(f"{table.labels[label]} in {table.domains[domain]}" for label, domain in sessions.cells[0])
        raise InputError(f"the first session ({cells}) has no picture to test on; raise --test_fraction")
    return sessions


def plan(options: Options, table, test, sessions) -> str:
    """What `--dry_run` prints."""
    from diffusers_ext.options import as_dict

    lines = ["options", *(f"  {name}: {value}" for name, value in as_dict(options).items())]
    lines += ["data", f"  {len(table):,} pictures, {int(test.sum()):,} of them to test on"]
    lines += [f"  {len(table.labels)} classes, {len(table.domains)} domains: {', '.join(table.domains)}", "sessions"]
    for number, cells in enumerate(sessions.cells):
        classes = sorted({table.labels[label] for label, _ in cells})
        domains = sorted({table.domains[domain] for _, domain in cells})
        rows = len(sessions.rows(number, ~test))
        lines.append(f"  {number + 1}: {rows:,} pictures of {', '.join(classes)} in {', '.join(domains)}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, Options)
