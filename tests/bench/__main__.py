"""`python -m tests.bench [TABLE ...]`: measures and prints tables; without arguments all of them."""

import argparse
import importlib
import os

import torch

from adapter.errors import AdapterError
from tests.bench.programs import ProgramEnded
from train.precision import choose_precision, processor_fields, processor_name

TABLES = ("base", "rounding", "serving", "crowd", "replicas", "training", "options")

# They decide which kernels run: x86's for bf16 and int8 products, then Arm's.
FLAGS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)


def describe_processor() -> str:
    """One line, such as "Xeon … · 2 cores, 2 threads · avx2, avx512f · bf16: this processor … · load 0.1"."""
    fields = processor_fields()
    present = fields.get("flags", fields.get("Features", "")).split()
    flags = ", ".join(flag for flag in FLAGS if flag in present) or "none of the relevant flags"
    precision, reason = choose_precision("auto", torch.device("cpu"))
    parts = [
        processor_name(),
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads",
        flags,
        f"{precision}: {reason}",
    ]
    # These emulate a processor that has less.
    parts += [
        f"{key}={os.environ[key]}" for key in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY") if key in os.environ
    ]
    return " · ".join([*parts, f"load {os.getloadavg()[0]:.1f}"])


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", choices=[*TABLES, []], help="default: all")
    for table in parser.parse_args().tables or TABLES:
        print(f"\n{table}: {describe_processor()}\n", flush=True)
        try:
            importlib.import_module(f"tests.bench.{table}").run()
        except (ImportError, AdapterError, ProgramEnded) as error:
            print(f"without {table}: {error}", flush=True)


if __name__ == "__main__":
    main()
