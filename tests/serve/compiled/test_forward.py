"""The forward pass for serving: it equals the model's own, whatever other rows are in the batch."""

import copy
import itertools
from contextlib import closing
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import rotate_half

from adapter.base.llama import Base
from adapter.base.packed.integer_product import GROUP
from adapter.base.packed.quantize import quantize_linears
from adapter.errors import LoadError
from adapter.method.attention import PromptKV
from adapter.method.config import TuningConfig
from adapter.method.deltas import Deltas, LinearDelta
from adapter.serve.compiled import layers
from adapter.serve.compiled.forward import CompiledForward, CompiledPrompts
from adapter.serve.forward import TorchForward, make_forward
from adapter.serve.kv_cache import BLOCK, KVCache, Slot, SlotAllocator
from tests.tiny_models import random_adapter, random_llama

IDS = [i * 7 % 95 for i in range(90)]


@pytest.fixture(params=["plain", "packed"])
def base(request, tiny_base, packed_base) -> Base:
    return tiny_base if request.param == "plain" else packed_base


@pytest.fixture
def forward(base):
    with closing(make_forward(base, 3)) as forward:
        assert isinstance(forward, CompiledForward) == (base.quantization == "packed-int8")
        yield forward


def some_prompts(base, tiny_fingerprint):
    """None, prompts of two lengths, V2's, and a mix."""
    adapters = [random_adapter(tiny_fingerprint, seed, prompt_length=3 + 4 * seed) for seed in range(2)]
    tuning = TuningConfig(lora_rank=2, intermediate_size=64)
    tuned = random_adapter(tiny_fingerprint, 3, spread=0.05, tuning=tuning)
    entries = [adapter(base.model) for adapter in (*adapters, tuned)]
    return [None, *entries, PromptKV.mixed(entries[:2]).scaled(0.5)]


def run(forward, cache, ids, slots, starts, prompts, every=False):
    return forward(cache, ids, slots, starts, forward.stack([forward.prepare(kv) for kv in prompts]), every)


@pytest.mark.parametrize("cuts", [[90], [10, 54, 1, 1, 24]])
@torch.no_grad()
def test_chunked_prefill_equals_the_model(tiny_base, cuts, tiny_fingerprint):
    for kv in some_prompts(tiny_base, tiny_fingerprint):
        forward, cache, slot, logits = make_forward(tiny_base, 1), KVCache(tiny_base, 256), Slot(64, 128), []
        for start, size in zip([0, *itertools.accumulate(cuts)], cuts, strict=False):
            logits.append(run(forward, cache, [IDS[start : start + size]], [slot], [start], [kv], every=True))
        whole = tiny_base.model(input_ids=torch.tensor([IDS]), use_cache=False, prompt_kv=kv).logits[0]
        assert_close(torch.cat(logits), whole, atol=1e-3, rtol=1e-4)
        again = run(forward, cache, [IDS[80:]], [slot], [80], [kv])  # the last logits only, over what is there
        assert_close(again, logits[-1][-1:], atol=1e-3, rtol=0)


@pytest.mark.parametrize("room", [128, 192])
def test_batched_rows_equal_rows_alone(base, forward, tiny_fingerprint, room):
    """Of all lengths, on both sides of a block's end, with different prompts: bit for bit on a packed base.

    room: tokens of a slot, by which torch's attention reads rows in one run or in several.
    """
    prompts = some_prompts(base, tiny_fingerprint)
    lengths = [1, 5, BLOCK - 1, BLOCK, 80, 80, 3, 17, 66]
    chosen = [prompts[i % len(prompts)] for i in range(len(lengths))]
    together, allocator = KVCache(base, 4096), SlotAllocator(4096)
    together.data.fill_(float("nan"))  # whatever earlier rows have left
    slots = [allocator.take(room if i < 4 else 128) for i in range(len(lengths))]
    alone = []
    for slot, length, kv in zip(slots, lengths, chosen, strict=True):
        cache, own = KVCache(base, 128), Slot(0, 128)
        run(forward, cache, [IDS[:length]], [own], [0], [kv])
        together.write(slot, cache.read(own, length))
        alone.append(run(forward, cache, [IDS[length : length + 1]], [own], [length], [kv])[0])
    logits = run(forward, together, [IDS[n : n + 1] for n in lengths], slots, lengths, chosen)
    for got, want in zip(logits, alone, strict=True):
        if isinstance(forward, CompiledForward):
            assert torch.equal(got, want)
        else:
            assert_close(got, want, atol=1e-3, rtol=0)


@pytest.fixture(params=[1, 3], ids="{} threads".format)
def compiled(request, packed_base):
    with closing(make_forward(packed_base, request.param)) as forward:
        yield forward


def test_tokens_give_the_same_bits_however_they_are_divided(compiled, packed_base, tiny_fingerprint):
    """One by one, in chunks, and several new tokens of several rows in one call."""
    kv = random_adapter(tiny_fingerprint)(packed_base.model)
    cache, slots = KVCache(packed_base, 1024), [Slot(256 * i, 128) for i in range(4)]
    want = run(compiled, cache, [IDS], slots[:1], [0], [kv], every=True)
    for at, token in enumerate(IDS):
        assert torch.equal(run(compiled, cache, [[token]], slots[1:2], [at], [kv])[0], want[at])
    run(compiled, cache, [IDS[:50], IDS[:30]], slots[2:], [0, 0], [kv, None])
    got = run(compiled, cache, [IDS[50:], IDS[30:31]], slots[2:], [50, 30], [kv, None], every=True)
    assert torch.equal(got[:40], want[50:])
    assert torch.equal(cache.read(slots[0], 90), cache.read(slots[1], 90))
    assert torch.equal(cache.read(slots[0], 90), cache.read(slots[2], 90))


def test_a_zero_gate_and_a_strength_of_zero_leave_the_base_bit_for_bit(compiled, packed_base, tiny_fingerprint):
    cache, slot = KVCache(packed_base, 128), Slot(0, 128)
    want = run(compiled, cache, [IDS], [slot], [0], [None], every=True)
    tuning = TuningConfig(lora_rank=2, intermediate_size=64)
    untrained = random_adapter(tiny_fingerprint, gate=0, tuning=tuning)(packed_base.model)
    trained = random_adapter(tiny_fingerprint, spread=1.0, tuning=tuning)
    for kv in (untrained, trained(packed_base.model).scaled(0)):
        assert torch.equal(run(compiled, cache, [IDS], [slot], [0], [kv], every=True), want)


# The compiled layers, one by one, beside the equations in double precision with the same roundings: what a product
# reads is rounded to eight bits, keys and values to bfloat16.


def eight_bits(x):
    """[T, inputs], rounded to 127 steps of the largest in each group of 32."""
    groups = F.pad(x.float(), (0, -x.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    largest = groups.abs().amax(2, keepdim=True)
    steps = (groups * (127 / largest.clamp(min=1e-30))).round()
    return (steps * (largest / 127).double()).flatten(1)[:, : x.shape[1]]


class Reference:
    """One layer of a packed base, and its head, for [T, hidden_size]."""

    def __init__(self, base, kv):
        self.model, self.config, self.kv = base.model, base.model.config, kv

    def norm(self, norm, hidden, layer, name):
        x = hidden.double()
        x = x / (x.square().mean(1, keepdim=True) + self.config.rms_norm_eps).sqrt() * norm.weight.double()
        return x * (1 + self.kv.deltas.norms[layer, name].double())

    def linear(self, linear, x, layer, name):
        delta = self.kv.deltas.linears[layer, name].map(torch.Tensor.double)
        y = eight_bits(x) @ linear.unpacked().double().T
        return (y + x @ delta.down[0].T @ delta.up[0].T + delta.bias[0]) * (1 + delta.scale[0])

    def attention(self, query, keys, values, mask):
        scores = query @ keys.repeat_interleave(len(query) // len(keys), 0).mT * self.config.head_dim**-0.5
        return (scores + mask).softmax(-1) @ values.repeat_interleave(len(query) // len(values), 0)

    def layer(self, index, hidden):
        layer, count = self.model.model.layers[index], len(hidden)
        attention, mlp = layer.self_attn, layer.mlp
        x = self.norm(layer.input_layernorm, hidden, index, "attention_norm")
        query, key, value = (
            self.linear(linear, x, index, name).unflatten(1, (-1, self.config.head_dim)).transpose(0, 1)
            for name, linear in (("q", attention.q_proj), ("k", attention.k_proj), ("v", attention.v_proj))
        )
        cos, sin = (part[0].double() for part in self.model.model.rotary_emb(hidden, torch.arange(count)[None]))
        query, key = (t * cos + rotate_half(t) * sin for t in (query, key))
        future = torch.full((count, count), -torch.inf, dtype=torch.double).triu(1)
        out = self.attention(query, key.bfloat16().double(), value.bfloat16().double(), future)
        for term in self.kv.layers.get(index, ()):
            gates = term.gates[0].double()[:, None, None]
            out = out + gates * self.attention(query, term.keys[0].double(), term.values[0].double(), 0)
        hidden = hidden.double() + self.linear(attention.o_proj, out.transpose(0, 1).flatten(1), index, "o")
        x = self.norm(layer.post_attention_layernorm, hidden, index, "mlp_norm")
        gate, up = (self.linear(of, x, index, n) for n, of in (("gate", mlp.gate_proj), ("up", mlp.up_proj)))
        return hidden + self.linear(mlp.down_proj, F.silu(gate) * up, index, "down")

    def head(self, hidden):
        x = self.norm(self.model.model.norm, hidden, -1, "final_norm")
        return eight_bits(x) @ self.model.lm_head.unpacked().double().T


def cut(base, layers):
    """The base with its lowest layers only."""
    model = copy.copy(base.model)
    model._modules, model.config = dict(model._modules), copy.copy(model.config)
    model.model = copy.copy(model.model)
    model.model._modules = {**model.model._modules, "layers": model.model.layers[:layers]}
    model.config.num_hidden_layers = layers
    return replace(base, model=model, fingerprint=replace(base.fingerprint, num_hidden_layers=layers))


def below(kv, layers):
    """What a PromptKV holds for the lowest layers and the final norm."""
    linears = {key: delta for key, delta in kv.deltas.linears.items() if key[0] < layers}
    norms = {key: delta for key, delta in kv.deltas.norms.items() if key[0] < layers}
    return PromptKV({i: terms for i, terms in kv.layers.items() if i < layers}, 1, Deltas(linears, norms))


@pytest.mark.parametrize("sizes", [
    {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64},
    {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 20},
])  # fmt: skip
def test_each_compiled_layer_equals_the_equations_with_the_same_roundings(sizes, tiny_base):
    """Heads of several vectors and of none, grouped queries, three tiles of keys, all kinds of terms."""
    sizes = {**sizes, "num_hidden_layers": 4}
    model = random_llama(std=0.15, random_norms=True, **sizes).bfloat16()
    model.model.layers[1].self_attn.q_proj.weight.data *= 40  # scores whose exponentials would be infinite
    quantize_linears(model)
    base = Base(model, tiny_base.tokenizer, replace(tiny_base.fingerprint, **sizes), "packed-int8", 0)
    tuning = TuningConfig(lora_rank=2, intermediate_size=64, norms=True, bias=True, scale=True)
    tuned = random_adapter(base.fingerprint, 3, spread=0.1, tuning=tuning, insertion_layers=4)
    long = random_adapter(base.fingerprint, 1, prompt_length=70, insertion_layers=4)
    kv = PromptKV.mixed([long(model), tuned(model)])
    ids = [i * 11 % 95 for i in range(150)]
    streams = [model.model.embed_tokens(torch.tensor(ids)).float()]
    for count in (1, 2, 3, 4):
        part = cut(base, count)
        with closing(make_forward(part, 2)) as forward:
            assert isinstance(forward, CompiledForward)
            prompts = [below(kv, count)]
            logits = run(forward, KVCache(part, 192), [ids], [Slot(0, 192)], [0], prompts, every=True)
            streams.append(forward._buffers["stream"][: len(ids)].clone())

    def errors(kv):
        """Of each layer's change of its input, and of the logits: [5, tokens]."""
        reference = Reference(base, kv)
        pairs = [(after - before, reference.layer(i, before) - before) for i, (before, after) in enumerate(steps)]
        pairs.append((logits, reference.head(streams[-1])))
        return torch.stack([(got - want).norm(dim=1) / want.norm(dim=1) for got, want in pairs])

    steps = list(itertools.pairwise(streams))
    *in_layers, in_head = errors(kv)
    # A number in the middle between two steps may be rounded either way, and is read by all later tokens. In one
    # layer at least, each token meets none.
    assert torch.stack(in_layers).max() < 0.02 and torch.stack(in_layers).amin(0).max() < 1e-5
    assert in_head.max() < 1e-5
    without = PromptKV({i: terms[:1] for i, terms in kv.layers.items()}, 1, kv.deltas)
    assert errors(without)[:-1].amin(0).max() > 1e-3, "a term of a mix that is left out is seen"


def changed(**changes):
    """Of the first term in the lowest insertion layer."""

    def change(kv):
        layer = min(kv.layers)
        first, *others = kv.layers[layer]
        return replace(kv, layers={**kv.layers, layer: (replace(first, **changes), *others)})

    return change


def linear(layer, name, **delta):
    sizes = {what: torch.zeros(1, *size) for what, size in delta.items()}
    return lambda kv: replace(kv, deltas=Deltas({(layer, name): LinearDelta(**sizes)}, {}))


def norm(layer, name, size):
    return lambda kv: replace(kv, deltas=Deltas({}, {(layer, name): torch.zeros(1, size)}))


@pytest.mark.parametrize(
    "change",
    [
        changed(keys=torch.zeros(1, 2, 5, 16)),
        changed(values=torch.zeros(1, 2, 4, 8)),
        changed(gates=torch.zeros(1, 3)),
        lambda kv: replace(kv, layers={**kv.layers, 4: kv.layers[3]}),
        linear(0, "q", bias=(31,)),
        linear(0, "up", down=(2, 32)),
        norm(0, "mlp_norm", 31),
    ],
)
def test_what_compiled_code_would_read_beside_its_end_is_refused(change, packed_base, tiny_fingerprint):
    kv = random_adapter(tiny_fingerprint)(packed_base.model)
    CompiledPrompts(kv, packed_base)
    with pytest.raises(LoadError, match="This adapter does not fit the base"):
        CompiledPrompts(change(kv), packed_base)


def test_torch_computes_layers_that_cannot_be_compiled(packed_base, tiny_fingerprint, monkeypatch, caplog):
    kv = random_adapter(tiny_fingerprint)(packed_base.model)
    logits = []
    for compile_work in (layers.compile_work, lambda: 1 / 0):
        monkeypatch.setattr("adapter.serve.compiled.forward.compile_work", compile_work)
        with closing(make_forward(packed_base, 1)) as forward:
            logits.append(run(forward, KVCache(packed_base, 128), [IDS], [Slot(0, 128)], [0], [kv]))
    assert isinstance(forward, TorchForward)
    [line] = [record.getMessage() for record in caplog.records]
    assert line == "The layers cannot be compiled here, and torch computes them: division by zero"
    assert_close(*logits, atol=0.3, rtol=0.1)
    assert not torch.equal(logits[1], logits[1].bfloat16().float()), "rounded to 16 bits, letters tie"
