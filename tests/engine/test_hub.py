"""What a push uploads."""

from types import SimpleNamespace

import pytest
from huggingface_hub.utils import filter_repo_objects

from diffusers_ext.engine import hub
from diffusers_ext.errors import InputError


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


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(hub.constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_x")


def asked(name=None, token=None, push=True):
    return SimpleNamespace(hub_model_id=name, hub_token=token, push_to_hub=push)


@pytest.mark.parametrize("name", ("a b", "me/no/such", "me/--x", "me/x.git", "x" * 200, "me/"))
def test_a_bad_name_is_refused_before_training(online, tmp_path, name):
    with pytest.raises(InputError, match="--hub_model_id OWNER/NAME"):
        hub.check_push(tmp_path, asked(name))


def test_the_folder_s_own_name_is_checked_too(online, tmp_path):
    with pytest.raises(InputError, match="my run"):
        hub.check_push(tmp_path / "my run", asked())
    hub.check_push(tmp_path / "my-run", asked())


def test_offline_and_without_a_token_are_refused(online, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(InputError, match="token"):
        hub.check_push(tmp_path / "a", asked("me/a"))
    hub.check_push(tmp_path / "a", asked("me/a", "hf_x"))
    monkeypatch.setattr(hub.constants, "is_offline_mode", lambda: True)
    with pytest.raises(InputError, match="offline"):
        hub.check_push(tmp_path / "a", asked("me/a", "hf_x"))


@pytest.mark.parametrize("error", (OSError("403 Forbidden"), RuntimeError("no route to host")))
def test_missing_rights_are_found_when_the_repository_is_made(tmp_path, monkeypatch, error):
    def create_repo(*_, **__):
        raise error

    monkeypatch.setattr(hub, "create_repo", create_repo)
    with pytest.raises(InputError, match=f"me/a: .*{error}"):
        hub.open_repository(tmp_path, asked("me/a"))


def test_a_repository_that_may_only_be_read_is_refused(tmp_path, monkeypatch):
    def auth_check(self, name, write):
        raise PermissionError(f"{name} write={write}")

    monkeypatch.setattr(hub, "create_repo", lambda *_, **__: SimpleNamespace(repo_id="them/a"))
    monkeypatch.setattr(hub.HfApi, "auth_check", auth_check)
    with pytest.raises(InputError, match="them/a write=True"):
        hub.open_repository(tmp_path, asked("them/a"))


def test_a_failed_upload_says_how_to_push_later(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(hub, "push", fail)
    with pytest.raises(InputError, match=r"finished and saved.*diffusers-ext push .* me/a"):
        hub.publish(tmp_path, asked("me/a"))
    hub.publish(tmp_path, asked("me/a", push=False))
