"""Loading a published pipeline by the classes that are installed, without running the code that lies beside its weights.

    pipe = load_pipeline("owner/name", dtype=torch.float16)       # or RewardRerankPipeline.from_pretrained("owner/name")

A repository that a `HubLoadable` pipeline was saved to names its class, and that of its reward, in `model_index.json`. Where
this package has them, nothing else needs to be trusted.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MethodType
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from ..errors import InputError
from .model_files import check_json, check_weights, find_weights, read_json, variants_of

PIPELINES, REWARDS = "diffusers_ext.pipelines", "diffusers_ext.rewards"
HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision")
NOT_NEEDED = ["*.py", "gallery/*", "samples/*", "*.md"]


def load_pipeline(pretrained_model_name_or_path: str | Path, **settings: Any) -> DiffusionPipeline:
    """Load any pipeline; one of this package's classes by the installed class, without `trust_remote_code`.

    Args:
        pretrained_model_name_or_path: a folder, or a name on the Hub.
        settings: those of `DiffusionPipeline.from_pretrained`.

    >>> from diffusers_ext import embedded_model
    >>> type(load_pipeline(embedded_model())).__name__
    'StableDiffusionPipeline'
    """
    index = index_of(pretrained_model_name_or_path, settings)
    kind = installed_class(index) if index and not settings.get("custom_pipeline") else None
    return (kind or DiffusionPipeline).from_pretrained(pretrained_model_name_or_path, **settings)


def plain_call(pipe: DiffusionPipeline) -> Callable:
    """Return the call of diffusers' own class that a pipeline of ours is made of."""
    kind = next(
        kind for kind in type(pipe).__mro__ if kind.__module__.startswith("diffusers.") and "__call__" in vars(kind)
    )
    return MethodType(vars(kind)["__call__"], pipe)


def check_pipeline_files(name: str | Path, variant: str | None = None) -> None:
    """Raise InputError where files of a pipeline's folder are missing, cut or Git LFS pointers; Hub names are left to the Hub."""
    folder = Path(name)
    if not folder.exists():
        return
    if not folder.is_dir() or not (folder / DiffusionPipeline.config_name).is_file():
        raise InputError(
            f"{folder}: no folder of a pipeline in diffusers' format, with a {DiffusionPipeline.config_name}"
        )
    for part, home in read_json(folder / DiffusionPipeline.config_name).items():
        if part.startswith("_") or not isinstance(home, list) or home[:1] == [None]:
            continue
        if not (folder / part).is_dir():
            raise InputError(f"{folder / part}: missing, though model_index.json names it; the download is incomplete")
        for path in sorted((folder / part).glob("*.json")):
            check_json(path)
        if find_weights(folder / part) or variants_of(folder / part):
            check_weights(folder / part, variant)


def index_of(name: str | Path, settings: Mapping[str, Any]) -> dict | None:
    """Return the model_index.json of a folder or repository; None where there is none or it cannot be had."""
    if Path(name).is_dir():
        path = Path(name) / DiffusionPipeline.config_name
        return read_json(path) if path.is_file() else None
    hub = {option: settings[option] for option in HUB if option in settings}
    try:
        path = Path(hf_hub_download(str(name), DiffusionPipeline.config_name, **hub))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError):
        return None  # diffusers tells why, when it tries
    return read_json(path)


def installed_class(index: Mapping[str, Any]) -> type[DiffusionPipeline] | None:
    """Return the class of this package that a model_index.json names with its file; None for others."""
    named = index.get("_class_name")
    if not isinstance(named, list) or len(named) != 2 or not all(isinstance(word, str) for word in named):
        return None
    module = f"{PIPELINES}.{named[0]}"
    return getattr(import_module(module), named[1]) if named[0].isidentifier() and holds(module, named[1]) else None


def load_own_parts(folder: Path, index: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Load the parts of a saved pipeline that are rewards of this package, but for those that settings hold.

    Returns {part: model}. diffusers would run the file beside their weights to find their classes.
    """
    parts = {}
    for part, home in index.items():
        if part in settings or not isinstance(home, list) or len(home) != 2 or not (folder / part).is_dir():
            continue
        module, name = home
        if isinstance(module, str) and module.startswith(f"{REWARDS}.") and holds(module, str(name)):
            parts[part] = _load_part(getattr(import_module(module), name), folder / part, settings)
    return parts


def download_without_code(name: str, settings: Mapping[str, Any]) -> str:
    """Download a repository, all but its code and its card; return the folder."""
    hub = {option: settings[option] for option in HUB if settings.get(option) is not None}
    return snapshot_download(name, ignore_patterns=NOT_NEEDED, **hub)


def holds(module: str, name: str) -> bool:
    """Whether an installed module has a name."""
    try:
        return find_spec(module) is not None and hasattr(import_module(module), name)
    except ModuleNotFoundError:
        return False


def _load_part(kind: Any, folder: Path, settings: Mapping[str, Any]) -> Any:
    dtype = settings.get("dtype", settings.get("torch_dtype"))
    dtype = dtype.get(folder.name, dtype.get("default")) if isinstance(dtype, dict) else dtype
    variant = settings.get("variant")
    chosen = {"dtype": dtype, "variant": variant if variant in variants_of(folder) else None}
    return kind.from_pretrained(folder, **{option: value for option, value in chosen.items() if value is not None})
