"""Serving beside llama.cpp, OpenVINO and transformers: one row, many rows, reading a prompt, what adapters cost.

All programs are measured in turn in each round. Figures are medians over the rounds, ratios medians of the rounds'
ratios. Peers always read the bare base.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from adapter.base.llama import load_tokenizer
from adapter.base.template import Message, encode_prompt
from adapter.serve.store import AdapterStore
from tests.bench.engine import start_engine, start_generate
from tests.bench.llama_peer import start_llama
from tests.bench.openvino_peer import start_openvino
from tests.bench.page import start_page
from tests.bench.programs import (
    Run,
    Task,
    decode_speed,
    measure_in_turn,
    median,
    print_head,
    print_programs,
    print_row,
    print_speeds,
    ratio,
)

STORY = "Tell me a long story about a lighthouse."
TOKENS = 96  # of one answer
SHORT, LONG = 24, 96  # tokens of an answer in a batch, see decode_speed
PROMPT = 512  # tokens, of the prompt that is read
MESSAGES = (
    "Hi, I'm Marta Lindqvist, head of logistics at Brightwater Foods in Malmö. Reach me at "
    "marta.lindqvist@brightwaterfoods.se or call +46 40 555 01 92.",
    "Kind regards\nDr. Samuel Okonkwo\nsenior radiologist\nSt. Bridget's Hospital, Galway\n+353 91 555 0147\n"
    "samuel.okonkwo@stbridgets-galway.ie",
    "The new account manager at Hollister & Vane is Priyanka Ramanathan, she sits in their Rotterdam office and "
    "her address is p.ramanathan@hollistervane.nl.",
    "We meet with the auditors from Castellan Advisory on 14 March 2027 at 9:30 in room 4.12, Theodora Papadakis "
    "will take the minutes.",
    "Please order 24 boxes of recycled copy paper for Wintermute Publishing, 18.90 euros each, to be delivered to "
    "Antwerp by 3 June.",
    "For the apartment in Valparaíso write to the owner, Ignacio Fuentealba, ignacio.fuentealba@correo-portal.cl, "
    "or ring +56 32 255 0183 after six.",
)
COPY = (
    "Repeat this text word by word: The ferry to the northern islands leaves from the old pier every weekday "
    "at seven in the morning, and on Saturdays at nine. Tickets are sold at the office next to the lighthouse."
)


class Tasks:
    """Makes tasks that no prefix cache knows: every question begins with a new number."""

    def __init__(self) -> None:
        self._tokenizer = load_tokenizer()
        self._numbers = itertools.count(100)

    def __call__(self, texts: Sequence[str], tokens: int, adapters: Sequence[str] = ("",)) -> Task:
        """One text for all adapters, or one for each."""
        texts = [f"{next(self._numbers)}. {text}" for text in [*texts] * (len(adapters) // len(texts))]
        prompts = [encode_prompt(self._tokenizer, (Message("user", text),)) for text in texts]
        return Task(texts, prompts, tokens, adapters)

    def reading(self, length: int) -> Task:
        """A prompt of `length` tokens, of which none is cached, and one token of an answer."""
        text = f"{next(self._numbers)}. {COPY * (length // 40 + 1)}"
        return Task([text], [self._tokenizer(text).input_ids[:length]], 1, [""])


def run() -> None:
    tasks = Tasks()
    llama, openvino = start_llama(), start_openvino()
    engine = start_engine()
    _measure_one_row(tasks, engine.run, llama)
    _measure_repeats(tasks, engine.run, llama)
    engine.close()
    engine = start_engine(endless=True)
    programs = {"engine": engine.run, "OpenVINO": openvino, "llama.cpp": llama}
    _measure_batches(tasks, programs)
    _measure_reading(tasks, programs)
    _measure_adapters(tasks, engine.run)
    engine.close()


def _speed(
    program: Run, tasks: Callable[[int], Sequence[Task]], shorter: int = 1, longer: int = TOKENS
) -> Callable[[], float]:
    return partial(decode_speed, program, tasks, shorter, longer)


def _measure_one_row(tasks: Tasks, engine: Run, llama: Run) -> None:
    generate = start_generate()
    names = ["", *AdapterStore().names()]

    def story(adapter: str) -> Callable[[int], Sequence[Task]]:
        return lambda tokens: [tasks([STORY], tokens, [adapter])]

    with start_page("stream") as page:
        variants = {"llama.cpp": _speed(llama, story("")), "generate() in bf16": _speed(generate.run, story(""))}
        variants |= {f"engine, {name or 'base'}": _speed(engine, story(name)) for name in names}
        variants |= {f"page, {name or 'base'}": _speed(page.run, story(name)) for name in names}
        speeds = measure_in_turn(variants)
    generate.close()
    print_head("one row", "tokens/s", "against llama.cpp", "against generate()", "page against engine alone")
    for name, speed in speeds.items():
        row = [median(speed), *(ratio(speed, speeds[peer]) for peer in ("llama.cpp", "generate() in bf16"))]
        alone = speeds[name.replace("page", "engine")] if name.startswith("page") else None
        print_row(name, *row, ratio(speed, alone) if alone else "")


def _measure_repeats(tasks: Tasks, engine: Run, llama: Run) -> None:
    """Whole answers that repeat their prompt. llama.cpp gets the same prompts, and answers as long."""
    programs = {"engine": engine, "llama.cpp": llama}
    print_programs("answers that repeat their prompt", programs)
    for name, texts, adapter in (
        ("contact details to JSON", MESSAGES, "extract"),
        ("a text word by word", (COPY,), ""),
    ):
        lengths = [engine(tasks([text], TOKENS, [adapter]))[1] for text in texts]

        def whole(limit: int, texts=texts, adapter=adapter, lengths=lengths) -> Sequence[Task]:
            return [tasks([t], min(limit, n), [adapter]) for t, n in zip(texts, lengths, strict=True)]

        speeds = measure_in_turn({name: _speed(program, whole) for name, program in programs.items()})
        print_speeds(f"{name}, {median(lengths, 0)} tokens", speeds)


def _measure_batches(tasks: Tasks, programs: Mapping[str, Run]) -> None:
    """The engine's rows have the base and the shipped adapters in turn."""
    print_programs("rows, tokens/s in all", programs)
    names = ["", *AdapterStore().names()]
    for count in (4, 8, 16):
        adapters = [names[row % len(names)] for row in range(count)]

        def rows(tokens: int, adapters=adapters) -> Sequence[Task]:
            return [tasks([STORY], tokens, adapters)]

        print_speeds(count, measure_in_turn({n: _speed(p, rows, SHORT, LONG) for n, p in programs.items()}))


def _measure_reading(tasks: Tasks, programs: Mapping[str, Run]) -> None:
    def rate(program: Run) -> float:
        return PROMPT / program(tasks.reading(PROMPT))[0]

    print_programs(f"a prompt of {PROMPT} tokens, tokens/s", programs)
    print_speeds("read", measure_in_turn({name: partial(rate, program) for name, program in programs.items()}))


def _measure_adapters(tasks: Tasks, engine: Run) -> None:
    """What an adapter adds to the time of a token, all rows with the same one."""
    names = AdapterStore().names()
    print_head("cost of an adapter per token, %", *names)
    for count, limits in ((1, (1, TOKENS)), (16, (SHORT, LONG))):

        def rows(adapter: str, count=count) -> Callable[[int], Sequence[Task]]:
            return lambda tokens: [tasks([STORY], tokens, [adapter] * count)]

        speeds = measure_in_turn({name: _speed(engine, rows(name), *limits) for name in ("", *names)})
        base, *others = speeds.values()
        costs = [[100 * (b / a - 1) for b, a in zip(base, other, strict=True)] for other in others]
        print_row(f"{count} rows" if count > 1 else "1 row", *map(median, costs))
