"""Sessions, the measures of a stream, and the baselines."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from diffusers_ext import VMFMixtureClassifier
from diffusers_ext.errors import InputError
from diffusers_ext.streams.baselines import NearestMean, RanPAC, Ridge, StreamingLDA, ZeroShot, baselines, logistic
from diffusers_ext.streams.measures import StreamState, evaluate_stream, forgetting
from diffusers_ext.streams.planted import planted
from diffusers_ext.streams.planted_checks import adjusted_rand_index, on_planted, oracle
from diffusers_ext.streams.sessions import build_sessions


def grid(classes: int = 7, domains: int = 3, per_cell: int = 5):
    cells = np.repeat(np.arange(classes * domains), per_cell)
    return cells // domains, cells % domains


@pytest.mark.parametrize("setting", ["NC", "ND", "NCD"])
def test_every_cell_comes_once_and_the_order_is_the_seeds(setting):
    labels, domains = grid()
    sessions = build_sessions(labels, domains, setting, 3, seed=4)
    cells = [cell for part in sessions.cells for cell in part]
    assert sorted(cells) == [(label, domain) for label in range(7) for domain in range(3)]
    assert len(sessions) == {"NC": 3, "ND": 3, "NCD": 9}[setting]
    assert sessions.cells == build_sessions(labels, domains, setting, 3, seed=4).cells
    assert any(sessions.cells != build_sessions(labels, domains, setting, 3, seed=other).cells for other in range(5, 9))
    rows = np.concatenate([sessions.rows(now, np.ones(len(labels), bool)) for now in range(len(sessions))])
    assert sorted(rows) == list(range(len(labels)))
    for part in sessions.cells:
        held = {label for label, _ in part}, {domain for _, domain in part}
        assert len(held[1]) == (3 if setting == "NC" else 1) and len(held[0]) in ((7,) if setting == "ND" else (2, 3))


def test_domains_may_come_in_a_given_order_and_empty_cells_are_left_out():
    labels, domains = grid(2, 3)
    kept = ~((labels == 1) & (domains == 0))
    sessions = build_sessions(labels[kept], domains[kept], "ND", domain_order=[2, 0, 1])
    assert sessions.cells == (((0, 2), (1, 2)), ((0, 0),), ((0, 1), (1, 1)))
    named = sessions.as_dict(["ant", "bee"], ["ink", "oil", "pen"])
    assert named["sessions"][1] == [["ant", "ink"]]


def test_impossible_streams_are_refused():
    labels, domains = grid(3, 1)
    with pytest.raises(InputError, match="two domains"):
        build_sessions(labels, domains, "ND")
    with pytest.raises(InputError, match="groups must lie in 1 to 3"):
        build_sessions(labels, domains, "NC", 4)


def test_measures_are_their_definitions():
    """Two classes in two sessions; the learner forgets half of the first."""
    labels, domains = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    sessions = build_sessions(labels, domains, "NC", 2, seed=0)
    first = sessions.cells[0][0][0]
    state = StreamState(sessions, np.ones(4, bool))
    state.test(lambda rows: labels[rows], {"a": 1})
    saved = StreamState(sessions, np.ones(4, bool))
    saved.restore(state.as_dict())
    for each in (state, saved):
        each.test(
            lambda rows: np.where((labels[rows] == first) & (domains[rows] == 1), -1, labels[rows]), {"a": 2, "b": 1}
        )
        found = each.summary()
        assert found["accuracy"] == [100.0, 75.0] and found["average_incremental_accuracy"] == 87.5
        assert (
            found["forgetting"] == 50.0
            and found["worst_domain"] == 50.0
            and found["matrix"] == [[100.0], [50.0, 100.0]]
        )
        assert found["components_per_class"] == [1.0, 1.5]


def test_learning_old_cells_better_is_negative_forgetting():
    assert forgetting([[60.0], [80.0, 50.0]]) == -20.0 and forgetting([[60.0]]) == 0.0


def test_rand_index():
    truth = np.repeat([0, 1, 2], 20)
    assert adjusted_rand_index(truth, 5 - truth) == 1.0
    shuffled = np.random.default_rng(0).permutation(truth)
    assert abs(adjusted_rand_index(truth, shuffled)) < 0.1


def test_who_is_told_the_modes_does_far_better_than_a_mean_per_class():
    """What is left to lose is the noise of means of a few samples, and what new classes take from old ones."""
    halves = planted("indep200", 10)
    told, plain = oracle(halves, "NCD", 10), on_planted(NearestMean(128), halves, "NCD", 10)
    assert told["final_accuracy"] > plain["final_accuracy"] + 40 and told["forgetting"] > 0
    assert len(told["accuracy"]) == 20


@pytest.fixture(scope="module")
def stream():
    generator = torch.Generator().manual_seed(0)
    labels, domains = grid(4, 2, 30)
    means = torch.randn(4, 1, 24, generator=generator) + 0.4 * torch.randn(4, 2, 24, generator=generator)
    features = means[labels, domains] + 0.6 * torch.randn(len(labels), 24, generator=generator)
    return features, build_sessions(labels, domains, "NCD", 2, 0), np.arange(len(labels)) % 5 == 0


@pytest.mark.parametrize("name", list(baselines(24, 0, projections=(100,))))
def test_every_baseline_learns_a_stream(stream, name):
    features, sessions, test = stream
    learner = baselines(24, 0, memory=40, projections=(100,))[name]
    found = evaluate_stream(learner, features, sessions, test)
    assert found["final_accuracy"] > 80 and found["stored_floats"] > 0


@pytest.mark.parametrize("kind", [NearestMean, StreamingLDA])
def test_exact_sums_do_not_depend_on_the_order(stream, kind):
    features, sessions, test = stream
    labels = torch.from_numpy(sessions.labels)
    ordered, reversed_, whole = kind(24), kind(24), kind(24).partial_fit(features, labels)
    for learner, order in ((ordered, range(len(sessions))), (reversed_, reversed(range(len(sessions))))):
        for now in order:
            rows = sessions.rows(now, np.ones(len(test), bool))
            learner.partial_fit(features[rows], labels[rows])
    assert torch.equal(ordered.predict(features), reversed_.predict(features))
    assert torch.equal(ordered.predict(features), whole.predict(features))


def test_ranpac_keeps_rows_or_the_gram_matrix_and_solves_the_same(stream):
    """Fewer samples than projections: the dual system. The stream passes from one to the other."""
    features, sessions, test = stream
    labels, learner = torch.from_numpy(sessions.labels), RanPAC(24, projections=150)
    seen, kept_rows = [], []
    for now in range(len(sessions)):
        seen += sessions.rows(now, ~test).tolist()
        learner.partial_fit(features[sessions.rows(now, ~test)], labels[sessions.rows(now, ~test)])
        kept_rows.append(learner.gram is None)
        inputs = learner._embed(features[seen]).double()
        hot = (labels[seen][:, None] == learner.classes).double()
        system = inputs.T @ inputs
        tried = [
            torch.linalg.solve(system + each * system.diagonal().mean() * torch.eye(len(system)), inputs.T @ hot)
            for each in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
        ]
        apart = [float((inputs @ (each - learner.weights)).abs().max()) for each in tried]
        assert min(apart) < 2e-2 and learner.stored_floats > 0
    assert kept_rows[0] and not kept_rows[-1]


@pytest.mark.parametrize("head", ["lda", "ridge", "ranpac"])
def test_linear_heads_predict_as_the_baselines_do(stream, head, tmp_path):
    """From the classifier's own sums; and they save, load, go on and forget with it."""
    features, sessions, test = stream
    features, labels = F.normalize(features), torch.from_numpy(sessions.labels)
    classifier = VMFMixtureClassifier(24, head=head, projections=100, memory=20)
    alone = {"lda": StreamingLDA(24), "ridge": Ridge(24), "ranpac": RanPAC(24, projections=100)}[head]
    for now in range(len(sessions)):
        rows = sessions.rows(now, ~test)
        classifier.partial_fit(features[rows], labels[rows])
        alone.partial_fit(features[rows], labels[rows])
    answers = torch.from_numpy(classifier.predict(features))
    agreement = (answers == alone.predict(features)).float().mean()
    assert classifier.head_ == head and (agreement == 1 if head == "lda" else agreement > 0.95)
    assert np.allclose(classifier.predict_proba(features[:4]).sum(1), 1)
    classifier.save_pretrained(tmp_path)
    loaded = VMFMixtureClassifier.from_pretrained(tmp_path)
    assert torch.equal(loaded.decision_function(features), classifier.decision_function(features))
    assert set(loaded.forget(2).predict(features)) == {0, 1, 3}


def test_a_head_is_chosen_where_another_is_better():
    """Classes that differ along one direction, whose own axis is noisy: linear discriminants, or a whitened mixture; not neither."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 6
    features = torch.randn(6, 24, generator=generator)[labels] + 0.9 * torch.randn(600, 24, generator=generator)
    features[:, :3] += 6 * torch.randn(600, 3, generator=generator)
    made = {
        head: VMFMixtureClassifier(24, head=head, projections=50)
        for head in ("mixture", "lda", "ridge", "ranpac", "pooled", "auto")
    }
    right = {}
    for head, classifier in made.items():
        classifier.partial_fit(features[:400], labels[:400])
        right[head] = float((torch.from_numpy(classifier.predict(features[400:])) == labels[400:]).float().mean())
    held_out = made["auto"].session_log_[-1]["held_out_accuracy"]
    assert held_out[made["auto"].head_] >= max(held_out[name] for name in made if name != "auto") - 0.1
    assert right["auto"] >= max(right.values()) - 0.05
    with pytest.raises(InputError, match="needs the covariance"):
        VMFMixtureClassifier(24, head="lda", transform="none")


def test_the_jury_chooses_the_density():
    """Components of few samples: integrating over their means is better, and auto predicts as if that had been asked for."""
    halves = planted("sub400", 10)
    made = {each: VMFMixtureClassifier(128, transform="none", score=each) for each in ("auto", "plugin", "predictive")}
    right = {each: on_planted(learner, halves, "ND", 10)["final_accuracy"] for each, learner in made.items()}
    scores = {each: learner.decision_function(halves[1].features) for each, learner in made.items()}
    assert made["auto"].session_log_[-1]["score"] == "predictive" and right["auto"] > right["plugin"]
    assert torch.equal(scores["auto"], scores["predictive"]) and not torch.equal(scores["auto"], scores["plugin"])


def test_a_mode_of_few_samples_is_proposed():
    """One component for each n_min samples or part of them: a sample held out must not leave two modes one seed."""
    means = F.normalize(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)))
    features = means[[0, 0, 0, 0, 1, 1, 1]] + 0.05 * torch.randn(7, 16, generator=torch.Generator().manual_seed(1))
    learner = VMFMixtureClassifier(16, transform="none", jury=0).partial_fit(features, np.zeros(7, int))
    assert learner.n_components_ == {0: 2}


def test_the_pooled_head_multiplies_probabilities(stream):
    """q τ_m s_m + (1 − q) τ_r s_r, of the mixture's and RanPAC's scores, with what the jury chose for each."""
    features, sessions, test = stream
    features, labels = F.normalize(features), torch.from_numpy(sessions.labels)
    made = {head: VMFMixtureClassifier(24, head=head, projections=100) for head in ("mixture", "ranpac", "pooled")}
    for now in range(len(sessions)):
        rows = sessions.rows(now, ~test)
        for classifier in made.values():
            classifier.partial_fit(features[rows], labels[rows])
    share = float(made["pooled"].learnt.sums.heads.choice.setting)
    odds = {head: np.log(classifier.predict_proba(features)) for head, classifier in made.items()}
    wanted = (
        torch.from_numpy(share * odds["mixture"] + (1 - share) * odds["ranpac"]) * made["pooled"].learnt.temperature
    )
    assert share in (0.25, 0.5, 0.75)
    assert torch.allclose(wanted.softmax(1), torch.from_numpy(odds["pooled"]).exp(), atol=1e-4)


def test_logistic_regression_is_at_its_optimum():
    """The gradient of the penalised loss vanishes."""
    generator = torch.Generator().manual_seed(0)
    features, places = torch.randn(90, 5, generator=generator), torch.arange(90) % 3
    weights, bias = (value.requires_grad_() for value in logistic(features, places, 3, 1e-2))
    scale = 5**0.5 / features.norm(dim=1).mean()
    loss = F.cross_entropy(features @ weights + bias, places) + 1e-2 * (weights / scale).square().sum()
    loss.backward()
    assert weights.grad.abs().max() < 1e-3 and bias.grad.abs().max() < 1e-3


def test_zero_shot_needs_no_samples():
    texts = {0: torch.tensor([1.0, 0, 0]), 1: torch.tensor([0, 1.0, 0])}
    learner = ZeroShot(3, texts=texts).partial_fit(torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
    assert learner.predict(torch.tensor([[0.9, 0.1, 0.3], [0.1, 2.0, 0]])).tolist() == [0, 1]
