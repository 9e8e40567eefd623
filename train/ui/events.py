"""The event handlers of the Train tab: inputs in, updates of components out.

All lasting state is in the runs' folders, so that every visitor and every reload sees the same.
"""

import csv
import hashlib
import importlib.util
import json
import os
import re
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from adapter.base.image_file import open_image
from adapter.base.template import Message
from adapter.errors import AdapterError, BadInput, Busy
from adapter.files import atomic_write
from adapter.method.config import check_name
from adapter.serve.form import UNSPACED
from adapter.serve.request import Client
from adapter.serve.settings import BASE_ONLY, PAGE_PENALTY, Settings
from adapter.server.generation import browser_text, client_of
from adapter.ui import images
from adapter.ui.answer_stream import build_request, whole_answer
from adapter.ui.chat.conversation_store import ConversationStore
from adapter.ui.chat.corrections import FILE_NAME, Correction, checked
from adapter.ui.status import FRAME_SECONDS
from adapter.ui.toasts import errors_as_toasts, readable, refusal, toast
from train.config import RecipeFile
from train.formats.parsers import format_of
from train.publish import PUBLISHED, check_repo, machine_token, push
from train.ui import texts
from train.ui.charts import run_html
from train.ui.plan import RunPlan, free_name, samples
from train.ui.preview import make_preview, notice_html, open_data
from train.ui.runs import DEFAULT_FOLDER, RunRecord, TrainingRun, TrainingRuns, WatchedAnswer

TICK, SLOW_TICK = 1.0, 4.0  # seconds between two updates while a run is running, and otherwise
LEAST = 8  # corrections
_PAIR = ("question", "answer")
SHORT_QUESTION = 3  # words: a question of no more needs what was said before it
WATCHED_TOKENS = 48  # of a watched answer
MAX_TYPED = 100_000  # characters of rows
_HIDDEN = gr.update(visible=False)
Updates = tuple[Any, ...]


class TrainEvents:
    """The handlers of one page, for any number of sessions at once.

    base: the value of `--base`. public: whether others than this machine may ask. Then only the browser that
    started a run, which holds a secret for it (`owner` of the handlers), may stop it. sign_in: whether this is a
    Space whose visitors can sign in with their account of the Hub.
    """

    def __init__(self, runs: TrainingRuns, conversations: ConversationStore, base: str, public: bool) -> None:
        self.runs, self.conversations = runs, conversations
        self.store, self.provider, self.public = conversations.catalog, conversations.provider, public
        installed = all(importlib.util.find_spec(name) for name in ("authlib", "itsdangerous"))
        self.sign_in = bool(os.environ.get("SPACE_ID") and os.environ.get("OAUTH_CLIENT_ID")) and installed
        # The trainer runs in another working directory than the server.
        self.base = os.path.abspath(base) if os.path.exists(base) else base
        self.samples = samples()
        self._asking: set[str] = set()  # runs whose question is being answered
        self._asked: dict[str, str] = {}  # by run: the adapter that was asked last

    # 1. Data. Updates of (sample, upload, preview, plan, the settings, command, start). before: the plan so far,
    # and the settings, of which stays what was typed.

    def choose_sample(self, name: str, *before: Any) -> Updates:
        return gr.skip(), None, *self._preview(self.samples[name], before)

    def choose_upload(self, upload: str | None, *before: Any) -> Updates:
        if not upload:
            return gr.skip(), gr.skip(), *_without_data(texts.NO_DATA, before)
        path = Path(upload)
        return None, gr.skip(), *self._preview(_plan_of(path, path.stem), before)

    def use_rows(self, rows: str | None, *before: Any) -> Updates:
        """Prepares a run on typed rows: `question => answer`, or with a tab between, as a table is copied."""
        if not rows or not rows.strip():
            raise refusal(texts.NO_ROWS)
        if len(rows) > MAX_TYPED:
            raise refusal(texts.TOO_MANY_ROWS)
        records, pairs, names, lines = [], 0, [], rows.rstrip("\r\n").split("\n")
        table = [line.split("\t") for line in lines]
        if "\t" in rows:
            with suppress(csv.Error):  # a table's cells may hold lines
                table = list(csv.reader([f"{line}\n" for line in lines], delimiter="\t", strict=True))
        for number, cells in enumerate([list(map(str.strip, cells)) for cells in table]):
            if not number and len(cells) > 1 and format_of(dict.fromkeys(map(str.lower, cells), "")):
                names = [cell.lower() for cell in cells]
                continue
            if not names:
                cells = [cell for cell in cells if cell]
                cells = cells if len(cells) > 1 else [cell.strip() for cell in "".join(cells).split("=>", 1)]
            if len(cells) > len(names or _PAIR):
                raise refusal(texts.too_many_columns(number + 1, len(cells)))
            record = {name: text for name, text in zip(names or _PAIR, cells, strict=False) if text}
            records.append(json.dumps(record) if record else "")
            pairs += len(record) > 1
        if not pairs:
            raise refusal(texts.NO_PAIRS)
        path = write_rows(records, texts.TYPED_NAME)
        return None, str(path), *self._preview(_plan_of(path, path.stem), before)

    def use_corrections(self, known: object, *before: Any) -> Updates:
        """Prepares a run on the corrections that the chat has collected."""
        if (running := self.runs.running()) is not None:
            raise refusal(texts.running(running))
        rows = [json.dumps(last_turn(row)) for row in checked(known) if row["messages"][1:]]
        if len(rows) < LEAST:
            raise refusal(texts.train_on_these(LEAST - len(rows)))
        path = write_rows(rows, FILE_NAME)
        # One of eight is held out: where it is no longer answered better, the run ends early.
        plan = _plan_of(path, texts.TAUGHT_NAME, preset="voice", data={"validation": 0.13})
        return None, str(path), *self._preview(replace(plan, description=texts.TAUGHT), before)

    def count_corrections(self, known: object) -> Any:
        """An update of the button that trains on them."""
        missing = LEAST - len(checked(known))
        return gr.update(interactive=missing <= 0, value=texts.train_on_these(missing))

    def _preview(self, chosen: RunPlan, before: Updates) -> Updates:
        try:
            with tempfile.TemporaryDirectory(dir=os.environ.get("GRADIO_TEMP_DIR")) as folder:
                data = open_data(chosen.source, Path(folder))
                shown, template = make_preview(data, self.base)
        except Exception as error:
            return _without_data(browser_text(readable(error, "a preview of training data")), before, "error")
        if data.path.is_relative_to(folder) and data.path != Path(folder):  # no sample, nor a zip of captions
            chosen = replace(chosen, shown=data.path.relative_to(folder).as_posix())
        question = chosen.question if chosen.picture or not data.pictures else ""
        plan = replace(chosen, pictures=data.pictures, template=template, base=self.base, question=question)
        taken = [*self.store.taken(), *self.runs.taken(), *(self.runs.names() if self.public else ())]
        plan = replace(plan, name=free_name(chosen.name, taken))
        default = plan.recipe(Path("x")).train
        settings = *_typed(before, plan), default.steps, default.lr
        return shown, plan, *settings, *self.describe(plan, *settings)

    # 2. The settings.

    def describe(self, plan: RunPlan | None, *values: Any) -> Updates:
        """Updates of (the equivalent command, or why there is none; start)."""
        if not plan:
            return texts.NO_COMMAND, self._start_button(None)
        try:
            plan = plan.with_settings(*values)
            check_name(plan.name, {*self.store.taken(), *self.runs.taken()} - {self.runs.running()})
            own_folder = self.runs.folder != DEFAULT_FOLDER
            folder = Path(self.runs.folder.name) if self.public else self.runs.folder
            command = plan.command(str(folder / plan.name) if own_folder else "", self.public)
        except AdapterError as error:
            return browser_text(error), self._start_button(None)
        return command, self._start_button(plan)

    def _start_button(self, plan: RunPlan | None) -> Any:
        """It starts a run as soon as none is running and there are data."""
        if (running := self.runs.running()) is not None:
            return gr.update(interactive=False, value=texts.running(running))
        return gr.update(interactive=plan is not None, value=texts.START)

    # 3. The run. Updates of (its picker, how it is, its buttons, command, start, timer).

    def start(self, owner: str, plan: RunPlan | None, request: gr.Request, *values: Any) -> Updates:
        with errors_as_toasts("the start of a training run"):
            if plan is None:
                raise BadInput(texts.NO_DATA)
            planned = plan.with_settings(*values)

            def prepare(folder: Path) -> tuple[RecipeFile, RunRecord]:
                picture, secret = str(planned.picture or ""), _digest(owner)
                recipe = planned.recipe(open_data(planned.source, folder).path)
                images.count_upload(sum(file.stat().st_size for file in folder.rglob("*")))  # kept if it stops
                return recipe, RunRecord(question=planned.question, picture=picture, owner=secret)

            self.runs.start(self.own(planned.name, owner), self.store.taken(), prepare)
        return self.panel(None, owner, plan, request, *values)

    def stop_or_go_on(
        self, pressed: str, name: str | None, owner: str, plan: RunPlan | None, request: gr.Request, *values: Any
    ) -> Updates:
        """pressed: the label of the button, which says what its visitor wants."""
        with errors_as_toasts("a change of a training run"):
            (self.runs.stop if pressed == texts.STOP else self.runs.resume)(self.own(name, owner))
        return self.panel(name, owner, plan, request, *values)

    def own(self, name: str | None, owner: str) -> str:
        """The name of a run that this visitor may change. Raises BadInput for another's."""
        record = self.runs.record(name or "")
        if record is not None and not self._may_change(record, owner):
            raise BadInput(texts.NOT_YOURS)
        return name or ""

    def _may_change(self, record: RunRecord, owner: str) -> bool:
        return not self.public or bool(owner and record.owner == _digest(owner))

    def panel(
        self, name: str | None, owner: str, plan: RunPlan | None, request: gr.Request, *values: Any
    ) -> Updates:
        """name: None for the run that is running. values: of the settings."""
        described = self.describe(plan, *values)
        names, running = self.runs.names(), self.runs.running()
        ordered = [one for one in (name, running) if one in names] + names
        run = next((run for one in ordered if (run := self.runs.get(one))), None)  # but for what cannot be read
        shown = run and run.name
        # An update would close the picker.
        picker = gr.skip() if name == shown else gr.update(choices=names, value=shown, visible=len(names) > 1)
        timer = gr.Timer(TICK if running else SLOW_TICK)
        if run is None:
            return picker, notice_html(texts.NOTHING_YET), *[_HIDDEN] * 4, *described, timer
        own, done = self._may_change(run.record, owner), bool(run.adapter) and not run.alive
        return (
            picker,
            run_html(run, self._watched(run, client_of(request))) if own else run_html(replace(run, message="")),
            gr.update(
                value=texts.STOP if run.alive else texts.GO_ON,
                visible=own and run.state != "ended",
                interactive=run.state != "stopping" and running in (None, run.name),
            ),
            gr.update(
                value=texts.CHAT_WITH if done else texts.TRY,
                variant="primary" if done else "secondary",
                visible=bool(run.adapter),
            ),
            self._download(run) if done else _HIDDEN,
            gr.update(visible=own and done and (self.sign_in or not self.public)),
            *described,
            timer,
        )

    def _download(self, run: TrainingRun) -> Any:
        """The adapter of a run as a zip, without the run's data, log and paths. Reuses an earlier zip."""
        folder = self.runs.folder / run.name
        temporary = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
        try:
            files = [folder / name for name in PUBLISHED if (folder / name).exists()]
            stamp = max(file.stat().st_mtime_ns for file in files)  # the card is written after the weights
            path = temporary / f"trained-{run.name}-{stamp}" / f"{run.name}.zip"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as new, zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as archive:
                    for file in files:
                        archive.write(file, f"{run.name}/{file.name}")
        except (OSError, ValueError):  # the run is removed meanwhile
            return _HIDDEN
        return gr.update(visible=True, value=str(path))

    # The watched question: asked of the base, and of the adapter whenever a better one was saved.

    def _watched(self, run: TrainingRun, client: Client) -> list[WatchedAnswer]:
        """The answers so far. What is due is asked in a thread of its own, for `client`, who looks."""
        answers = self.runs.watched(run.name)
        step = run.progress.kept(run.recipe.train.save)[0] if run.adapter and answers else 0
        newer = not answers or (step and step >= answers[-1].step and run.adapter != self._asked.get(run.name))
        if newer and run.record.question and run.name not in self._asking:
            self._asking.add(run.name)
            threading.Thread(target=self._ask, args=(run, step, client), daemon=True).start()
        return answers

    def _ask(self, run: TrainingRun, step: int, client: Client) -> None:
        """step: whose adapter is asked; 0 for the frozen base."""
        try:
            if (engine := self.provider.engine()) is None:
                return
            name = run.name if step else BASE_ONLY
            settings = Settings(
                adapter=name, temperature=0, max_tokens=WATCHED_TOKENS, repetition_penalty=PAGE_PENALTY
            )
            image = open_image(Path(run.record.picture)) if step and run.record.picture else None
            request = build_request((Message("user", run.record.question),), settings, image, client)
            answer = WatchedAnswer(step, whole_answer(engine, request).strip())
            self.runs.add_watched(run.name, run.record.question, answer)
            self._asked[run.name] = run.adapter if step else ""
        except Exception as error:  # the next look asks again; what was not expected is logged
            readable(error, "a watched question")
            time.sleep(30)  # not with every look
        finally:
            self._asking.discard(run.name)

    # After a run.

    def publish(self, name: str, owner: str, repo: str, visitor: gr.OAuthToken | None) -> str:
        """Sends a run's adapter to the Hub, and returns what is said of it.

        With the token of the visitor who has signed in; with this machine's only where nobody else may ask.
        """
        with errors_as_toasts("the publication of an adapter"):
            if visitor is None and self.public:
                raise BadInput(texts.SIGN_IN_FIRST if self.sign_in else texts.PUBLISH_NOT_HERE)
            run = self.runs.get(self.own(name, owner))
            if run is None or run.alive or not run.adapter:
                raise BadInput(texts.NOT_THERE)
            repo, watched = (repo or "").strip(), self.runs.watched(run.name)
            check_repo(repo)
            said = [" ".join(text.split()) for text in (run.record.question, *(answer.text for answer in watched))]
            section = texts.before_and_after(said[0], said[1], said[-1]) if watched[1:] else ""
            token = machine_token() if visitor is None else visitor.token
            return str(texts.published(repo, push(self.runs.folder / run.name, repo, token, section)))
        return ""

    def chat_with(
        self, name: str | None, owner: str, box: dict[str, Any] | None, request: gr.Request
    ) -> Iterator[Updates]:
        """Updates of (tabs, timer, what a conversation that is opened changes): a new one with the adapter."""
        run, others = self.runs.get(name or ""), len(self.conversations.opened)
        if run is None or not run.adapter or run.name not in self.store.names():
            toast(BadInput(texts.NO_RUN if run is None else texts.NOT_THERE))
            yield (gr.skip(),) * (2 + others)
            return
        message, record = None, run.record
        is_empty = not (box and ((box.get("text") or "").strip() or box.get("files")))
        if is_empty and record.question and self._may_change(record, owner):
            there = record.picture and os.path.isfile(record.picture)
            files = [images.write_upload(Path(record.picture).read_bytes())] if there else []
            message = {"text": record.question, "files": files}
        settings = {"adapter": run.name, "mix": BASE_ONLY}
        # The pickers before the tab: of two updates within one frame Gradio's page drops the first (6.31).
        yield gr.skip(), gr.Timer(active=False), *self.conversations.begin(settings, message, request)
        time.sleep(FRAME_SECONDS)
        yield gr.Tabs(selected="chat"), *[gr.skip()] * (1 + others)


def last_turn(row: Correction) -> Correction:
    """The last question and its corrected answer; before a short question, which may mean nothing alone, also the
    exchange before it. Earlier answers have the voice already: a model would learn to continue, not to begin it.
    """
    *before, question, answer = row["messages"]
    text = str(question.get("content", ""))
    short = max(len(text.split()), len(re.findall(f"[{UNSPACED}]", text)) // 2) <= SHORT_QUESTION
    return {"messages": [*(before[-2:] if short else ()), question, answer]}


def write_rows(lines: list[str], name: str) -> Path:
    """Writes a file for training into a folder of its own among the uploads, as one of them. Raises gr.Error."""
    text = "\n".join(lines) + "\n"
    try:
        images.count_upload(len(text))
        path = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR"))) / name
        path.write_text(text, encoding="utf-8")
    except (Busy, OSError) as error:
        raise refusal(error if isinstance(error, Busy) else texts.ROWS_NOT_KEPT) from error
    return path


def _digest(owner: str) -> str:
    return hashlib.sha256(str(owner).encode()).hexdigest()


def _plan_of(path: Path, name: str, **settings: Any) -> RunPlan:
    return RunPlan(path, path.stem, settings=settings, name=name, question=texts.WATCHED_QUESTION)


def _without_data(why: str, before: Updates, kind: str = "empty") -> Updates:
    """Updates of (preview, plan, the settings, command, start)."""
    settings = *_typed(before, None), gr.skip(), gr.skip()
    return notice_html(why, kind), None, *settings, texts.NO_COMMAND, gr.update(interactive=False)


def _typed(before: Updates, plan: RunPlan | None) -> list[str]:
    """Name, description and question: as typed, or as the plan proposes. before: a plan, and the settings."""
    former, *typed = before[:4] or (None, "", "", "")
    old, new = ([one.name, one.description, one.question] if one else [""] * 3 for one in (former, plan))
    parts = zip(typed, old, new, strict=True)
    return [wanted if text in (proposed, "", None) else text for text, proposed, wanted in parts]
