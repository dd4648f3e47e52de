"""LADS: every equation against the official implementation's numbers, the bank against single networks, mistakes."""

import pytest
import torch
from torch.nn import functional as F

from diffusers_ext.lads_bank import AugmentationBank
from diffusers_ext.lads_data import Embedded
from diffusers_ext.lads_domains import Domains, DomainText, embed_domains
from diffusers_ext.lads_options import AugmentationOptions
from diffusers_ext.lads_training import (
    adamw,
    augmented_set,
    balanced_accuracy,
    bank_objective,
    fit,
    measure_bank,
    row_weights,
    rows_of,
)
from diffusers_ext.objectives import latent_augmentation as la
from diffusers_ext.optimizers import TransformersAdamW

NAMES = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


@pytest.fixture(scope="module")
def reference(shared) -> dict:
    return torch.load(shared / "reference" / "lads_reference.pt", weights_only=True)


def close(ours, theirs, tolerance):
    torch.testing.assert_close(
        torch.as_tensor(ours, dtype=torch.float32), torch.as_tensor(theirs), atol=tolerance, rtol=0
    )


def test_the_equations(reference):
    unit = reference["unit"]
    x, y, labels = unit["x"], unit["y"], unit["y_dir"]
    for kind in ("cosine", "mse", "mae"):
        close(la.direction_loss(x, y, kind), unit[f"direction_{kind}"], 2e-6)
    close(la.class_logits(x, unit["class_embs"].T), unit["class_logits"], 2e-6)
    close(la.class_weights(unit["labels"], 5), unit["class_weights"], 2e-6)
    starts = la.nearest_sentences(x, labels, unit["source"])
    table = la.move_table(unit["source"], unit["target"])
    for network in (0, 1):
        close(la.directions(table, starts, labels)[network], unit[f"directions_net{network}"], 2e-6)
    swapped = la.directions(la.swap_table(unit["source"][:2]), unit["bias_domains"], labels)[0]
    close(swapped, unit["bias_directions"], 2e-6)
    logits = la.neighbour_logits(x, unit["nn_samples"])
    close(logits, unit["nn_logits"], 2e-6)
    assert torch.equal(logits.argmax(1), unit["nn_index"])
    assert torch.equal(la.nearest_domains(x, unit["weak_dom_emb"][:, None]), unit["weak_dom_labels"])


def test_the_prompts(reference):
    text, table = reference["text"], reference["text_table"]
    classes = ["albatross", "cardinal", "wren", "heron", "finch"]

    def encode(sentences):
        return torch.stack([table[sentence] for sentence in sentences])

    declared = {
        "source": ["a sketch of a {}", "a drawing of a {}."],
        "targets": {
            "photo": ["a realistic photo of a {}"],
            "painting": ["a painting of a {}"],
            "clipart": ["clipart of a {}", "a {} clipart"],
        },
    }
    domains = Domains.read(declared)
    # The generic zero-shot classifier's second sentence is not in the reference: any vector serves.
    known = {**table, **{f"an image of a {name}": torch.ones(48) for name in classes}}
    ours = embed_domains(domains, classes, lambda sentences: torch.stack([known[s] for s in sentences]))
    source, targets = text["two_three_nested"]
    close(ours.source, source, 2e-6)
    close(ours.targets, targets, 2e-6)
    each = F.normalize(encode([prompt for pair in text["ensemble_prompts"] for prompt in pair]), dim=-1)
    close(F.normalize(each.view(5, 2, 48).mean(1), dim=-1).T, text["ensemble_norm"], 2e-6)


def test_the_optimizers_update(reference):
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(40))
    optimizer = TransformersAdamW([parameter], lr=0.01, weight_decay=0.05)
    for step, expected in enumerate(reference["adamw"]["hf_4_28_1"]):
        parameter.grad = 1e-3 * torch.sin(parameter.detach() * (step % 5 + 1))
        optimizer.step()
        close(parameter.detach(), expected, 1e-6)


def official_options(run: dict) -> AugmentationOptions:
    settings = run["config"]["AUGMENTATION"]
    return AugmentationOptions(
        hidden_dim=settings["MODEL"]["HIDDEN_DIM"],
        learning_rate=settings["MODEL"]["LR"],
        weight_decay=settings["MODEL"]["WEIGHT_DECAY"],
        num_train_epochs=settings["EPOCHS"],
        train_batch_size=run["config"]["DATA"]["BATCH_SIZE"],
        alpha=settings["ALPHA"],
        neighbour_weight=settings["NN_WEIGHT"],
        domain_class_text=settings["DOM_SPECIFIC_XE"],
        compat="official",
    )


def official_bank(states: list[dict]) -> AugmentationBank:
    hidden, dim = states[0][NAMES[0]].shape
    bank = AugmentationBank(len(states), dim, hidden)
    for parameter, name in zip(bank.parameters(), NAMES):
        parameter.data = torch.stack([state[name] for state in states])
    return bank


def official_text(run: dict, swap: bool) -> DomainText:
    classes, source = run["class_text_embs"].T, run["source_embeddings"]
    return DomainText(source, source if swap else run["target_embeddings"], classes, classes, classes, swap)


def embedded(run: dict, part: str) -> Embedded:
    """The official rows as they are: normalised there, not again here."""
    names = tuple(f"class {at}" for at in range(int(run["train_y"].max()) + 1))
    domains = run.get(f"{part}_dom_used", torch.zeros_like(run[f"{part}_y"]))
    return Embedded(run[f"{part}_x"], run[f"{part}_y"], domains, names, ("0", "1"))


def official_orders(batches: list):
    return lambda epoch: [torch.tensor(batch)[None] for batch in batches[epoch]]


@pytest.mark.parametrize("case", ["lads_one", "bias_domgt"])
def test_a_whole_run_of_the_official_code(reference, case):
    run = reference[case]
    swap, options = case.startswith("bias"), official_options(run)
    train, val, text = embedded(run, "train"), embedded(run, "val"), official_text(run, swap)
    bank = official_bank([run["init"][network] for network in run["init"]])
    objective = bank_objective(bank, train, text, options, [0])
    close(objective.weights, run["class_weights"], 2e-6)
    steps, rows = iter(run["steps"]), rows_of(train, text)
    optimizer = adamw(list(bank.parameters()), options.learning_rate, options.weight_decay, official=True)
    expected = None

    def checked_rows(index):
        """Compare the step before with the official one, and hand out the next rows."""
        nonlocal expected
        if expected and "params_after" in expected:
            for parameter, theirs in zip(bank.parameters(), expected["params_after"]):
                close(parameter[0].detach(), theirs, 5e-6)
        expected, batch = next(steps), rows(index)
        parts = objective(batch)
        close(parts["loss"][0].detach(), expected["total"], 2e-5)
        close(parts["direction"][0].detach(), expected["directional_vec"][0].mean(), 2e-5)
        close(parts["class"][0].detach(), expected["ce"][0], 2e-5)
        if "grads" in expected:
            for ours, theirs in zip(
                torch.autograd.grad(parts["loss"].sum(), list(bank.parameters())), expected["grads"]
            ):
                close(ours[0], theirs, 5e-6)
        return batch

    measure = measure_bank(objective, rows_of(val, text), official_orders(run["val_batches"]), by_batch=True)
    fitted = fit(
        objective, checked_rows, official_orders(run["train_batches"]), optimizer, options.num_train_epochs, measure
    )
    assert next(steps, None) is None
    for row, (train_row, val_row) in zip(fitted.history, zip(run["epoch_metrics"][::2], run["epoch_metrics"][1::2])):
        close(row["loss"][0], train_row["train loss"], 2e-5)
        close(row["score"][0], val_row["val loss"], 2e-5)
    for parameter, name in zip(bank.parameters(), NAMES):
        close(parameter[0].detach(), run["final"][0][name], 5e-5)
    x, labels, _ = augmented_set(train, bank, text, options)
    close(x[0], run["aug_features"], 5e-5)
    assert torch.equal(labels, run["aug_labels"])


@pytest.mark.parametrize("case", ["lp_plain", "lp_lads"])
def test_a_whole_probe_of_the_official_code(reference, case):
    run = reference[case]
    settings, (train, val) = run["config"]["METHOD"]["MODEL"], (embedded(run, part) for part in ("train", "val"))
    probe = la.Probe(run["init"]["fc.weight"][None].clone(), run["init"]["fc.bias"][None].clone())
    weights = row_weights(train.labels, torch.ones(1, len(train), dtype=torch.bool), 5)
    steps, optimizer = (
        iter(run["steps"]),
        adamw(list(probe.parameters()), settings["LR"], settings["WEIGHT_DECAY"], True),
    )

    def rows(index):
        batch = {"x": train.x[index], "labels": train.labels[index], "weights": weights[0][index]}
        close(probe(batch)["loss"][0].detach(), next(steps)["total"], 2e-5)
        return batch

    def measure(epoch):
        return -balanced_accuracy(probe.logits(val.x[None]).argmax(-1), val.labels, 5)

    fitted = fit(probe, rows, official_orders(run["train_batches"]), optimizer, 8, measure)
    assert fitted.best_epoch == [run["best_epoch"]]
    assert -100 * min(row["score"][0] for row in fitted.history) == pytest.approx(
        run["best_val_balanced_acc"], abs=1e-4
    )
    probabilities = probe.logits(F.normalize(run["test_x"], dim=-1)[None]).softmax(-1)[0].detach()
    close(probabilities, run["test_prob"], 2e-5)
    assert torch.equal(probabilities.argmax(1).double(), run["test_pred"])
