"""Every way to load what this package saves and publishes, each as the first thing that a process does.

With the package and without it, from folders and from a Hub, with the network and without it; docs/publishing.md lists them.
"""

import json
import shutil

import fresh_processes
import pytest
import torch
from huggingface_hub import ModelCard

from diffusers_ext.publish.loopback_hub import LoopbackHub
from diffusers_ext.rewards.modeling_image_reward import ImageRewardModel
from diffusers_ext.rewards.tiny import image_reward

SEARCH = "diffusers_ext.pipelines.noise_search.NoiseSearchPipeline"
REWARD = "diffusers_ext.rewards.modeling_image_reward.ImageRewardModel"
BLOCK = "diffusers_ext.pipelines.rerank_block.RewardRerankBlock"

PUBLISH = {  # run in this order: what is pushed here is loaded below
    "push": """
from PIL import Image
pipe = DiffusionPipeline.from_pretrained("saved", trust_remote_code=True)
pipe.push_to_hub("me/search", gallery=[(Image.new("RGB", (8, 8)), "red circle, seed 3: 0.52")])
pipe.push_to_hub("me/search")  # a card that is there stays, with its gallery
pipe.save_pretrained("pushed/search-2", push_to_hub=True)
result = names(pipe)
""",
    "push others": """
from diffusers_ext import ImageRewardModel
from diffusers_ext.pipelines.noise_search import NoiseSearchPipeline
from diffusers_ext.pipelines.rerank_block import RewardRerankBlock
NoiseSearchPipeline.push_code("me/search-code")
RewardRerankBlock().push_to_hub("me/block")
model = ImageRewardModel.from_pretrained("reward")
model.push_to_hub("me/reward")
model.push_to_hub("me/reward")
torch.nn.init.zeros_(model.mlp.layers[0].bias)
model.mlp.layers[0].bias.data += 1
model.push_to_hub("me/another-reward", commit_message="Changed")
result = {}
""",
}
ROUTES = {
    "folder": 'result = picture(DiffusionPipeline.from_pretrained("saved", trust_remote_code=True))',
    "folder, by the class": """
from diffusers_ext.pipelines.noise_search import NoiseSearchPipeline
result = picture(NoiseSearchPipeline.from_pretrained("saved", trust_remote_code=True))
""",
    "class, not trusted": """
from diffusers_ext.pipelines.noise_search import NoiseSearchPipeline
result = picture(NoiseSearchPipeline.from_pretrained("saved"))
""",
    "load_pipeline": """
import diffusers_ext
result = picture(diffusers_ext.load_pipeline("saved"))
""",
    "checkout": """
from diffusers_ext import load_reward
pipe = DiffusionPipeline.from_pretrained("base", reward_model=load_reward("reward"),
                                         custom_pipeline="checkout/noise_search.py", trust_remote_code=True)
result = picture(pipe)
""",
    "class": """
from diffusers_ext import load_reward
from diffusers_ext.pipelines.noise_search import NoiseSearchPipeline
result = picture(NoiseSearchPipeline.from_pretrained("base", reward_model=load_reward("reward")))
""",
    "class, from_pipe": """
from diffusers_ext import load_reward
from diffusers_ext.pipelines.noise_search import NoiseSearchPipeline
base = StableDiffusionPipeline.from_pretrained("base")
first = NoiseSearchPipeline.from_pipe(base, reward_model=load_reward("reward"))
result = picture(NoiseSearchPipeline.from_pipe(first))  # takes the reward along
""",
}
LOCAL = ("folder", "checkout", "class", "class, not trusted", "load_pipeline")
OWN_CLASSES = {  # no file of the repository is run
    "class, Hub": """
from diffusers_ext.pipelines.noise_search import NoiseSearchPipeline
result = picture(NoiseSearchPipeline.from_pretrained("me/search"))
""",
    "load_pipeline, Hub": """
import diffusers_ext
result = picture(diffusers_ext.load_pipeline("me/search"))
""",
    "class, its files spoilt": """
import shutil
from pathlib import Path
from diffusers_ext.pipelines.noise_search import NoiseSearchPipeline
shutil.copytree("saved", "spoilt")
for path in Path("spoilt").rglob("*.py"):
    path.write_text("raise SystemExit('run')")
result = picture(NoiseSearchPipeline.from_pretrained("spoilt"))
""",
}
PARTS = {
    "another class": """
from diffusers_ext.pipelines.reward_rerank import RewardRerankPipeline
result = picture(RewardRerankPipeline.from_pretrained("saved"))["class"]
""",
    "without its reward": """
from diffusers_ext.pipelines.noise_search import NoiseSearchPipeline
result = names(NoiseSearchPipeline.from_pretrained("saved", reward_model=None))
""",
    "half precision": """
from diffusers_ext.pipelines.noise_search import NoiseSearchPipeline
pipe = NoiseSearchPipeline.from_pretrained("saved", dtype=torch.bfloat16)
result = [str(pipe.unet.dtype), str(pipe.reward_model.dtype)]
""",
}
HUB_ROUTES = {
    "Hub": 'result = picture(DiffusionPipeline.from_pretrained("me/search", trust_remote_code=True))',
    "Hub, code alone": """
from diffusers_ext import load_reward
result = picture(DiffusionPipeline.from_pretrained("me/base", reward_model=load_reward("me/reward"),
                                                   custom_pipeline="me/search-code", trust_remote_code=True))
""",
}
OFFLINE_ROUTES = {
    "snapshot": """
folder = snapshot_download("me/search", local_files_only=True)
result = picture(DiffusionPipeline.from_pretrained(folder, trust_remote_code=True))
""",
    "snapshot, code alone": """
from diffusers_ext import load_reward
code = snapshot_download("me/search-code", local_files_only=True)
result = picture(DiffusionPipeline.from_pretrained("me/base", reward_model=load_reward("me/reward"),
                                                   custom_pipeline=code, trust_remote_code=True))
""",
}
WHOLE = {"downloaded": 'result = [snapshot_download(name) is None for name in ("me/search", "me/search-code")]'}
ROUND_TRIPS = {
    "saved again": """
pipe = DiffusionPipeline.from_pretrained("saved", trust_remote_code=True)
pipe.save_pretrained("again")
result = picture(DiffusionPipeline.from_pretrained("again", trust_remote_code=True))
""",
    "checkout, saved": """
from diffusers_ext import load_reward
pipe = DiffusionPipeline.from_pretrained("base", reward_model=load_reward("reward"),
                                         custom_pipeline="checkout/noise_search.py", trust_remote_code=True)
pipe.save_pretrained("from-checkout")
result = picture(DiffusionPipeline.from_pretrained("from-checkout", trust_remote_code=True))
""",
    "reward of remote code, saved": """
reward = AutoModel.from_pretrained("reward", trust_remote_code=True)
assert type(reward).__module__.startswith("transformers_modules")
pipe = DiffusionPipeline.from_pretrained("base", reward_model=reward,
                                         custom_pipeline="checkout/noise_search.py", trust_remote_code=True)
pipe.save_pretrained("from-remote-code")
result = picture(DiffusionPipeline.from_pretrained("from-remote-code", trust_remote_code=True))
""",
}
REWARDS = {
    "another pipeline": """
from diffusers_ext import load_reward
from diffusers_ext.pipelines.noise_search import NoiseSearchPipeline
from diffusers_ext.pipelines.reward_rerank import RewardRerankPipeline
pipe = NoiseSearchPipeline.from_pretrained("base", reward_model=load_reward("reward"))
RewardRerankPipeline.from_pipe(pipe).save_pretrained("rerank")
result = picture(DiffusionPipeline.from_pretrained("rerank", trust_remote_code=True))
""",
    "override": """
from diffusers_ext import ImageRewardModel
other = ImageRewardModel.from_pretrained("reward")
pipe = DiffusionPipeline.from_pretrained("saved", reward_model=other, trust_remote_code=True)
result = {"same": pipe.reward_model is other}
""",
    "override, Hub": """
from diffusers_ext import ImageRewardModel
other = ImageRewardModel.from_pretrained("me/reward")
pipe = DiffusionPipeline.from_pretrained("me/search", reward_model=other, trust_remote_code=True)
result = {"same": pipe.reward_model is other}
""",
    "set afterwards": """
from diffusers_ext import load_reward
pipe = DiffusionPipeline.from_pretrained("saved", reward_model=None, trust_remote_code=True)
pipe.reward_model = other = load_reward("fill50k")
assert pipe.reward_model is other
pipe.save_pretrained("refused")
""",
    "by name": """
from diffusers_ext.rewards.named import NamedReward
pipe = DiffusionPipeline.from_pretrained("saved", reward_model=NamedReward("fill50k"), trust_remote_code=True)
pipe.save_pretrained("named")
result = names(DiffusionPipeline.from_pretrained("named", trust_remote_code=True))
""",
    "none": 'result = names(DiffusionPipeline.from_pretrained("saved", reward_model=None, trust_remote_code=True))',
    "none, drawn": """
result = picture(DiffusionPipeline.from_pretrained("saved", reward_model=None, trust_remote_code=True))
""",
    "absent": """
from diffusers_ext.pipelines.noise_search import NoiseSearchPipeline
NoiseSearchPipeline.from_pretrained("base").save_pretrained("no-reward")
result = names(DiffusionPipeline.from_pretrained("no-reward", trust_remote_code=True))
""",
}
AUTO_MODEL = {
    "reward, Hub": """
reward = AutoModel.from_pretrained("me/reward", trust_remote_code=True)
result = {"score": reward.score("red circle", torch.zeros(1, 3, 32, 32)).item(), "package": "diffusers_ext" in sys.modules}
""",
}
BLOCKS = {
    "block": """
block = ModularPipelineBlocks.from_pretrained("me/block", trust_remote_code=True)
result = {"class": f"{type(block).__module__}.{type(block).__name__}"}
""",
    "block, snapshot": """
block = ModularPipelineBlocks.from_pretrained(snapshot_download("me/block"), trust_remote_code=True)
result = {"class": f"{type(block).__module__}.{type(block).__name__}"}
""",
}
UNTRUSTED = {
    "folder, not trusted": 'DiffusionPipeline.from_pretrained("saved")',
    "Hub, not trusted": 'DiffusionPipeline.from_pretrained("me/search")',
    "checkout, not trusted": 'DiffusionPipeline.from_pretrained("base", custom_pipeline="checkout/noise_search.py")',
    "code alone, not trusted": 'DiffusionPipeline.from_pretrained("me/base", custom_pipeline="me/search-code")',
}


@pytest.fixture(scope="module")
def work(tmp_path_factory, untrained):
    """A folder as a user has it: base/, reward/ with a card, saved/, checkout/; hub/ is what the Hub holds."""
    folder = tmp_path_factory.mktemp("routes")
    fresh_processes.installed(folder / "site")
    shutil.copytree(untrained, folder / "base")
    shutil.copytree(untrained, folder / "hub" / "me" / "base")
    shutil.copytree(fresh_processes.ROOT / "pipelines", folder / "checkout")
    torch.manual_seed(0)
    image_reward(["red circle with blue background"], layers=1, width=32).save_pretrained(folder / "reward")
    (folder / "reward" / "README.md").write_text('---\nlicense: mit\n---\n\nMine: load "reward".\n')
    code = """
from diffusers_ext import load_reward
from diffusers_ext.pipelines.noise_search import NoiseSearchPipeline
pipe = NoiseSearchPipeline.from_pretrained("base", reward_model=load_reward("reward"))
pipe.save_pretrained("saved")
result = picture(pipe)
"""
    (folder / "code.json").write_text(code)
    return folder


@pytest.fixture(scope="module")
def hub(work):
    with LoopbackHub(work / "hub") as hub:
        yield hub


@pytest.fixture(scope="module")
def online(work, hub):
    """What every piece of code answers where there are the package and the network."""
    pieces = {"saving": (work / "code.json").read_text(), **PUBLISH, **ROUTES, **HUB_ROUTES, **ROUND_TRIPS, **REWARDS}
    pieces |= {**AUTO_MODEL, **BLOCKS, **UNTRUSTED, **WHOLE, **OWN_CLASSES, **PARTS}
    return fresh_processes.run(pieces, work, work / "site", HF_ENDPOINT=hub.url)[0]


@pytest.fixture(scope="module")
def offline(work, hub, online):
    """The same without the network, after all was loaded once."""
    asked = len(hub.requests)
    local = {route: ROUTES[route] for route in LOCAL}
    pieces = {**local, **OFFLINE_ROUTES, **HUB_ROUTES, **AUTO_MODEL, **BLOCKS}
    answers, _ = fresh_processes.run(pieces, work, work / "site", HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert len(hub.requests) == asked
    return answers


@pytest.fixture(scope="module")
def alone(work, hub, online):
    """The same where the package is not installed; answers and stderr."""
    pieces = {name: code for name, code in {**ROUTES, **HUB_ROUTES}.items() if "import" not in code}
    pieces |= {"checkout": ROUTES["checkout"].replace("from diffusers_ext import load_reward", "load_reward = str")}
    return fresh_processes.run({**pieces, **AUTO_MODEL, **BLOCKS}, work, None, HF_ENDPOINT=hub.url)


@pytest.mark.parametrize("route", [*ROUTES, *HUB_ROUTES, *ROUND_TRIPS])
def test_a_route_gives_the_same_pipeline(online, route):
    """The package's own classes, and the pixels and the score of what was saved, bit for bit."""
    copied = route.startswith("checkout") and "saved" not in route  # the file of the checkout runs as a copy
    kind = "diffusers_modules.local.noise_search.NoiseSearchPipeline" if copied else SEARCH
    assert online[route] == {**online["saving"], "class": kind, "reward": REWARD}


@pytest.mark.parametrize("route", OWN_CLASSES)
def test_an_installed_class_runs_no_code_of_the_repository(online, route):
    assert online[route] == online["saving"]


def test_parts_of_an_installed_class(online):
    assert online["another class"] == "diffusers_ext.pipelines.reward_rerank.RewardRerankPipeline"
    assert online["without its reward"] == {"class": SEARCH, "reward": None}
    assert online["half precision"] == ["torch.bfloat16", "torch.bfloat16"]


@pytest.mark.parametrize("route", [*LOCAL, *OFFLINE_ROUTES])
def test_a_route_without_the_network(online, offline, route):
    expected = {**online["saving"], "class": offline[route].get("class")}
    assert offline[route] == expected


@pytest.mark.parametrize("route", [*HUB_ROUTES, "block"])
def test_repositories_with_code_need_the_network(offline, route):
    """A limit of diffusers, which asks for the commit; the routes by snapshot are the way round."""
    assert "OfflineModeIsEnabled" in offline[route]["error"] or "offline" in offline[route]["error"]


def test_saved_again_the_index_is_the_same(online, work):
    index = (work / "saved" / "model_index.json").read_bytes()
    for folder in ("again", "from-checkout", "from-remote-code", "hub/me/search", "hub/me/search-2"):
        assert (work / folder / "model_index.json").read_bytes() == index
    assert json.loads(index)["_class_name"] == ["noise_search", "NoiseSearchPipeline"]


def test_nothing_saved_tells_where_it_came_from(online, work):
    """Not even the components, in which diffusers keeps the folder that they were loaded from."""
    for path in [*(work / "again").rglob("*.json"), *(work / "hub" / "me" / "search").rglob("*.json")]:
        assert "_name_or_path" not in json.loads(path.read_text()), path


def test_two_pipelines_share_their_parts(online):
    assert online["another pipeline"]["class"] == "diffusers_ext.pipelines.reward_rerank.RewardRerankPipeline"
    assert online["another pipeline"]["reward"] == REWARD


def test_rewards_are_replaced_left_out_or_absent(online):
    assert online["override"] == online["override, Hub"] == {"same": True}
    assert "reward_model: a ColourReward has no files to save" in online["set afterwards"]["error"]
    assert online["by name"] == {"class": SEARCH, "reward": "diffusers_ext.rewards.named.NamedReward"}
    assert online["none"] == online["absent"] == {"class": SEARCH, "reward": None}
    assert online["none, drawn"]["error"].startswith("InputError: no reward to rank by")


def test_a_push_uploads_a_card_of_ours(online, hub):
    files = hub.files("me/search")
    assert {"noise_search.py", f"reward_model/{REWARD.rpartition('.')[0]}.py", "gallery/00.png"} <= set(files)
    card = ModelCard(files["README.md"].read_text())
    assert card.data.library_name == "diffusers" and "custom-pipeline" in card.data.tags
    assert card.data.widget == [{"text": "red circle, seed 3: 0.52", "output": {"url": "gallery/00.png"}}]
    assert 'DiffusionPipeline.from_pretrained("me/search", trust_remote_code=True)' in card.text
    assert 'from_pretrained("me/search-2"' in hub.files("me/search-2")["README.md"].read_text()
    assert 'custom_pipeline="me/search-code"' in hub.files("me/search-code")["README.md"].read_text()


def test_a_pushed_reward_has_the_card_of_its_folder_while_it_is_the_same(online, hub):
    assert "push others" in online and "error" not in online["push others"]
    files = hub.files("me/reward")
    assert files["README.md"].read_text().endswith('Mine: load "me/reward".\n')
    assert {"modeling_image_reward.py", "tokenizer.json", "model.safetensors"} <= set(files)
    changed = hub.files("me/another-reward")["README.md"].read_text()
    assert "Mine" not in changed and 'from_pretrained("me/another-reward"' in changed


@pytest.mark.parametrize("route", AUTO_MODEL)
def test_the_reward_needs_no_package_and_no_network(work, online, offline, alone, route):
    model = ImageRewardModel.from_pretrained(work / "reward")
    expected = model.score("red circle", torch.zeros(1, 3, 32, 32)).item()
    for answers in (online, offline, alone[0]):
        assert answers[route]["score"] == pytest.approx(expected, abs=1e-6)
    assert not alone[0][route]["package"]


def test_the_block(online, offline):
    assert online["block"] == online["block, snapshot"] == offline["block, snapshot"] == {"class": BLOCK}


def test_without_the_package_the_error_says_what_to_install(alone):
    answers, stderr = alone
    for route in ("folder", "Hub", "checkout", "block", "block, snapshot"):
        assert answers[route]["error"] == "ModuleNotFoundError: No module named 'diffusers_ext'"
    assert stderr.count("Run `pip install diffusers_ext`") >= 5


@pytest.mark.parametrize("route", UNTRUSTED)
def test_code_must_be_trusted(online, route):
    assert online[route]["error"].startswith("ValueError") and "trust_remote_code=True" in online[route]["error"]


def test_remote_code_can_be_switched_off(work, hub, online):
    own = ("class", "class, not trusted", "load_pipeline")
    pieces = {**{name: ROUTES[name] for name in ("folder", "checkout", *own)}, "Hub": HUB_ROUTES["Hub"]}
    package = work / "site"
    answers, _ = fresh_processes.run(pieces, work, package, HF_ENDPOINT=hub.url, DIFFUSERS_DISABLE_REMOTE_CODE="1")
    for route in ("folder", "checkout", "Hub"):
        assert "DIFFUSERS_DISABLE_REMOTE_CODE" in answers[route]["error"]
    for route in own:  # an installed class is no remote code
        assert answers[route] == online[route]
