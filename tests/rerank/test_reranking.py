"""Best-of-N returns the pixels that the plain pipeline draws, in order of reward, whatever goes wrong on the way."""

import copy
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UniPCMultistepScheduler,
)
from PIL import Image
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModelWithProjection

from diffusers_ext import RewardReranker, embedded_model, load_reward
from diffusers_ext.errors import InputError
from diffusers_ext.rerank.candidates import Candidate, ranked, score_pictures
from diffusers_ext.rerank.pruning import predicted_clean
from diffusers_ext.rerank.request import check_schedule
from diffusers_ext.rewards.named import NamedReward
from diffusers_ext.toy import tiny

PIPELINES = Path(__file__).parents[2] / "pipelines"
PROMPT, OTHER = "gold circle with midnight blue background", "dark red circle with ivory background"
FEW = {"num_inference_steps": 3, "guidance_scale": 2.0}
TOLERANCE = 0.1  # CIEDE2000: a median colour may round to the next of 256 levels when the batch changes


def pipeline_class(stem: str, name: str) -> type:
    """Return a pipeline class of the checkout, whatever package is installed."""
    spec = importlib.util.spec_from_file_location(f"checkout_{stem}", PIPELINES / f"{stem}.py")
    module = sys.modules.get(spec.name) or importlib.util.module_from_spec(spec)
    if spec.name not in sys.modules:
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return getattr(module, name)


RewardRerankPipeline = pipeline_class("reward_rerank", "RewardRerankPipeline")


@pytest.fixture(scope="module")
def plain():
    pipe = StableDiffusionPipeline.from_pretrained(embedded_model())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def ours(plain):
    pipe = RewardRerankPipeline(**plain.components, reward_model=load_reward("fill50k"), requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels(image) -> np.ndarray:
    return np.asarray(image)


def generators(seeds) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def brightness(prompts, images) -> torch.Tensor:
    """A reward that any picture has."""
    values = [
        image.float().mean() if isinstance(image, torch.Tensor) else np.mean(np.asarray(image)) for image in images
    ]
    return torch.tensor([float(value) for value in values])


class Drawing:
    """A pipeline of somebody else: grey pictures, each its generator's first number; no num_images_per_prompt."""

    def __init__(self, memory: int = 99, blank: int | None = None):
        self.memory, self.blank, self.calls = memory, blank, []

    def __call__(self, prompt, generator=None, negative_prompt=None):
        self.calls.append((prompt, negative_prompt, [each.initial_seed() for each in generator]))
        if len(generator) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        levels = [int(torch.randint(256, (), generator=each)) for each in generator]
        flags = [each.initial_seed() == self.blank for each in generator]
        images = [Image.new("RGB", (4, 4), (0 if flag else level,) * 3) for level, flag in zip(levels, flags)]
        return SimpleNamespace(images=images, nsfw_content_detected=flags)


class TestBestOfN:
    def test_the_winner_is_drawn_again_from_its_seed_and_chunk(self, ours, plain):
        best = ours(PROMPT, num_candidates=6, keep=2, chunk_size=4, seed=5, **FEW)
        assert best.scores == sorted(best.scores, reverse=True) and len(set(best.scores)) > 1
        assert sorted(best.seeds) == list(range(5, 11)) and len(best.images) == 2
        assert [seed - 5 for seed in best.seeds] == best.order
        assert best.evaluations == 2 * 6 * 3  # guidance sends every candidate through twice, at three steps
        for image, candidate in zip(best.images, best.candidates[0]):
            again = plain(
                PROMPT, num_images_per_prompt=len(candidate.chunk), generator=generators(candidate.chunk), **FEW
            )
            assert np.array_equal(pixels(again.images[candidate.chunk.index(candidate.seed)]), pixels(image))
            assert load_reward("fill50k").score(PROMPT, [image]).item() == candidate.score
        assert [each.image is None for each in best.candidates[0]] == [False] * 2 + [True] * 4

    def test_the_order_does_not_depend_on_the_chunk(self, ours):
        found = [ours(PROMPT, num_candidates=4, chunk_size=size, seed=5, **FEW) for size in (1, 3, 4)]
        for each in found[1:]:
            assert each.order == found[0].order
            assert np.allclose(each.scores, found[0].scores, atol=TOLERANCE)

    def test_one_candidate_is_the_plain_pipelines_picture(self, ours, plain):
        one = ours(PROMPT, num_candidates=1, keep=4, seed=3, **FEW)
        assert len(one.images) == 1
        assert np.array_equal(pixels(one.images[0]), pixels(plain(PROMPT, generator=generators([3]), **FEW).images[0]))

    def test_texts_are_encoded_once(self, ours):
        rows = []
        handle = ours.text_encoder.embeddings.register_forward_hook(lambda *given: rows.append(len(given[2])))
        ours(PROMPT, num_candidates=4, chunk_size=1, seed=0, **FEW)
        assert rows == [1, 1]  # the prompt and the empty one
        ours([PROMPT, OTHER], num_candidates=1, seed=0, **FEW)
        handle.remove()
        assert rows == [1] * 5 and "forward" not in vars(ours.text_encoder)

    def test_several_prompts_keep_their_own(self, ours, plain):
        best = ours([PROMPT, OTHER], num_candidates=2, keep=1, seed=0, negative_prompt=["", "red circle"], **FEW)
        assert len(best.images) == 2 and [len(each) for each in best.candidates] == [2, 2]
        assert {each.seed for each in best.candidates[1]} == {2, 3}
        winner = best.candidates[1][0]
        again = plain(OTHER, negative_prompt="red circle", num_images_per_prompt=2, generator=generators([2, 3]), **FEW)
        assert np.array_equal(pixels(again.images[winner.number]), pixels(best.images[1]))

    def test_seeds_can_be_given_in_every_form(self, ours):
        given = {"num_candidates": 2, **FEW}
        seeded = ours(PROMPT, seed=[7, 9], **given)
        assert sorted(seeded.seeds) == [7, 9]
        assert ours(PROMPT, generator=generators([7, 9]), **given).scores == seeded.scores
        drawn = [ours(PROMPT, generator=torch.Generator().manual_seed(1), **given).seeds for _ in range(2)]
        assert drawn[0] == drawn[1] and ours(PROMPT, **given).seeds != ours(PROMPT, **given).seeds

    @pytest.mark.parametrize("kind, shape", [("np", (2, 64, 64, 3)), ("pt", (2, 3, 64, 64))])
    def test_other_output_types(self, ours, kind, shape):
        images, candidates, evaluations = ours(
            PROMPT, num_candidates=3, keep=2, seed=5, output_type=kind, return_dict=False, **FEW
        )
        assert images.shape == shape and len(candidates[0]) == 3 and evaluations == 18
        assert candidates[0][0].score == pytest.approx(ours(PROMPT, num_candidates=3, seed=5, **FEW).scores[0], abs=0.2)

    def test_latents_and_embeddings(self, ours, plain):
        latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        embeds = dict(zip(("prompt_embeds", "negative_prompt_embeds"), plain.encode_prompt(PROMPT, "cpu", 1, True)))
        given = ours(**embeds, reward_prompt=PROMPT, latents=latents, num_candidates=2, chunk_size=1, **FEW)
        expected = plain(PROMPT, latents=latents[given.order[0]][None], **FEW).images[0]
        assert np.array_equal(pixels(given.images[0]), pixels(expected))

    @pytest.mark.parametrize(
        "wrong, message",
        [
            ({"num_candidates": 0}, "1 at least"),
            ({"num_images_per_prompt": 2}, "num_candidates"),
            ({"output_type": "latent"}, "no picture"),
            ({"seed": 1, "generator": torch.Generator()}, "not both"),
            ({"seed": [1, 2, 3]}, "3 seeds"),
            ({"latents": torch.zeros(3, 4, 16, 16)}, "latents"),
            ({"prune": [(0.5, 2)]}, "prune"),
            ({"reward_prompt": ["a", "b"]}, "reward"),
        ],
    )
    def test_mistakes_are_told_before_anything_is_drawn(self, ours, wrong, message):
        ours.unet.forward = None
        try:
            with pytest.raises(InputError, match=message):
                ours(PROMPT, **wrong)
            ours.reward_model = None
            with pytest.raises(InputError, match="reward_model"):
                ours(PROMPT)
        finally:
            del ours.unet.forward


class TestCallbacks:
    def test_theirs_sees_and_changes_every_step(self, ours):
        seen = []

        def callback(pipe, step, timestep, given):
            seen.append((step, len(given["latents"]), set(given)))
            return {"latents": torch.zeros_like(given["latents"])}

        names = ["latents", "prompt_embeds"]
        given = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}
        best = ours(PROMPT, num_candidates=3, chunk_size=2, seed=0, **FEW, **given)
        assert seen == [(step, size, set(names)) for size in (2, 1) for step in range(3)]
        assert best.scores[0] == pytest.approx(best.scores[-1], abs=TOLERANCE)  # all became the same picture

    def test_an_interrupt_ends_the_search(self, ours):
        def callback(pipe, step, timestep, given):
            pipe._interrupt = True
            return given

        best = ours([PROMPT, OTHER], num_candidates=6, chunk_size=2, seed=0, callback_on_step_end=callback, **FEW)
        assert len(best.candidates) == 1 and sorted(best.seeds) == [0, 1] and len(best.images) == 2

    def test_the_bar_counts_candidates_and_is_left_as_it_was(self, ours, capsys):
        ours.set_progress_bar_config(disable=False, desc="mine")
        ours(PROMPT, num_candidates=4, chunk_size=2, seed=0, **FEW)
        told = capsys.readouterr().err
        assert "mine" in told and "| 4/4" in told and f"/{FEW['num_inference_steps']} [" not in told
        assert ours._progress_bar_config == {"disable": False, "desc": "mine"}


class TestFailures:
    def test_out_of_memory_halves_the_chunk_and_goes_on(self):
        drawing = Drawing(memory=2)
        with pytest.warns(UserWarning, match="out of memory at 5 images; continuing with 3"):
            best = RewardReranker(drawing, brightness)("a", num_candidates=5, chunk_size=8, seed=0)
        assert [len(seeds) for _, _, seeds in drawing.calls] == [5, 3, 2, 2, 1]
        whole = RewardReranker(Drawing(), brightness)("a", num_candidates=5, chunk_size=5, seed=0)
        assert best.seeds == whole.seeds and best.scores == whole.scores
        assert {each.chunk for each in best.candidates[0]} == {(0, 1), (2, 3), (4,)}
        with pytest.raises(torch.OutOfMemoryError):
            RewardReranker(Drawing(memory=0), brightness)("a", num_candidates=2)

    def test_a_reward_of_nan_comes_last(self):
        def reward(prompts, images):
            scores = brightness(prompts, images)
            return torch.where(scores == scores.max(), torch.nan, scores)

        best = RewardReranker(Drawing(), reward)("a", num_candidates=4, chunk_size=4, seed=0)
        assert np.isnan(best.scores).tolist() == [False] * 3 + [True] and best.scores[0] == max(best.scores[:3])

    def test_a_reward_that_refuses_one_picture_scores_the_others(self):
        def reward(prompts, images):
            if any(np.mean(image) > 200 for image in images):
                raise InputError("too bright")
            return brightness(prompts, images)

        images = [Image.new("L", (2, 2), level) for level in (10, 220, 30)]
        assert np.array_equal(score_pictures(reward, "a", images)["score"], [10, np.nan, 30], equal_nan=True)
        with pytest.raises(InputError, match="too bright"):
            score_pictures(reward, "a", images[1:2] * 2)
        with pytest.raises(ValueError, match="1 values"):
            score_pictures(lambda prompts, images: [1.0], "a", images)

    def test_blanked_pictures_come_last(self, plain):
        class Checker(torch.nn.Module):
            dtype, device = torch.float32, torch.device("cpu")

            def forward(self, images, clip_input):
                return images * np.array([0, 1, 1]).reshape(3, 1, 1, 1), [True, False, False]

        parts = plain.components | {"safety_checker": Checker(), "feature_extractor": CLIPImageProcessor()}
        best = RewardReranker(StableDiffusionPipeline(**parts), brightness)(PROMPT, num_candidates=3, seed=0, **FEW)
        assert best.order[-1] == 0 and best.nsfw_content_detected == [False, False, True] and np.isnan(best.scores[-1])

    def test_the_order_of_all_kinds(self):
        kinds = [
            Candidate(0, 0, (), 5.0, dropped_after=2),
            Candidate(1, 0, (), 1.0, dropped_after=7),
            Candidate(2, 0, (), float("nan"), nsfw=True),
            Candidate(3, 0, (), float("nan")),
            Candidate(4, 0, (), -3.0),
            Candidate(5, 0, (), -3.0),
        ]
        assert [each.number for each in ranked(kinds, 2)] == [4, 5, 3, 2, 1, 0]


class TestAnyPipeline:
    def test_without_images_per_prompt_the_prompt_is_repeated(self):
        drawing = Drawing(blank=1)
        best = RewardReranker(drawing, brightness)("a", negative_prompt="b", num_candidates=3, chunk_size=2, seed=0)
        assert drawing.calls == [(["a"] * 2, ["b"] * 2, [0, 1]), (["a"], ["b"], [2])]
        assert best.seeds[-1] == 1 and best.evaluations == 0

    def test_what_it_must_have(self):
        with pytest.raises(InputError, match="generator"):
            RewardReranker(lambda prompt: None, brightness)("a")
        with pytest.raises(InputError, match="no images"):
            RewardReranker(lambda prompt, generator: (1,), brightness)("a", num_candidates=1)
        with pytest.raises(InputError, match="num_inference_steps"):
            RewardReranker(Drawing(), brightness)("a", prune=True)
        with pytest.raises(InputError, match="cannot be pruned"):
            RewardReranker(Drawing(), brightness)("a", prune=True, prune_by="previews")

    def test_stable_diffusion_xl(self, untrained_xl):
        plain = StableDiffusionXLPipeline.from_pretrained(untrained_xl, add_watermarker=False)
        kind = pipeline_class("reward_rerank_sdxl", "RewardRerankXLPipeline")
        ours = kind.from_pipe(plain, reward_model=brightness)
        given = {"num_inference_steps": 4, "guidance_scale": 3.0}
        best = ours(PROMPT, prompt_2=OTHER, num_candidates=4, keep=4, chunk_size=2, seed=0, **given)
        winner = best.candidates[0][0]
        again = plain(
            PROMPT, prompt_2=OTHER, num_images_per_prompt=2, generator=generators(winner.chunk), **given
        ).images[winner.chunk.index(winner.seed)]
        assert np.array_equal(pixels(again), pixels(best.images[0]))
        pruned = ours(PROMPT, num_candidates=4, keep=1, seed=0, prune=[(0.5, 0.25)], prune_by="previews", **given)
        assert pruned.evaluations == 2 * (2 * 4 + 2 * 1) and len(pruned.images) == 1

    def test_stable_diffusion_3(self):
        """A transformer, flow matching, three prompts: nothing of Stable Diffusion's U-Net is asked for."""
        torch.manual_seed(0)
        words = tiny.tokenizer(["red circle with blue background"], merges=16)
        config = CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=32,
            projection_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tiny.TOKENS,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
        )
        transformer = SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=64,
        )
        pipe = StableDiffusion3Pipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=2, shift_factor=0.06).eval(),
            text_encoder=CLIPTextModelWithProjection(config).eval(),
            tokenizer=words,
            text_encoder_2=CLIPTextModelWithProjection(config).eval(),
            tokenizer_2=words,
            text_encoder_3=None,
            tokenizer_3=None,
        )
        rows, size = [], {"height": 16, "width": 16, "num_inference_steps": 4, "guidance_scale": 3.0}
        pipe.text_encoder_2.text_projection.register_forward_hook(lambda *given: rows.append(1))
        best = RewardReranker(pipe, brightness)(PROMPT, num_candidates=4, keep=1, seed=0, prune=[(0.5, 0.5)], **size)
        assert best.evaluations == 2 * (2 * 4 + 4 * 2) and len(rows) == 2
        winner = best.candidates[0][0]
        again = pipe(PROMPT, num_images_per_prompt=2, generator=generators(winner.chunk), **size).images
        assert np.array_equal(pixels(again[winner.chunk.index(winner.seed)]), pixels(best.images[0]))


class TestPruning:
    def test_fewer_evaluations_and_the_same_pictures(self, ours):
        given = {"num_candidates": 8, "seed": 5, "num_inference_steps": 8, "guidance_scale": 2.0, "output_type": "pt"}
        whole = ours(PROMPT, keep=8, **given)
        given["prune_by"] = "previews"
        best = ours(PROMPT, keep=2, prune=True, **given)
        assert best.evaluations == 2 * (2 * 8 + 2 * 4 + 4 * 2) and len(best.candidates[0]) == 8
        assert [each.dropped_after for each in best.candidates[0]] == [None] * 2 + [4] * 2 + [2] * 4
        for image, candidate in zip(best.images, best.candidates[0]):
            assert torch.allclose(image, whole.images[whole.order.index(candidate.number)], atol=1e-3)
        assert ours(PROMPT, keep=2, prune=True, chunk_size=3, **given).order[:2] == best.order[:2]
        assert ours.unet._forward_hooks == {} and "forward" not in vars(ours.unet)

    def test_drafts(self, ours, plain):
        """The worse drafts go, and what stays is drawn in full: the plain pipeline's pixels again."""
        given = {"num_candidates": 6, "chunk_size": 4, "seed": 5, "guidance_scale": 2.0}
        best = ours(PROMPT, keep=1, prune=[(0.25, 0.5), (0.5, 0.67)], num_inference_steps=8, **given)
        assert best.evaluations == 2 * (2 * 6 + 8 * 3)  # 0.67 of three are three: no second round
        best = ours(PROMPT, keep=1, prune=[(0.25, 0.5), (0.5, 0.6)], num_inference_steps=8, **given)
        assert best.evaluations == 2 * (2 * 6 + 4 * 3 + 8 * 2)
        assert [each.dropped_after for each in best.candidates[0]] == [None] * 2 + [4] + [2] * 3
        drafts = ours(PROMPT, keep=1, num_inference_steps=2, **given)
        assert best.order[3:] == drafts.order[3:] and best.scores[3:] == drafts.scores[3:]
        winner = best.candidates[0][0]
        settings = {"num_inference_steps": 8, "guidance_scale": 2.0, "generator": generators(winner.chunk)}
        again = plain(PROMPT, num_images_per_prompt=2, **settings).images[winner.chunk.index(winner.seed)]
        assert np.array_equal(pixels(again), pixels(best.images[0]))

    @pytest.mark.parametrize(
        "kind",
        [
            DDIMScheduler,
            EulerDiscreteScheduler,
            EulerAncestralDiscreteScheduler,
            DPMSolverMultistepScheduler,
            UniPCMultistepScheduler,
            PNDMScheduler,
            HeunDiscreteScheduler,
        ],
    )
    def test_samplers_that_remember_and_samplers_that_draw_noise(self, plain, kind):
        """What survives is what it would have been: the sampler's memory and the generators lose the same rows."""
        pipe = StableDiffusionPipeline(**plain.components, requires_safety_checker=False)
        pipe.scheduler = kind.from_config(plain.scheduler.config, rescale_betas_zero_snr=False)
        pipe.set_progress_bar_config(disable=True)
        given = {"num_candidates": 4, "seed": 0, "num_inference_steps": 5, "guidance_scale": 2.0, "output_type": "pt"}
        tool = RewardReranker(pipe, brightness)
        whole, best = (
            tool(PROMPT, keep=4, **given),
            tool(PROMPT, keep=1, prune=[(0.4, 0.5)], prune_by="previews", **given),
        )
        assert [each.dropped_after is None for each in best.candidates[0]] == [True, True, False, False]
        winner = whole.images[whole.order.index(best.order[0])]
        assert torch.allclose(best.images[0], winner, atol=2e-3)

    @pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
    def test_the_clean_latent_is_read_off(self, kind):
        scheduler = DDIMScheduler(prediction_type=kind)
        clean, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        time = torch.tensor(400)
        noisy = scheduler.add_noise(clean, noise, time[None])
        says = {"epsilon": noise, "sample": clean, "v_prediction": scheduler.get_velocity(clean, noise, time[None])}
        assert torch.allclose(predicted_clean(scheduler, noisy, time, says[kind]), clean, atol=1e-4)

    def test_memory_is_bounded_and_found(self, ours):
        rows, draw = [], ours.unet.conv_in.forward

        def counted(sample):
            rows.append(len(sample))
            if len(sample) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
            return draw(sample)

        ours.unet.conv_in.forward = counted
        try:
            ours(PROMPT, num_candidates=6, keep=1, chunk_size=4, seed=0, prune=True, prune_by="previews", **FEW)
        finally:
            del ours.unet.conv_in.forward
        assert rows[0] == 8 and max(rows[1:]) == 4

    def test_a_tiny_decoder_shows_the_previews(self, ours, monkeypatch):
        blocks = {"encoder_block_out_channels": (8,) * 3, "decoder_block_out_channels": (8,) * 3}
        tiny_decoder = AutoencoderTiny(**blocks, num_encoder_blocks=(1,) * 3, num_decoder_blocks=(1,) * 3)
        shown = {"previews": 0, "pictures": 0}
        for name, decoder in (("previews", tiny_decoder), ("pictures", ours.vae)):

            def counted(latents, *args, name=name, decode=decoder.decode, **kwargs):
                shown[name] += len(latents)
                return decode(latents, *args, **kwargs)

            monkeypatch.setattr(decoder, "decode", counted)
        given = {"prune": [(0.4, 0.25)], "prune_by": "previews", "preview_decoder": tiny_decoder, **FEW}
        best = ours(PROMPT, num_candidates=4, keep=1, seed=0, **given)
        assert shown == {"previews": 4, "pictures": 1} and len(best.images) == 1

    def test_what_cannot_be_pruned_is_told(self, plain):
        pipe = StableDiffusionPipeline(**plain.components, requires_safety_checker=False)
        pipe.scheduler = DDIMScheduler.from_config(plain.scheduler.config)
        pipe.scheduler.noise_sampler = None  # as DPMSolverSDEScheduler has one
        with pytest.raises(InputError, match="noise of all candidates"):
            RewardReranker(pipe, brightness)(PROMPT, prune=True, prune_by="previews")
        pipe.scheduler = FlowMatchEulerDiscreteScheduler()
        with pytest.raises(InputError, match="no discrete schedule"):
            RewardReranker(pipe, brightness)(PROMPT, prune=True, prune_by="previews")
        assert check_schedule(False, "drafts") == () and check_schedule([(0.5, 0.5)], "drafts") == ((0.5, 0.5),)
        for wrong in ([(0.5, 0.5), (0.4, 0.5)], [(1.0, 0.5)], [(0.5, 0)], "half"):
            with pytest.raises(InputError):
                check_schedule(wrong, "previews")


class TestControl:
    @pytest.fixture
    def obeying(self, plain):
        torch.manual_seed(0)
        net = ControlNetModel.from_unet(plain.unet, conditioning_embedding_out_channels=(8, 16, 16))
        for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            torch.nn.init.normal_(layer.weight, std=0.1)
        kind = pipeline_class("controlnet_rerank", "StableDiffusionControlNetRerankPipeline")
        parts = {**plain.components, "controlnet": net.eval(), "reward_model": load_reward("fill50k")}
        pipe = kind(**parts, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def test_reward_and_obedience(self, obeying):
        conditions = [Image.new("L", (64, 64), level).convert("RGB") for level in (0, 255)]
        given = {"image": conditions, "condition_extractor": "grayscale", "num_candidates": 2, "seed": 0, **FEW}
        best = obeying([PROMPT, OTHER], consistency_weight=10, **given)
        for candidate in (each for found in best.candidates for each in found):
            parts = candidate.parts
            assert candidate.score == pytest.approx(parts["reward"] + 10 * parts["consistency"])
        obeying.reward_model = None
        assert "reward" not in obeying([PROMPT, OTHER], **given).candidates[0][0].parts
        with pytest.raises(InputError, match="reward_model"):
            obeying(PROMPT, image=conditions[0])

    def test_each_prompt_has_its_condition_pruned_or_not(self, obeying):
        conditions = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        given = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "pt"}
        plain = StableDiffusionControlNetPipeline(
            **{name: part for name, part in obeying.components.items() if name != "reward_model"},
            requires_safety_checker=False,
        )
        best = obeying([PROMPT, OTHER], image=conditions, num_candidates=2, keep=1, seed=0, **given)
        winner = best.candidates[1][0]
        again = plain(OTHER, image=conditions[1:], num_images_per_prompt=2, generator=generators([2, 3]), **given)
        assert torch.equal(again.images[winner.number], best.images[1])
        pruned = obeying(
            OTHER,
            image=conditions[1:],
            num_candidates=2,
            keep=1,
            seed=2,
            prune=[(0.5, 0.5)],
            prune_by="previews",
            **given,
        )
        assert pruned.evaluations == 2 * (2 * 2 + 2)
        assert torch.allclose(pruned.images[0], again.images[pruned.order[0]], atol=1e-3)

    def several(self, obeying, count: int):
        """The pipeline with several ControlNets, and diffusers' own with the same."""
        nets = [obeying.controlnet]
        for seed in range(1, count):
            torch.manual_seed(seed)
            nets.append(copy.deepcopy(obeying.controlnet))
            for parameter in nets[-1].controlnet_mid_block.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
        parts = {**obeying.components, "controlnet": nets}
        ours = type(obeying)(**parts, requires_safety_checker=False)
        plain = StableDiffusionControlNetPipeline(
            **{name: part for name, part in parts.items() if name != "reward_model"}, requires_safety_checker=False
        )
        for pipe in (ours, plain):
            pipe.set_progress_bar_config(disable=True)
        return ours, plain

    @pytest.mark.parametrize("form", ["lists", "tensors", "shared"])
    def test_several_controls_and_several_prompts(self, obeying, form):
        """As diffusers has them: a list per prompt of one condition per net, rows of a tensor per net, or one for all."""
        ours, plain = self.several(obeying, 2)
        pictures = torch.rand(3, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        prompts = [PROMPT, OTHER, "red circle with blue background"]
        of_prompt = [[pictures[prompt, net][None] for net in range(2)] for prompt in range(3)]
        if form == "lists":
            pil = [[Image.fromarray((net.permute(1, 2, 0) * 255).byte().numpy()) for net in nets] for nets in pictures]
            image, of_prompt = pil, pil
        elif form == "tensors":
            image = [pictures[:, net] for net in range(2)]
        else:
            image, of_prompt = of_prompt[0], [of_prompt[0]] * 3
        given = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "pt"}
        scales = {"controlnet_conditioning_scale": [0.5, 1.0]}
        best = ours(prompts, image=image, num_candidates=2, keep=1, seed=0, **given, **scales)
        for prompt, text in enumerate(prompts):
            seeds = generators([2 * prompt, 2 * prompt + 1])
            kept = best.candidates[prompt][0].number
            again = plain(text, image=of_prompt[prompt], num_images_per_prompt=2, generator=seeds, **given, **scales)
            assert torch.equal(again.images[kept], best.images[prompt]), (form, prompt)

    def test_lists_of_another_length_are_refused(self, obeying):
        ours, _ = self.several(obeying, 2)
        white = Image.new("RGB", (64, 64), "white")
        with pytest.raises(InputError, match="2 lists of conditions for 3 prompts"):
            ours([PROMPT, OTHER, PROMPT], image=[[white, white]] * 2, num_candidates=1, **FEW)


class TestComponents:
    def test_offload_hooks_are_kept(self, ours):
        given = {"num_candidates": 3, "chunk_size": 2, "keep": 1, "seed": 0, **FEW}
        expected = [ours(PROMPT, **given).scores, ours(PROMPT, prune=True, prune_by="previews", **given).scores]
        ours.reward_model = NamedReward("fill50k")
        ours.enable_model_cpu_offload(device="cpu")
        assert [ours(PROMPT, **given).scores, ours(PROMPT, prune=True, prune_by="previews", **given).scores] == expected
        ours.remove_all_hooks()

    def test_an_offloaded_reward_comes_and_goes(self, ours, monkeypatch):
        moves = []

        class Weighing(torch.nn.Linear):
            dtype, device = torch.float32, torch.device("cpu")

            def to(self, *args, **kwargs):
                moves.append(str(args[0]))
                return self

            def score(self, prompts, images):
                moves.append("score")
                return brightness(prompts, images)

        ours.reward_model = Weighing(2, 2)
        ours.enable_model_cpu_offload(device="cpu")
        bring = CpuOffload.pre_forward

        def brought(hook, module, *args, **kwargs):
            moves.append("brought" if module is ours.reward_model else "another")
            return bring(hook, module, *args, **kwargs)

        monkeypatch.setattr(CpuOffload, "pre_forward", brought)
        moves.clear()
        ours(PROMPT, num_candidates=1, seed=0, **FEW)
        at = moves.index("score")
        assert "brought" in moves[:at] and moves[at + 1 :] == ["cpu"]
        ours.remove_all_hooks()

    def test_a_compiled_network(self, plain, ours):
        expected = ours(PROMPT, num_candidates=2, seed=0, **FEW).scores
        network, ours.unet = ours.unet, torch.compile(ours.unet, backend="eager")
        try:
            found = ours(PROMPT, num_candidates=2, seed=0, **FEW)
        finally:
            ours.unet = network
        assert found.scores == pytest.approx(expected, abs=TOLERANCE) and found.evaluations == 2 * 2 * 3

    def test_a_reward_set_where_none_was_loaded_is_saved(self, plain, ours, tmp_path):
        ours.reward_model = None
        ours.save_pretrained(tmp_path / "none")
        again = RewardRerankPipeline.from_pretrained(tmp_path / "none", trust_remote_code=True, reward_model=None)
        again.reward_model = NamedReward("fill50k")
        again.save_pretrained(tmp_path / "named")
        loaded = RewardRerankPipeline.from_pretrained(tmp_path / "named", trust_remote_code=True)
        assert isinstance(loaded.reward_model, NamedReward)
        config = tmp_path / "named" / "reward_model" / "config.json"
        config.write_text(config.read_text().replace("fill50k", "os:system"))
        with pytest.raises(InputError, match="may not name code"):
            NamedReward.from_pretrained(config.parent)

    def test_from_pipe_and_back(self, plain, ours):
        made = RewardRerankPipeline.from_pipe(plain, dtype=plain.dtype, reward_model=brightness)
        assert made.unet is plain.unet and made.reward_model is brightness
        assert StableDiffusionPipeline.from_pipe(ours, dtype=ours.dtype).vae is plain.vae

    def test_saved_rewards_come_back(self, ours, tmp_path):
        with pytest.raises(InputError, match="NamedReward"):
            ours.save_pretrained(tmp_path / "refused")
        assert not (tmp_path / "refused").exists()
        ours.reward_model = NamedReward("fill50k")
        ours.save_pretrained(tmp_path / "saved")
        again = RewardRerankPipeline.from_pretrained(tmp_path / "saved", trust_remote_code=True)
        again.set_progress_bar_config(disable=True)
        given = {"num_candidates": 2, "seed": 0, **FEW}
        assert again(PROMPT, **given).scores == ours(PROMPT, **given).scores
        assert RewardRerankPipeline.from_pretrained(tmp_path / "saved", reward_model=None, trust_remote_code=True)
