"""What is drawn and measured while a ControlNet learns, and that nothing of it can end a run."""

import json
import runpy
from types import SimpleNamespace

import numpy as np
import pytest
from control_script import SCRIPT, arguments, call, losses, refusal
from PIL import Image

from diffusers_ext.conditions import catalogue as conditions
from diffusers_ext.control import previews
from diffusers_ext.data.tensors import as_tensor
from diffusers_ext.engine.run_folder import Metrics, read_metrics
from diffusers_ext.options import parse
from diffusers_ext.toy import circles as fill50k


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Two steps of the sampler: the pictures' quality is of no interest here."""
    monkeypatch.setattr(previews, "STEPS", 2)


def measured(run) -> dict:
    return read_metrics(run)[-1]


def short(*more) -> list:
    return ["--max_train_steps", 1, "--resolution", 32, *more]


def test_computed_conditions_are_extracted_again_and_scored(untrained, circles, tmp_path):
    run = tmp_path / "run"
    call(*arguments(untrained, circles, run, *short("--condition", "softedge")))
    row = measured(run)
    scores = {name for name in row if name.startswith("consistency")}
    assert scores == {"consistency", "consistency_no_control", "consistency_no_prompt", "consistency_true"}
    assert row["consistency_true"] == 1 and all(-1 <= row[name] < 0.9 for name in scores - {"consistency_true"})
    assert "iou" not in row  # a soft edge is no outline to fill
    assert (run / "best" / "config.json").exists()
    card = (run / "README.md").read_text()
    assert f"the same, the true pictures | {1:.3g} |" in card and "this ControlNet without prompt" in card


def test_given_conditions_are_scored_by_the_extractor_that_is_named(untrained, circles, tmp_path):
    run = tmp_path / "run"
    call(*arguments(untrained, circles, run, *short("--validation_extractor", "canny")))
    row = measured(run)
    assert {"iou", "iou_no_control", "iou_no_prompt", "circle_error"} <= set(row)
    assert row["consistency_no_control"] < row["consistency_true"] < 1  # an outline is almost what canny finds


def other_channels(image, draw):
    return image[..., :2]


def test_extractors_that_do_not_fit_are_refused_at_once(untrained, circles, tmp_path, monkeypatch):
    good = arguments(untrained, circles, tmp_path / "out")
    assert "no condition 'kanny'; choose canny" in refusal(*good, "--validation_extractor", "kanny")
    said = refusal(*good, "--validation_extractor", "test_previews:other_channels")
    assert "test_previews:other_channels of a picture cannot be compared" in said and "(2, 64, 64)" in said
    assert not (tmp_path / "out").exists()


def write_array(path, channels: int, marked: bool = False) -> str:
    values = np.random.default_rng(channels).random((50, 90, channels), dtype=np.float32)
    if marked:
        values[:20] = -1
    np.save(path, values)
    return str(path)


def pairs_of(untrained, data, tmp_path, *more):
    from diffusers_ext.control.data import read_data

    given = arguments(untrained, data, tmp_path / "run", *more)
    return read_data(parse(runpy.run_path(str(SCRIPT))["Options"], list(map(str, given)))).pairs


@pytest.fixture
def five_channels(tmp_path):
    """Twelve pairs whose conditions have five channels."""
    data = fill50k.write(tmp_path / "data", count=12, size=32)
    lines = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        values = np.random.default_rng(number).random((32, 32, 5), dtype=np.float32)
        np.save(data / "conditions" / f"{number}.npy", values)
        line["conditioning_image_file_name"] = f"conditions/{number}.npy"
    for file in (data / "conditions").glob("*.png"):
        file.unlink()
    (data / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return data


def test_any_number_of_channels_is_read_drawn_and_shown(untrained, five_channels, tmp_path):
    given = ["--validation_image", write_array(tmp_path / "a.npy", 5), "--validation_prompt", "red circle"]
    call(*arguments(untrained, five_channels, tmp_path / "run", *short(*given)))
    assert (tmp_path / "run" / "samples" / "step-000001.png").exists()
    wrong = ["--validation_image", write_array(tmp_path / "b.npy", 4), "--validation_prompt", "red circle"]
    said = refusal(*arguments(untrained, five_channels, tmp_path / "out", *short(*wrong)))
    assert "b.npy: 4 channels, but the data's conditions have 5" in said


def test_given_conditions_keep_levels_and_marks(untrained, circles, tmp_path):
    deep = np.linspace(0, 65535, 48 * 80).astype(np.uint16).reshape(48, 80)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    names = [str(tmp_path / "deep.png"), write_array(tmp_path / "marked.npy", 3, marked=True)]
    given = ["--resolution", 64, "--validation_image", *names, "--validation_prompt", "red circle"]
    first, second = pairs_of(untrained, circles, tmp_path, *given)
    assert first.condition.shape == second.condition.shape == (3, 64, 64)
    assert len(first.condition.unique()) > 1000 and (second.condition == -1).any()
    assert first.picture is None and first.prompt == second.prompt


def test_the_key_of_a_held_out_pair_is_the_one_its_condition_was_drawn_under(untrained, circles, tmp_path):
    for at, pair in enumerate(pairs_of(untrained, circles, tmp_path, "--condition", "palette_grid")):
        picture = ((pair.picture / 2 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy()
        again = conditions.palette_grid(picture, conditions.randomness.generator(3, "condition", *pair.key))
        assert pair.key == (0, at) and (as_tensor(again) == pair.condition).all()


def test_pictures_of_any_size_with_equal_prompts_reach_the_tracker_apart(untrained, circles, tmp_path):
    """The reference script stacks them and dies, and files equal prompts under one tag."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sizes = {"wide.png": (90, 70), "tall.png": (33, 100), "same.png": (32, 32)}
    for name, size in sizes.items():
        Image.fromarray(fill50k.draw_condition(fill50k.scene(1), 128)).resize(size).save(tmp_path / name)
    names = [tmp_path / name for name in sizes]
    given = ["--validation_image", *names, "--validation_prompt", "red circle", "--report_to", "tensorboard"]
    run = tmp_path / "run"
    call(*arguments(untrained, circles, run, *short(*given)))
    read = accumulator.EventAccumulator(str(run / "logs" / "diffusers_ext"), {"images": 0})
    read.Reload()
    tags = sorted(read.Tags()["images"])
    assert tags == [f"samples/{number}: red circle" for number in range(3)]
    # Each is a strip of condition, no control, no prompt, ours.
    assert all((image.width, image.height) == (4 * 32, 32) for tag in tags for image in read.Images(tag))


class Broken:
    """A tracker that fails at everything."""

    name = "broken"

    def fail(self, *arguments, **settings):
        raise ConnectionError("the server is gone")

    start = store_init_configuration = log = log_images = finish = fail


def test_a_tracker_that_raises_does_not_end_the_run(untrained, circles, tmp_path, monkeypatch, capsys):
    def init(self, *arguments, **settings):
        self.trackers.append(Broken())
        raise ConnectionError("no key")

    pytest.importorskip("tensorboard")
    monkeypatch.setattr("accelerate.Accelerator.init_trackers", init)
    run = tmp_path / "run"
    logged = ["--report_to", "tensorboard", "--logging_steps", 1, "--validation_steps", 1]
    call(*arguments(untrained, circles, run, "--resolution", 32, "--max_train_steps", 3, *logged))
    assert list(losses(run)) == [1, 2, 3] and (run / "diffusion_pytorch_model.safetensors").exists()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tracker: ")]
    assert [line.split()[1] for line in said] == ["start", "broken.log", "broken.log_images", "broken.finish"]
    assert "ConnectionError: the server is gone" in said[1] and "metrics.jsonl has every number" in said[1]


def test_trackers_without_pictures_still_get_numbers(tmp_path):
    seen = []
    tracker = SimpleNamespace(name="numbers", log=lambda values, step: seen.append((step, values)))
    accelerator = SimpleNamespace(is_main_process=True, log_with=[], trackers=[tracker], print=pytest.fail)
    metrics = Metrics(accelerator, tmp_path, SimpleNamespace(), 0)
    metrics.note(5, {"gap": 0.5, "samples/0: x": [Image.new("RGB", (8, 8))]})
    assert seen == [(5, {"gap": 0.5})] and read_metrics(tmp_path) == [{"step": 5, "gap": 0.5}]


@pytest.mark.parametrize(
    ("images", "conditions", "held_out", "told"),
    [
        (4, 4, 16, []),
        (
            100,
            4,
            16,
            ["404 pictures are drawn, and 400 more the first time: --num_validation_images 100 for each of 4"],
        ),
        (60, 1, 101, ["61 pictures are drawn, and 60 more the first time", "101 held-out rows are measured"]),
        (1, 1, 5000, ["5000 held-out rows are measured, in three passes; fewer --held_out_samples take less time"]),
    ],
)
def test_previews_that_take_long_are_told_of(images, conditions, held_out, told):
    notes = previews.preview_notes(SimpleNamespace(num_validation_images=images), [None] * conditions, held_out)
    assert len(notes) == len(told) and all(text in note for text, note in zip(told, notes))


def test_drawing_and_measuring_show_how_far_they_are(untrained, circles, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("diffusers_ext.diffusion.draw.BAR_DELAY", 0)
    monkeypatch.setattr("diffusers_ext.control.gap.BAR_DELAY", 0)
    given = ("--num_validation_images", 13, "--train_batch_size", 13)
    call(*arguments(untrained, circles, tmp_path / "run", *short(*given)))
    said, shown = capsys.readouterr()
    assert "52 more the first time" in said
    assert "measuring: " in shown and "drawing: " in shown and "52/52" in shown


def test_a_side_far_above_the_base_is_told_of_before_training(untrained, circles, tmp_path, capsys):
    for side, told in ((256, "the base was made for 64, so a picture has 16 times its pixels"), (128, None)):
        call(*arguments(untrained, circles, tmp_path / "run", "--resolution", side, "--dry_run"))
        said = capsys.readouterr().out
        assert f"--resolution {side}: {told}" in said if told else "was made for" not in said
