"""The classifier that keeps learning: planted streams, exact growth, persistence, faults."""

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from diffusers_ext import VMFMixtureClassifier
from diffusers_ext.errors import InputError
from diffusers_ext.mixtures.em import Statistics
from diffusers_ext.mixtures.prediction import Predictor, integer_products
from diffusers_ext.mixtures.scores import ComponentScores, predictive
from diffusers_ext.mixtures.vmf import log_normalizer, mean_resultant_length
from diffusers_ext.streams.baselines import MeanPerSession, NearestMean, StreamingLDA
from diffusers_ext.streams.planted import planted
from diffusers_ext.streams.planted_checks import adjusted_rand_index, on_planted
from diffusers_ext.streams.sessions import build_sessions

DIM = 128


def final(learner, halves, setting: str, seed: int = 10) -> float:
    return on_planted(learner, halves, setting, seed)["final_accuracy"]


def small(seed: int = 0, classes: int = 4, per_mode: int = 30, dim: int = 16):
    """Two well separated modes a class: features, labels, modes."""
    generator = torch.Generator().manual_seed(seed)
    means = F.normalize(torch.randn(2 * classes, dim, generator=generator))
    modes = torch.arange(2 * classes).repeat_interleave(per_mode)
    features = F.normalize(means[modes] + 0.08 * torch.randn(len(modes), dim, generator=generator))
    return features, modes // 2, modes


@pytest.fixture(scope="module")
def indep():
    return planted("indep200", 10)


def test_planted_modes_are_found_where_they_arrive_one_by_one(indep):
    """Checks 4, 8 and 24 at the size of a test; benchmarks/incremental.py has the large streams and three seeds."""
    found = on_planted(VMFMixtureClassifier(DIM, memory=1000, transform="none"), indep, "ND", 10)
    assert 3.8 <= found["modes_per_class"] <= 4.2 and abs(found["kappa_ratio"] - 1) < 0.01
    assert found["rand_index"] >= 0.97
    assert found["final_accuracy"] >= final(MeanPerSession(DIM), indep, "ND") - 2


def test_planted_modes_are_found_in_one_session_and_auto_loses_nothing(indep):
    """Checks 5 and 7: many modes at once, and a learner that has to choose its space."""
    found = on_planted(VMFMixtureClassifier(DIM, memory=1000), indep, "NC", 10)
    assert found["modes_per_class"] >= 3.5 and found["final_accuracy"] >= 67
    assert found["final_accuracy"] >= final(NearestMean(DIM), indep, "NC") + 30


def test_whitening_is_chosen_where_features_need_it():
    """Check 9: anisotropic features with a common offset."""
    cone = planted("cone", 10)
    learner = VMFMixtureClassifier(DIM, memory=1000)
    assert final(learner, cone, "NC") >= final(StreamingLDA(DIM), cone, "NC") - 1.0
    assert learner.session_log_[-1]["space"] == "whitened"


def test_one_mode_a_class_stays_one():
    """Check 11: no harm where nothing is to be found."""
    single = planted("single", 10)
    learner = VMFMixtureClassifier(DIM, memory=500, transform="none")
    assert final(learner, single, "NC") >= final(NearestMean(DIM), single, "NC") - 1.0
    assert np.mean(list(learner.n_components_.values())) <= 1.05


def test_balanced_weights_help_the_worst_domain(indep):
    """Check 14."""
    worst = {}
    for weights in ("uniform", "counts"):
        learner = VMFMixtureClassifier(DIM, memory=0, transform="none", weights=weights, shrinkage=0.0)
        worst[weights] = on_planted(learner, indep, "ND", 10)["worst_domain"]
    assert worst["uniform"] >= worst["counts"] + 1


def test_classes_that_are_absent_stay_as_they_were():
    """Check 16, bit for bit."""
    features, labels, _ = small()
    learner = VMFMixtureClassifier(16, transform="none").partial_fit(features, labels)
    before = {name: getattr(learner.space, name).clone() for name in ("counts", "sums", "lengths", "ids")}
    untouched = learner.space.classes >= 2
    learner.partial_fit(features[labels < 2] + 0.3, labels[labels < 2])
    kept = learner.space.classes >= 2
    assert all(torch.equal(getattr(learner.space, name)[kept], value[untouched]) for name, value in before.items())
    assert int(learner.space.counts.sum() - before["counts"].sum()) == 120


def test_classes_that_are_absent_stay_when_kappa_falls():
    """Check 16: wide classes that come later do not merge the components of a narrow one."""
    draw = torch.Generator().manual_seed(0)
    modes = F.normalize(torch.randn(1, 16, generator=draw) + 0.4 * torch.randn(6, 16, generator=draw))
    narrow = modes.repeat_interleave(20, 0) + 0.01 * torch.randn(120, 16, generator=draw)
    learner = VMFMixtureClassifier(16, transform="none").partial_fit(narrow, ["narrow"] * 120)
    before, kappa = learner.n_components_["narrow"], learner.kappa_
    for session in range(2):
        learner.partial_fit(torch.randn(600, 16, generator=draw), [f"wide {session}"] * 600)
    assert before == 6 and learner.kappa_ < kappa / 4
    assert learner.n_components_["narrow"] == before


@pytest.mark.parametrize("rank", [1, 8])
def test_a_small_scatter_around_a_common_offset_can_be_whitened(rank):
    draw = torch.Generator().manual_seed(0)
    spread = torch.randn(20_000, rank, generator=draw) @ torch.randn(rank, 16, generator=draw)
    features, labels = torch.ones(16) + 0.02 * spread / rank**0.5, torch.arange(20_000) % 2
    learner = VMFMixtureClassifier(16, transform="whiten").partial_fit(features, labels)
    assert set(learner.predict(features[:10])) <= {0, 1}


def equal(first: VMFMixtureClassifier, second: VMFMixtureClassifier) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]), name
    assert first.session_log_ == second.session_log_ and first.classes_.tolist() == second.classes_.tolist()


@pytest.mark.parametrize("transform", ["auto", "none", "whiten"])
def test_saving_and_loading_changes_nothing(tmp_path, transform):
    """Check 17: predictions are equal, and so is what a further session makes of both."""
    features, labels, _ = small()
    names = np.array(["ant", "bee", "cow", "dog"])[labels]
    learner = VMFMixtureClassifier(16, transform=transform, memory=20)
    learner.partial_fit(features[labels < 2], names[labels < 2])
    learner.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin")) and list(tmp_path.glob("*.safetensors"))
    loaded = VMFMixtureClassifier.from_pretrained(tmp_path)
    equal(learner, loaded)
    assert torch.equal(learner.decision_function(features), loaded.decision_function(features))
    for each in (learner, loaded):
        each.partial_fit(features, names)
    equal(learner, loaded)
    assert torch.equal(learner.decision_function(features), loaded.decision_function(features))


def test_two_processes_reach_the_same_state(tmp_path):
    """Check 18."""
    code = (
        "import sys, torch; torch.set_num_threads(1); from tests.mixtures.test_mixtures import small, VMFMixtureClassifier as V\n"
        "x, y, _ = small(); V(16, seed=3).partial_fit(x[:100], y[:100]).partial_fit(x, y).save_pretrained(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, capture_output=True)
    features, labels, _ = small()
    here = VMFMixtureClassifier(16, seed=3).partial_fit(features[:100], labels[:100]).partial_fit(features, labels)
    equal(here, VMFMixtureClassifier.from_pretrained(tmp_path))


def test_one_component_a_class_scores_as_a_cosine_classifier():
    """Check 21, for the closed form."""
    features, labels, _ = small()
    learner = VMFMixtureClassifier(16, transform="none", max_components=1, shrinkage=0.0, score="plugin")
    learner.partial_fit(features, labels)
    means = F.normalize(learner.space.sums.float())
    assert torch.allclose(
        learner.decision_function(features), learner.kappa_ * (features @ means.T), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("reduction", ["evidence", "icl", "kl", "cosine"])
def test_every_reduction_finds_two_clear_modes(reduction):
    features, labels, modes = small()
    learner = VMFMixtureClassifier(16, transform="none", reduction=reduction).partial_fit(features, labels.numpy())
    assert set(learner.n_components_.values()) == {2}
    assert adjusted_rand_index(learner.predict_component(features), modes.numpy()) == 1.0
    assert (learner.predict(features) == labels.numpy()).all()


def test_probabilities_components_novelty_and_report():
    features, labels, _ = small()
    learner = VMFMixtureClassifier(16, memory=16).partial_fit(features, labels)
    odds = learner.predict_proba(features)
    assert np.allclose(odds.sum(1), 1) and (learner.classes_[odds.argmax(1)] == learner.predict(features)).all()
    far = F.normalize(torch.randn(50, 16, generator=torch.Generator().manual_seed(5)))
    assert np.median(learner.score_samples(far)) < np.percentile(learner.score_samples(features), 1)
    report = learner.report()
    assert sum(row["samples"] for row in report) == len(features) and sum(row["exemplars"] for row in report) == 16
    assert json.loads(json.dumps(report)) == report
    predictive = VMFMixtureClassifier(16, score="predictive").partial_fit(features, labels)
    assert (predictive.predict(features) == labels.numpy()).all()


def test_new_and_returning_classes_in_one_session():
    features, labels, modes = small()
    learner = VMFMixtureClassifier(16, transform="none")
    learner.partial_fit(features[modes % 2 == 0], labels[modes % 2 == 0])
    assert set(learner.n_components_.values()) == {1}
    ids = learner.space.ids.tolist()
    learner.partial_fit(features[modes % 2 == 1], labels[modes % 2 == 1])
    assert set(learner.n_components_.values()) == {2} and set(ids) < set(learner.space.ids.tolist())


def test_a_session_given_twice_adds_no_components():
    features, labels, _ = small()
    learner = VMFMixtureClassifier(16, transform="none").partial_fit(features, labels)
    once = learner.n_components_
    learner.partial_fit(features, labels)
    assert learner.n_components_ == once and float(learner.space.counts.sum()) == 2 * len(features)
    assert (learner.predict(features) == labels.numpy()).all()


def test_forgetting_a_class_leaves_the_others():
    features, labels, _ = small()
    learner = VMFMixtureClassifier(16, transform="none", memory=20).partial_fit(features, labels)
    sums = learner.space.sums[learner.space.classes != 1].clone()
    learner.forget(1)
    assert learner.classes_.tolist() == [0, 2, 3] and torch.equal(learner.space.sums, sums)
    assert set(learner.memory_["labels"].tolist()) == {0, 2, 3}
    assert (learner.predict(features[labels != 1]) == labels[labels != 1].numpy()).all()
    learner.partial_fit(features[labels == 1], labels[labels == 1])
    assert (learner.predict(features) == labels.numpy()).all()
    with pytest.raises(InputError, match="no class 9"):
        learner.forget(9)


@pytest.mark.parametrize("transform", ["none", "auto"])
def test_two_learners_merge(transform):
    features, labels, modes = small()
    first, second = (VMFMixtureClassifier(16, transform=transform, memory=24) for _ in range(2))
    halves = modes % 2 == 0, (modes % 2 == 1) | (labels == 0)  # class 0's first mode is in both
    for learner, rows in zip((first, second), halves):
        learner.partial_fit(features[rows], labels[rows])
    first.merge(second)
    assert float(first.space.counts.sum()) == sum(int(rows.sum()) for rows in halves)
    assert (first.predict(features) == labels.numpy()).all() and len(first.exemplars.features) == 24
    if transform == "none":
        assert set(first.n_components_.values()) == {2}
    with pytest.raises(InputError, match="differ"):
        first.merge(VMFMixtureClassifier(8))


def test_batches_are_one_session(monkeypatch):
    features, labels, _ = small()
    shuffled = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    batches = [(features[rows], labels[rows]) for rows in shuffled.split(37)]
    whole = VMFMixtureClassifier(16).partial_fit(features[shuffled], labels[shuffled])
    equal(whole, VMFMixtureClassifier(16).partial_fit_batches(batches))
    monkeypatch.setattr("diffusers_ext.mixtures.batched.SAMPLE", 25)
    sampled = VMFMixtureClassifier(16).partial_fit_batches(batches)
    assert float(sampled.space.counts.sum()) == len(features) and len(sampled.session_log_) == 1
    assert (sampled.predict(features) == labels.numpy()).all()
    with pytest.raises(InputError, match="read several times"):
        whole.partial_fit_batches(iter(batches))


def test_batches_that_change_are_refused_before_anything_is_learnt():
    features, labels, _ = small()
    learner = VMFMixtureClassifier(16)
    shuffling = torch.utils.data.DataLoader(list(zip(features, labels)), batch_size=50, shuffle=True)
    with pytest.raises(InputError, match="shuffle=False"):
        learner.partial_fit_batches(shuffling)
    for rows, count in ((slice(10), 6), (slice(6), 10)):
        with pytest.raises(InputError, match=f"batch 1: .* and {count} labels"):
            learner.partial_fit_batches([(features, labels), (features[rows], labels[:count])])
    assert not learner.session_log_ and not len(learner.classes_)


def test_labels_of_any_type_come_back_as_they_were(tmp_path):
    features, labels, _ = small(classes=2)
    for names in (["no", "yes"], [7, -3], [0.5, 1.5], [False, True]):
        given = [names[label] for label in labels.tolist()]
        learner = VMFMixtureClassifier(16).partial_fit(features, given)
        learner.save_pretrained(tmp_path)
        found = VMFMixtureClassifier.from_pretrained(tmp_path).predict(features).tolist()
        assert found == given and {type(each) for each in found} == {type(names[0])}


def test_few_samples_are_learnt():
    """One sample of a class, duplicates, an empty session, fewer samples than proposed components."""
    features, labels, _ = small(classes=2)
    learner = VMFMixtureClassifier(16)
    learner.partial_fit(torch.zeros(0, 16), []).partial_fit_batches([]).partial_fit_batches([(features[:0], [])])
    assert not learner.session_log_
    learner.partial_fit(features[:1], [0])
    assert learner.predict(features[:1]).tolist() == [0] and np.isfinite(learner.kappa_)
    learner.partial_fit(features[-1:].repeat(40, 1), [1] * 40)
    assert learner.n_components_[1] == 1 and np.isfinite(learner.kappa_)
    learner.partial_fit(features[:3], labels[:3])
    assert np.isfinite(learner.predict_proba(features)).all()


def test_the_jury_is_never_learnt_and_counts_when_predicting():
    """Balanced over classes, drawn anew over all sessions; sums with it are those of all samples."""
    features, labels, _ = small(per_mode=60)
    learner = VMFMixtureClassifier(16, jury=30)
    for part in torch.arange(len(features)).view(-1, 4).T:
        learner.partial_fit(features[part], labels[part])
        jury = learner.learnt.jury
        learnt, whole = learner.learnt.sums, learner.learnt.whole
        assert int(learnt.covariance.counts.sum()) == int(whole.covariance.counts.sum()) - len(jury.classes)
    assert jury.classes.bincount().tolist() == [8, 8, 7, 7]
    own = (jury.features[:, None] == F.normalize(features)).all(2).float()
    assert (own.sum(1) == 1).all()
    assert len(set((own.argmax(1) % 4).tolist())) == 4  # of every session
    assert torch.allclose(whole.covariance.moment, (features.T @ features).double(), atol=1e-4)
    assert float(learner.space.counts.sum()) == len(features)
    none = VMFMixtureClassifier(16, jury=0, transform="whiten", shrinkage=3.0).partial_fit(features, labels)
    assert (none.predict(features) == labels.numpy()).all() and not none.session_log_[-1]["held_out_accuracy"]
    with pytest.raises(InputError, match="without a jury nothing chooses"):
        VMFMixtureClassifier(16, jury=0)


def test_faults_are_named():
    features, labels, _ = small()
    learner = VMFMixtureClassifier(16)
    with pytest.raises(InputError, match="nothing has been learnt"):
        learner.predict(features)
    learner.partial_fit(features, labels)
    state = {name: value.clone() for name, value in learner.state_dict().items()}
    zero, bad = features.clone(), features.clone()
    zero[3], bad[5, 2] = 0, float("nan")
    for wrong, given, message in (
        (zero, labels, "row 3: a zero vector"),
        (bad, labels, "row 5: not finite"),
        (features[:, :8], labels, r"shape \(240, 8\)"),
        (features, labels[:10], "240 rows of features and 10 labels"),
        (features, ["a"] * 240, "labels are of type str, those of earlier sessions int"),
        (features, [1] * 239 + ["a"], "several types"),
        (features, [None] * 240, "row 0: None"),
    ):
        with pytest.raises(InputError, match=message):
            learner.partial_fit(wrong, given)
    assert all(torch.equal(value, learner.state_dict()[name]) for name, value in state.items())
    for arguments in ({"transform": "pca"}, {"memory": -1}, {"k_new": 0}, {"reduction": "best"}):
        with pytest.raises(InputError):
            VMFMixtureClassifier(16, **arguments)


def test_a_stream_stays_small(indep):
    """Check 23's size: 20 sessions, at most 100,000 numbers."""
    learner = VMFMixtureClassifier(DIM, memory=1000, transform="none")
    train = indep[0]
    sessions = build_sessions(train.labels.numpy(), train.domains.numpy(), "NCD", 5, 10)
    for now in range(len(sessions)):
        rows = sessions.rows(now, np.ones(len(train.labels), bool))
        learner.partial_fit(train.features[rows], train.labels[rows])
    assert len(sessions) == 20 and learner.stored_floats <= 100_000 and len(learner.exemplars.features) == 1000


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_fast_winners_are_the_exact_ones(spread):
    """8-bit products decide clear rows only: the same class as the largest exact score, whatever the overlap."""
    generator = torch.Generator().manual_seed(1)
    owners = torch.arange(60) // 3 % 17  # classes of unequal size
    means = F.normalize(torch.randn(60, 48, generator=generator), dim=1)
    statistics = Statistics(torch.full((60,), 20.0).double(), 20 * means.double(), owners).merged(torch.argsort(owners))
    features = means[torch.randint(60, (3000,), generator=generator)]
    features = F.normalize(features + spread * torch.randn(3000, 48, generator=generator) / 48**0.5)
    for weights, score in (("uniform", "plugin"), ("counts", "predictive")):
        scores = ComponentScores(statistics, 200.0, 18, weights, score)  # class 17 has no components
        predictor = Predictor(scores, lambda part: part)
        expected = predictor.class_scores(features)
        assert (expected[:, 17] == -torch.inf).all()
        assert torch.equal(predictor.winners(features), expected.argmax(1))
        if integer_products():
            best, certain = predictor.screen(features)
            assert torch.equal(best[certain], expected.argmax(1)[certain])
            assert certain.float().mean() > 0.9 if spread == 0.1 else spread == 1.0 or certain.float().mean() < 0.9


def test_predictions_do_without_integer_products(monkeypatch):
    """On machines that round sums of integers, all rows are scored exactly."""
    features, labels, _ = small()
    monkeypatch.setattr("diffusers_ext.mixtures.prediction.integer_products", lambda: False)
    learner = VMFMixtureClassifier(16).partial_fit(features, labels)
    assert learner._ready().predictor.screen is None and (learner.predict(features) == labels.numpy()).all()
    assert learner.predict(features[:0]).shape == (0,)


def test_predictive_scores_touch_the_exact_ones():
    """The line is p(z | component) = C(κ) C(κ‖r‖) / C(‖κr + κz‖) at a sample's expected cosine, and near it."""
    kappa, lengths = 65.0, torch.tensor([0.5, 3.0, 40.0], dtype=torch.float64)
    slope, offset = predictive(lengths, kappa, 128)
    at = mean_resultant_length(torch.tensor(kappa), 128) * mean_resultant_length(kappa * lengths, 128)
    for away, error in ((0.0, 1e-9), (0.1, 0.15)):
        joint = (lengths**2 + 1 + 2 * lengths * (at + away)).sqrt()
        exact = log_normalizer(kappa * lengths, 128) - log_normalizer(kappa * joint, 128)
        assert ((slope * (at + away) + offset) - exact).abs().max() <= error
    assert (slope.diff() > 0).all() and slope[-1] < kappa  # few samples count for less


def test_moving_and_rounding_leave_what_was_learnt(tmp_path):
    """Statistics stay in double precision on the CPU, whatever a pipeline around the classifier is moved to."""
    features, labels, _ = small()
    learner, other = (VMFMixtureClassifier(16).partial_fit(features[:120], labels[:120]) for _ in range(2))
    for move in (learner.half, lambda: learner.to(torch.bfloat16), lambda: learner.to("meta"), learner.double):
        assert move() is learner
        equal(learner, other)
    learner.save_pretrained(tmp_path)
    rounded = VMFMixtureClassifier.from_pretrained(tmp_path, torch_dtype=torch.float16)
    for each in (learner, rounded, pickle.loads(pickle.dumps(learner)), copy.deepcopy(learner)):
        each.partial_fit(features.half(), labels)
        assert each.predict(features.double().numpy()).tolist() == labels.tolist()
    other.partial_fit(features.half(), labels)
    equal(learner, other)
    equal(rounded, other)


def test_forgetting_stays_near_the_oracles(indep):
    """Check 24: NCD's measure also counts new classes crowding in, which the planted means suffer too."""
    train, _, _ = indep

    class Oracle(NearestMean):
        """The planted modes' means, as well as all samples tell them; its classes are those seen so far."""

        def _learn(self, features, places):
            seen = torch.isin(train.labels, self.classes)
            modes, of = torch.unique(train.modes[seen], return_inverse=True)
            self.sums = self._sums(train.features[seen], of, len(modes))
            owner = torch.zeros(len(modes), dtype=torch.int64).index_copy(0, of, train.labels[seen])
            self.owners = (owner[:, None] == self.classes).long().argmax(1)

    ours = on_planted(VMFMixtureClassifier(DIM, memory=0, transform="none"), indep, "NCD", 10)
    assert ours["forgetting"] <= on_planted(Oracle(DIM), indep, "NCD", 10)["forgetting"] + 5
