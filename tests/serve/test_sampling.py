"""Sampling of the next token. Ranges of the parameters: test_settings."""

from __future__ import annotations

import math

import pytest
import torch

from adapter.serve.sampling import SamplingParams, sample

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0])


def frequencies(params, count=2000):
    generator = params.generator()
    return (
        torch.bincount(torch.tensor([sample(LOGITS, params, generator)[0] for _ in range(count)]), minlength=4)
        / count
    )


def test_greedy_takes_the_most_likely_token_and_returns_the_models_logprob():
    token, logprob = sample(LOGITS, SamplingParams(temperature=0), torch.Generator())
    assert token == 1
    assert logprob == pytest.approx(LOGITS.log_softmax(-1)[1].item())


def test_samples_follow_the_tempered_distribution():
    found = frequencies(SamplingParams(temperature=0.7, top_p=1.0, seed=1))
    assert torch.allclose(found, (LOGITS / 0.7).softmax(-1), atol=0.03)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    probabilities = LOGITS.softmax(-1)  # .087 .644 .237 .032
    found = frequencies(SamplingParams(temperature=1.0, top_p=0.7, seed=1))
    assert found[0] == found[3] == 0
    assert found[1].item() == pytest.approx((probabilities[1] / probabilities[1:3].sum()).item(), abs=0.03)
    assert frequencies(SamplingParams(temperature=1.0, top_p=0.01, seed=1), 50)[1] == 1


def test_a_seed_repeats_and_no_seed_does_not():
    def tokens(seed):
        params = SamplingParams(temperature=2.0, top_p=1.0, seed=seed)
        generator = params.generator()
        return [sample(LOGITS, params, generator)[0] for _ in range(64)]

    assert tokens(3) == tokens(3) != tokens(4)
    assert tokens(None) != tokens(None)


@pytest.mark.parametrize("temperature", [6e-38, 1e-45, 5e-324])
@pytest.mark.parametrize("scale", [1.0, 1e38])
def test_the_lowest_temperatures_take_the_most_likely_token(temperature, scale):
    params = SamplingParams(temperature=temperature, top_p=1.0)
    assert sample(LOGITS * scale, params, params.generator())[0] == 1


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(wrong):
    for temperature in (0.0, 1.0):
        with pytest.raises(FloatingPointError):
            sample(torch.tensor([0.0, wrong, 1.0]), SamplingParams(temperature=temperature), torch.Generator())


@pytest.mark.parametrize("top_p", [1e-45, 1e-300, 5e-324])
def test_the_lowest_top_p_keeps_the_most_likely_token(top_p):
    params = SamplingParams(temperature=1.0, top_p=top_p)
    assert sample(LOGITS, params, params.generator())[0] == 1
