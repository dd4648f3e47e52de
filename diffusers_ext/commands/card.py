"""Check the model card of a folder before it is published: metadata, pictures, code, and what was left to fill in.

    diffusers-ext card check runs/my-controlnet

Needs no network. Ends with exit code 2 and the list of what to fix.
"""

from dataclasses import dataclass

from ..options import option


@dataclass
class Options:
    action: str | None = option(None, "check", positional=True)
    folder: str | None = option(None, "folder with README.md", positional=True, path="read")


def main(options: Options) -> None:
    from ..errors import InputError
    from ..publish.cards.check import card_problems

    if options.action != "check" or not options.folder:
        raise InputError("say what to do with which folder: diffusers-ext card check FOLDER")
    problems = card_problems(options.folder)
    if problems:
        raise InputError("\n".join(problems))
    print(f"{options.folder}/README.md: in order")
