"""Preference measures against numbers worked out by hand, and on the official test rankings."""

import numpy as np
import pytest

from diffusers_ext.preferences.agreement import (
    Ratio,
    agreement,
    filter_at,
    preference_accuracy,
    rank_correlation,
    recall_at,
)
from diffusers_ext.preferences.formats import read_rankings
from diffusers_ext.preferences.rankings import RankedPrompt, Ranking
from diffusers_ext.randomness import generator


def ranked(*rankings, name="0") -> RankedPrompt:
    people = tuple(Ranking(person, tuple(ranks)) for person, ranks in zip("abcdef", rankings))
    return RankedPrompt(name, "a prompt", tuple(f"{at}.png" for at in range(len(rankings[0]))), people)


def test_accuracy_by_hand():
    # Strict pairs of the first: (0, 1), (0, 2); the tie of 1 and 2 is no pair. Of the second: (1, 0).
    prompts = [ranked([1, 3, 3]), ranked([2, 1])]
    accuracy = preference_accuracy([[0.5, 0.1, 0.9], [0.0, 1.0]], prompts)
    assert accuracy.micro == 2 / 3 and accuracy.macro == pytest.approx(3 / 4)
    equal = preference_accuracy([[0.5, 0.5, 0.5], [1.0, 1.0]], prompts)
    assert equal.micro == 0, "equal scores are no preference"


def test_several_people_vote_pair_by_pair():
    prompt = ranked([1, 2], [1, 2], [2, 1])
    assert preference_accuracy([[1.0, 0.0]], [prompt]).micro == pytest.approx(2 / 3)


def test_an_invalid_ranking_and_an_image_not_seen_do_not_count():
    prompt = RankedPrompt("0", "", ("a", "b", "c"), (Ranking("a", (1, None, 2)), Ranking("b", (2, 1, 3), valid=False)))
    accuracy = preference_accuracy([[3.0, 2.0, 1.0]], [prompt])
    assert (accuracy.numerators[0], accuracy.denominators[0]) == (1, 1)


def test_recall_and_filter_by_hand():
    prompt = ranked([1, 2, 3, 4])
    scores = [[0.8, 0.9, 0.1, 0.3]]  # order of the scores: 1, 0, 3, 2
    assert [recall_at(k, scores, [prompt]).micro for k in (1, 2, 4)] == [0, 1, 1]
    assert [filter_at(k, scores, [prompt]).micro for k in (1, 2, 4)] == [0, 1, 1]
    two_best = ranked([1, 1, 3, 4])
    assert recall_at(1, scores, [two_best]).micro == 0.5
    assert recall_at(3, [[0.0] * 4], [prompt]).micro == 0, "equal scores find nothing before all are taken"


def test_recall_of_chance_is_k_of_images_also_with_ties():
    draw = generator(0, "test")
    prompts = [ranked(np.maximum(draw.permutation(8), 1)) for _ in range(4000)]
    scores = draw.random((4000, 8))
    for k in (1, 2, 4):
        assert recall_at(k, scores, prompts).micro == pytest.approx(k / 8, abs=0.02)


def test_rank_correlations_by_hand():
    prompt = ranked([1, 2, 3, 4])
    scores = [[4.0, 3.0, 1.0, 2.0]]  # one of six pairs turned round; Σd² = 2
    assert rank_correlation("kendall", scores, [prompt]).micro == pytest.approx(4 / 6)
    assert rank_correlation("spearman", scores, [prompt]).micro == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert np.isnan(rank_correlation("kendall", [[1.0] * 4], [prompt]).micro)


def test_the_papers_table_of_generators():
    """Wins that people gave to six models, and ImageReward's mean scores (Xu et al. 2023, table 1): ρ = 1."""
    wins, rewards = [507, 463, 390, 362, 340, 74], [0.2614, 0.2458, 0.2114, 0.1344, -0.2470, -1.2376]
    prompt = ranked([-count for count in wins])
    assert rank_correlation("spearman", [rewards], [prompt]).micro == pytest.approx(1)


def test_agreement_by_hand():
    # a and b: pairs (0,1) alike, (0,2) alike, (1,2) apart. c ties 0 and 1: with a two pairs, both alike.
    found = agreement([ranked([1, 2, 3], [1, 3, 2], [1, 1, 2])])
    assert found.annotators == ["a", "b", "c"]
    assert found.total.tolist() == [[0, 3, 2], [3, 0, 2], [2, 2, 0]]
    assert found.same.tolist() == [[0, 2, 2], [2, 0, 1], [2, 1, 0]]
    assert found.by_prompt.micro == pytest.approx(5 / 7)
    assert found.kappa == pytest.approx((5 / 7 - 0.5) / 0.5)
    assert found.of_each() == pytest.approx({"a": 4 / 5, "b": 3 / 5, "c": 3 / 4})
    assert np.isnan(found.matrix[0, 0])


def test_agreement_counts_a_person_once_and_not_against_themselves():
    prompt = RankedPrompt("0", "", ("x", "y"), (Ranking("a", (1, 2)), Ranking("a/2", (2, 1)), Ranking("b", (1, 2))))
    found = agreement([prompt])
    assert found.annotators == ["a", "b"] and found.total.tolist() == [[0, 2], [2, 0]]
    assert found.same[0, 1] == 1


def test_the_interval_covers_the_truth_as_often_as_it_says():
    draw = generator(1, "test")
    covered = 0
    for trial in range(200):
        pairs = draw.integers(1, 20, size=60)
        chance = draw.beta(6, 4, size=60)  # prompts differ: their pairs are not independent
        low, high = Ratio(draw.binomial(pairs, chance).astype(float), pairs.astype(float)).interval(0.9, 300, trial)
        covered += low <= 0.6 <= high
    assert 0.82 <= covered / 200 <= 0.96


def test_the_interval_is_seeded():
    ratio = Ratio(np.arange(10.0), np.full(10, 10.0))
    assert ratio.interval(seed=3) == ratio.interval(seed=3) != ratio.interval(seed=4)


def test_official_test_rankings(shared):
    """An oracle has accuracy 1, a constant 0, chance one half (spec, section 8.3)."""
    prompts = read_rankings(shared / "assets/prompts/imagereward_test_rankings.json")
    oracle = [-np.array(prompt.rankings[0].ranking, float) for prompt in prompts]
    accuracy = preference_accuracy(oracle, prompts)
    assert accuracy.micro == 1 and accuracy.denominators.sum() == 6399
    assert preference_accuracy([np.zeros(len(each)) for each in oracle], prompts).micro == 0
    draw = generator(0, "chance")
    low, high = preference_accuracy([draw.random(len(each)) for each in oracle], prompts).interval()
    assert low < 0.5 < high and high - low < 0.05
    assert rank_correlation("kendall", oracle, prompts).micro == pytest.approx(1)


def test_scores_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="2 scores for 3 images"):
        preference_accuracy([[1.0, 2.0]], [ranked([1, 2, 3])])
