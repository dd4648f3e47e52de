"""Publish a folder on the Hub: the model, its card, metrics and samples, without checkpoints; the card is checked first.

diffusers-ext push runs/my-controlnet owner/my-controlnet
"""

from dataclasses import dataclass

from ..options import option


@dataclass
class Options:
    folder: str | None = option(None, "run folder or saved model", positional=True, path="read")
    hub_model_id: str | None = option(
        None, "owner/name; default: the folder's name, under your account", positional=True
    )
    hub_token: str | None = option(None, "token; default: the one you logged in with")
    force: bool = option(False, "publish even if the card has faults")


def main(options: Options) -> None:
    from pathlib import Path

    from ..engine.hub import check_push, open_repository, push
    from ..errors import InputError
    from ..publish.cards.check import card_problems

    if not options.folder or not Path(options.folder).is_dir():
        raise InputError(f"{options.folder or 'no folder'}: give a folder to publish; see --help")
    folder = Path(options.folder)
    problems = card_problems(options.folder)
    if problems and not options.force:
        raise InputError("\n".join([*problems, "fix the card, or publish as it is with --force"]))
    check_push(folder.absolute(), options)
    open_repository(folder.absolute(), options)
    try:
        print(f"published at {push(folder.absolute(), options)}")
    except Exception as error:  # of the Hub or its transport
        raise InputError(
            f"{folder}: the upload failed ({error}); nothing is lost: try the same command again"
        ) from None
