"""What a model reads of answers that others gave."""

from contextlib import closing

import pytest

from adapter.base.template import Message
from adapter.method.checkpoint import save_adapter
from adapter.serve.engine import Engine
from adapter.serve.others import as_read, first_sentence
from adapter.serve.request import GenerationRequest, SamplingParams
from adapter.serve.store import AdapterStore
from tests.tiny_models import random_adapter


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Dr. Smith left the U.S. in May. He came back.", "Dr. Smith left the U.S. in May."),
        ("No. See Fig. 3.", "No."),
        ("See Fig. 3 for pi, e.g. 3.14. Then go on.", "See Fig. 3 for pi, e.g. 3.14."),
        ('"Stop!" he said... and ran. Then he fell.', '"Stop!" he said... and ran.'),
        ("\n\n**It is so.** More of it.", "**It is so.**"),
        ("A line that\nis wrapped. More.", "A line that is wrapped."),
        ("Here are three:\n- a. B\n- c", "Here are three:"),
        ("1. Apples are red. Pears are not.\n2. Pears", "1. Apples are red."),
        ("```python\ndef f(x):\n    return x\n```\nIt returns x.", "def f(x):"),
        ('{"name": "J. Doe. Jr", "n": [1. , 2]}', '{"name": "J. Doe. Jr", "n": [1. , 2]}'),
        ("太陽は１．５億km先です。とても熱い。", "太陽は１．５億km先です。"),
        ("सूर्य एक तारा है। वह गर्म है।", "सूर्य एक तारा है।"),
        (" ".join(map(str, range(400))), " ".join(map(str, range(127))) + "…"),
        ("".join(map(chr, range(0x4E00, 0x5000))), "".join(map(chr, range(0x4E00, 0x4F90))) + "…"),
        ("Ao dia, " * 90, "Ao dia, Ao dia,"),
        (" \n", ""),
    ],
)
def test_the_first_sentence(text, first):
    assert first_sentence(text) == first
    assert first_sentence(first) == first


CONVERSATION = (
    Message("system", "Brief."),
    Message("user", "q1"),
    Message("assistant", "Base. Long.", name=""),
    Message("user", "q2"),
    Message("assistant", "Arr. Long.", name="pirate"),
    Message("assistant", "Unknown. Long."),
    Message("user", "q3"),
)


@pytest.mark.parametrize(
    ("own", "others", "read"),
    [
        ({"pirate"}, "first sentence", ["Brief.", "q1", "Base.", "q2", "Arr. Long.\n\nUnknown. Long.", "q3"]),
        ({""}, "first sentence", ["Brief.", "q1", "Base. Long.", "q2", "Arr.\n\nUnknown. Long.", "q3"]),
        ({"pirate"}, "nothing", ["Brief.", "q2", "Arr. Long.\n\nUnknown. Long.", "q3"]),
        ({"see", ""}, "nothing", ["Brief.", "q1", "Base. Long.", "q2", "Unknown. Long.", "q3"]),
        ({"pirate"}, "all", [message.text for message in CONVERSATION]),
    ],
)
def test_of_others_is_read_what_the_request_says(own, others, read):
    assert [message.text for message in as_read(CONVERSATION, own, others)] == read
    without_names = tuple(Message(m.role, m.text) for m in CONVERSATION)
    assert as_read(without_names, own, others) == without_names


def test_a_switch_costs_the_prefix_cache_its_own_turn_and_no_later_one(tmp_path, tiny_base, tiny_fingerprint):
    save_adapter(random_adapter(tiny_fingerprint, 0), tmp_path / "one")
    sampling = SamplingParams(temperature=0, max_new_tokens=4)
    messages: list[Message] = []
    uncached = []
    with closing(Engine(tiny_base, AdapterStore(tmp_path))) as engine:
        for number, name in enumerate(("", "", "one", "one", "one", "", "")):
            messages.append(Message("user", f"q{number}"))
            *_, last = engine.submit(GenerationRequest(tuple(messages), name or None, sampling=sampling))
            uncached.append(last.stats.prompt_tokens - last.stats.cached_tokens)
            # As long as what is read of it: what the tokens of an answer spell may be read as others.
            messages.append(Message("assistant", f"A{number}. Then more.", name=name))
    answer, turn, cut = len("A0. Then more."), len("u:q0;a:"), len("A0.")
    ends = 1  # tokens of the template behind an answer
    assert uncached[0] == turn
    assert uncached[2] > 2 * (turn + cut), "the adapter has read nothing yet"
    own_turn = turn + ends + answer
    assert uncached[1] == uncached[3] == uncached[4] == uncached[6] == own_turn
    assert uncached[5] == own_turn + 3 * (turn + ends + cut), "of the base's: what was said meanwhile, cut"
