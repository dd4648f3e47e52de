"""ImageReward: the released numbers, every door to it, odd input, and memory and work as promised."""

import copy
import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer

import diffusers_ext
from diffusers_ext.errors import InputError
from diffusers_ext.rewards.image_reward_checkpoint import OFFICIAL_NAMES
from diffusers_ext.rewards.modeling_image_reward import ImageRewardConfig

WORDS = [
    "a",
    "red",
    "blue",
    "circle",
    "square",
    "on",
    "with",
    "background",
    "painting",
    "of",
    "the",
    "ocean",
    "and",
    "birds",
]
PROMPTS = ["a red circle", "", "a painting of the ocean and birds with a blue background"]
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 30}
VISION = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


def tokenizer() -> BertTokenizer:
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    return BertTokenizer(vocab=vocabulary)


def tiny(**config) -> "diffusers_ext.ImageRewardModel":
    text = {**TEXT, "max_position_embeddings": 64, "bos_token_id": 2, "sep_token_id": 3}
    vision = {**VISION, "image_size": 32, "initializer_range": 0.2}
    torch.manual_seed(0)
    model = diffusers_ext.ImageRewardModel(ImageRewardConfig(text_config=text, vision_config=vision, **config)).eval()
    model.tokenizer = tokenizer()
    return model


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Smooth colours, as photographs have: noise of 4 x 4 enlarged."""
    values = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def pictures():
    return [picture(seed, size) for seed, size in enumerate([(64, 64), (96, 40), (33, 80), (20, 20)])]


@pytest.fixture(scope="module")
def reference(shared):
    return torch.load(shared / "reference" / "imagereward_reference.pt", weights_only=True)


@pytest.fixture(scope="module")
def official(reference):
    """The reference's weights through our conversion."""
    build = diffusers_ext.ImageRewardModel.from_official_checkpoint
    return build(reference["state_dict"], reference["med_config"], reference["vision"])


# ---------------------------------------------------------------- the official numbers


def test_rewards_and_ranks_are_the_official_ones(official, reference):
    """To 1e-6 in float64: the reference is float32, and 8 units in the last place of a reward of 1 are as much. In float32 each
    processor's kernels round otherwise."""
    pixels = reference["pixel_values"]
    with torch.no_grad():
        exact = copy.deepcopy(official).double()(reference["input_ids"], reference["attention_mask"], pixels.double())
        rewards = official(reference["input_ids"], reference["attention_mask"], pixels)
    torch.testing.assert_close(exact.float(), reference["rewards"], rtol=0, atol=1e-6)
    torch.testing.assert_close(rewards, exact.float(), rtol=0, atol=3e-6)
    ranks = reference["rewards"].argsort(1, descending=True).argsort(1)
    assert torch.equal(rewards.argsort(1, descending=True).argsort(1), ranks)


def test_input_gradients_are_the_official_ones(official, reference):
    pixels = reference["pixel_values"][:2].clone().requires_grad_()
    reward = official(reference["input_ids"][:1], reference["attention_mask"][:1], pixels).sum()
    (gradient,) = torch.autograd.grad(reward, pixels)
    stored = reference["grad_pixel_values_prompt0"]
    # Kept in half precision: half a unit in its last place, and the float32 noise.
    torch.testing.assert_close(gradient, stored.float(), rtol=2**-11, atol=1e-6)


def test_preprocessing_is_the_official_one_bit_for_bit(official, reference):
    images = [Image.fromarray(image.numpy()) for image in reference["images_uint8"]]
    assert torch.equal(official.preprocess(images), reference["pixel_values"])


def test_trimming_the_padding_changes_nothing(official, reference):
    length = int(reference["attention_mask"][0].sum())
    ids, mask = reference["input_ids"][:1, :length], reference["attention_mask"][:1, :length]
    with torch.no_grad():
        rewards = official(ids, mask, reference["pixel_values"])
    torch.testing.assert_close(rewards, reference["rewards"][:1], rtol=0, atol=2e-6)


# ---------------------------------------------------------------- conversion


def official_names(model) -> dict[str, torch.Tensor]:
    """The weights as an official checkpoint names them, with what it holds besides."""
    state = {}
    for name, value in model.state_dict().items():
        for ours, theirs in OFFICIAL_NAMES:
            name = name.replace(ours, theirs)
        state[name] = value.clone()
    unused = {"text_encoder.embeddings.position_ids": torch.arange(64)[None], "vision_proj.weight": torch.zeros(2, 2)}
    return {**state, **{f"blip.{name}": value for name, value in unused.items()}}


def convert(state, **kwargs):
    text = {**TEXT, "max_position_embeddings": 64, "architectures": ["BertModel"], "encoder_width": 768}
    vision = {"width": 48, "depth": 2, "heads": 4, "patch": 16, "image_size": 32, "intermediate_size": 96}
    return diffusers_ext.ImageRewardModel.from_official_checkpoint(state, text, vision, **kwargs)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_conversion_gives_the_same_rewards(model, pictures, tmp_path, prefix):
    state = {prefix + name: value for name, value in official_names(model).items()}
    torch.save(state, tmp_path / "ImageReward.pt")
    converted = convert(tmp_path / "ImageReward.pt", tokenizer=tokenizer())
    assert torch.equal(converted.score(PROMPTS, pictures[:3]), model.score(PROMPTS, pictures[:3]))
    assert not converted.training and all(parameter.dtype == torch.float32 for parameter in converted.parameters())


def test_conversion_is_strict_and_names_official_tensors(model):
    state = official_names(model)
    missing = {name: value for name, value in state.items() if name != "blip.visual_encoder.blocks.1.attn.qkv.bias"}
    with pytest.raises(InputError, match=r"missing: blip\.visual_encoder\.blocks\.1\.attn\.qkv\.bias"):
        convert(missing)
    with pytest.raises(InputError, match=r"unexpected: mlp\.layers\.9\.weight"):
        convert({**state, "mlp.layers.9.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"mlp\.layers\.7\.bias is \(2,\), expected \(1,\)"):
        convert({**state, "mlp.layers.7.bias": torch.zeros(2)})


def test_conversion_refuses_what_is_no_checkpoint(tmp_path):
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    torch.save(np.zeros(3), tmp_path / "pickle.pt")  # would need arbitrary code
    for name in ("empty.pt", "other.pt", "pickle.pt", "none.pt"):
        with pytest.raises(InputError):
            convert(tmp_path / name)
    with pytest.raises(InputError, match="num_heads"):
        diffusers_ext.ImageRewardModel.from_official_checkpoint({}, None, {"num_heads": 3})


def test_conversion_leaves_the_callers_tensors_alone(model):
    state = official_names(model)
    converted = convert(state)
    with torch.no_grad():
        converted.mlp.layers[7].bias += 1
    assert torch.equal(state["mlp.layers.7.bias"], model.mlp.layers[7].bias)


# ---------------------------------------------------------------- score


def test_pairs_matrix_batches_and_orders_agree(model, pictures):
    matrix = model.score_matrix(PROMPTS, pictures)
    assert matrix.shape == (3, 4) and matrix.dtype == torch.float32
    assert matrix.std() > 1e-3  # the model is not blind
    one_by_one = [[model.score(prompt, image).item() for image in pictures] for prompt in PROMPTS]
    torch.testing.assert_close(matrix, torch.tensor(one_by_one), rtol=0, atol=2e-6)
    prompts = [0, 2, 2, 1, 0, 1, 0]
    images = [3, 1, 3, 1, 1, 0, 3]
    for batch_size in (1, 3, 16):
        scores = model.score([PROMPTS[p] for p in prompts], [pictures[i] for i in images], batch_size=batch_size)
        torch.testing.assert_close(scores, matrix[prompts, images], rtol=0, atol=2e-6)


def test_every_image_is_encoded_once(model, pictures):
    seen = []
    hook = model.vision_model.register_forward_hook(lambda module, given, result: seen.append(len(result[0])))
    model.score_matrix(PROMPTS, pictures)
    model.score(PROMPTS * 4, [image for image in pictures for _ in PROMPTS], batch_size=2)
    hook.remove()
    assert seen == [4, 2, 2]


def test_one_prompt_or_one_image_stands_for_all(model, pictures):
    assert model.score("a red circle", pictures[0]).shape == (1,)
    assert model.score("a red circle", pictures[:1]).shape == (1,)
    assert model.score("a red circle", pictures).shape == (4,)
    assert model.score(PROMPTS, pictures[0]).shape == (3,)
    with pytest.raises(InputError, match="3 prompts but 1 images"):
        model.score(PROMPTS, pictures[:1])


def test_no_graph_is_kept_unless_asked_for(model, pictures):
    assert not model.score("a red circle", pictures).requires_grad
    assert not model.score("a red circle", torch.stack([tensor(pictures[0])])).requires_grad


def test_gradients_reach_the_image_and_agree_with_finite_differences(model):
    image = tensor(picture(0)).requires_grad_()
    reward = model.score("a red circle", image)
    (gradient,) = torch.autograd.grad(reward.sum(), image)
    assert gradient.abs().max() > 0
    ahead = gradient / gradient.norm()
    steps = [model.score("a red circle", (image + sign * 0.02 * ahead).detach()).item() for sign in (1, -1)]
    assert (steps[0] - steps[1]) / 0.04 == pytest.approx(gradient.norm().item(), rel=0.02)


def test_tensors_score_nearly_as_pictures_do(model):
    """What separates them is PIL's rounding to 8 bits after resizing: at most one level in 255, plus float noise."""
    size = model.config.vision_config.image_size
    for seed in range(4):
        image = picture(seed, (150, 120))
        scale = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None] * 255
        apart = ((model.preprocess(image) - model.preprocess(tensor(image))) * scale).abs()
        assert apart.shape == (1, 3, size, size) and apart.max() < 2 and apart.mean() < 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_rewards_float32_and_close(pictures, dtype):
    model = tiny()
    exact = model.score("a red circle", pictures)
    halved = model.to(dtype).score("a red circle", pictures)
    assert halved.dtype == torch.float32
    torch.testing.assert_close(halved, exact, rtol=0, atol=0.02 + 0.05 * exact.std().item())


# ---------------------------------------------------------------- odd input


def test_odd_pictures(model, tmp_path):
    base = picture(1).convert("RGB")
    transparent = base.convert("RGBA")
    transparent.putalpha(0)
    white = Image.new("RGB", base.size, "white")
    deep = Image.fromarray((np.array(base.convert("L")).astype(np.uint16)) * 257)
    turned = base.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    score = {name: model.score("a red circle", image).item() for name, image in {
        "rgb": base, "cmyk": base.convert("CMYK"), "palette": base.convert("P", palette=Image.Palette.ADAPTIVE),
        "transparent": transparent, "white": white, "grey": base.convert("L"), "deep": deep, "turned": turned,
        "tiny": base.resize((1, 1)), "huge": base.resize((3000, 2000)), "bilevel": base.convert("1"),
    }.items()}  # fmt: skip
    assert score["transparent"] == score["white"]  # composited on white
    assert score["grey"] == score["deep"]  # 16 bits, not clipped
    assert score["turned"] == score["rgb"]  # as EXIF says
    assert abs(score["cmyk"] - score["rgb"]) < 1e-6
    assert len(set(score.values())) >= 7 and np.isfinite(list(score.values())).all()


def test_unreadable_pictures_are_named(model, tmp_path):
    data = io.BytesIO()
    picture(0, (300, 300)).save(data, "JPEG")
    files = {"empty.png": b"", "truncated.jpg": data.getvalue()[:-2000], "text.png": b"not a picture"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            model.score("a red circle", tmp_path / name)
    with pytest.raises(InputError, match=r"image 1: .*missing\.png"):
        model.score("a red circle", [picture(0), tmp_path / "missing.png"])
    (tmp_path / "good.jpg").write_bytes(data.getvalue())
    assert model.score("a red circle", str(tmp_path / "good.jpg")).shape == (1,)


@pytest.mark.parametrize(
    "images, message",
    [
        ([], "no images"),
        (None, "got NoneType"),
        (torch.zeros(1, 64, 64), r"expected a tensor \(3, H, W\)"),
        (torch.full((3, 8, 8), 200.0), "floats in"),
        (torch.full((3, 8, 8), float("nan")), "floats in"),
        (torch.full((3, 8, 8), -1.0), "floats in"),
        (Image.new("RGB", (2000, 3)), "2000x3"),
        (Image.new("RGB", (0, 3)), "0x3"),
    ],
)
def test_images_that_cannot_be_scored(model, images, message):
    with pytest.raises(InputError, match=message):
        model.score("a red circle", images)


def test_prompts_empty_long_and_not_texts(model, pictures):
    long = "a red circle " * 5000
    assert model.tokenize([long])["input_ids"].shape == (1, 35)
    scores = model.score(["", long, "a red circle " * 20], pictures[:1] * 3)
    assert scores[1] == scores[2] and scores.isfinite().all()  # cut at the same place
    for prompts in (None, [None], [b"a"], []):
        with pytest.raises(InputError):
            model.score(prompts, pictures[:1])


def test_a_longer_max_length_reads_more(pictures):
    model = tiny(max_length=60)
    beginning = "a red circle on the ocean " * 7
    scores = model.score([beginning + "with birds", beginning + "with a square"], pictures[:1] * 2)
    assert scores[0] != scores[1]
    with pytest.raises(InputError, match="max_length 65"):
        tiny(max_length=65)


def test_rewards_that_are_no_numbers_are_refused(pictures):
    model = tiny()
    with torch.no_grad():
        model.mlp.layers[7].bias.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        model.score("a red circle", pictures)


def test_without_tokenizer_score_says_what_to_do(pictures):
    model = tiny()
    model.tokenizer = None
    with pytest.raises(InputError, match="bert-base-uncased"):
        model.score("a red circle", pictures)


# ---------------------------------------------------------------- files, training


@pytest.fixture(scope="module")
def saved(model, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward") / "model"
    model.save_pretrained(folder)
    pictures[0].save(folder.parent / "picture.png")
    return folder


def test_saved_and_loaded_rewards_are_equal(model, saved, pictures, tmp_path):
    loaded = diffusers_ext.ImageRewardModel.from_pretrained(saved)
    assert torch.equal(loaded.score(PROMPTS, pictures[:3]), model.score(PROMPTS, pictures[:3]))
    half = diffusers_ext.ImageRewardModel.from_pretrained(saved, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.mlp.layers[0].weight.dtype == torch.float32
    assert not any(parameter.is_meta for parameter in [*loaded.parameters(), *loaded.buffers()])


PROGRAM = """
import sys
from PIL import Image
from transformers import AutoModel
{check}
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
print("reward", model.score("a red circle", Image.open(sys.argv[2])).item())
model.save_pretrained(sys.argv[3])
model = AutoModel.from_pretrained(sys.argv[3], trust_remote_code=True)
print("reward", model.score("a red circle", Image.open(sys.argv[2])).item())
"""
WITHOUT = """
try:
    import diffusers_ext
    raise SystemExit("diffusers_ext is installed")
except ImportError:
    pass
"""


@pytest.mark.parametrize("installed", [True, False])
def test_a_fresh_process_loads_it_with_and_without_the_package(model, saved, pictures, tmp_path, installed):
    program = PROGRAM.format(check="" if installed else WITHOUT)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""}
    if installed:
        environment["PYTHONPATH"] = os.path.dirname(os.path.dirname(diffusers_ext.__file__))
    else:  # an editable install would be found through a .pth file; -S reads none, so the paths are given
        paths = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, *([] if installed else ["-S"]), "-c", program]
    arguments = [saved, saved.parent / "picture.png", tmp_path / "again"]
    done = subprocess.run(
        [*command, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "[y/N]" not in done.stdout  # nothing is asked
    expected = model.score("a red circle", pictures[0]).item()
    printed = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("reward ")]
    assert printed == pytest.approx([expected] * 2, abs=1e-6)


def test_training_starts_away_from_the_plateau(pictures):
    """The official initialisation gives rewards equal to 1e-9, with gradients as small."""
    model = tiny().train()
    ids = model.tokenize(["a red circle"])
    pixels = model.preprocess(pictures)
    rewards = model(**ids, pixel_values=pixels)[0]
    assert rewards.std() > 1e-2
    (-torch.nn.functional.logsigmoid(rewards[:2] - rewards[2:]).mean()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_gradient_checkpointing_gives_the_same_gradients(pictures):
    gradients = []
    for checkpointing in (False, True):
        model = tiny()
        if checkpointing:
            model.activation_checkpointing_enable()
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model(**model.tokenize(PROMPTS), pixel_values=model.preprocess(pictures)).sum().backward()
        gradients.append(model.vision_model.embeddings.patch_embedding.weight.grad)
    torch.testing.assert_close(*gradients)


def test_the_released_weights_give_the_published_rewards(shared):
    folder = os.environ.get("IMAGEREWARD")
    if not folder:
        pytest.skip("IMAGEREWARD names no folder converted from the released weights: 1.8 GB, not in the assets")
    model = diffusers_ext.ImageRewardModel.from_pretrained(folder)
    prompt = "a painting of an ocean with clouds and birds, day time, low depth field effect"
    assets = shared / "assets/prompts/imagereward_assets"
    pictures = [Image.open(assets / f"{number}.webp") for number in (1, 2, 3, 4)]
    published = torch.tensor([0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492])
    torch.testing.assert_close(model.score(prompt, pictures), published, atol=1e-4, rtol=0)
