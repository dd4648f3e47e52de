"""The Modular Diffusers block: ranks, keeps, joins a Stable Diffusion XL, and says what is wrong."""

import json

import pytest
import torch
from diffusers import ModularPipelineBlocks, StableDiffusionXLAutoBlocks
from PIL import Image

from diffusers_ext.errors import InputError
from diffusers_ext.pipelines.rerank_block import RewardRerankBlock
from diffusers_ext.rewards.interface import Reward


class Brightness(Reward):
    """The mean of the pixels; prompts that begin with "dark" want the opposite."""

    def _score(self, prompts, images):
        means = [torch.as_tensor(_mean(image)) for image in images]
        return torch.stack([-mean if prompt.startswith("dark") else mean for prompt, mean in zip(prompts, means)])


class Unsure(torch.nn.Module):
    """A reward that does not refuse NaN."""

    def score(self, prompts, images):
        return images.mean((1, 2, 3))


def _mean(image) -> float:
    return float(image.mean()) if isinstance(image, torch.Tensor) else image.convert("L").getpixel((0, 0)) / 255


def grey(*levels: int) -> list[Image.Image]:
    return [Image.new("RGB", (8, 8), (level,) * 3) for level in levels]


@pytest.fixture
def pipe():
    pipe = RewardRerankBlock().init_pipeline()
    pipe.update_components(reward_model=Brightness())
    return pipe


def test_best_first_for_each_prompt(pipe):
    images = grey(10, 200, 90, 30, 250, 120)
    state = pipe(prompt=["bright", "dark"], images=images, keep=2)
    assert state.get("ranking") == [1, 2, 3, 5]
    assert [image is images[place] for image, place in zip(state.get("images"), state.get("ranking"))] == [True] * 4
    assert state.get("scores") == pytest.approx([200 / 255, 90 / 255, -30 / 255, -120 / 255])


def test_a_reward_of_nan_comes_last(pipe):
    images = torch.tensor([0.2, torch.nan, 0.9])[:, None, None, None].expand(3, 3, 8, 8)
    pipe.update_components(reward_model=Unsure())
    assert pipe(prompt="bright", images=images, output="ranking") == [2, 0, 1]


def test_all_are_kept_without_a_number_and_tensors_stay_tensors(pipe):
    images = torch.tensor([0.2, 0.9, 0.5])[:, None, None, None].expand(3, 3, 8, 8)
    kept = pipe(prompt="bright", images=images, output="images")
    assert torch.equal(kept[:, 0, 0, 0], torch.tensor([0.9, 0.5, 0.2]))


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"prompt": "bright", "keep": 3}, "keep=3: 1 to 2"),
        ({"prompt": "bright", "keep": 0}, "keep=0"),
        ({"prompt": ["a", "b", "c"]}, "2 images of 3 prompts"),
    ],
)
def test_what_cannot_be_ranked(pipe, inputs, message):
    with pytest.raises(InputError, match=message):
        pipe(images=grey(1, 2), **inputs)


def test_without_a_reward_it_says_how_to_give_one():
    with pytest.raises(InputError, match="update_components"):
        RewardRerankBlock().init_pipeline()(prompt="bright", images=grey(1, 2))


def test_in_a_stable_diffusion_xl(untrained_xl):
    """Its winner is the brightest of what the same pipeline draws without the block, pixel for pixel."""
    blocks = StableDiffusionXLAutoBlocks().get_workflow("text2image")
    arguments = {"prompt": "red circle", "num_images_per_prompt": 3, "num_inference_steps": 2, "height": 64}
    arguments |= {"width": 64, "output_type": "pt"}

    def draw(**more):
        pipe = blocks.init_pipeline(str(untrained_xl))
        pipe.load_components()
        if "reward_model" in pipe.component_names:
            pipe.update_components(reward_model=Brightness())
        generator = [torch.Generator().manual_seed(seed) for seed in range(3)]
        return pipe(generator=generator, **arguments, **more)

    plain = draw().get("images")
    blocks.sub_blocks.insert("rerank", RewardRerankBlock(), len(blocks.sub_blocks))
    state = draw(keep=2)
    brightness = plain.mean((1, 2, 3))
    assert state.get("ranking") == brightness.argsort(descending=True)[:2].tolist()
    assert torch.equal(state.get("images"), plain[state.get("ranking")])
    assert state.get("scores") == pytest.approx(brightness[state.get("ranking")].tolist())


def test_saved_it_loads_by_its_code_file(tmp_path):
    RewardRerankBlock().save_pretrained(tmp_path / "block")
    files = {path.name for path in (tmp_path / "block").iterdir()}
    assert files == {"modular_config.json", "rerank_block.py", "README.md"}
    config = json.loads((tmp_path / "block" / "modular_config.json").read_text())
    assert config["auto_map"] == {"ModularPipelineBlocks": "rerank_block.RewardRerankBlock"}
    loaded = ModularPipelineBlocks.from_pretrained(str(tmp_path / "block"), trust_remote_code=True)
    assert type(loaded) is RewardRerankBlock
