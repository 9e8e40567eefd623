"""Admission, the waiting queue, and the choice of which rows run next. The engine schedules under its lock."""

import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Protocol, TypeVar

from adapter.base.llama import Base
from adapter.base.template import default_template, encode_prompt
from adapter.errors import BadInput, ContextOverflow
from adapter.method.adapter import Adapter
from adapter.method.config import BaseFingerprint
from adapter.serve.detokenizer import Detokenizer
from adapter.serve.drafts import Drafter
from adapter.serve.form import NO_FORM, FormState, check_form, start_form
from adapter.serve.kv_cache import Slot, SlotAllocator
from adapter.serve.others import as_read
from adapter.serve.prompts import Prompts
from adapter.serve.request import FinishReason, GenerationRequest, GenerationStats, Mailbox, RemoteAnswer
from adapter.serve.sampling import Sampler
from adapter.serve.settings import BASE_ONLY

MAX_ROWS = 16  # rows that run at once

WeightedAdapters = list[tuple[Adapter, float]]  # adapters with their strengths


class Adapters(Protocol):
    """Where adapters are loaded from, for example adapter.serve.store.AdapterStore."""

    def load(self, name: str, base: BaseFingerprint, device: Any) -> Adapter: ...


@dataclass(frozen=True)
class Admitted:
    adapters: WeightedAdapters  # those with a strength above 0
    prompt_ids: list[int]  # without the beginning of the answer
    max_new_tokens: int  # beside the beginning
    form: FormState | None


def admit(
    request: GenerationRequest, base: Base, load: Callable[[str], Adapter], cache_tokens: int | None = None
) -> Admitted:
    """Load the adapters, tokenise the prompt, limit the answer to the context and to `cache_tokens` of one row.
    Raises BadInput or LoadError for what cannot be served, Busy if its form cannot be checked now.
    """
    adapters = [(load(name), strength) for name, strength in request.parts]
    if request.image is not None and not any(adapter.config.is_visual for adapter, _ in adapters):
        which = f"Adapter '{request.adapter}'" if request.adapter else "The frozen base"
        raise BadInput(f"{which} reads text only. Choose an adapter that reads images.")
    ids = _tokenize(request, base, adapters)
    tokens = len(ids) + len(request.answer_ids)
    room = min(base.context_length, cache_tokens or base.context_length) - tokens
    if room < 1:
        limit, remedy = f"this base reads {base.context_length}, an answer included", ""
        if tokens < base.context_length:
            limit = f"this server has memory for {cache_tokens}"
            remedy = "; whoever runs the server can give it more (--cache-gb)"
        text = f"The conversation has {tokens} tokens and {limit}. Shorten the message or start a new conversation"
        raise ContextOverflow(f"{text}{remedy}.")
    active = [(adapter, strength) for adapter, strength in adapters if strength > 0]
    return Admitted(active, ids, min(room, request.sampling.max_new_tokens), _form(request, base, active, ids))


def _tokenize(request: GenerationRequest, base: Base, adapters: WeightedAdapters) -> list[int]:
    vocabulary = base.fingerprint.vocab_size
    if not all(0 <= i < vocabulary for i, _ in request.sampling.logit_bias):
        raise BadInput(f"Biases are of tokens from 0 to {vocabulary - 1}.")
    if not all(0 <= i < vocabulary and i not in base.stop_ids for i in request.answer_ids):
        raise BadInput("This answer cannot go on: it has ended, or is another base's.")
    if request.prompt_ids is not None:
        if not request.prompt_ids or not all(0 <= i < vocabulary for i in request.prompt_ids):
            raise BadInput(f"A prompt needs tokens, and only this base's: ids from 0 to {vocabulary - 1}.")
        return list(request.prompt_ids)
    templates = (adapter.config.template for adapter, strength in adapters if strength > 0)
    template = "raw" if request.raw else next(templates, default_template(base.tokenizer))
    own = {name for name, strength in request.parts if strength > 0} or {BASE_ONLY}
    messages = as_read(request.messages, own, request.others)
    if sum(len(message.full_text) for message in messages) > 16 * base.context_length:  # gigabytes, as tokens
        raise ContextOverflow("This is far longer than this base reads. Shorten it or start a new conversation.")
    ids = encode_prompt(base.tokenizer, messages, template)
    if not ids:
        raise BadInput("The chat template of this base writes nothing of these messages.")
    if max(ids) >= vocabulary:  # some have more; on CUDA the pass would fail for everybody
        raise BadInput("The message holds a token that this base does not have. Take it out.")
    return ids


def _form(request: GenerationRequest, base: Base, active: WeightedAdapters, ids: list[int]) -> FormState | None:
    """The form of the answer: the request's, or that of the only adapter that takes part."""
    own = active[0][0].config.form if len(active) == 1 else None
    form = (own or NO_FORM) if request.form is None else request.form
    if form == NO_FORM:
        return None
    check_form(form)
    asked = next((message.full_text for message in reversed(request.messages) if message.role == "user"), None)
    state = start_form(base, form, base.tokenizer.decode(ids) if asked is None else asked)
    for token in request.answer_ids:
        state.accept(token)
    return state


AnyQueued = TypeVar("AnyQueued", "Row", RemoteAnswer)


def in_turn(rows: Iterable[AnyQueued]) -> list[AnyQueued]:
    """The waiting ones of `rows` in the order in which they start: those whose network, then whose session has the
    fewest rows running or ahead, then the oldest. A full queue drops the last one: asking much keeps nobody out.
    """
    rows = list(rows)
    waiting = sorted((row for row in rows if row.started_at is None), key=lambda row: row.submitted_at)
    for whose in (attrgetter("network", "session"), attrgetter("network")):
        places = Counter(whose(row.request.client) for row in rows if row.started_at is not None)
        ranks = {}
        for row in waiting:
            owner = whose(row.request.client)
            ranks[row] = places[owner]
            places[owner] += 1
        waiting.sort(key=ranks.__getitem__)
    return waiting


@dataclass(eq=False)
class Row:
    """One request on its way through the engine: its tokens, its prompts and how far its KV has come."""

    request: GenerationRequest
    admitted: Admitted
    base: Base
    mailbox: Mailbox = field(default_factory=Mailbox)
    prompts: Prompts | None = None  # as soon as they are built; none of the frozen base
    prepared: Any = None  # from Forward.prepare, while the row runs
    slot: Slot | None = None  # of the KV cache, while the row runs
    base_slot: Slot | None = None  # where the frozen base reads the same tokens, if the request asks for that
    base_tokens: int = 0  # tokens whose KV is in that slot
    reads_base: bool = False  # whether the row takes a slot for that
    drafter: Drafter | None = None  # while the row decodes, if the forward pass can read drafts
    computed_tokens: int = 0  # tokens of the prompt whose KV is in the slot
    cached_tokens: int = 0  # of these, how many came from the prefix cache
    cancelled: bool = False  # may be set by any thread, without a lock
    position: int | None = None  # in the queue, as the reader was last told
    overtaken: int = 0  # how many later rows have started first, because this one found no room in the KV cache
    started_at: float | None = None  # when the row left the queue
    first_token_at: float | None = None
    pending_text: str = ""  # to be sent with the next event: that of the beginning of the answer

    def __post_init__(self) -> None:
        self.submitted_at = time.perf_counter()
        request, prompt, self.form = self.request, self.admitted.prompt_ids, self.admitted.form
        begun, top = request.answer_ids, request.top_logprobs
        self.token_ids = [*prompt, *begun]  # and the answer's
        self.prompt_tokens = len(self.token_ids)
        self.sampler = Sampler(request.sampling, self.form, prompt, self.base.stop_ids, begun, top)
        self.detokenizer = Detokenizer(self.base.tokenizer, request.stop, prompt if request.raw else ())
        self.pending_text = "".join(map(self.detokenizer.push, begun))

    @property
    def most_tokens(self) -> int:
        """The length of the prompt and the longest answer together."""
        return self.prompt_tokens + self.admitted.max_new_tokens

    @property
    def new_tokens(self) -> int:
        return len(self.token_ids) - self.prompt_tokens

    @property
    def kv_tokens(self) -> int:
        """Tokens whose KV is in the slot: of the answer all but the newest."""
        return len(self.token_ids) - 1 if self.new_tokens else self.computed_tokens

    @property
    def base_behind(self) -> int:
        """Tokens that the frozen base has still to read."""
        return self.kv_tokens - self.base_tokens if self.reads_base else 0

    def prefix_key(self, of_base: bool = False) -> Hashable:
        """Names the prompts that tokens are read with (of_base: none), and who asks, as speed tells of prompts."""
        prompts = None if of_base or self.prompts is None else self.prompts.key
        return (self.request.client.network, self.request.client.session, prompts)

    def stats(self, now: float) -> GenerationStats:
        started = self.submitted_at if self.started_at is None else self.started_at
        first = now if self.first_token_at is None else self.first_token_at
        return GenerationStats(
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
            queue_s=started - self.submitted_at,
            prefill_s=first - started,
            decode_s=now - first,
            cached_tokens=self.cached_tokens,
        )


def repeats(tokens: Sequence[int], new: int) -> bool:
    """Whether the `new` last tokens end with one unit of up to 64, three times or more and 64 tokens or more."""
    for unit in range(1, 65):
        length = max(3 * unit, 64)
        if length > new:
            return False
        if tokens[-1] == tokens[-1 - unit] and tokens[-length:-unit] == tokens[unit - length :]:
            return True
    return False


@dataclass(frozen=True)
class Step:
    aborted: list[tuple[Row, FinishReason]]  # rows that were cancelled or are out of time
    moved: list[Row]  # waiting rows whose position has changed
    prefill: Row | None  # whose next prompt tokens are read; None to decode the running rows, if there are any


class Scheduler:
    """Which rows wait for room in the KV cache, which read their prompts and which decode. Not thread-safe."""

    def __init__(self, slots: SlotAllocator, max_prompt_kv_bytes: int) -> None:
        """max_prompt_kv_bytes: of the prompts of all running rows, unless one row's alone are larger."""
        self._slots = slots
        self._max_prompt_kv_bytes = max_prompt_kv_bytes
        self.shares_prompts = True  # whether rows with the same prompts share one copy
        self.waiting: list[Row] = []
        self.prefilling: list[Row] = []  # in order of start
        self.decoding: list[Row] = []  # in the order of their slots
        self._decode_next = self._oldest_next = False

    @property
    def rows(self) -> list[Row]:
        return [*self.waiting, *self.prefilling, *self.decoding]

    def schedule(self, now: float) -> Step:
        """Start waiting rows and choose the next step: a decode step, or a prefill chunk of the prompt that is
        read soonest, every other one of the oldest.
        """
        aborted: list[tuple[Row, FinishReason]] = []
        for row in self.rows:
            late = row.started_at is not None and now - row.started_at > row.request.max_seconds
            if row.cancelled or late:
                aborted.append((row, "cancelled" if row.cancelled else "time"))
                self._stop(row)  # its slot is freed by `remove`, when its KV has been read
        self._start_rows(now)
        moved = []
        for position, row in enumerate(in_turn(self.rows)):
            if row.position != position:
                row.position = position
                moved.append(row)
        prefill = None
        if self.prefilling and not (self._decode_next and self.decoding):
            self._oldest_next = not self._oldest_next
            soonest = min(self.prefilling, key=lambda row: row.prompt_tokens - row.computed_tokens)
            prefill = soonest if self._oldest_next else self.prefilling[0]
        self._decode_next = prefill is not None
        return Step(aborted, moved, prefill)

    def _start_rows(self, now: float) -> None:
        """Start waiting rows in turn. A row that finds no room lets others pass, but not for ever."""
        passed: list[Row] = []
        held: set[str] = set()  # networks of which a row waits for its share: those after it do not pass it
        for row in in_turn(self.rows):
            if len(self.prefilling) + len(self.decoding) == MAX_ROWS:
                return
            if (network := row.request.client.network) in held or not self._has_share(row):
                held.add(network)
                continue
            if not self._take_room(row):
                if row.overtaken >= MAX_ROWS:
                    return
                passed.append(row)
                continue
            row.started_at = now  # before the row leaves the queue: a row that has started is ended by a failure
            self.waiting.remove(row)
            self.prefilling.append(row)
            for other in passed:
                other.overtaken += 1

    def prompt_kv_bytes(self, more: Row | None = None) -> int:
        """Returns the bytes of the prompts of the running rows and of `more`; unshared: rows times the largest."""
        rows = (*self.prefilling, *self.decoding, *(() if more is None else (more,)))
        sizes = {row.prompts.key: row.prompts.bytes for row in rows if row.prompts is not None}.values()
        return sum(sizes) if self.shares_prompts else len(rows) * max(sizes, default=0)

    def _take_room(self, row: Row) -> bool:
        """Give a row all slots that it needs, or none and return False."""
        held, with_row = self.prompt_kv_bytes(), self.prompt_kv_bytes(row)
        if held < with_row and with_row > max(self._max_prompt_kv_bytes, row.prompts.bytes if row.prompts else 0):
            return False
        row.slot = self._slots.take(row.most_tokens)
        if row.slot is not None and row.reads_base:
            row.base_slot = self._slots.take(row.most_tokens)
            if row.base_slot is None:
                self._free_slots(row)
        return row.slot is not None

    def _free_slots(self, row: Row) -> None:
        for slot in (row.slot, row.base_slot):
            if slot is not None:
                self._slots.free(slot)
        row.slot = row.base_slot = None

    def _has_share(self, row: Row) -> bool:
        """Whether a row may start and leave a quarter of the rows and of the cache to other networks."""
        client = row.request.client
        running = (*self.prefilling, *self.decoding)
        own = [other for other in running if other.request.client.network == client.network]
        if client.is_local or not own:
            return True
        tokens = sum(other.most_tokens * (1 + other.reads_base) for other in (row, *own))
        return len(own) < MAX_ROWS * 3 // 4 and tokens <= self._slots.capacity * 3 // 4

    def postprocess(self, row: Row, token: int) -> FinishReason | None:
        """Append the sampled token of a row whose prompt has been read; returns why the row ends here, or None."""
        row.token_ids.append(token)
        if row in self.prefilling:
            self.prefilling.remove(row)
            insort(self.decoding, row, key=lambda one: one.slot.start if one.slot else 0)
        if token in row.base.stop_ids:
            return "stop"
        if row.request.end_repetition and repeats(row.token_ids, row.new_tokens + len(row.request.answer_ids)):
            return "repetition"
        return "length" if row.new_tokens >= row.admitted.max_new_tokens else None

    def remove(self, row: Row) -> None:
        self._stop(row)
        self._free_slots(row)

    def reset(self) -> None:
        """Forget all rows that have started, after a failure. Waiting rows keep their places."""
        self.waiting = [row for row in self.waiting if row.started_at is None]
        self.prefilling.clear()
        self.decoding.clear()
        self._slots.clear()

    def _stop(self, row: Row) -> None:
        for rows in (self.waiting, self.prefilling, self.decoding):
            if row in rows:
                rows.remove(row)
