"""Pipelines that load anywhere: what `save_pretrained` must leave beside the weights, and what a push uploads.

`DiffusionPipeline.from_pretrained(folder_or_repository, trust_remote_code=True)` runs the file that `model_index.json`
names. Here that file is one line, an import from this package: every process then has the one real class, old folders
get the repairs of a new version, and what was loaded can be saved again. Components of our own classes get such a line
too, in their folders. Where the package is missing, diffusers says which `pip install` it takes.

Where it is installed, nothing needs to be trusted: the class's own `from_pretrained`, or `diffusers_ext.load_pipeline`, take
the installed classes and run no file of the repository.
"""

import inspect
import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES
from diffusers.utils.torch_utils import unwrap_module
from huggingface_hub import create_repo, file_exists, upload_folder
from typing_extensions import Self

from ..disk import follow_umask
from ..errors import InputError
from .cards.pipeline import Gallery, write_code_card, write_pipeline_card
from .loading import PIPELINES, REWARDS, download_without_code, holds, index_of, load_own_parts

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipeline
else:
    Pipeline = object  # a mixin: the pipeline comes behind it in the bases of a class

REMOTE = ("diffusers_modules", "transformers_modules")  # where code that came with weights is imported to
CARD = "README.md"


@dataclass(frozen=True)
class Upload:
    """Where a pipeline is uploaded to, and how; the fields are arguments of diffusers' `push_to_hub`."""

    repo_id: str
    commit_message: str | None = None
    private: bool | None = None
    token: str | bool | None = None
    create_pr: bool = False
    subfolder: str | None = None


class HubLoadable(Pipeline):
    """Put it first in the bases of a pipeline: it then saves, publishes and loads with its class and its components.

    A pipeline of your own works too: its file, which must hold one pipeline class and no relative imports, is copied.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load as diffusers does; what this class, or another of this package, was saved to needs no `trust_remote_code`.

        The class in hand is used, and for a reward of this package its installed class: the repository's code is not run.

        Args:
            kwargs: settings of `DiffusionPipeline.from_pretrained`, and parts to use as they are.
        """
        name = pretrained_model_name_or_path
        index = None if kwargs.get("custom_pipeline") else index_of(name, kwargs)
        if index and isinstance(index.get("_class_name"), list):
            folder = Path(name) if Path(name).is_dir() else Path(cls.download(str(name), **kwargs))
            kwargs |= load_own_parts(folder, index, kwargs)
        return super().from_pretrained(name, **kwargs)

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """Download as diffusers does; of a repository with a pipeline's code, everything but the code."""
        index = None if kwargs.get("custom_pipeline") else index_of(pretrained_model_name, kwargs)
        if index and isinstance(index.get("_class_name"), list):
            return download_without_code(pretrained_model_name, kwargs)
        return super().download(pretrained_model_name, **kwargs)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> dict | tuple:
        """Read `model_index.json` as diffusers does; a class that it names with its file is this one."""
        found = super().load_config(pretrained_model_name_or_path, **kwargs)
        config = found[0] if isinstance(found, tuple) else found
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = cls.__name__
        return found

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `model_index.json` and the code files. `save_pretrained` calls it after writing the components."""
        super().save_config(save_directory)
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
        if push_to_hub:
            name = kwargs.pop("repo_id", None) or folder.resolve().name
            _upload(self, folder, Upload(name, **kwargs))

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        *,
        repo_id: str | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        gallery: Gallery = (),
    ) -> None:
        """Save as diffusers does, with the code files and a card; then upload the folder, if asked to.

        A README.md that is there already, in the folder or in the repository, is kept, for it may have been written by
        hand, unless there is a gallery to show.

        Args:
            push_to_hub: upload to `repo_id`, by default of the folder's name; private, token, commit_message and create_pr
                are those of `push_to_hub`.
            gallery: (image, caption) pairs for the card, such as the candidates of a prompt with seeds and scores.

        Raises InputError, before anything is written, for a class that no other process could import.
        """
        folder = Path(save_directory)
        self._save_parts(folder, safe_serialization, variant, max_shard_size)
        name = repo_id or folder.resolve().name
        if push_to_hub:
            _upload(self, folder, Upload(name, commit_message, private, token, create_pr), gallery)
        elif gallery or not (folder / CARD).exists():
            write_pipeline_card(folder, self, name, gallery, _home(type(self))[1])

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        *,
        gallery: Gallery = (),
    ) -> str:
        """Upload the saved pipeline with its card; return the commit's address.

        Args:
            repo_id: `owner/name`, or `name` in one's own namespace; made where there is none.
            private: only for a new repository.
            create_pr: open a pull request instead of committing to the main branch.
            subfolder: of the repository, to upload to; without a card.
            gallery: as in `save_pretrained`.
        """
        with TemporaryDirectory() as folder:
            self._save_parts(Path(folder), safe_serialization, variant, None)
            upload = Upload(repo_id, commit_message, private, token, create_pr, subfolder)
            return _upload(self, Path(folder), upload, gallery)

    def _save_parts(
        self, folder: Path, safe_serialization: bool, variant: str | None, max_shard_size: int | str | None
    ) -> None:
        """Write parts, index and code files."""
        _home(type(self))
        _component_homes(self)
        # diffusers forgets what was set where the folder it came from had none.
        self.register_modules(**{name: part for name, part in self.components.items() if part is not None})
        super().save_pretrained(str(folder), safe_serialization, variant, max_shard_size)
        follow_umask(folder)

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
    def push_code(
        cls,
        repo_id: str,
        token: str | bool | None = None,
        *,
        private: bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload what `save_code` writes; return the commit's address. Arguments as in `push_to_hub`."""
        repository = create_repo(repo_id, token=token, private=private, exist_ok=True).repo_id
        with TemporaryDirectory() as folder:
            cls.save_code(folder, repository)
            kept = [CARD] if file_exists(repository, CARD, token=token) else None
            return upload_folder(
                repo_id=repository,
                folder_path=folder,
                token=token,
                ignore_patterns=kept,
                commit_message=commit_message,
                create_pr=create_pr,
            )


def _upload(pipe: Any, folder: Path, upload: Upload, gallery: Gallery = ()) -> str:
    """Upload a folder that a pipeline was saved to, and its card unless one is there; return the commit's address."""
    kind = type(pipe)
    repository = create_repo(upload.repo_id, private=upload.private, token=upload.token, exist_ok=True).repo_id
    has_card = not gallery and file_exists(repository, CARD, token=upload.token)
    if gallery or not (has_card or (folder / CARD).exists()):
        write_pipeline_card(folder, pipe, repository, gallery, _home(kind)[1])
    return upload_folder(
        repo_id=repository,
        folder_path=folder,
        path_in_repo=upload.subfolder,
        token=upload.token,
        ignore_patterns=[CARD] if has_card or upload.subfolder else None,
        commit_message=upload.commit_message or f"Upload {kind.__name__}",
        create_pr=upload.create_pr,
    )


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
        source = Path(inspect.getfile(kind))
    except (OSError, TypeError):
        raise InputError(f"{kind.__name__} is defined in no file; put it into one of its own to save it") from None
    module = f"{PIPELINES}.{source.stem}"
    if not holds(module, kind.__name__):
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
        if module == "__main__" or not holds(module, kind.__name__):
            raise InputError(
                f"{part}: {kind.__name__} of {kind.__module__} cannot be imported by another process;"
                " take it from an installed package"
            )
        homes[part] = (module, kind.__name__)
    return homes


def _import(module: str, name: str) -> str:
    return f"from {module} import {name}  # pip install diffusers_ext\n"


def _forget_origin(path: Path) -> None:
    """Take out the path that a part was loaded from: published, it would tell about one's disk."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.pop("_name_or_path", None) is not None:
        _write_json(path, record)


def _write_json(path: Path, record: dict) -> None:
    path.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
