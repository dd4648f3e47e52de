"""LADS: every equation against the official implementation's numbers, the bank against single networks, mistakes."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from diffusers_ext.engine.optimizers import TransformersAdamW
from diffusers_ext.errors import InputError
from diffusers_ext.lads import baselines as base
from diffusers_ext.lads import measures as metrics
from diffusers_ext.lads import objective as la
from diffusers_ext.lads.bank import AugmentationBank, augment, keeps_meaning, new_bank, part_way
from diffusers_ext.lads.card import lads_card
from diffusers_ext.lads.classifier import HEADS, LADSClassifier
from diffusers_ext.lads.data import Embedded, Splits
from diffusers_ext.lads.domains import Domains, DomainText, embed_domains
from diffusers_ext.lads.fit import adamw, fit
from diffusers_ext.lads.options import AugmentationOptions, LADSOptions
from diffusers_ext.lads.training import (
    ProbeRows,
    Trained,
    augmented_set,
    balanced_accuracy,
    bank_objective,
    measure_bank,
    moves_of,
    predicted_domains,
    row_weights,
    rows_of,
    text_by_images,
    train_bank,
    train_probe,
)

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


def test_what_is_measured(reference):
    nn, run = reference["nn_metrics"], reference["evaluate"]
    known = Embedded.of(nn["ref_x"], nn["ref_y"], range(9), nn["ref_d"], range(9))
    ours = metrics.neighbour_metrics(F.normalize(nn["aug_x"], dim=-1), nn["aug_y"], nn["aug_d"], known)
    theirs = [nn[name] for name in ("domain_consistency", "class_consistency", "unique_nn", "mean_cos")]
    close(list(ours.values()), torch.tensor(theirs), 2e-6)
    predictions, labels = run["pred"].long(), run["label"]
    for groups, expected in ((run["group"], run["group_acc"]), (labels, run["class_acc"])):
        ours = metrics.group_accuracy(predictions, labels, groups)
        assert [round(value, 2) for value in ours.values()] == expected
    close(100 * balanced_accuracy(predictions[None], labels, 5)[0], torch.tensor(run["balanced"]).float(), 1e-4)
    assert 100 * (predictions == labels).double().mean().item() == pytest.approx(run["acc"], abs=1e-4)


@pytest.mark.parametrize("case", ["lads_one", "bias_domgt"])
def test_the_official_seed(reference, case):
    """Torch's own draws give the official initial weights and batches back; ours have their distribution, not their values."""
    run = reference[case]
    torch.manual_seed(run["seed"])
    layers = [torch.nn.Linear(48, 24), torch.nn.Linear(24, 48)]
    drawn = [parameter for layer in layers for parameter in layer.parameters()]
    assert all(torch.equal(ours, run["init"][0][name]) for ours, name in zip(drawn, NAMES))
    loaders = [torch.utils.data.DataLoader(range(len(run[f"{part}_y"])), 32, shuffle=True) for part in ("train", "val")]
    for epoch in range(len(run["train_batches"])):
        for loader, theirs in zip(loaders, (run["train_batches"], run["val_batches"])):
            assert [batch.tolist() for batch in loader] == [list(map(int, batch)) for batch in theirs[epoch]]
    for ours, theirs in zip(new_bank([(seed, 0) for seed in range(40)], 48, 24).parameters(), drawn):
        bound = 48**-0.5 if theirs.shape[0] == 24 else 24**-0.5
        assert theirs.abs().max() <= bound and 0.95 * bound < ours.abs().max() <= bound
        assert ours.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_the_ensemble(reference):
    """The mean of the official zero-shot and probe probabilities of the same pictures."""
    text, run = reference["clip_zs"], reference["lp_plain"]
    probe = la.Probe(run["best"]["fc.weight"][None], run["best"]["fc.bias"][None])
    mixed = base.ensemble(base.zero_shot(text["class_text_embs"].T), base.linear(probe))
    ours = mixed(F.normalize(run["test_x"], dim=-1))[0]
    expected = (text["prob"] + run["test_prob"]) / 2
    close(ours.detach(), expected, 2e-5)
    assert torch.equal(ours.argmax(1), expected.argmax(1))


def test_zero_shot_and_ways_to_move(reference):
    run = reference["clip_zs"]
    close(base.zero_shot(run["class_text_embs"].T)(F.normalize(run["test_x"], dim=-1))[0], run["prob"], 2e-5)
    unit = reference["unit"]
    close(base.slerp(unit["x"], unit["y"], 0.3), unit["slerp"], 2e-6)
    # Officially both go towards the source; towards the same vectors ours does the same.
    kept, moved = reference["slerp"]["features"].view(-1, 2, 48).unbind(1)
    labels = reference["slerp"]["labels"].view(-1, 2)[:, 0]
    towards = reference["slerp"]["interpolates_towards"][labels, 0]
    close(F.normalize(base.slerp(kept, towards, 0.5), dim=-1), moved, 2e-6)


@pytest.fixture(scope="module")
def toy() -> tuple[Splits, DomainText]:
    """Four classes on two domains that differ by one direction, which the text knows but for some noise."""
    draw = torch.Generator().manual_seed(1)
    centres, shift = torch.randn(4, 24, generator=draw), 3 * torch.randn(24, generator=draw)

    def images(count: int, there: float, domain: int) -> Embedded:
        labels = torch.arange(count) % 4
        x = centres[labels] + there * shift + 0.8 * torch.randn(count, 24, generator=draw)
        return Embedded.of(x, labels, tuple("abcd"), torch.full((count,), domain), ("here", "there"))

    def said(there: float) -> torch.Tensor:
        return F.normalize(centres + there * shift + 0.2 * torch.randn(4, 24, generator=draw), dim=-1)

    splits = Splits(images(96, 0, 0), images(40, 0, 0), images(40, 0, 0), {"there": images(80, 1, 1)})
    source = said(0)
    return splits, DomainText(source[None], said(1)[None], source, source, source)


OPTIONS = LADSOptions(
    hidden_dim=32,
    num_train_epochs=15,
    train_batch_size=32,
    learning_rate=0.01,
    probe_epochs=20,
    probe_learning_rate=0.05,
)


def test_a_bank_is_its_networks(toy):
    """Seeds and domains together make what each makes alone."""
    splits, text = toy
    other = DomainText(**{**vars(text), "targets": torch.cat([text.targets, text.targets.roll(1, -1)])})
    options = replace(OPTIONS, num_train_epochs=3)
    both, _ = train_bank(splits.train, splits.val, other, options, [3, 4])
    for at, (seed, k) in enumerate([(3, 0), (3, 1), (4, 0), (4, 1)]):
        alone, _ = train_bank(splits.train, splits.val, other, options, [seed], [k])
        for together, single in zip(both.parameters(), alone.parameters()):
            torch.testing.assert_close(together[at], single[0], atol=2e-5, rtol=1e-4)
    rows = augmented_set(splits.train, both, other, options, [3, 4])
    together, _ = train_probe(rows, splits.val, options, [3, 4])
    alone, _ = train_probe(ProbeRows(rows.x[1], rows.labels, rows.weights[1:]), splits.val, options, [4])
    torch.testing.assert_close(together.weight[1], alone.weight[0], atol=1e-5, rtol=1e-4)


def test_it_moves_images_where_words_say_and_helps_there(toy):
    splits, text = toy
    bank, fitted = train_bank(splits.train, splits.val, text, OPTIONS, range(3))
    assert fitted.history[-1]["loss"][0] < 0.8 * fitted.history[0]["loss"][0]
    rows = augmented_set(splits.train, bank, text, OPTIONS, range(3))
    probe, _ = train_probe(rows, splits.val, OPTIONS, range(3))
    methods = {**base.baselines(splits, text, OPTIONS, range(3)), **base.of_lads(probe, text, splits.val)}
    rows = {row.method: row for row in base.measure(methods, splits, range(3))}
    pairs = zip(rows["LADS"].values["there"], rows["linear probe"].values["there"])
    assert all(ours > theirs for ours, theirs in pairs) and rows["LADS"].difference.mean > 5
    assert "| LADS |" in base.markdown(list(rows.values()))
    there = torch.ones(96, dtype=torch.long)
    before, after = (
        metrics.diagnostics(splits.train, rows, text, there)
        for rows in (splits.train.x, augment(bank, splits.train.x)[0])
    )
    assert after["domain_consistency"] > before["domain_consistency"] + 40
    assert after["within_class"] > after["within_class_before"] == before["within_class"]


@pytest.mark.parametrize(
    "changes",
    [
        {"residual": True},
        {"normalised_direction": True},
        {"logit_scale": 100.0},
        {"pairwise_weight": 10.0},
        {"neighbour_weight": 1.0},
        {"domain_class_text": True},
        {"without_gap": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_each_option_changes_the_networks(toy, changes):
    splits, text = toy
    few = replace(OPTIONS, num_train_epochs=2)
    plain, _ = train_bank(splits.train, splits.val, text, few)
    other, _ = train_bank(splits.train, splits.val, text, replace(few, **changes))
    assert (augment(plain, splits.train.x) - augment(other, splits.train.x)).abs().max() > 1e-3


def test_the_pairwise_term_and_the_residual_keep_a_class_apart(toy):
    splits, text = toy
    spread = {}
    for name, changes in {"plain": {}, "pairwise": {"pairwise_weight": 30.0}, "residual": {"residual": True}}.items():
        bank, _ = train_bank(splits.train, splits.val, text, replace(OPTIONS, **changes))
        spread[name] = metrics.within_class_cosine(augment(bank, splits.train.x)[0], splits.train.labels)
    before = metrics.within_class_cosine(splits.train.x, splits.train.labels)
    assert abs(spread["pairwise"] - before) < abs(spread["plain"] - before)
    assert spread["residual"] < spread["plain"]


def test_a_residual_network_starts_by_moving_nothing():
    x = F.normalize(torch.randn(5, 8), dim=-1)
    close(augment(new_bank([(0, 0), (1, 0)], 8, 4, residual=True), x), x.expand(2, 5, 8), 1e-6)
    first, second = new_bank([(0, 0)], 8, 4), new_bank([(1, 0), (0, 0)], 8, 4)
    assert torch.equal(first.weight1[0], second.weight1[1])
    assert not torch.equal(second.weight1[0], second.weight1[1])


def test_strength_and_filter():
    x, moved = F.normalize(torch.randn(50, 8), dim=-1), F.normalize(torch.randn(2, 50, 8), dim=-1)
    part = part_way(x, moved, seed=0)
    assert torch.equal(part, part_way(x, moved, seed=0)) and not torch.equal(part, part_way(x, moved, seed=1))
    assert ((part * x).sum(-1) >= (moved * x).sum(-1) - 1e-5).all(), "nowhere further than all the way"
    classes, row = torch.eye(3, 8), torch.tensor([[1.0, 0.1, 0, 0, 0, 0, 0, 0]])
    away, stays, turns = torch.zeros(1, 1, 8), row.clone(), row.clone()
    away[..., 4] = stays[0, 4] = turns[0, 4] = 1
    turns[0, :2] = torch.tensor([0.1, 1.0])
    label = torch.tensor([0])
    kept = [keeps_meaning(row, each[None], label, classes, away).item() for each in (stays, turns, row)]
    assert kept == [True, False, False], "moved; of another class now; not moved"


def test_originals_weigh_their_share(toy):
    splits, text = toy
    bank = new_bank([(0, 0)], 24, 8)
    for share in (0.5, 0.8):
        _, _, weights = augmented_set(splits.train, bank, text, replace(OPTIONS, original_share=share))
        each = weights.view(len(splits.train), 2).sum(0)
        assert (each[0] / each.sum()).item() == pytest.approx(share)


def test_directions_without_the_gap_and_by_images(toy):
    splits, text = toy
    train = splits.train
    gap = la.modality_gap(train.x, text.source)
    table = moves_of(train, text, replace(OPTIONS, without_gap=True), [0])
    close(table @ gap, torch.zeros(1, 1, 4), 1e-6)
    close(table.norm(dim=-1), torch.ones(1, 1, 4), 1e-6)
    both = replace(train, domains=torch.arange(len(train)) % 2)
    swap = DomainText(*[text.source.repeat(2, 1, 1)] * 2, *[text.classes] * 3, swap=True)
    moves = moves_of(both, text_by_images(both, swap), OPTIONS, [0])
    assert moves.shape == (1, 2, 4, 24)
    apart = both.x[both.domains == 1].mean(0) - both.x[both.domains == 0].mean(0)
    few = splits.out_of_domain["there"].where(torch.arange(5))
    moved = moves_of(train, text_by_images(train, text, [few]), OPTIONS, [0])
    close(moved, F.normalize(few.x.mean(0) - train.x.mean(0), dim=-1).expand(1, 1, 4, 24), 1e-6)
    close(moves[0], F.normalize(torch.stack([apart, -apart]), dim=-1)[:, None].expand(2, 4, 24), 1e-6)


def test_temperatures_undo_a_scale(toy):
    """Logits that were scaled get the factor that scales them back, so that a probe's own scale does not matter."""
    splits, text = toy
    probe, _ = train_probe(base.equal_rows(splits.train), splits.val, OPTIONS)
    hot = la.Probe(10 * probe.weight, 10 * probe.bias)
    labels = torch.where(torch.arange(len(splits.val)) % 5 == 0, (splits.val.labels + 1) % 4, splits.val.labels)
    val = replace(splits.val, labels=labels)  # with mistakes, or no temperature would be hot enough
    by_text, plain = base.temperatures(probe, text.classes, val)
    assert by_text > 0
    assert base.temperatures(hot, text.classes, val)[1].item() == pytest.approx(plain.item() / 10, rel=0.01)
    mixed = [base.calibrated(each, text.classes, val)(val.x) for each in (probe, hot)]
    torch.testing.assert_close(*mixed, atol=1e-3, rtol=0)


def test_weak_labels_are_not_constant(reference):
    """The official code gives every image domain 0 where none are given; here text tells them apart, and one is refused."""
    run = reference["bias_domgt"]
    text, train = official_text(run, True), embedded(run, "train")
    labels = predicted_domains(train, text).domains
    assert len(labels.unique()) == 2
    with pytest.raises(InputError, match="needs images of both domains"):
        train_bank(Embedded.of(train.x, train.labels, train.classes), train, text, OPTIONS)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"source": ["a {}"], "targets": ["a painting of a {}", "a sketch of a {}"]}, "must name each domain"),
        ({"source": ["a {}"], "targets": {"painting": ["a painting"]}}, "with one {}"),
        ({"source": ["a {}"], "targets": {"painting": []}}, "domain 'painting' has no template"),
        ({"source": ["a {}"]}, '"source" and "targets", or "swap" alone'),
        ({"swap": {"red": ["a red {}"]}}, "between two domains"),
        ({"source": ["a {}"], "targets": {"x": ["a {}"]}, "clases": []}, "unknown key 'clases'"),
        ("nowhere.json", "nowhere.json: no JSON declaration"),
        ("[1]", "no JSON declaration"),
    ],
)
def test_mistakes_in_the_declaration(declared, message):
    with pytest.raises(InputError, match=message):
        Domains.read(declared)


def test_mistakes_in_the_embeddings(toy):
    splits, text = toy
    x, labels = torch.randn(4, 8), torch.tensor([0, 1, 0, 1])
    with pytest.raises(InputError, match="embedding 2 is zero or not finite"):
        Embedded.of(x.index_fill(0, torch.tensor([2]), torch.nan), labels, ("a", "b"))
    with pytest.raises(InputError, match="one row each"):
        Embedded.of(x, labels[:3], ("a", "b"))
    with pytest.raises(InputError, match="label 1 is out of range"):
        Embedded.of(x, labels, ("a",))
    with pytest.raises(InputError, match="a split or domain is empty"):
        Embedded.of(x[:0], labels[:0], ("a",))
    without = splits.train.where(splits.train.labels != 2)
    with pytest.raises(InputError, match="class 'c' has no training image"):
        Splits(without, splits.val, splits.in_domain, splits.out_of_domain)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train_bank(splits.train, splits.val, text, AugmentationOptions(learning_rate=1e30, num_train_epochs=3))


@pytest.fixture(scope="module")
def trained(toy):
    """A probe and a bank."""
    splits, text = toy
    bank, _ = train_bank(splits.train, splits.val, text, OPTIONS)
    rows = augmented_set(splits.train, bank, text, OPTIONS)
    return Trained(train_probe(rows, splits.val, LADSOptions(probe_epochs=3)).probe, bank)


def classifier(toy, trained, **options) -> LADSClassifier:
    splits, text = toy
    domains = Domains.read({"source": ["a {}"], "targets": {"there": ["a {} there"]}})
    return LADSClassifier.assemble(trained, text, domains, splits, training={"options": options})


def test_a_classifier_of_embeddings_alone(toy, trained, tmp_path):
    (splits, text), (probe, _), made = toy, trained, classifier(toy, trained)
    made.save_pretrained(tmp_path / "model")
    loaded, x = LADSClassifier.from_pretrained(tmp_path / "model"), splits.out_of_domain["there"].x
    assert torch.equal(loaded.predict(x.numpy()).probabilities, made.predict(x).probabilities)
    close(made.predict(x).probabilities, base.linear(probe)(x)[0], 1e-6)
    expected = base.calibrated(probe, text.adaptive, splits.val)(x)[0]
    close(loaded.predict(x, head="calibrated").probabilities, expected, 1e-5)
    told = [loaded.predict(rows).domains.count("there") / len(rows) for rows in (x, splits.val.x)]
    assert told[0] > 0.9 and told[1] < 0.2
    with pytest.raises(InputError, match="names no backbone"):
        loaded.predict(["a.png"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_classifier_in_half_precision(toy, trained, tmp_path, dtype):
    made, x = classifier(toy, trained, zero_shot_init=True), toy[0].out_of_domain["there"].x
    made.save_pretrained(tmp_path / "model")
    halves = [LADSClassifier.from_pretrained(tmp_path / "model", torch_dtype=dtype)]
    halves += [LADSClassifier.from_pretrained(tmp_path / "model").to(dtype)]
    for half in halves:
        assert half.dtype == dtype
        for head in HEADS:
            found, wanted = (model.predict(x, head=head) for model in (half, made))
            assert found.probabilities.dtype == torch.float32
            close(found.probabilities, wanted.probabilities, 0.1)
        close(half.augment(x), made.augment(x), 0.02)


def test_mistakes_in_the_head(toy, trained):
    x = toy[0].val.x
    with pytest.raises(InputError, match="did not start from class text"):
        classifier(toy, trained, zero_shot_init=False).predict(x, head="wise")
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="from 0 to 1"):
            classifier(toy, trained).predict(x, head="ensemble", share=share)
    probe, text = trained[0], toy[1]
    found = classifier(toy, trained, zero_shot_init=True).predict(x, head="wise", share=0.25).probabilities
    close(found, base.wise(probe, text.adaptive, 0.25)(x)[0], 1e-6)


def test_the_card_says_which_images_were_used(toy, trained):
    config = dict(classifier(toy, trained).config)
    assert "No image of a target domain was used" in str(lads_card(config, "x"))
    swap = str(lads_card({**config, "domains": {"swap": {"a": ["a {}"], "b": ["b {}"]}}}, "x"))
    assert "No image of a target" not in swap and "Images of both domains were trained on" in swap
    assert '"wise"' not in swap
    config["training"] = {"options": {"zero_shot_init": True, "image_directions": True}}
    card = str(lads_card(config, "x"))
    assert '"wise"' in card and "mean images" in card and "No image of a target" not in card


def test_paired_differences():
    found = metrics.paired([3.0, 4.0, 5.0], [1.0, 2.5, 2.5])
    assert found.mean == 2.0 and found.low < 2.0 < found.high and found.p < 0.05
    assert metrics.paired([1.0, 2.0], [1.0, 2.0]).p == 1.0 and metrics.paired([2.0, 3.0], [1.0, 2.0]).p == 0.0


def test_extended_accuracy_both_ways(toy):
    splits, _ = toy
    right = {name: test.labels.clone() for name, test in splits.tests.items()}
    right["there"][:8] = 3 - right["there"][:8]
    found = metrics.extension(right, splits.tests)
    assert found["in domain"] == 100 and found["there"] == found["out_of_domain"] == 90
    assert found["extended"] == 95 and found["extended_micro"] == pytest.approx(100 * 112 / 120)
    assert found["worst_group"] == 90
