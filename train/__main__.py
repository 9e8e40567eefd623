"""The command line: `python -m train RECIPE` trains an adapter, measures it and writes its card."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from adapter.checkpoint import CARD, load_adapter, save_adapter
from adapter.embedded import BASE
from adapter.errors import AdapterError
from adapter.llama import load_base
from train.card import write_card
from train.loop import new_adapter, train
from train.recipe import load_recipe, names
from train.score import Answerer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = _parser().parse_args(arguments)
    try:
        _run(args)
    except (AdapterError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; the last save is in {args.out or Path('runs') / args.recipe}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m train", description="Train an adapter for a frozen LLaMA.")
    parser.add_argument("recipe", metavar="RECIPE", help=f"one of: {', '.join(names())}")
    parser.add_argument("--out", type=Path, help="folder of the adapter (default: runs/RECIPE)")
    parser.add_argument("--score", action="store_true", help="do not train: measure the adapter in --out again")
    parser.add_argument("--base", default=BASE, help="embedded name, Hugging Face id or folder")
    parser.add_argument("--device", default="auto")
    for name, kind in (("steps", int), ("batch_size", int), ("lr", float), ("gate_lr", float), ("seed", int)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="instead of the recipe's")
    return parser


def _run(args: argparse.Namespace) -> None:
    folder: Path = args.out or Path("runs") / args.recipe
    if args.recipe not in names():
        raise AdapterError(f"There is no recipe '{args.recipe}'. Choose one of: {', '.join(names())}.")
    overrides = {
        name: getattr(args, name)
        for name in ("steps", "batch_size", "lr", "gate_lr", "seed")
        if getattr(args, name) is not None
    }
    served = load_base(args.base, device=args.device)
    recipe = load_recipe(args.recipe, served)
    config = dataclasses.replace(recipe.config, **overrides)
    if args.score:
        adapter = load_adapter(folder, served.fingerprint, served.device)
        loss = _recorded_loss(folder / CARD)
    else:
        exact = load_base(args.base, quantization="none", device=args.device)
        adapter = new_adapter(config, exact)
        recipe.prepare(adapter)
        adapter, loss = train(config, exact, recipe.examples, folder, adapter)
        del exact
    print(f"measuring {config.name} on {served.describe()}")
    scores = recipe.scores(Answerer(served, adapter))
    base_scores = recipe.scores(Answerer(served, None))
    for name, value in scores.items():
        print(f"{name:45} {value:8.3f}   bare base {base_scores.get(name, float('nan')):8.3f}")
    served_as = f"{served.quantization} on {served.device.type}"
    save_adapter(adapter, folder, write_card(adapter, config, recipe.data, loss, scores, base_scores, served_as))


def _recorded_loss(card: Path) -> float:
    """The held-out loss that training wrote into the card; not a number if there is none."""
    found = (
        re.search(r"Held-out loss at the end of training: ([\d.]+)", card.read_text()) if card.exists() else None
    )
    return float(found.group(1).rstrip(".")) if found else float("nan")


if __name__ == "__main__":
    sys.exit(main())
