"""The command line `python -m adapter`: list, show, generate, inspect, convert and base."""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, get_args

from adapter.base.threads import sleep_when_idle

sleep_when_idle()

from adapter.base import memory
from adapter.base.embedded import BASE
from adapter.base.image_file import open_image
from adapter.base.llama import base_config, load_base
from adapter.base.template import Message
from adapter.errors import AdapterError, BadInput, first_line, with_detail
from adapter.formats.convert import CONVERTIBLE, FORMATS, OURS, Options, convert, open_source
from adapter.method.checkpoint import load_adapter, save_adapter
from adapter.method.config import GATE_ACTIVATIONS, TEMPLATES, base_label
from adapter.serve.engine import Engine
from adapter.serve.form import NO_FORM, json_schema_form
from adapter.serve.inspection import format_table
from adapter.serve.request import GenerationEvent, GenerationRequest, SamplingParams
from adapter.serve.settings import SAMPLING, Others, Settings
from adapter.serve.store import SHIPPED, AdapterStore
from adapter.server import transcript
from adapter.server.deployment import add_adapters, add_quantization


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors that a user can meet become one line on stderr."""
    args = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack a character of the answer
    try:
        args.command(args, AdapterStore(*args.adapters, SHIPPED))
        sys.stdout.flush()
    except AdapterError as error:
        print(f"error: {with_detail(error)}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        _discard_output()
        return 141  # as of a program that SIGPIPE ends
    except OSError as error:
        _discard_output()
        what = f"'{error.filename}' cannot" if error.filename else "The output cannot"
        print(f"error: {what} be read or written ({error.strerror}). Check the path and room.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _discard_output() -> None:
    """Send the rest of stdout nowhere: Python would flush it again at exit, and complain."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m adapter", description="Adapters for a frozen LLaMA.")
    add_adapters(parser, "another adapter folder")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add_command(name: str, function: Any, help: str, **options: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, **options)
        command.set_defaults(command=function)
        return command

    add_command("list", _list, "the adapters that are there")
    add_command("show", _show, "one adapter: parameters, size, base, gates").add_argument("name")
    _add_generate(add_command("generate", _generate, "answer one prompt", allow_abbrev=False))
    inspect = partial(_generate, inspect=True)
    _add_generate(add_command("inspect", inspect, "answer, and say what each token came from", allow_abbrev=False))
    base = add_command("base", _base, "the memory that a base takes in each quantisation")
    base.add_argument("name", help="name, Hugging Face id, folder or GGUF file")
    add = add_command("convert", _convert, "another program's adapter into ours, or ours into theirs").add_argument
    add("source", metavar="SOURCE", help=f"{CONVERTIBLE}, or user/repo[@revision] on the Hub")
    add("--to", type=Path, required=True, metavar="DIR", help="a new folder")
    add("--to-format", choices=FORMATS, default=OURS)
    add("--base", help=f"that it was made for: name, Hugging Face id or folder (default {BASE})")
    add("--gate-activation", choices=GATE_ACTIVATIONS, help="of the source, where its format leaves it open")
    add("--template", choices=TEMPLATES, help="that it was trained with")
    add("--layers", type=int, metavar="L", help="insertion layers of an official V1 file")
    return parser


def _add_generate(parser: argparse.ArgumentParser) -> None:
    add, defaults, fields = parser.add_argument, Settings(), Settings.model_fields
    add("prompt", nargs="?", metavar="PROMPT")
    help = "a conversation that the page exported, instead of PROMPT: answers its newest message anew"
    add("--messages", type=Path, metavar="FILE", help=help)
    add("--others", choices=get_args(Others), default=defaults.others, help=fields["others"].description)
    add("--adapter", metavar="NAME", help="or user/repo[@revision] on the Hub; default: the frozen base")
    help = "add another adapter's terms"
    add("--mix", type=name_and_strength, action="append", default=[], metavar="NAME=STRENGTH", help=help)
    add("--image", type=Path, metavar="FILE")
    help = "multiply a gate by 0 (shut) to 2, or all of a layer (LAYER=FACTOR); repeatable"
    add("--gate", type=gate_factor, action="append", default=[], metavar="LAYER,HEAD=FACTOR", help=help)
    for name in ("strength", *SAMPLING[:-1]):  # seed has no default
        default, about = fields[name].default, f"{fields[name].description} (default {fields[name].default})"
        add(f"--{name.replace('_', '-')}", type=type(default), default=default, help=about)
    add("--max-new-tokens", type=int, default=defaults.max_tokens, help=f"(default {defaults.max_tokens})")
    add("--seed", type=int)
    add("--stop", action="append", default=[], metavar="TEXT", help="end the answer before it")
    add("--system", default="", metavar="TEXT", help=fields["system"].description)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--schema", type=Path, metavar="FILE", help="a JSON schema that the answer belongs to")
    form.add_argument("--no-form", action="store_true", help="do not hold the answer to the adapter's form")
    add("--raw", action="store_true", help="no chat template around PROMPT")
    add("--json", action="store_true", help="one JSON object instead of a stream")
    add("--logprobs", action="store_true", help="with --json: of each token")
    help = "of each token (with --json) and of the N likeliest"
    add("--top-logprobs", type=int, default=0, metavar="N", help=help)
    add("--base", default=BASE, help="embedded name, Hugging Face id, folder or GGUF file")
    add_quantization(parser)
    add("--device", default="auto")


# What argparse makes of a value; it names the function where one is wrong.


def name_and_strength(text: str) -> tuple[str, float]:
    name, _, strength = text.partition("=")
    return name, float(strength)


def gate_factor(text: str) -> tuple[int, int | None, float]:
    gate, _, factor = text.partition("=")
    layer, *head = map(int, gate.split(",", 1))
    return layer, head[0] if head else None, float(factor)


def _list(_: argparse.Namespace, store: AdapterStore) -> None:
    for name in store.names():
        try:
            card = store.card(name)
        except AdapterError as error:
            print(f"{name:12} cannot be used: {with_detail(error)}")
            continue
        kind = "visual" if card.config.is_visual else "text"
        print(f"{name:12} {kind:6} {card.bytes / 1e6:5.1f} MB  {card.description}")


def _show(args: argparse.Namespace, store: AdapterStore) -> None:
    adapter = load_adapter(store.folder(args.name))
    card = store.card(args.name)
    config = adapter.config
    print(f"{args.name}: {card.description}")
    shape = f"hidden {config.base.hidden_size}, {config.base.num_hidden_layers} layers"
    print(f"base         {config.base.name} ({shape})")
    print(f"parameters   {adapter.num_parameters:,} in {card.bytes / 1e6:.1f} MB")
    print(f"prompts      {config.prompt_length} in each of the topmost {config.insertion_layers} layers")
    print(f"gates        {config.gate_activation}, one a head")
    print(f"template     {config.template}")
    if config.vision is not None:
        vision = config.vision
        print(f"vision       {vision.encoder}, {vision.projection} projection, {vision.channels}")
    gates = adapter.activated_gates() * 100  # a line for each layer, a column for each head
    print("\nact(g) x 100  " + "".join(f"{f'h{head}':>5}" for head in range(gates.shape[1])))
    for layer, row in zip(config.layers, gates.tolist(), strict=True):
        print(f"layer {layer:<8}" + "".join(f"{value:5.0f}" for value in row))
    print(f"\n{store.card_text(args.name)}")


def _convert(args: argparse.Namespace, _: AdapterStore) -> None:
    options = Options(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Options)})
    adapter, notes = convert(args.source, args.to, options)
    config = adapter.config
    print(
        f"{args.to}: {options.to_format}, {adapter.num_parameters:,} parameters for {config.base.name}, "
        f"{config.prompt_length} prompts in each of {config.insertion_layers} layers, "
        f"{config.gate_activation} gates, template {config.template}"
    )
    for note in notes:
        print(f"note: {note}")


def _base(args: argparse.Namespace, _: AdapterStore) -> None:
    print(memory.table(base_label(args.name), base_config(args.name)))


def _generate(args: argparse.Namespace, store: AdapterStore, inspect: bool = False) -> None:
    if (args.prompt is None) == (args.messages is None):
        raise AdapterError("Give either PROMPT or --messages.")
    with contextlib.ExitStack() as until_end:
        if args.adapter is not None and "/" in args.adapter:  # a folder or `user/repo`, converted for this run
            opened = open_source(args.adapter, Options(base=args.base))
            print(f"adapter: {opened.name}, {opened.format} format", file=sys.stderr)
            for row, why in opened.assumed.items():
                print(f"note: {row} (assumed): {why}", file=sys.stderr)
            folder = Path(until_end.enter_context(tempfile.TemporaryDirectory()))
            args.adapter = opened.name.replace("/", "--").lstrip(".")
            save_adapter(opened.adapter, folder / args.adapter)
            store = AdapterStore(folder, *store.folders)
        request = _request(args, store)
        for name, _ in request.parts:
            store.folder(name)  # raises for one that is not there, before the base is loaded
        base = load_base(args.base, args.quantization, args.device, keep_packed=args.keep_packed)
        print(base.describe(), file=sys.stderr)
        engine = until_end.enter_context(closing(Engine(base, store)))
        events = []
        for event in engine.submit(request):
            events.append(event)
            if not args.json:
                print(event.text, end="", flush=True)
        print(json.dumps(_to_dict(events, args.logprobs)) if args.json else "")
        if inspect:
            ids = [event.token_id for event in events if event.token_id is not None]
            print("", format_table(engine.inspect(request, ids)), sep="\n", file=sys.stderr if args.json else None)


def _request(args: argparse.Namespace, store: AdapterStore) -> GenerationRequest:
    messages: tuple[Message, ...] = () if args.prompt is None else (Message("user", args.prompt),)
    image: Path | bytes | None = args.image
    if args.messages is not None:
        read = transcript.read(args.messages.read_bytes())
        if read.dropped:
            print(f"note: left out, for a conversation holds no more: {read.dropped}", file=sys.stderr)
        messages, picture = read.to_answer()
        names = [name for name in (args.adapter, *(name for name, _ in args.mix)) if name is not None]
        if image is None and any(store.card(name).config.is_visual for name in names):
            image = picture
    if args.system:
        messages = (Message("system", args.system), *messages)
    sampling = (*SAMPLING, "max_new_tokens")
    return GenerationRequest(
        messages=messages,
        adapter=args.adapter,
        image=None if image is None else open_image(image),
        strength=args.strength,
        sampling=SamplingParams(**{name: getattr(args, name) for name in sampling}),
        raw=args.raw,
        mix=tuple(args.mix),
        gates=tuple(args.gate),
        stop=tuple(args.stop),
        others=args.others,
        top_logprobs=args.top_logprobs,
        form=NO_FORM if args.no_form else None if args.schema is None else _schema_form(args.schema),
    )


def _schema_form(file: Path) -> str:
    try:
        schema = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        what = f"'{file.name}' is not JSON that can be read. Give a file with a JSON schema."
        raise BadInput(what, f"{file}: {first_line(error)}") from error
    if not isinstance(schema, dict):
        raise BadInput(f'\'{file.name}\' is no JSON schema: it must be an object, such as {{"type": "object"}}.')
    return json_schema_form(schema)


def _to_dict(events: list[GenerationEvent], logprobs: bool) -> dict[str, object]:
    stats = events[-1].stats
    assert stats is not None
    steps = [event for event in events if event.token_id is not None]
    chosen = [event.choices for event in steps if event.choices]
    answer: dict[str, object] = {
        "text": "".join(event.text for event in events),
        "token_ids": [event.token_id for event in steps],
        "finish_reason": events[-1].finish_reason,
        **{name: getattr(stats, name) for name in ("prompt_tokens", "cached_tokens", "new_tokens")},
        "prefill_s": round(stats.prefill_s, 4),
        "decode_s": round(stats.decode_s, 4),
        "tokens_per_s": round(stats.tokens_per_s, 2),
    }
    if logprobs:
        answer["logprobs"] = [event.logprob for event in steps]
    if chosen:
        answer["top_logprobs"] = [
            {**one.token._asdict(), "top": [token._asdict() for token in one.top]} for one in chosen
        ]
    return answer


if __name__ == "__main__":
    sys.exit(main())
