"""Every public call shows what it takes: to `inspect`, so to editors, to diffusers and to our own code."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, ModelMixin, StableDiffusionControlNetPipeline
from PIL import Image

import diffusers_ext.pipelines
from diffusers_ext import RewardReranker, embedded_model
from diffusers_ext.control.hint import new_controlnet
from diffusers_ext.pipelines.controlnet_fast import StableDiffusionControlNetFastPipeline
from diffusers_ext.pipelines.controlnet_rerank import StableDiffusionControlNetRerankPipeline
from diffusers_ext.pipelines.noise_search import NoiseSearchPipeline
from diffusers_ext.pipelines.reward_rerank import RewardRerankPipeline
from diffusers_ext.publish.carded import CardedModel
from diffusers_ext.publish.loadable import HubLoadable
from diffusers_ext.rerank.noise_search import NoiseSearch
from diffusers_ext.rerank.reranker import RerankMixin

PIPELINES = [
    f"{module}.{name}"
    for module, name in (
        ("controlnet_fast", "StableDiffusionControlNetFastPipeline"),
        ("controlnet_fast_sdxl", "StableDiffusionXLControlNetFastPipeline"),
        ("controlnet_rerank", "StableDiffusionControlNetRerankPipeline"),
        ("controlnet_rerank_sdxl", "StableDiffusionXLControlNetRerankPipeline"),
        ("noise_search", "NoiseSearchPipeline"),
        ("reward_rerank", "RewardRerankPipeline"),
        ("reward_rerank_sdxl", "RewardRerankXLPipeline"),
    )
]
BEHIND = "arguments of what is wrapped, which is known once it is there: then the object has a signature of its own"
# Names that end so may hide arguments, for these reasons.
MAY_HIDE = {
    "CallMixin.__call__": BEHIND,
    "RerankMixin.__call__": BEHIND,
    "ControlRerankMixin.__call__": BEHIND,
    "FastControlMixin.__call__": BEHIND,
    "NoiseSearchMixin.__call__": BEHIND,
    "NoiseSearchPipeline.__call__": "diffusers' own **kwargs, of arguments that it deprecates",
    "RewardReranker.__call__": BEHIND,
    "NoiseSearch.__call__": BEHIND,
    "load_pipeline": "settings of DiffusionPipeline.from_pretrained, which names none either",
    "BackboneOwner.from_pretrained": "settings of ModelMixin.from_pretrained, which names none either",
    "HubLoadable.from_pretrained": "settings of DiffusionPipeline.from_pretrained, which names none either",
    "HubLoadable.download": "settings of DiffusionPipeline.download, which names none either",
    "HubLoadable.load_config": "settings of DiffusionPipeline.load_config",
    "HubLoadable.save_config": "those of diffusers' push",
    "VMFMixtureClassifier.from_components": "settings of the classifier, which names them",
    "VMFMixtureClassifier.of": "settings of the classifier, which names them",
    "digest_of_values": "values, any number",
    "BaseFiles.load": "parts of a pipeline, by their names there",
    "Trainable.loader": "settings of torch's DataLoader",
    "Samples.loader": "settings of torch's DataLoader",
    "StreamedPairs.loader": "settings of torch's DataLoader",
    "load_base": "parts of a pipeline, by their names there",
    "EncoderCache.of": "what values depend on, by name",
    "draw": "arguments of the pipeline that is given",
    "Remember.new_forward": "arguments of the module that is hooked",
    "Chunked.new_forward": "arguments of the module that is hooked",
    "Bench.run": "options of a training, which names them",
    "set_attention": "networks, any number",
}


def parameters(function) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def hidden(function) -> set:
    """The kinds of (*args, **kwargs) without a type: `*counter: int` hides nothing."""
    return {
        value.kind
        for value in parameters(function).values()
        if value.kind in (value.VAR_POSITIONAL, value.VAR_KEYWORD) and value.annotation in (value.empty, Any, "Any")
    }


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_shows_diffusers_arguments_and_its_own(name):
    module, _, kind = name.partition(".")
    cls = getattr(importlib.import_module(f"diffusers_ext.pipelines.{module}"), kind)
    theirs = next(base for base in cls.__mro__ if base.__module__.startswith("diffusers.") and "__call__" in vars(base))
    ours, base = parameters(cls.__call__), parameters(theirs.__call__)
    assert inspect.Parameter.VAR_POSITIONAL not in hidden(cls.__call__)
    assert hidden(cls.__call__) <= hidden(theirs.__call__)
    assert base.keys() - ours.keys() <= set(NoiseSearchPipeline.refused if "noise" in name else ())
    assert len(ours.keys() - base.keys()) >= 2
    assert list(ours)[:3] == list(base)[:3]
    for method in ("save_pretrained", "push_to_hub"):
        for option, value in parameters(getattr(DiffusionPipeline, method)).items():
            if option not in ("kwargs", "use_flashpack"):
                assert parameters(getattr(cls, method))[option].default == value.default, (method, option)
        positions = list(parameters(getattr(DiffusionPipeline, method)))[:5]
        assert list(parameters(getattr(cls, method)))[:5] == positions


def test_models_save_and_push_with_diffusers_arguments():
    for method in ("save_pretrained", "push_to_hub"):
        theirs = [name for name in parameters(getattr(ModelMixin, method)) if name not in ("kwargs", "use_flashpack")]
        assert list(parameters(getattr(CardedModel, method)))[: len(theirs)] == theirs


@pytest.fixture(scope="module")
def parts():
    pipe = DiffusionPipeline.from_pretrained(embedded_model())
    torch.manual_seed(0)
    own = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    return own | {"controlnet": new_controlnet(pipe.unet, 4), "requires_safety_checker": False}


def first_pixel(prompts, images):
    return torch.tensor([float(sum(image.getpixel((5, 5)))) for image in images])


GIVEN = {
    "image": Image.new("RGB", (64, 64), "white"),
    "num_candidates": 2,
    "keep": 2,
    "seed": 0,
    "num_inference_steps": 2,
}


def test_a_reranker_shows_its_pipelines_arguments_and_finds_the_generator(parts):
    scores = []
    for kind in (StableDiffusionControlNetPipeline, StableDiffusionControlNetFastPipeline):
        pipe = kind(**parts)
        pipe.set_progress_bar_config(disable=True)
        reranker = RewardReranker(pipe, first_pixel)
        assert {"generator", "image", "num_candidates", "prune"} <= parameters(reranker).keys()
        scores.append(reranker("red circle", **GIVEN).scores)
    assert "connection_scales" in parameters(reranker)
    assert scores[0] == scores[1]


def test_a_reranker_and_a_search_around_a_pipeline_that_chooses(parts):
    """They draw from what it extends, and its own reward is not asked for."""
    own = {name: part for name, part in parts.items() if name != "controlnet"}
    given = {name: value for name, value in GIVEN.items() if name != "image"}
    pipes = [kind(**own, reward_model=None) for kind in (RewardRerankPipeline, NoiseSearchPipeline)]
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
        assert pipe.plain_call.__func__.__qualname__.startswith("StableDiffusionPipeline")
    scores = [RewardReranker(pipe, first_pixel)("red circle", **given).scores for pipe in pipes]
    assert scores[0] == scores[1] and len(scores[0]) == 2
    searches = [NoiseSearch(pipe, first_pixel) for pipe in pipes]
    assert "latents" not in parameters(searches[0]) and "radius" in parameters(searches[0])
    found = [search("red circle", num_candidates=2, starts=2, num_inference_steps=2).scores for search in searches]
    assert found[0] == found[1]


def test_mixins_before_one_another(parts):
    class Both(RerankMixin, StableDiffusionControlNetFastPipeline):
        reward_model = staticmethod(first_pixel)

    class Mine(Both):
        def __call__(self, prompt, mood):
            return super().__call__(f"{mood} {prompt}", **GIVEN, connection_scales=[0.0] * 7)

    class Another(Mine):
        pass

    assert {"connection_scales", "num_candidates", "generator"} <= parameters(Both.__call__).keys()
    assert list(parameters(Another.__call__)) == ["self", "prompt", "mood"]
    pipe = Another(**parts)
    pipe.set_progress_bar_config(disable=True)
    assert "connection_scales" in parameters(pipe.plain_call) and "num_candidates" not in parameters(pipe.plain_call)
    assert len(pipe("circle", "red").scores) == 2


def test_what_follows_a_parameter_that_was_taken_out_is_keyword_only():
    call = parameters(StableDiffusionControlNetRerankPipeline.__call__)
    assert call["return_dict"].kind is inspect.Parameter.KEYWORD_ONLY
    assert call["output_type"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert call["clip_skip"].kind is inspect.Parameter.KEYWORD_ONLY


def public() -> Iterator[tuple[str, object, type | None]]:
    """(name, function, the class that it is of) of everything public that the package defines."""
    packages = [pkgutil.walk_packages(diffusers_ext.__path__, "diffusers_ext.")]
    packages += [pkgutil.iter_modules(diffusers_ext.pipelines.__path__, "diffusers_ext.pipelines.")]
    for module in (module.name for package in packages for module in package):
        words = module.split(".")
        if any(word.startswith("_") for word in words) or words[1] in ("embedded", "annotate", "rewards"):
            continue  # rewards have tests of their own
        home = importlib.import_module(module)
        for name, value in vars(home).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module:
                continue
            if inspect.isclass(value):
                for method, function in vars(value).items():
                    function = getattr(function, "__func__", function)
                    if inspect.isfunction(function) and (method == "__call__" or not method.startswith("_")):
                        yield f"{value.__name__}.{method}", function, value
            elif inspect.isfunction(value):
                yield name, value, None


def parents(function, owner: type | None) -> list:
    """The functions of the same name that a method overrides, of other packages."""
    found = (vars(base).get(function.__name__) for base in owner.__mro__[1:]) if owner else ()
    found = [getattr(each, "__func__", each) for each in found]
    return [each for each in found if inspect.isfunction(each) and not each.__module__.startswith("diffusers_ext")]


def test_no_public_function_hides_its_arguments():
    """But for those that override another package's function and name all that it names."""
    hiding, seen = [], 0
    for name, function, owner in public():
        seen += 1
        if not hidden(function) or name in MAY_HIDE:
            continue
        above = parents(function, owner)
        if above and not parameters(above[0]).keys() - parameters(function).keys() - {"kwargs", "args"}:
            continue
        hiding.append(f"{function.__module__}.{name}{inspect.signature(function)}")
    assert seen > 500 and not hiding, "\n".join(hiding)


def test_hub_loadable_is_first_in_every_pipeline():
    for name in PIPELINES:
        module, _, kind = name.partition(".")
        assert getattr(importlib.import_module(f"diffusers_ext.pipelines.{module}"), kind).__mro__[1] is HubLoadable
