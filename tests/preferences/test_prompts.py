"""Prompt selection: graph, greedy, reading, embedding and command, each against the slow way of doing it."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import diffusers_ext
from diffusers_ext.cli import main
from diffusers_ext.data.texts import read_prompts, without_duplicates
from diffusers_ext.embeddings import sentences
from diffusers_ext.errors import InputError
from diffusers_ext.preferences import select as prompts
from diffusers_ext.randomness import generator


def exact_rows(n: int, seed: int) -> torch.Tensor:
    """Rows whose similarities are exact in floating point, 1/4 apart, so that most are ties: four of ±1/2 in six places."""
    draw = generator(seed, "rows")
    rows = np.zeros((n, 6), np.float32)
    for row in rows:
        row[draw.permutation(6)[:4]] = draw.choice([-0.5, 0.5], 4)
    return torch.from_numpy(rows)


def random_graph(n: int, k: int, seed: int) -> np.ndarray:
    """A graph in which low indices are everyone's neighbours, so that many voters are shared and weights run out."""
    draw = generator(seed, "graph", n)
    favour = 1 / np.arange(1, n + 1)
    rows = []
    for v in range(n):
        share = np.where(np.arange(n) == v, 0, favour)
        rows.append(draw.choice(n, k, replace=False, p=share / share.sum()))
    return np.array(rows, np.int32)


def brute_force(graph: np.ndarray, count: int) -> list[int]:
    """Vote-k by its definition: every score from nothing, before each choice."""
    neighbours = [set(row) for row in graph.tolist()]
    chosen: list[int] = []
    for _ in range(count):
        scores = {}
        for u in range(len(graph)):
            voters = [v for v in range(len(graph)) if u in neighbours[v] and v not in chosen]
            covered = [len(neighbours[v] & set(chosen)) for v in voters]
            scores[u] = sum(10 ** (9 - c) for c in covered if c <= 9)
        chosen.append(max((u for u in scores if u not in chosen), key=scores.__getitem__))
    return chosen


@pytest.mark.parametrize(("n", "k"), [(2, 1), (40, 39), (130, 5), (150, 60)])
@pytest.mark.parametrize("blocks", [(1024, 16384), (7, 16)])
def test_neighbours_are_those_of_a_full_stable_sort(monkeypatch, n, k, blocks):
    monkeypatch.setattr(prompts, "ROWS", blocks[0])
    monkeypatch.setattr(prompts, "COLUMNS", blocks[1])
    unit = exact_rows(n, seed=k)
    similar = (unit @ unit.T).numpy()
    np.fill_diagonal(similar, -np.inf)
    assert (prompts.nearest_neighbours(unit, k) == np.argsort(-similar, axis=1, kind="stable")[:, :k]).all()


@pytest.mark.parametrize("seed", range(30))
def test_vote_k_is_its_definition(seed):
    n = int(generator(seed, "size").integers(2, 41))
    k = int(generator(seed, "degree").integers(1, n))
    graph = random_graph(n, k, seed) if seed % 2 else prompts.nearest_neighbours(exact_rows(n, seed), k)
    assert prompts.vote_k(graph, n).tolist() == brute_force(graph, n)


def test_vote_k_is_its_definition_on_300_embeddings():
    unit = prompts.unit_rows(generator(0, "embeddings").standard_normal((300, 16)))
    graph = prompts.nearest_neighbours(unit, 15)
    assert prompts.vote_k(graph, 30).tolist() == brute_force(graph, 30)


def test_a_voter_of_ten_chosen_has_no_weight_left():
    """All vote for 0 to 11 and nobody for the rest: from the eleventh choice on scores are zero, the index decides."""
    graph = np.array([[u for u in range(13) if u != v][:12] for v in range(60)])
    graph[13:] = np.arange(12)
    assert prompts.vote_k(graph, 60).tolist() == brute_force(graph, 60)


def test_selections_are_nested_and_do_not_depend_on_type_or_length():
    rows = generator(1, "embeddings").standard_normal((200, 8)).astype(np.float32)
    chosen = diffusers_ext.select_prompts(rows, 50, k=10)
    assert len(set(chosen.tolist())) == 50 and chosen.dtype == np.int64
    assert (diffusers_ext.select_prompts(rows, 20, k=10) == chosen[:20]).all()
    assert (diffusers_ext.select_prompts(torch.from_numpy(rows).double() * 4, 50, k=10) == chosen).all()


def test_shards_are_selections_of_their_own():
    rows = generator(2, "embeddings").standard_normal((90, 8))
    shards = np.array(["b", "a", "c"] * 30)
    alone = [np.flatnonzero(shards == name) for name in "abc"]
    expected = [members[prompts.select_prompts(rows[members], 4, k=5)] for members in alone]
    assert (prompts.select_prompts(rows, 4, k=5, shards=shards) == np.concatenate(expected)).all()


def test_centring_takes_the_mean_away():
    rows = generator(3, "embeddings").standard_normal((120, 8))
    shifted = rows - rows.mean(0) + 5
    kept = prompts.select_prompts(shifted, 30, k=10, centre=True)
    assert (kept == prompts.select_prompts(rows - rows.mean(0), 30, k=10)).all()
    assert (kept != prompts.select_prompts(shifted, 30, k=10)).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 21}, "count is 21, of 20 prompts"),
        ({"count": 0}, "count is 0"),
        ({"k": 20}, "20 prompts have 19 neighbours each"),
        ({"shards": np.arange(19)}, "19 shard labels for 20"),
        ({"shards": np.arange(20) // 15}, "shard '1': k is 5, but 5 prompts"),
    ],
)
def test_what_cannot_be_chosen_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        prompts.select_prompts(np.eye(20), **{"count": 2, "k": 5, **arguments})


@pytest.mark.parametrize(
    ("value", "what"), [(0.0, "row 3 is zero"), (np.nan, "row 3 is not finite"), (np.inf, "row 3 is not finite")]
)
def test_embeddings_without_direction_are_named(value, what):
    rows = np.ones((20, 4))
    rows[[3, 7]] = value
    with pytest.raises(InputError, match=rf"{what} \(2 such rows\)"):
        prompts.select_prompts(rows, 2, k=5)
    with pytest.raises(InputError, match="floating-point rows"):
        prompts.select_prompts(np.ones((20, 4), int), 2, k=5)


def test_votes_on_a_graph_by_hand():
    graph = np.array([[1, 2], [2, 3], [3, 0], [2, 1]])
    # of {2, 3}: 0 has one of them, 1 both, 2 one, 3 one.
    assert prompts.votes(graph, np.array([2, 3])) == pytest.approx(1 + 1.1 + 1 + 1)


def clustered(n: int) -> torch.Tensor:
    draw = generator(0, "clustered")
    centres = draw.standard_normal((n // 100, 32))
    return prompts.unit_rows(centres[(draw.random(n) ** 2 * len(centres)).astype(int)] + draw.standard_normal((n, 32)))


def test_an_approximate_graph_selects_nearly_as_well(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(prompts, "PROBES", 4)
    unit = clustered(4000)
    exact, near = prompts.nearest_neighbours(unit, 50), prompts.approximate_neighbours(unit, 50)
    assert (near != exact).any()  # else there is nothing to show
    best = prompts.votes(exact, prompts.vote_k(exact, 80))
    assert prompts.votes(exact, prompts.vote_k(near, 80)) > 0.95 * best
    assert prompts.votes(exact, prompts.random_choice(4000, 80)) < 0.9 * best


def test_an_approximate_graph_is_complete_and_without_loops(monkeypatch):
    """One small list searched per prompt, and duplicates that crowd a prompt out of its own results."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(prompts, "PROBES", 1)
    unit = torch.cat([clustered(600), clustered(600)[:1].expand(60, -1)])
    graph = prompts.approximate_neighbours(unit, 40)
    assert (np.sort(graph, 1)[:, 1:] > np.sort(graph, 1)[:, :-1]).all() and graph.min() >= 0 and graph.max() < 660
    assert (graph != np.arange(660)[:, None]).all()


def test_without_faiss_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match="pip install faiss-cpu"):
        prompts.select_prompts(np.eye(20), 2, k=5, approximate=True)


def test_without_faiss_nothing_is_read_or_embedded(monkeypatch, table, capsys):
    monkeypatch.setitem(sys.modules, "faiss", None)
    table.prompts.unlink()
    with pytest.raises(SystemExit):
        command(table, "--count", "5", "--approximate")
    assert "pip install faiss-cpu" in capsys.readouterr().err


def test_coverage_by_hand():
    unit = prompts.unit_rows(np.array([[1.0, 0], [1, 0.01], [0, 1], [1, 1]]))
    found = prompts.coverage(unit, np.array([0, 2, 1]))
    assert found["near_duplicates"] == 1
    assert found["nearest"] == pytest.approx((3 + 1.01 / 2**0.5 / 1.0001**0.5) / 4, abs=1e-6)


def test_every_form_of_file_gives_the_same_prompts(tmp_path):
    texts = ["a red, round circle", "é blue", "  spaces  "]
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n")
    (tmp_path / "a.json").write_text(json.dumps(texts))
    (tmp_path / "b.json").write_text(json.dumps([{"prompt": text, "id": n} for n, text in enumerate(texts)]))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    (tmp_path / "a.csv").write_text('id,prompt\n7,"a red, round circle"\n8,é blue\n9,  spaces  \n')
    for path in sorted(tmp_path.iterdir()):
        rows = read_prompts(path)
        assert [row.text for row in rows] == [text.strip() for text in texts], path
        assert [row.index for row in rows] == [0, 1, 2]
    assert read_prompts(tmp_path / "a.csv")[1].fields["id"] == "8"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"one\n\ntwo\n", r"a.txt:2: the prompt is empty"),
        ("a.txt", b"\xe9", "not UTF-8"),
        ("a.json", b'["one", ""]', "a.json: item 1: the prompt is empty"),
        ("a.json", b'["one", 5]', "a.json: item 1: no text under 'prompt'; it has int"),
        ("a.json", b'{"prompt": "one"}', "expected a JSON list"),
        ("a.json", b'["one",\n"two"', "a.json:2: not valid JSON"),
        ("a.json", b"[]", "holds no prompts"),
        ("a.jsonl", b'{"prompt": "one"}\n{"text": "two"}\n', "a.jsonl:2: no text under 'prompt'; it has text"),
        ("a.csv", b"text\none\n", "a.csv:2: no text under 'prompt'; it has text"),
        ("a.parquet", b"", "prompts are a .txt, .json, .jsonl or .csv"),
    ],
)
def test_mistakes_in_the_prompts_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / name)


def test_duplicates_differ_in_case_and_spaces_at_most(tmp_path):
    (tmp_path / "a.txt").write_text("A  cat\na dog\na cat\n")
    rows = read_prompts(tmp_path / "a.txt")
    assert [row.index for row in without_duplicates(rows, "drop")] == [0, 1]
    assert without_duplicates(rows, "keep") == rows
    with pytest.raises(InputError, match=r"a.txt:3: the same prompt as .*a.txt:1"):
        without_duplicates(rows, "refuse")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A text encoder with random weights, in one folder with its tokenizer."""
    from diffusers_ext.toy import tiny

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = tiny.tokenizer(["a red circle on a blue square"], merges=16)
    tokenizer.save_pretrained(folder)
    tiny.text_encoder(tokenizer).save_pretrained(folder)
    return folder


TEXTS = ["circle", "a red circle", "a blue square on a red circle on a blue square", "square", "red"]


def test_an_embedding_is_the_mean_over_its_own_tokens(encoder, tmp_path):
    found = sentences.embed(str(encoder), TEXTS, tmp_path, batch_size=2)
    one = sentences.SentenceEncoder(encoder)
    for text, row in zip(TEXTS, found):
        tokens = one.tokenizer(text, return_tensors="pt")  # alone: no padding
        with torch.no_grad():
            mean = one.model(**tokens).last_hidden_state[0].mean(0)
        assert np.allclose(row, mean / mean.norm(), atol=1e-5)


def test_what_was_embedded_is_not_embedded_again(encoder, tmp_path, monkeypatch):
    seen = []
    real = sentences.SentenceEncoder.__call__
    monkeypatch.setattr(
        sentences.SentenceEncoder, "__call__", lambda self, texts: seen.extend(texts) or real(self, texts)
    )
    first = sentences.embed(str(encoder), TEXTS[:3], tmp_path)
    again = sentences.embed(str(encoder), [*TEXTS, TEXTS[0]], tmp_path)
    assert seen == [*sorted(TEXTS[:3], key=len, reverse=True), *sorted(TEXTS[3:], key=len, reverse=True)]
    assert (again[:3] == first).all() and (again[5] == first[0]).all()
    monkeypatch.setattr(sentences, "SentenceEncoder", None)  # loading would fail
    assert (sentences.embed(str(encoder), TEXTS, tmp_path) == again[:5]).all()


def test_an_interrupted_embedding_goes_on_where_it_was(encoder, tmp_path, monkeypatch):
    real, seen = sentences.SentenceEncoder.__call__, []

    def until_two(self, texts):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.extend(texts)
        return real(self, texts)

    monkeypatch.setattr(sentences.SentenceEncoder, "__call__", until_two)
    with pytest.raises(KeyboardInterrupt):
        sentences.embed(str(encoder), TEXTS, tmp_path, batch_size=1)
    monkeypatch.setattr(
        sentences.SentenceEncoder, "__call__", lambda self, texts: seen.extend(texts) or real(self, texts)
    )
    sentences.embed(str(encoder), TEXTS, tmp_path, batch_size=1)
    assert sorted(seen) == sorted(TEXTS)  # each once


def test_encoders_that_would_be_pooled_wrongly_or_are_incomplete_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        sentences.embed(str(tmp_path / "none"), TEXTS, tmp_path)
    with pytest.raises(InputError, match=r"config\.json: missing"):
        sentences.check_encoder(tmp_path)
    for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    with pytest.raises(InputError, match="does not pool by the mean"):
        sentences.check_encoder(tmp_path)


def test_a_real_encoder_knows_what_is_alike(shared, tmp_path):
    texts = ["a photo of a dog", "a picture of a puppy", "quarterly report of a bank"]
    dog, puppy, bank = sentences.embed(str(shared / "assets/weights/minilm-l6-v2"), texts, tmp_path)
    assert dog @ puppy > 0.6 and dog @ bank < 0.2


def test_files_of_embeddings(tmp_path):
    rows = torch.eye(3)
    np.save(tmp_path / "a.npy", rows.numpy())
    save_file({"x": rows}, tmp_path / "one.safetensors")
    save_file({"embeddings": rows, "x": torch.ones(2)}, tmp_path / "named.safetensors")
    for path in tmp_path.iterdir():
        assert (torch.as_tensor(sentences.read_embeddings(path)) == rows).all()
    save_file({"y": rows, "x": torch.ones(2)}, tmp_path / "two.safetensors")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.ones(3))
    (tmp_path / "broken.safetensors").write_bytes(b"abc")
    (tmp_path / "empty.npy").write_bytes(b"")
    problems = {
        "two.safetensors": "holds x, y|holds y, x",
        "objects.npy": "cannot be read",
        "flat.npy": r"shape \(3,\)",
    }
    problems |= {"broken.safetensors": "cannot be read", "none.npy": "cannot be read", "a.csv": "a .npy or a"}
    problems |= {"empty.npy": "cannot be read"}
    for name, message in problems.items():
        with pytest.raises(InputError, match=message):
            sentences.read_embeddings(tmp_path / name)


@pytest.fixture
def table(tmp_path):
    """Sixty prompts in three parts, of which the last repeats the first, and their embeddings."""
    rows = [{"prompt": f"prompt {n}", "id": f"p-{n}", "part": n % 3} for n in range(60)]
    rows[-1]["prompt"] = "Prompt  0"
    prompts_file, embeddings = tmp_path / "prompts.jsonl", tmp_path / "prompts.npy"
    prompts_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.save(embeddings, generator(4, "embeddings").standard_normal((60, 8)).astype(np.float16))
    return SimpleNamespace(
        rows=rows, prompts=prompts_file, embeddings=embeddings, output=tmp_path / "out" / "chosen.jsonl"
    )


def command(table, *more: str) -> list[dict]:
    words = ["--prompts", table.prompts, "--embeddings", table.embeddings, "--k", "6", "--output", table.output, *more]
    main(["select-prompts", *map(str, words)])
    return [json.loads(line) for line in table.output.read_text().splitlines()]


def test_the_command_writes_the_selection_and_a_report(table, capsys):
    chosen = command(table, "--count", "10")
    expected = prompts.select_prompts(np.load(table.embeddings)[:59], 10, k=6)
    assert [row["index"] for row in chosen] == expected.tolist() and [row["order"] for row in chosen] == list(range(10))
    assert all(row == {**table.rows[row["index"]], "index": row["index"], "order": row["order"]} for row in chosen)
    report = json.loads(table.output.with_suffix(".report.json").read_text())
    assert (report["prompts"], report["different"], report["count"]) == (60, 59, 10)
    assert report["chosen"] == prompts.coverage(prompts.unit_rows(np.load(table.embeddings)[:59]), expected)
    assert "60 prompts, 1 duplicates left out, 10 chosen" in capsys.readouterr().out


def test_the_command_chooses_within_shards(table):
    chosen = command(table, "--count", "2", "--shard_field", "part", "--centre")
    assert [row["part"] for row in chosen] == [0, 0, 1, 1, 2, 2]


def test_the_command_embeds_what_it_reads(encoder, tmp_path):
    words = ["a", "red", "circle", "on", "blue", "square"]
    texts = [f"{one} {other}" for one in words for other in words]
    (tmp_path / "prompts.txt").write_text("\n".join(texts) + "\n")
    given = ["--encoder", str(encoder), "--cache_dir", str(tmp_path / "cache"), "--output", str(tmp_path / "out.jsonl")]
    main(["select-prompts", "--prompts", str(tmp_path / "prompts.txt"), "--count", "8", "--k", "5", *given])
    chosen = [json.loads(line)["prompt"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    embedded = sentences.embed(str(encoder), texts, tmp_path / "cache")
    assert chosen == [texts[index] for index in prompts.select_prompts(embedded, 8, k=5)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--count", "60"], "count is 60, of 59 prompts"),
        (["--count", "5", "--k", "59"], "59 prompts have 58 neighbours each"),
        (["--count", "5", "--encoder", "x"], "either --encoder or --embeddings"),
        (["--count", "5", "--prompt_field", "text"], "prompts.jsonl:1: no text under 'text'"),
        (["--count", "5", "--shard_field", "shard"], "prompts.jsonl:1: no 'shard'"),
        (["--count", "5", "--duplicates", "refuse"], "prompts.jsonl:60: the same prompt as"),
    ],
)
def test_the_commands_mistakes_are_one_line_and_write_nothing(table, capsys, more, message):
    with pytest.raises(SystemExit) as stopped:
        command(table, *more)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1
    assert not table.output.parent.exists()


def test_the_command_names_rows_of_embeddings_as_the_file_counts_them(table, capsys):
    rows = np.load(table.embeddings)
    rows[59] = np.nan
    np.save(table.embeddings, rows)
    with pytest.raises(SystemExit):
        command(table, "--count", "5")
    assert f"{table.embeddings}: row 59 is not finite" in capsys.readouterr().err
    np.save(table.embeddings, rows[:58])
    with pytest.raises(SystemExit):
        command(table, "--count", "5")
    assert "58 embeddings for 60 rows" in capsys.readouterr().err


def test_real_prompts_are_covered_better_than_by_chance(shared, tmp_path):
    texts = json.loads((shared / "assets/prompts/diffusiondb_prompts.json").read_text())[:128]
    unit = prompts.unit_rows(sentences.embed(str(shared / "assets/weights/minilm-l6-v2"), texts, tmp_path))
    chosen = prompts.coverage(unit, prompts.select_prompts(unit, 12, k=10))["nearest"]
    by_chance = [prompts.coverage(unit, prompts.random_choice(128, 12, seed))["nearest"] for seed in range(5)]
    assert chosen > max(by_chance)


@pytest.mark.parametrize("name", ["prompts.jsonl", "link.jsonl", "hard.jsonl", "sub/../prompts.jsonl", "e.npy"])
def test_the_output_is_never_an_input(tmp_path, monkeypatch, capsys, name):
    table = tmp_path / "prompts.jsonl"
    table.write_text("".join(json.dumps({"prompt": f"prompt {n}"}) + "\n" for n in range(30)))
    np.save(tmp_path / "e.npy", generator(0, "rows").standard_normal((30, 8)).astype(np.float32))
    (tmp_path / "link.jsonl").symlink_to(table)
    (tmp_path / "hard.jsonl").hardlink_to(table)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    before = table.read_bytes(), (tmp_path / "e.npy").read_bytes()
    with pytest.raises(SystemExit):
        main(
            [
                "select-prompts",
                "--prompts",
                str(table),
                "--embeddings",
                "e.npy",
                "--count",
                "5",
                "--k",
                "9",
                "--output",
                name,
            ]
        )
    assert "which it would replace" in capsys.readouterr().err
    assert (table.read_bytes(), (tmp_path / "e.npy").read_bytes()) == before


def test_the_report_does_not_replace_the_prompts_either(tmp_path, capsys):
    table = tmp_path / "chosen.report.json"
    table.write_text(json.dumps([f"prompt {n}" for n in range(30)]))
    np.save(tmp_path / "e.npy", np.eye(30, dtype=np.float32))
    words = ["--prompts", table, "--embeddings", tmp_path / "e.npy", "--count", 5, "--k", 9]
    with pytest.raises(SystemExit):
        main(["select-prompts", *map(str, words), "--output", str(tmp_path / "chosen.jsonl")])
    assert "which it would replace" in capsys.readouterr().err and len(read_prompts(table)) == 30
