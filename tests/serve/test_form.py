"""Answers with a form: each belongs to it, whatever is sampled, in whatever company, on whichever pass."""

import copy
import json
import math
import re
import subprocess
from contextlib import closing, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from adapter.errors import BadInput
from adapter.method.checkpoint import save_adapter
from adapter.method.config import MAX_FORM_BYTES
from adapter.serve import engine as engine_module
from adapter.serve import form as form_module
from adapter.serve import sampling
from adapter.serve.engine import Engine
from adapter.serve.form import NO_FORM, FormState, check_form, json_schema_form, start_form
from adapter.serve.request import GenerationRequest
from adapter.serve.sampling import Sampler, SamplingParams, sample
from adapter.serve.store import AdapterStore
from tests.serve.test_detokenizer import TOKENIZERS
from tests.serve.test_engine import HELLO, text
from tests.tiny_models import random_adapter

LISTS = 'start: "<" /[a-z]{1,4}/ (", and " /[0-9]{2}/){0,3} ">"'
IS_LIST = re.compile(r"<[a-z]{1,4}(, and [0-9]{2}){0,3}>")
SHOUT = 'start: /[A-Z]{3}/ "!"'
# After three letters, so in a decode step, the next ones could come from 2^40 places.
EXPLODES = "start: /[a-z]{3}/ a0\n" + "".join(f"a{i}: a{i + 1} a{i + 1}\n" for i in range(40)) + 'a40: "x"'
GREEDY = SamplingParams(temperature=0, max_new_tokens=40)


@pytest.fixture(params=["tiny_base", "packed_base"])
def engine(request, tmp_path, tiny_fingerprint):
    """On the plain pass, and on the compiled one, which reads drafts."""
    save_adapter(random_adapter(tiny_fingerprint, 0), tmp_path / "free")
    for name in ("shouts", "shouts-too"):
        save_adapter(random_adapter(tiny_fingerprint, 1, form=SHOUT), tmp_path / name)
    with closing(Engine(request.getfixturevalue(request.param), AdapterStore(tmp_path))) as engine:
        yield engine


def ask(**request):
    return GenerationRequest(**{"messages": HELLO, "sampling": GREEDY, "form": NO_FORM, **request})


def law_requests():
    seeds = [SamplingParams(temperature=t, top_p=p, max_new_tokens=40, seed=s) for s, t, p in
             ((1, 0.5, 1.0), (2, 1.5, 0.9), (3, 2.0, 1.0))]  # fmt: skip
    return [ask(form=form, sampling=s, adapter=a) for s in (GREEDY, *seeds) for form in (LISTS, NO_FORM)
            for a in (None, "free")]  # fmt: skip


def test_law_every_answer_belongs_to_its_form_and_is_what_it_is_alone(engine):
    requests = law_requests()
    together = [list(answer) for answer in [engine.submit(request) for request in requests]]
    for request, events in zip(requests, together, strict=True):
        assert [e.token_id for e in events] == [e.token_id for e in engine.submit(request)]
        if request.form:
            assert IS_LIST.fullmatch(text(events))
            assert events[-1].finish_reason == "stop"
            assert events[-1].token_id is not None and ">" in events[-1].text  # no further token was computed
        assert sum(e.token_id is not None for e in events) == events[-1].stats.new_tokens


def test_law_forced_drafts_change_no_answer(packed_base, monkeypatch):
    def answers():
        with closing(Engine(packed_base, AdapterStore())) as engine:
            asked = [request for request in law_requests() if not request.adapter]
            return [[(e.token_id, e.logprob, e.text) for e in engine.submit(request)] for request in asked]

    drafted, draft = [], FormState.draft
    monkeypatch.setattr(FormState, "draft", lambda *a: drafted.append(draft(*a)) or drafted[-1])
    with_drafts = answers()
    assert max(map(len, drafted)) >= 4  # ", and " is forced
    monkeypatch.setattr(engine_module, "_draft", lambda row, rows: [])
    assert answers() == with_drafts


def test_whose_form_is_used(engine):
    for shouts, request in (
        (True, {"adapter": "shouts"}),
        (False, {"adapter": "shouts", "form": LISTS}),
        (False, {"adapter": "shouts", "strength": 0.0}),
        (False, {"adapter": "shouts", "mix": (("shouts-too", 0.5),)}),
        (True, {"adapter": "shouts", "mix": (("free", 0.0),)}),
    ):
        answer = text(engine.submit(ask(**{"form": None, **request})))
        assert bool(re.fullmatch("[A-Z]{3}!", answer)) == shouts, request


def test_a_form_that_fails_in_the_middle_ends_its_row_only(engine):
    honest = [ask(form=form, sampling=replace(GREEDY, max_new_tokens=30)) for form in (LISTS, NO_FORM)]
    expected = [[e.token_id for e in engine.submit(request)] for request in honest]
    answers = [engine.submit(request) for request in (honest[0], ask(form=EXPLODES), honest[1])]
    with pytest.raises(BadInput, match="became too complex in the middle of this answer"):
        list(answers[1])
    assert [[e.token_id for e in answers[i]] for i in (0, 2)] == expected


def test_an_interrupted_answer_goes_on_where_it_is_in_its_form(engine):
    """Whatever tokens its text was written with: a form forces some, and others are as good."""
    token = {c: engine.base.tokenizer.convert_tokens_to_ids(c) for c in "<ab, n>d0123456789"}
    whole = list(engine.submit(ask(form=LISTS)))
    ids = tuple(event.token_id for event in whole)
    for cut in range(1, len(ids)):
        rest = list(engine.submit(ask(form=LISTS, answer_ids=ids[:cut])))
        assert text(rest) == text(whole) and [e.token_id for e in rest] == list(ids[cut:])
    ends = list(engine.submit(ask(form=LISTS, answer_ids=tuple(token[c] for c in "<ab>"))))
    assert (text(ends), ends[-1].finish_reason) == ("<ab>", "stop"), "a word that was chosen may complete it"
    for left in ("a", "<a, x", "<a, and 1x", "<a>b"):
        with pytest.raises(BadInput, match="has left its form"):
            engine.submit(ask(form=LISTS, answer_ids=tuple(token.get(c, token["d"]) for c in left)))


def test_an_answer_that_is_cut_ends_with_length_and_one_that_is_done_with_stop(engine):
    cut = list(engine.submit(ask(form='start: "abcdefgh"', sampling=replace(GREEDY, max_new_tokens=5))))
    done = list(engine.submit(ask(form='start: "abcdefgh"', sampling=replace(GREEDY, max_new_tokens=8))))
    assert (text(cut), cut[-1].finish_reason) == ("abcde", "length")
    assert (text(done), done[-1].finish_reason) == ("abcdefgh", "stop")
    empty = list(engine.submit(ask(form='start: ""')))
    assert (text(empty), empty[-1].finish_reason) == ("", "stop")
    for stop, answer in (("de", "abc"), ("h~", "abcdefgh")):  # what may be the beginning of one is held back
        assert text(engine.submit(ask(form='start: "abcdefgh"', stop=("never~", stop)))) == answer


class Held:
    """A form of one token: those of `tokens`."""

    complete = False

    def __init__(self, size, tokens):
        bits = np.zeros((size + 31) // 32 * 32, np.uint8)
        bits[tokens] = 1
        self.bits = np.packbits(bits, bitorder="little").view(np.uint32)

    def allowed(self):
        return self.bits

    def accept(self, token):
        pass


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (0.7, 1.0), (1.0, 0.8)])
def test_law_what_a_form_forbids_is_as_if_it_were_never_likely(temperature, top_p):
    generator = torch.Generator().manual_seed(5)
    size, rows = 300, 24
    logits = torch.randn(rows, size, generator=generator) * 3
    allowed = [torch.randperm(size, generator=generator)[: (1, 5, 250)[row % 3]].numpy() for row in range(rows)]
    forms = [Held(size, tokens) for tokens in allowed]
    forms[-1].bits = int(allowed[-1][0])  # the only one, as where a form forces it
    allowed[-1] = allowed[-1][:1]
    params = SamplingParams(temperature=temperature, top_p=top_p, seed=3)
    found = sample(logits, [Sampler(params, form, top=3) for form in forms])
    unlikely = torch.full_like(logits, -1e30)
    for row, tokens in enumerate(allowed):
        unlikely[row, tokens] = logits[row, tokens]
    expected = sample(unlikely, [Sampler(params, top=3) for _ in forms])
    logprobs = logits.log_softmax(-1)
    for row, ([one], [wanted]) in enumerate(zip(found, expected, strict=True)):
        assert one.token == wanted.token and one.token in allowed[row]
        assert one.logprob == pytest.approx(logprobs[row, one.token].item(), abs=1e-5)  # before the form
        assert one.ranked[0][1] == pytest.approx(wanted.ranked[0][1], abs=1e-5)
        (_, *ids), (_, *values) = zip(*one.ranked, strict=True)
        assert ids == [token for token, _ in wanted.ranked[1 : 1 + min(3, len(allowed[row]))]]
        assert sum(map(math.exp, values)) <= 1 + 1e-5


# A text's first token begins with a space in the one; in the other each token is bytes of the text.
READABLE = {**TOKENIZERS, "byte level": copy.deepcopy(TOKENIZERS["byte level"])}
READABLE["byte level"].backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)


def reads(base, form, message, answer):
    """Whether the form lets the tokens of an answer and its end pass one by one."""
    state = start_form(base, form, message)
    for token in base.tokenizer(answer, add_special_tokens=False).input_ids:
        allowed = state.allowed()
        if not (token == allowed if isinstance(allowed, int) else sampling._has(allowed, token)):
            return False
        state.accept(token)
    return state.complete or bool(sampling._has(state.allowed(), base.tokenizer.eos_token_id))


@pytest.mark.parametrize("name", READABLE)
def test_values_are_words_of_the_message_as_json_spells_them(name):
    tokenizer, form = READABLE[name], 'start: "{\\"a\\": \\"" MESSAGE_WORDS "\\"}"'
    fingerprint = SimpleNamespace(vocab_size=len(tokenizer), name="tiny")
    ends = frozenset({tokenizer.eos_token_id})
    base = SimpleNamespace(tokenizer=tokenizer, fingerprint=fingerprint, stop_ids=ends)  # what `start_form` needs
    message = 'Zoë "Zo" O\'Brien,\nC:\\tmp, 12.50 € – 日本'
    for value in ("Zoë", '"Zo"', '"Zo" O\'Brien', "O'Brien,\nC", "C:\\tmp", "12.50 €", "12", "日", message):
        assert reads(base, form, message, json.dumps({"a": value}, ensure_ascii=False)), value
    for value in ("", "zoë", "Zo ", "Bri", "O'Brien, C", "tmp 12", "日 本", "Zoë O"):
        assert not reads(base, form, message, json.dumps({"a": value}, ensure_ascii=False)), value
    assert not reads(base, form, message, '{"a": ""Zo""}')  # a bare quote would end the value
    assert reads(base, form, f"Read {300 * 'x'} at 5", json.dumps({"a": f"{300 * 'x'} at"}))


# Forms as text: which can be used, and what a hostile one does.


def rules_in_a_chain(count: int) -> str:
    """A schema whose definitions refer to one another, each to the next."""
    definitions = {f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(count)}
    return json_schema_form({"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{count}": {"type": "null"}}})


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (rules_in_a_chain(200), None),
        (r'start: "\"<[5]>" /[<"]\/<b>/ // "<c>' + "\n", None),
        ('start: "a" <[65]> // "', "names no tokens"),
        ("start: (", r"cannot be used: 1\(9\): Expected token"),
        (json_schema_form({"type": "string", "pattern": "(?=a)b"}), "look-around"),
        ('start: "' + "x" * MAX_FORM_BYTES + '"', f"bytes; {MAX_FORM_BYTES} are the limit"),
        # Each rule is twice the next: 2^40 letters.
        ("start: A0\n" + "".join(f"A{i}: A{i + 1} A{i + 1}\n" for i in range(40)) + 'A40: "x"', "too big"),
    ],
)
def test_a_form_is_usable_or_refused_with_its_reason(form, reason):
    with pytest.raises(BadInput, match=reason) if reason else nullcontext():
        check_form(form)


def test_what_would_take_for_ever_or_the_whole_stack_is_refused(monkeypatch):
    """Both would end or hold this process, if another one had not tried them first: once."""
    processes, run = [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: (processes.append(a), run(*a, **k))[1])
    patterns = json_schema_form({"allOf": [{"pattern": f".*{i}.*"} for i in range(300)]})
    for _ in range(2):
        with pytest.raises(BadInput, match="too complex"):
            check_form(patterns)
    assert len(processes) == 1
    monkeypatch.setattr(form_module, "MAX_FORM_BYTES", 2**20)
    with pytest.raises(BadInput, match="too complex"):
        check_form(rules_in_a_chain(3000))


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"enum": [1, 1234567890123456789]}, "more than 15 digits"),
        ({"items": {"minimum": 9007199254740993}}, "more than 15 digits"),
        ({"const": 10**400}, "more than 15 digits"),
        ({"minProperties": 2, "required": ["a"]}, "met by one name twice"),
        ({"minProperties": 1, "required": 5}, "met by one name twice"),
        ({"properties": {"const": {"$ref": "other.json"}}}, "own schema only"),
    ],
)
def test_what_an_answer_could_not_be_held_to_is_refused(schema, words):
    with pytest.raises(BadInput, match=words):
        json_schema_form(schema)
    check_form(json_schema_form({"default": 0.30000000000000004, "maximum": 2**53 - 1, "minimum": 1 - 2**53}))
    data = {"$ref": "other.json", "minProperties": 3}
    check_form(json_schema_form({"enum": [data, 0.1, True], "default": data, "examples": [data]}))
    noted = {"propertyNames": {"type": "string"}, "additionalProperties": {"type": "string", "format": "password"}}
    check_form(json_schema_form({**noted, "properties": {"format": {"format": "date-time"}, "propertyNames": {}}}))


def test_a_schema_fetches_nothing_and_has_few_levels():
    with pytest.raises(BadInput, match=r"\$ref may point into its own schema only"):
        json_schema_form({"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}})
    deep: dict = {"type": "string"}
    for _ in range(5000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(BadInput, match="more than 64 levels"):
        json_schema_form(deep)
