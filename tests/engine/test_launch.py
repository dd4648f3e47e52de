"""What accelerate's environment asks for is what the options say, or refused."""

from types import SimpleNamespace

import pytest

from diffusers_ext.engine.launch import check_launch, check_parallelism
from diffusers_ext.errors import InputError

NAMES = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")


def options(steps=1, precision=None):
    return SimpleNamespace(gradient_accumulation_steps=steps, mixed_precision=precision)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ("true", "1", "True", "yes"))
def test_shared_out_weights_are_refused(name, value):
    with pytest.raises(InputError, match=f"ACCELERATE_USE_{name}.*supported are one process"):
        check_parallelism({f"ACCELERATE_USE_{name}": value, "FSDP_VERSION": "2"})


@pytest.mark.parametrize("value", ("false", "0", "False"))
def test_what_is_off_is_not_refused(value):
    check_launch(options(), {f"ACCELERATE_USE_{name}": value for name in NAMES})


def test_accumulation_is_one_number():
    for given, steps in (("4", 1), ("2", 4), ("many", 1)):
        with pytest.raises(InputError, match="--gradient_accumulation_steps"):
            check_launch(options(steps), {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": given})
    check_launch(options(4), {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"})


def test_precision_is_one_that_works():
    for value in ("fp8", "float32"):
        with pytest.raises(InputError, match="--mixed_precision no, fp16, bf16"):
            check_launch(options(), {"ACCELERATE_MIXED_PRECISION": value})
        check_launch(options(precision="no"), {"ACCELERATE_MIXED_PRECISION": value})
    check_launch(options(), {"ACCELERATE_MIXED_PRECISION": "bf16"})


def test_half_precision_needs_a_gpu(monkeypatch):
    for given, environment in (("fp16", {}), (None, {"ACCELERATE_MIXED_PRECISION": "fp16"})):
        monkeypatch.setattr("diffusers_ext.engine.launch._has_accelerator", lambda: False)
        with pytest.raises(InputError, match="fp16 needs a GPU"):
            check_launch(options(precision=given), environment)
        monkeypatch.setattr("diffusers_ext.engine.launch._has_accelerator", lambda: True)
        check_launch(options(precision=given), environment)
    monkeypatch.setattr("diffusers_ext.engine.launch._has_accelerator", lambda: False)
    check_launch(options(precision="no"), {"ACCELERATE_MIXED_PRECISION": "fp16"})
