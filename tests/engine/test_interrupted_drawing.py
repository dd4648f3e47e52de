"""SIGTERM while samples are drawn: the step is saved, drawing ends, and the resumed run draws what was left."""

import os
import signal

import pytest
from test_resume import train

from diffusers_ext.control import previews

MORE = ("--validation_steps", 1, "--checkpointing_steps", 100, "--logging_steps", 1)


@pytest.mark.parametrize("step", (1, 2))  # in the middle, and the last
def test_an_interrupted_drawing_is_made_up_for(untrained, circles, tmp_path, monkeypatch, step):
    monkeypatch.setattr(previews, "STEPS", 2)
    straight, run = tmp_path / "straight", tmp_path / "run"
    train(untrained, circles, straight, *MORE)
    call = previews.ControlPreview.__call__

    def interrupted(self, now):
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return call(self, now)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(previews.ControlPreview, "__call__", interrupted)
        train(untrained, circles, run, *MORE)
    assert ended.value.code == 128 + signal.SIGTERM
    assert (run / f"checkpoint-{step}").is_dir() and not (run / f"samples/step-{step:06d}.png").exists()
    train(untrained, circles, run, *MORE, "--resume_from_checkpoint", "latest")
    for name in ("metrics.jsonl", "diffusion_pytorch_model.safetensors", f"samples/step-{step:06d}.png"):
        assert (run / name).read_bytes() == (straight / name).read_bytes(), name
