"""The command line: `python -m adapter COMMAND`, which is list, show NAME, generate [options] PROMPT,
inspect --adapter NAME PROMPT, convert SOURCE --to DIR or base [NAME].
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from adapter.base import memory
from adapter.base.embedded import BASE
from adapter.base.llama import QUANTIZATIONS, base_config, load_base
from adapter.base.template import Message
from adapter.errors import AdapterError, BadInput
from adapter.formats import convert
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import load_adapter
from adapter.method.vision import open_image
from adapter.serve import transcript
from adapter.serve.engine import Engine
from adapter.serve.inspection import format_table
from adapter.serve.request import Answer, GenerationEvent, GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.serve.settings import MAX_STRENGTH, Settings
from adapter.serve.store import SHIPPED, AdapterStore, strip_control_characters


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors that a user can meet become one line on stderr."""
    args = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack a character of the answer
    try:
        for folder in args.adapters or ():
            if folder.is_file():
                raise BadInput(f"--adapters '{folder}' is a file. Name the folder that the adapters are in.")
        args.command(args, AdapterStore(*(args.adapters or ()), SHIPPED))
        sys.stdout.flush()
    except AdapterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        _drop_output()
        return 141  # as of a program that SIGPIPE ends
    except OSError as error:
        _drop_output()
        what = f"'{error.filename}'" if error.filename else "The output"
        print(
            f"error: {what} cannot be read or written ({error.strerror}). Check the room and the rights there.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _drop_output() -> None:
    """What nobody takes: Python would try it once more at the end, and complain."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m adapter", description="Adapters for a frozen LLaMA.")
    parser.add_argument("--adapters", type=Path, action="append", metavar="DIR", help="another adapter folder")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="the adapters that are there")
    listing.set_defaults(command=_list)
    show = commands.add_parser("show", help="one adapter: parameters, size, base, gates")
    show.add_argument("name")
    show.set_defaults(command=_show)
    generate = commands.add_parser("generate", help="answer one prompt", allow_abbrev=False)
    generate.set_defaults(command=_generate)
    generate.add_argument("prompt", nargs="?", metavar="PROMPT")
    generate.add_argument("--prompt-ids", type=_ids, metavar="1,2,3", help="token ids instead of PROMPT")
    generate.add_argument(
        "--messages",
        type=Path,
        metavar="FILE",
        help="a conversation that the page exported, instead of PROMPT: answers its newest message anew",
    )
    generate.add_argument(
        "--adapter", metavar="NAME", help="or user/repo[@revision] on the Hub; default: the frozen base"
    )
    generate.add_argument(
        "--mix",
        type=_weighted,
        action="append",
        default=[],
        metavar="NAME=STRENGTH",
        help="add another adapter's terms",
    )
    generate.add_argument(
        "--compare",
        action="append",
        metavar="NAME",
        help="answer with it too ('base' for none); repeatable",
    )
    _add_prompting(generate)
    defaults = Settings()
    generate.add_argument("--temperature", type=float, default=defaults.temperature, help="0 is greedy")
    generate.add_argument("--top-p", type=float, default=defaults.top_p)
    generate.add_argument("--max-new-tokens", type=int, default=defaults.max_tokens)
    generate.add_argument("--seed", type=int)
    generate.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end the answer before it")
    generate.add_argument("--raw", action="store_true", help="no chat template around PROMPT")
    generate.add_argument("--json", action="store_true", help="one JSON object instead of a stream")
    generate.add_argument("--logprobs", action="store_true", help="with --json: of each token")
    _add_base(generate)
    looking = commands.add_parser("inspect", help="answer greedily, and say what each token of it came from")
    looking.set_defaults(command=_inspect)
    looking.add_argument("prompt", metavar="PROMPT")
    looking.add_argument("--adapter", metavar="NAME", required=True)
    _add_prompting(looking)
    looking.add_argument("--max-new-tokens", type=int, default=48)
    _add_base(looking)
    convert.add_command(commands)
    base = commands.add_parser("base", help="what a base needs in memory, and what there is")
    base.add_argument("name", nargs="?", default=BASE, help="embedded name, Hugging Face id, folder or GGUF file")
    base.set_defaults(command=_base)
    return parser


def _add_prompting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", type=Path, metavar="FILE")
    parser.add_argument(
        "--strength", type=float, default=Settings().strength, help=f"0 (the base) to {MAX_STRENGTH:g}"
    )
    for what in ("layer", "head"):
        parser.add_argument(
            f"--mute-{what}",
            type=int,
            action="append",
            default=[],
            metavar="N",
            help=f"shut the gates of {what} N; repeatable",
        )


def _add_base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", default=BASE, help="embedded name, Hugging Face id, folder or GGUF file")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="auto")
    parser.add_argument("--device", default="auto")


def _ids(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers like 1,2,3, got {text!r}") from None


def _weighted(text: str) -> tuple[str, float]:
    name, _, strength = text.partition("=")
    try:
        return name, float(strength)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected NAME=STRENGTH like pirate=0.6, got {text!r}") from None


def _list(_: argparse.Namespace, store: AdapterStore) -> None:
    for name in store.names():
        try:
            card = store.card(name)
        except AdapterError as error:
            print(f"{name:12} cannot be used: {strip_control_characters(str(error))}")
            continue
        kind = "image" if card.is_visual else "text"
        print(f"{name:12} {kind:6} {card.bytes / 2**20:5.1f} MB  {card.description}")


def _show(args: argparse.Namespace, store: AdapterStore) -> None:
    adapter = load_adapter(store.folder(args.name))
    card = store.card(args.name)
    config = adapter.config
    print(f"{args.name}: {card.description}")
    shape = f"hidden {config.base.hidden_size}, {config.base.num_hidden_layers} layers"
    print(f"base         {config.base.name} ({shape})")
    print(f"parameters   {adapter.num_parameters:,} in {card.bytes / 2**20:.1f} MB")
    print(f"prompts      {config.prompt_length} in each of the topmost {config.insertion_layers} layers")
    print(f"gates        {config.gate_activation}, one a head")
    print(f"template     {config.template}")
    if config.vision is not None:
        vision = config.vision
        print(f"vision       {vision.encoder}, {vision.projection} projection, {vision.channels}")
    print(f"\n{gate_table(adapter)}\n\n{store.card_text(args.name)}")


def _base(args: argparse.Namespace, _: AdapterStore) -> None:
    print(memory.table(args.name, base_config(args.name)))


def gate_table(adapter: Adapter) -> str:
    """The activated gates: a row a layer, a column a head, in hundredths."""
    gates = adapter.activated_gates() * 100
    lines = ["act(g) x 100  " + "".join(f"{f'h{head}':>5}" for head in range(gates.shape[1]))]
    for layer, row in zip(adapter.config.layers, gates.tolist(), strict=True):
        lines.append(f"layer {layer:<8}" + "".join(f"{value:5.0f}" for value in row))
    return "\n".join(lines)


def _generate(args: argparse.Namespace, store: AdapterStore) -> None:
    if [args.prompt, args.prompt_ids, args.messages].count(None) != 2:
        raise AdapterError("Give either PROMPT or --prompt-ids or --messages.")
    with convert.named_in_store(args.adapter, args.base, store) as (args.adapter, store):
        _answer(args, store)


def _answer(args: argparse.Namespace, store: AdapterStore) -> None:
    messages: tuple[Message, ...] = () if args.prompt is None else (Message("user", args.prompt),)
    picture: Path | bytes | None = args.image
    if args.messages is not None:
        messages, shown = _read_messages(args.messages)
        named = [name for name in (args.adapter, *(name for name, _ in args.mix)) if name is not None]
        if picture is None and any(store.card(name).is_visual for name in named):
            picture = shown
    request = GenerationRequest(
        messages=messages,
        adapter=args.adapter,
        image=None if picture is None else open_image(picture),
        strength=args.strength,
        sampling=SamplingParams(args.temperature, args.top_p, args.max_new_tokens, args.seed),
        raw=args.raw,
        prompt_ids=args.prompt_ids,
        mix=tuple(args.mix),
        mute_layers=tuple(args.mute_layer),
        mute_heads=tuple(args.mute_head),
        stop=tuple(args.stop),
    )
    names = [args.adapter, *(None if name == "base" else name for name in args.compare or ())]
    for name in (*names, *(name for name, _ in args.mix)):
        if name is not None:
            store.folder(name)  # an unknown name should not cost the loading of a base
    base = load_base(args.base, args.quantization, args.device)
    print(base.describe(), file=sys.stderr)
    engine = Engine(base, store)
    try:
        if args.compare:
            _print_compared(engine.compare(request, names), names, args)
            return
        events = []
        for event in engine.submit(request):
            events.append(event)
            if not args.json:
                print(event.text, end="", flush=True)
        print(json.dumps(_as_dict(events, args.logprobs), ensure_ascii=False) if args.json else "")
    finally:
        engine.close()


def _read_messages(file: Path) -> tuple[tuple[Message, ...], bytes | None]:
    try:
        return transcript.read(file.read_bytes()).to_answer()
    except OSError as error:
        raise BadInput(f"'{file}' cannot be read ({error.strerror}). Check the path and its rights.") from error


def _print_compared(answers: list[Answer], names: list[str | None], args: argparse.Namespace) -> None:
    """One answer under another, or one JSON object by name."""
    found = {name or "base": list(answer) for name, answer in zip(names, answers, strict=True)}
    if args.json:
        print(json.dumps({n: _as_dict(e, args.logprobs) for n, e in found.items()}, ensure_ascii=False))
        return
    for name, events in found.items():
        print(f"{name}:\n{''.join(event.text for event in events)}\n")


def _inspect(args: argparse.Namespace, store: AdapterStore) -> None:
    image = None if args.image is None else open_image(args.image)
    greedy = SamplingParams(temperature=0, max_new_tokens=args.max_new_tokens)
    with convert.named_in_store(args.adapter, args.base, store) as (name, there):
        request = GenerationRequest(
            (Message("user", args.prompt),),
            name,
            image,
            args.strength,
            greedy,
            mute_layers=tuple(args.mute_layer),
            mute_heads=tuple(args.mute_head),
        )
        assert name is not None
        there.folder(name)  # an unknown name should not cost the loading of a base
        base = load_base(args.base, args.quantization, args.device)
        print(base.describe(), file=sys.stderr)
        with closing(Engine(base, there)) as engine:
            ids = [event.token_id for event in engine.submit(request) if event.token_id is not None]
            print(format_table(engine.inspect(request, ids)))


def _as_dict(events: list[GenerationEvent], logprobs: bool) -> dict[str, object]:
    stats = events[-1].stats
    assert stats is not None
    steps = [event for event in events if event.token_id is not None]
    answer: dict[str, object] = {
        "text": "".join(event.text for event in events),
        "token_ids": [event.token_id for event in steps],
        "finish_reason": events[-1].finish_reason,
        "prompt_tokens": stats.prompt_tokens,
        "cached_tokens": stats.cached_tokens,
        "new_tokens": stats.new_tokens,
        "prefill_s": round(stats.prefill_s, 4),
        "decode_s": round(stats.decode_s, 4),
        "tokens_per_s": round(stats.tokens_per_s, 2),
    }
    if logprobs:
        answer["logprobs"] = [event.logprob for event in steps]
    return answer


if __name__ == "__main__":
    sys.exit(main())
