"""Turns and the scheduler, without a model."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.base.llama import load_tokenizer
from adapter.serve import scheduler as scheduler_module
from adapter.serve.kv_cache import BLOCK, SlotAllocator
from adapter.serve.request import Client, GenerationRequest
from adapter.serve.scheduler import Admitted, Row, Scheduler, in_turn, repeats


@pytest.fixture
def make_row(tiny_base):
    def make(max_new_tokens: int = 100, prompt_tokens: int = 3, **request) -> Row:
        tokens = [1, 2, 3] * (prompt_tokens // 3)
        base = SimpleNamespace(tokenizer=tiny_base.tokenizer, stop_ids=frozenset([9]))
        return Row(GenerationRequest(**request), Admitted([], tokens, max_new_tokens, None), base)

    return make


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler(SlotAllocator(16 * 1024), 2**20)


@pytest.mark.parametrize(
    "put, expected",
    [
        ("Ax1 Ax2 Ax3 Bx1 Cx1 Cx2", "Ax1 Bx1 Cx1 Ax2 Cx2 Ax3"),  # networks take turns
        ("Ax1 Ax2 Ax3 Ay1 Az1 Az2", "Ax1 Ay1 Az1 Ax2 Az2 Ax3"),  # sessions of one network take turns
        ("Aa1 Ab1 Ac1 Ad1 Bx1 Bx2", "Aa1 Bx1 Ab1 Bx2 Ac1 Ad1"),  # many sessions are no more turns
    ],
)
def test_networks_take_turns_and_so_do_their_sessions(make_row, put, expected):
    """Rows "network session number", such as "Ax1". The last in turn gives up its place for another network."""
    names = {make_row(client=Client(name[0], name[1])): name for name in put.split()}
    assert [names[row] for row in in_turn(names)] == expected.split()
    for client, last in ((Client("D"), expected.split()[-1]), (Client("A", "x"), None)):
        assert names.get(in_turn([*names, make_row(client=client)])[-1]) == last
    for name in expected.split():
        row = in_turn(names)[0]
        assert names[row] == name
        row.started_at = 0.0


def test_a_long_prompt_and_short_ones_are_read_side_by_side(scheduler, make_row):
    long = make_row(prompt_tokens=9000)
    scheduler.waiting.append(long)
    read = [scheduler.schedule(0.0).prefill]
    for _ in range(20):  # always another short one
        if scheduler.prefilling == [long]:
            scheduler.waiting.append(make_row(max_new_tokens=1))
        row = scheduler.schedule(0.0).prefill
        read.append(row)
        if row is not long:  # its only chunk
            assert scheduler.postprocess(row, 5) == "length"
            scheduler.remove(row)
    assert read.count(long) in (10, 11)  # neither waits for the other


def test_waiting_rows_are_told_their_position_when_it_changes(scheduler, make_row, monkeypatch):
    monkeypatch.setattr(scheduler_module, "MAX_ROWS", 1)
    running, second, third = (make_row(client=Client(session="a")) for _ in range(3))
    other = make_row(client=Client(address="b"))
    scheduler.waiting.append(running)
    scheduler.schedule(0.0)
    for row in (second, third, other):
        scheduler.waiting.append(row)
    # The other client has no other request: it comes before those of client a, of which one runs.
    assert scheduler.schedule(0.0).moved == [other, second, third]
    assert scheduler.schedule(0.0).moved == []
    second.cancelled = True
    step = scheduler.schedule(0.0)
    assert step.aborted == [(second, "cancelled")]
    assert [(row, row.position) for row in step.moved] == [(third, 1)]  # the other client keeps 0


def test_rows_start_while_the_cache_has_room_and_short_ones_pass_a_long_one_for_a_while(make_row):
    scheduler = Scheduler(SlotAllocator(1024), 2**20)
    first, long, *short = make_row(500), make_row(1000), *(make_row(60) for _ in range(40))
    scheduler.waiting.append(first)
    scheduler.schedule(0.0)
    for row in (long, *short):
        scheduler.waiting.append(row)
    scheduler.schedule(0.0)
    started = [row for row in short if row.started_at is not None]
    assert first.slot and not long.slot and len(started) == 8  # 512 + 8 * 64 tokens
    while len(started) < 16:
        scheduler.remove(next(row for row in short if row.slot))
        scheduler.schedule(0.0)
        started = [row for row in short if row.started_at is not None]
    for row in [first, *started]:
        if row.slot:
            scheduler.remove(row)
    scheduler.schedule(0.0)
    assert long.slot and scheduler.prefilling == [long]  # overtaken often enough: the others waited for it
    scheduler.remove(long)
    scheduler.schedule(0.0)
    assert len(scheduler.prefilling) == 16


def test_rows_start_while_there_is_room_for_their_prompts_and_the_largest_alone(make_row):
    scheduler = Scheduler(SlotAllocator(16 * 1024), max_prompt_kv_bytes=100)
    rows = [make_row() for _ in range(6)]
    sizes = [("a", 60), ("a", 60), ("b", 50), ("c", 40), (None, 0), ("d", 500)]
    for row, (key, size) in zip(rows, sizes, strict=True):
        row.prompts = SimpleNamespace(key=key, bytes=size) if key else None
        scheduler.waiting.append(row)

    def started():
        scheduler.schedule(0.0)
        return [number for number, row in enumerate(rows) if row in scheduler.prefilling]

    assert started() == [0, 1, 3, 4] and scheduler.prompt_kv_bytes() == 100
    scheduler.remove(rows[0])
    assert started() == [1, 3, 4]
    scheduler.remove(rows[1])
    assert started() == [2, 3, 4]
    for number in (2, 3):
        scheduler.remove(rows[number])
    assert started() == [4, 5] and scheduler.prompt_kv_bytes() == 500
    rows[0].prompts = rows[5].prompts
    assert scheduler.prompt_kv_bytes(rows[0]) == 500
    scheduler.shares_prompts = False
    assert scheduler.prompt_kv_bytes(rows[0]) == 1500  # three rows: the base's is padded too
    scheduler.waiting.append(scheduler.remove(rows[5]) or rows[0])
    assert started() == [4], "for two rows, of which one has prompts, there is no room"


@pytest.mark.parametrize(
    "tokens, rows, started",
    [
        (16 * 1024, [("198.51.100.7", 100)] * 20 + [("203.0.113.9", 100)], 12 + 1),  # rows
        (1024, [("198.51.100.7", 400)] * 2 + [("203.0.113.9", 300)], 1 + 1),  # cache: both large ones take all
        # Nobody of its network passes the row of 600, which waits until 300 have ended.
        (1024, [("198.51.100.7", n) for n in (300, 600, 100)] + [("203.0.113.9", 100)], 1 + 1),
        (16 * 1024, [("127.0.0.1", 100)] * 20, 16),  # who is alone on the machine has all of it
    ],
)
def test_one_network_leaves_rows_and_cache_to_others(make_row, tokens, rows, started):
    scheduler = Scheduler(SlotAllocator(tokens), 2**20)
    for row in [make_row(new, client=Client(address, str(i))) for i, (address, new) in enumerate(rows)]:
        scheduler.waiting.append(row)
    scheduler.schedule(0.0)
    assert len(scheduler.prefilling) == started
    assert {row.request.client.address for row in scheduler.prefilling} == {address for address, _ in rows}


@given(st.lists(st.integers(1, 1500), max_size=60), st.randoms(use_true_random=False))
def test_slots_never_overlap_and_what_was_freed_can_be_taken_again(sizes, rng):
    allocator, taken = SlotAllocator(5000), []
    for size in sizes:
        if (slot := allocator.take(size)) is not None:
            assert slot.tokens >= size and slot.start % BLOCK == 0
            assert (end := slot.start + slot.tokens) <= allocator.capacity
            assert all(end <= other.start or other.start + other.tokens <= slot.start for other in taken)
            taken.append(slot)
        if taken and rng.random() < 0.4:
            allocator.free(taken.pop(rng.randrange(len(taken))))
    for slot in taken:
        allocator.free(slot)
    assert allocator.take(allocator.capacity) is not None


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def test_honest_lists_tables_and_code_do_not_go_in_circles(tokenizer):
    for honest in (
        "\n".join(f"{i}. Take {i} steps, then turn left." for i in range(1, 30)),
        "| a | b | c | d | e | f |\n" + "| --- " * 6 + "|\n" + "".join(f"| {i}{' | 0' * 5} |\n" for i in range(9)),
        "".join(f"    if (x == {i}) {{\n        return {i * i};\n    }}\n" for i in range(12)),
        "zeros = [" + "0, " * 20 + "0]",
        "Oh, the grand old Duke of York, he had ten thousand men. " * 3,
    ):
        tokens = tokenizer(honest).input_ids
        assert not any(repeats(tokens[:end], end) for end in range(1, len(tokens) + 1)), honest


def test_an_answer_that_goes_in_circles_is_found_where_it_has_gone_round_often_enough(tokenizer):
    sentence = tokenizer("You can also use a slow cooker to cook the chicken and the vegetables. ").input_ids
    prompt = sentence * 9
    assert not repeats(prompt, 0)  # a message that repeats itself is no answer that does
    answer = list(range(1000, 1040)) + sentence * 6
    ends = [end for end in range(1, len(answer) + 1) if repeats([*prompt, *answer[:end]], end)]
    assert ends[0] == 40 + max(64, 3 * len(sentence)) and ends == list(range(ends[0], len(answer) + 1))
    assert [repeats([7] * count, count) for count in (63, 64)] == [False, True]
