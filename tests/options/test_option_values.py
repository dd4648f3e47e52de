"""What options of every script and command may be, what reads them, and where they may write."""

import ast
import dataclasses
import json
import math
import os
import re
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from option_programs import ROOT, programs

from diffusers_ext.errors import InputError
from diffusers_ext.options import (
    ANY,
    COUNT,
    DECAY,
    POSITIVE,
    SHARE,
    WARMED,
    OptimizerOptions,
    RunOptions,
    check_declared,
    check_used,
    depends,
    late_warmup,
    option,
    parse,
)
from diffusers_ext.options.checks import fault_of
from diffusers_ext.options.declarations import LARGEST, Declared, Range, declared

PROGRAMS = sorted(programs())
INHERITED = {*RunOptions.__dataclass_fields__, *OptimizerOptions.__dataclass_fields__}


def numbers(program: str) -> list[Declared]:
    return [stated for stated in declared(programs()[program]).values() if stated.kind in (int, float)]


def texts(program: str) -> list[Declared]:
    return [stated for stated in declared(programs()[program]).values() if stated.kind is str]


def inside(limits: Range, kind: type) -> Iterator[float]:
    """The bounds themselves, or what is just within an open one."""
    step = 1 if kind is int else 1e-6
    if limits.low is not None:
        yield kind(limits.low + step) if limits.above else kind(limits.low)
    if limits.high is not None:
        yield kind(limits.high - step) if limits.below else kind(limits.high)


def outside(limits: Range, kind: type) -> Iterator[float]:
    """What is just outside the bounds."""
    step = 1 if kind is int else 1e-6
    if limits.low is not None:
        yield kind(limits.low) if limits.above else kind(limits.low - step)
    if limits.high is not None:
        yield kind(limits.high) if limits.below else kind(limits.high + step)


def refused(program: str, *words: str, capsys: pytest.CaptureFixture) -> str:
    """Return the one line with which a command line is refused."""
    with pytest.raises((SystemExit, InputError)) as raised:
        parse(programs()[program], list(words))
    if isinstance(raised.value, InputError):
        line = str(raised.value)
    else:
        assert raised.value.code == 2
        line = capsys.readouterr().err.strip()
    assert line and "\n" not in line
    return line


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_number_declares_a_range_whose_bounds_are_taken_and_no_more(program, capsys):
    for stated in numbers(program):
        assert stated.range is not None, f"{stated.name} states no range"
        defaults = stated.default if isinstance(stated.default, list) else [stated.default]
        assert all(value is None or value in stated.range for value in defaults), stated.name
        for value in inside(stated.range, stated.kind):
            assert fault_of(stated, value) is None, (stated.name, value)
        for value in (*outside(stated.range, stated.kind), LARGEST + 1, -(10**400)):
            assert fault_of(stated, value), (stated.name, value)
        if stated.positional or not list(outside(stated.range, stated.kind)):
            continue
        line = refused(program, f"--{stated.name}={next(outside(stated.range, stated.kind))}", capsys=capsys)
        assert f"--{stated.name} must" in line and str(stated.range) in line


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "training", "diffusers_ext"])
def test_no_declaration_of_a_number_is_without_a_range(folder):
    """Of programs too that cannot be imported here; a field declared anew has its first declaration's."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            call = getattr(node, "value", None)
            if isinstance(node, ast.AnnAssign) and getattr(getattr(call, "func", None), "id", "") == "option":
                number = re.search(r"\b(int|float)\b", ast.unparse(node.annotation))
                assert not number or len(call.args) > 2 or node.target.id in INHERITED, f"{path}: {node.target.id}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_option_takes_what_is_no_number(program, capsys):
    words = ("nan", "inf", "1e999", "", "1_000", "１２", "ten", "0x10", "-inf")
    for number, stated in enumerate(numbers(program)):
        word = words[number % len(words)]
        line = refused(program, f"--{stated.name}={word}", capsys=capsys)
        assert line.removeprefix("error: ").startswith(f"--{stated.name} must be a"), (stated.name, word)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_shows_each_range_once(program, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(programs()[program], ["--help"])
    shown = "".join(capsys.readouterr().out.split())  # lines break at hyphens too
    assert stopped.value.code == 0
    said = ["".join(f"{stated.help} ({stated.range}".split()) for stated in numbers(program)]
    assert {text: shown.count(text) for text in said} == {text: said.count(text) for text in said}


@pytest.mark.parametrize(
    "limits, rule",
    [
        (COUNT, "be at least 1"),
        (POSITIVE, "be above 0"),
        (SHARE, "lie in 0 to 1"),
        (DECAY, "be at least 0 and below 1"),
        (Range(0, 1, above=True), "lie above 0 and up to 1"),
        (Range(high=3), "be up to 3"),
        (ANY, "be any number"),
    ],
)
def test_a_range_says_what_it_is(limits, rule):
    assert limits.rule == rule


@pytest.mark.parametrize(
    "words, said",
    [
        (["--max_train_steps", "0"], "at least 1, got 0; leave it out to train for --num_train_epochs"),
        (["--max_train_steps", "-1"], "at least 1, got -1; leave it out"),
        (["--max_train_samples", "-1"], "leave it out for all rows"),
        (["--proportion_empty_prompts", "1.5"], "must lie in 0 to 1, got 1.5"),
        (["--use_ema", "--ema_decay", "1.5"], "below 1, got 1.5"),
        (["--seed", "-1"], "at least 0, got -1; for a random one draw it yourself"),
        (["--num_train_epochs", "0.5"], "a whole number, at least 1, got '0.5'; give --max_train_steps"),
        (["--dataloader_num_workers", "-1"], "at least 0"),
        (["--learning_rate", "-1e-3"], "above 0, got -0.001"),
        (["--learning_rate", "-inf"], "finite number, above 0"),
        (["--num_validation_images", "0"], "at least 1"),
        (["--max_grad_norm", "-1"], "0 is without clipping"),
        (["--seed", "9" * 30], "too large"),
        (["--timestep_min", "500", "--timestep_max", "500"], "--timestep_min 500 must be below --timestep_max 500"),
    ],
)
def test_what_other_programs_take_is_refused_with_what_to_write(words, said, capsys):
    assert said in refused("training/train_controlnet.py", *words, capsys=capsys)


def test_the_same_holds_for_a_file_and_for_a_dataclass(tmp_path, capsys):
    config = tmp_path / "run.json"
    config.write_text(json.dumps({"ema_decay": 1.5, "use_ema": True}))
    line = refused("training/train_controlnet.py", "--config", str(config), capsys=capsys)
    assert str(config) in line and "ema_decay must be at least 0 and below 1, got 1.5" in line
    built = programs()["training/train_controlnet.py"](use_ema=True, ema_decay=math.nan)
    with pytest.raises(InputError, match="--ema_decay must be a finite number"):
        check_declared(built)


def test_a_warm_up_that_a_run_does_not_finish_is_refused_or_said(capsys):
    script, warmed = "training/train_controlnet.py", ["--lr_scheduler", "cosine", "--max_train_steps", "10"]
    assert "below --max_train_steps 10" in refused(script, *warmed, "--lr_warmup_steps", "10", capsys=capsys)
    given = parse(programs()[script], [*warmed, "--lr_warmup_steps", "9"])
    assert late_warmup(given, 10) is None
    assert "below --max_train_steps 10" in refused(script, *warmed, "--lr_warmup_steps", "500", capsys=capsys)
    short = parse(programs()[script], warmed)  # the default of 500 is nobody's mistake, but is said
    assert "gets to 9e-08 instead of 5e-06" in late_warmup(short, 10)
    assert late_warmup(parse(programs()[script], ["--max_train_steps", "10"]), 10) is None  # constant


# What nothing reads.


@dataclass
class Small(OptimizerOptions, RunOptions):
    mode: str = option("a", "how", ("a", "b"))
    share: float = option(0.5, "of b", SHARE, requires={"mode": ("b",)})


@depends(("learning_rate", "share"), use_ema=True)
@dataclass
class Smaller(Small):
    share: float = option(0.25, "declared anew")


def test_a_field_that_is_declared_anew_keeps_its_range_and_its_dependencies():
    share = declared(Smaller)["share"]
    assert share.range == SHARE and share.default == 0.25
    assert share.requires == {"mode": ("b",), "use_ema": True}
    assert declared(Small)["share"].requires == {"mode": ("b",)} and not declared(Small)["learning_rate"].requires
    assert declared(Smaller)["lr_warmup_steps"].requires == {"lr_scheduler": WARMED}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_dependency_is_enforced_in_one_line(program):
    cls = programs()[program]
    known = declared(cls)
    for name, stated in known.items():
        for other, wanted in stated.requires.items():
            assert other in known, f"{name} requires {other}, which there is not"
            options = cls(**{name: another(stated), other: unfit(known[other], wanted)})
            with pytest.raises(InputError, match=f"^--{name} (is for|is ignored beside) --{other}"):
                check_used(options, {name: {other: wanted}})
            check_used(cls(**{name: another(stated), other: fit(known[other], wanted)}), {name: {other: wanted}})
            with pytest.raises(InputError):
                check_declared(options)


def another(stated: Declared):
    """A value that the declaration takes, other than the default."""
    if stated.kind is bool:
        return not stated.default
    if stated.choices:
        return next(choice for choice in stated.choices if choice != stated.default)
    value = (
        "other" if stated.kind is str else next(v for v in (3, 0.75, 2) if v in stated.limits and v != stated.default)
    )
    return [value] if stated.many else value


def fit(other: Declared, wanted: tuple | bool):
    if isinstance(wanted, tuple):
        return wanted[0]
    return (
        (another(other) if not other.default else other.default) if wanted else (False if other.kind is bool else None)
    )


def unfit(other: Declared, wanted: tuple | bool):
    if isinstance(wanted, tuple):
        return next(choice for choice in other.choices or () if choice not in wanted)
    return (False if other.kind is bool else None) if wanted else fit(other, True)


@pytest.mark.parametrize(
    "words",
    [
        ["--lr_warmup_steps", "20"],
        ["--lr_power", "2"],
        ["--lr_num_cycles", "3", "--lr_scheduler", "cosine"],
        ["--huber_delta", "0.5"],
        ["--ema_decay", "0.99"],
        ["--shuffle_buffer", "10"],
        ["--hub_model_id", "me/x"],
        ["--hub_token", "hf_x"],
        ["--dataset_config_name", "main"],
        ["--dataset_name", "fusing/fill50k", "--train_data_dir", "data"],
        ["--num_train_epochs", "3", "--max_train_steps", "5"],
        ["--logging_dir", "other"],
        ["--transfer_from", "base"],
        ["--hint_init", "default", "--controlnet_model_name_or_path", "net"],
        ["--decay_to_initial", "--adam_weight_decay", "0"],
    ],
)
def test_a_controlnets_training_refuses_what_it_would_not_read(words, capsys):
    line = refused("training/train_controlnet.py", *words, capsys=capsys)
    assert line.startswith(words[0]) and ("leave" in line or "neither" in line)


@pytest.mark.parametrize(
    "words",
    [
        ["--lr_scheduler", "constant", "--lr_warmup_steps", "0"],  # diffusers' own commands; 0 is what happens
        ["--lr_warmup_steps", "500"],  # the default
        ["--lr_scheduler", "polynomial", "--lr_power", "2", "--lr_warmup_steps", "20"],
        ["--report_to", "tensorboard", "--logging_dir", "other"],
        ["--push_to_hub", "--hub_model_id", "me/x"],
        ["--max_grad_norm", "0"],
    ],
)
def test_what_is_read_is_taken(words):
    parse(programs()["training/train_controlnet.py"], words)


@pytest.mark.parametrize(
    "words",
    [
        ["--learning_rate", "0.1"],
        ["--regime", "trainable", "--encoder_cache_dir", "cache", "--no-baselines"],
        ["--validation_steps", "7"],
        ["--label_column", "kind", "--data_format", "digits"],
        ["--max_train_steps", "7"],
        ["--threshold", "0.5"],
        ["--groups", "2", "--setting", "ND"],
    ],
)
def test_an_incremental_training_refuses_what_it_would_not_read(words):
    script = runpy.run_path(str(ROOT / "training" / "train_incremental.py"))
    with pytest.raises(InputError, match=f"^{words[0]}|^--encoder_cache_dir"):
        script["check_regime"](parse(script["Options"], [*words, "--backbone", "timm:net"]))
    script["check_regime"](parse(script["Options"], ["--backbone", "timm:net"]))


def test_columns_and_splits_that_a_file_does_not_have_are_refused(tmp_path):
    from diffusers_ext.data.texts import read_prompts
    from diffusers_ext.preferences.formats import read_rankings

    (tmp_path / "prompts.txt").write_text("a red circle\n")
    with pytest.raises(InputError, match="--prompt_field text"):
        read_prompts(tmp_path / "prompts.txt", "text")
    with pytest.raises(InputError, match="--split test"):
        read_rankings(tmp_path, split="test")


# Switches and names.


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--use_ema", "True"], True),
        (["--use_ema=true"], True),
        (["--use-ema", "false", "--seed", "3"], False),
        (["--use_ema=False"], False),
        (["--use_ema=0"], False),
        (["--use_ema", "--no-use_ema"], False),
        (["--use_ema=yes"], True),
    ],
)
def test_a_switch_with_a_value_is_what_it_says(words, expected):
    assert parse(Small, words).use_ema is expected


def test_a_switch_takes_no_word_that_is_not_its_value(capsys):
    given = parse(programs()["diffusers-ext rankings"], ["--check_images", "data.jsonl"])
    assert given.check_images is True and given.rankings == "data.jsonl"
    for words in (["--use_ema=maybe"], ["--use_ema="], ["--use_ema=2"]):
        with pytest.raises(SystemExit):
            parse(Small, words)
        assert "--use_ema is a switch: write --use_ema or --no-use_ema" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(Small, ["--no-use_ema=true"])


@pytest.mark.parametrize(
    "word, near",
    [("--learning_rte", "--learning_rate"), ("--max-train-step", "--max_train_steps"), ("--no_use_em", "--no_use_ema")],
)
def test_the_nearest_name_is_suggested(word, near, tmp_path, capsys):
    assert f"did you mean {near}?" in refused("training/train_controlnet.py", word, "1", capsys=capsys)
    config = tmp_path / "run.json"
    config.write_text(json.dumps({word[2:]: 1}))
    line = refused("training/train_controlnet.py", "--config", str(config), capsys=capsys)
    assert f"unknown option {word[2:]}; did you mean {near}?" in line


# Paths.


@pytest.mark.parametrize("program", PROGRAMS)
def test_home_is_put_in_place_of_its_sign_in_every_path(program, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    known = declared(programs()[program])
    for stated in texts(program):
        if stated.path and not stated.choices:
            flag = [] if stated.positional else [f"--{stated.name}"]
            options = programs()[program]
            needed = [word for other, wanted in stated.requires.items() for word in words_for(known[other], wanted)]
            if stated.positional and list(known).index(stated.name):
                needed = ["check", *needed] if "card" in program else needed
            value = getattr(
                parse(options, [*flag, "~/here/x", *needed] if flag else [*needed, "~/here/x"]), stated.name
            )
            assert (value[0] if stated.many else value) == f"{tmp_path}/here/x", stated.name


def words_for(other: Declared, wanted: tuple | bool) -> list[str]:
    value = fit(other, wanted)
    if value is None or value is False or value == other.default:
        return []
    return [f"--{other.name}"] if value is True else [f"--{other.name}", *(value if other.many else [str(value)])]


@pytest.mark.parametrize(
    "given, expected",
    [
        ("timm:net@~/w.safetensors", "timm:net@{}/w.safetensors"),
        ("photo=~/data", "photo={}/data"),
        ("a~b/c~", "a~b/c~"),
    ],
)
def test_home_is_put_inside_references_too(given, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = parse(programs()["training/train_incremental.py"], ["--backbone", given])
    assert given.backbone == expected.format(tmp_path)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_output_that_cannot_be_written_is_refused_at_once(program, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    known = declared(programs()[program])
    for stated in texts(program):
        if stated.path not in ("folder", "file") or stated.positional:
            continue
        needed = [word for other, wanted in stated.requires.items() for word in words_for(known[other], wanted)]
        for place in (tmp_path / ("x" * 300), tmp_path / "file" / "run", tmp_path / ("é" * 130), "/" + "y/" * 2500):
            line = refused(program, f"--{stated.name}", str(place), *needed, capsys=capsys)
            assert line.startswith(f"--{stated.name} ") and "name another" in line and len(line) < 500
        wrong = tmp_path / "file" if stated.path == "folder" else tmp_path
        assert "not a f" in refused(program, f"--{stated.name}", str(wrong), *needed, capsys=capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path, capsys):
    (tmp_path / "kept").mkdir(mode=0o500)
    line = refused("training/train_lads.py", "--output_dir", str(tmp_path / "kept" / "run"), capsys=capsys)
    assert "cannot be written, for want of permission" in line


def test_permission_is_asked_of_the_nearest_folder_that_exists(tmp_path, monkeypatch, capsys):
    asked: list[Path] = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(Path(path)) or False)
    line = refused("training/train_lads.py", "--output_dir", str(tmp_path / "a" / "b"), capsys=capsys)
    assert f"{tmp_path} cannot be written" in line and asked == [tmp_path]


def test_what_is_written_nowhere_is_not_checked(tmp_path):
    parse(programs()["training/train_lads.py"], ["--output_dir", str(tmp_path / ("x" * 300)), "--dry_run"])


def test_outputs_that_are_not_written_are_not_checked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file in the way of the default folders")
    parse(programs()["training/train_controlnet.py"], ["--self_test"])
    parse(programs()["diffusers-ext select-prompts"], ["--embeddings", "x.npy"])
    assert "--cache_dir" in refused("diffusers-ext select-prompts", "--encoder", "x", capsys=capsys)
    assert "--output_dir" in refused("training/train_controlnet.py", capsys=capsys)


def test_a_self_test_goes_alone():
    from diffusers_ext.options import check_alone

    cls = programs()["training/train_controlnet.py"]
    check_alone(cls(self_test=True), "self_test")
    with pytest.raises(InputError, match="--seed is ignored beside --self_test"):
        check_alone(cls(self_test=True, seed=3), "self_test")


def test_every_default_is_its_own_value():
    """Declared options and fields name the same defaults, so that what is not given is never refused."""
    for cls in programs().values():
        made = cls()
        assert {stated.name: stated.default for stated in declared(cls).values()} == {
            field.name: getattr(made, field.name) for field in dataclasses.fields(cls)
        }


def test_a_revision_is_of_the_hub(tmp_path):
    from diffusers_ext.control.options import check_revision

    with pytest.raises(InputError, match=r"--revision main: .* is a folder, not a Hub repository"):
        check_revision("main", str(tmp_path))
    check_revision(None, str(tmp_path))
    check_revision("main", "owner/name")
