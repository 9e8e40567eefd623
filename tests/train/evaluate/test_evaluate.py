"""What `python -m train.evaluate` measures: metrics by hand, likelihoods of a known model, and data's errors."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from adapter.base.llama import Base
from adapter.base.template import Message
from adapter.errors import BadInput
from adapter.method.config import VisionConfig
from adapter.method.deltas import TuningConfig
from adapter.method.vision import VisualFeatures
from tests.tiny_models import FINGERPRINT, character_tokenizer, random_adapter
from train.evaluate import answerer as answerer_module
from train.evaluate.answerer import Answerer
from train.evaluate.intervals import difference, over_seeds
from train.evaluate.tasks import STRENGTHS, Perplexity, ScienceQA, drawn, normalised, token_f1
from train.formats.dataset import DataError
from train.formats.scienceqa import COLUMNS, columns, problems
from train.input.rows import IGNORED

VISION = VisionConfig(encoder="any", feature_size=6, hidden=5)
TUNING = TuningConfig(64, norms=True, bias=True, scale=True, lora_rank=2)
ASK = (Message("user", "say it"),)


class Bigrams:
    """A model whose next token depends on the newest one alone, by a table of logits [97, 97]."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table
        self.device = table.device
        self.config = SimpleNamespace(max_position_embeddings=100_000)

    def model(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.table[input_ids])

    def lm_head(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def bigrams(probabilities: dict[str, float]) -> Answerer:
    """The same probabilities after every character; those that are not named share the rest."""
    tokenizer = character_tokenizer()
    row = torch.full((97,), math.log((1 - sum(probabilities.values())) / (97 - len(probabilities))))
    for character, probability in probabilities.items():
        row[tokenizer(character).input_ids[0]] = math.log(probability)
    return Answerer(Base(Bigrams(row.expand(97, 97)), tokenizer, FINGERPRINT, "none", 0))


@pytest.fixture(scope="module")
def wide_base(tiny_base):
    """The tiny base with room for long prompts."""
    model = copy.deepcopy(tiny_base.model)
    model.config.max_position_embeddings = 4096
    return Base(model, tiny_base.tokenizer, tiny_base.fingerprint, "none", 0)


class FakeEncoder:
    """Six features of a picture: the means of its channels, twice."""

    device = torch.device("cpu")

    def encode(self, images, batch_size=32, **_):
        means = torch.tensor(np.array([np.asarray(image).mean((0, 1)) for image in images])).float() / 255
        return VisualFeatures(torch.cat([means, means], dim=1))


ADAPTERS = {"none": None, "text": {"seed": 1}, "visual tuning": {"seed": 2, "vision": VISION, "tuning": TUNING}}


@pytest.fixture(params=ADAPTERS.values(), ids=list(ADAPTERS))
def adapter(request, tiny_fingerprint):
    return request.param and random_adapter(tiny_fingerprint, gate=2.0, spread=0.3, **request.param)


def values(measured):
    return {(row, c): f.value for row, figures in measured.figures.items() for c, f in figures.items()}


# Metrics and intervals.


def test_intervals_over_seeds_and_questions_are_those_of_scipy():
    from scipy.stats import ttest_1samp, ttest_ind, ttest_rel

    def ends(found):
        return found.low, found.high

    student = ttest_1samp([1.0, 2.0, 3.0], 0).confidence_interval(0.95)
    found = over_seeds([1.0, 2.0, 3.0])
    assert ends(found) == pytest.approx((student.low, student.high), rel=1e-6)
    assert over_seeds([1.0]).half is None and over_seeds([1.0]).exceeds(0.5) is None
    assert found.exceeds(-1) is True and found.exceeds(0) is None and found.exceeds(5) is False
    welch = ttest_ind([1, 2, 4], [0, 1, 0.5], equal_var=False).confidence_interval(0.95)
    found = difference([[1.0], [2.0], [4.0]], [[0.0], [1.0], [0.5]])
    assert ends(found) == pytest.approx((welch.low, welch.high), rel=1e-6)
    # A base that was not trained has one "seed": only the questions spread, each its own control.
    first, second = [1.0, 1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    paired = ttest_rel(first, second).confidence_interval(0.95)
    assert ends(difference([first], [second])) == pytest.approx((paired.low, paired.high), rel=1e-6)


def test_texts_are_compared_as_for_squad():
    assert normalised("The  Answer!") == normalised("answer") != normalised("answers")
    assert token_f1("a cat sat down", "The cat sat.") == pytest.approx(2 * 2 / (3 + 2))
    assert token_f1("dog dog", "dog") == pytest.approx(2 / 3)
    assert (token_f1("", ""), token_f1("the", ""), token_f1("x", "")) == (1, 0, 0)
    assert normalised("The") != normalised("A") and normalised("A ") == normalised("a")  # not empty answers


# Likelihoods and answers.


@pytest.mark.parametrize("strength", [0.5, 0.0])
@torch.no_grad()
def test_any_adapter_scores_as_row_by_row(wide_base, adapter, strength, monkeypatch, tmp_path):
    monkeypatch.setattr(answerer_module, "load_encoder", lambda name, device: FakeEncoder())
    answerer = Answerer(wide_base, adapter, strength)
    red, green = tmp_path / "red.png", tmp_path / "green.png"
    for path in (red, green):
        Image.new("RGB", (9, 7), path.stem).save(path)
    shown = [red, None, green, *[None] * 20]  # more rows than fit into a batch
    ids = [wide_base.tokenizer("x" * (3 + i) + "yz").input_ids for i in range(len(shown))]
    labels = [[IGNORED] * (len(row) - 2) + row[-2:] for row in ids]
    features = answerer.features(shown)
    scores = answerer.token_scores(ids, labels, features)
    following = answerer.next_logprobs(ids, [7, 8], features)
    for row, feature, score, two in zip(ids, features, scores, following, strict=True):
        kv = None if adapter is None else adapter(wide_base.model, feature).scaled(strength)
        logs = wide_base.model(input_ids=torch.tensor([row]), prompt_kv=kv).logits[0].log_softmax(-1)
        expected = logs[torch.arange(len(row) - 3, len(row) - 1), torch.tensor(row[-2:])]
        torch.testing.assert_close(score.logprobs, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(two, logs[-1, [7, 8]], atol=1e-4, rtol=1e-4)
        assert score.greedy.tolist() == (logs[-3:-1].argmax(-1) == torch.tensor(row[-2:])).tolist()
    bare = Answerer(wide_base).token_scores(ids, labels)
    same = all(torch.equal(a.logprobs, b.logprobs) for a, b in zip(scores, bare, strict=True))
    assert same == (adapter is None or strength == 0)  # strength 0 is the base, to the bit


def test_the_right_letter_counts_among_the_problems_choices_only(drawn_folder):
    task = ScienceQA(drawn(problems(drawn_folder, "test"), 60))
    answerer = bigrams({"D": 0.5, "B": 0.2, "A": 0.1})  # D is the likeliest where there is one
    figures = task.measure(answerer, 0).figures
    for column in COLUMNS:
        chosen = [(i, p) for i, p in enumerate(task.problems) if column in columns(p)]
        if not chosen:
            assert column not in figures["likeliest letter"]
            continue
        likeliest = [(3 if len(p.choices) > 3 else 1) == p.answer for _, p in chosen]
        assert figures["likeliest letter"][column].value == pytest.approx(100 * sum(likeliest) / len(chosen))
        assert figures["likeliest letter"][column].n == len(chosen)
    assert drawn(range(10), 4) == [0, 2, 5, 7] and drawn("abc", None) == drawn("abc", 9) == [*"abc"]


def test_perplexity_of_a_uniform_model_is_its_vocabulary():
    text = "some words " * 100
    figure = Perplexity(text).measure(bigrams({}), 0).figures["text"]["perplexity"]
    assert figure.value == pytest.approx(97, rel=1e-5) and figure.low is None, "all windows are alike"
    assert figure.n == math.ceil(1100 / 256)
    assert Perplexity(text, 2).measure(bigrams({}), 0).figures["text"]["perplexity"].n == 2


def test_forgetting_begins_at_the_base(wide_base, tiny_fingerprint):
    text = "some words of no relation " * 60
    bare, adapted = Answerer(wide_base), Answerer(wide_base, random_adapter(tiny_fingerprint, gate=2.0))
    task = Perplexity(text, 3, STRENGTHS)
    found = values(task.measure(adapted, 0))
    perplexities = [found[f"strength {s:g}", "perplexity"] for s in STRENGTHS]
    assert values(task.measure(bare, 0)) == {("text", "perplexity"): perplexities[0]}
    assert len(set(perplexities)) == len(STRENGTHS)
    times = found[f"strength {STRENGTHS[-1]:g}", "times the base's"]
    assert times == pytest.approx(perplexities[-1] / perplexities[0], rel=1e-6)


def test_what_cannot_be_measured_is_said(tmp_path, wide_base, monkeypatch, capsys):
    with pytest.raises(DataError, match="'problems.json' cannot be read. Check the path"):
        problems(tmp_path, "test")
    with pytest.raises(DataError, match="The text has fewer than two tokens"):
        Perplexity("").measure(Answerer(wide_base), 0)
    monkeypatch.setattr("train.evaluate.answerer._whole", None)  # none is waited for before
    with pytest.raises(BadInput, match="Item 61: .* tokens"):
        Answerer(wide_base).generate([*[ASK] * 60, (Message("user", "x" * 5000),)])
    with pytest.raises(BadInput, match="A text holds a token that this base does not have"):
        Answerer(wide_base).token_scores([[1, wide_base.fingerprint.vocab_size]], [[1, 1]])
    assert Answerer(wide_base).generate([], max_new_tokens=3000) == []
    assert "cut at 2,048 tokens instead of 3,000" in capsys.readouterr().err
