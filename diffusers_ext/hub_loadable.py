"""Pipelines that load anywhere: what `save_pretrained` must leave beside the weights, and what a push uploads.

`DiffusionPipeline.from_pretrained(folder_or_repository, trust_remote_code=True)` runs the file that `model_index.json`
names. Here that file is one line, an import from this package: every process then has the one real class, old folders
get the repairs of a new version, and what was loaded can be saved again. Components of our own classes get such a line
too, in their folders. Where the package is missing, diffusers says which `pip install` it takes.
"""

import inspect
import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from diffusers.utils.torch_utils import unwrap_module
from huggingface_hub import create_repo, file_exists, upload_folder

from .cards.pipeline import Gallery, write_code_card, write_pipeline_card
from .disk import follow_umask
from .errors import InputError

PIPELINES, REWARDS = "diffusers_ext.pipelines", "diffusers_ext.rewards"
REMOTE = ("diffusers_modules", "transformers_modules")  # where code that came with weights is imported to
CARD = "README.md"


class HubLoadable:
    """Put it first in the bases of a pipeline: it then saves, publishes and loads with its class and its components.

    A pipeline of your own works too: its file, which must hold one pipeline class and no relative imports, is copied.
    """

    def save_config(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write `model_index.json` and the code files. `save_pretrained` calls it after writing the components."""
        super().save_config(save_directory, **kwargs)
        folder, components = Path(save_directory), _component_homes(self)
        stem = write_code_file(folder, type(self))
        index = json.loads((folder / self.config_name).read_text(encoding="utf-8"))
        saved = {part: home for part, home in components.items() if index.get(part, [None])[0] is not None}
        for part, (module, name) in saved.items():
            (folder / part).mkdir(exist_ok=True)
            (folder / part / f"{module}.py").write_text(_import(module, name), encoding="utf-8")
        index |= {"_class_name": [stem, type(self).__name__]} | {part: list(home) for part, home in saved.items()}
        _write_json(folder / self.config_name, index)
        parts = [path for name in self.components for path in (folder / name).glob("*config.json")]
        for path in [folder / self.config_name, *parts]:
            _forget_origin(path)

    def save_pretrained(
        self, save_directory: str | Path, *args: Any, push_to_hub: bool = False, gallery: Gallery = (), **kwargs: Any
    ) -> None:
        """Save as diffusers does, with the code files and a card; then upload the folder, if asked to.

        A README.md that is there already, in the folder or in the repository, is kept, for it may have been written by
        hand, unless there is a gallery to show.

        Args:
            push_to_hub: with `repo_id`, `private`, `token`, `commit_message` and `create_pr` as diffusers has them.
            gallery: (image, caption) pairs for the card, such as the candidates of a prompt with seeds and scores.

        Raises InputError, before anything is written, for a class that no other process could import.
        """
        folder = Path(save_directory)
        upload = {name: kwargs.pop(name) for name in ("token", "commit_message", "create_pr") if name in kwargs}
        repository, private = kwargs.pop("repo_id", folder.resolve().name), kwargs.pop("private", None)
        home = _home(type(self))[1]
        _component_homes(self)
        # diffusers forgets what was set where the folder it came from had none.
        self.register_modules(**{name: part for name, part in self.components.items() if part is not None})
        super().save_pretrained(folder, *args, **kwargs)
        follow_umask(folder)
        kept, theirs = (folder / CARD).exists(), False
        if push_to_hub:
            token = upload.get("token")
            repository = create_repo(repository, private=private, token=token, exist_ok=True).repo_id
            theirs = not gallery and file_exists(repository, CARD, token=token)
        if gallery or not (kept or theirs):
            write_pipeline_card(folder, self, repository, gallery, home)
        if push_to_hub:
            ignored = [CARD] if theirs else None
            upload_folder(repo_id=repository, folder_path=folder, ignore_patterns=ignored, **upload)

    def push_to_hub(self, repo_id: str, gallery: Gallery = (), **kwargs: Any) -> None:
        """Upload the saved pipeline with its card; arguments as in `save_pretrained`."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, push_to_hub=True, repo_id=repo_id, gallery=gallery, **kwargs)

    @classmethod
    def save_code(cls, folder: str | Path, name: str | None = None) -> None:
        """Write what a repository of code alone holds: `pipeline.py` and a card.

        `from_pretrained(weights, custom_pipeline="owner/name", trust_remote_code=True)` then puts this pipeline around
        any weights of its family. name: of the repository, for the card; the folder's without.
        """
        folder = Path(folder)
        write_code_file(folder, cls, "pipeline")
        if not (folder / CARD).exists():
            write_code_card(folder, cls, name or folder.resolve().name)

    @classmethod
    def push_code(cls, repo_id: str, token: str | None = None, **settings: Any) -> None:
        """Upload what `save_code` writes; settings are those of `huggingface_hub.create_repo`."""
        repository = create_repo(repo_id, token=token, exist_ok=True, **settings).repo_id
        with TemporaryDirectory() as folder:
            cls.save_code(folder, repository)
            kept = [CARD] if file_exists(repository, CARD, token=token) else None
            upload_folder(repo_id=repository, folder_path=folder, token=token, ignore_patterns=kept)


def write_code_file(folder: Path, kind: type, stem: str | None = None) -> str:
    """Write the file through which another process gets a class, and return its name without `.py`: that of its module."""
    source, home = _home(kind)
    code = _import(home, kind.__name__) if home else source.read_text(encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem or source.stem}.py").write_text(code, encoding="utf-8")
    return stem or source.stem


def _home(kind: type) -> tuple[Path, str | None]:
    """The file that defines the class, and the package's module that holds it too, if one does.

    A class that was loaded by the path of our file is a copy of the package's: saved, it is the package's again, unless
    the file was edited.
    """
    try:
        source = Path(inspect.getsourcefile(kind))
    except (OSError, TypeError):
        raise InputError(f"{kind.__name__} is defined in no file; put it into one of its own to save it") from None
    module = f"{PIPELINES}.{source.stem}"
    if not _holds(module, kind.__name__):
        return source, None
    ours = Path(inspect.getfile(import_module(module)))
    return source, module if source.read_bytes() == ours.read_bytes() else None


def _component_homes(pipe: Any) -> dict[str, tuple[str, str]]:
    """{component: (module, class)} of the components that diffusers would not find by itself.

    diffusers looks for the file `<component>/<module>.py`, dots and all.
    """
    homes = {}
    for part, component in pipe.components.items():
        kind = type(unwrap_module(component))
        module = kind.__module__
        if component is None or module.split(".")[0] in LOADABLE_CLASSES:
            continue
        if not hasattr(component, "save_pretrained"):  # diffusers would leave it out, with a line in the log
            raise InputError(
                f"{part}: a {kind.__name__} has no files to save; set it to None, or take"
                " diffusers_ext.rewards.named.NamedReward(NAME), which is saved by its name"
            )
        if check_saved := getattr(component, "check_saved", None):  # a NamedReward of code
            check_saved()
        if module.split(".")[0] in REMOTE:  # a class beside its weights: here it is the package's, if that has it
            module = f"{REWARDS}.{module.split('.')[-1]}"
        if module == "__main__" or not _holds(module, kind.__name__):
            raise InputError(
                f"{part}: {kind.__name__} of {kind.__module__} cannot be imported by another process;"
                " take it from an installed package"
            )
        homes[part] = (module, kind.__name__)
    return homes


def _holds(module: str, name: str) -> bool:
    try:
        return find_spec(module) is not None and hasattr(import_module(module), name)
    except ModuleNotFoundError:
        return False


def _import(module: str, name: str) -> str:
    return f"from {module} import {name}  # pip install diffusers_ext\n"


def _forget_origin(path: Path) -> None:
    """Take out the path that a part was loaded from: published, it would tell about one's disk."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.pop("_name_or_path", None) is not None:
        _write_json(path, record)


def _write_json(path: Path, record: dict) -> None:
    path.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
