"""What is said of an answer, against the same written out in plain torch on the tiny model in fp32."""

from __future__ import annotations

import copy
import math
import sysconfig
import threading
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from adapter.__main__ import main
from adapter.attention import PromptKV
from adapter.chat import Message, encode_prompt
from adapter.checkpoint import save_adapter
from adapter.config import TuningConfig, VisionConfig
from adapter.engine import Engine
from adapter.errors import BadInput
from adapter.inspect import inspect, log_probs, muted
from adapter.llama import Base
from adapter.quantize import quantize_linears
from adapter.request import GenerationRequest
from adapter.sampling import SamplingParams
from adapter.store import AdapterStore
from adapter.vision import VisualEncoder, VisualFeatures, open_image
from conftest import random_adapter

ASKED = (Message("user", "What?"),)
ANSWER = [41, 7, 63, 12, 88, 30, 96]
TUNING = TuningConfig(intermediate_size=64, norms=True, bias=True, scale=True, lora_rank=3)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def prompt_ids(tiny_base):
    return encode_prompt(tiny_base.tokenizer, ASKED)


def seeing(fingerprint, projects=0.3):
    """A visual adapter and a picture for it."""
    adapter = random_adapter(fingerprint, vision=VisionConfig(encoder="any", feature_size=6, hidden=5))
    for parameter in adapter.projection.parameters():
        torch.nn.init.normal_(parameter, std=projects) if projects else parameter.zero_()
    return adapter, VisualFeatures(torch.randn(1, 6))


def tuned(fingerprint):
    adapter = random_adapter(fingerprint, tuning=TUNING)
    for parameter in adapter.tuning.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return adapter


def likelihoods(model, prompt_ids, kv=None):
    """[T] by a pass over everything with the logits of all positions."""
    ids = torch.tensor([[*prompt_ids, *ANSWER]])
    spread = model(input_ids=ids, prompt_kv=kv).logits[0].log_softmax(-1)
    return torch.stack([spread[len(prompt_ids) - 1 + i, token] for i, token in enumerate(ANSWER)])


def written_out(model, adapter, prompt_ids):
    """Shares [T, L, H] and weights [T, L, K]: the forward pass with loops over heads, and no code of ours."""
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
        heads, parts, seen, heard = [], [], [], []
        for h in range(4):
            mine, group = slice(h * 8, h * 8 + 8), slice(h // 2 * 8, h // 2 * 8 + 8)
            wk, wv = attention.k_proj.weight[group], attention.v_proj.weight[group]
            q = rope(x @ attention.q_proj.weight[mine].T)
            scores = (q @ rope(x @ wk.T).T / math.sqrt(8)).masked_fill(future, -math.inf)
            out = scores.softmax(-1) @ (x @ wv.T)
            if index >= first:
                prompts, gate = adapter.prompts[index - first], adapter.gates[index - first, h].tanh()
                softmax = (q @ (prompts @ wk.T).T / math.sqrt(8)).softmax(-1)
                term = gate * softmax @ (prompts @ wv.T)
                a, b = term.square().sum(1).sqrt(), out.square().sum(1).sqrt()
                parts.append(a / (a + b))
                seen.append(softmax)
                heard.append(gate.abs())
                out = out + term
            heads.append(out)
        if parts:
            shares.append(torch.stack(parts, dim=1))
            weights.append(sum(g * w for g, w in zip(heard, seen, strict=True)) / sum(heard))
        hidden = hidden + torch.cat(heads, dim=1) @ attention.o_proj.weight.T
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return torch.stack(shares, 1)[-len(ANSWER) :], torch.stack(weights, 1)[-len(ANSWER) :]


def test_shares_and_weights_are_the_paper_written_out(tiny_base, tiny_fingerprint, prompt_ids):
    adapter = random_adapter(tiny_fingerprint)
    adapter.gates[:, ::2] *= -1
    found = inspect(tiny_base, adapter, ASKED, ANSWER)
    shares, weights = written_out(tiny_base.model, adapter, prompt_ids)
    assert_close(found.shares, shares, rtol=1e-3, atol=1e-5)
    assert_close(found.prompt_weights, weights, rtol=1e-3, atol=1e-5)
    assert_close(found.drawn, shares.flatten(1).mean(1), rtol=1e-3, atol=1e-5)
    assert found.shares.shape == (7, 3, 4) and found.prompt_weights.shape == (7, 3, 5)
    assert found.layers == (1, 2, 3) and found.token_ids == tuple(ANSWER)
    assert found.drawn.min() > 0 and found.drawn.max() < 1
    assert found.grounding is None
    assert torch.equal(found.gates, adapter.activated_gates())


def test_weights_over_prompts_sum_to_one_at_any_gate(tiny_base, tiny_fingerprint):
    adapter = random_adapter(tiny_fingerprint)
    for gates in (adapter.gates.clone(), torch.zeros(3, 4)):
        adapter.gates.copy_(gates)
        found = inspect(tiny_base, adapter, ASKED, ANSWER)
        assert_close(found.prompt_weights.sum(-1), torch.ones(7, 3))
        assert found.prompt_weights.min() >= 0


def test_zero_gate_or_strength_zero_draws_nothing_and_moves_nothing(tiny_base, tiny_fingerprint):
    shut = random_adapter(tiny_fingerprint)
    shut.gates.zero_()
    for adapter, strength in ((shut, 1.0), (random_adapter(tiny_fingerprint), 0.0)):
        found = inspect(tiny_base, adapter, ASKED, ANSWER, strength=strength)
        for zero in (found.shares, found.drawn, found.influence, found.gates):
            assert not zero.any()


def test_strength_draws_more(tiny_base, tiny_fingerprint):
    adapter = random_adapter(tiny_fingerprint)
    half, full = (inspect(tiny_base, adapter, ASKED, ANSWER, strength=s) for s in (0.5, 1.0))
    assert (half.shares[:, 0] < full.shares[:, 0]).all()  # the lowest insertion layer hears the same words
    assert_close(half.gates * 2, full.gates)


@pytest.mark.parametrize("make", [random_adapter, tuned], ids=["prompts", "tuned"])
def test_influence_sums_to_the_difference_of_log_likelihoods(tiny_base, tiny_fingerprint, prompt_ids, make):
    model, adapter = tiny_base.model, make(tiny_fingerprint)
    found = inspect(tiny_base, adapter, ASKED, ANSWER, strength=0.8)
    with_adapter = likelihoods(model, prompt_ids, adapter(model).scaled(0.8))
    assert_close(found.logprobs, with_adapter, rtol=1e-4, atol=1e-4)
    assert_close(
        found.influence.sum(), (with_adapter - likelihoods(model, prompt_ids)).sum(), rtol=1e-4, atol=1e-3
    )
    assert found.influence.abs().max() > 0.01


def test_grounding_is_what_the_picture_adds(tiny_base, tiny_fingerprint, prompt_ids):
    model, (adapter, picture) = tiny_base.model, seeing(tiny_fingerprint)
    found = inspect(tiny_base, adapter, ASKED, ANSWER, picture)
    want = likelihoods(model, prompt_ids, adapter(model, picture)) - likelihoods(model, prompt_ids, adapter(model))
    assert_close(found.grounding, want, rtol=1e-4, atol=1e-4)
    assert found.grounding.abs().max() > 0.01
    again = inspect(tiny_base, adapter, ASKED, ANSWER, picture[:1])
    assert not (again.logprobs - found.logprobs).any()  # one picture against itself
    assert inspect(tiny_base, adapter, ASKED, ANSWER).grounding is None
    blank, picture = seeing(tiny_fingerprint, projects=0)
    assert not inspect(tiny_base, blank, ASKED, ANSWER, picture).grounding.any()


def test_muting_one_head_is_its_gate_at_zero(tiny_base, tiny_fingerprint, prompt_ids):
    adapter = random_adapter(tiny_fingerprint)
    kv, shut = adapter(tiny_base.model), copy.deepcopy(adapter)
    for layers, heads, where in (
        ((2,), (1,), (1, 1)),
        ((), (1, 3), (slice(None), [1, 3])),
        ((1, 3), (), ([0, 2],)),
        ((), (), ([],)),
    ):
        shut.gates.copy_(adapter.gates)
        shut.gates[where] = 0
        got = log_probs(tiny_base, prompt_ids, ANSWER, muted(kv, layers, heads))
        assert torch.equal(got, log_probs(tiny_base, prompt_ids, ANSWER, shut(tiny_base.model)))
    twice = muted(muted(kv, (1,), (0,)), (3,), (2,))
    assert [(p.gates[0] == 0).nonzero().flatten().tolist() for (p,) in twice.layers.values()] == [[0], [], [2]]
    assert all(p.gates.all() for (p,) in kv.layers.values())


@pytest.mark.parametrize("make", [random_adapter, tuned], ids=["prompts", "tuned"])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "packed"])
def test_law_muting_everything_is_the_base_bit_for_bit(tiny_base, tiny_fingerprint, prompt_ids, kind, make):
    model = copy.deepcopy(tiny_base.model)
    model = model if kind == "fp32" else model.bfloat16()
    if kind == "packed":
        quantize_linears(model)
    base, adapter = Base(model, tiny_base.tokenizer, tiny_fingerprint, kind, 0), make(tiny_fingerprint)
    kv = adapter(model)
    everything = range(-1, 4) if kv.deltas is not None else kv.layers
    silent = muted(kv, everything)
    plain = log_probs(base, prompt_ids, ANSWER)
    assert torch.equal(log_probs(base, prompt_ids, ANSWER, silent), plain)
    assert not torch.equal(log_probs(base, prompt_ids, ANSWER, kv), plain)
    ids = torch.tensor([prompt_ids])
    assert torch.equal(model(input_ids=ids, prompt_kv=silent).logits, model(input_ids=ids).logits)
    found = inspect(base, adapter, ASKED, ANSWER)
    assert found.shares.dtype == torch.float32 and found.shares.isfinite().all()


def test_the_model_is_left_as_it_was(tiny_base, tiny_fingerprint, prompt_ids):
    model, (adapter, picture) = tiny_base.model, seeing(tiny_fingerprint)
    ids, kv = torch.tensor([prompt_ids]), adapter(tiny_base.model, picture)
    before = model(input_ids=ids).logits, model(input_ids=ids, prompt_kv=kv).logits
    kept = [(module, dict(vars(module))) for module in model.modules()]
    inspect(tiny_base, adapter, ASKED, ANSWER, picture)
    assert all(vars(module).keys() == had.keys() for module, had in kept)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module, _ in kept)
    after = model(input_ids=ids).logits, model(input_ids=ids, prompt_kv=kv).logits
    assert all(map(torch.equal, before, after))
    assert kv.watch is None


def test_what_is_made_of_a_watched_one_is_not_watched(tiny, tiny_fingerprint):
    kv = random_adapter(tiny_fingerprint)(tiny)
    seen = []
    watched = PromptKV(kv.layers, watch=lambda layer, *_: seen.append(layer))
    for made in (
        watched.scaled(0.5),
        PromptKV.stack([watched, kv]),
        PromptKV.mixed([watched, kv]),
        muted(watched),
    ):
        assert made.watch is None
    want = tiny(input_ids=torch.tensor([ANSWER]), prompt_kv=kv).logits
    assert torch.equal(tiny(input_ids=torch.tensor([ANSWER]), prompt_kv=watched).logits, want)
    assert seen == [1, 2, 3]


def test_two_at_once_do_not_mix(tiny_base, tiny_fingerprint):
    adapters = [random_adapter(tiny_fingerprint, seed, prompt_length=4 + seed) for seed in (1, 2)]
    want = [inspect(tiny_base, adapter, ASKED, ANSWER) for adapter in adapters]
    start, found = threading.Barrier(2), {}

    def look(which):
        torch.set_num_threads(1)
        start.wait()
        found[which] = [inspect(tiny_base, adapters[which], ASKED, ANSWER) for _ in range(20)]

    threads = [threading.Thread(target=look, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which in (0, 1):
        for one in found[which]:
            assert torch.equal(one.shares, want[which].shares)
            assert torch.equal(one.prompt_weights, want[which].prompt_weights)
            assert torch.equal(one.influence, want[which].influence)


def test_what_cannot_be_looked_into_is_refused(tiny_base, tiny_fingerprint):
    adapter, (sees, picture) = random_adapter(tiny_fingerprint), seeing(tiny_fingerprint)
    two = VisualFeatures(torch.randn(2, 6))
    for arguments, words in (
        ((adapter, ASKED, []), "no answer"),
        ((adapter, ASKED, [97]), "from 0 to 96"),
        ((adapter, ASKED, [1] * 200), "this base reads 128"),
        ((adapter, ASKED, ANSWER, picture), "text only"),
        ((sees, ASKED, ANSWER, two), "one picture"),
        ((adapter, (), ANSWER), "empty"),
    ):
        with pytest.raises(BadInput, match=words):
            inspect(tiny_base, *arguments)
    kv = adapter(tiny_base.model)
    for layers, heads in (((0,), ()), ((), (4,)), ((-1,), ())):
        with pytest.raises(BadInput, match="nothing to mute"):
            muted(kv, layers, heads)


def test_the_command_prints_a_row_for_each_token(tiny_folder, tiny_fingerprint, tmp_path, capsys):
    save_adapter(random_adapter(tiny_fingerprint), tmp_path / "poet")
    options = ["--adapter", "poet", "--base", str(tiny_folder), "--quantization", "none", "--device", "cpu"]
    adapters = ["--adapters", str(tmp_path)]
    assert main([*adapters, "inspect", *options, "--max-new-tokens", "6", "hi"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["token", "drawn", "%", "influence", "log", "p"]
    rows = out[1 : out.index("")]
    assert 1 <= len(rows) <= 6 and all(0 < float(row.split()[-3]) < 100 for row in rows)
    strips = out[out.index("") + 1 : out.index("") + 3]
    assert "█" in strips[0] and all(len(s[11:].partition("  ")[0]) <= len(rows) for s in strips)
    assert main([*adapters, "inspect", "--adapter", "nobody", "hi"]) == 1
    assert "no adapter 'nobody'" in capsys.readouterr().err


@pytest.mark.slow
def test_pirate_and_see_on_the_real_base(base):
    """Each is what moves its answer; a picture's word is grounded in it, the words around it less."""
    store = AdapterStore()
    encoder = VisualEncoder("tf_efficientnet_lite0", base.device)
    picture = open_image(Path(sysconfig.get_path("purelib"), "skimage/data/coffee.png"))
    with closing(Engine(base, store)) as engine:
        for name, text, image in (
            ("pirate", "What is the sun?", None),
            ("see", "What is in this picture?", picture),
        ):
            adapter, asked = store.load(name, base), (Message("user", text),)
            request = GenerationRequest(asked, name, image, sampling=SamplingParams(0, max_new_tokens=32))
            events = [event for event in engine.submit(request) if event.token_id is not None]
            ids = [event.token_id for event in events]
            features = None if image is None else encoder.encode([image], **adapter.config.vision.encoding)
            found = inspect(base, adapter, asked, ids, features)
            streamed = torch.tensor([event.logprob for event in events])
            assert_close(found.logprobs, streamed, rtol=0, atol=0.25)  # two orders of summation in bfloat16
            assert found.influence.sum() > 5
            assert found.drawn.min() > 0.01 and found.drawn.max() < 0.9
            assert_close(found.prompt_weights.sum(-1), torch.ones(found.prompt_weights.shape[:2]))
            prompt_ids = encode_prompt(base.tokenizer, asked, adapter.config.template)
            silent = muted(adapter(base.model, features), adapter.config.layers)
            assert torch.equal(log_probs(base, prompt_ids, ids, silent), found.base_logprobs)
            if image is not None:
                said = [base.tokenizer.decode([i]) for i in ids]
                assert found.grounding.max() > 2, list(zip(said, found.grounding.tolist(), strict=True))
                assert found.grounding[-2] < found.grounding.max()  # the full stop
