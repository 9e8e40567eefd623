"""The command line: `python -m train` trains an adapter by a recipe of the project or on the user's files."""

import logging

from adapter.base.threads import sleep_when_idle

sleep_when_idle()

import argparse
import contextlib
import dataclasses
import math
import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from adapter.base.embedded import BASE
from adapter.base.gguf_file import find_gguf
from adapter.base.llama import Base, base_config, base_fingerprint, load_base, load_tokenizer
from adapter.errors import AdapterError, first_line, with_detail
from adapter.files import atomic_write
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import CARD, adapter_digest, check_base, load_adapter, read_config, save_adapter
from adapter.method.config import BaseFingerprint, base_label
from adapter.serve.form import NO_FORM
from train.card import Measured, commit, with_sealed_scores, write_card
from train.config import DATA, Precision, RecipeFile, check_run, read_recipe, recipe_text
from train.evaluate.answerer import Answerer, Conversation
from train.evaluate.intervals import Figure
from train.evaluate.report import describe_device
from train.evaluate.tasks import Perplexity, unrelated_text
from train.input.data_check import make_report
from train.input.examples import SkippedExamples
from train.input.features import FeatureCache
from train.input.rows import Tokeniser
from train.input.split import FileExamples
from train.job import Job, Outcome, Stopped, say
from train.precision import choose_precision, load_to_train
from train.processes import check_same, in_all, in_main
from train.recipes import recipe_names
from train.recipes.recipe import MeasuredSets, load_recipe, project_recipe, record_scoring
from train.run_folder import RunFolder, run_identity
from train.run_setup import check_pictures, complete, start_adapter, with_encoder
from train.tracker import check_tracker

_EPILOG = """examples:
  python -m train pirate steps=50
  python -m train --config recipe.yaml lr=0.005
  python -m train data=alpaca.json preset=small name=helper
  python -m train data=pictures/ vision.projection=global preset=small name=captioner --check
  accelerate launch --num_processes 2 -m train --config recipe.yaml
"""
_NO_MEMORY = "Out of memory. Raise accumulate, set gradient_checkpointing: true, or lower max_length."
_FAILED = "The trainer failed; its log on the server has the details. Press “Go on” to try again."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status."""
    args = _parser().parse_intermixed_args(arguments)
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    tell_page: Callable[[str], None] = print if args.for_page else lambda _: None
    try:
        _run(args)
    except Stopped as stopped:
        print(f"\n{with_detail(stopped)}", file=sys.stderr)
        tell_page(str(stopped))
        return 130
    except (AdapterError, OSError, ValueError) as error:
        print(f"error: {with_detail(error)}", file=sys.stderr)
        tell_page(f"error: {error if isinstance(error, AdapterError) else _FAILED}")
        return 1
    except (torch.OutOfMemoryError, MemoryError) as error:
        print(f"error: {_NO_MEMORY} ({first_line(error)})", file=sys.stderr)
        tell_page(f"error: {_NO_MEMORY}")
        return 1
    except Exception:
        tell_page(f"error: {_FAILED}")
        raise
    except KeyboardInterrupt:
        print("\nstopped at once; --resume goes on from the last save, if there is one", file=sys.stderr)
        return 130
    if torch.distributed.is_initialized():  # after a failure it would wait for the others, who wait for this one
        torch.distributed.destroy_process_group()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m train",
        description="Train an adapter for a frozen LLaMA: by a recipe of this project, or on your own files.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    recipes = f"recipes: {', '.join(recipe_names())}"
    parser.add_argument("words", nargs="*", metavar="RECIPE | KEY=VALUE", help=recipes)
    parser.add_argument("--config", type=Path, metavar="FILE", help="a recipe of your own, as YAML")
    parser.add_argument("--out", type=Path, help="folder of the run and its adapter (default: runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished run in --out")
    parser.add_argument("--check", action="store_true", help="do not train: read all data and say what is wrong")
    parser.add_argument(
        "--score", action="store_true", help="do not train: measure the adapter in --out on the sealed test sets"
    )
    parser.add_argument("--base", help="embedded name, Hugging Face id, folder or GGUF file")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    # What is written to stdout is then shown in a browser: sentences for anybody. The rest goes to stderr.
    parser.add_argument("--for-page", action="store_true", help=argparse.SUPPRESS)
    return parser


def _run(args: argparse.Namespace) -> None:
    assignments = [word for word in args.words if "=" in word]
    recipes = [word for word in args.words if "=" not in word]
    on_files = args.config is not None or (bool(assignments) and not recipes)
    if args.config is not None and recipes:
        raise AdapterError(f"'{recipes[0]}' is not key=value.")
    if not on_files and not (len(recipes) == 1 and recipes[0] in recipe_names()):
        unknown = f"There is no recipe '{' '.join(recipes)}'. " if recipes else ""
        raise AdapterError(f"{unknown}Choose one of: {', '.join(recipe_names())}, or train on files: see --help.")
    if on_files and args.score:
        raise AdapterError("--score is for recipes of the project, which have sealed test sets. Leave it out.")
    if not on_files and args.check:
        raise AdapterError("--check is for files of your own. Leave it out.")
    name = None if on_files else recipes[0]
    settings = [*assignments, *([f"base={args.base}"] if args.base else [])]
    args.words = [*recipes, *settings]  # which the card names

    def read() -> RecipeFile:
        if name is not None:
            return project_recipe(name, settings)
        recipe = read_recipe(args.config, settings)
        check_run(recipe)
        return recipe

    if args.check:
        _check_files(read(), args.out)
    elif name is not None and args.score:
        _score(name, assignments, args)
    else:
        accelerator = _accelerator(args)
        recipe = in_all(accelerator, read)
        with contextlib.closing(RunFolder(args.out or Path("runs") / recipe.train.name)) as folder:
            _train(recipe, name, folder, args, accelerator)


def _train(
    recipe: RecipeFile, name: str | None, folder: RunFolder, args: argparse.Namespace, accelerator: Accelerator
) -> None:
    """name: of a recipe of the project, whose development sets measure the adapter; None for a run on files."""
    log: Callable[[str], None] = say if accelerator.is_main_process else lambda _: None
    skipped, device = SkippedExamples(log), str(accelerator.device)

    def open_folder() -> None:
        own = not args.for_page and args.config is not None  # the page's lies where the run writes it
        if own and args.config.resolve() == (folder.path / "recipe.yaml").resolve():
            raise AdapterError(
                "The run would write over the recipe that --config names. Give a copy of it from another folder."
            )
        folder.open(args.resume)
        check_tracker(recipe.train.tracker)

    def read_data() -> tuple[RecipeFile, FileExamples | None, str]:
        digest = _start_digest(recipe.start_from, folder.path, known_base) if recipe.start_from else ""
        whole = complete(recipe, tokenizer, base_config(recipe.base), log)
        if made is not None:
            if whole.data or whole.train.epochs or whole.train.history or whole.train.name != name:
                raise AdapterError(f"'{name}' makes its examples itself: leave out data, name, epochs, history.")
            return whole, None, digest
        log(f"reading {', '.join(Path(part.path).name for part in whole.data)}")
        found = FileExamples(whole.data, whole.train, skipped)
        log(found.description)
        check_pictures(whole, found, log)
        return whole, found, digest

    def choose() -> tuple[Precision, str]:
        """A resumed run keeps the precision that was chosen at its start."""
        if args.resume:
            started = folder.load(run_identity(config, known_base, inputs))["identity"]["precision"]
            if recipe.precision == "auto":
                return started, "as when the run started"
        return choose_precision(recipe.precision, accelerator.device)

    # What can be refused is refused before minutes of loading. What one machine lacks, all are told.
    in_main(accelerator, open_folder)
    tokenizer, known_base = in_all(accelerator, lambda: _known_base(recipe.base), in_turn=True)
    project = None if name is None else in_all(accelerator, lambda: load_recipe(name, tokenizer), in_turn=True)
    made = None if project is None else project.examples
    if made is not None and recipe.start_from is None:
        recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, vision=made.vision))
    recipe, files, start_from = in_all(accelerator, read_data)
    config = recipe.train if files is None else files.with_steps(recipe.train)
    examples = made or files
    assert examples is not None
    asked = "" if recipe.precision == "auto" else recipe.precision
    inputs = {"data": examples.digest, "precision": asked, "start_from": start_from}
    check_same(run_identity(config, None, inputs))
    precision, reason = in_main(accelerator, choose)
    log(f"precision {precision}: {reason}")
    inputs["precision"] = precision
    recipe = dataclasses.replace(recipe, precision=precision)  # recipe.yaml records what was used
    encoder = None
    if files and config.vision and (files.pictures or any(one and one.picture for one in files("validation"))):
        anew = recipe.start_from is None
        config, encoder = in_all(accelerator, lambda: with_encoder(config, accelerator.device, anew), in_turn=True)
    log(f"loading {base_label(recipe.base)}")
    base = in_all(accelerator, lambda: load_to_train(recipe.base, precision, device), in_turn=True)
    feature_cache = None
    if encoder is not None and config.vision is not None:
        encoder.compute_in(base.model.dtype)
        vision = config.vision
        feature_cache = in_all(accelerator, lambda: FeatureCache.on_disk(encoder, vision, skipped, log))
    adapter = start_adapter(recipe, config, base)
    if made is not None and recipe.start_from is None:
        made.prepare(adapter)

    def finish(adapter: Adapter, outcome: Outcome) -> None:
        scores, command, data = None, [], ""
        if files is not None:
            passed_over = f"; {len(skipped.places):,} were passed over" * bool(skipped.places)
            data = f"Trained on rows drawn from {files.learnt:,} records of `{files.name}`{passed_over}."
            with atomic_write(folder.path / "recipe.yaml") as temporary:
                temporary.write_text(recipe_text(recipe), encoding="utf-8")
        if project is not None and name is not None:
            served = load_base(recipe.base, device=device)
            scores = _measure(config.name, project.told, project.development, served, adapter)
            own = project_recipe(name, [])
            # Not a user's name, data or adapter.
            if (own.train.name, own.data, own.start_from) == (config.name, recipe.data, recipe.start_from):
                data, command = project.data, args.words
        several = f", the first of {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
        on = f"{precision} on {describe_device(base.device)}{several}"
        card = write_card(adapter, config, data, outcome, on, scores, command, start_from)
        save_adapter(adapter, folder.path, card)
        if math.isfinite(outcome.loss):
            say(f"held-out loss {outcome.loss:.3f}")

    Job(
        config, base, examples, folder, adapter, feature_cache, skipped,
        resume=args.resume, accelerator=accelerator, inputs=inputs, on_finish=finish,
    ).run()  # fmt: skip
    if accelerator.is_main_process:
        if args.for_page:  # a visitor's, who may have left; a run that is ended before can go on
            shutil.rmtree(folder.path / DATA, ignore_errors=True)
        print(f"the adapter is in {folder.path}", file=sys.stderr)


def _known_base(name: str) -> tuple[Any, BaseFingerprint | None]:
    """The tokenizer, and what the base is: a GGUF file is only known once it is converted."""
    return load_tokenizer(name), None if find_gguf(name) is not None else base_fingerprint(name)


def _start_digest(start_from: str, folder: Path, base: BaseFingerprint | None) -> str:
    """The digest of the adapter to start from. Raises LoadError if there is none, or it is for another base."""
    start = Path(start_from)
    if folder.resolve() == start.resolve():
        raise AdapterError(f"start_from is '{start.name}', which this run would write over. Give another --out.")
    if base is not None:
        check_base(read_config(start), start.name, base)
    return adapter_digest(start)


def _check_files(recipe: RecipeFile, out: Path | None) -> None:
    check_tracker(recipe.train.tracker)
    tokenizer, base = _known_base(recipe.base)
    if recipe.start_from:
        _start_digest(recipe.start_from, out or Path("runs") / recipe.train.name, base)
    sizes = base_config(recipe.base)
    recipe = complete(recipe, tokenizer, sizes, print)
    examples = FileExamples(recipe.data, recipe.train, SkippedExamples(lambda _: None))
    check_pictures(recipe, examples, print)
    with_encoder(recipe.train, torch.device("cpu"), recipe.start_from is None)
    config = examples.with_steps(recipe.train)
    tokeniser = Tokeniser(tokenizer, config.template, config.max_length, vocab_size=sizes.vocab_size)
    clean = True
    files = dict.fromkeys([*(part.records for part in examples.parts), *(of for of, _ in examples.held_out)])
    for records in files:
        report = make_report(records, tokeniser, config.max_length, images=config.vision is not None)
        print(*([f"{records.name}:"] if len(files) > 1 else []), report, sep="\n")
        clean &= report.clean
    print(examples.description)
    print(f"a run would take {config.steps:,} steps of up to {config.batch_size} rows")
    if not clean:
        raise AdapterError("Not everything can be learnt from, see above. Training passes over what is broken.")


# Recipes of the project.


def _score(name: str, assignments: Sequence[str], args: argparse.Namespace) -> None:
    folder: Path = args.out or Path("runs") / name
    if assignments:
        names = [assignment.partition("=")[0] for assignment in assignments]
        raise AdapterError("--score trains nothing: leave out " + ", ".join(names) + ".")
    accelerator = _accelerator(args)
    if not accelerator.is_main_process:
        return
    served = load_base(args.base or BASE, device=str(accelerator.device))
    recipe = load_recipe(name, served.tokenizer)
    adapter, file = load_adapter(folder, served.fingerprint, served.device), folder / CARD

    def measure(answerer: Answerer) -> dict[str, Figure]:
        if answerer.told:  # which a text does not follow
            return recipe.sealed.measure(answerer)
        version = ".".join(platform.python_version_tuple()[:2])  # another version of Python has another text
        *_, forgets = Perplexity(unrelated_text(), strengths=(0.0, 1.0)).measure(answerer, 0).figures.values()
        text = f"Python {version}'s language reference"
        return recipe.sealed.measure(answerer) | {f"{what}, {text}": forgets[what] for what in forgets}

    digest, code = adapter_digest(folder), commit()  # before the ledger is changed
    scored = record_scoring(name, recipe.sealed, digest, code.removeprefix("commit "))
    scores = _measure(name, recipe.told, dataclasses.replace(recipe.sealed, measure=measure), served, adapter)
    text = file.read_text(encoding="utf-8") if file.exists() else f"# {folder.name}\n"
    with atomic_write(file) as temporary:
        temporary.write_text(with_sealed_scores(text, scores, digest, scored, code), encoding="utf-8")


def _measure(name: str, told: Conversation, sets: MeasuredSets, served: Base, adapter: Adapter) -> Measured:
    """Scores of the adapter, of the bare base, and of the base that is told by turns before each conversation."""
    print(f"measuring {name} on {served.describe()}")
    told_base = Answerer(served, told=told, form=adapter.config.form or NO_FORM)
    systems = {name: Answerer(served, adapter, form=None), "bare base": Answerer(served), "base, told": told_base}
    scores = {system: sets.measure(answerer) for system, answerer in systems.items()}
    for what in scores[name]:
        values = (f"{system} {found[what].value:8.3f}" for system, found in scores.items() if what in found)
        print(f"{what:45}", *values, sep="   ")
    return Measured(scores, f"{served.quantization} on {describe_device(served.device)}", sets.describe())


def _accelerator(args: argparse.Namespace) -> Accelerator:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise AdapterError("This machine has no CUDA device. Use --device cpu or auto.")
    if os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp8":
        raise AdapterError("This trainer has no fp8. Launch it with --mixed_precision bf16, fp16 or no.")
    # "no": the frozen base is in the precision of the recipe, and what it trains is in fp32.
    cpu = args.device == "cpu" or not torch.cuda.is_available()
    # NCCL's ten minutes are too few where the first process fetches or converts the base for the others.
    patient = InitProcessGroupKwargs(timeout=timedelta(hours=2))
    return Accelerator(mixed_precision="no", cpu=cpu, kwargs_handlers=[patient])


if __name__ == "__main__":
    sys.exit(main())
