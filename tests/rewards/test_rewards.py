"""The family of rewards: each equals what its own library computes, all keep one interface, names resolve or say why not."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

import diffusers_ext
from diffusers_ext.data.tensors import as_tensor
from diffusers_ext.errors import InputError
from diffusers_ext.rewards.clip import AestheticReward, ClipReward, OpenClip, TransformersClip, load_aesthetic_head
from diffusers_ext.rewards.colour import ColourReward, SoftColourReward, lab
from diffusers_ext.rewards.consistency import ConsistencyReward
from diffusers_ext.rewards.ensemble import EnsembleReward, Scale
from diffusers_ext.rewards.interface import Reward
from diffusers_ext.rewards.loading import load_reward
from diffusers_ext.rewards.reward_inputs import check_images, pixels
from diffusers_ext.toy import circles as fill50k
from diffusers_ext.toy.measures import colour_error

PROMPTS = ["a red circle", "a painting of the ocean", ""]
TOWER = {"width": 32, "layers": 2, "heads": 2}


def picture(seed: int, size=(64, 48)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


@pytest.fixture(scope="module")
def pictures():
    return [picture(0), picture(1, (40, 90)), picture(2, (32, 32))]


@pytest.fixture(scope="module")
def open_clip_file(tmp_path_factory):
    """An open_clip architecture small enough, known to it as tiny-reward, and weights for it as HPS packs them."""
    import open_clip

    folder = tmp_path_factory.mktemp("open_clip")
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, **TOWER}
    config = {"embed_dim": 512, "vision_cfg": vision, "text_cfg": text}
    (folder / "tiny-reward.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    torch.save({"state_dict": open_clip.create_model("tiny-reward").state_dict()}, folder / "weights.pt")
    return folder / "weights.pt"


@pytest.fixture(scope="module")
def clip(open_clip_file):
    return OpenClip.load("tiny-reward", str(open_clip_file))


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory):
    """A transformers CLIP with random weights and a tokenizer of single letters, saved."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    tokens = [*letters, *(f"{each}</w>" for each in letters), "<|startoftext|>", "<|endoftext|>"]
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": len(tokens), "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**shape, **ids}, vision_config={**shape, "image_size": 32, "patch_size": 8}, projection_dim=16
        )
    )
    folder = tmp_path_factory.mktemp("transformers") / "clip"
    model.save_pretrained(folder)
    CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[]).save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- equal to their libraries


def test_clip_score_is_open_clips_cosine(clip, pictures):
    import open_clip

    prepare = open_clip.image_transform(
        32, is_train=False, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD
    )
    with torch.no_grad():
        images = clip.model.encode_image(torch.stack([prepare(image) for image in pictures]), normalize=True)
        texts = clip.model.encode_text(open_clip.get_tokenizer("tiny-reward")(PROMPTS), normalize=True)
    scores = ClipReward(clip).score(PROMPTS, pictures)
    assert scores.shape == (3,) and scores.dtype == torch.float32 and not scores.requires_grad
    torch.testing.assert_close(scores, (images * texts).sum(-1), rtol=0, atol=1e-6)


def test_hps_sees_the_whole_picture_as_open_clips_longest_mode_does(open_clip_file, pictures):
    import open_clip

    cfg = {"size": 32, "mode": "RGB", "interpolation": "bicubic", "resize_mode": "longest", "fill_color": 0}
    prepare = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**cfg), is_train=False)
    for image in pictures:
        torch.testing.assert_close(pixels(image, 32, whole=True), prepare(image), rtol=0, atol=1e-6)
    whole = ClipReward(OpenClip.load("tiny-reward", str(open_clip_file), whole=True))
    middle = ClipReward(OpenClip.load("tiny-reward", str(open_clip_file)))
    apart = (whole.score("a red circle", pictures) - middle.score("a red circle", pictures)).abs()
    assert (apart[:2] > 1e-4).all() and apart[2] == 0  # the last is square


def test_pickscore_is_transformers_logit(transformers_folder, pictures):
    reward = load_reward(f"pickscore:{transformers_folder}")
    model, tokenizer = reward.clip.model, reward.clip.tokenizer
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        result = model(**batch, pixel_values=torch.stack([pixels(image, 32) for image in pictures]))
    torch.testing.assert_close(reward.score(PROMPTS, pictures), result.logits_per_text.diagonal(), rtol=1e-6, atol=1e-5)
    cosine = load_reward(f"clip:{transformers_folder}").score(PROMPTS, pictures)
    torch.testing.assert_close(
        cosine * model.logit_scale.exp(), result.logits_per_text.diagonal(), rtol=1e-6, atol=1e-5
    )


def test_real_aesthetic_heads(shared, clip, pictures):
    path = shared / "assets/weights/aesthetic/sa_0_4_vit_b_32_linear.pth"
    released = torch.load(path, weights_only=True)
    reward = AestheticReward(clip, load_aesthetic_head(path))
    with torch.no_grad():
        expected = clip.embed_images(pictures) @ released["weight"][0].float() + released["bias"].float()
    torch.testing.assert_close(reward.score(PROMPTS, pictures), expected, rtol=0, atol=1e-5)
    assert load_aesthetic_head(path.with_name("sa_0_4_vit_l_14_linear.pth"))[0].in_features == 768


def test_the_improved_aesthetic_head_and_what_is_none(tmp_path):
    sizes = [16, 32, 8, 4, 2, 1]
    torch.manual_seed(0)
    layers = {index: torch.nn.Linear(*pair) for index, pair in zip((0, 2, 4, 6, 7), itertools.pairwise(sizes))}
    state = {
        f"layers.{index}.{name}": value for index, layer in layers.items() for name, value in layer.state_dict().items()
    }
    torch.save(state, tmp_path / "head.pth")
    given = torch.randn(3, 16)
    torch.testing.assert_close(
        load_aesthetic_head(tmp_path / "head.pth")(given), torch.nn.Sequential(*layers.values())(given)
    )
    del state["layers.4.bias"]
    torch.save(state, tmp_path / "cut.pth")
    torch.save({"epoch": 1}, tmp_path / "other.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("cut.pth", "other.pth", "empty.pth", "none.pth"):
        with pytest.raises(InputError, match=name):
            load_aesthetic_head(tmp_path / name)


# ---------------------------------------------------------------- colours


@pytest.fixture(scope="module")
def circles():
    scenes = [fill50k.scene(index) for index in range(6)]
    return [scene.prompt for scene in scenes], [Image.fromarray(fill50k.draw_target(scene, 64)) for scene in scenes]


def test_the_colour_reward_is_the_metric(circles):
    prompts, images = circles
    wrong = prompts[1:] + prompts[:1]
    errors = np.mean(colour_error(images, wrong), axis=0)
    np.testing.assert_allclose(ColourReward().score(wrong, images), -errors, rtol=1e-5)
    assert ColourReward().score(prompts, images).min() > -1
    with pytest.raises(InputError, match="prompt 1: not a fill50k prompt"):
        ColourReward().score([prompts[0], "a cat"], images[:2])


def test_the_soft_colour_reward_is_best_where_the_exact_one_is(circles):
    prompts, images = circles
    wrong = prompts[1:] + prompts[:1]
    soft, exact = SoftColourReward(), ColourReward()
    assert soft.score(prompts, images).abs().max() < 1e-3  # float noise: the colours are the prompt's
    assert (soft.score(wrong, images) < -5).all()
    both = torch.stack([reward.score(wrong + prompts, images * 2) for reward in (soft, exact)])
    assert torch.corrcoef(both)[0, 1] > 0.95


def test_following_the_soft_gradient_brings_the_exact_colours(circles):
    """What reward tuning will do: from another picture's colours, by gradient alone."""
    prompts, _ = circles
    picture = tensor(Image.fromarray(fill50k.draw_target(fill50k.scene(0), 32))).requires_grad_()
    soft, exact = SoftColourReward(), ColourReward()
    before = exact.score(prompts[1], picture.detach())
    optimiser = torch.optim.Adam([picture], lr=0.02)
    for step in range(70):
        optimiser.zero_grad()
        optimiser.param_groups[0]["lr"] = 0.02 if step < 40 else 0.004
        (-soft.score(prompts[1], picture)).sum().backward()
        optimiser.step()
        picture.data.clamp_(0, 1)  # a clamp inside the graph would hold what left the range for ever
    after = exact.score(prompts[1], picture.detach())
    assert before < -10 and after > -1.5


def test_the_soft_gradient_agrees_with_finite_differences(circles):
    prompts, images = circles
    image = (tensor(images[0]).double() * 0.8 + 0.1).float()
    asked = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(SoftColourReward().score(prompts[0], asked).sum(), asked)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    ahead = gradient / gradient.norm() * 0.05
    values = [SoftColourReward().score(prompts[0], image + sign * ahead).item() for sign in (1, -1)]
    assert (values[0] - values[1]) / 0.1 == pytest.approx(gradient.norm().item(), rel=0.02)


def test_lab_is_skimages():
    from skimage.color import rgb2lab

    colours = np.random.default_rng(0).uniform(0, 1, (50, 3))
    np.testing.assert_allclose(lab(torch.from_numpy(colours)), rgb2lab(colours), atol=0.01)


def test_no_circle_is_scored_but_pulls_nothing(circles):
    plain = torch.full((3, 32, 32), 0.5, requires_grad=True)
    score = SoftColourReward().score(circles[0][0], plain)
    score.sum().backward()
    assert score < -40 and plain.grad.isfinite().all()


# ---------------------------------------------------------------- one interface


class Brightness(Reward):
    def _score(self, prompts, images):
        return torch.stack([pixels(image, 8, (0, 0, 0), (1, 1, 1)).mean() for image in images])


class Redness(Reward):
    def _score(self, prompts, images):
        return torch.stack([pixels(image, 8, (0, 0, 0), (1, 1, 1))[0].mean() * 10 for image in images])


def family(clip, transformers_folder):
    head = torch.nn.Sequential(torch.nn.Linear(512, 1))
    return [
        ClipReward(clip),
        ClipReward(TransformersClip.load(str(transformers_folder)), scaled=True),
        AestheticReward(clip, head),
        EnsembleReward({"a": Brightness(), "b": Redness()}),
    ]


def test_all_take_the_same_images_and_give_gradients(clip, transformers_folder, pictures, tmp_path):
    pictures[0].save(tmp_path / "picture.png")
    for reward in family(clip, transformers_folder):
        expected = reward.score("a red circle", pictures)
        one = [reward.score("a red circle", image).item() for image in pictures]
        torch.testing.assert_close(expected, torch.tensor(one), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(reward.score("a red circle", pictures, batch_size=2), expected, rtol=1e-5, atol=1e-5)
        assert reward.score("a red circle", tmp_path / "picture.png").item() == pytest.approx(one[0], rel=1e-5)
        images = torch.stack([tensor(pictures[2])] * 2).requires_grad_()
        assert reward.differentiable
        reward.score("a red circle", images).sum().backward()
        assert images.grad.abs().sum() > 0 and torch.allclose(images.grad[0], images.grad[1], atol=1e-7)
        assert not reward.score("a red circle", images.detach()).requires_grad


def test_a_gradient_asked_for_in_vain_is_an_error(circles):
    image = tensor(circles[1][0]).requires_grad_()
    with pytest.raises(InputError, match="ColourReward has no gradient"):
        ColourReward().score(circles[0][0], image)
    with torch.no_grad():
        assert ColourReward().score(circles[0][0], image).shape == (1,)
    mixed = EnsembleReward({"exact": ColourReward(), "soft": SoftColourReward()})
    assert not mixed.differentiable
    with pytest.raises(InputError, match="no gradient"):
        mixed.score(circles[0][0], image)


def test_infinite_scores_are_refused(pictures):
    class Broken(Reward):
        def _score(self, prompts, images):
            return torch.tensor([0.0, float("nan"), float("inf")])

    with pytest.raises(InputError, match=r"not finite.*pairs 1, 2"):
        Broken().score("a", pictures)


def test_long_and_empty_prompts(clip, transformers_folder, pictures):
    for reward in family(clip, transformers_folder)[:2]:
        scores = reward.score(["", "red circle " * 5000, "a"], pictures)
        assert scores.isfinite().all()


# ---------------------------------------------------------------- ensembles


def test_ensemble_combinations_are_their_formulas(pictures):
    members = {"a": Brightness(), "b": Redness()}
    scales = {"a": Scale(1.0, 0.5, 0.1), "b": Scale(3.0, 4.0, 2.0)}
    a = (Brightness().score("", pictures) - 0.5) / 0.1
    b = (Redness().score("", pictures) - 4.0) / 2.0
    mean = 0.25 * a + 0.75 * b
    spread = (0.25 * (a - mean) ** 2 + 0.75 * (b - mean) ** 2).sqrt()
    torch.testing.assert_close(EnsembleReward(members, scales).score("", pictures), mean)
    risky = EnsembleReward(members, scales, "mean_minus_spread", k=2.0).score("", pictures)
    torch.testing.assert_close(risky, mean - 2 * spread, rtol=1e-4, atol=1e-4)
    scales["b"].weight = 1.0
    torch.testing.assert_close(EnsembleReward(members, scales, "minimum").score("", pictures), torch.minimum(a, b))


def test_calibration_gives_every_member_the_same_say():
    images = [picture(seed) for seed in range(12)]
    prompts = [f"prompt {index // 4}" for index in range(12)]
    ensemble = EnsembleReward({"a": Brightness(), "b": Redness()})
    scales = ensemble.calibrate(prompts, images)
    for name, member in (("a", Brightness()), ("b", Redness())):
        scores = member.score(prompts, images)
        assert scales[name].mean == pytest.approx(scores.mean().item(), abs=1e-5)
        within = scores.view(3, 4).var(1).mean().sqrt().item()  # pooled over prompts
        assert scales[name].std == pytest.approx(within, rel=1e-4)
    with pytest.raises(InputError, match="a: scores all pictures of a prompt alike"):
        ensemble.calibrate(["x"] * 3, images[:1] * 3)


def test_agreeing_members_have_gradients_too(pictures):
    image = tensor(pictures[0]).requires_grad_()
    ensemble = EnsembleReward({"a": Brightness(), "b": Brightness()}, combine="mean_minus_spread")
    ensemble.score("", image).sum().backward()
    assert image.grad.isfinite().all() and image.grad.abs().max() > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"members": {"a": Brightness()}}, "two members"),
        ({"combine": "median"}, "choose mean"),
        ({"scales": {"c": Scale()}}, "c, which are no members"),
        ({"scales": {"a": Scale(std=0.0)}}, "above 0"),
        ({"scales": {"a": Scale(weight=-1.0)}}, "above 0"),
        ({"scales": {"a": Scale(weight=2.0)}, "combine": "minimum"}, "no weights"),
    ],
)
def test_ensembles_that_make_no_sense(arguments, message):
    with pytest.raises(InputError, match=message):
        EnsembleReward(**{"members": {"a": Brightness(), "b": Redness()}, **arguments})


# ---------------------------------------------------------------- names


def test_names_resolve(open_clip_file, transformers_folder, circles, tmp_path, monkeypatch):
    prompts, images = circles
    scores = load_reward(f"clip:tiny-reward/{open_clip_file}").score(prompts, images)
    assert scores.shape == (6,)
    torch.save({"weight": torch.zeros(1, 512), "bias": torch.tensor([4.0])}, tmp_path / "head.pth")
    aesthetic = load_reward(f"aesthetic:{tmp_path / 'head.pth'}@tiny-reward/{open_clip_file}")
    assert aesthetic.score(prompts, images).tolist() == [4.0] * 6
    assert isinstance(load_reward("fill50k"), ColourReward) and isinstance(
        load_reward("fill50k:soft"), SoftColourReward
    )
    ensemble = EnsembleReward(
        {"fill50k": load_reward("fill50k"), "fill50k:soft": load_reward("fill50k:soft")},
        {"fill50k": Scale(2.0, -30.0, 10.0)},
        "mean_minus_spread",
        0.5,
    )
    ensemble.save(tmp_path / "ensemble.json")
    loaded = diffusers_ext.load_reward(tmp_path / "ensemble.json")
    assert torch.equal(loaded.score(prompts, images), ensemble.score(prompts, images))
    assert not any(parameter.requires_grad for parameter in aesthetic.parameters())


@pytest.mark.parametrize(
    "name, message",
    [
        ("no-such-reward", "no reward has that name"),
        ("", "no reward has that name"),
        ("clip", "ARCHITECTURE/TAG"),
        ("clip:ViT-B-32", "ARCHITECTURE/TAG"),
        ("clip:ViT-B-32/no-such-tag", "open_clip cannot load"),
        ("clip:ViT-B-32-quickgelu/laion2b_s34b_b79k", "open_clip cannot load"),
        ("hps:nowhere.pt", "no such file"),
        ("aesthetic:nowhere.pth", "no head at 'nowhere.pth'"),
        ("fill50k:hard", "fill50k:soft"),
        ("nowhere.json", "no ensemble"),
        ("/nowhere/model", "no such folder"),
    ],
)
def test_names_that_do_not_resolve_say_why(name, message):
    with pytest.raises(InputError, match=message):
        load_reward(name)


def test_folders_that_hold_no_reward(transformers_folder, tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        load_reward(tmp_path)
    with pytest.raises(InputError, match="clip:"):
        load_reward(transformers_folder)
    (tmp_path / "ImageReward.pt").write_bytes(b"x")
    with pytest.raises(InputError, match="convert-reward"):
        load_reward(tmp_path / "ImageReward.pt")
    torch.save({"weight": torch.zeros(1, 7), "bias": torch.zeros(1)}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match="width 7"):
        load_reward(f"aesthetic:{tmp_path / 'odd.pth'}")


def test_an_open_clip_model_with_the_wrong_activation_is_refused():
    """quick_gelu is in the weights' tag; the plain architecture with OpenAI's weights would be slightly wrong."""
    import open_clip

    assert open_clip.get_pretrained_cfg("ViT-B-32", "openai")["quick_gelu"]
    with pytest.raises(InputError, match="open_clip cannot load"):
        OpenClip.load("ViT-B-16-plus-240", "openai")


# ---------------------------------------------------------------- conditions


def test_consistency_is_the_metric(circles):
    prompts, images = circles
    from diffusers_ext import randomness
    from diffusers_ext.conditions import catalogue as conditions

    canny = conditions.resolve("canny")
    wanted = [
        torch.from_numpy(canny(np.asarray(image), randomness.generator(0, "condition", 0, 0))) for image in images
    ]
    wanted = [as_tensor(condition.numpy()) for condition in wanted]
    scores = ConsistencyReward("canny", wanted).score(prompts, images)
    assert (scores == 1).all()
    assert (ConsistencyReward("canny", wanted[1:] + wanted[:1]).score(prompts, images) < 0.9).all()
    with pytest.raises(InputError, match="6 images but 2 conditions"):
        ConsistencyReward("canny", wanted[:2]).score(prompts, images)


# ---------------------------------------------------------------- commands


def run_score(*words: str) -> None:
    from diffusers_ext import cli

    cli.main(["score", *map(str, words)])


@pytest.fixture
def scored(tmp_path, circles):
    """A folder of circles with their prompts in .txt files, one picture cut short."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, (prompt, image) in enumerate(zip(*circles)):
        image.save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(prompt)
    return folder


def test_score_writes_what_the_reward_says(scored, circles, tmp_path, capsys):
    run_score(scored, "--reward", "fill50k", "--output", tmp_path / "scores.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row["image"].rsplit("/")[-1] for row in rows] == [f"{index}.png" for index in range(6)]
    assert [row["score"] for row in rows] == pytest.approx(ColourReward().score(*circles).tolist())
    assert "6 pictures, mean" in capsys.readouterr().out


def test_score_goes_on_where_it_stopped(scored, tmp_path, monkeypatch):
    output = tmp_path / "scores.jsonl"
    arguments = (scored, "--reward", "fill50k", "--output", output, "--batch_size", 2)
    run_score(*arguments)
    whole = output.read_text()
    lines = whole.splitlines(keepends=True)
    output.write_text("".join(lines[:2]) + lines[2][:20])  # as a kill leaves it
    counted = []
    real = ColourReward._score
    monkeypatch.setattr(ColourReward, "_score", lambda self, p, i: counted.extend(p) or real(self, p, i))
    run_score(*arguments)
    assert output.read_text() == whole and len(counted) == 4
    run_score(*arguments)
    assert output.read_text() == whole and len(counted) == 4


def test_score_names_bad_pictures_and_scores_the_others(scored, tmp_path, capsys):
    output = tmp_path / "scores.jsonl"
    (scored / "2.png").write_bytes((scored / "2.png").read_bytes()[:150])
    (scored / "4.png").write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        run_score(scored, "--reward", "fill50k", "--output", output)
    assert ended.value.code == 2 and "2 of 6 pictures" in capsys.readouterr().err
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert ["error" in row for row in rows] == [False, False, True, False, True, False]


def test_score_refuses_what_it_cannot_do(scored, circles, tmp_path, capsys):
    output = tmp_path / "scores.jsonl"
    run_score(scored, "--reward", "fill50k", "--output", output)
    (tmp_path / "notes.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    (scored / "3.txt").unlink()
    for words, message in [
        ((scored, "--reward", "fill50k:soft", "--output", output, "--prompt", "x"), "scores of fill50k, not of"),
        ((scored, "--reward", "fill50k", "--output", tmp_path / "notes.jsonl", "--prompt", "x"), "no row of scores"),
        ((scored, "--reward", "fill50k", "--output", output, "--prompt", "x"), "another picture or prompt"),
        ((scored, "--reward", "fill50k", "--output", tmp_path / "new.jsonl"), "no 3.txt beside it"),
        ((scored, "--output", output), "--reward"),
        (("--reward", "fill50k"), "give pictures"),
        ((tmp_path / "nowhere", "--reward", "fill50k"), "no such folder"),
    ]:
        with pytest.raises(SystemExit):
            run_score(*words)
        assert message in capsys.readouterr().err


def test_score_reads_tables_and_one_prompt_for_all(scored, circles, tmp_path):
    table = tmp_path / "pairs.jsonl"
    rows = [{"image": f"pictures/{index}.png", "prompt": prompt} for index, prompt in enumerate(circles[0])]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_score(table, "--caption_column", "prompt", "--reward", "fill50k", "--output", tmp_path / "a.jsonl")
    run_score(scored, "--prompt", circles[0][0], "--reward", "fill50k", "--output", tmp_path / "b.jsonl")
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 6
    assert {json.loads(line)["prompt"] for line in (tmp_path / "b.jsonl").read_text().splitlines()} == {circles[0][0]}


def test_convert_reward_makes_a_folder_that_scores(tmp_path, pictures, capsys):
    from test_image_reward import TEXT, official_names, tiny, tokenizer

    from diffusers_ext import cli

    model = tiny()
    torch.save(official_names(model), tmp_path / "ImageReward.pt")
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "med_config.json").write_text(json.dumps({**TEXT, "max_position_embeddings": 64}))
    vision = {"width": 48, "depth": 2, "heads": 4, "patch": 16, "image_size": 32, "intermediate_size": 96}
    (tmp_path / "vision.json").write_text(json.dumps(vision))
    words = ["convert-reward", tmp_path / "ImageReward.pt", "--output_dir", tmp_path / "out"]
    words += ["--tokenizer", tmp_path / "tokenizer", "--text_config", tmp_path / "med_config.json"]
    words += ["--vision_config", tmp_path / "vision.json"]
    cli.main([str(word) for word in words])
    loaded = load_reward(tmp_path / "out")
    assert torch.equal(loaded.score("a red circle", pictures), model.score("a red circle", pictures))
    check_card(tmp_path / "out" / "README.md")
    with pytest.raises(SystemExit):
        cli.main([str(word) for word in words])
    assert "is not empty" in capsys.readouterr().err


def check_card(path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(path)
    data = card.data.to_dict()
    for name in ("library_name", "license", "base_model", "base_model_relation", "tags", "datasets"):
        assert data[name], name
    assert len(set(data["tags"])) == len(data["tags"]) and "TODO" not in card.text


def test_every_form_of_image_is_checked_alike(pictures):
    assert len(check_images(torch.zeros(2, 3, 8, 8))) == 2
    assert len(check_images(pictures[0])) == 1
