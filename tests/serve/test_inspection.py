"""Inspection against the same quantities written out in plain torch, on the tiny model in fp32."""

import copy
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from adapter.base.template import Message, encode_prompt
from adapter.errors import BadInput, Busy
from adapter.method.checkpoint import save_adapter
from adapter.method.config import VisionConfig
from adapter.method.vision import VisualFeatures
from adapter.serve import inspection, prompts
from adapter.serve.engine import Engine
from adapter.serve.forward import TorchForward
from adapter.serve.inspection import MAX_INSPECTED_TOKENS, MAX_WAITING, _logits, inspect_answer
from adapter.serve.request import GenerationRequest, SamplingParams
from adapter.serve.store import AdapterStore
from tests.app_process import PATIENCE, wait_until
from tests.reference_llama import meta_weights, reference_logits, rotate_halves
from tests.tiny_models import random_adapter

QUESTION = (Message("user", "What?"),)
ANSWER = [41, 7, 63, 12, 88, 30, 96]


@pytest.fixture
def engine(tiny_base, tiny_fingerprint, tmp_path, monkeypatch):
    """With text adapters of different layers and lengths, and a visual one."""
    save_adapter(random_adapter(tiny_fingerprint, 1), tmp_path / "one")
    save_adapter(random_adapter(tiny_fingerprint, 2, prompt_length=3, insertion_layers=2), tmp_path / "two")
    vision = VisionConfig(encoder="any", feature_size=6, hidden=5)
    save_adapter(random_adapter(tiny_fingerprint, spread=0.3, vision=vision), tmp_path / "see")
    features = torch.randn(1, 6)

    def encode(images, **_):
        encoder.images.append(images)
        return VisualFeatures(features + torch.arange(6.0) * images[0].convert("L").getpixel((0, 0)) / 50)

    encoder = SimpleNamespace(images=[], encode=encode)
    monkeypatch.setattr(prompts, "load_encoder", lambda *_: encoder)
    with closing(Engine(tiny_base, AdapterStore(tmp_path))) as engine:
        yield engine


def generate(engine, *arguments, **kwargs):
    """The request of a greedy answer and its events with a token."""
    request = GenerationRequest(QUESTION, *arguments, sampling=SamplingParams(0, max_new_tokens=12), **kwargs)
    return request, [event for event in engine.submit(request) if event.token_id is not None]


@pytest.fixture
def prompt_ids(tiny_base):
    return encode_prompt(tiny_base.tokenizer, QUESTION)


def answer_logprobs(base, prompt_ids, ids, kv=None):
    tokens = torch.tensor([[*prompt_ids, *ids]])
    logits = base.model(input_ids=tokens[:, :-1], use_cache=False, prompt_kv=kv).logits[0, -len(ids) :]
    return logits.log_softmax(-1).gather(1, tokens[0, -len(ids) :, None])[:, 0]


def test_weights_follow_the_equations(tiny_base, tiny_fingerprint, prompt_ids):
    adapter = random_adapter(tiny_fingerprint)
    adapter.gates[:, ::2] *= -1
    found = inspect_answer(tiny_base, [adapter], prompt_ids, ANSWER, adapter(tiny_base.model))
    layers, gates, seen = adapter.config.layers, adapter.activated_gates(), dict[int, torch.Tensor]()
    ids = torch.tensor([[*prompt_ids, *ANSWER]])[:, :-1]
    own = (dict(zip(layers, parts, strict=True)) for parts in (adapter.prompts, gates))
    reference_logits(meta_weights(tiny_base.model), ids, *own, rotate_halves, seen=seen)
    shares = gates.abs() / gates.abs().sum(1, keepdim=True)
    weights = torch.einsum("lh,lhtk->tlk", shares, torch.cat([*seen.values()]).float())[-len(ANSWER) :]
    assert_close(found.parts[0].prompt_weights, weights, rtol=1e-3, atol=1e-5)
    assert weights.shape == (7, 3, 5) and found.parts[0].layers == (1, 2, 3)
    assert found.grounding is None
    assert torch.equal(found.parts[0].gates, adapter.activated_gates())


def test_the_engine_inspects_with_the_image_of_the_request_which_is_encoded_once(engine):
    image = Image.new("RGB", (8, 8))
    request, events = generate(engine, "see", image, mix=(("one", 0.5),))
    ids = [event.token_id for event in events]
    found, grey = engine.inspect(request, ids), engine.inspect(replace(request, image=prompts.GREY), ids)
    assert_close(found.logprobs, torch.tensor([event.logprob for event in events]), rtol=1e-4, atol=1e-4)
    assert_close(found.grounding, found.logprobs - grey.logprobs)
    assert found.grounding.abs().max() > 0.01 and grey.grounding.abs().max() < 1e-4
    alone, without = (engine.inspect(replace(request, mix=(), image=one), ids) for one in (image, None))
    assert_close(alone.grounding, alone.logprobs - without.logprobs)
    assert without.grounding is None
    assert len(found.parts) == 2
    [encoder] = map(engine.prompt_builder._encoders.get, engine.prompt_builder._encoders)
    assert len(encoder.images) == 2  # the other one is grey, see PromptKVBuilder.build


def test_law_a_gate_times_zero_is_an_adapter_with_that_gate_at_zero(engine, tiny_base, prompt_ids):
    adapter = engine.store.load("one", tiny_base.fingerprint)
    for gates in (((2, None, 0.0),), ((1, 0, 0.0), (3, 3, 0.0)), ((1, None, 0.0), (2, 2, 0.0))):
        zeroed = copy.deepcopy(adapter)
        for layer, head, _ in gates:
            zeroed.gates[layer - 1, slice(None) if head is None else head] = 0
        request, events = generate(engine, "one", gates=gates)
        ids = [event.token_id for event in events]
        found = engine.inspect(request, ids)
        assert_close(found.logprobs, answer_logprobs(tiny_base, prompt_ids, ids, zeroed(tiny_base.model)))
        assert_close(found.logprobs, torch.tensor([event.logprob for event in events]), rtol=1e-4, atol=1e-4)
        assert torch.equal(found.parts[0].gates, zeroed.activated_gates())


@pytest.mark.parametrize("base", ["tiny_base", "packed_base"])
def test_law_with_all_gates_shut_the_engine_answers_as_the_frozen_base(engine, request, base):
    """Bit for bit, through the engine's own forward pass."""
    with closing(Engine(request.getfixturevalue(base), engine.store)) as engine:
        shut = {"gates": tuple((layer, None, 0.0) for layer in (1, 2, 3))}
        answers = [
            [(event.token_id, event.logprob) for event in generate(engine, *name, **changes)[1]]
            for name, changes in (
                ([], {}),
                (["one"], {}),
                (["one"], shut),
                (["one"], {**shut, "mix": (("two", 2.0),)}),
            )
        ]
        asked, events = generate(engine, "one", **shut)
        found = engine.inspect(asked, [event.token_id for event in events])
    assert all(answer == answers[0] for answer in answers[2:])
    assert answers[1] != answers[0]
    assert not found.influence.any()
    if base == "packed_base":
        [(logits, _)] = _logits(engine.base, [1, 2], [3], None)
        assert not torch.equal(logits, logits.bfloat16().float()), "not rounded to its inputs' type"


def test_the_engine_refuses_what_cannot_be_inspected(engine):
    request, _ = generate(engine, "one")
    for changed, ids, message in (
        ({"adapter": None}, ANSWER, "frozen base"),
        ({}, [97], "from 0 to 96"),
        ({}, [1] * MAX_INSPECTED_TOKENS, "can be looked into"),
        ({"gates": ((0, None, 0.0),)}, ANSWER, "no gates in layer 0. Choose from 1 to 3"),
        ({"image": Image.new("RGB", (8, 8))}, ANSWER, "text only"),
        ({"gates": ((1, 77, 0.0),)}, ANSWER, "no gates in head 77"),
    ):
        with pytest.raises(BadInput, match=message):
            engine.inspect(replace(request, **changed), ids)
    for gates in (((0, 0, math.nan),), ((1, 0, 1.0),) * 4097):
        with pytest.raises(BadInput, match="Factors of gates"):
            replace(request, gates=gates)
    assert len(engine.inspect(request, ANSWER).tokens) == len(ANSWER)  # errors take no place in the queue


def test_one_inspection_runs_and_few_wait(engine, monkeypatch):
    request, _ = generate(engine, "one")
    inspect_answer, go, begun = inspection.inspect_answer, threading.Event(), []

    def slow(*arguments):
        begun.append(None)
        assert go.wait(PATIENCE)
        return inspect_answer(*arguments)

    monkeypatch.setattr(inspection, "inspect_answer", slow)
    refusals = []

    def run(_):
        try:
            engine.inspect(request, ANSWER)
        except Busy as error:
            refusals.append(str(error))

    with ThreadPoolExecutor(MAX_WAITING + 2) as pool:
        asked = pool.map(run, range(MAX_WAITING + 2))
        wait_until(lambda: len(refusals) == 2 and begun)
        generate(engine, "one")  # answers do not wait for inspections
        assert len(begun) == 1
        go.set()
        list(asked)
    assert len(begun) == MAX_WAITING and all("looked into already" in end for end in refusals)


# What the base gives each token while an answer is being written.


@pytest.mark.parametrize("chunk", [1, 16])
def test_law_the_base_reads_along_what_a_pass_over_the_whole_answer_gives(engine, prompt_ids, monkeypatch, chunk):
    """And the answer is the one without; the second turn begins with what the base has read in the first."""
    monkeypatch.setattr("adapter.serve.engine.BASE_CHUNK", chunk)
    alone, events = generate(engine, "one", mix=(("two", 0.5),))
    ids = [event.token_id for event in events]
    read, forward = [], TorchForward.__call__

    def counted(self, cache, ids, slots, starts, prompts, every=False):
        read.append(0 if prompts is not None else sum(map(len, ids)))
        return forward(self, cache, ids, slots, starts, prompts, every)

    monkeypatch.setattr(TorchForward, "__call__", counted)
    for turn in range(2):
        received = list(engine.submit(replace(alone, base_logprobs=True)))
        assert [event.token_id for event in received if event.token_id is not None] == ids
        found, tokens = [], 0
        for event in received:
            tokens += event.token_id is not None
            found += event.base_logprobs
            assert len(found) <= tokens, "a token comes before what the base gives it"
        expected = answer_logprobs(engine.base, prompt_ids, ids)
        assert_close(torch.tensor([one.logprob for one in found]), expected, atol=1e-3, rtol=0)
        assert all(len(one.top) == 5 and one.top[0].logprob >= one.logprob - 1e-6 for one in found)
        tokens = len(prompt_ids) + len(ids) - 1
        assert sum(read) == (tokens if turn == 0 else len(ids)), "the prompt is not read again"
        read.clear()
    wait_until(lambda: engine._slots.tokens == 0)


def test_law_factors_of_gates_are_those_of_an_adapter_with_such_gates(engine, tiny_fingerprint):
    """A layer's gates are those of all its heads; 2 in all gates is the double strength; one gate counts."""
    request, plain = generate(engine, "one")
    layers, heads = (1, 2, 3), range(tiny_fingerprint.num_attention_heads)

    def logprobs(**changes):
        return [e.logprob for e in engine.submit(replace(request, **changes)) if e.token_id is not None]

    def of_all(factor, some=layers):
        return tuple((layer, head, factor) for layer in some for head in heads)

    assert logprobs(gates=of_all(0.5, layers[:1])) == logprobs(gates=((1, None, 0.5),))
    assert logprobs(gates=of_all(2.0)) == logprobs(strength=2.0)
    assert logprobs(gates=of_all(1.0)) == [event.logprob for event in plain]
    assert logprobs(gates=((layers[1], 0, 0.5),)) != logprobs()
