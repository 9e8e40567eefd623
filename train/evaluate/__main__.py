"""The command line: `python -m train.evaluate` measures adapters beside their bare base."""

from adapter.base.threads import sleep_when_idle

sleep_when_idle()

import argparse
import dataclasses
import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from adapter.base.embedded import BASE
from adapter.base.image_file import open_image
from adapter.base.llama import Base, load_base
from adapter.errors import AdapterError, with_detail
from adapter.files import atomic_write
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import CONFIG, adapter_digest, load_adapter, read_config
from adapter.serve.store import SHIPPED, AdapterStore
from train.evaluate import tasks
from train.evaluate.answerer import Answerer
from train.evaluate.report import code_version, describe_device, format_table
from train.evaluate.tasks import STRENGTHS, Task, unrelated_text
from train.formats.dataset import open_records
from train.formats.record import DataError, Picture, picture_source
from train.formats.scienceqa import problems
from train.formats.sources import read_text
from train.input.examples import Example
from train.precision import DTYPES

_EPILOG = """examples:
  python -m train.evaluate scienceqa ScienceQA/data --adapter runs/mine --out mine.json
  python -m train.evaluate forgetting --adapter pirate
  python -m train.evaluate exact-match test.jsonl --adapter runs/mine --base path/to/llama --precision bf16
  python -m train.evaluate lm-eval --tasks arc_easy,hellaswag --adapter runs/mine
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status."""
    args = _parser().parse_args(arguments)
    try:
        _evaluate(args, sys.argv[1:] if arguments is None else arguments)
    except (AdapterError, OSError, torch.OutOfMemoryError) as error:
        print(f"error: {with_detail(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _evaluate(args: argparse.Namespace, given: Sequence[str]) -> None:
    for option, least in (("limit", 1), ("seed", 0), ("shots", 0), ("max_new_tokens", 1)):
        if (value := getattr(args, option, None)) is not None and value < least:
            raise AdapterError(f"--{option.replace('_', '-')} must be at least {least}, got {value}.")
    if args.out is not None and (args.out.is_dir() or not os.access(args.out.parent, os.W_OK | os.X_OK)):
        raise AdapterError(f"--out {args.out} must be a file in a folder that is there and may be written.")
    folders = [_folder(name) for name in args.adapter]
    task: Task = args.task(args)  # before the base: what is wrong with the data is said at once
    base, precision = _load(args)
    adapters: list[tuple[str, str | None, Adapter | None]] = [("bare base", None, None)]
    names = [folder.resolve().name for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        loaded = load_adapter(folder, base.fingerprint, base.device)
        adapters.append((name if names.count(name) == 1 else str(folder), adapter_digest(folder), loaded))
    print(f"{base.fingerprint.name}, {precision}", file=sys.stderr)
    notes, systems, failed = list(task.notes), [], []
    for name, digest, adapter in adapters:
        answerer = Answerer(base, adapter, form=None)  # its own, as when it is served
        print(f"measuring {name}", file=sys.stderr, flush=True)
        try:
            measured = task.measure(answerer, args.seed)
        except (AdapterError, torch.OutOfMemoryError) as error:
            if adapter is None:  # it is the data
                raise
            failed.append(name)
            notes.append(f"{name} could not be measured: {with_detail(error)}")
            continue
        if adapter is not None and adapter.config.form and measured.answers:
            notes.append(f"{name} is held to its form")
        if adapter is not None and adapter.config.base.weights not in ("", base.fingerprint.weights):
            notes.append(f"{name} was trained on other weights of this shape: {adapter.config.base.name}")
        systems.append(dataclasses.replace(measured, name=name, template=answerer.template, digest=digest))
    templates = ", ".join(f"{system.name} {system.template}" for system in systems)
    kinds = {figure.interval for s in systems for row in s.figures.values() for figure in row.values()}
    notes += [f"templates: {templates}", f"with 95 % intervals ({', '.join(sorted(kinds))})"]
    about = {
        "command": shlex.join(["python", "-m", "train.evaluate", *given]),
        "date": datetime.date.today().isoformat(),
        "commit": code_version(),
        "processor": describe_device(base.device),
        "base": dataclasses.asdict(base.fingerprint),
        "precision": precision,
        "seed": args.seed,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "task": args.name,
        "limit": args.limit,
        "notes": notes,
        "systems": [dataclasses.asdict(system) for system in systems],
    }
    if args.out is not None:
        # A number that is not finite, which JSON has not, is null.
        finite = json.loads(json.dumps(about), parse_constant=lambda _: None)
        with atomic_write(args.out) as temporary:
            temporary.write_text(json.dumps(finite, indent=1) + "\n")  # in ASCII: a name may be no text
    print(format_table(systems))
    print("\n".join(f"- {note}" for note in notes))
    print(f"- {base.fingerprint.name}, {precision}; {about['processor']}; {about['date']}, {about['commit']}")
    if failed:
        raise AdapterError(f"Not measured: {', '.join(failed)}. The notes say why.")


def _folder(name: str) -> Path:
    """The folder of an adapter: a path to it, or a name in runs/ or among the shipped ones. Raises LoadError."""
    path = Path(name).expanduser()
    is_path = (path / CONFIG).is_file() or (path.is_dir() and path.name != name)
    return path if is_path else AdapterStore(Path("runs"), SHIPPED).folder(name)


def _sees(args: argparse.Namespace) -> bool:
    """Whether an adapter that is measured is visual."""
    return any(read_config(_folder(name)).is_visual for name in args.adapter)


def _check_pictures(args: argparse.Namespace, pictures: Iterable[tuple[str, Picture | None]]) -> None:
    """Opens all pictures, if an adapter sees them. Raises DataError, with the place, for one that is none."""
    for where, picture in pictures if _sees(args) else ():
        try:
            if picture is not None:
                open_image(picture_source(picture))
        except AdapterError as error:
            raise DataError(f"{where}: {error}", error.detail) from error


def _load(args: argparse.Namespace) -> tuple[Base, str]:
    """The base, and its precision for the report. Raises LoadError."""
    if args.precision in DTYPES:
        dtype = DTYPES[args.precision]
        base = load_base(args.base, quantization="none", device=args.device, dtype=dtype)
        return base, f"{args.precision} on {base.device}"
    base = load_base(args.base, "auto" if args.precision == "served" else args.precision, args.device)
    name = str(base.model.dtype).removeprefix("torch.") if base.quantization == "none" else base.quantization
    return base, f"{name} on {base.device}" + (", as served" if args.precision == "served" else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m train.evaluate",
        description="Measure adapters beside their bare base: one table, and one JSON file with --out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, dest="name", metavar="TASK")

    def add_task(name: str, make: Callable[[argparse.Namespace], Task], help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(task=make)
        add = command.add_argument
        add("--adapter", action="append", default=[], metavar="NAME|DIR", help="repeatable; none: base alone")
        add("--base", default=BASE, help="embedded name, Hugging Face id, folder or GGUF file")
        add(
            "--precision",
            choices=("served", *DTYPES, "nf4", "int8"),
            default="served",
            help="of the frozen base; served: as the chat serves it here, packed on a CPU",
        )
        add("--device", default="auto")
        add("--limit", type=int, metavar="N", help="so many items at most, drawn evenly (lm-eval: the first)")
        add("--seed", type=int, default=0, help="of the bootstrap")
        add("--out", type=Path, metavar="FILE.json")
        return command

    def scienceqa(args: argparse.Namespace) -> Task:
        found = tasks.drawn(problems(args.folder, args.split), args.limit)
        _check_pictures(args, [(f"problem {problem.id}", problem.image) for problem in found])
        return tasks.ScienceQA(found, args.cue)

    command = add_task("scienceqa", scienceqa, "ScienceQA's nine columns, by the likeliest letter")
    command.add_argument("folder", type=Path, metavar="DIR", help="of problems.json, pid_splits.json and pictures")
    command.add_argument("--split", default="test")
    command.add_argument("--cue", default="", help="text behind each question, as in training")

    def exact_match(args: argparse.Namespace) -> Task:
        records = open_records(args.file, args.format, args.images, args.split, args.config)
        examples = [Example.of(record) for record in tasks.drawn(records, args.limit)]
        _check_pictures(args, [(example.where, example.picture) for example in examples])
        seen, notes = sum(example.picture is not None for example in examples), tasks.ExactMatch.notes
        if _sees(args):
            notes += (f"{seen:,} of {len(examples):,} records have a picture",)
        return tasks.ExactMatch(examples, args.max_new_tokens, notes)

    def harness(args: argparse.Namespace) -> Task:
        from train.evaluate.harness import HarnessTasks  # an extra, and seconds to import

        names = args.tasks.replace(" ", "").split(",")
        made = HarnessTasks(names, args.include, args.limit, args.shots, args.template)
        if _sees(args):
            made.notes += ("visual adapters are asked without pictures: lm-eval's tasks are read as text",)
        return made

    command = add_task(
        "exact-match", exact_match, "greedy answers beside the wanted ones: exact match and token F1"
    )
    command.add_argument("file", type=Path, metavar="DATA", help="any training format")
    command.add_argument("--format", default="auto", help="of training data")
    command.add_argument("--images", type=Path, metavar="DIR", help="folder of the pictures")
    command.add_argument("--split", help="of data that has splits (default: train)")
    command.add_argument("--config", help="of a data set that has several")
    command.add_argument("--max-new-tokens", type=int, default=64)

    command = add_task(
        "forgetting",
        lambda a: tasks.Perplexity(read_text(a.file) if a.file else unrelated_text(), a.limit, STRENGTHS),
        "perplexity of a text against the adapter's strength",
    )
    command.add_argument("file", type=Path, nargs="?", metavar="FILE", help="default: of Python's reference")

    command = add_task("lm-eval", harness, "tasks of EleutherAI's lm-evaluation-harness")
    command.add_argument("--tasks", required=True, metavar="A,B")
    command.add_argument("--include", type=Path, metavar="DIR", help="folder with tasks of your own")
    command.add_argument("--shots", type=int, metavar="N", help="examples before each question")
    command.add_argument("--template", action="store_true", help="put prompts into the adapter's chat template")
    return parser


if __name__ == "__main__":
    sys.exit(main())
