"""The report's chapters about pictures: prompts, people, reward, choosing, tuning, control. Every number is read from a run folder."""

from pathlib import Path

import numpy as np
from estimates import differences, mean, read_json, shown, verdict
from page import curves, figure, table, text
from PIL import Image

from diffusers_ext.engine.run_folder import read_metrics
from diffusers_ext.figures import captioned_grid, labelled_grid
from diffusers_ext.preferences.agreement import Ratio
from diffusers_ext.preferences.rankings import read
from diffusers_ext.toy.measures import find_circle


def prompts(folder: Path) -> str:
    report = read_json(folder / "chosen.report.json")
    rows = [[name, f"{report[name]['nearest']:.3f}", report[name]["near_duplicates"]] for name in ("chosen", "random")]
    ahead = report["chosen"]["nearest"] - report["random"]["nearest"]
    return "".join(
        [
            text(
                f"Of {report['prompts']:,} requests, {report['different']:,} differ; {report['count']} of them are to be "
                "annotated. Vote-k takes those that stand for many others, by the embedded model's own text encoder."
            ),
            table(["choice", "a prompt's similarity to the nearest chosen", "within 0.9 of one chosen earlier"], rows),
            text(
                f"The choice represents the requests {'better' if ahead > 0 else 'no better'} than one random choice of the same "
                f"size does: {ahead:+.3f} in similarity.",
                "found",
            ),
            text(
                f"The prompts are alike, two colours in one sentence, and {report['count'] / report['different']:.0%} of them are "
                "taken: there is little to gain. The encoder was never trained to tell sentences apart.",
                "short",
            ),
        ]
    )


def candidates(folder: Path) -> str:
    record = read_json(folder / "candidates" / "scores.json")
    scores = [[row["score"] for row in each["candidates"]] for each in record["prompts"]]
    picked = record["prompts"][:3]
    images = [[Image.open(folder / "candidates" / row["image"]) for row in each["candidates"]] for each in picked]
    columns = ["best"] + [""] * (len(images[0]) - 2) + ["worst"]
    options = record["options"]
    return "".join(
        [
            text(
                f"{len(scores)} prompts with {len(scores[0])} pictures each, {options['num_inference_steps']} steps without "
                "guidance, so that there is something to choose: the exact reward, minus the mean CIEDE2000 of circle and "
                f"background, is {shown(mean(scores))} on average over prompts, and varies by "
                f"{np.mean([np.std(each, ddof=1) for each in scores]):.2f} among the pictures of a prompt."
            ),
            figure(
                labelled_grid(images, columns, [each["prompt"] for each in picked], cell=112),
                "In the order of the exact reward, which the people below see with noise.",
            ),
        ]
    )


def people(folder: Path) -> str:
    from diffusers_ext.preferences.agreement import agreement

    ranked, truth = read(folder / "rankings.jsonl"), read_json(folder / "candidates" / "truth.json")
    spoilt = read(folder / "spoilt" / "rankings.jsonl")
    sheet = [[Image.open(path) for path in prompt.images] for prompt in spoilt[:2]]
    ranks = [f"ranked {rank}" for rank in spoilt[0].rankings[0].ranking]
    return "".join(
        [
            text(
                f"{len(ranked[0].rankings)} simulated people ranked the pictures of {len(ranked)} prompts each, through the "
                "checks and onto the disk as judgements of the annotation page. Each sees the exact colour error with noise "
                f"(temperature {truth['temperature']:g}). On pairs that two of them ordered they agree in "
                f"{agreement(ranked).by_prompt}. No reward can be right on more than {truth['bayes_accuracy']:.3f} of their pairs."
            ),
            text(
                f"Drawing is dear and spoiling is cheap: beside them stand {len(spoilt)} prompts with {len(spoilt[0].images)} "
                "circles each, whose colours, sharpness and noise were spoilt at random, ranked by three more."
            ),
            figure(
                labelled_grid(sheet, ranks, [prompt.prompt for prompt in spoilt[:2]], cell=112),
                "Spoilt circles of two prompts; ranks of the first row, by one person.",
            ),
            text("They are no people: they care for colours only, and err independently of each other.", "short"),
        ]
    )


def reward(folder: Path) -> str:
    from diffusers_ext.preferences.simulated import bayes_accuracy

    run, kept = folder / "reward", read(folder / "validation.jsonl")
    seen = [row for row in read_metrics(run) if "held_out_accuracy" in row]
    truth = read_json(folder / "candidates" / "truth.json")
    best = bayes_accuracy([truth["rewards"][prompt.id] for prompt in kept], truth["temperature"])
    last, steps = seen[-1], [row["step"] for row in seen]
    peak = max(seen, key=lambda row: row["held_out_accuracy"])
    lines = {
        "held-out accuracy": (steps, [row["held_out_accuracy"] for row in seen]),
        "the best possible": ([steps[0], steps[-1]], [best, best]),
    }
    grid = sorted((run / "samples").glob("step-*.png"))[-1]
    return "".join(
        [
            text(
                f"After {last['step']} steps the reward orders {last['held_out_accuracy']:.3f} "
                f"[{last['held_out_accuracy_low']:.3f}, {last['held_out_accuracy_high']:.3f}] of the pairs of "
                f"{len(kept)} prompts that it did not learn from as people do, on the model's own pictures; chance is 0.5, "
                f"{best:.3f} is possible.",
                "found",
            ),
            curves(lines, "step", "accuracy", "Accuracy on the prompts kept apart, by the training itself."),
            figure(
                grid, "Held-out prompts: pictures from the highest reward to the lowest, people's ranks in brackets."
            ),
            text(
                "The reward starts from random weights and sees a few thousand pictures in sixteen colours. It knows nothing "
                "else, and much of what these people see in the model's own pictures, whose colours differ little, escapes it. "
                f"The highest accuracy, {peak['held_out_accuracy']:.3f}, was measured at step {peak['step']}; the weights used "
                f"below are those of step {last['step']}, not chosen on these prompts.",
                "short",
            ),
        ]
    )


def rerank(folder: Path) -> str:
    record = read_json(folder / "rerank" / "scores.json")
    each = [prompt["candidates"] for prompt in record["prompts"]]  # the best by the learnt reward first
    exact = [[row["held_out"] for row in rows] for rows in each]
    counts = [n for n in (1, 2, 4, 8, 16) if n <= len(exact[0])]
    order = [sorted(rows, key=lambda row: row["number"]) for rows in each]

    def best_of(n: int, by: str) -> list[list[float]]:
        """The exact reward of the best by a score, in disjoint groups of n."""
        groups = [[rows[at : at + n] for at in range(0, len(rows) - n + 1, n)] for rows in order]
        return [[max(group, key=lambda row: row[by])["held_out"] for group in row] for row in groups]

    lines = {
        "the learnt reward chooses": (counts, [mean(best_of(n, "score")).micro for n in counts]),
        "the exact reward chooses": (counts, [mean(best_of(n, "held_out")).micro for n in counts]),
    }
    gain = mean([[rows[0] - np.mean(rows)] for rows in exact])
    most = mean([[max(rows) - np.mean(rows)] for rows in exact])
    first = [each[at] for at in range(min(4, len(each)))]
    images = [Image.open(folder / "rerank" / row["image"]) for rows in first for row in (rows[0], rows[-1])]
    captions = [
        f"{'first' if at == 0 else 'last'} of {len(rows)}: exact {row['held_out']:.2f}"
        for rows in first
        for at, row in ((0, rows[0]), (1, rows[-1]))
    ]
    outcome = verdict(
        gain,
        "Choosing by the learnt reward draws better pictures, by a measure that it never saw.",
        "Choosing by the learnt reward draws worse pictures: do not use it.",
        "Choosing by the learnt reward is not shown to draw better pictures than chance does.",
    )
    return "".join(
        [
            text(outcome, "found"),
            text(
                f"{len(exact)} colour pairs that are in no ranking and that the model was not trained on, "
                f"{len(exact[0])} candidates each. The exact reward of the chosen one is {shown(gain, sign=True)} above the "
                f"mean candidate; choosing by the exact reward itself would give {shown(most, sign=True)}. "
                "Intervals are bootstrapped over prompts."
            ),
            curves(lines, "candidates", "exact reward of the chosen", "Groups of N of the same candidates."),
            figure(
                captioned_grid(images, captions, columns=8, cell=104),
                "First and last of all candidates by the learnt reward: "
                + "; ".join(prompt["prompt"] for prompt in record["prompts"][:4]),
            ),
        ]
    )


def tune(folder: Path) -> str:
    seen = [row for row in read_metrics(folder / "tuned") if "held_out_reward" in row]
    measured = read_json(folder / "measured.json")["tuned"]
    gain = differences(measured["tuned"]["exact"], measured["base"]["exact"])
    parts = ("exact", "circle", "area")
    rows = [[name, *(shown(mean(measured[name][part])) for part in parts)] for name in ("base", "tuned")]
    steps = [0, *(row["step"] for row in seen)]

    def line(name: str) -> tuple:
        values = [seen[0][f"{name}_base"], *(row[name] for row in seen)]
        return steps, [value - values[0] for value in values]

    count = f"{len(measured['prompts'])} prompts with {len(measured['base']['exact'][0])} pictures each"
    outcome = verdict(
        gain,
        "Tuned by the learnt reward, the model draws better colours by the exact one, which was never optimised.",
        "Tuned by the learnt reward, the model draws worse colours by the exact one: the reward was fooled.",
        "Tuned by the learnt reward, the model is not shown to draw better colours by the exact one.",
    )
    return "".join(
        [
            text(outcome, "found"),
            table(["model", "exact reward [95 %]", "how much of a circle, 0 to 1", "its share of the picture"], rows),
            text(
                f"The difference of pictures from the same noise is {shown(gain, sign=True)}, {count}, on colour pairs that "
                "occur in no training prompt, one training seed."
            ),
            figure(folder / "tuned.png", "Held-out prompts, the same noise above and below."),
            curves(
                {"learnt reward, optimised": line("reward"), "exact reward, held out": line("held_out_reward")},
                "step",
                "gain over the base",
                "As the training measured it. The scales differ: what matters is that both rise.",
            ),
            figure(folder / "tuned" / "strength.png", strengths(folder), width=620),
            text(size_told(folder, measured), "short"),
        ]
    )


def size_told(folder: Path, measured: dict) -> str:
    """Did the reward take the circles' size for their colour?"""
    wider = differences(measured["tuned"]["area"], measured["base"]["area"])
    by_exact, by_learnt = sizes(folder / "rerank", "held_out"), sizes(folder / "rerank", "score")
    return verdict(
        wider,
        "The circles have grown, though nobody ranked by size: their share of the picture",
        "The circles have shrunk, though nobody ranked by size: their share of the picture",
        "The circles are not seen to have changed their size: their share of the picture",
    ) + (
        f" changes by {shown(wider, 3, sign=True)}. Among the candidates of a prompt a circle's size goes with the exact reward "
        f"at a correlation of {shown(by_exact)}, and with the learnt one at {shown(by_learnt)}: what goes along with good colours "
        "is rewarded too, and tuning goes where it is paid. Look at the pictures, not at the curves alone."
    )


def sizes(folder: Path, by: str) -> Ratio:
    """The correlation of the circle's share of the picture with a score among the candidates of a prompt."""
    found = []
    for prompt in read_json(folder / "scores.json")["prompts"]:
        rows = prompt["candidates"]
        area = [find_circle(np.asarray(Image.open(folder / row["image"]))).mean() for row in rows]
        scores = [row[by] for row in rows]
        if np.ptp(area) and np.ptp(scores):
            found.append([np.corrcoef(area, scores)[0, 1]])
    return mean(found)


def strengths(folder: Path) -> str:
    """What the sweep over strengths found, as a caption."""
    rows = read_json(folder / "tuned" / "strength.json")
    best, last = max(rows, key=lambda row: row["held_out_reward"]), rows[-1]
    return (
        f"The adapters at strengths from 0 to {last['strength']:g}: the learnt reward goes from {rows[0]['reward']:.2f} to "
        f"{last['reward']:.2f}, the exact one is highest at strength {best['strength']:g}, {best['held_out_reward']:.2f}, and "
        f"{last['held_out_reward']:.2f} at the last. Where one rises and the other falls the reward is being fooled."
    )


def control(folder: Path) -> str:
    measured = read_json(folder / "measured.json")["control"]
    names = {"none": "no control", "controlnet": "ControlNet", "controlnet-closer": "the same, tuned by the outline"}
    rows = [
        [
            label,
            shown(mean([[value] for value in measured[name]["iou"]]), 3),
            *(f"{np.median(measured[name][part]):.2f}" for part in ("circle_error", "background_error")),
        ]
        for name, label in names.items()
    ]
    pairs = [[[value] for value in measured[name]["iou"]] for name in names]
    follows, closer = differences(pairs[1], pairs[0]), differences(pairs[2], pairs[1])
    more = read_json(folder / "controlnet-closer" / "options.json")["options"]["max_train_steps"]
    gaps = [row for row in read_metrics(folder / "controlnet") if "gap" in row]
    outcome = verdict(
        closer,
        f"Tuning by the outline brings the circle closer: IoU {shown(closer, 3, sign=True)}.",
        f"Tuning by the outline moves the circle away: IoU {shown(closer, 3, sign=True)}.",
        f"Tuning by the outline changes nothing that {len(pairs[0])} outlines could show: IoU {shown(closer, 3, sign=True)}.",
    )
    return "".join(
        [
            text(f"The ControlNet puts the circle where the outline is: IoU {shown(follows, 3, sign=True)}.", "found"),
            table(["", "IoU [95 %]", "circle ΔE, median", "background ΔE, median"], rows),
            figure(folder / "control.png", f"{len(pairs[0])} outlines and colour pairs that no training saw."),
            text(outcome, "found"),
            text(
                f"After {gaps[-1]['step']} steps of the first training the held-out loss under another circle's outline is "
                f"{1 + gaps[-1]['gap']:.1f} times that under the right one (1 where outlines are ignored). "
                f"Circles are soon learnt so well that little is left to tune. The tuned one has learnt for {more} steps more: as many plain "
                "ones might do as much, which is not compared here (benchmarks/reward_tuning.py does).",
                "short",
            ),
        ]
    )
