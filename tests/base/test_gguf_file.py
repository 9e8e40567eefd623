"""GGUF files: the numbers and tokens are those of the file, and what is no LLaMA is refused."""

import functools
import io
import random
from pathlib import Path

import gguf
import numpy
import pytest
import sentencepiece
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from adapter.base.llama import base_config, load_base, load_tokenizer
from adapter.base.memory import needs
from adapter.errors import LoadError, with_detail
from tests import tiny_models
from tests.base.test_resolve import LLAMA3_ROPE, loaded

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "far", "in", "house", "2024", "naïve", "café"]


@pytest.fixture(scope="module")
def pieces():
    """A tokenizer trained in a moment on random sentences, with LLaMA's settings."""
    chosen = random.Random(0)
    lines = (" ".join(chosen.choices(WORDS, k=12)) for _ in range(500))
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=written,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
        num_threads=1,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_ADAPTER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def random_llama(**changes):
    return tiny_models.random_llama(random_norms=True, **{"vocab_size": 340, "rms_norm_eps": 1e-5, **changes})


def spm_tokens(writer, pieces) -> None:
    numbers = range(pieces.get_piece_size())
    writer.add_tokenizer_model("llama")
    writer.add_token_list([pieces.id_to_piece(i) for i in numbers])
    writer.add_token_scores([pieces.get_score(i) for i in numbers])
    kinds = ((pieces.is_unknown, 2), (pieces.is_control, 3), (pieces.is_byte, 6))
    writer.add_token_types([next((kind for of, kind in kinds if of(i)), 1) for i in numbers])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def bytes_tokens(writer, cut: str) -> None:
    alphabet = [*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 256))]
    alphabet += [chr(256 + i) for i in range(68)]
    merges = ["1 2", "12 3", "t h", "th e", "Ġ the", "Ċ Ċ"]
    tokens = [*alphabet, *(merge.replace(" ", "") for merge in merges), "<|end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_chat_template("{{ messages[0].content }}")


def write(file, model, pieces, architecture="llama", facts=(), changed=(), tokenizer="llama", blocks=()) -> Path:
    """changed: of its tensors; None leaves one out. blocks: kind and bytes of tensors, by name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    config = model.config
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    for name, value in dict(facts).items():
        kinds = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
        kinds[type(value)](name, value)
    if tokenizer == "llama":
        spm_tokens(writer, pieces)
    else:
        bytes_tokens(writer, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    llamacpp_name = functools.partial(names.get_name, try_suffixes=(".weight", ".bias"))
    tensors = {llamacpp_name(name): values for name, values in model.state_dict().items()}
    if config.tie_word_embeddings:
        del tensors["output.weight"]
    for name in tensors:
        if ".attn_q." in name or ".attn_k." in name:
            heads = config.num_attention_heads if "attn_q" in name else config.num_key_value_heads
            rows = torch.arange(len(tensors[name])).view(heads, 2, -1)
            # As llama.cpp orders the rows of a head: 0, head_dim / 2, 1, head_dim / 2 + 1, …
            tensors[name] = tensors[name][rows.transpose(1, 2).flatten()]
    for name, values in {**tensors, **dict(changed)}.items():
        if values is not None and name not in blocks:
            writer.add_tensor(name, values.float().numpy())
    for name, (kind, data) in dict(blocks).items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        {"attention_bias": True, "mlp_bias": True},
    ],
)
@torch.no_grad()
def test_logits_are_those_of_the_model_that_was_written(changes, tmp_path, pieces):
    model = random_llama(**changes)
    names = ("rope.dimension_count", "attention.key_length", "attention.value_length")
    facts = {f"llama.{name}": model.config.head_dim for name in names}
    base = loaded(write(tmp_path / "model.gguf", model, pieces, facts=facts))
    ids = torch.arange(3, 90)[None]
    assert torch.equal(base.model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert base.model.config.tie_word_embeddings == model.config.tie_word_embeddings


def random_blocks(kind, rows: int, columns: int) -> numpy.ndarray:
    """A tensor in one of llama.cpp's K formats, of random codes, scales and minima, as bytes."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    data = numpy.random.default_rng(0).integers(0, 256, (rows, columns // values, size), dtype=numpy.uint8)
    factors = numpy.array([2e-3, 1e-3], numpy.float16).view(numpy.uint8)  # of the scales, and of the minima
    if kind.name == "Q6_K":
        data[..., -2:] = factors[:2]
    else:
        data[..., :4] = factors
    return data.reshape(rows, -1)


def test_q4_k_stays_in_four_bits_exactly_and_finer_formats_get_eight(tmp_path, pieces):
    model = random_llama(hidden_size=256, intermediate_size=64, num_attention_heads=4, head_dim=64)
    kinds = [getattr(gguf.GGMLQuantizationType, name) for name in ("Q4_K", "Q5_K", "Q6_K")]
    blocks = {f"blk.{i}.ffn_up.weight": (kind, random_blocks(kind, 64, 256)) for i, kind in enumerate(kinds)}
    file = write(tmp_path / "model.gguf", model, pieces, blocks=blocks)
    base = load_base(str(file), "packed-int8", "cpu")
    config = base_config(str(file))
    as_kept, all_eight = (needs(one)["packed-int8"].bytes for one in (config, model.config))
    assert all_eight - as_kept == pytest.approx(64 * 256 * 7 / 16, rel=0.05)  # by which "auto" chooses
    layers = [layer.mlp.up_proj for layer in base.model.model.layers[:3]]
    assert [layer.bits for layer in layers] == [4, 8, 8]
    for layer, (kind, data) in zip(layers, blocks.values(), strict=True):
        want = torch.from_numpy(gguf.dequantize(data, kind))
        # A scale and a minimum in fp16; or half a step of eight bits.
        assert (layer.unpacked() - want).abs().max() / want.abs().max() < (1e-3 if layer.bits == 4 else 5e-3)


def test_llama_31_rope_scaling_is_recovered_from_its_factors(tmp_path, pieces):
    scaling = {**LLAMA3_ROPE, "factor": 32.0, "original_max_position_embeddings": 8192}
    model = random_llama(rope_parameters=dict(scaling), head_dim=64, max_position_embeddings=131072)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, device="cpu")
    plain = 500000.0 ** (-torch.arange(0, 64, 2) / 64)
    how = {"facts": {"llama.attention.key_length": 64}, "changed": {"rope_freqs.weight": plain / scaled}}
    base = loaded(write(tmp_path / "good.gguf", model, pieces, **how))
    assert base.model.config.rope_parameters == scaling
    ids, positions = torch.arange(40)[None], torch.arange(9000, 9040)[None]
    with torch.no_grad():
        both = [m(input_ids=ids, position_ids=positions).logits for m in (base.model, model)]
    assert torch.equal(*both)
    how["changed"]["rope_freqs.weight"] = torch.linspace(1, 5, 32)
    with pytest.raises(LoadError, match=r"other\.gguf' scales its rotary frequencies.*Hugging Face repository"):
        loaded(write(tmp_path / "other.gguf", model, pieces, **how))


def test_the_sentencepiece_tokenizer_is_that_of_the_file(tmp_path, pieces):
    tokenizer = load_tokenizer(str(write(tmp_path / "model.gguf", random_llama(), pieces)))
    for text in ("the cat sat on 2024", "naïve\n\n  日本 🙂", " the cat"):
        assert tokenizer(text).input_ids == [1, *pieces.encode(text)]
        assert tokenizer("a</s>" + text).input_ids == [1, *pieces.encode("a"), 2, *pieces.encode(text)]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    unspaced = {"facts": {"tokenizer.ggml.add_space_prefix": False}}
    tokenizer = load_tokenizer(str(write(tmp_path / "unspaced.gguf", random_llama(), pieces, **unspaced)))
    assert tokenizer(" cat").input_ids == [1, *pieces.encode("cat")] and tokenizer.decode([1, 2]) == "<s></s>"
    assert "".join(tokenizer("cat").tokens()) == "<s>cat"
    (tmp_path / "tokenizer.model").write_bytes(pieces.serialized_model_proto())  # as folders of Llama 1 have it
    random_llama().config.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))("the cat").input_ids == [1, *pieces.encode("the cat")]


@pytest.mark.parametrize(
    ("cut", "pieces_of_it"),
    [("gpt-2", "the Ġ 123 Ċ Ċ 1 the <|end|>"), ("llama-bpe", "the Ġ 123 ĊĊ 1 the <|end|>")],
)
def test_digits_are_split_as_the_files_pre_tokenizer_does(cut, pieces_of_it, tmp_path):
    # As many embeddings as tokens: none is left for a token that no vocabulary but GPT-2's has.
    file = write(tmp_path / "model.gguf", random_llama(vocab_size=263), None, tokenizer=cut)
    (tmp_path / "tokenizer.json").write_text('{"model": "of another"}')
    tokenizer = load_tokenizer(str(file))
    assert tokenizer.tokenize("the 123\n\n1the<|end|>") == pieces_of_it.split()
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer("1").input_ids == [0] * (cut == "llama-bpe") + tokenizer.convert_tokens_to_ids(["1"])


@pytest.mark.parametrize("key", ["scaling.factor", "scale_linear"])
def test_a_factor_without_a_type_is_linear_as_in_llama_cpp(key, tmp_path, pieces):
    file = write(tmp_path / "model.gguf", random_llama(), pieces, facts={f"llama.rope.{key}": 8.0})
    assert base_config(str(file)).rope_parameters == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0}


WRONG_HEADER = r"has a header that is no LLaMA's\. Get the file again"
WRONG = (
    ("attention.head_count", 0), ("attention.head_count_kv", 0), ("attention.head_count_kv", "two"),
    ("block_count", 2**31), ("embedding_length", "wide"), ("context_length", "long"), ("context_length", 0),
    ("attention.layer_norm_rms_epsilon", numpy.nan), ("rope.freq_base", numpy.nan),
)  # fmt: skip


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"architecture": "qwen2"}, r"holds a qwen2 model.*needs a LLaMA"),
        ({"facts": {"split.count": 3}}, r"one of 3 parts.*llama-gguf-split --merge"),
        ({"facts": {"llama.rope.scaling.type": "yarn"}}, r"stretches its context by 'yarn'"),
        *(({"facts": {f"llama.{key}": value}}, WRONG_HEADER) for key, value in WRONG),
        ({"tokenizer": "deepseek-llm"}, r"gpt2 with pre-tokenizer deepseek-llm\) that is not known"),
        ({"changed": {"blk.1.ffn_up.weight": None}}, r"lacks model\.layers\.1\.mlp\.up_proj\.weight"),
    ],
)
def test_files_that_are_not_a_llama_are_refused(how, sentence, tmp_path, cache, pieces):
    file = write(tmp_path / "model.gguf", random_llama(), pieces, **how)
    with pytest.raises(LoadError, match=sentence) as caught:
        loaded(file)
    assert str(file) in with_detail(caught.value) and "\n" not in str(caught.value)
    assert [path for path in cache.glob("*") if path.is_dir()] + list(cache.glob(".*")) == []


def test_what_is_no_whole_gguf_file_is_refused(tmp_path, pieces):
    whole = write(tmp_path / "good.gguf", random_llama(), pieces).read_bytes()
    for content in (b"", whole[:-100], b"<html>blocked by the proxy</html>" * 100):
        (tmp_path / "model.gguf").write_bytes(content)
        with pytest.raises(LoadError, match=r"'model\.gguf' is no whole GGUF file\. Get the file again"):
            loaded(tmp_path / "model.gguf")
