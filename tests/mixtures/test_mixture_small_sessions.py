"""Small sessions add up to a jury; what no jury has judged says so; columns of wild scales are brought to one."""

import warnings

import numpy as np
import pytest
import torch

from diffusers_ext import VMFMixtureClassifier
from diffusers_ext.errors import InputError
from diffusers_ext.mixtures.heads import RIDGES, cross_validation
from diffusers_ext.mixtures.spaces import TiedCovariance

DIM = 12


def planted(count: int, classes: int = 3, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of classes in turn, around means that are the same for every seed."""
    means = 2 * np.random.default_rng(99).normal(size=(classes, DIM))
    draw, labels = np.random.default_rng(seed), np.arange(count) % classes
    return (means[labels] + noise * draw.normal(size=(count, DIM))).astype(np.float32), labels


def learnt_by(size: int, weeks: int, **settings) -> VMFMixtureClassifier:
    """A classifier after so many weeks of `size` samples a class."""
    features, labels = planted(3 * size * weeks)
    learner = VMFMixtureClassifier(DIM, **settings)
    for part in np.split(np.arange(len(labels)), weeks):
        learner.partial_fit(features[part], labels[part])
    return learner


@pytest.mark.parametrize(
    ("size", "weeks", "jurors"), [(1, 9, 0), (1, 25, 2), (3, 10, 3), (5, 8, 4), (9, 7, 6), (9, 1, 0)]
)
def test_weeks_of_under_ten_add_up_to_a_jury(size, weeks, jurors):
    learner = learnt_by(size, weeks)
    assert torch.bincount(learner.learnt.jury.classes, minlength=3).tolist() == [jurors] * 3
    assert float(learner.space.counts.sum()) == 3 * size * weeks, "who is held out counts when predicting"
    assert bool(learner.session_log_[-1]["held_out_accuracy"]) == (jurors > 0)


@pytest.mark.parametrize("size", [10, 15, 40])
def test_weeks_of_ten_or_more_hold_out_what_they_did(size):
    learner = learnt_by(size, 3)
    assert torch.bincount(learner.learnt.jury.classes).tolist() == [3 * (size // 10)] * 3
    assert "waiting" not in learner.config.grown


def test_who_waits_is_saved_forgotten_and_merged(tmp_path):
    whole, features, labels = learnt_by(4, 2), *planted(12, seed=5)
    whole.save_pretrained(tmp_path)
    loaded = VMFMixtureClassifier.from_pretrained(tmp_path)
    assert loaded.learnt.jury.waiting.tolist() == [8, 8, 8]
    for learner in (whole, loaded):
        learner.partial_fit(features, labels)
    assert torch.equal(whole.learnt.jury.features, loaded.learnt.jury.features) and len(whole.learnt.jury.classes) == 3
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in whole.state_dict().items())
    merged = learnt_by(4, 2).merge(learnt_by(3, 1))
    assert merged.learnt.jury.waiting.tolist() == [11, 11, 11]
    assert merged.forget(1).learnt.jury.waiting.tolist() == [11, 11]


def test_a_class_by_itself_waits_by_itself():
    features, labels = planted(60)
    learner = VMFMixtureClassifier(DIM)
    for row in np.flatnonzero(labels == 0)[:11]:
        learner.partial_fit(features[row : row + 1], labels[row : row + 1])
    assert learner.learnt.jury.classes.tolist() == [0] and learner.learnt.jury.waiting.tolist() == [1]


def test_a_state_saved_before_there_was_waiting_loads(tmp_path):
    import json

    learnt_by(4, 2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["grown"]["waiting"], config["standardise"], config["encoder_digest"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    old = VMFMixtureClassifier.from_pretrained(tmp_path)
    assert old.learnt.jury.waiting.tolist() == [] and len(old.predict(planted(3)[0])) == 3


def test_the_order_of_rows_of_other_classes_does_not_matter():
    """A class's juror depends on its session alone."""
    assert len(learnt_by(5, 4).learnt.jury.classes) == len(learnt_by(5, 4, seed=1).learnt.jury.classes) == 6


@pytest.mark.parametrize(("size", "weeks", "words"), [(5, 1, "too few samples"), (10, 1, "only fitted on 3 samples")])
def test_what_is_not_calibrated_says_so(size, weeks, words, tmp_path):
    learner, features = learnt_by(size, weeks), planted(6)[0]
    assert not learner.calibrated_
    with pytest.warns(UserWarning, match=f"not calibrated.*{words}"):
        learner.predict_proba(features)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.predict_proba(features)  # once
    learner.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "Probabilities are not calibrated" in card and words in card


def test_what_is_calibrated_says_so_too(tmp_path):
    learner = learnt_by(5, 25)
    assert learner.calibrated_
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.predict_proba(planted(6)[0])
    learner.save_pretrained(tmp_path)
    assert "Probabilities are calibrated on 36 samples of 3 of 3 classes" in (tmp_path / "README.md").read_text()
    none = learnt_by(40, 1, jury=0, transform="none")
    with pytest.warns(UserWarning, match="jury=0"):
        none.predict_proba(planted(6)[0])


def test_pooled_without_a_jury_is_of_both_heads():
    features, labels = planted(400, noise=3.0)
    settings = {"jury": 0, "memory": 0, "transform": "whiten", "shrinkage": 3.0, "projections": 60}
    made = {
        head: VMFMixtureClassifier(DIM, head=head, **settings).partial_fit(features[:90], labels[:90])
        for head in ("mixture", "ranpac", "pooled")
    }
    scores = {head: learner.decision_function(features[90:]) for head, learner in made.items()}
    assert not torch.equal(scores["pooled"], scores["ranpac"]) and not torch.equal(scores["pooled"], scores["mixture"])
    spread = {head: scores[head].std(1, correction=0, keepdim=True) for head in scores}
    even = scores["mixture"] / spread["mixture"] + scores["ranpac"] / spread["ranpac"]
    assert (even.argmax(1) == scores["pooled"].argmax(1)).float().mean() > 0.999
    right = {head: learner.score(features[90:], labels[90:]) for head, learner in made.items()}
    assert right["pooled"] >= min(right["mixture"], right["ranpac"]) - 0.02


def test_generalised_cross_validation_is_its_definition():
    features, labels = (torch.from_numpy(each) for each in planted(50))
    sums = TiedCovariance(DIM)
    sums.add(features, labels)
    x, y = features.double(), torch.nn.functional.one_hot(labels, 3).double()
    for ridge in RIDGES:
        level = ridge * (x.T @ x).diagonal().mean()
        hat = x @ torch.linalg.solve(x.T @ x + level * torch.eye(DIM), x.T)
        wanted = (y - hat @ y).square().sum() / (50 - hat.trace()) ** 2
        assert cross_validation(sums, ridge) == pytest.approx(float(wanted), rel=1e-8)


SCALES = {
    "one column": np.r_[1e4, np.ones(DIM - 1)],
    "powers of ten": 10.0 ** np.linspace(-4, 4, DIM),
    "half of them": np.r_[np.full(DIM // 2, 1e3), np.ones(DIM // 2)],
}


@pytest.mark.parametrize("name", SCALES)
def test_columns_of_wild_scales_are_brought_to_one(name, tmp_path):
    features, labels = planted(300, noise=2.0)
    test, wanted = planted(300, seed=1, noise=2.0)
    wild = SCALES[name].astype(np.float32)
    plain = VMFMixtureClassifier(DIM, standardise=True).partial_fit(features, labels)
    with pytest.warns(UserWarning, match="each is divided by its root mean square"):
        learner = VMFMixtureClassifier(DIM).partial_fit(features * wild, labels)
    assert (learner.predict(test * wild) == plain.predict(test)).mean() > 0.99
    with pytest.warns(UserWarning, match="give standardise=True"):
        left = VMFMixtureClassifier(DIM, standardise=False).partial_fit(features * wild, labels)
    assert learner.score(test * wild, wanted) > left.score(test * wild, wanted)
    learner.save_pretrained(tmp_path)
    loaded = VMFMixtureClassifier.from_pretrained(tmp_path)
    for each in (learner, loaded):
        each.partial_fit(test * wild, wanted)
    assert torch.equal(loaded.decision_function(test * wild), learner.decision_function(test * wild))


def test_a_column_that_was_zero_takes_its_scale_later():
    features, labels = planted(120)
    silent = features.copy()
    silent[:, 4] = 0
    learner = VMFMixtureClassifier(DIM, standardise=True).partial_fit(silent, labels)
    assert float(learner.learnt.columns.scales[4]) == 0
    learner.partial_fit(features * np.r_[np.ones(4), 1e5, np.ones(DIM - 5)].astype(np.float32), labels)
    assert float(learner.learnt.columns.scales[4]) > 1e4


def test_ordinary_columns_stay_as_they_are_and_other_scales_are_told():
    features, labels = planted(60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner = VMFMixtureClassifier(DIM).partial_fit(features, labels)
    assert learner.learnt.columns.scales is None and "columns" not in learner.config.grown
    with pytest.raises(InputError, match="scaled their columns differently"):
        learner.merge(VMFMixtureClassifier(DIM, standardise=True).partial_fit(features, labels))
    scaled = VMFMixtureClassifier(DIM, standardise=True).partial_fit(features, labels)
    with pytest.warns(UserWarning, match="from the scale of the first session"):
        scaled.partial_fit(features * SCALES["one column"].astype(np.float32), labels)


def test_batches_are_scaled_as_a_session():
    features, labels = planted(90)
    wild = features * SCALES["one column"].astype(np.float32)
    batches = [(wild[part], labels[part]) for part in np.split(np.arange(90), 3)]
    with pytest.warns(UserWarning, match="root mean square"):
        one, many = (
            VMFMixtureClassifier(DIM).partial_fit(wild, labels),
            VMFMixtureClassifier(DIM).partial_fit_batches(batches),
        )
    assert (one.predict(wild) == many.predict(wild)).all()
