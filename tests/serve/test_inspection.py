"""Inspection against the same quantities written out in plain torch, on the tiny model in fp32."""

from __future__ import annotations

import copy
import json
import math
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from adapter.__main__ import main
from adapter.base.image_file import open_image
from adapter.base.template import Message, encode_prompt
from adapter.errors import BadInput, Busy, LoadError
from adapter.method.attention import PromptKV
from adapter.method.checkpoint import save_adapter
from adapter.method.config import TuningConfig, VisionConfig
from adapter.method.vision import VisualFeatures
from adapter.serve import inspection, prompts
from adapter.serve.engine import Engine
from adapter.serve.forward import TorchForward
from adapter.serve.inspection import MAX_TOKENS, MAX_WAITING, answer_logprobs, inspect_answer
from adapter.serve.request import GenerationRequest, SamplingParams
from adapter.serve.store import AdapterStore
from tests.app_process import PATIENCE, wait_until
from tests.tiny_models import random_adapter

QUESTION = (Message("user", "What?"),)
ANSWER = [41, 7, 63, 12, 88, 30, 96]
TUNING = TuningConfig(intermediate_size=64, norms=True, bias=True, scale=True, lora_rank=3)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def engine(tiny_base, tiny_fingerprint, tmp_path, monkeypatch):
    """With text adapters of different layers and lengths, a visual one and a tuned one."""
    save_adapter(random_adapter(tiny_fingerprint, 1), tmp_path / "one")
    save_adapter(random_adapter(tiny_fingerprint, 2, prompt_length=3, insertion_layers=2), tmp_path / "two")
    visual, features = visual_adapter(tiny_fingerprint)
    save_adapter(visual, tmp_path / "see")
    save_adapter(tuned_adapter(tiny_fingerprint), tmp_path / "tuned")
    encoder = SimpleNamespace(images=[], encode=lambda images, **_: encoder.images.append(images) or features)
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


def inspect(base, adapter, answer_ids, strength=1.0):
    """The inspection of an answer that one adapter gave, without an engine."""
    prompt_ids = encode_prompt(base.tokenizer, QUESTION, adapter.config.template)
    return inspect_answer(base, [adapter], prompt_ids, answer_ids, adapter(base.model).scaled(strength))


def visual_adapter(fingerprint):
    """A visual adapter with a random projection, and features of an image for it."""
    adapter = random_adapter(fingerprint, vision=VisionConfig(encoder="any", feature_size=6, hidden=5))
    for parameter in adapter.projection.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return adapter, VisualFeatures(torch.randn(1, 6))


def tuned_adapter(fingerprint):
    adapter = random_adapter(fingerprint, tuning=TUNING)
    for parameter in adapter.tuning.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return adapter


def reference_logprobs(model, prompt_ids, kv=None):
    """[T], from one pass with the logits of all positions."""
    ids = torch.tensor([[*prompt_ids, *ANSWER]])
    logprobs = model(input_ids=ids, prompt_kv=kv).logits[0].log_softmax(-1)
    return torch.stack([logprobs[len(prompt_ids) - 1 + i, token] for i, token in enumerate(ANSWER)])


def reference_shares(model, adapter, prompt_ids):
    """Shares [T, L, H] and weights [T, L, K]: the forward pass with loops over heads, without any code of ours."""
    ids = torch.tensor([*prompt_ids, *ANSWER])[:-1]
    length, first = len(ids), adapter.config.layers[0]
    hidden = model.model.embed_tokens(ids)
    cos, sin = (t[0] for t in model.model.rotary_emb(hidden[None], torch.arange(length)[None]))
    future = torch.ones(length, length).triu(1).bool()

    def rope(x):
        return x * cos + torch.cat([-x[:, 4:], x[:, :4]], dim=1) * sin

    shares, weights = [], []
    for index, layer in enumerate(model.model.layers):
        attention, x = layer.self_attn, layer.input_layernorm(hidden)
        heads, head_shares, head_weights, gates = [], [], [], []
        for h in range(4):
            own, group = slice(h * 8, h * 8 + 8), slice(h // 2 * 8, h // 2 * 8 + 8)
            wk, wv = attention.k_proj.weight[group], attention.v_proj.weight[group]
            q = rope(x @ attention.q_proj.weight[own].T)
            scores = (q @ rope(x @ wk.T).T / math.sqrt(8)).masked_fill(future, -math.inf)
            out = scores.softmax(-1) @ (x @ wv.T)
            if index >= first:
                prompts, gate = adapter.prompts[index - first], adapter.gates[index - first, h].tanh()
                softmax = (q @ (prompts @ wk.T).T / math.sqrt(8)).softmax(-1)
                term = gate * softmax @ (prompts @ wv.T)
                a, b = term.square().sum(1).sqrt(), out.square().sum(1).sqrt()
                head_shares.append(a / (a + b))
                head_weights.append(softmax)
                gates.append(gate.abs())
                out = out + term
            heads.append(out)
        if gates:
            shares.append(torch.stack(head_shares, dim=1))
            weights.append(sum(g * w for g, w in zip(gates, head_weights, strict=True)) / sum(gates))
        hidden = hidden + torch.cat(heads, dim=1) @ attention.o_proj.weight.T
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return torch.stack(shares, 1)[-len(ANSWER) :], torch.stack(weights, 1)[-len(ANSWER) :]


def test_shares_and_weights_follow_the_equations(tiny_base, tiny_fingerprint, prompt_ids):
    adapter = random_adapter(tiny_fingerprint)
    adapter.gates[:, ::2] *= -1
    found = inspect(tiny_base, adapter, ANSWER)
    shares, weights = reference_shares(tiny_base.model, adapter, prompt_ids)
    assert_close(found.shares, shares, rtol=1e-3, atol=1e-5)
    assert_close(found.parts[0].prompt_weights, weights, rtol=1e-3, atol=1e-5)
    assert_close(found.prompt_share, shares.flatten(1).mean(1), rtol=1e-3, atol=1e-5)
    assert found.shares.shape == (7, 3, 4) and found.parts[0].prompt_weights.shape == (7, 3, 5)
    assert found.layers == (1, 2, 3) and found.token_ids == tuple(ANSWER)
    assert found.prompt_share.min() > 0 and found.prompt_share.max() < 1
    assert found.grounding is None
    assert torch.equal(found.parts[0].gates, adapter.activated_gates())


def test_at_gate_or_strength_zero_shares_and_influence_are_zero(tiny_base, tiny_fingerprint):
    closed = random_adapter(tiny_fingerprint)
    closed.gates.zero_()
    for adapter, strength in ((closed, 1.0), (random_adapter(tiny_fingerprint), 0.0)):
        found = inspect(tiny_base, adapter, ANSWER, strength=strength)
        for zero in (found.shares, found.prompt_share, found.influence, found.parts[0].gates):
            assert not zero.any()
        assert_close(found.parts[0].prompt_weights.sum(-1), torch.ones(7, 3))


def test_two_inspections_at_once_do_not_mix_and_leave_nothing_on_the_model(tiny_base, tiny_fingerprint):
    adapters = [random_adapter(tiny_fingerprint, seed, prompt_length=4 + seed) for seed in (1, 2)]
    want = [inspect(tiny_base, adapter, ANSWER) for adapter in adapters]
    ids, start = torch.tensor([ANSWER]), threading.Barrier(2)
    before = tiny_base.model(input_ids=ids).logits

    def run(which):
        torch.set_num_threads(1)
        start.wait()
        return [inspect(tiny_base, adapters[which], ANSWER) for _ in range(10)]

    with ThreadPoolExecutor(2) as pool:
        for found, wanted in zip(pool.map(run, (0, 1)), want, strict=True):
            for one in found:
                assert torch.equal(one.shares, wanted.shares) and torch.equal(one.influence, wanted.influence)
                assert torch.equal(one.parts[0].prompt_weights, wanted.parts[0].prompt_weights)
    assert torch.equal(tiny_base.model(input_ids=ids).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_base.model.modules())


def test_a_mix_is_inspected_as_a_whole_and_by_adapter(tiny_base, tiny_fingerprint, prompt_ids):
    model, strengths = tiny_base.model, (0.5, 0.9)
    adapters = [
        random_adapter(tiny_fingerprint, 1),
        random_adapter(tiny_fingerprint, 2, prompt_length=3, insertion_layers=2),
    ]
    mixed = PromptKV.mixed([a(model).scaled(strength) for a, strength in zip(adapters, strengths, strict=True)])
    found = inspect_answer(tiny_base, adapters, prompt_ids, ANSWER, mixed)
    assert_close(found.logprobs, reference_logprobs(model, prompt_ids, mixed), rtol=1e-4, atol=1e-4)
    assert found.layers == (1, 2, 3) and [part.layers for part in found.parts] == [(1, 2, 3), (2, 3)]
    assert [part.prompt_weights.shape for part in found.parts] == [(7, 3, 5), (7, 2, 3)]
    for part, adapter, strength in zip(found.parts, adapters, strengths, strict=True):
        assert_close(part.gates, adapter.activated_gates() * strength)
        assert_close(part.prompt_weights.sum(-1), torch.ones(part.prompt_weights.shape[:2]))
    # The lowest layer, where only the first adapter is, has the same input as without the second.
    alone = inspect(tiny_base, adapters[0], ANSWER, strength=0.5)
    assert_close(found.shares[:, 0], alone.shares[:, 0])
    assert_close(found.parts[0].prompt_weights[:, 0], alone.parts[0].prompt_weights[:, 0])


def test_the_engine_returns_the_same_inspection(engine, tiny_base, tiny_fingerprint):
    adapter = engine.store.load("one", tiny_base)
    request, events = generate(engine, "one", strength=0.7)
    ids = [event.token_id for event in events]
    found, want = engine.inspect(request, ids), inspect(tiny_base, adapter, ids, strength=0.7)
    assert_close(found.logprobs, torch.tensor([event.logprob for event in events]), rtol=1e-4, atol=1e-4)
    for name in ("shares", "logprobs", "base_logprobs"):
        assert_close(getattr(found, name), getattr(want, name))
    assert_close(found.parts[0].prompt_weights, want.parts[0].prompt_weights)
    assert "".join(found.tokens) == "".join(event.text for event in events)
    assert found.no_image_logprobs is None


def test_the_engine_inspects_with_the_image_of_the_request_which_is_encoded_once(engine):
    image = Image.new("RGB", (8, 8))
    request, events = generate(engine, "see", image, mix=(("one", 0.5),))
    ids = [event.token_id for event in events]
    found, without = engine.inspect(request, ids), engine.inspect(replace(request, image=None), ids)
    assert_close(found.logprobs, torch.tensor([event.logprob for event in events]), rtol=1e-4, atol=1e-4)
    assert_close(found.grounding, found.logprobs - without.logprobs)
    assert found.grounding.abs().max() > 0.01 and without.grounding is None
    assert len(found.parts) == 2
    [encoder] = map(engine.prompts._encoders.get, engine.prompts._encoders)
    assert len(encoder.images) == 2  # the other one is grey, see PromptKVBuilder.build


def test_law_muting_is_an_adapter_with_gates_at_zero(engine, tiny_base, prompt_ids):
    adapter = engine.store.load("one", tiny_base)
    for layers, heads in (((2,), ()), ((), (0, 3)), ((1, 3), (2,))):
        zeroed = copy.deepcopy(adapter)
        zeroed.gates[[layer - 1 for layer in layers]] = 0
        zeroed.gates[:, list(heads)] = 0
        request, events = generate(engine, "one", mute_layers=layers, mute_heads=heads)
        ids = [event.token_id for event in events]
        found = engine.inspect(request, ids)
        assert torch.equal(found.logprobs, answer_logprobs(tiny_base, prompt_ids, ids, zeroed(tiny_base.model)))
        assert_close(found.logprobs, torch.tensor([event.logprob for event in events]), rtol=1e-4, atol=1e-4)
        assert torch.equal(found.parts[0].gates, zeroed.activated_gates())


@pytest.mark.parametrize("base", ["tiny_base", "packed_base"])
def test_law_with_all_layers_muted_the_engine_answers_as_the_frozen_base(engine, request, base):
    """Bit for bit, through the engine's own forward pass."""
    with closing(Engine(request.getfixturevalue(base), engine.store)) as engine:
        everything = {"mute_layers": (1, 2, 3)}
        answers = [
            [(event.token_id, event.logprob) for event in generate(engine, *name, **mute)[1]]
            for name, mute in (
                ([], {}),
                (["one"], {}),
                (["one"], everything),
                (["one"], {"mute_heads": (0, 1, 2, 3)}),
                (["one"], {**everything, "mix": (("two", 2.0),)}),
                (["tuned"], {"mute_layers": (-1, 0, 1, 2, 3)}),
            )
        ]
        asked, events = generate(engine, "one", mute_layers=(1, 2, 3))
        found = engine.inspect(asked, [event.token_id for event in events])
    assert all(answer == answers[0] for answer in answers[2:])
    assert answers[1] != answers[0]
    assert not found.influence.any() and not found.shares.any()


def test_the_engine_refuses_what_cannot_be_inspected(engine):
    request, _ = generate(engine, "one")
    for changed, ids, error, message in (
        ({"adapter": None}, ANSWER, BadInput, "frozen base"),
        ({"adapter": "nobody"}, ANSWER, LoadError, "nobody"),
        ({}, [], BadInput, "no answer"),
        ({}, [97], BadInput, "from 0 to 96"),
        ({}, [1] * MAX_TOKENS, BadInput, "can be looked into"),
        ({"mute_layers": (0,)}, ANSWER, BadInput, "nothing to mute in layer 0"),
        ({"mute_heads": (4,)}, ANSWER, BadInput, "nothing to mute in head 4"),
        ({"image": Image.new("RGB", (8, 8))}, ANSWER, BadInput, "text only"),
        ({"gates": ((99, 0, 0.0),)}, ANSWER, BadInput, "nothing to mute in layer 99"),
        ({"gates": ((1, 77, 0.0),)}, ANSWER, BadInput, "nothing to mute in head 77"),
    ):
        with pytest.raises(error, match=message):
            engine.inspect(replace(request, **changed), ids)
    many = ((1, 0, 1.0),) * 4097
    for wrong in ({"mute_heads": (True,)}, *({"gates": g} for g in (((0, 0, 2.1),), ((0, 0, math.nan),), many))):
        with pytest.raises(BadInput, match="whole numbers|Factors of gates"):
            replace(request, **wrong)
    assert engine.inspect(request, ANSWER).token_ids == tuple(ANSWER)  # errors take no place in the queue


def test_one_inspection_runs_and_few_wait(engine, monkeypatch):
    request, _ = generate(engine, "one")
    inspect_answer, go, running, peak = inspection.inspect_answer, threading.Event(), [], []

    def slow(*arguments):
        running.append(1)
        peak.append(len(running))
        assert go.wait(PATIENCE)
        running.pop()
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
        wait_until(lambda: len(refusals) == 2)
        generate(engine, "one")  # answers do not wait for inspections
        go.set()
        list(asked)
    assert len(peak) == MAX_WAITING and set(peak) == {1}
    assert all("looked into already" in end for end in refusals) and len(refusals) == 2
    engine.close()
    with pytest.raises(Busy, match="closed"):
        engine.inspect(request, ANSWER)


def test_the_commands_mute_and_print_a_row_for_each_token(tiny_folder, tiny_fingerprint, tmp_path, capsys):
    save_adapter(random_adapter(tiny_fingerprint), tmp_path / "poet")
    options = ["--base", str(tiny_folder), "--quantization", "none", "--device", "cpu", "--max-new-tokens", "6"]

    def run(command, *more, status=0):
        adapter = [] if more == ("base",) else ["--adapter", "poet", *more]
        assert main(["--adapters", str(tmp_path), *command, *options, *adapter, "hi"]) == status
        return capsys.readouterr()

    def answer(*more):
        found = json.loads(run(["generate", "--temperature", "0", "--json", "--logprobs"], *more).out)
        return found["token_ids"], found["logprobs"]

    every = [f"--mute-layer={i}" for i in (1, 2, 3)]
    assert answer("base") == answer(*every) == answer(*[f"--mute-head={i}" for i in range(4)]) != answer()
    assert "nothing to mute in head 9" in run(["inspect"], "--mute-head", "9", status=1).err
    for mutes in ([], every):
        out = run(["inspect"], *mutes).out.splitlines()
        assert out[0].split() == ["token", "drawn", "%", "influence", "log", "p"]
        rows = [row.split()[-3:-1] for row in out[1 : out.index("")]]
        assert 1 <= len(rows) <= 6
        if mutes:
            assert rows == [["0.00", "0.00"]] * len(rows)
        else:
            assert all(0 < float(drawn) < 100 for drawn, _ in rows) and "█" in out[out.index("") + 1]


@pytest.mark.slow
def test_the_word_for_what_a_picture_shows_is_grounded_on_the_real_base(base):
    picture = open_image(Path(sysconfig.get_path("purelib"), "skimage/data/coffee.png"))
    sampling = SamplingParams(0, max_new_tokens=32)
    asked = (Message("user", "What is in this picture?"),)
    request = GenerationRequest(asked, "see", picture, sampling=sampling)
    with closing(Engine(base, AdapterStore())) as engine:
        events = [event for event in engine.submit(request) if event.token_id is not None]
        found = engine.inspect(request, [event.token_id for event in events])
    # Orders of summation in bfloat16.
    assert_close(found.logprobs, torch.tensor([event.logprob for event in events]), rtol=0, atol=0.25)
    assert found.influence.sum() > 5 and 0.01 < found.prompt_share.min() <= found.prompt_share.max() < 0.9
    assert 2 < found.grounding.max() > found.grounding[-2], list(zip(found.tokens, found.grounding, strict=True))


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
        assert all(len(one.top) == 3 and one.top[0][1] >= one.logprob - 1e-6 for one in found)
        tokens = len(prompt_ids) + len(ids) - 1
        assert sum(read) == (tokens if turn == 0 else len(ids)), "the prompt is not read again"
        read.clear()
    wait_until(lambda: len(engine._slots) == 0)


def test_the_base_reads_along_where_it_is_asked_to_and_there_is_room(engine, monkeypatch):
    request, _ = generate(engine, "one")
    room = engine._slots.capacity

    def found(**changes):
        received = list(engine.submit(replace(request, **changes)))
        assert received[-1].stats.new_tokens == 12
        return sum(len(event.base_logprobs) for event in received)

    assert found(base_logprobs=True) == 12
    assert found() == found(base_logprobs=True, strength=0.0) == found(base_logprobs=True, adapter=None) == 0
    engine._slots.capacity = 64  # one slot
    assert found(base_logprobs=True) == 0
    engine._slots.capacity = room

    def broken(*_):
        raise RuntimeError("no memory for the logits")

    monkeypatch.setattr("adapter.serve.engine.base_logprobs", broken)
    assert found(base_logprobs=True) == 0 and engine.failure is None


# Factors of single gates.


def test_law_factors_of_gates_are_those_of_an_adapter_with_such_gates(engine, tiny_fingerprint):
    """0 in all of a layer is muting it; 2 in all gates is the double strength; one gate is that gate alone."""
    request, plain = generate(engine, "one")
    adapter = engine.store.load("one", engine.base)
    layers, heads = adapter.config.layers, range(tiny_fingerprint.num_attention_heads)

    def logprobs(**changes):
        return [e.logprob for e in engine.submit(replace(request, **changes)) if e.token_id is not None]

    def of_all(factor, some=layers):
        return tuple((layer, head, factor) for layer in some for head in heads)

    assert logprobs(gates=of_all(0.0, layers[:1])) == logprobs(mute_layers=layers[:1])
    assert logprobs(gates=of_all(2.0)) == logprobs(strength=2.0)
    assert logprobs(gates=of_all(1.0)) == [event.logprob for event in plain]
    half = logprobs(gates=((layers[1], 0, 0.5),))
    other = copy.deepcopy(adapter)
    gate = 0.5 * adapter.activated_gates()[1, 0]
    other.gates.data[1, 0] = gate.atanh() if adapter.config.gate_activation == "tanh" else gate
    save_adapter(other, engine.store.folders[0] / "other")
    assert_close(torch.tensor(half), torch.tensor(logprobs(adapter="other")), atol=1e-4, rtol=0)
    assert half != logprobs()
