"""A stand-in for Hugging Face's package `spaces`, on a machine without its scheduler and without a GPU.

What it keeps of the real one (0.51, zero/): it must be imported before torch; the first launch reports at start-up
whether anything is decorated; a decorated generator runs in a forked, daemonic worker, which gets its arguments
pickled through a queue, sends back each result pickled and is used again; the generator's close is a word to the
worker, heard after its next result; a worker that dies or fails is a gr.Error with the real one's titles, and so
is no GPU. The scheduler is a semaphore; X-IP-Token says whose quota it is.

FAKE_SPACES_LOG names a file that gets a line of JSON for all that happens.
"""

import contextlib
import contextvars
import functools
import inspect
import json
import multiprocessing
import os
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue as ThreadQueue

assert "torch" not in sys.modules, "spaces must be imported before torch"

import gradio as gr  # noqa: E402
from gradio.context import LocalContext  # noqa: E402

GPUS = 2
SPENT = "spent"  # the token of a visitor without quota
QUOTA = "You have exceeded your free ZeroGPU quota ({seconds}s requested vs. 3s left). Try again in 1:00:00. "
_fork = multiprocessing.get_context("fork")
_free = threading.BoundedSemaphore(GPUS)
_decorated = []
_kept, _taking = [], threading.Lock()
_END, _VALUE, _FAILED = "end", "value", "failed"


def GPU(task, *, duration):
    assert inspect.isgeneratorfunction(task), "the stand-in knows generators only"
    _decorated.append(task)

    @functools.wraps(task)
    def run(*args, **kwargs):
        visitor = _schedule(duration(*args, **kwargs))
        with _free:
            yield from _ask_worker(task, args, kwargs, visitor)

    return run


def gradio_auto_wrap(task):
    return task


def _note(event, **facts):
    if path := os.environ.get("FAKE_SPACES_LOG"):
        with open(path, "a") as file:
            file.write(json.dumps({"event": event, **facts}) + "\n")


def _schedule(seconds):
    request = LocalContext.request.get(None)
    token = None if request is None else request.headers.get("x-ip-token")
    _note("schedule", seconds=round(seconds), token=token)
    if token == SPENT:
        message = QUOTA.format(seconds=round(seconds))
        raise gr.Error(message, title="ZeroGPU quota exceeded", print_exception=False)
    return token


def _error(text):
    return gr.Error(text, title="ZeroGPU worker error", print_exception=False)


class _Worker:
    def __init__(self, task):
        self.task, self.stop = task, _fork.Event()
        self.jobs, self.results = _fork.SimpleQueue(), _fork.SimpleQueue()
        arguments = task, self.jobs, self.results, self.stop, _server_sockets()
        self.process = _fork.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        _note("fork", pid=self.process.pid)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        self.process.join()
        self.jobs.close()
        with contextlib.suppress(ValueError):
            self.results._wlock.release()
        self.results.put(None)


def _server_sockets():
    """File descriptors of the page's own connections, which a worker must not keep open."""
    blocks = LocalContext.blocks.get(None)
    if blocks is None or blocks.server is None:
        return []
    port, inodes = blocks.server.config.port, set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
            inodes |= {row[9] for row in rows if int(row[1].rpartition(":")[2], 16) == port}
    found = []
    for path in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            target = os.readlink(path)
            if target.startswith("socket:[") and target[8:-1] in inodes:
                found.append(int(path.name))
    return found


def _serve(task, jobs, results, stop, sockets):
    """What a worker is: job after job, each in a thread of its own."""
    for number in sockets:
        with contextlib.suppress(OSError):
            os.close(number)
    while True:
        try:
            args, kwargs = jobs.get()
        except (OSError, EOFError):
            return
        stop.clear()

        def iterate(args=args, kwargs=kwargs):
            generator = task(*args, **kwargs)
            while True:
                try:
                    value = next(generator)
                except StopIteration:
                    return
                except Exception as error:
                    results.put((_FAILED, type(error).__name__))
                    return
                if stop.is_set():
                    generator.close()
                    return
                results.put((_VALUE, value))

        with ThreadPoolExecutor() as executor:
            executor.submit(contextvars.copy_context().run, iterate)
        results.put((_END, None))


def _ask_worker(task, args, kwargs, visitor):
    with _taking:
        worker = next((w for w in _kept if w.task is task and w.process.is_alive()), None)
        if worker is not None:
            _kept.remove(worker)
    worker = worker or _Worker(task)
    pid = worker.process.pid
    worker.jobs.put((args, kwargs))
    _note("begin", pid=pid, token=visitor, bytes=len(pickle.dumps((args, kwargs))))
    arrived = ThreadQueue()

    def over(how):
        if how == _END:
            _kept.append(worker)
        else:
            worker.process.kill()  # the real one's worker is ended by the scheduler

    def fill():
        while True:
            said = worker.results.get()
            last = said is None or said[0] in (_END, _FAILED)
            if last:
                over("abort" if said is None else said[0])
            arrived.put(said)
            if last:
                return

    with ThreadPoolExecutor(1) as executor:
        executor.submit(contextvars.copy_context().run, fill)
        while True:
            said = arrived.get()
            if said is None:
                raise _error("GPU task aborted")
            kind, value = said
            if kind == _FAILED:
                raise _error(value)
            if kind == _END:
                return
            try:
                yield value
            except GeneratorExit:
                worker.stop.set()
                raise


_launch = gr.Blocks.launch


def _first_launch(*args, **kwargs):
    gr.Blocks.launch = _launch
    _note("launch", decorated=len(_decorated), loaded="torch" in sys.modules)
    return _launch(*args, **kwargs)


gr.Blocks.launch = _first_launch
