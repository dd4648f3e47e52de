"""Whatever the words and files, parsing ends in options, in InputError, or in exit code 2 with one line."""

import contextlib
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from option_programs import programs

from diffusers_ext.errors import InputError
from diffusers_ext.options import parse
from diffusers_ext.options.declarations import declared

FUZZED = ("training/train_controlnet.py", "training/train_lads.py", "diffusers-ext rerank", "diffusers-ext rankings")
BOUNDED = settings(
    max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
ODD = (
    *(
        "",
        " ",
        "-1",
        "0",
        "-0",
        "1e999",
        "1_000",
        "１２",
        "9" * 5000,
        "nan",
        "-inf",
        "0x1F",
        "True",
        "None",
        "~",
        "~/x",
    ),
    *("\udcff", "\ud800", "a\0b", "a\nb", "-", "--", "--config", "=", "x" * 300, "/dev/null/x", "💡", "\u2028"),
)
words = st.one_of(st.sampled_from(ODD), st.text(max_size=8), st.integers().map(str), st.floats().map(str))
values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(ODD), st.integers().map(lambda n: n**99)
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("options", "seed", "a")), inner),
    max_leaves=5,
)


def outcome(cls: type, argv: list[str]) -> str:
    """Parse; return what was said, '' where options came out. Anything but a clear refusal fails."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            assert isinstance(parse(cls, argv), cls)
        return ""
    except InputError as error:
        return one_line(str(error))
    except SystemExit as stopped:
        assert stopped.code == 2 or (stopped.code == 0 and {"-h", "--help"} & {*argv})
        return one_line(said.getvalue()) if stopped.code else ""


def one_line(text: str) -> str:
    assert text.strip() and "\n" not in text.strip() and len(text) < 2000
    text.encode()  # can be printed anywhere
    return text


@pytest.mark.parametrize("program", FUZZED)
def test_no_command_line_breaks_the_parser(program):
    cls = programs()[program]
    flags = st.sampled_from([spelt for name in declared(cls) for spelt in (f"--{name}", f"--no-{name}")])
    parts = st.one_of(flags, words, st.tuples(flags, words).map("=".join), st.tuples(flags, words).map(" ".join))
    lines = st.lists(parts, max_size=5).map(lambda line: [word for word in line if word not in ("-h", "--help")])

    @BOUNDED
    @given(lines)
    def check(line):
        outcome(cls, line)

    check()


@pytest.mark.parametrize("program", FUZZED)
def test_no_configuration_breaks_the_parser(program, tmp_path):
    cls, config = programs()[program], tmp_path / "run.json"
    names = st.one_of(st.sampled_from(sorted(declared(cls))), st.sampled_from(ODD))

    @BOUNDED
    @given(st.one_of(st.dictionaries(names, values, max_size=3), values))
    def check(content):
        config.write_text(json.dumps(content), encoding="utf-8")
        outcome(cls, ["--config", str(config)])

    check()


@BOUNDED
@given(st.binary(max_size=40))
def test_no_bytes_of_a_configuration_break_the_parser(tmp_path_factory, content):
    config = tmp_path_factory.getbasetemp() / "bytes.json"
    config.write_bytes(content)
    outcome(programs()[FUZZED[0]], ["--config", str(config)])


@pytest.mark.parametrize(
    "content, said",
    [
        (b"\xff\xfes\x00", "is not text in UTF-8"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"names": ' + b"[" * 900 + b"]" * 900 + b"}", "unknown option names"),
        (b'{"lora_target_modules": ' + b"[" * 900 + b"]" * 900 + b"}", "lora_target_modules must be str, got a list"),
        (b'{"seed": NaN}', "seed must be int, got nan"),
        (b'{"learning_rate": NaN}', "learning_rate must be a finite number, above 0, got nan"),
        (b'{"learning_rate": 1' + b"0" * 400 + b"}", "learning_rate is too large"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", "Exceeds the limit"),
        (b'{"seed": 1, "seed": 2}', "'seed' stands there twice"),
        (b'{"options": [1]}', "expected a JSON object of options"),
        (b'{"output_dir": "\\ud800"}', "output_dir must be text in UTF-8"),
        (b'{"output_dir": "a\\u0000"}', "output_dir must be text without zero bytes"),
        (b'{"validation_image": []}', "validation_image must be a list, of one value at least"),
        (b'{"seed": true}', "seed must be int, got True"),
        (b"", "Expecting value"),
    ],
)
def test_a_configuration_that_is_none_is_named(content, said, tmp_path):
    config = tmp_path / "run.json"
    config.write_bytes(content)
    line = outcome(programs()[FUZZED[0]], ["--config", str(config)])
    assert said in line and str(config) in line


def test_a_byte_order_mark_and_the_home_folder_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.json").write_text(json.dumps({"seed": 7, "output_dir": "~/run"}), encoding="utf-8-sig")
    found = parse(programs()[FUZZED[0]], ["--config", "~/run.json"])
    assert (found.seed, found.output_dir) == (7, str(tmp_path / "run"))


@pytest.mark.parametrize("config", [".", "nowhere.json", "/dev/null/x", "x" * 5000, "a\0b", ""])
def test_a_configuration_that_cannot_be_read_is_named(config):
    assert "--config" in outcome(programs()[FUZZED[0]], ["--config", config])


def test_an_empty_path_is_not_the_current_folder():
    for words in (["--output_dir="], ["--train_data_dir", " "]):
        assert f"{words[0].rstrip('=')} is empty" in outcome(programs()[FUZZED[0]], words)
    assert parse(programs()["diffusers-ext rerank"], ["--negative_prompt", ""]).negative_prompt == ""
