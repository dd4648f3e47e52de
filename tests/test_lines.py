r"""Text files: lines end at \n, \r\n and \r alone, byte order marks are no text, other encodings are named."""

import ast
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_ext.data.texts import read_prompts
from diffusers_ext.engine.run_folder import read_metrics
from diffusers_ext.errors import InputError
from diffusers_ext.lines import decode, journal_lines, parse_json, read_lines, split_lines
from diffusers_ext.preferences.annotate.items import _rows as annotation_rows
from diffusers_ext.preferences.formats import read_rankings
from diffusers_ext.rewards.records import Pair, read_records

ODD = "a circle\u2028of\u2029two\x0blines\x0c\x1c\x1d\x1e\x85end"


def test_lines_end_at_line_breaks_alone():
    assert split_lines(f"{ODD}\n{ODD}\r\nlast\rone") == [ODD, ODD, "last", "one"]
    assert split_lines("") == [] and split_lines("\n") == [""] and split_lines("a\n\n") == ["a", ""]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=5))
def test_what_the_package_writes_it_reads_again(texts):
    text = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    assert [parse_json(line, "x")["text"] for line in split_lines(text)] == texts


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_tell_the_encoding(encoding, tmp_path):
    (tmp_path / "a.txt").write_bytes(f"a café\r\n{ODD}".encode(encoding))
    assert read_lines(tmp_path / "a.txt") == ["a café", ODD]


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_utf_16_of_either_order(mark):
    order = "utf-16-le" if mark == b"\xff\xfe" else "utf-16-be"
    assert decode(mark + "naïve".encode(order), "x") == "naïve"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("one\ntwo\na café\n".encode("cp1252"), r"a\.txt:3: not UTF-8; it looks like CP1252.*iconv"),
        ("一只红色的猫坐在垫子上\n一".encode("gb18030"), r"a\.txt:1: not UTF-8; it looks like"),
        ("plain\ntext".encode("utf-16-le"), r"a\.txt:1: a NUL byte: UTF-16 without a byte order mark"),
        (b"\xff\xfea", r"a\.txt:1: not UTF-8"),
        (b"one\r\ntwo\x00", r"a\.txt:2: a NUL byte"),
    ],
)
def test_other_encodings_are_named_by_line_and_never_guessed(data, message, tmp_path):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_lines(tmp_path / "a.txt")


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, '{"a": "\\ud800"}', "{", '{"a": 1} x'])
def test_json_that_cannot_be_read_is_named(text):
    with pytest.raises(InputError, match=r"^here: "):
        parse_json(text, "here")
    assert parse_json('"\\ud83d\\ude00"', "here") == "😀"


def test_a_journal_cut_inside_a_character_keeps_its_whole_lines(tmp_path):
    whole = json.dumps({"step": 1, "text": ODD}, ensure_ascii=False).encode() + b"\n"
    (tmp_path / "metrics.jsonl").write_bytes(whole + '{"text": "é'.encode()[:-1])
    assert journal_lines(tmp_path / "absent") == [] and len(journal_lines(tmp_path / "metrics.jsonl")) == 2
    assert [row["text"] for row in read_metrics(tmp_path)] == [ODD]


def test_every_reader_of_lines_keeps_unusual_line_ends(tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{ODD}\nb\n")
    assert [prompt.text for prompt in read_prompts(tmp_path / "prompts.txt")] == [ODD, "b"]
    ranking = {"id": "1", "prompt": ODD, "images": ["a.png", "b.png"], "rankings": []}
    (tmp_path / "rankings.jsonl").write_text(json.dumps(ranking, ensure_ascii=False) + "\n")
    assert read_rankings(tmp_path / "rankings.jsonl")[0].prompt == ODD
    assert annotation_rows(tmp_path / "rankings.jsonl")[0][1]["prompt"] == ODD
    row = {"image": "a.png", "prompt": ODD, "reward": "x", "score": 1.0}
    (tmp_path / "scores.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    pair = Pair("a.png", ODD)
    assert read_records(tmp_path / "scores.jsonl", "x", None, {pair: ""}).rows[pair]["score"] == 1.0


def test_no_other_reader_splits_files_into_lines():
    """str.splitlines() is left to messages of other programs and to Markdown, of which the first line is shown."""
    allowed = {
        "publish/cards/markdown.py",
        "cli.py",
        "options/parsing.py",
        "publish/loopback_hub.py",
        "rewards/loading.py",
        "control/self_test.py",
    }
    root = Path(__file__).parent.parent / "diffusers_ext"
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            splits = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "splitlines"
            if splits and path.relative_to(root).as_posix() not in allowed:
                assert "error" in ast.dump(node), f"{path}:{node.lineno}: use diffusers_ext.lines"
