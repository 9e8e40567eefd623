"""Honest visitors among attackers on one server, and the verdict: answers, process, memory, threads, open files.

Everything honest is asked alone first. Then sixteen visitors ask it again and again, each from an address of their
own, while every attack runs. Memory, threads and files are measured when everybody pauses and no request is open:
after the warm-up, which is half of the time, and at the end.
"""

import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.app_process import FAULTY_APP, ROOT, AppProcess, app_process
from tests.app_process import LONG_PATIENCE as PATIENCE
from tests.soak import attacks
from tests.soak.attacks import Attack, Attacker, Broken
from tests.soak.people import KEY, PASSWORD, USER, Answer, Connection, Question

SHIPPED = ROOT / "assets" / "adapters"
TEXT, VISUAL = ("pirate", "extract"), "see"
PICTURE = ROOT / "assets" / "examples" / "traffic-light.png"
ANSWER_TOKENS = 24
VISITORS = 16
PACE = 2.5  # seconds from one question of a visitor to the next: 30 answers a minute are one address's limit
REPORT_SECONDS = 30.0
# Growth that is allowed after the warm-up, in which caches fill: of prefixes, pictures, prompts and sessions.
GROWTH_MB, GROWTH_THREADS, GROWTH_FILES = 80, 16, 20
# By default the server would keep more than a warm-up fills: Gradio's sessions, of 0.3 MB each, and the KV cache.
SESSIONS, CACHE_GB = 200, 0.6
SETTLE_SECONDS = 60.0  # in which sockets of clients that left are closed


@dataclass(frozen=True)
class Figures:
    """Of the server's process. Threads, files and log while nothing is asked; MB while everything is."""

    mb: float
    threads: int
    files: int
    log_mb: float

    def __str__(self) -> str:
        return f"{self.mb:.0f} MB, {self.threads} threads, {self.files} files, {self.log_mb:.1f} MB of log"


@dataclass
class Report:
    """What happened. differing, unanswered: descriptions of honest answers; broken: attacks that had success."""

    answers: int = 0
    differing: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    attacks: dict[str, Counter[str]] = field(default_factory=dict)
    figures: dict[str, Figures] = field(default_factory=dict)
    died: str = ""

    @property
    def growth(self) -> list[str]:
        """What grew after the warm-up by more than is allowed."""
        if not {"warm", "end"} <= set(self.figures):
            return []
        warm, end = self.figures["warm"], self.figures["end"]
        allowed = {"mb": GROWTH_MB, "threads": GROWTH_THREADS, "files": GROWTH_FILES}
        grown = {name: getattr(end, name) - getattr(warm, name) for name in allowed}
        return [f"{name} grew by {grown[name]:.0f}" for name, most in allowed.items() if grown[name] > most]

    @property
    def problems(self) -> list[str]:
        """Everything that must not be; empty if the server stood."""
        silent = [f"the attack {name} never happened" for name, got in self.attacks.items() if not got]
        silent += [
            f"{name}: {one}" for name, got in self.attacks.items() for one in got if one.startswith("soak:")
        ]
        found = [*self.differing, *self.unanswered, *self.broken, *self.growth, *silent]
        return [*found, *filter(None, [self.died])]

    def __str__(self) -> str:
        rows = [
            ("honest answers", str(self.answers)),
            ("differing from alone", str(len(self.differing))),
            ("refused or failed", str(len(self.unanswered))),
            ("attacks with success", str(len(self.broken))),
        ]
        for name, got in self.attacks.items():
            most = ", ".join(f"{count} x {outcome}" for outcome, count in got.most_common(8))
            rows.append((f"attack {name}", f"{sum(got.values())}: {most}"))
        rows += [(f"server, {when}", str(figures)) for when, figures in self.figures.items()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


class Siege:
    """Visitors and attackers, each in a thread of their own. arsenal: makes the attacker of an attack's number."""

    def __init__(
        self, server: AppProcess, questions: Sequence[Question], arsenal: Callable[[int], Attacker]
    ) -> None:
        self.report = Report(attacks={attack.__name__: Counter() for attack in attacks.ATTACKS})
        self._server, self._questions, self._arsenal = server, questions, arsenal
        self._process = psutil.Process(server.process.pid)
        self._alone: dict[int, Answer] = {}
        self._stop, self._go = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._resting = threading.Semaphore(0)
        self._threads = [
            *(threading.Thread(target=self._visit, args=[n], name=f"visitor {n}") for n in range(VISITORS)),
            *(
                threading.Thread(target=self._attack, args=each, name=each[1].__name__)
                for each in enumerate(attacks.ATTACKS)
            ),
        ]
        for thread in self._threads:
            thread.daemon = True
        self._done = dict.fromkeys(self._threads, 0)  # how often each client has done something

    def run(self, seconds: float) -> Report:
        """Ask alone, attack for so long, and measure. Prints a line now and then.

        Each visitor and each attacker does something before the warm-up ends and again until the end, however long
        it takes.
        """
        # From several addresses, one after the other: one address has 30 answers a minute.
        people = [self._connection(-number) for number in range(1, 5)]
        for number, question in enumerate(self._questions):
            self._alone[number] = people[number % len(people)].ask(question)
        for person in people:
            person.close()
        self.report.figures["alone"] = self._measure([self._mb()])
        print(f"{len(self._alone)} answers alone; {len(self._threads)} clients begin.", flush=True)
        self._go.set()
        for thread in self._threads:
            thread.start()
        try:
            for half in ("warm", "end"):
                self._rest(half, self._run_for(seconds / 2))
            self._server.check_running()
        except AssertionError as error:
            self.report.died = str(error)
        self._stop.set()
        self._go.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        return self.report

    def _run_for(self, seconds: float) -> list[float]:
        """Returns the memory of the last third of the time, in MB, a figure ten times a second."""
        self._go.set()
        began = told = time.monotonic()
        before = self._done.copy()
        memory = []
        while True:
            self._server.check_running()
            now = time.monotonic()
            behind = [thread.name for thread in self._threads if self._done[thread] == before[thread]]
            memory.append(self._mb())
            if now - began >= seconds and not behind:
                return memory[len(memory) * 2 // 3 :]
            assert now - began < seconds + PATIENCE, f"{behind} do not come to an end"
            time.sleep(0.1)
            if now - told >= REPORT_SECONDS:
                told = now
                print(f"{self.report.answers} honest answers, {memory[-1]:.0f} MB", flush=True)

    def _mb(self) -> float:
        return self._process.memory_info().rss / 2**20

    def _rest(self, when: str, memory: Sequence[float]) -> None:
        """Pause everybody, wait until nothing is open, and measure."""
        self._go.clear()
        for count in range(len(self._threads)):
            resting = self._resting.acquire(timeout=2 * PATIENCE)
            assert resting, f"{len(self._threads) - count} clients do not come to an end"
        self._server.wait_until(lambda: self._server.counts == (0, 0))
        self.report.figures[when] = self._measure(memory)

    def _measure(self, memory: Sequence[float]) -> Figures:
        """After the sockets of clients that left are closed, which takes the server some seconds."""
        deadline, before = time.monotonic() + SETTLE_SECONDS, -1
        while (files := self._process.num_fds()) != before and time.monotonic() < deadline:
            before = files
            time.sleep(1.0)
        log = (self._server.folder / "log").stat().st_size / 2**20
        return Figures(statistics.median(memory), self._process.num_threads(), files, log)

    def _connection(self, number: int) -> Connection:
        return Connection(self._server.url, f"127.0.1.{100 + number}")

    def _pause(self) -> None:
        """After each thing that a client does; waits while everybody rests."""
        self._done[threading.current_thread()] += 1
        if not self._go.is_set():
            self._resting.release()
            self._go.wait()

    def _visit(self, number: int) -> None:
        chance, due = random.Random(number), 0.0
        connection = self._connection(number)
        order = list(range(len(self._questions)))
        chance.shuffle(order)
        turn = 0
        while not self._stop.is_set():
            time.sleep(max(0.0, min(PACE, due - time.monotonic())))
            due = time.monotonic() + PACE
            asked = order[turn % len(order)]
            turn += 1
            question = self._questions[asked]
            which = f"{question.through} {question.adapter or 'base'} {question.text!r}"
            try:
                answer = connection.ask(question)
            except Exception as error:  # whatever it is: an honest visitor has no answer
                self._note(self.report.unanswered, f"{which}: {type(error).__name__} {str(error)[:300]}")
            else:
                with self._lock:
                    self.report.answers += 1
                if answer != self._alone[asked]:
                    self._note(self.report.differing, f"{which}: {answer} and alone {self._alone[asked]}")
            self._pause()
        connection.close()

    def _attack(self, number: int, attack: Attack) -> None:
        attacker = self._arsenal(number)
        while not self._stop.is_set():
            try:
                got = attacks.outcome(attack, attacker)
            except Broken as error:
                self._note(self.report.broken, f"{attack.__name__}: {error}")
                got = "SUCCESS"
            except Exception as error:  # of the soak's own; the row of the table shows it
                got = f"soak: {type(error).__name__} {error}"[:200]
            with self._lock:
                self.report.attacks[attack.__name__][got] += 1
            self._pause()
            time.sleep(attacker.chance.uniform(0, 2 * attacks.PAUSE))
        attacker.close()

    def _note(self, notes: list[str], text: str) -> None:
        with self._lock:
            notes.append(text)


@contextmanager
def besieged(folder: Path) -> Iterator[tuple[AppProcess, Callable[[int], Attacker]]]:
    """A public server with a password, on which visitors may train and upload; and what makes its attackers."""
    evil = attacks.write_evil(SHIPPED / "pirate", SHIPPED / VISUAL, folder / "evil")
    bad_pictures = attacks.write_pictures(PICTURE, folder / "pictures")
    arguments = ["--host", "0.0.0.0", "--public", "--auth", f"{USER}:{PASSWORD}", "--train"]
    arguments += ["--cache-gb", str(CACHE_GB), "--adapters", str(folder / "evil")]
    environment = {"LLAMA_ADAPTER_RUNS": str(folder / "runs"), "SESSIONS": str(SESSIONS), "POISON": "1"}
    with app_process(folder, *arguments, program=FAULTY_APP, environment=environment, ready=(401,)) as server:
        models = f"{server.url}/v1/models"
        server.wait_until(lambda: httpx.get(models, headers=KEY, timeout=PATIENCE).status_code == 200)

        def attacker(number: int) -> Attacker:
            chance, honest = random.Random(number), (*TEXT, VISUAL)
            return Attacker(server.url, f"127.66.{number}", chance, honest, evil, bad_pictures)

        yield server, attacker
