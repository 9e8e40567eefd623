"""OpenVINO on the same base, a batch in lockstep: int4 weights and int8 activations, both in groups of 32."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.programs import Run, Task, serve, start_peer

GROUP = "32"


def start_openvino() -> Run:
    requirements = ("openvino", "nncf", "optimum-intel")
    return start_peer("openvino", "tests.bench.openvino_peer", *requirements, prepare=_export)


def _export(folder: Path) -> None:
    from adapter.base.embedded import base_folder

    command = [str(folder / "bin" / "optimum-cli"), "export", "openvino", "--model", str(base_folder())]
    task = ["--task", "text-generation-with-past"]
    weights = ["--weight-format", "int4", "--sym", "--group-size", GROUP, "--ratio", "1.0"]
    # It would find this project's packages by that.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [*command, *task, *weights, str(folder / "model")]
    subprocess.run(command, check=True, stdout=sys.stderr, cwd=folder, env=environment)


class OpenVino:
    """Its own defaults for one answer as early as possible, apart from the threads: all cores."""

    def __init__(self, file: Path, threads: int) -> None:
        import openvino

        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP,
            "INFERENCE_NUM_THREADS": str(threads),
        }
        self._request = openvino.Core().compile_model(file, "CPU", settings).create_infer_request()

    def run(self, task: Task) -> tuple[float, int]:
        """As Run. It goes on after an end token; the prompts are cut to the shortest."""
        import numpy

        rows, length = len(task.prompts), min(map(len, task.prompts))
        ids = numpy.array([prompt[-length:] for prompt in task.prompts])
        self._request.reset_state()
        past = 0
        start = time.perf_counter()
        for _ in range(task.tokens):
            whole = past + ids.shape[1]
            self._request.infer(
                {
                    "input_ids": ids,
                    "attention_mask": numpy.ones((rows, whole), int),
                    "position_ids": numpy.arange(past, whole) + numpy.zeros((rows, 1), int),
                    "beam_idx": numpy.arange(rows, dtype=numpy.int32),
                }
            )
            past, ids = whole, self._request.get_output_tensor(0).data[:, -1].argmax(-1)[:, None]
        return time.perf_counter() - start, rows * task.tokens


def main() -> None:
    folder, threads = sys.argv[1:]
    serve(OpenVino(Path(folder) / "model" / "openvino_model.xml", int(threads)).run)


if __name__ == "__main__":
    main()
