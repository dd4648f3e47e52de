"""What a push uploads."""

from types import SimpleNamespace

from huggingface_hub.utils import filter_repo_objects

from diffusers_ext import hub


def test_a_push_uploads_the_model_and_not_the_checkpoints(tmp_path, monkeypatch):
    calls = {}

    def create_repo(repo_id, **settings):
        calls["create"] = (repo_id, settings)
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    monkeypatch.setattr(hub, "create_repo", create_repo)
    monkeypatch.setattr(hub, "upload_folder", lambda **settings: calls.update(upload=settings))
    hub.push(tmp_path / "circles", SimpleNamespace(hub_model_id=None, hub_token="hf_x"))
    assert calls["create"] == ("circles", {"exist_ok": True, "token": "hf_x"})
    assert calls["upload"]["repo_id"] == "me/circles" and calls["upload"]["folder_path"] == tmp_path / "circles"
    assert {"checkpoint-*/**", "logs/**"} <= set(calls["upload"]["ignore_patterns"])
    hub.push(tmp_path / "circles", SimpleNamespace(hub_model_id="other", hub_token=None))
    assert calls["create"][0] == "other"


def test_a_pushed_lora_is_the_only_one_of_its_repository():
    """load_lora_weights of a name takes the first file called so, wherever it lies."""
    lora = "pytorch_lora_weights.safetensors"
    names = [lora, f"best/lora/{lora}", f"checkpoint-40/lora/{lora}", "best/model.safetensors", "session-3/config.json"]
    assert list(filter_repo_objects(names, ignore_patterns=hub.RUN_FILES)) == [lora, "best/model.safetensors"]
