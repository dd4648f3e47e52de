"""The loopback Hub does what the client asks for, or says that it does not; and pushes arrive there as diffusers has them."""

import fresh_processes
import pytest

from diffusers_ext.publish.loopback_hub import LoopbackHub

API = """
from huggingface_hub import HfApi
api = HfApi(token="hf_x")
def refused(call, *arguments, **settings):
    try:
        call(*arguments, **settings)
    except Exception as error:
        return type(error).__name__
    return "accepted"
"""
PIECES = {
    "deletions": """
api.create_repo("me/deletions")
for name in ("a.bin", "b.txt", "sub/c.txt", "sub/d.txt"):
    api.upload_file(path_or_fileobj=b"1", path_in_repo=name, repo_id="me/deletions")
api.delete_file("a.bin", "me/deletions")
api.delete_folder("sub", "me/deletions")
result = [api.list_repo_files("me/deletions"), refused(api.delete_file, "a.bin", "me/deletions")]
api.upload_folder(repo_id="me/deletions", folder_path="files", delete_patterns="*.txt")
result += [api.list_repo_files("me/deletions")]
api.delete_repo("me/deletions")
result += [api.repo_exists("me/deletions")]
""",
    "pull requests": """
api.create_repo("me/pulls")
api.upload_file(path_or_fileobj=b"1", path_in_repo="main.txt", repo_id="me/pulls")
info = api.upload_file(path_or_fileobj=b"2", path_in_repo="pr.txt", repo_id="me/pulls", create_pr=True)
folder = snapshot_download("me/pulls", revision=info.pr_revision)
api.upload_file(path_or_fileobj=b"3", path_in_repo="more.txt", repo_id="me/pulls", revision=info.pr_revision)
result = [info.pr_num, api.list_repo_files("me/pulls"), sorted(os.listdir(folder)),
          api.list_repo_files("me/pulls", revision="refs/pr/1"), refused(snapshot_download, "me/pulls", revision="refs/pr/2")]
""",
    "private": """
api.create_repo("me/secret", private=True)
api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id="me/secret")
api.create_repo("me/open")
result = [api.repo_info("me/secret").private, api.repo_info("me/open").private, api.list_repo_files("me/secret"),
          refused(HfApi(token=False).repo_info, "me/secret"), refused(snapshot_download, "me/secret", token=False),
          os.path.basename(api.hf_hub_download("me/secret", "a.txt")), api.whoami()["name"],
          refused(HfApi(token=False).whoami)]
""",
    "revisions": """
api.create_repo("me/revisions")
first = api.upload_file(path_or_fileobj=b"1", path_in_repo="a/b.txt", repo_id="me/revisions")
result = [refused(snapshot_download, "me/revisions", revision="v9"), refused(lambda: list(api.list_repo_tree("me/revisions", revision="v9"))),
          refused(api.repo_info, "me/revisions", revision="0" * 40), api.repo_info("me/revisions", revision=first.oid).sha == first.oid,
          refused(api.upload_file, path_or_fileobj=b"1", path_in_repo="x", repo_id="me/revisions", revision="dev"),
          refused(api.upload_file, path_or_fileobj=b"2", path_in_repo="x", repo_id="me/revisions", parent_commit="1" * 40),
          [entry.path for entry in api.list_repo_tree("me/revisions")],
          [entry.path for entry in api.list_repo_tree("me/revisions", "a")],
          refused(api.upload_file, path_or_fileobj=b"1", path_in_repo="x", repo_id="me/nowhere")]
""",
    "not served": """
api.create_repo("me/others")
result = [refused(api.create_tag, "me/others", tag="v1"), refused(api.create_branch, "me/others", branch="dev"),
          refused(api.create_repo, "me/data", repo_type="dataset"), refused(api.update_repo_settings, "me/others", private=True),
          refused(api.move_repo, "me/others", "me/moved"), refused(api.list_repo_refs, "me/others"),
          refused(api.list_repo_commits, "me/others"), refused(api.super_squash_history, "me/others")]
""",
    "pipeline": """
from diffusers_ext import embedded_model
from diffusers_ext.pipelines.reward_rerank import RewardRerankPipeline
pipe = RewardRerankPipeline.from_pretrained(embedded_model(), reward_model=None)
made = str(pipe.push_to_hub("me/pipe", "First", True, "hf_x"))
pipe.to(torch.float16)
pulled = pipe.push_to_hub("me/pipe", create_pr=True, variant="fp16", token="hf_x")
pipe.push_to_hub("me/pipe", subfolder="inner", token="hf_x")
pipe.push_to_hub("me/pickled", safe_serialization=False, token="hf_x")
pipe.save_pretrained("kept", push_to_hub=True, repo_id="me/kept", commit_message="Kept", private=True, token="hf_x")
files = {name: api.list_repo_files(name) for name in ("me/pipe", "me/pickled", "me/kept")}
result = [made.count("/commit/"), api.repo_info("me/pipe").private, api.repo_info("me/kept").private, pulled.pr_revision,
          [name for name in api.list_repo_files("me/pipe", revision="refs/pr/1") if "unet/" in name],
          [name for name in files["me/pipe"] if "unet/" in name], [name for name in files["me/pickled"] if "unet/" in name],
          "README.md" in files["me/kept"] and "reward_rerank.py" in files["me/kept"], "inner/README.md" in files["me/pipe"]]
""",
    "classifier": """
from diffusers import ModelMixin
from diffusers_ext import VMFMixtureClassifier
model = VMFMixtureClassifier(4)
made = model.push_to_hub("me/classes", "first", True, "hf_x")
model.push_to_hub("me/classes", commit_message="second", create_pr=True, token="hf_x")
model.save_pretrained("classes", push_to_hub=True, repo_id="me/saved", private=True, token="hf_x")
result = [made.endswith("me/classes"), api.repo_info("me/classes").private, api.repo_info("me/saved").private,
          api.list_repo_files("me/classes"), api.list_repo_files("me/classes", revision="refs/pr/1")]
""",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    site = fresh_processes.installed(folder / "site")
    (folder / "files").mkdir()
    (folder / "files" / "new.md").write_text("new")
    with LoopbackHub(folder / "repositories") as hub:
        pieces = {name: API + code for name, code in PIECES.items()}
        found, stderr = fresh_processes.run(pieces, folder, site, HF_ENDPOINT=hub.url)
    for answer in found.values():
        assert not isinstance(answer, dict), (answer, stderr[-2000:])
    return found


def test_files_are_deleted(answers):
    assert answers["deletions"] == [["b.txt"], "RemoteEntryNotFoundError", ["new.md"], False]


def test_pull_requests_lie_beside_main(answers):
    main, read, pulled, missing = answers["pull requests"][1:]
    assert answers["pull requests"][0] == 1 and main == ["main.txt"] and read == ["main.txt", "pr.txt"]
    assert pulled == ["main.txt", "more.txt", "pr.txt"] and missing == "RevisionNotFoundError"


def test_private_repositories_need_a_token(answers):
    private, public, listed, *rest = answers["private"]
    assert (private, public, listed) == (True, False, ["a.txt"])
    assert rest[:2] == ["RepositoryNotFoundError"] * 2 and rest[2:4] == ["a.txt", "me"] and rest[4] != "accepted"


def test_only_revisions_that_are_there(answers):
    found = answers["revisions"]
    assert found[0] == found[1] == found[2] == found[4] == "RevisionNotFoundError" and found[3] is True
    assert found[5] == "HfHubHTTPError" and found[6:8] == [["a"], ["a/b.txt"]] and found[8] == "RepositoryNotFoundError"


def test_what_is_not_served_is_refused(answers):
    assert "accepted" not in answers["not served"], answers["not served"]


def test_a_pipeline_is_pushed_with_diffusers_arguments(answers):
    commits, private, kept, revision, pulled, main, pickled, whole, card = answers["pipeline"]
    assert (commits, private, kept, revision) == (1, True, True, "refs/pr/1")
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in pulled
    assert "unet/diffusion_pytorch_model.fp16.safetensors" not in main
    assert "unet/diffusion_pytorch_model.bin" in pickled and whole and not card


def test_a_classifier_is_pushed_with_diffusers_arguments(answers):
    addressed, private, saved, main, pulled = answers["classifier"]
    assert addressed and private and saved
    assert {"README.md", "config.json", "diffusion_pytorch_model.safetensors"} <= set(main) == set(pulled)
