"""Replicas on Ray: two of the endless tiny base, in a cluster of this machine, asked as the page asks them."""

import asyncio
import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

os.environ.update(RAY_AUTH_MODE="disabled", RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S="5")  # no token is kept
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"
pytest.importorskip("ray", reason="Ray has no wheel here: pip install '.[cluster]'")

import psutil
import ray
from ray.serve.exceptions import RayServeException

from adapter.base.llama import load_base
from adapter.base.template import Message
from adapter.cluster import engine as cluster
from adapter.cluster import replica as replica_module
from adapter.errors import AdapterError, BadInput, EngineBroken, LoadError
from adapter.method.checkpoint import save_adapter
from adapter.serve.engine import Engine
from adapter.serve.request import Answer, Client, GenerationEvent, GenerationRequest, SamplingParams
from adapter.serve.scheduler import MAX_ROWS
from adapter.serve.settings import MAX_TOKENS
from adapter.serve.store import AdapterStore
from tests.app_process import LONG_PATIENCE, PATIENCE, ROOT, app_process, free_port, wait_until
from tests.tiny_models import endless_base, random_adapter, save_one_and_two

pytestmark = pytest.mark.slow

GREEDY = SamplingParams(temperature=0, max_new_tokens=20)
ENDLESS = replace(GREEDY, max_new_tokens=MAX_TOKENS)
HELLO = (Message("user", "hello there"),)


@pytest.fixture(scope="module")
def base_folder(tiny_folder, tmp_path_factory) -> Path:
    return endless_base(tiny_folder, tmp_path_factory.mktemp("base") / "endless")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """The first node of a cluster, which outlives a page that joins it. Each node has one replica's core."""
    port = free_port()
    with node(tmp_path_factory.mktemp("ray"), "--head", f"--port={port}", "--include-dashboard=false"):
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def node(folder: Path, *options: str) -> Iterator[None]:
    """A node, with all of its processes killed at the end, as a machine that loses its power."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", *options]
    command += ["--min-worker-port=0", "--max-worker-port=0"]  # any, so that none of them is the head's
    with open(folder / "log", "wb") as log:
        # adapter.cluster.engine has set what Ray reads from the environment.
        first = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until(lambda: "Ray runtime started" in (folder / "log").read_text() or first.poll() is not None)
            assert first.poll() is None, (folder / "log").read_text()
            yield
        finally:
            for process in (*reversed(psutil.Process(first.pid).children(recursive=True)), first):
                with contextlib.suppress(psutil.NoSuchProcess):  # Ray ends what another one's end has left alone
                    process.kill()
            first.wait(PATIENCE)


@pytest.fixture(scope="module")
def second_node(address, tmp_path_factory) -> Iterator[contextlib.ExitStack]:
    """Closed, the node is gone."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(node(tmp_path_factory.mktemp("second"), f"--address={address}"))
        yield stack


@pytest.fixture(scope="module")
def page(address, second_node, base_folder, adapters, tiny_fingerprint):
    save_one_and_two(load_base(str(base_folder), "none", "cpu").fingerprint, adapters)
    with closing(
        cluster.connect(address, str(base_folder), "none", None, (2, 2), AdapterStore(adapters))
    ) as engine:
        yield engine


@pytest.fixture
def engine(page):
    """With both replicas up and nothing running."""
    wait_until(lambda: running(page) == [0, 0])
    return page


def request(session: str = "", **changes) -> GenerationRequest:
    return GenerationRequest(
        **{"messages": HELLO, "sampling": GREEDY, "client": Client("127.0.0.1", session), **changes}
    )


def begin(engine, session: str) -> Answer:
    """An answer that does not end by itself, of which the first token has come."""
    answer = engine.submit(request(session, sampling=ENDLESS))
    while next(answer).token_id is None:
        pass
    return answer


def running(engine) -> list[int]:
    return sorted(found.running for found in engine.replicas().values())


def replica_of(engine, session: str) -> str:
    """The name of the replica that a session's answers come from."""
    answer = begin(engine, session)
    [name] = wait_until(lambda: [n for n, found in engine.replicas().items() if found.running])
    answer.cancel()
    wait_until(lambda: running(engine) == [0, 0])
    return name


def sessions_apart(engine) -> tuple[str, str]:
    """Two sessions with a replica each."""
    first = replica_of(engine, "s0")
    return "s0", next(name for i in range(1, 50) if replica_of(engine, name := f"s{i}") != first)


def wait_for_new(engine, before: set[str], count: int) -> None:
    """Waits for two replicas, `count` of them new: the router knows dead ones for a while."""
    wait_until(lambda: len(engine.replicas()) == 2 and len(set(engine.replicas()) - before) == count)


def replica_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):  # others' replicas are none of ours
        with contextlib.suppress(psutil.Error):  # it has just ended
            found += [process] if "ServeReplica:llama-adapter" in "".join(process.cmdline()) else []
    return found


def test_answers_are_those_of_one_engine(engine, base_folder, adapters):
    base = load_base(str(base_folder), "none", "cpu")
    requests = [
        request(),
        request(adapter="one", strength=0.5, mix=(("two", 1.0),), top_logprobs=3),
        request(adapter="two", sampling=SamplingParams(temperature=1.0, max_new_tokens=20, seed=7), stop=("e",)),
    ]
    with closing(Engine(base, AdapterStore(adapters))) as alone:
        for asked, answer in zip(requests, [engine.submit(asked) for asked in requests], strict=True):
            expected, got = list(alone.submit(asked)), list(answer)
            assert [e.token_id for e in got if e.is_output] == [e.token_id for e in expected]
            assert "".join(e.text for e in got) == "".join(e.text for e in expected)
            assert got[-1].finish_reason == expected[-1].finish_reason
            assert [e.choices for e in got if e.is_output] == [e.choices for e in expected]
        ids = [e.token_id for e in got if e.token_id is not None]
        assert engine.inspect(requests[1], ids).tokens == alone.inspect(requests[1], ids).tokens
    with pytest.raises(BadInput, match="0 to 96"):  # by the page
        engine.submit(request(prompt_ids=(97,)))
    with pytest.raises(BadInput, match="no gates in layer 0"):
        list(engine.submit(request(adapter="one", gates=((0, None, 0.0),))))  # by the replica
    assert engine.describe().startswith("endless: none, 2 replicas")


def test_lists_that_come_early_late_or_twice_are_put_in_order():
    answer = cluster.RemoteAnswer(request(prompt_ids=(1, 2), answer_ids=(3,)))
    arrivals, events = cluster._Arrivals(answer), [GenerationEvent(token_id=number) for number in range(6)]
    for start, end in ((4, 6), (2, 4), (0, 3), (0, 6)):
        arrivals.add(start, events[start:end])
    assert answer.mailbox.take() == events and answer.stats().prompt_tokens == 3


def test_a_cancelled_answer_takes_nothing_from_those_that_shared_its_messages(base_folder, monkeypatch):
    monkeypatch.setattr(replica_module, "_AGAIN_SECONDS", 1000.0)
    replica = replica_module.Replica(str(base_folder), "none", None, False, False)

    async def run() -> None:
        rows = [replica.answer(request(sampling=ENDLESS), {}, p, k) for k, p in zip("abcde", "PPQPP", strict=True)]
        assert [await anext(each) for each in rows] == [{}] * 5
        first, second, foreign, idle, last = rows
        while "b" not in (carried := await anext(first)):
            pass
        assert "c" not in carried  # another page's
        await idle.aclose()  # it has carried nothing, so that nothing may be lost with it
        while "b" not in (more := await anext(first)):
            pass
        assert more["b"][0] == len(carried["b"][1])
        while "e" not in (carried := await anext(first)) or "e" not in await anext(second):
            pass
        await asyncio.gather(first.aclose(), second.aclose())  # messages of both may be lost with them
        start, events = (await anext(last))["e"]
        before, lost = carried["e"]
        assert start == 0 and events[before:][: len(lost)] == lost
        await last.aclose()
        await foreign.aclose()

    async def end() -> None:
        """The last event is taken though it is said to be there before it is."""
        answer = replica._engine.submit(request())
        row = replica_module._Row(answer, "P")
        while await row.wait():
            row.take("P")
        last, answer.mailbox._events = answer.mailbox._events, queue.SimpleQueue()
        asyncio.get_running_loop().call_later(0.1, lambda: setattr(answer.mailbox, "_events", last))
        start, events = await row.rest("P")
        assert start == 0 and events[-1].finish_reason == "length" and len(events) >= 20

    with closing(replica._engine):
        asyncio.run(run())
        asyncio.run(end())
        wait_until(lambda: not replica._engine.statistics().running)


def test_a_replica_whose_engine_is_broken_ends_before_it_says_so(base_folder, monkeypatch):
    replica, ends = replica_module.Replica(str(base_folder), "none", None, False, False), []
    monkeypatch.setattr(os, "_exit", ends.append)

    async def run() -> None:
        running = replica.answer(request(sampling=ENDLESS), {}, "P", "a")
        assert await anext(running) == {}
        replica._engine._refuse(EngineBroken("broken"))
        assert [found async for found in running][-1]["a"] and ends == [1]
        assert (await anext(replica.answer(request(), {}, "P", "b")))["b"] and ends == [1, 1]

    with closing(replica._engine):
        asyncio.run(run())


def test_an_exception_of_a_replicas_own_code_is_not_a_lost_machine(engine, monkeypatch):
    """It is asked once, and the sentence says that the cluster failed, not that a machine is gone."""
    asked, handle = [], engine._handle
    answer = SimpleNamespace(remote=lambda *a: asked.append(a) or handle.options(stream=True).answer.remote(*a))
    counted = SimpleNamespace(options=lambda **_: SimpleNamespace(answer=answer))
    monkeypatch.setitem(engine._references, engine._load("one"), ("0" * 64, ray.put("no adapter")))
    monkeypatch.setattr(engine, "_handle", counted)
    with pytest.raises(AdapterError, match="failed on this request"):
        list(engine.submit(request(adapter="one")))
    assert len(asked) == 1


def test_an_adapter_is_known_everywhere_at_once_and_so_is_its_end(engine, adapters):
    apart, fingerprint = sessions_apart(engine), engine.base.fingerprint

    def answers() -> list[str]:
        return ["".join(e.text for e in engine.submit(request(s, adapter="new"))) for s in apart]

    save_adapter(random_adapter(fingerprint, 5), adapters / "new")
    first = answers()
    begun = engine.submit(request(apart[0], adapter="new"))
    text = next(event.text for event in begun if event.text)
    save_adapter(random_adapter(fingerprint, 6), adapters / "new")
    second = answers()
    assert first[0] == first[1] != second[0] == second[1]
    assert text + "".join(event.text for event in begun) == first[0], "it goes on as it began"
    shutil.rmtree(adapters / "new")
    for session in apart:
        with pytest.raises(LoadError, match="no adapter 'new'"):
            engine.submit(request(session, adapter="new"))


def test_a_full_replica_overflows_and_a_full_cluster_says_how_many_are_before(engine):
    with ThreadPoolExecutor(2 * MAX_ROWS) as pool:  # together: the first must not end before the last begins
        answers = list(pool.map(lambda _: begin(engine, "one session"), range(2 * MAX_ROWS)))
    assert wait_until(lambda: running(engine) == [MAX_ROWS, MAX_ROWS])
    waiting = [engine.submit(request("one session")) for _ in range(2)]
    assert [next(answer).position for answer in waiting] == [0, 1]
    answers.pop().cancel()
    assert list(waiting[0])[-1].finish_reason == "length"
    answers.clear()  # readers who have left
    assert list(waiting[1])[-1].finish_reason == "length"
    wait_until(lambda: running(engine) == [0, 0])


def test_one_network_leaves_rows_of_the_replicas_to_others(engine):
    sessions = [Client("10.0.0.1", f"c{i}") for i in range(3 * MAX_ROWS)]
    crowd = [engine.submit(request(sampling=ENDLESS, client=client)) for client in sessions]
    wait_until(lambda: sum(running(engine)) >= MAX_ROWS)
    assert list(engine.submit(request(client=Client("10.0.0.2"))))[-1].finish_reason == "length"
    assert all(answer.mailbox.last is None for answer in crowd), "it waited for none of them"
    del crowd  # readers who have left
    wait_until(lambda: running(engine) == [0, 0])


@pytest.mark.parametrize("machine", [False, True], ids=["replica", "machine"])
def test_a_killed_replica_ends_its_own_answers_only(engine, machine, address, second_node, tmp_path):
    """Or a machine's; the one that is started in its place is taken in."""
    apart, before = sessions_apart(engine), set(engine.replicas())
    answers = [begin(engine, session) for session in apart]
    if machine:
        second_node.close()
    else:
        os.kill(replica_processes()[0].pid, signal.SIGKILL)

    def end(answer: Answer) -> str:
        try:
            return list(answer)[-1].finish_reason
        except AdapterError as error:
            return str(error)

    # The other answer goes on as if nothing had happened, and the conversation goes on elsewhere.
    ends = [end(answer) for answer in answers]
    if machine:
        second_node.enter_context(node(tmp_path, f"--address={address}"))
    [dead] = [i for i, how in enumerate(ends) if "Ask again" in how]
    assert ends[1 - dead] == "length"
    assert end(engine.submit(request(apart[dead]))) == "length"
    wait_for_new(engine, before, 1)


def test_what_was_not_shown_yet_is_asked_again(engine):
    """The router does not know yet that the replicas are gone."""
    before = set(engine.replicas())
    for process in replica_processes():
        os.kill(process.pid, signal.SIGKILL)
    answers = [engine.submit(request(f"s{i}")) for i in range(4)]
    assert [list(answer)[-1].finish_reason for answer in answers] == ["length"] * 4
    wait_for_new(engine, before, 2)


def test_replicas_that_were_ended_are_said_to_be_gone(engine, monkeypatch):
    handle = MagicMock()
    asked = handle.options.return_value.answer.remote.return_value
    asked.__aiter__.side_effect = asked.cancel.side_effect = RayServeException()  # as behind `serve shutdown`
    monkeypatch.setattr(engine, "_handle", handle)
    with pytest.raises(AdapterError, match="is gone"):
        list(engine.submit(request()))


ANOTHER_PAGE = """
import sys
from pathlib import Path
from adapter.errors import LoadError
from adapter.cluster import engine as cluster
from adapter.serve.store import AdapterStore
from tests.cluster.test_cluster import request
address, *bases, adapters, cluster.replicas_module.CODE = sys.argv[1:]
for base in bases:
    try:
        page = cluster.connect(address, base, "none", None, (2, 2), AdapterStore(Path(adapters)))
    except LoadError as error:
        print(error, error.detail)
    else:
        print("".join(event.text for event in page.submit(request(adapter="one"))))
        page.close()
"""


def test_a_page_that_comes_back_finds_its_replicas(engine, address, base_folder, adapters):
    """In a process of its own; where it asks for another base it is told what is there."""
    replicas = set(engine.replicas())
    expected = "".join(event.text for event in engine.submit(request(adapter="one")))
    bases = (str(base_folder.with_name("other")), str(base_folder))
    asked = (address, *bases, str(adapters), replica_module.CODE)
    page = subprocess.run(
        [sys.executable, "-c", ANOTHER_PAGE, *asked], stdout=subprocess.PIPE, text=True, cwd=ROOT, timeout=PATIENCE
    )
    assert "serves endless, not other" in page.stdout and expected in page.stdout
    assert list(engine.submit(request()))[-1].finish_reason == "length"  # neither took anything from the first
    assert set(engine.replicas()) == replicas


def test_replicas_of_other_code_are_replaced_and_no_question_is_refused(engine, address, base_folder, adapters):
    """By a page of the new code; that of the old one still asks, and an answer that is being written ends."""
    before, written = set(engine.replicas()), begin(engine, "s0")
    asked = (address, str(base_folder), str(adapters), "new code")
    subprocess.run([sys.executable, "-c", ANOTHER_PAGE, *asked], check=True, cwd=ROOT, timeout=PATIENCE)

    def are_replaced() -> bool:
        for session in ("s1", "s2", "s3"):
            assert list(engine.submit(request(session, adapter="one")))[-1].finish_reason == "length"
        return len(engine.replicas()) == 2 and not before & set(engine.replicas())

    wait_until(are_replaced, patience=LONG_PATIENCE)
    assert list(written)[-1].finish_reason == "length"


def test_the_page_starts_replicas_on_this_machine(tmp_path, tiny_folder, tiny_fingerprint):
    """And the page's figures have both."""
    save_adapter(random_adapter(tiny_fingerprint), tmp_path / "adapters" / "one")
    options = ("--cluster", "local", "--replicas", "2", "--adapters", str(tmp_path / "adapters"))
    with app_process(tmp_path, "--base", str(tiny_folder), "--quantization", "none", *options) as page:
        assert page.answer("What is a ship?", "one", 24)
        page.wait_until(lambda: len(set(re.findall(r'replica="(machine 1/\w+)"', page.get("/metrics").text))) == 2)


def test_why_no_replica_came_up_is_said_and_the_page_still_ends_in_order(tmp_path):
    (tmp_path / "empty").mkdir()
    with app_process(tmp_path, "--cluster", "local", "--base", str(tmp_path / "empty"), ready=(503,)) as page:
        page.wait_until(
            lambda: "Check that the folder holds config.json" in page.get("/readyz").text, LONG_PATIENCE
        )
        page.process.terminate()  # whose handler Ray has put away
        assert page.process.wait(PATIENCE) == 0 and not any((tmp_path / "uploads").iterdir())


def test_a_cluster_that_is_not_there_is_said(tmp_path):
    with pytest.raises(LoadError, match="The cluster cannot be reached"):
        cluster.connect("127.0.0.1:1", "any", "none", None, (1, 1), AdapterStore(tmp_path))
