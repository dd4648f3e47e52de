"""Three simulated people judge a folder of candidates, through the same door as the page of `diffusers-ext annotate`.

    python examples/story/people.py --candidates runs/story/candidates

A person sees the exact colour error of each picture, with Gumbel noise of temperature T, and ranks by what is seen
(Bradley & Terry 1952; preferences/simulated.py). Judgements are kept as a page's are: checked, appended, fsynced. truth.json
has the exact rewards, and the accuracy that no reward can exceed on these people's pairs.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from diffusers_ext.options import COUNT, POSITIVE, SEED, option, run


@dataclass
class Options:
    candidates: str = option("runs/story/candidates", "folder of `diffusers-ext rerank`")
    count: int = option(3, "people", COUNT)
    temperature: float = option(0.03, "their noise, in units of the exact reward: 20 CIEDE2000 make one", POSITIVE)
    seed: int = option(0, "another seed, other noise", SEED)


def main(options: Options) -> None:
    from PIL import Image
    from tqdm import tqdm

    from diffusers_ext.preferences.annotate.items import read_items
    from diffusers_ext.preferences.annotate.session import Session
    from diffusers_ext.preferences.simulated import bayes_accuracy, exact_rewards, rank

    folder = Path(options.candidates)
    items = read_items(folder)
    session, truth = Session(folder, items, options.seed), {}
    for item in tqdm(items, desc="looking", unit="prompt", delay=3):
        pictures = [Image.open(path) for path in item.images]
        truth[item.id] = exact_rewards(pictures, item.prompt)
    for number in range(options.count):
        name = f"simulated-{number}"
        for at in tqdm(session.progress(name)["todo"], desc=name, unit="prompt", delay=3):
            place = session.order(name)[at]
            ranking = rank(truth[items[place].id], name, options.temperature, options.seed, place)
            session.save(name, judgement(session.item(name, at), ranking.ranking))
    record = {
        "bayes_accuracy": bayes_accuracy(list(truth.values()), options.temperature),
        "temperature": options.temperature,
        "rewards": {name: rewards.round(6).tolist() for name, rewards in truth.items()},
    }
    (folder / "truth.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{len(items)} prompts, {options.count} people; best accuracy possible {record['bayes_accuracy']:.3f}")


def judgement(shown: dict, ranking: tuple[int, ...]) -> dict:
    """What the page would send: a ranking, and ratings that follow from it."""
    ratings = [dict.fromkeys(("overall", "alignment", "fidelity"), max(1, 8 - rank)) for rank in ranking]
    given = {"ranking": list(ranking), "ratings": ratings, "issues": [[] for _ in ranking], "prompt_flags": []}
    about = {name: shown[name] for name in ("id", "images", "display")}
    return {**about, **given, "time_s": None, "nonce": f"simulated-{shown['id']}"[:64], "replaces": shown["revision"]}


if __name__ == "__main__":
    run(main, Options)
