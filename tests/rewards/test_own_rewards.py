"""Rewards of one's own: whatever they return and are made of, one finite number for each picture or an error that says not."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_image_reward import tiny

from diffusers_ext import RewardReranker, cli, load_reward
from diffusers_ext.errors import InputError
from diffusers_ext.rerank.candidates import score_pictures
from diffusers_ext.rerank.noise_search import NoiseSearch
from diffusers_ext.rewards.consistency import ConsistencyReward
from diffusers_ext.rewards.ensemble import EnsembleReward
from diffusers_ext.rewards.interface import OwnReward, Reward

MODULE = """
import numpy as np
import torch
seen = []
def means(images): return [float(image.mean()) for image in images]
def floats(p, i): return means(i)
def array(p, i): return np.array(means(i), dtype=np.float64)
def tensor(p, i): return torch.tensor(means(i))
def column(p, i): return torch.tensor(means(i))[:, None]
def array_column(p, i): return np.array(means(i))[:, None]
def tensors(p, i): return [image.mean() for image in i]
def numbers(p, i): return tuple(np.float32(mean) for mean in means(i))
def watched(p, i): seen.extend((type(image), image.dtype, tuple(image.shape[:1])) for image in i); return means(i)
class Scorer:
    def score(self, prompts, images): return means(images)
scorer = Scorer()
class Called:
    def __call__(self, prompts, images): return means(images)
called = Called()
class Network(torch.nn.Module):
    differentiable = False
    def __init__(self): super().__init__(); self.scale = torch.nn.Parameter(torch.ones(()))
    def score(self, prompts, images): return torch.stack([image.mean() for image in images]) * self.scale
class Needy:
    def __init__(self, folder): pass
def one(p, i): return torch.tensor([0.5])
def double(p, i): return torch.arange(2.0 * len(i))
def matrix(p, i): return torch.zeros(len(i), len(i))
def scalar(p, i): return 0.5
def nothing(p, i): return None
def words(p, i): return ["good"] * len(i)
def table(p, i): return {"score": 1.0}
def ragged(p, i): return [[1.0], [1.0, 2.0]]
def nan(p, i): return [float("nan")] * len(i)
def endless(p, i): return [float("inf") if image.mean() > 0.9 else 0.5 for image in i]
number = 3
def alone(p): return 1.0
def thirsty(p, i, k): return means(i)
class Deaf:
    def score(self, images): return means(images)
"""
KINDS = [
    "floats",
    "array",
    "tensor",
    "column",
    "array_column",
    "tensors",
    "numbers",
    "scorer",
    "Scorer",
    "called",
    "Called",
]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    import sys

    (tmp_path / "mine_of_tests.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("mine_of_tests", None)


@pytest.fixture(scope="module")
def pictures():
    return [Image.new("RGB", (8, 6), colour) for colour in ("red", "white", "black")]


@pytest.mark.parametrize("kind", [*KINDS, "Network"])
def test_what_a_reward_may_return_and_be(mine, pictures, kind):
    reward = load_reward(f"mine_of_tests:{kind}")
    expected = torch.tensor([1 / 3, 1, 0])
    torch.testing.assert_close(reward.score("a", pictures), expected)
    torch.testing.assert_close(reward.score(["a", "b", "c"], pictures, batch_size=2), expected)
    torch.testing.assert_close(reward.score("a", pictures[0]), expected[:1])
    assert reward.name == f"mine_of_tests:{kind}"


def test_a_model_of_ours_is_itself(mine, pictures):
    import sys

    load_reward("mine_of_tests:floats")
    sys.modules["mine_of_tests"].model = model = tiny()
    assert load_reward("mine_of_tests:model") is model
    assert load_reward("mine_of_tests:model").score("a red circle", pictures).shape == (3,)


def test_every_form_of_picture_comes_as_one(mine, pictures, tmp_path):
    import sys

    reward = load_reward("mine_of_tests:watched")
    pictures[0].save(tmp_path / "a.png")
    levels = torch.from_numpy(np.array(pictures[0])).permute(2, 0, 1)
    forms = [pictures[0], tmp_path / "a.png", str(tmp_path / "a.png"), levels, levels / 255, (levels / 255).half()]
    forms += [pictures[0].convert("CMYK"), pictures[0].convert("P")]
    scores = reward.score("a", forms)
    torch.testing.assert_close(scores, torch.full((8,), 1 / 3), rtol=0, atol=1e-2)
    assert set(sys.modules["mine_of_tests"].seen) == {(torch.Tensor, torch.float32, (3,))}


def test_gradients_pass_where_there_are_any(mine):
    picture = torch.rand(3, 8, 8, requires_grad=True)
    load_reward("mine_of_tests:tensors").score("a", picture).sum().backward()
    assert picture.grad.abs().sum() > 0
    with pytest.raises(InputError, match="no gradient"):
        load_reward("mine_of_tests:Network").score("a", picture)


@pytest.mark.parametrize(
    "kind, got",
    [
        ("one", "1 values"),
        ("double", "6 values"),
        ("matrix", r"9 values of shape \(3, 3\)"),
        ("scalar", "1 values"),
        ("nothing", "NoneType"),
        ("words", "list"),
        ("table", "dict"),
        ("ragged", "list"),
    ],
)
def test_a_wrong_number_is_named(mine, pictures, kind, got):
    with pytest.raises(InputError, match=f"mine_of_tests:{kind}: returned {got}.* expected .*3"):
        load_reward(f"mine_of_tests:{kind}").score("a", pictures)


@pytest.mark.parametrize(
    "name, message",
    [
        ("mine_of_tests:none_such", "has no attribute"),
        ("mine_of_tests:number", "a int; expected a function"),
        ("mine_of_tests:Needy", "made without arguments"),
        ("mine_of_tests_broken:x", "line 1"),
        ("mine_of_tests:alone", r"takes \(p\), but is called with \(prompts, images\)"),
        ("mine_of_tests:thirsty", "'k'"),
        ("mine_of_tests:Deaf", r"takes \(images\)"),
        ("no_such_module:x", "No module named"),
    ],
)
def test_what_is_no_reward_is_named(mine, name, message):
    (mine / "mine_of_tests_broken.py").write_text("def (:\n")
    with pytest.raises(InputError, match=message):
        load_reward(name)


def test_members_and_functions_of_the_wrong_number(mine, pictures):
    ensemble = EnsembleReward({name: load_reward(f"mine_of_tests:{name}") for name in ("floats", "one")})
    with pytest.raises(InputError, match=r"mine_of_tests:one: returned 1 values for 3"):
        ensemble.score("a", pictures)
    for wrong in (lambda prompts, images: [1.0], lambda prompts, images: np.zeros((3, 2))):
        with pytest.raises(InputError, match="<lambda>, score: returned"):
            score_pictures(wrong, "a", pictures)

    class Short(Reward):
        def _score(self, prompts, images):
            return torch.zeros(len(images) + 1)

    with pytest.raises(InputError, match="Short: returned 4 values for 3 pictures"):
        Short().score("a", pictures)


# ---------------------------------------------------------------- one text where a list is meant


def test_one_text_is_one_prompt(mine, pictures):
    ensemble = EnsembleReward({name: load_reward(f"mine_of_tests:{name}") for name in ("floats", "array")})
    assert ensemble.calibrate("abc", pictures)["array"].std > 0.3
    model = tiny()
    for call in (model.tokenize, lambda text: model.score_matrix(text, pictures)):
        with pytest.raises(InputError, match="a list of prompts"):
            call("a red circle")
    with pytest.raises(InputError, match="2 prompts but 3 images"):
        ensemble.calibrate(["a", "b"], pictures)
    condition = torch.zeros(3, 8, 8)
    assert len(ConsistencyReward("canny", condition).conditions) == 1


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "4", None])
def test_batches_hold_a_picture_at_least(mine, pictures, batch_size):
    for reward in (load_reward("mine_of_tests:floats"), tiny()):
        with pytest.raises(InputError, match=f"batch_size {batch_size!r}"):
            reward.score("a", pictures, batch_size=batch_size)


# ---------------------------------------------------------------- rewards that are no numbers


def values(*scores):
    """A reward that gives these, over and over."""
    state = iter(scores * 100)
    return lambda prompts, images: [next(state) for _ in images]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nothing_is_ranked_by_no_numbers(bad, pictures):
    with pytest.raises(InputError, match=f"{bad} for picture 0 of 3 of the prompt 'a'"):
        score_pictures(values(bad), "a", pictures)
    with pytest.warns(UserWarning, match=f"{bad} for picture 1 of 3.*ranked last"):
        scores = score_pictures(values(0.5, bad, 0.75), "a", pictures)["score"]
    assert np.array_equal(scores, [0.5, np.nan, 0.75], equal_nan=True)


@pytest.mark.parametrize("chunk_size", [1, 4])
@pytest.mark.filterwarnings("ignore:.*ranked last")
def test_searches_say_that_they_cannot_rank(untrained, chunk_size):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(untrained, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    few = {"seed": 0, "num_inference_steps": 1, "chunk_size": chunk_size}
    for reward in (values(float("nan")), values(float("inf")), OwnReward(values(float("nan")))):
        with pytest.raises(InputError, match="finite"):
            RewardReranker(pipe, reward)("a", num_candidates=3, **few)
        with pytest.raises(InputError, match="finite"):
            NoiseSearch(pipe, reward)("a", method="local", num_candidates=4, starts=2, **few)


def test_the_command_names_the_picture_and_scores_the_others(mine, pictures, capsys):
    (mine / "pictures").mkdir()
    for name, picture in zip("abc", pictures):
        picture.save(mine / "pictures" / f"{name}.png")
    output = mine / "scores.jsonl"
    words = ["score", mine / "pictures", "--prompt", "a", "--output", output, "--reward"]
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in [*words, "mine_of_tests:endless"]])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "1 of 3" in error and "b.png" in error and "mine_of_tests:endless" in error
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert ["error" in row for row in rows] == [False, True, False]
    output.unlink()
    with pytest.raises(SystemExit):
        cli.main([str(word) for word in [*words, "mine_of_tests:one"]])
    assert "mine_of_tests:one: returned 1 values for 3 pictures" in capsys.readouterr().err


def test_the_command_takes_ones_own_ensemble_by_ones_own_word(mine, pictures, capsys):
    (mine / "pictures").mkdir()
    pictures[0].save(mine / "pictures" / "a.png")
    members = {"mine_of_tests:floats": {}, "mine_of_tests:array": {}}
    (mine / "own.json").write_text(json.dumps({"members": members}))
    words = [
        "score",
        mine / "pictures",
        "--prompt",
        "a",
        "--output",
        mine / "scores.jsonl",
        "--reward",
        mine / "own.json",
    ]
    with pytest.raises(SystemExit):
        cli.main([str(word) for word in words])
    assert "may not name code" in capsys.readouterr().err
    cli.main([str(word) for word in [*words, "--trust_remote_code"]])
    assert json.loads((mine / "scores.jsonl").read_text())["score"] == pytest.approx(1 / 3)
