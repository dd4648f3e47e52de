"""The benchmarks: each answers --help at once, and the harness they share measures, resumes and writes JSON."""

import ast
import json
import sys

import pytest
from fork_server import ROOT

BENCHMARKS = ROOT / "benchmarks"
HELPERS = {"harness", "hint_training", "spreads", "step_clock"}  # these are no benchmarks
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in HELPERS)
HELP = """
import runpy, sys
for name in sys.argv[1:]:
    sys.argv[1:] = ["--help"]
    sys.path[0] = "benchmarks"
    try:
        runpy.run_path(f"benchmarks/{name}.py", run_name="__main__")
    except SystemExit as end:
        assert not end.code, name
    assert "torch" not in sys.modules, name
"""


@pytest.fixture(scope="module")
def harness():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import harness

        yield harness


def test_help_of_every_benchmark_answers_without_torch():
    import subprocess

    done = subprocess.run([sys.executable, "-c", HELP, *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_says_what_it_asks_and_uses_the_harness(name):
    tree = ast.parse((BENCHMARKS / f"{name}.py").read_text(encoding="utf-8"))
    question, *rest = (ast.get_docstring(tree) or "").split("\n\n")
    assert question.endswith("?") or "?" in question
    assert f"python benchmarks/{name}.py" in rest[0]
    imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert "harness" in imported


def test_turns_alternate_and_a_report_is_valid_json(harness, tmp_path, capsys):
    from spreads import deviation, interval, paired_ratio, quartiles

    order = []
    turns = harness.take_turns({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3, warm_up=1)
    assert "".join(order) == "ba" + "ab" + "ba" + "ab" and [len(timings) for timings in turns.values()] == [3, 3]
    report = harness.Report("name", "What does it cost?", {"seed": 0})
    spreads = [quartiles([1, 2, 3]), deviation([1.0, 3.0]), interval([2.0]), paired_ratio([1, 2], [2, 4])]
    rows = [{"side": "a", "count": 1200, "figure": spread, "missing": float("nan")} for spread in spreads]
    report.table("figures", [*rows, {"side": "b", "figure": None}], ".1f")
    report.write(tmp_path / "results" / "name.json")
    written = json.loads((tmp_path / "results" / "name.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    for name in ("question", "command", "commit", "date", "versions", "machine", "options", "cpu_seconds", "tables"):
        assert name in written
    assert written["tables"][0]["rows"][0]["missing"] is None
    capsys.readouterr()
    harness.show(harness.ShowOptions([str(tmp_path / "results" / "name.json")]))
    shown = capsys.readouterr().out
    assert "| a | 1,200 | 2.0 (1.5 to 2.5) | – |" in shown and "2.0 ± 1.4" in shown and "| b | – | – | – |" in shown


def test_the_machine_is_described_without_its_name(harness):
    import platform

    described = json.dumps(harness.machine())
    assert platform.node() not in described and '"cores"' in described


def test_a_journal_resumes_and_refuses_other_options(harness, tmp_path):
    options = harness.BenchmarkOptions()
    journal = harness.Journal(tmp_path / "rows.jsonl", options)
    assert journal.once({"seed": 0}, lambda: {"figure": 1.5})["figure"] == 1.5
    with open(journal.path, "a", encoding="utf-8") as file:
        file.write('{"seed": 1, "fig')  # of a kill
    again = harness.Journal(tmp_path / "rows.jsonl", options)
    assert again.once({"seed": 0}, pytest.fail)["figure"] == 1.5
    assert again.once({"seed": 1}, lambda: {"figure": 2.5})["figure"] == 2.5
    whole = harness.Journal(tmp_path / "rows.jsonl", options)
    assert [row["seed"] for row in whole.rows[1:]] == [0, 1]

    from prompt_selection import Options

    harness.Journal(tmp_path / "other.jsonl", Options(k=3), ("parts",))
    harness.Journal(tmp_path / "other.jsonl", Options(k=3, parts=["peers"]), ("parts",))
    with pytest.raises(harness.InputError, match="--k 3, not 4"):
        harness.Journal(tmp_path / "other.jsonl", Options(k=4), ("parts",))


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_result_is_of_a_benchmark_and_a_commit(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["benchmark"] in SCRIPTS and f"benchmarks/{result['benchmark']}.py" in result["command"]
    assert result["commit"] and result["date"] and result["tables"]
    assert all(table["rows"] for table in result["tables"])
