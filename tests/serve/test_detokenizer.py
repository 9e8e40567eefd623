"""Streamed text is what the tokenizer makes of all tokens at once, however they come."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from adapter.serve.detokenizer import Detokenizer
from adapter.serve.request import GenerationRequest
from adapter.serve.scheduler import Admitted, Row

WORDS = ["▁", "a", "▁a", "▁b", "�"]

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def sentencepiece_tokenizer():
    """As LLaMA 1 and 2 have it: words begin with a lower bar, and what is in no word is spelt in bytes."""
    tokens = [*SPECIAL.values(), *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    return LlamaTokenizer({token: i for i, token in enumerate(tokens)}, [("▁", "a")])


def byte_level_tokenizer():
    """As LLaMA 3 and SmolLM have it: every token is bytes."""
    tokens = [*SPECIAL.values(), *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa", "ðŁ"]
    backend = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, [("Ġ", "a"), ("ð", "Ł")]))
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


TOKENIZERS = {"sentencepiece": sentencepiece_tokenizer(), "byte level": byte_level_tokenizer()}


def stream(tokenizer, ids, stop=()):
    """The text of every push, and that of the flush; up to a stop string, as the engine reads it."""
    detokenizer, texts = Detokenizer(tokenizer, stop), []
    for token in ids:
        texts.append(detokenizer.push(token))
        if detokenizer.stopped:
            break
    return [*texts, detokenizer.flush()], detokenizer.stopped


@pytest.mark.parametrize("name", TOKENIZERS)
@given(st.data())
def test_law_streamed_text_is_the_decoded_text(name, data):
    """Half a character at the very end is dropped. A padded base has ids that are no text."""
    tokenizer = TOKENIZERS[name]
    size = len(tokenizer)
    likely = [*range(3), *range(size - 6, size + 2)]
    likely += tokenizer.convert_tokens_to_ids(["<0x0A>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"])
    ids = data.draw(st.lists(st.sampled_from(likely) | st.integers(0, size + 2), max_size=20))
    texts, _ = stream(tokenizer, ids)
    cut = (tokenizer.decode(ids[:n], skip_special_tokens=True) for n in range(len(ids), -1, -1))
    assert "".join(texts) == next(text for text in cut if not text.endswith("�"))


def test_an_answer_that_goes_on_with_a_text_keeps_its_first_space():
    tokenizer = TOKENIZERS["sentencepiece"]
    (word,) = tokenizer.convert_tokens_to_ids(["▁a"])
    assert Detokenizer(tokenizer).push(word) == "a" and Detokenizer(tokenizer, (), [word]).push(word) == " a"
    assert len(Detokenizer(tokenizer, (), [word] * 9999)._decoded) < 100  # which each token may decode again


def test_a_stop_text_is_found_behind_a_prompt_whose_last_character_is_spelt_in_bytes():
    tokenizer = TOKENIZERS["sentencepiece"]
    *prompt, newline = tokenizer.convert_tokens_to_ids(["a", *(f"<0x{byte:02X}>" for byte in "🦙\n".encode())])
    base = SimpleNamespace(tokenizer=tokenizer, stop_ids=frozenset())
    row = Row(GenerationRequest(raw=True, stop=("\n",)), Admitted([], prompt, 9, None), base)
    assert row.detokenizer.push(newline) == "" and row.detokenizer.stopped


@pytest.mark.parametrize("name, newline", [("sentencepiece", "<0x0A>"), ("byte level", "Ċ")])
def test_a_stop_text_of_bytes_is_found_in_the_middle_and_at_the_end(name, newline):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.convert_tokens_to_ids(["a", newline])
    for more in ([], ids[1:], ids[:1]):
        texts, stopped = stream(tokenizer, [*ids, *more], ("\n",))
        assert stopped and "".join(texts) == "a" and len(texts) == 3, "it ends with that very token"
        begun = Detokenizer(tokenizer, ("\n",))
        assert "".join(map(begun.push, [*ids, *more])) == "a", "also within an answer that is begun"
