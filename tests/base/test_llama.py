"""The frozen base: what can be loaded, how it is quantised, and that a zero gate never changes it."""

import dataclasses
import json
import logging
import math
import os
import re
import shutil
import weakref
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import GPT2Config

from adapter.__main__ import main
from adapter.base import llama
from adapter.base.hf_folder import StoredMatrix
from adapter.base.llama import AdaptedLlama, base_fingerprint, load_base, load_tokenizer
from adapter.base.packed import integer_product, quantize
from adapter.base.packed.quantize import PackedLinear, quantize_linears
from adapter.base.template import Message, encode_prompt
from adapter.errors import LoadError, with_detail
from adapter.serve.forward import make_forward
from adapter.server.generation import import_libraries
from tests.base.packed.test_quantize import four_bit_weight
from tests.tiny_models import random_adapter, random_llama, save_base


@pytest.mark.slow
@torch.no_grad()
def test_auto_reports_its_quantization_and_memory_and_is_close_to_the_full_base(base):
    on_gpu = torch.cuda.is_available()
    assert base.quantization == ("none" if on_gpu else "packed-int4")
    assert isinstance(base.model.lm_head, PackedLinear) != on_gpu
    assert 120 < base.memory_bytes / 2**20 < (300 if on_gpu else 170)
    assert base.tokenizer.decode(sorted(base.stop_ids)) == "<|im_end|>"
    full = load_base(quantization="none", device="cpu")
    ids = torch.tensor([encode_prompt(base.tokenizer, (Message("user", "Name three colours."),))])
    one, other = (
        b.model(input_ids=ids.to(b.device)).logits[0].float().cpu().log_softmax(-1) for b in (base, full)
    )
    divergence = (other.exp() * (other - one)).sum(-1).mean()  # nats; bitsandbytes' four bits are 1.5 away
    assert divergence < 0.03


@pytest.fixture(scope="module")
def four_bit_head(tmp_path_factory) -> Path:
    """A tiny base on disk in float32 whose head, of 128 outputs, four bits hold exactly, and its layers do not.

    Sizes are multiples of 32 and 64, as bitsandbytes' nf4 wants them on CPUs with bf16.
    """
    model = random_llama(std=0.15, vocab_size=128, hidden_size=64, head_dim=16)
    torch.manual_seed(0)
    model.lm_head.weight.copy_(four_bit_weight(128, 64))
    return save_base(model, tmp_path_factory.mktemp("four-bit-head"))


def test_what_is_quantised_already_is_not_packed(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match="quantised already"):
        load_base(str(folder), "packed-int8", "cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("quantization", ["auto", "packed-int4", "nf4", "int8", "none"])
@torch.no_grad()
def test_every_quantisation_runs_in_every_dtype_and_a_zero_gate_is_the_base(quantization, dtype, four_bit_head):
    base = load_base(str(four_bit_head), quantization, "cpu", dtype)
    assert base.model.dtype == dtype
    assert quantization != "auto" or base.model.lm_head.bits == 4
    kv = random_adapter(base.fingerprint, prompt_norm=True)(base.model)
    prompts = torch.tensor([[5, 6, 7, 8], [9, 3, 2, 1]])
    plain, gated = base.model(input_ids=prompts), base.model(input_ids=prompts, prompt_kv=kv.scaled(0.0))
    assert torch.equal(plain.logits, gated.logits)
    following = torch.tensor([[5], [6]])
    plain_next = base.model(input_ids=following, cache=plain.cache)
    gated_next = base.model(input_ids=following, cache=gated.cache, prompt_kv=kv.scaled(0.0))
    assert torch.equal(plain_next.logits, gated_next.logits)
    assert not torch.allclose(base.model(input_ids=prompts, prompt_kv=kv).logits, plain.logits)
    # The head reads the last positions: strided rows.
    together = base.model.generate(prompts, max_new_tokens=5, do_sample=False, pad_token_id=0, prompt_kv=kv)
    assert together.shape == (2, 9)
    whole = load_base(str(four_bit_head), "none", "cpu", torch.float32).model(input_ids=prompts).logits
    alike = torch.cosine_similarity(plain.logits.float(), whole, dim=-1).min()
    largest = torch.full((64, 64), 127, dtype=torch.int8)  # bitsandbytes' products saturate without VNNI
    overflows = quantization == "int8" and bool(torch._int_mm(largest, largest).ne(64 * 127**2).any())
    assert alike > (0.8 if "4" in quantization or overflows else 0.99)


@pytest.mark.parametrize(("stored", "tied"), [(torch.bfloat16, True), (torch.float16, False), (torch.half, None)])
@torch.no_grad()
def test_packing_while_loading_is_packing_afterwards(stored, tied, tiny_base, tmp_path):
    model = random_llama(std=0.15)
    model.config.tie_word_embeddings = tied is not False
    if tied is not None:  # else it is said to be, and has a head of its own
        model.tie_weights()
    model.to(stored).save_pretrained(tmp_path, max_shard_size="30KB")
    tiny_base.tokenizer.save_pretrained(tmp_path)
    model.generation_config.eos_token_id = [7, 9]
    model.generation_config.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    base = load_base(str(tmp_path), device="cpu", dtype=stored)
    ids = torch.arange(9)[None]
    want = AdaptedLlama.from_pretrained(tmp_path, dtype=stored, attn_implementation="sdpa").requires_grad_(False)
    quantize_linears(want.eval())
    assert torch.equal(base.model(input_ids=ids).logits, want(input_ids=ids).logits)
    mine, theirs = base.model.state_dict(), want.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not any(p.requires_grad for p in base.model.parameters()) and not base.model.training
    assert {7, 9} <= base.stop_ids


def test_a_base_is_the_same_one_in_every_precision(tmp_path):
    save_base(random_llama(random_norms=True), tmp_path)  # in fp32, which fp16 and then bf16 would round twice
    known = base_fingerprint(str(tmp_path))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert load_base(str(tmp_path), "none", "cpu", dtype).fingerprint == known
    assert load_base(str(tmp_path), device="cpu:0").quantization.startswith("packed"), "accelerate's name for it"


def test_loading_reads_a_few_rows_at_a_time_and_maps_no_file(tmp_path, monkeypatch):
    """Otherwise a base of 7 GB packed takes 13 GB to load, or 27 where it is stored in another precision."""
    model = random_llama().half()
    save_base(model, tmp_path)
    read, seen, alive, sizes, whole = StoredMatrix.__getitem__, [], [], [], []

    def observe(matrix, rows):
        assert not (maps := Path("/proc/self/maps")).exists() or str(tmp_path) not in maps.read_text()
        alive.append(sum(part() is not None for part in seen))
        part = read(matrix, rows)
        seen.append(weakref.ref(part.untyped_storage()))
        sizes.append(part.numel())
        whole.append(math.prod(matrix.shape))
        return part

    monkeypatch.setattr(StoredMatrix, "__getitem__", observe)
    monkeypatch.setattr(quantize, "_PIECE", 1024)
    base = load_base(str(tmp_path), device="cpu")
    linears = [module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert sum(sizes) > sum(linears) and max(sizes) <= 1024 < max(linears)
    assert max(alive) <= torch.get_num_threads() and not any(part() for part in seen)
    assert whole == sorted(whole, reverse=True), "the largest first, while there is room"
    assert base.model.dtype == torch.bfloat16


@pytest.mark.parametrize(("bits", "tied"), [(4, False), (4, True), (8, True)])
@torch.no_grad()
def test_kept_packed_weights_are_those_that_are_packed(bits, tied, tmp_path, monkeypatch):
    model = random_llama(tie_word_embeddings=tied)
    model.tie_weights()
    save_base(model, tmp_path)
    files, options = set(tmp_path.iterdir()), (str(tmp_path), f"packed-int{bits}", "cpu")
    packed = load_base(*options)
    assert set(tmp_path.iterdir()) == files, "nothing is kept unless it is asked for"
    generate = ["generate", "Hi", "--keep-packed", "--device", "cpu", "--max-new-tokens", "1"]
    assert main([*generate, "--base", str(tmp_path), "--quantization", options[1]]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(llama, "pack", lambda *_: pytest.fail("packed again"))
        kept = load_base(*options)
    ids = torch.arange(9)[None]
    assert torch.equal(kept.model(input_ids=ids).logits, packed.model(input_ids=ids).logits)
    plain = {"model": None, "tokenizer": None}
    assert dataclasses.replace(kept, **plain) == dataclasses.replace(packed, **plain)
    whole = load_base(str(tmp_path), "none", "cpu", torch.float32)
    assert torch.equal(whole.model(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("change", ["a weight", "the kept file", "the dtype", "the packing code"])
@torch.no_grad()
def test_kept_weights_of_another_base_or_damaged_are_packed_anew(change, four_bit_head, tmp_path, monkeypatch):
    shutil.copytree(four_bit_head, tmp_path, dirs_exist_ok=True)
    options, file = (str(tmp_path), "packed-int8", "cpu"), tmp_path / "model.safetensors"
    load_base(*options, keep_packed=True)
    if change == "a weight":
        save_file({name: 2 * weight for name, weight in load_file(file).items()}, file, {"format": "pt"})
    elif change == "the kept file":
        os.truncate(tmp_path / "packed-int8" / file.name, 5000)
    elif change == "the packing code":
        monkeypatch.setattr(llama, "REVISION", 0)
    dtype, packed = torch.float16 if change == "the dtype" else torch.bfloat16, []
    monkeypatch.setattr(llama, "pack", lambda *of: packed.append(of) or quantize.pack(*of))
    anew, count = load_base(*options, dtype, keep_packed=True), len(packed)
    kept = load_base(*options, dtype)
    assert len(packed) == count == 4 * 7 + 1 and kept.model.dtype == dtype
    assert all(map(torch.equal, kept.model.state_dict().values(), anew.model.state_dict().values()))


@pytest.mark.parametrize("reason", ["must be free on the disk", "not made by this program", "Is a directory"])
def test_where_packed_weights_cannot_be_kept_a_line_says_why(reason, four_bit_head, tmp_path, monkeypatch, caplog):
    shutil.copytree(four_bit_head, tmp_path, dirs_exist_ok=True)
    if reason == "must be free on the disk":
        monkeypatch.setattr(llama, "_DISK_TO_SPARE", 1 << 60)
    else:
        (tmp_path / "packed-int4").touch() if "not" in reason else (tmp_path / "packed-int4.lock").mkdir()
    base = load_base(str(tmp_path), "packed-int4", "cpu", keep_packed=True)
    assert base.quantization == "packed-int4" and "packed weights are not kept" in caplog.text
    assert reason in caplog.text and not list(tmp_path.glob("*packed-int4/*"))


def test_a_base_without_safetensors_is_read_in_four_bits_too(four_bit_head, tmp_path):
    shutil.copytree(four_bit_head, tmp_path, dirs_exist_ok=True)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert load_base(str(tmp_path), "nf4", "cpu").quantization == "nf4"
    bare = {n.removeprefix("model."): w for n, w in load_file(four_bit_head / "model.safetensors").items()}
    save_file(bare, tmp_path / "model.safetensors", {"format": "pt"})
    models = [load_base(str(folder), device="cpu").model for folder in (tmp_path, four_bit_head)]
    assert_close(*(model.lm_head.unpacked() for model in models), atol=0.01, rtol=0)  # one was rounded to bf16


@torch.no_grad()
def test_a_tied_base_is_packed_that_is_stored_under_its_heads_name(tmp_path):
    """As `safetensors.torch.save_model` stores it, which keeps the first of two names."""
    model = random_llama(tie_word_embeddings=True).bfloat16()
    model.tie_weights()
    save_base(model, tmp_path)
    want = load_base(str(tmp_path), "packed-int8", "cpu").model(input_ids=(ids := torch.arange(9)[None])).logits
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert_close(load_base(str(tmp_path), "packed-int8", "cpu").model(input_ids=ids).logits, want)


def test_nf4_is_packed_before_the_engines_threads_start(four_bit_head, tmp_path):
    """Of two threads that multiply by a layer for the first time, each might pack it."""
    stored = shutil.copytree(four_bit_head, tmp_path / "stored")
    load_base(str(four_bit_head), "nf4", "cpu").model.save_pretrained(stored)
    for folder, quantization in (four_bit_head, "nf4"), (stored, "auto"):
        base = load_base(str(folder), quantization, "cpu")
        make_forward(base, threads=1)
        states = [module.weight.quant_state for module in base.model.modules() if isinstance(module, Linear4bit)]
        assert [getattr(state, "packing_format_for_cpu", False) for state in states] == [has_avx512bf16()] * 28


BROKEN = "model.layers.2.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda tensors: tensors.pop(BROKEN), "is not among its weights"),
        (lambda tensors: tensors.update({BROKEN: torch.zeros(3, 4)}), r"has shape \(3, 4\), not"),
        (lambda tensors: tensors[BROKEN][3].fill_(math.nan), "holds numbers that are not finite"),
        (lambda tensors: tensors.update({BROKEN + "s": torch.ones(3)}), "not in its config"),
    ],
    ids=["missing", "misshapen", "nan", "more"],
)
@pytest.mark.parametrize("quantization", ["auto", "none", "nf4"])
def test_a_broken_weight_is_an_error_that_names_it(quantization, damage, sentence, four_bit_head, tmp_path):
    """transformers fills a missing one with random numbers, and bitsandbytes makes numbers of NaN."""
    shutil.copytree(four_bit_head, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(LoadError) as caught:
        load_base(str(tmp_path), quantization, "cpu")
    assert re.search(sentence, str(caught.value)) and BROKEN in str(caught.value), with_detail(caught.value)


def test_where_packed_products_cannot_be_compiled_torch_multiplies(tiny_folder, monkeypatch, caplog):
    for module in (llama, integer_product):
        monkeypatch.setattr(module, "compile_products", lambda: 1 / 0)
    import_libraries()  # of the page
    with caplog.at_level(logging.INFO, "adapter"):
        base = load_base(str(tiny_folder), device="cpu")
    assert base.quantization == "none" and base.model(input_ids=torch.arange(9)[None]).logits.isfinite().all()
    [line] = [record.getMessage() for record in caplog.records]
    assert "packed products cannot be compiled here (division by zero)" in line


needs_cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


@pytest.mark.parametrize(
    ("quantization", "device", "tolerance"),
    [
        ("int8", "cpu", 0),
        pytest.param("int8", "cuda", 0, marks=needs_cuda),
        pytest.param("nf4", "cuda", 2e-2, marks=needs_cuda),
    ],
)
@torch.no_grad()
def test_a_row_is_a_row_in_bitsandbytes(quantization, device, tolerance, tiny_folder, caplog):
    """Each linear layer gives a row beside one with outliers what it gives the row alone."""
    with caplog.at_level(logging.WARNING):
        base = load_base(str(tiny_folder), quantization, device)
        layers = [m for m in base.model.model.layers.modules() if "Linear" in type(m).__name__]
        assert len({type(m) for m in layers}) == 1 and type(layers[0]) is not torch.nn.Linear
        torch.manual_seed(0)
        for layer in layers:
            x = torch.randn(3, 1, layer.in_features, dtype=base.model.dtype, device=base.device)
            x[2, :, ::5] *= 40  # far above bitsandbytes' threshold of 6
            assert_close(layer(x)[:1], layer(x[:1]), rtol=tolerance, atol=tolerance)
    assert quantization != "int8" or caplog.text == "", "a line for every product"


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("nobody/nothing", {}, "nobody/nothing.*HF_HUB_OFFLINE is set"),
        ("EMPTY", {}, "Check that the folder holds"),
        ("EMPTY", {"device": "mps:7"}, "cannot compute on 'mps:7'. Use 'cpu', or CUDA_VISIBLE_DEVICES"),
        ("GPT2", {}, "is a gpt2 model"),
        ("FULL", {}, "The GPU's memory is full"),
    ],
)
def test_load_errors_name_the_cause_and_the_remedy(name, options, sentence, tiny_folder, tmp_path, monkeypatch):
    if name == "GPT2":
        GPT2Config().save_pretrained(tmp_path)
    elif name == "FULL":
        shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
        monkeypatch.setattr(llama.AutoTokenizer, "from_pretrained", Mock(side_effect=torch.OutOfMemoryError))
    with pytest.raises(LoadError, match=sentence):
        load_base(str(tmp_path) if name.isupper() else name, **options)


def test_code_beside_a_base_is_not_run_nor_offered(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    (folder / "theirs.py").write_text("raise SystemExit('theirs ran')")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    theirs = {"auto_map": {"AutoTokenizer": ["theirs.Words", "theirs.Words"], "AutoConfig": "theirs.Config"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | theirs))
    assert load_tokenizer(str(folder))("the").input_ids == load_tokenizer(str(tiny_folder))("the").input_ids
    (folder / "config.json").write_text(json.dumps({"model_type": "theirs", **theirs}))
    with pytest.raises(LoadError, match="Cannot load the base"):
        load_base(str(folder))


def test_a_template_with_a_token_that_has_no_embedding_is_refused(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens([f"<|{i}|>" for i in range(400)])
    tokenizer.save_pretrained(folder)
    assert len(load_tokenizer(str(folder))) == len(tokenizer)  # what nobody reads harms nobody
    tokenizer.chat_template = "{{ messages[0].content }}<|399|>"
    tokenizer.save_pretrained(folder)
    with pytest.raises(LoadError, match="a token without an embedding"):
        load_tokenizer(str(folder))


def test_what_no_generation_config_may_hold_is_refused_or_passed_over(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    (folder / "generation_config.json").write_text('{"eos_token_id": [[1], 5]}')
    assert 5 in load_base(str(folder)).stop_ids
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(LoadError, match="Cannot load the base"):
        load_base(str(folder))


def test_a_tokenizer_without_its_vocabulary_is_refused(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(LoadError, match="vocabulary"):
        load_tokenizer(str(tmp_path))
