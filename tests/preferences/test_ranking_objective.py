"""The ranking objective: the official loss, pairs by index, weights that do not depend on how a step is split, the plateau."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffusers_ext.data.batches import collate
from diffusers_ext.preferences.backbones import freeze, init_head
from diffusers_ext.preferences.dataset import RankedImages
from diffusers_ext.preferences.objective import RankingObjective, join, pairwise_loss
from diffusers_ext.preferences.rankings import RankedPrompt, Ranking
from diffusers_ext.randomness import MicroBatches, Share
from diffusers_ext.rewards.modeling_image_reward import RewardHead

RANKINGS = [(1, 2, 3, 4), (2, 1), (1, 1, 2), (3, 1, 2, 2, 5), (1, 2), (1, 3, 3), (2, 1, 3), (4, 3, 2, 1)]


def prompts() -> list[RankedPrompt]:
    return [
        RankedPrompt(str(at), f"prompt {at}", tuple(f"{at}-{n}" for n in range(len(ranks))), (Ranking("a", ranks),))
        for at, ranks in enumerate(RANKINGS)
    ]


def features(file: str) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(int(file.replace("-", ""))).standard_normal(6), dtype=torch.float32)


def objective() -> RankingObjective:
    torch.manual_seed(0)
    model = nn.Linear(6, 1).double()
    return RankingObjective(model, lambda texts, images, index: model(images.double()).squeeze(1), [])


def test_the_loss_is_the_official_cross_entropy():
    rewards = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pairs = torch.tensor([[0, 1], [0, 2], [4, 3], [8, 7], [5, 8]])
    loss = pairwise_loss(rewards, pairs, torch.full((5,), 1 / 5, dtype=torch.float64))
    official = F.cross_entropy(rewards[pairs], torch.zeros(5, dtype=torch.long))
    by_hand = -torch.stack(
        [torch.log(torch.sigmoid(rewards[better] - rewards[worse])) for better, worse in pairs]
    ).mean()
    torch.testing.assert_close(loss, official, rtol=0, atol=1e-14)
    torch.testing.assert_close(loss, by_hand, rtol=0, atol=1e-14)
    (ours,), (theirs,) = torch.autograd.grad(loss, rewards, retain_graph=True), torch.autograd.grad(official, rewards)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    assert ours[6] == 0, "an image in no strict pair gets no gradient"


def test_far_apart_rewards_stay_finite():
    loss = pairwise_loss(torch.tensor([0.0, 1e4]), torch.tensor([[0, 1]]), torch.ones(1))
    assert loss == 1e4


def test_a_batch_is_its_pairs_one_by_one():
    dataset, ranker = RankedImages(prompts(), features, split=(len(RANKINGS), 1, 1)), objective()
    loss = ranker(collate([dataset[0, at] for at in range(len(dataset))]))["loss"]
    terms = []
    for prompt in prompts():
        rewards, ranks = [ranker.model(features(image).double()) for image in prompt.images], prompt.rankings[0].ranking
        for i, first in enumerate(ranks):
            terms += [-F.logsigmoid(rewards[i] - rewards[j]) for j, second in enumerate(ranks) if first < second]
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-6, atol=0)


def test_each_image_is_encoded_once(shared):
    from diffusers_ext.preferences.formats import read_rankings

    dataset = RankedImages(
        read_rankings(shared / "assets/prompts/imagereward_test_rankings.json"), lambda file: torch.zeros(1)
    )
    images, _, pairs = join(collate([dataset[0, at] for at in range(len(dataset))]))
    assert len(images) == 2720 and 2 * len(pairs) == 12798, "the official pair mode encodes the second number"


@pytest.mark.parametrize("weighting", ["pair", "prompt"])
def test_the_gradient_does_not_depend_on_how_a_step_is_split(weighting):
    """Steps of 4 samples as (batch, accumulation, ranks); a mean of the parts' own means would differ."""

    def gradients(batch_size: int, accumulation: int, ranks: int) -> list[torch.Tensor]:
        ranker, found, split = objective(), [], (batch_size, accumulation, ranks)
        dataset = RankedImages(prompts(), features, seed=3, split=split, weighting=weighting)
        loaders = [MicroBatches(len(dataset), 3, Share(split[0], 5, 0, *split[1:], rank)) for rank in range(ranks)]
        streams = [iter(loader) for loader in loaders]
        for _ in range(5):
            losses = [
                ranker(collate([dataset[key] for key in next(stream)]))["loss"] / (accumulation * ranks)
                for _ in range(accumulation)
                for stream in streams
            ]
            found += torch.autograd.grad(sum(losses), list(ranker.model.parameters()))
        return found

    whole = gradients(4, 1, 1)
    for split in [(1, 4, 1), (2, 1, 2), (1, 2, 2), (2, 2, 1)]:
        torch.testing.assert_close(gradients(*split), whole, rtol=1e-6, atol=1e-9)


def test_weights_of_a_step_are_its_pairs_also_across_epochs():
    split = (3, 1, 1)  # eight samples: steps cross the epochs' ends
    dataset = RankedImages(prompts(), features, seed=7, split=split)
    for step, keys in enumerate(MicroBatches(8, 7, Share(split[0], 12, 0, *split[1:]))):
        pairs = sum(len(dataset.pairs[at]) for _, at in keys)
        assert {dataset.step_of(key) for key in keys} == {step} and dataset.pairs_of_step(step) == pairs
        assert all(dataset.pair_weight(key) == pytest.approx(1 / pairs) for key in keys)


def test_half_of_the_images_are_mirrored_anew_each_epoch():
    dataset = RankedImages(prompts(), features, seed=1, flip=True)
    drawn = [
        [not torch.equal(image, features(file)) for image, file in zip(dataset[epoch, at]["images"], prompt.images)]
        for epoch in range(20)
        for at, prompt in enumerate(prompts())
    ]
    assert 0.4 < np.concatenate(drawn).mean() < 0.6
    assert drawn[:8] != drawn[8:16] and len({tuple(each) for each in drawn[3::8]}) > 5
    assert all(torch.equal(a, b) for a, b in zip(dataset[2, 3]["images"], dataset[2, 3]["images"]))


def test_prompt_weighting_is_the_mean_of_the_prompts_means():
    dataset = RankedImages(prompts(), features, split=(8, 1, 1), weighting="prompt")
    weights = [dataset.pair_weight((0, at)) * len(pairs) for at, pairs in enumerate(dataset.pairs)]
    assert weights == pytest.approx([1 / 8] * 8)


def test_several_peoples_votes_are_cross_entropy_with_their_share():
    """Two of three prefer the first image: 3·BCE(σ(r_0 − r_1), 2/3), as equation 1 over all votes."""
    people = tuple(Ranking(name, ranks) for name, ranks in zip("abc", [(1, 2), (1, 2), (2, 1)]))
    pairs = torch.from_numpy(RankedPrompt("0", "", ("x", "y"), people).pairs())
    rewards = torch.tensor([0.7, -0.2])
    share = F.binary_cross_entropy_with_logits(rewards[0] - rewards[1], torch.tensor(2 / 3))
    torch.testing.assert_close(pairwise_loss(rewards, pairs, torch.ones(3)), 3 * share)


def test_freezing_follows_the_papers_share():
    """At 0.7 the released sizes keep 8 text layers and 16 blocks (spec, section 2.2); frozen layers stay in eval mode."""
    from diffusers_ext.rewards.modeling_image_reward import ImageRewardConfig, ImageRewardModel

    with torch.device("meta"):
        model = ImageRewardModel(ImageRewardConfig())
    frozen = freeze(model, 0.7)
    assert len(frozen) == 1 + 16 + 1 + 8
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained / sum(p.numel() for p in model.parameters()) == pytest.approx(0.315, abs=0.003)
    ranker = RankingObjective(model, None, frozen)
    assert model.vision_model.encoder.layers[16].training and not model.vision_model.encoder.layers[15].training
    ranker.eval(), ranker.train()
    assert not model.text_encoder.encoder.layer[7].training and model.text_encoder.encoder.layer[8].training


def test_the_official_initialisation_stalls_and_the_default_learns():
    """Features that one direction separates, at the paper's rate: the loss of 300 steps (spec, section 2.3)."""
    last = {}
    for kind in ("official", "default"):
        draw = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        head = RewardHead([768, 1024, 128, 64, 16])
        init_head(head, kind)
        linear = nn.Sequential(*(layer for layer in head.layers if isinstance(layer, nn.Linear)))  # float32, no dropout
        spread = linear(torch.randn(64, 768, generator=draw)).std().item()
        assert spread < 1e-8 if kind == "official" else spread > 1e-2
        better, losses = F.normalize(torch.randn(768, generator=draw), dim=0), []
        optimizer = torch.optim.Adam(linear.parameters(), lr=1e-5, fused=True)
        for _ in range(300):
            pair = torch.randn(16, 2, 768, generator=draw)
            pair[:, 0] += better * (2 - (pair[:, 0] - pair[:, 1]) @ better)[:, None]  # ahead by two deviations
            loss = pairwise_loss(linear(pair).view(-1), torch.arange(32).view(16, 2), torch.full((16,), 1 / 16))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        last[kind] = np.mean(losses[-50:])
    assert abs(last["official"] - np.log(2)) < 1e-5
    assert last["default"] < 0.6
