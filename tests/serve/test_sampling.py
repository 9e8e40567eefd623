"""Sampling of the next tokens. Ranges of the parameters: test_settings."""

import itertools
import math
import random

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from adapter.serve.sampling import Sampler, SamplingParams, sample

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0])


def sample_rows(logits, params, numbers, **sampler):
    """A token for each row by a random number; None where a logit is not finite."""

    def one(row, number):
        row_sampler = Sampler(params, **sampler)
        row_sampler._next_number = lambda: number
        try:
            return row_sampler.sample(row)
        except FloatingPointError:
            return None

    return [one(row, number) for row, number in zip(logits, numbers, strict=True)]


def token_of(logits, params, number=0.5):
    [sampled] = sample_rows(logits[None], params, [number])
    return sampled[0]


@pytest.mark.parametrize("seed", range(3))
def test_penalty_top_k_top_p_and_min_p_are_those_of_transformers(seed):
    rng = random.Random(seed)
    logits = 3 * torch.randn(1000, generator=torch.Generator().manual_seed(seed))
    logits[:3] += 8  # some of the likeliest are penalised
    seen = [*range(0, 1000, 3), 0, 3]  # tokens may come twice
    params = SamplingParams(
        temperature=rng.choice([0.3, 0.8, 1.5]),
        top_p=rng.choice([0.6, 0.9, 1.0]),
        top_k=rng.choice([0, 3, 50]),
        min_p=rng.choice([0.0, 0.02, 0.3]),
        repetition_penalty=rng.choice([1.0, 1.1, 2.0]),
    )
    warpers = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(params.repetition_penalty),
            TemperatureLogitsWarper(params.temperature),
            *([TopKLogitsWarper(params.top_k)] if params.top_k else []),
            TopPLogitsWarper(params.top_p),
            *([MinPLogitsWarper(params.min_p)] if params.min_p else []),
        ]
    )
    expected = warpers(torch.tensor([seen]), logits[None].clone())[0].softmax(-1)
    sampled = sample_rows(logits.expand(500, -1), params, [(i + 0.5) / 500 for i in range(500)], prompt=seen)
    found = torch.bincount(torch.tensor([one.token for one in sampled]), minlength=1000) / 500
    assert torch.allclose(found, expected, atol=0.0041)
    assert not found[expected == 0].any()
    for token, logprob, _ in sampled[::100]:  # of the unchanged logits
        assert logprob == pytest.approx(logits.log_softmax(-1)[token].item(), abs=1e-5)
    greedy = SamplingParams(temperature=0, repetition_penalty=params.repetition_penalty)
    penalised = warpers[0](torch.tensor([seen]), logits[None].clone())[0]
    [one] = sample_rows(logits[None], greedy, [0.0], prompt=seen)
    assert one.token == penalised.argmax()


def test_a_penalty_is_on_the_prompt_and_on_what_was_sampled():
    params = SamplingParams(temperature=0, repetition_penalty=2.0)
    sampler = Sampler(params, None, [1])
    logits = torch.tensor([[1.5, 2.0, 1.2, -1.0]])  # 1 is in the prompt; then 0 has been sampled, and then 2
    assert [sample(logits, [sampler])[0][0][0] for _ in range(4)] == [0, 2, 1, 1]
    assert sample(logits, [Sampler(params, None, [1, 1], stop_ids={1})])[0][0][0] == 1  # it ends each turn


def test_biases_and_penalties_are_those_of_openai():
    """The likeliest tokens are those of the changed logits, the log-probability of a token is the model's."""
    logits = 3 * torch.randn(5000, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(
        temperature=0, presence_penalty=1.5, frequency_penalty=0.7, logit_bias=((9, 30.0), (4, 5.0))
    )
    expected = logits.clone()
    expected[9] += 30 - 1.5 - 3 * 0.7
    expected[4] += 5 - 1.5 - 0.7
    [one] = sample_rows(logits[None], params, [0.0], begun=[9, 4, 9, 9], top=20)
    best = expected.log_softmax(-1).topk(20)
    ids, logprobs = zip(*one.ranked, strict=True)
    assert one.token == ids[0] == 9 and ids[1:] == tuple(best.indices.tolist())
    assert logprobs[1:] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert one.logprob == pytest.approx(logits.log_softmax(-1)[9].item(), abs=1e-4)


def mixed_params(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        temperature=rng.choice([0.0, 0.0, 0.1, 0.7, 1.0, 2.0]),
        top_p=rng.choice([0.05, 0.75, 0.95, 1.0]),
        top_k=rng.choice([0, 0, 1, 20, 5000]),
        min_p=rng.choice([0.0, 0.0, 0.05, 1.0]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
        presence_penalty=rng.choice([0.0, 0.0, -1.0, 1.5]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.5]),
        logit_bias=rng.choice([(), ((5, 3.0), (6, -100.0))]),
        seed=rng.randrange(2**63),
    )


@pytest.mark.parametrize("seed", range(3))
def test_law_a_rows_token_and_the_bits_of_its_logprob_do_not_depend_on_the_other_rows(seed):
    rng = random.Random(seed)
    logits = 3 * torch.randn(rng.choice([2, 8, 16]), 5000, generator=torch.Generator().manual_seed(seed))
    params = [mixed_params(rng) for _ in logits]

    def samplers():
        return [Sampler(p, None, range(i, 5000, 9), (), (7, 7, i), i % 4) for i, p in enumerate(params)]

    together = sample(logits, samplers())
    assert together == [sample(row[None], [one])[0] for row, one in zip(logits, samplers(), strict=True)]
    assert together == sample(logits.flip(0), samplers()[::-1])[::-1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_fails_alone(temperature):
    params, numbers = SamplingParams(temperature=temperature), [0.1, 0.3, 0.5, 0.7, 0.9]
    logits = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    expected = sample_rows(logits, params, numbers)
    logits[1, 3], logits[2, 4], logits[4, 99] = math.nan, math.inf, -math.inf
    assert None not in expected
    assert sample_rows(logits, params, numbers) == [expected[0], None, None, expected[3], None]
    logits[:] = math.nan
    assert sample_rows(logits, params, numbers) == [None] * 5


def test_the_lowest_temperatures_and_top_p_take_the_most_likely_token():
    for lowest, scale in itertools.product((6e-38, 1e-45, 5e-324), (1.0, 1e38)):
        params = SamplingParams(temperature=lowest, top_p=1.0)
        assert token_of(LOGITS * scale, params) == 1
        equal = torch.tensor([0.0, 2.0, 1.0, 2.0]) * scale
        assert [token_of(equal, params, number) for number in (0.2, 0.4, 0.6, 0.8)] == [1, 1, 3, 3]
        for top_p in (lowest, 0.0):
            assert token_of(LOGITS, SamplingParams(temperature=1.0, top_p=top_p), 1 - 2.0**-24) == 1  # the highest


def without_drafts(logits, sampler):
    """One token at a time, while the rows are the valid ones: row i + 1 was computed behind drafts[i]."""
    return [sample(row[None], [sampler])[0][0] for row in logits]


@pytest.mark.parametrize("right", [0, 2, 4])
@pytest.mark.parametrize(("temperature", "penalty"), [(0.0, 1.5), (0.8, 1.0), (0.8, 1.5)])
def test_law_drafts_change_no_token_logprob_or_later_random_number(right, temperature, penalty):
    """`right` drafts of four are what is sampled; afterwards the request goes on as if there had been none."""
    penalties = {"repetition_penalty": penalty, "frequency_penalty": penalty - 1}
    params = SamplingParams(temperature=temperature, top_p=0.95, seed=7, **penalties)
    logits = torch.randn(12, 300, generator=torch.Generator().manual_seed(1))
    if penalty > 1:  # the tokens of the draft are what the next ones would be
        logits[1:] = logits[0] + 0.1 * logits[1:]
    plain = Sampler(params)
    expected = without_drafts(logits[: right + 1], plain)
    drafts = [one.token for one in expected[:right]] + [(expected[-1][0] + 1) % 300] * (4 - right)
    sampler, other = Sampler(params), SamplingParams(temperature=1.0, seed=3)
    beside = sample(logits[5:6], [Sampler(other)])[0]
    assert sample(logits[:6], [sampler, Sampler(other)], [drafts, []]) == [expected, beside]
    assert without_drafts(logits[6:], sampler) == without_drafts(logits[6:], plain)


def test_logits_behind_a_wrong_draft_need_not_be_finite_and_others_must():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    logits[1] = math.nan
    params = SamplingParams(temperature=0)
    [[first]] = sample(logits[:1], [Sampler(params)])
    assert sample(logits, [Sampler(params)], [[first.token + 1, 0]]) == [[first]]
    [[right, wrong]] = sample(logits, [Sampler(params)], [[first.token, 0]])
    assert right == first and isinstance(wrong, FloatingPointError)
