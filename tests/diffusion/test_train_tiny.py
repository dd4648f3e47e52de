"""training/train_tiny_text_to_image.py from nothing to a model that any diffusers program loads."""

from pathlib import Path

import pytest

from diffusers_ext.engine.run_folder import read_metrics

SCRIPT = Path(__file__).parents[2] / "training" / "train_tiny_text_to_image.py"
SMALL = (
    "--autoencoder_steps 2 --max_train_steps 2 --train_batch_size 2 --autoencoder_batch_size 2 --validation_samples 2"
)


@pytest.mark.launch
@pytest.mark.parametrize("processes", [1, 2])
def test_both_stages_run_and_load_elsewhere(launch, fresh, circles, tmp_path, processes):
    run = tmp_path / "model"
    source = ["--train_data_dir", circles] if processes == 1 else ["--samples", 40]
    launch(SCRIPT, "--output_dir", run, *SMALL.split(), *source, processes=processes)
    for folder in (run, run / "autoencoder"):
        assert [row["step"] for row in read_metrics(folder) if "loss" in row] == [1, 2]
    assert "train_tiny_text_to_image.py" in (run / "README.md").read_text()
    code = f"""
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(run)!r})
assert {{part.dtype for part in (pipe.vae, pipe.unet, pipe.text_encoder)}} == {{torch.float32}}
image = pipe("red circle", num_inference_steps=2, output_type="pt").images
assert image.shape == (1, 3, 64, 64) and image.isfinite().all()
"""
    fresh(code)


def test_a_finished_first_stage_is_not_repeated(launch, tmp_path):
    run = tmp_path / "model"
    launch(SCRIPT, "--output_dir", run, *SMALL.split(), "--samples", 40)
    again = launch(SCRIPT, "--output_dir", run, *SMALL.split(), "--samples", 40, "--resume_from_checkpoint", "latest")
    assert again.stdout.count("resuming from") == 2
    assert [row["step"] for row in read_metrics(run / "autoencoder")] == [1, 2]
