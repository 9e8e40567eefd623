"""Threads follow from the cores that the process may use and from the size of the base."""

import os
import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig

from adapter.base import threads
from tests.app_process import PATIENCE


@pytest.mark.parametrize(
    "files, cores",
    [
        ({}, None),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000", "job/cpu.max": "50000 100000"}, 0.5),  # a service outside of any container
    ],
)
def test_the_quota_of_a_control_group_is_read(files, cores, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    own = tmp_path / "self"
    own.write_text("0::/job\n5:cpu,cpuacct:/other\n")
    assert threads._control_group_quota(root=tmp_path, own=own) == cores


@pytest.mark.parametrize(("before", "chosen"), [(16, [3, 16, 1, 16]), (2, [2, 2, 1, 2])])
def test_a_large_base_gets_all_cores_and_a_small_one_a_few(before, chosen, monkeypatch):
    small = LlamaConfig(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3)
    tiny = LlamaConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4)
    monkeypatch.setattr(threads, "available_cores", lambda: 16)
    monkeypatch.setattr(threads, "_limit", before)  # what the process had before, or OMP_NUM_THREADS
    of_the_tests = torch.get_num_threads()
    try:
        assert [threads.set_threads(config) for config in (small, LlamaConfig(), tiny, LlamaConfig())] == chosen
        assert torch.get_num_threads() == chosen[-1]
    finally:
        torch.set_num_threads(of_the_tests)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("2000", "ACTIVE")),
        ({"GOMP_SPINCOUNT": "7"}, ("7", None)),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, (None, "PASSIVE")),
    ],
)
def test_idle_threads_sleep_unless_the_environment_says_otherwise(given, expected, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # so that it is restored afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    threads.sleep_when_idle()
    assert (os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY")) == expected


ARENAS = """
import ctypes, sys, threading
from concurrent.futures import ThreadPoolExecutor
from adapter.base.threads import share_arenas
if sys.argv[1] == "shared":
    share_arenas()
libc, all_there = ctypes.CDLL(None), threading.Barrier(8)
if not hasattr(libc, "mallopt"):
    sys.exit("no glibc")
def allocate(_):
    all_there.wait()
    libc.malloc(1000)
    all_there.wait()
list(ThreadPoolExecutor(8).map(allocate, range(8)))
libc.fopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w")))
libc.fflush(None)
"""


def test_threads_share_two_of_malloc_s_arenas(monkeypatch):
    counts = []
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)  # usual in containers
    for how in ("shared", "not"):
        run = subprocess.run([sys.executable, "-c", ARENAS, how], capture_output=True, text=True, timeout=PATIENCE)
        if "no glibc" in run.stderr:
            pytest.skip("no glibc here")
        counts.append(run.stdout.count("<heap nr="))
    assert 0 < counts[0] <= 2 < counts[1]
