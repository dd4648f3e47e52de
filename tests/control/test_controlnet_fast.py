"""The fast ControlNet pipelines draw what diffusers draws, bit for bit, with fewer ControlNet calls."""

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import MethodType

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from diffusers_ext.control.fast import fast_control, resolution_weight
from diffusers_ext.errors import InputError
from diffusers_ext.toy.tiny import tokenizer

PIPELINES = Path(__file__).parents[2] / "pipelines"
WIDTH, SIDE, STEPS, CONNECTIONS = 16, 16, 10, 5
FEW = {"num_inference_steps": 4}
SD, XL = "controlnet_fast", "controlnet_fast_sdxl"


def load_file(stem: str) -> type:
    """Return the pipeline class of a file of the checkout, whatever package is installed."""
    spec = importlib.util.spec_from_file_location(f"checkout_{stem}", PIPELINES / f"{stem}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return next(value for name, value in vars(module).items() if name.endswith("FastPipeline"))


FAST = {SD: load_file(SD), XL: load_file(XL)}
REFERENCE = {SD: StableDiffusionControlNetPipeline, XL: StableDiffusionXLControlNetPipeline}
PLAIN = {SD: StableDiffusionPipeline, XL: StableDiffusionXLPipeline}


def tiny_unet(xl: bool) -> UNet2DConditionModel:
    addition = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return UNet2DConditionModel(
        sample_size=SIDE // 2,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=(2 if xl else 1) * WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
        **({**addition, "projection_class_embeddings_input_dim": 6 * 8 + WIDTH} if xl else {}),
    )


def tiny_control(unet: UNet2DConditionModel, seed: int, **config) -> ControlNetModel:
    """A ControlNet that acts: its zero convolutions are not zero."""
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16)).eval()
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.2)
        torch.nn.init.normal_(layer.bias, std=0.2)
    net.register_to_config(**config)
    return net


def tiny_parts(kind: str) -> dict:
    torch.manual_seed(0)
    words = tokenizer(["red circle with blue background"], merges=20)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=words.model_max_length,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    parts = {
        "vae": AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=2, sample_size=SIDE, **blocks).eval(),
        "text_encoder": CLIPTextModel(config).eval(),
        "tokenizer": words,
        "unet": tiny_unet(kind == XL).eval(),
        "scheduler": DDIMScheduler(clip_sample=False, steps_offset=1),
    }
    if kind == XL:
        second = {"text_encoder_2": CLIPTextModelWithProjection(config).eval(), "tokenizer_2": words}
        return parts | second | {"add_watermarker": False}
    return parts | {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


@pytest.fixture(scope="module")
def parts() -> dict[str, dict]:
    return {kind: tiny_parts(kind) for kind in (SD, XL)}


@pytest.fixture(scope="module")
def controls(parts) -> dict[str, list[ControlNetModel]]:
    return {kind: [tiny_control(parts[kind]["unet"], seed) for seed in (1, 2)] for kind in (SD, XL)}


def condition(seed: int) -> torch.Tensor:
    return torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def draw(pipe, **arguments) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    defaults = {"num_inference_steps": STEPS, "height": SIDE, "width": SIDE, "output_type": "pt"}
    return pipe("red circle", generator=torch.Generator().manual_seed(5), **(defaults | arguments)).images


@contextmanager
def counting(*nets: ControlNetModel):
    """Count how often the encoder and the hint network of each ControlNet truly run."""
    calls, handles = Counter(), []
    for number, net in enumerate(nets):
        for part, module in (("encoder", net.mid_block), ("hint", net.controlnet_cond_embedding.conv_out)):
            key = (part, number)
            handles.append(module.register_forward_hook(lambda *_, key=key: calls.update([key])))
    yield calls
    for handle in handles:
        handle.remove()


def both(parts, kind, controlnet, **arguments) -> tuple[torch.Tensor, torch.Tensor, list[int], list[int]]:
    """Draw with ours and with diffusers; return both images and the encoder calls per control of both."""
    nets = controlnet if isinstance(controlnet, list) else [controlnet]
    results, numbers = [], []
    for classes in (FAST, REFERENCE):
        with counting(*nets) as calls:
            results.append(draw(classes[kind](**parts[kind], controlnet=controlnet), **arguments))
        numbers.append([calls["encoder", number] for number in range(len(nets))])
    return (*results, *numbers)


@pytest.mark.parametrize("kind", [SD, XL])
class TestIdentical:
    def test_default_arguments(self, parts, controls, kind):
        ours, theirs, our_calls, their_calls = both(parts, kind, controls[kind][0], image=condition(1))
        assert torch.equal(ours, theirs)
        assert our_calls == their_calls == [STEPS]

    def test_control_acts(self, parts, controls, kind):
        """Otherwise every other test would hold for nothing."""
        pipe = FAST[kind](**parts[kind], controlnet=controls[kind][0])
        with_control = draw(pipe, image=condition(1), **FEW)
        assert not torch.equal(with_control, draw(PLAIN[kind](**parts[kind]), **FEW))
        assert not torch.equal(with_control, draw(pipe, image=condition(2), **FEW))

    def test_half_window(self, parts, controls, kind):
        arguments = {"image": condition(1), "control_guidance_end": 0.5}
        ours, theirs, our_calls, their_calls = both(parts, kind, controls[kind][0], **arguments)
        assert torch.equal(ours, theirs)
        assert (our_calls, their_calls) == ([5], [10])

    def test_unet_gets_nothing_from_a_skipped_control(self, parts, controls, kind):
        received = []
        watch = parts[kind]["unet"].register_forward_pre_hook(
            lambda unet, args, inputs: received.append(inputs["mid_block_additional_residual"]), with_kwargs=True
        )
        pipe = FAST[kind](**parts[kind], controlnet=controls[kind][0])
        draw(pipe, image=condition(1), control_guidance_start=0.5, **FEW)
        watch.remove()
        assert [residual is None for residual in received] == [True, True, False, False]

    @pytest.mark.parametrize("guess_mode", [False, True])
    def test_scale_zero_is_the_plain_pipeline(self, parts, controls, kind, guess_mode):
        arguments = {"image": condition(1), "controlnet_conditioning_scale": 0.0, "guess_mode": guess_mode}
        ours, theirs, our_calls, their_calls = both(parts, kind, controls[kind][0], **arguments)
        assert torch.equal(ours, theirs) and torch.equal(ours, draw(PLAIN[kind](**parts[kind])))
        assert (our_calls, their_calls) == ([0], [10])

    @pytest.mark.parametrize("guess_mode", [False, True])
    def test_two_controls_with_windows_of_their_own(self, parts, controls, kind, guess_mode):
        arguments = {
            "image": [condition(1), condition(2)],
            "controlnet_conditioning_scale": [0.7, 1.3],
            "control_guidance_start": [0.0, 0.6],
            "control_guidance_end": [0.3, 0.9],
            "guess_mode": guess_mode,
        }
        ours, theirs, our_calls, their_calls = both(parts, kind, controls[kind], **arguments)
        assert torch.equal(ours, theirs)
        assert (our_calls, their_calls) == ([3, 3], [10, 10])

    def test_guess_mode(self, parts, controls, kind):
        arguments = {"image": condition(1), "guess_mode": True, "control_guidance_start": 0.4}
        ours, theirs, our_calls, _ = both(parts, kind, controls[kind][0], **arguments)
        assert torch.equal(ours, theirs)
        assert our_calls == [6]

    def test_guess_mode_without_guidance(self, parts, controls, kind):
        arguments = {
            "image": condition(1),
            "guess_mode": True,
            "guidance_scale": 1.0,
            "control_guidance_end": 0.5,
        } | FEW
        ours, theirs, *_ = both(parts, kind, controls[kind][0], **arguments)
        assert torch.equal(ours, theirs)

    def test_hint_is_embedded_once(self, parts, controls, kind):
        pipe = FAST[kind](**parts[kind], controlnet=controls[kind])
        with counting(*controls[kind]) as calls:
            draw(pipe, image=[condition(1), condition(2)], **FEW)
            assert (calls["hint", 0], calls["hint", 1]) == (1, 1)
            draw(pipe, image=[condition(3), condition(4)], **FEW)  # nothing is kept from call to call
            assert (calls["hint", 0], calls["hint", 1]) == (2, 2)

    def test_scales_of_one_and_of_zero(self, parts, controls, kind):
        pipe = FAST[kind](**parts[kind], controlnet=controls[kind][0])
        reference = draw(REFERENCE[kind](**parts[kind], controlnet=controls[kind][0]), image=condition(1))
        assert torch.equal(draw(pipe, image=condition(1), connection_scales=[1.0] * CONNECTIONS), reference)
        with counting(controls[kind][0]) as calls:
            off = draw(pipe, image=condition(1), connection_scales=[0.0] * CONNECTIONS)
        assert torch.equal(off, draw(PLAIN[kind](**parts[kind]))) and not calls


@pytest.mark.parametrize(
    "arguments", [{"num_images_per_prompt": 2}, {"guidance_scale": 1.0}, {"eta": 0.5}, {"timesteps": [900, 400, 30]}]
)
def test_other_arguments_are_diffusers(parts, controls, arguments):
    if "timesteps" in arguments:  # DDIM takes none
        parts = {SD: parts[SD] | {"scheduler": EulerDiscreteScheduler(timestep_spacing="trailing")}}
    arguments = FEW | {"image": condition(1), "control_guidance_end": 0.7} | arguments
    ours, theirs, *_ = both(parts, SD, controls[SD][0], **arguments)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("config", [{"global_pool_conditions": True}, {"controlnet_conditioning_channel_order": "bgr"}])
def test_other_controlnets(parts, config):
    net = tiny_control(parts[SD]["unet"], 3, **config)
    with counting(net) as calls:
        ours = draw(FAST[SD](**parts[SD], controlnet=net), image=condition(1), control_guidance_end=0.5)
    assert calls == {("encoder", 0): 5, ("hint", 0): 1}
    reference = REFERENCE[SD](**parts[SD], controlnet=net)
    assert torch.equal(ours, draw(reference, image=condition(1), control_guidance_end=0.5))


def test_one_controlnet_listed_twice(parts, controls):
    net = controls[SD][0]
    arguments = {"image": [condition(1), condition(2)], "control_guidance_end": [0.5, 1.0]}
    with counting(net) as calls:
        ours = draw(FAST[SD](**parts[SD], controlnet=[net, net]), **arguments)
    assert calls == {("encoder", 0): 15, ("hint", 0): 2}
    assert torch.equal(ours, draw(REFERENCE[SD](**parts[SD], controlnet=[net, net]), **arguments))


@pytest.mark.parametrize("in_place", [False, True])
def test_callback_may_change_the_condition(parts, controls, in_place):
    """diffusers lets a callback replace `image`; a hint kept from the old one would be wrong."""

    def darken(pipe, step, timestep, tensors):
        if step != 3:
            return {}
        return {"image": tensors["image"].mul_(0.1) if in_place else tensors["image"] * 0.1}

    def arguments():
        inputs = {"callback_on_step_end_tensor_inputs": ["image"], "callback_on_step_end": darken}
        return inputs | {"image": condition(1), "num_inference_steps": 6}

    with counting(controls[SD][0]) as calls:
        ours = draw(FAST[SD](**parts[SD], controlnet=controls[SD][0]), **arguments())
    assert calls["hint", 0] == 2
    assert torch.equal(ours, draw(REFERENCE[SD](**parts[SD], controlnet=controls[SD][0]), **arguments()))


def test_inference_mode(parts, controls):
    pipe, arguments = FAST[SD](**parts[SD], controlnet=controls[SD][0]), {"image": condition(1)} | FEW
    with torch.inference_mode(), counting(controls[SD][0]) as calls:
        inside = draw(pipe, **arguments)
    assert calls["hint", 0] == 1
    assert torch.equal(inside, draw(pipe, **arguments))


class TestConnectionScales:
    def test_each_connection_by_its_factor(self, controls):
        """Through the ControlNet itself: residual i is multiplied by factor i, the middle by the last."""
        net, factors = controls[SD][0], [0.5, 1.0, 2.0, 0.0, 3.0]
        torch.manual_seed(0)
        inputs = {
            "sample": torch.randn(2, 4, 8, 8),
            "timestep": torch.tensor(7),
            "encoder_hidden_states": torch.randn(2, 5, WIDTH),
            "controlnet_cond": condition(1).repeat(2, 1, 1, 1),
            "conditioning_scale": 0.8,
            "guess_mode": False,
            "return_dict": False,
        }
        with torch.no_grad():
            down, middle = net(**inputs)
            with fast_control(net, factors):
                our_down, our_middle = net(**inputs)
        for ours, theirs, factor in zip([*our_down, our_middle], [*down, middle], factors):
            assert torch.equal(ours, theirs * factor)
        assert "forward" not in vars(net) and not hasattr(net, "_diffusers_hook")

    def test_one_list_per_control(self, parts, controls):
        """The second control switched off by its list leaves the first alone."""
        off_by_list = {"connection_scales": [[1.0] * CONNECTIONS, [0.0] * CONNECTIONS]}
        pipe = FAST[SD](**parts[SD], controlnet=controls[SD])
        with counting(*controls[SD]) as calls:
            ours = draw(pipe, image=[condition(1), condition(2)], **off_by_list)
        assert (calls["encoder", 0], calls["encoder", 1]) == (STEPS, 0)
        alone = draw(FAST[SD](**parts[SD], controlnet=controls[SD][0]), image=condition(1))
        assert torch.equal(ours, alone)

    @pytest.mark.parametrize("scales", [[], [1.0] * 4, [1.0] * 13, [[1.0] * 5, [1.0] * 5]])
    def test_wrong_number(self, parts, controls, scales):
        with pytest.raises(ValueError, match=r"connection_scales has .* (5 connections|but there are 1)"):
            draw(FAST[SD](**parts[SD], controlnet=controls[SD][0]), image=condition(1), connection_scales=scales)

    def test_stable_diffusion_has_13_and_xl_10(self):
        with torch.device("meta"):
            sd = ControlNetModel()
            xl = ControlNetModel(
                block_out_channels=(320, 640, 1280),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            )
        for net, number in ((sd, 13), (xl, 10)):
            with fast_control(net, [1.0] * number), pytest.raises(InputError), fast_control(net, [1.0] * (number + 1)):
                pass


class TestResolutionWeighting:
    @pytest.mark.parametrize("side, weight", [(64, 1.0), (32, 2.0), (16, 4.0), (8, 8.0), (128, 0.5)])
    def test_weights_of_the_paper(self, side, weight):
        assert resolution_weight(torch.empty(1, 1, side, side)) == weight

    @pytest.mark.parametrize("kind", [SD, XL])
    def test_against_a_direct_computation(self, parts, controls, kind):
        """Residuals that reach the U-Net: zero for the empty prompt, 64/h_i times the ControlNet's for the other half."""
        net, unet = controls[kind][0], parts[kind]["unet"]
        raw, seen = [], []
        watch_net = net.controlnet_mid_block.register_forward_hook(lambda *call: raw.append(call[2]))
        outer = [layer.register_forward_hook(lambda *call: raw.append(call[2])) for layer in net.controlnet_down_blocks]
        names = ("down_block_additional_residuals", "mid_block_additional_residual")
        watch_unet = unet.register_forward_pre_hook(
            lambda m, a, k: seen.append([k[name] for name in names]), with_kwargs=True
        )
        pipe = FAST[kind](**parts[kind], controlnet=net)
        draw(
            pipe,
            image=condition(1),
            controlnet_conditioning_scale=0.5,
            num_inference_steps=1,
            guidance_resolution_weighting=True,
        )
        for handle in (watch_net, watch_unet, *outer):
            handle.remove()
        down, middle = seen[0]
        assert [residual.shape[-1] for residual in raw] == [8, 8, 4, 4, 4]
        for ours, theirs, side in zip([*down, middle], raw, [8, 8, 4, 4, 4]):
            assert not ours[0].any() and len(theirs) == 1
            torch.testing.assert_close(ours[1:], theirs * 0.5 * (64 / side), rtol=1e-6, atol=0)

    def test_skips_too(self, parts, controls):
        pipe = FAST[SD](**parts[SD], controlnet=controls[SD][0])
        with counting(controls[SD][0]) as calls:
            draw(pipe, image=condition(1), control_guidance_end=0.5, guidance_resolution_weighting=True)
        assert calls == {("encoder", 0): 5, ("hint", 0): 1}

    @pytest.mark.parametrize("arguments", [{"guess_mode": True}, {"guidance_scale": 1.0}])
    def test_impossible_together(self, parts, controls, arguments):
        pipe = FAST[SD](**parts[SD], controlnet=controls[SD][0])
        with pytest.raises(InputError, match="guidance_resolution_weighting"):
            draw(pipe, image=condition(1), guidance_resolution_weighting=True, **arguments)


class TestPlaces:
    """Where hooks meet other machinery."""

    @pytest.mark.parametrize("number", [1, 2])
    def test_model_offload(self, parts, controls, number):
        """Offloading removes and renews its own hooks inside the call; two calls must work, and leave no trace."""
        several, image = controls[SD][:number], [condition(1), condition(2)][:number]
        pipe = FAST[SD](**parts[SD], controlnet=several)
        arguments = {"image": image, "control_guidance_end": 0.5} | FEW
        expected = draw(pipe, **arguments)
        pipe.enable_model_cpu_offload(device="cpu")
        assert torch.equal(draw(pipe, **arguments), expected) and torch.equal(draw(pipe, **arguments), expected)
        pipe.remove_all_hooks()
        # accelerate leaves the bound method on the module
        assert all(net.forward == MethodType(type(net).forward, net) for net in (pipe.controlnet, *several))

    def test_model_is_left_as_it_was_after_an_error(self, parts, controls):
        net = controls[SD][0]
        with pytest.raises(TypeError, match="image must be passed"):
            draw(FAST[SD](**parts[SD], controlnet=net), image=None)
        assert "forward" not in vars(net) and "forward" not in vars(net.controlnet_cond_embedding)

    def test_compiled(self, parts, controls):
        """`torch.compile` around the ControlNet: skipped just as well, with nothing of ours in the graph."""
        torch._dynamo.reset()
        net, graphs = controls[SD][0], []
        pipe = FAST[SD](**parts[SD], controlnet=net)
        arguments = {"image": condition(1), "control_guidance_end": 0.5} | FEW
        expected = draw(pipe, **arguments)
        pipe.controlnet = torch.compile(net, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
        assert torch.equal(draw(pipe, **arguments), expected)
        compiled = len(graphs)
        assert torch.equal(draw(pipe, **arguments), expected) and len(graphs) == compiled


LOAD = """
import json, sys, torch
import diffusers_ext.pipelines
from diffusers import DiffusionPipeline
diffusers_ext.pipelines.__path__.insert(0, sys.argv[1])  # this checkout's, also where another one is installed
for arguments in json.loads(sys.argv[2]):
    pipe = DiffusionPipeline.from_pretrained(**arguments, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    calls = []
    pipe.controlnet.mid_block.register_forward_hook(lambda *_: calls.append(1))
    extra = {"image": torch.load(sys.argv[3]), "control_guidance_end": 0.5, "output_type": "pt"}
    image = pipe("red circle", num_inference_steps=10, generator=torch.Generator().manual_seed(5), **extra).images
    print("RESULT", type(pipe).__module__, type(pipe).__name__, len(calls), torch.equal(image, torch.load(sys.argv[4])))
"""


def test_loads_in_a_fresh_process(parts, controls, tmp_path):
    """By the path of the file over a folder that diffusers saved, and by the one-line code file beside the weights."""
    jobs = []
    for kind in (SD, XL):
        reference = REFERENCE[kind](**parts[kind], controlnet=controls[kind][0])
        reference.save_pretrained(tmp_path / "diffusers" / kind)
        jobs.append(
            {
                "pretrained_model_name_or_path": str(tmp_path / "diffusers" / kind),
                "custom_pipeline": str(PIPELINES / f"{kind}.py"),
            }
        )
    folder = tmp_path / "ours"
    FAST[SD](**parts[SD], controlnet=controls[SD][0]).save_pretrained(folder)
    again = FAST[SD].from_pretrained(folder, trust_remote_code=True)  # by the class: what was saved is enough
    arguments = {"image": condition(1), "control_guidance_end": 0.5}
    expected = draw(REFERENCE[SD](**parts[SD], controlnet=controls[SD][0]), **arguments)
    assert torch.equal(draw(again, **arguments), expected)
    jobs.append({"pretrained_model_name_or_path": str(folder)})
    torch.save(condition(1), tmp_path / "condition.pt")
    torch.save(expected, tmp_path / "expected.pt")
    command = [
        sys.executable,
        "-c",
        LOAD,
        str(PIPELINES),
        json.dumps(jobs),
        str(tmp_path / "condition.pt"),
        str(tmp_path / "expected.pt"),
    ]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    names = {kind: FAST[kind].__name__ for kind in FAST}
    assert [line.split()[1:] for line in run.stdout.splitlines() if line.startswith("RESULT")] == [
        [f"diffusers_modules.local.{SD}", names[SD], "5", "True"],
        [f"diffusers_modules.local.{XL}", names[XL], "5", "False"],  # another model: it only has to load and skip
        [f"diffusers_ext.pipelines.{SD}", names[SD], "5", "True"],
    ]
