"""The trainer: what moves, what must not, and what is learned. The tiny model; the real base in one run."""

import dataclasses
import hashlib
import itertools

import pytest
import torch
import torch.nn.functional as F

from adapter.base.frozen_linear import freeze_linears
from adapter.base.template import Message
from adapter.method.checkpoint import load_adapter
from adapter.method.config import TuningConfig
from adapter.method.gradients import CausalAttention, PromptTerm
from tests.tiny_models import random_llama, save_base
from tests.train.conftest import examples
from train.config import TrainConfig
from train.input.batches import collate
from train.input.examples import Example
from train.input.rows import IGNORED, Tokeniser
from train.job import Job
from train.loop import _HeadLoss, evaluate, new_adapter, total_loss
from train.precision import load_to_train
from train.run_folder import RunFolder

CONFIG = TrainConfig("echo", steps=2, batch_size=4, prompt_length=4, template="raw", eval_every=1000, held_out=8)


def batch_of(rows, base):
    return collate(Tokeniser(base.tokenizer, "raw", 64).rows(rows))


def mean_loss(base, adapter, batches):
    total, count = evaluate(base.model, adapter, batches)
    return total / count


def fingerprint(model):
    return {n: hashlib.sha256(p.detach().numpy().tobytes()).hexdigest() for n, p in model.state_dict().items()}


def test_after_two_steps_prompts_and_gates_moved_and_the_base_did_not(tiny_base, tmp_path):
    before = fingerprint(tiny_base.model)
    first, batch = new_adapter(CONFIG, tiny_base), batch_of(itertools.islice(examples("train"), 4), tiny_base)
    total_loss(tiny_base.model, first, batch).backward()
    assert first.gates.grad.abs().amin() > 0 and first.prompts.grad.abs().max() == 0, "gates are zero"
    started = new_adapter(CONFIG, tiny_base)
    prompts = started.prompts.detach().clone()
    trained, _ = Job(CONFIG, tiny_base, examples, RunFolder(tmp_path / "echo"), started).run()
    assert fingerprint(tiny_base.model) == before
    assert all(p.grad is None for p in tiny_base.model.parameters())
    assert (trained.gates != 0).all()
    moved = (trained.prompts - prompts).abs().amax(dim=(1, 2))
    decay = 1 - CONFIG.lr * CONFIG.weight_decay
    assert (moved > 0).all() and not torch.allclose(trained.prompts, prompts * decay**2)


def test_each_part_has_its_own_learning_rate(tiny_base, tmp_path):
    """AdamW's first step is as large as its rate; what is zero at first has not decayed."""
    tuning = TuningConfig(tiny_base.model.config.intermediate_size, bias=True)
    config = dataclasses.replace(CONFIG, steps=1, warmup=0, tuning=tuning, lr=0.5, gate_lr=3e-2, tuning_lr=7e-3)
    adapter = new_adapter(config, tiny_base)
    trained, _ = Job(config, tiny_base, examples, RunFolder(tmp_path / "echo"), adapter).run()
    assert trained.gates.abs().max() == pytest.approx(3e-2, rel=1e-3)
    assert trained.tuning.bias["o"].abs().max() == pytest.approx(7e-3, rel=1e-3)


def test_the_loss_is_that_of_the_answers_tokens_alone(tiny_base, tiny_fingerprint):
    adapter = new_adapter(CONFIG, tiny_base)
    rows = [*itertools.islice(examples("train"), 3), Example((Message("user", "longer one>"),), "ab")]
    batch = batch_of(rows, tiny_base)
    total, count = 0.0, 0
    for row in rows:
        ids, labels, _ = Tokeniser(tiny_base.tokenizer, "raw", 64).row(row)
        logits = tiny_base.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for position, label in enumerate(labels):
            if label != IGNORED:
                total, count = total - logits[position - 1, label].item(), count + 1
    assert total_loss(tiny_base.model, adapter, batch).item() == pytest.approx(total, rel=1e-4)
    assert mean_loss(tiny_base, adapter, [batch]) == pytest.approx(total / count, rel=1e-4)


def test_training_learns_and_what_is_saved_is_what_was_trained(tiny_base, tmp_path):
    more = {"steps": 60, "batch_size": 16, "lr": 0.05, "gate_lr": 0.05, "prompt_length": 8, "eval_every": 30}
    config = dataclasses.replace(CONFIG, **more, held_out=96)
    untrained = new_adapter(config, tiny_base)
    held_out = [batch_of(examples("validation"), tiny_base)]
    before = mean_loss(tiny_base, untrained, held_out)
    trained, result = Job(config, tiny_base, examples, RunFolder(tmp_path / "echo"), untrained).run()
    assert result.loss < before - 0.5
    loaded = load_adapter(tmp_path / "echo", tiny_base.fingerprint)
    assert mean_loss(tiny_base, loaded, held_out) == pytest.approx(result.loss, rel=1e-6)
    assert torch.equal(loaded.prompts, trained.prompts)


@pytest.mark.parametrize("length", [1, 64, 65])
def test_attention_for_training_is_attention(length):
    torch.manual_seed(length)
    q, k, v = (torch.randn(2, h, length, 8, dtype=torch.double, requires_grad=True) for h in (6, 2, 2))
    slope = torch.randn(2, length, 6, 8, dtype=torch.double)
    own = CausalAttention.apply(q, k, v, 0.3)
    gradients = torch.autograd.grad(own, (q, k, v), slope)
    wanted = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(own, wanted)
    for mine, theirs in zip(gradients, torch.autograd.grad(wanted, (q, k, v), slope), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_the_heads_loss_is_cross_entropy_in_any_number_of_pieces(is_frozen):
    hidden = torch.randn(600, 16, requires_grad=True)
    model, targets = torch.nn.ModuleDict({"head": torch.nn.Linear(16, 50, bias=False)}), torch.randint(50, (600,))
    weight = model["head"].weight.detach()
    if is_frozen and not freeze_linears(model):
        pytest.skip("oneDNN's products are not built in here")
    own = _HeadLoss.apply(hidden, model["head"], targets) / 600
    (mine,) = torch.autograd.grad(own, hidden)
    wanted = F.cross_entropy(hidden @ weight.T, targets)
    (theirs,) = torch.autograd.grad(wanted, hidden)
    torch.testing.assert_close(own, wanted)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("entries, masked", [(1, False), (3, True)])
def test_the_prompts_term_for_training_is_their_attention(entries, masked):
    torch.manual_seed(0)
    double = {"dtype": torch.double, "requires_grad": True}
    out, query = torch.randn(3, 7, 6, 8, **double), torch.randn(3, 6, 7, 8, **double)
    keys, values = torch.randn(entries, 2, 5, 8, **double), torch.randn(entries, 2, 5, 8, **double)
    gates = torch.randn(entries, 6, **double)
    mask = torch.zeros(entries, 5, dtype=torch.double)
    if masked:
        mask[1, 3:] = float("-inf")
    inputs = (out, query, keys, values, gates)
    own = PromptTerm.apply(*inputs, mask if masked else None, 0.3)
    k, v, m = (t.expand(3, *t.shape[1:]) for t in (keys, values, mask))
    term = F.scaled_dot_product_attention(query, k, v, m[:, None, None], scale=0.3, enable_gqa=True)
    wanted = out + term.transpose(1, 2) * gates[:, None, :, None]
    torch.testing.assert_close(own, wanted)
    slope = torch.randn(own.shape, dtype=torch.double)
    for mine, theirs in zip(
        torch.autograd.grad(own, inputs, slope), torch.autograd.grad(wanted, inputs, slope), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)  # gates are summed in fp32


def test_gradients_through_a_4_bit_base_are_those_through_its_weights(tmp_path, monkeypatch):
    """Also after an evaluation, in which bitsandbytes likes to pack weights so that gradients end there."""
    import bitsandbytes as bnb

    save_base(random_llama(hidden_size=128, head_dim=32), tmp_path)  # as wide as nf4's blocks
    base = load_to_train(str(tmp_path), "nf4", "cpu")
    config = dataclasses.replace(CONFIG, prompt_norm=True, prompt_std=0.2)
    batch = batch_of(itertools.islice(examples("train"), 2), base)
    adapter = new_adapter(config, base)
    torch.nn.init.uniform_(adapter.gates, 0.1, 0.3)

    def gradients(model):
        adapter.zero_grad()
        total_loss(model, adapter, batch).backward()
        return adapter.prompts.grad.clone(), adapter.gates.grad.clone()

    mean_loss(base, adapter, [batch])
    found = gradients(base.model)
    for module in base.model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            weight = weight.view(module.out_features, module.in_features).bfloat16()
            monkeypatch.setattr(module, "forward", lambda x, weight=weight: F.linear(x, weight))
    for four_bit, plain in zip(found, gradients(base.model), strict=True):
        assert torch.cosine_similarity(four_bit.flatten(), plain.flatten(), 0) > 0.98
