"""Rankings: the file, the forms of the known data sets, and what is refused with which words."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusers_ext import cli
from diffusers_ext.errors import InputError
from diffusers_ext.preferences import simulated as simulated_rankings
from diffusers_ext.preferences.checks import check_images, count, hold_out, leaks, normalised
from diffusers_ext.preferences.formats import read_rankings
from diffusers_ext.preferences.rankings import RankedPrompt, Ranking, read, write

GOOD = {
    "id": "1",
    "prompt": "a red circle",
    "images": ["a.png", "b.png", "c.png"],
    "rankings": [
        {
            "annotator": "ada",
            "ranking": [1, 3, 1],
            "ratings": [{"overall": 6, "alignment": 7, "fidelity": 5}, None, None],
            "issues": [[], ["limbs"], []],
            "time_s": 41.5,
        },
        {"annotator": "bo", "ranking": [2, None, 1]},
        {"annotator": "cy", "ranking": [3, 2, 1], "valid": False},
    ],
}


def lines(path: Path, *records) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def pictures(folder: Path, *names: str) -> None:
    for at, name in enumerate(names):
        Image.new("RGB", (8, 8), (at, 0, 0)).save(folder / name)


def test_a_file_is_read_written_and_read_the_same(tmp_path):
    (prompt,) = read(lines(tmp_path / "r.jsonl", GOOD))
    assert prompt.images[0] == tmp_path / "a.png"
    assert prompt.pairs().tolist() == [[0, 1], [2, 1], [2, 0]], "ties, unseen images and invalid rankings give no pairs"
    assert prompt.tied() == 1
    (tmp_path / "elsewhere").mkdir()
    (again,) = read(write(tmp_path / "elsewhere" / "w.jsonl", [prompt]))
    assert json.loads((tmp_path / "elsewhere" / "w.jsonl").read_text())["images"][0] == "../a.png"
    assert (again.images, again.rankings, again.prompt) == (prompt.images, prompt.rankings, prompt.prompt)


def test_a_persons_new_ranking_replaces_the_old():
    prompt = RankedPrompt("1", "", ("a", "b"), (Ranking("ada", (1, 2)), Ranking("bo", (1, 2))))
    again = prompt.with_ranking(Ranking("ada", (2, 1)))
    assert [(each.annotator, each.ranking) for each in again.rankings] == [("bo", (1, 2)), ("ada", (2, 1))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, r"r.jsonl:1: prompt: expected a text, got None"),
        ({"images": []}, r"r.jsonl:1: images: empty"),
        ({"images": ["https://x/a.png", "b"]}, r"images: https://x/a.png is not a local file; download it"),
        ({"rankings": [{"annotator": "a", "ranking": [1, 2]}]}, r"rankings\[0\]: ranking: 2 values for 3 images"),
        ({"rankings": [{"annotator": "a", "ranking": [1, "2", 3]}]}, r"rankings\[0\]: ranking\[1\]: expected a number"),
        (
            {"rankings": [{"annotator": "a", "ranking": [1, True, 3]}]},
            r"ranking\[1\]: expected a number or null, got T",
        ),
        ({"rankings": [{"ranking": [1, 2, 3]}]}, r"rankings\[0\]: annotator: expected a text, got nothing"),
        (
            {"rankings": [{"annotator": "a", "ranking": [1, 2, 3], "ratings": [None, {"overall": 8}, None]}]},
            r"rankings\[0\].ratings\[1\]: .* whole numbers from 1 to 7",
        ),
        (
            {"rankings": [{"annotator": "a", "ranking": [1, 2, 3], "issues": [[], "limbs", []]}]},
            r"rankings\[0\].issues\[1\]: 'limbs'; give a list of words",
        ),
        ({"rankings": GOOD["rankings"][1:2] * 2}, r"r.jsonl:1: rankings: annotator 'bo' twice"),
    ],
)
def test_what_is_wrong_is_named_by_file_row_and_field(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        read(lines(tmp_path / "r.jsonl", {**GOOD, **change}))


def test_equal_ids_and_broken_lines_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"r.jsonl:2: id: '1' is also at .*r.jsonl:1"):
        read(lines(tmp_path / "r.jsonl", GOOD, GOOD))
    (tmp_path / "s.jsonl").write_text(json.dumps(GOOD) + "\n{]\n")
    with pytest.raises(InputError, match=r"s.jsonl:2: not valid JSON"):
        read(tmp_path / "s.jsonl")


def test_the_official_test_rankings(shared):
    """The paper's 6,399 pairs; 831 ties in 349 prompts (spec, section 2.1)."""
    found = count(read_rankings(shared / "assets/prompts/imagereward_test_rankings.json"))
    assert (found.prompts, found.images, found.strict_pairs, found.tied_pairs) == (466, 2720, 6399, 831)
    assert found.prompts_with_ties == 349


def test_the_official_benchmark_leaks_into_the_official_test(shared):
    tested = read_rankings(shared / "assets/prompts/imagereward_test_rankings.json")
    rows = json.loads((shared / "assets/prompts/imagereward_benchmark_prompts.json").read_text())
    texts = [row if isinstance(row, str) else row["prompt"] for row in rows]
    exact, alike = {each.prompt for each in tested}, {normalised(each.prompt) for each in tested}
    assert sum(text in exact for text in texts) == 34
    assert sum(normalised(text) in alike for text in texts) == 41, "seven more differ in punctuation and blanks only"


def test_leaks_are_found_by_words_and_by_bytes(tmp_path):
    pictures(tmp_path, "a.png", "b.png", "c.png", "d.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    training = [RankedPrompt("1", "A red  circle!", (tmp_path / "a.png", tmp_path / "b.png"))]
    other = [
        RankedPrompt("2", "a red circle", (tmp_path / "c.png", tmp_path / "d.png")),
        RankedPrompt("3", "a square", (tmp_path / "copy.png", tmp_path / "d.png")),
    ]
    found = leaks(training, other)
    assert [each.id for each in found.prompts] == ["2"] and [each.id for each in found.images] == ["3"]


def test_hpd_choices_are_joined_by_prompt(tmp_path):
    rows = [
        {"prompt": "p", "file_path": ["a.png", "b.png"], "human_preference": [0, 1], "user_hash": "u"},
        {"prompt": "q", "file_path": ["d.png", "e.png"], "human_preference": [1, 0], "user_hash": "u"},
        {"prompt": "p", "file_path": ["c.png", "b.png"], "human_preference": [1, 0], "user_hash": "u"},
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    first, second = read_rankings(tmp_path / "train.json", tmp_path / "pictures")
    assert [image.name for image in first.images] == ["a.png", "b.png", "c.png"]
    assert first.images[0].parent == tmp_path / "pictures"
    assert first.pairs().tolist() == [[1, 0], [2, 1]] and second.pairs().tolist() == [[0, 1]]
    assert [each.annotator for each in first.rankings] == ["u", "u/2"]
    assert first.rankings[1].ranking == (None, 1, 0)


def test_hpd_rankings_are_those_of_the_people_not_their_average(tmp_path):
    people = [{"rank": [1, 2], "user_hash": "u"}, {"rank": [2, 1], "user_hash": "v"}]
    row = {"prompt": "p", "image_path": ["a", "b"], "rank": [1, 1], "raw_annotations": people}
    (tmp_path / "test.json").write_text(json.dumps([row]))
    (prompt,) = read_rankings(tmp_path / "test.json")
    assert prompt.pairs().tolist() == [[0, 1], [1, 0]]
    (tmp_path / "test.json").write_text(json.dumps([{**row, "rank": [1, 2], "raw_annotations": None}]))
    (prompt,) = read_rankings(tmp_path / "test.json")
    assert prompt.rankings == (Ranking("average", (1, 2)),)


def test_pickapic_lies_in_its_table(tmp_path):
    datasets = pytest.importorskip("datasets")
    pictures(tmp_path, "a.png", "b.png", "c.png")
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    table = {
        "jpg_0": [a, a, b],
        "jpg_1": [b, c, c],
        "label_0": [1.0, 0.5, 0.0],
        "caption": ["p", "p", "q"],
        "image_0_uid": ["a", "a", "b"],
        "image_1_uid": ["b", "c", "c"],
        "user_id": [7, 7, 8],
        "has_label": [True, True, False],
    }
    datasets.Dataset.from_dict(table).to_parquet(tmp_path / "train.parquet")
    (prompt,) = read_rankings(tmp_path / "train.parquet")
    assert len(prompt.images) == 3, "the picture shown twice is one"
    assert prompt.pairs().tolist() == [[0, 1]] and prompt.tied() == 1
    (again,) = read(write(tmp_path / "out" / "r.jsonl", check_images([prompt])))
    assert [image.read_bytes() for image in again.images] == [a, b, c], "written out beside the file"


def test_a_form_that_nobody_knows(tmp_path):
    (tmp_path / "x.json").write_text('[{"a": 1}]')
    with pytest.raises(InputError, match=r"x.json\[0\]: none of the known forms"):
        read_rankings(tmp_path / "x.json")
    (tmp_path / "y.json").write_text('[{"id": "1", "prompt": "p", "generations": ["a", "b"], "ranking": [1]}]')
    with pytest.raises(InputError, match=r"y.json\[0\]: ranking: 1 values for 2 images"):
        read_rankings(tmp_path / "y.json")


def test_a_split_is_chosen(tmp_path):
    path = lines(tmp_path / "r.jsonl", GOOD, {**GOOD, "id": "2", "split": "test"})
    assert [each.id for each in read_rankings(path, split="test")] == ["2"]
    with pytest.raises(InputError, match="no rankings of split 'val'; it has test, train"):
        read_rankings(path, split="val")


def test_bad_pictures_are_all_named_or_left_out(tmp_path):
    pictures(tmp_path, "a.png", "c.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    prompts = read(lines(tmp_path / "r.jsonl", GOOD, {**GOOD, "id": "2", "images": ["a.png", "c.png", "x.png"]}))
    with pytest.raises(InputError, match=r"(?s)r.jsonl:1: images\[1\]: .*b.png: not a readable.*x.png: no such file"):
        check_images(prompts)
    first, second = check_images(prompts, skip=True)
    assert [image.name for image in first.images] == ["a.png", "c.png"]
    assert first.rankings[0].ranking == (1, 1) and first.rankings[0].issues == ((), ())
    assert second.pairs().tolist() == [[0, 1]]


def test_pairs_are_those_of_two_loops():
    draw = np.random.default_rng(0)
    for _ in range(50):
        ranks = draw.integers(1, 5, size=draw.integers(2, 10)).tolist()
        strict = {(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b}
        tied = sum(a == b for i, a in enumerate(ranks) for b in ranks[:i])
        ranking = Ranking("a", tuple(ranks))
        assert set(map(tuple, ranking.pairs())) == strict and ranking.tied() == tied


def test_the_command_says_what_rankings_hold_and_writes_them_without_what_leaks(tmp_path, capsys):
    pictures(tmp_path, "a.png", "b.png", "c.png", "d.png")
    train = lines(
        tmp_path / "train.jsonl",
        GOOD,
        {**GOOD, "id": "2", "prompt": "a blue circle", "images": ["b.png", "c.png", "d.png"]},
    )
    test = lines(tmp_path / "test.jsonl", {**GOOD, "images": ["d.png", "d.png", "d.png"]})
    with pytest.raises(SystemExit):  # both prompts leak, one by its words and one by a picture
        cli.main(["rankings", str(train), "--check_images", "--against", str(test), "--output", str(tmp_path / "o")])
    said = capsys.readouterr().out
    assert "2 prompts, 4 images, 2 annotators; 6 strict and 2 tied pairs" in said
    assert "agreement: no two people ordered the same pair" in said, "they overlap in a tie only"
    assert "1 have the words and 1 a picture of one here" in said
    cli.main(["rankings", str(train), "--output", str(tmp_path / "o.jsonl")])
    assert len(read(tmp_path / "o.jsonl")) == 2
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(SystemExit):
        cli.main(["rankings", str(train), "--check_images"])
    assert "b.png" in capsys.readouterr().err


def test_pictures_of_the_embedded_model_are_spoilt_in_known_ways(tmp_path):
    options = {"count": 2, "images": 4, "pictures": "embedded", "basic_colours": True}
    for name in ("first", "again"):
        simulated_rankings.simulate(simulated_rankings.Options(output_dir=str(tmp_path / name), **options))
    first, again = (sorted((tmp_path / name / "images").iterdir()) for name in ("first", "again"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    truth = simulated_rankings.read_truth(tmp_path / "first")
    assert len(truth) == 2 and all(len(set(rewards)) == 4 and max(rewards) > -2 for rewards in truth.values())


def test_layers_of_a_picture_are_its_circle_and_its_background():
    pixels = np.full((64, 64, 3), (0, 0, 255), np.uint8)
    pixels[20:40, 20:40] = (255, 0, 0)
    circle, background, cover = simulated_rankings.layers_of(Image.fromarray(pixels))
    assert (circle == pixels).all() and (background == (0, 0, 255)).all() and cover.sum() == 400


def test_leaks_name_the_row_whose_picture_is_missing(tmp_path):
    pictures(tmp_path, "a.png", "b.png", "c.png")
    here = read(lines(tmp_path / "here.jsonl", GOOD))
    gone = read(lines(tmp_path / "gone.jsonl", {**GOOD, "images": ["a.png", "b.png", "z.png"]}))
    with pytest.raises(InputError, match=r"gone.jsonl:1: images: .*z.png: no such file"):
        leaks(here, gone)


# ---- people, copies, and rankings of one prompt


@pytest.mark.parametrize(
    "names, people",
    [
        (["lab/ada", "lab/bob"], 2),
        (["a/ada", "b/ada"], 2),
        (["lab/1", "lab/2"], 2),
        (["Ada", "ada"], 2),
        (["ada", "ada/2", "ada/3"], 1),  # as group_by_prompt names one person's several
        (["ada", "ada/3"], 2),
        (["x/ada", "x/ada/2"], 1),
    ],
)
def test_people_are_told_apart_by_their_whole_names(names, people):
    from diffusers_ext.preferences.agreement import agreement

    rankings_ = tuple(Ranking(name, (1, 2)) for name in names)
    prompt = RankedPrompt("1", "a", (Path("a.png"), Path("b.png")), rankings_)
    assert count([prompt]).annotators == people == len(agreement([prompt]).annotators)


def test_copies_of_pictures_with_equal_names_stay_apart(tmp_path):
    from io import BytesIO

    from diffusers_ext.data.files import Member

    def archive(name: str, colour: str) -> Member:
        stream = BytesIO()
        Image.new("RGB", (4, 4), colour).save(stream, "JPEG")
        (tmp_path / name).write_bytes(stream.getvalue())
        return Member(tmp_path / name, "0001/0.jpg", 0, len(stream.getvalue()))

    colours = {"one.tar": "red", "two.tar": "blue", "three.tar": "red"}
    files = [archive(name, colour) for name, colour in colours.items()]
    for name, pair in (("a", files[:2]), ("b", files[1:])):
        write(tmp_path / "out" / f"{name}.jsonl", [RankedPrompt("1", "a", tuple(pair), (Ranking("x", (1, 2)),))])
    first, second = (read(tmp_path / "out" / f"{name}.jsonl")[0].images for name in "ab")
    shown = [Image.open(path).getpixel((0, 0)) for path in (*first, *second)]
    assert [pixel[0] > 200 for pixel in shown] == [True, False, False, True]
    assert len(set((tmp_path / "out" / "images").iterdir())) == 2 and all(path.suffix == ".jpg" for path in first)


def one_prompt(images_of, number: int = 40) -> list[RankedPrompt]:
    return [
        RankedPrompt(
            str(at), "our logo on a mug", tuple(map(Path, images_of(at))), (Ranking("a", (1, 2)),), origin=f"r:{at}"
        )
        for at in range(number)
    ]


@pytest.mark.parametrize(
    "images_of, name",
    [
        (lambda at: [f"{at}a", f"{at}b"], "pictures"),
        (lambda at: [f"{at % 8}", f"{(at + 3) % 8}"], "set of pictures"),
        (lambda at: [f"{at // 2}a", f"{at // 2}b"], "pictures"),
    ],
)
def test_rankings_of_one_prompt_are_split_by_their_pictures(images_of, name, capsys):
    prompts = one_prompt(images_of)
    training, held_out = hold_out(prompts, 64, seed=0)
    assert held_out and len(training) + len(held_out) == len(prompts) and len(held_out) <= 5
    sets = [{frozenset(prompt.images) for prompt in side} for side in (training, held_out)]
    assert not sets[0] & sets[1]
    assert f"split off by their {name}" in capsys.readouterr().out
    assert hold_out(prompts, 64, seed=0) == (training, held_out)
    assert hold_out(prompts, 0, seed=0)[1] == [] and hold_out(one_prompt(lambda at: "ab"), 64, 0)[1] == []


def test_a_picture_ranked_against_itself_is_named_or_left_out(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    Image.new("RGB", (9, 9), "red").save(tmp_path / "b.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    rows = [
        {**GOOD, "id": str(n), "images": names}
        for n, names in enumerate((["a.png", "b.png"], ["a.png", "a.png"], ["a.png", "copy.png"]))
    ]
    for row in rows:
        row["rankings"] = [{"annotator": "x", "ranking": [1, 2]}]
    tie = {**rows[2], "id": "tie", "rankings": [{"annotator": "x", "ranking": [1, 1]}]}
    prompts = read(lines(tmp_path / "r.jsonl", *rows, tie))
    with pytest.raises(InputError, match=r"(?s)r.jsonl:2: images\[0\] and images\[1\] are the same.*r.jsonl:3: images"):
        check_images(prompts)
    assert [prompt.id for prompt in check_images(prompts, skip=True)] == ["0", "tie"]


def test_rankings_are_not_written_over_what_is_read(tmp_path, capsys):
    pictures(tmp_path, "a.png", "b.png", "c.png")
    path, other = lines(tmp_path / "r.jsonl", GOOD), lines(tmp_path / "other.jsonl", {**GOOD, "prompt": "else"})
    before = path.read_bytes(), other.read_bytes()
    for output in (path, other):
        with pytest.raises(SystemExit):
            cli.main(["rankings", str(path), "--against", str(other), "--output", str(output)])
        assert "which it would replace" in capsys.readouterr().err
    assert (path.read_bytes(), other.read_bytes()) == before
