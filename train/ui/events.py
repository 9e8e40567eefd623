"""The event handlers of the Train tab and of training on corrections: inputs in, updates of components out.

All lasting state is in the runs' folders, so that every visitor and every reload sees the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from adapter.errors import AdapterError, BadInput
from adapter.files import atomic_write
from adapter.method.config import check_name
from adapter.serve.settings import BASE_ONLY
from adapter.server.generation import AdapterCatalog, EngineProvider, browser_text, client_of
from adapter.ui.chat.conversation_store import ConversationStore
from adapter.ui.chat.corrections import FILE_NAME, Correction, checked
from adapter.ui.status import FRAME_SECONDS
from adapter.ui.texts import page as page_texts
from adapter.ui.toasts import errors_as_toasts, refusal, toast
from train.config import RecipeFile
from train.publish import PUBLISHED
from train.ui import texts
from train.ui.charts import run_html
from train.ui.data_upload import open_data
from train.ui.plan import RunPlan, free_name, samples
from train.ui.preview import make_preview, notice_html
from train.ui.runs import DEFAULT_FOLDER, RunRecord, TrainingRun, TrainingRuns
from train.ui.watch import Watch

log = logging.getLogger(__name__)

TICK, SLOW_TICK = 1.0, 4.0  # seconds between two updates while a run is running, and otherwise
LEAST = 8  # corrections
SHORT_QUESTION = 3  # words: a question of no more needs what was said before it
_HIDDEN = gr.update(visible=False)
Updates = tuple[Any, ...]


class TrainEvents:
    """The handlers of one page, for any number of sessions at once.

    base: the value of `--base`. public: whether others than this machine may ask. Then only the browser that
    started a run, which holds a secret for it (`owner` of the handlers), may stop it. can_publish: whether an
    adapter can be sent to the Hub.
    """

    def __init__(
        self,
        runs: TrainingRuns,
        store: AdapterCatalog,
        provider: EngineProvider,
        base: str,
        public: bool = False,
        can_publish: bool = True,
    ) -> None:
        self.runs, self.store, self.public, self.can_publish = runs, store, public, can_publish
        self._watch = Watch(runs, provider)
        # The trainer runs in another working directory than the server.
        self.base = os.path.abspath(base) if os.path.exists(base) else base
        self.samples = samples()

    # 1. Data. Updates of (sample, upload, preview, plan, the settings, command, start).

    def choose_sample(self, name: str, plan: RunPlan | None, *typed: str | None) -> Updates:
        sample = self.samples.get(name) if isinstance(name, str) else None
        if sample is None:
            raise refusal(texts.NO_DATA)
        chosen = replace(sample.plan, name=free_name(sample.plan.name, self._taken()))
        return gr.skip(), None, *self._preview(chosen, plan, typed)

    def choose_upload(self, upload: str | None, plan: RunPlan | None, *typed: str | None) -> Updates:
        if not upload:
            return gr.skip(), gr.skip(), notice_html(texts.NO_DATA), *_without_data(_typed(plan, typed))
        chosen = self._of_file(Path(upload), Path(upload).stem)
        return None, gr.skip(), *self._preview(chosen, plan, typed)

    def use_rows(self, rows: str | None, plan: RunPlan | None, *typed: str | None) -> Updates:
        """Of rows that were typed: `question => answer`, or with a tab between, as a table is copied."""
        if not (rows or "").strip():
            raise refusal(texts.NO_ROWS)
        records = []
        for line in (rows or "").splitlines():  # line for line, so that an error's line is a row's
            question, _, answer = line.partition("=>" if "=>" in line else "\t")
            pair = {"question": question.strip(), "answer": answer.strip()}
            records.append(json.dumps({key: text for key, text in pair.items() if text}) if line.strip() else "")
        path = write_rows(records, texts.TYPED_NAME)
        return None, path, *self.choose_upload(path, plan, *typed)[2:]

    def _of_file(self, path: Path, name: str) -> RunPlan:
        return RunPlan(path, path.name, name=free_name(name, self._taken()), question=texts.WATCHED_QUESTION)

    def _preview(self, chosen: RunPlan, before: RunPlan | None, typed: Sequence[str | None]) -> Updates:
        """before: the plan whose proposals are in the settings, as far as the visitor has not typed other ones."""
        own = _typed(before, typed)
        try:
            chosen, shown = self._read(chosen)
        except Exception as error:
            if not isinstance(error, AdapterError):
                log.exception("training data could not be previewed")
                error = AdapterError(page_texts.FAILED)
            return notice_html(browser_text(error), "error"), *_without_data(own)
        proposed = chosen.name, chosen.description, chosen.question
        default = chosen.recipe(Path("x")).train
        settings = *[mine or theirs for mine, theirs in zip(own, proposed, strict=True)], default.steps, default.lr
        return shown, chosen, *settings, *self.describe(chosen, *settings)

    def _read(self, plan: RunPlan) -> tuple[RunPlan, str]:
        """The plan with the facts about its data, and these as HTML. Raises AdapterError."""
        with tempfile.TemporaryDirectory() as folder:
            data = open_data(plan.source, Path(folder))
            preview = make_preview(data, self.base)
            plan = replace(plan, pictures=data.pictures, template=preview.template, base=self.base)
            return replace(plan, question=plan.question if plan.picture or not data.pictures else ""), preview.html

    def _taken(self) -> list[str]:
        return [*self.store.names(), *self.runs.taken()]

    # 2. The settings.

    def describe(self, plan: RunPlan | None, *values: Any) -> Updates:
        """Updates of (the equivalent command, or why there is none; start)."""
        if not plan:
            return texts.NO_COMMAND, self._start_button(None)
        try:
            plan = plan.with_settings(*values)
            check_name(plan.name, self._taken())
            own_folder = self.runs.folder != DEFAULT_FOLDER
            command = plan.command(f"{self.runs.folder.name}/{plan.name}" if own_folder else "")
        except AdapterError as error:
            return browser_text(error), self._start_button(None)
        return command, self._start_button(plan)

    def _start_button(self, plan: RunPlan | None) -> Any:
        """It starts a run as soon as none is running and there are data."""
        if (running := self.runs.running()) is not None:
            return gr.update(interactive=False, value=texts.RUNNING.format(running))
        return gr.update(interactive=plan is not None, value=texts.START)

    # 3. The run.

    def start(self, owner: str, plan: RunPlan | None, *values: Any) -> str:
        """Starts a run; returns the visitor's secret."""
        owner = owner or secrets.token_urlsafe(16)
        with errors_as_toasts("the start of a training run"):
            if plan is None:
                raise BadInput(texts.NO_DATA)
            self._launch(plan.with_settings(*values), RunRecord(owner=_digest(owner)))
        return owner

    def _launch(self, plan: RunPlan, record: RunRecord) -> None:
        def prepare(folder: Path) -> tuple[RecipeFile, RunRecord]:
            picture = str(plan.picture or "")
            data = open_data(plan.source, folder)
            return plan.recipe(data.path), replace(record, question=plan.question, picture=picture)

        self.runs.start(plan.name, self.store.names(), prepare)

    def stop(self, name: str | None, owner: str) -> None:
        with errors_as_toasts("the stop of a training run"):
            self.runs.stop(self.own(name, owner))

    def resume(self, name: str | None, owner: str) -> None:
        with errors_as_toasts("the continuation of a training run"):
            self.runs.resume(self.own(name, owner))

    def own(self, name: str | None, owner: str) -> str:
        """The name of a run that this visitor may change. Raises BadInput for another's."""
        record = self.runs.record(name or "")
        if record is not None and not self.may_change(record, owner):
            raise BadInput(texts.NOT_YOURS)
        return name or ""

    def may_change(self, record: RunRecord, owner: str) -> bool:
        return not self.public or bool(owner and record.owner == _digest(owner))

    def panel(self, name: str | None, owner: str, plan: RunPlan | None, request: gr.Request) -> Updates:
        """Updates of (run picker, the run's view, start, timer). name: None for the run that is running."""
        names, running = self.runs.names(), self.runs.running()
        shown = name if name in names else running or next(iter(names), None)
        picker = gr.update(choices=names, value=shown, visible=len(names) > 1)
        timer = gr.Timer(TICK if running else SLOW_TICK, active=True)
        return picker, *self._view(shown, owner, request), self._start_button(plan), timer

    def tick(self, name: str | None, owner: str, plan: RunPlan | None, request: gr.Request) -> Updates:
        """As `panel`, which would close the picker of runs each time."""
        picker, *others = self.panel(name, owner, plan, request)
        return gr.skip() if picker["value"] == name else picker, *others

    def newest(self, owner: str, plan: RunPlan | None, request: gr.Request) -> Updates:
        return self.panel(None, owner, plan, request)

    def _view(self, name: str | None, owner: str, request: gr.Request) -> Updates:
        """Updates of a RunView."""
        run = self.runs.get(name or "")
        if run is None:
            return notice_html(texts.NOTHING_YET), *[_HIDDEN] * 5
        own, done = self.may_change(run.record, owner), bool(run.adapter) and not run.alive
        text, variant = (texts.CHAT_WITH, "primary") if done else (texts.TRY, "secondary")
        return (
            run_html(run, self._watch.look(run, client_of(request)) if own else ()),
            gr.update(visible=own and run.alive, interactive=run.state != "stopping"),
            gr.update(visible=own and not run.alive and run.state != "ended"),
            gr.update(visible=bool(run.adapter), value=text, variant=variant),
            self._download(run) if done else _HIDDEN,
            gr.update(visible=own and done and self.can_publish),
        )

    def _download(self, run: TrainingRun) -> Any:
        try:
            return gr.update(visible=True, value=str(zip_adapter(self.runs.folder / run.name)))
        except OSError:
            return _HIDDEN

    # Teach by chatting.

    def teach(self, owner: str, known: object, name: str | None, question: str | None) -> str:
        """Trains on corrections; returns the visitor's secret. name, question: None while their fields were never
        shown.
        """
        owner = owner or secrets.token_urlsafe(16)
        with errors_as_toasts("the start of a lesson"):
            rows = [json.dumps(last_turn(row)) for row in checked(known)]
            if len(rows) < LEAST:
                raise BadInput(texts.train_on_these(LEAST - len(rows)))
            plan = self._of_file(Path(write_rows(rows, FILE_NAME)), texts.TAUGHT_NAME)
            # One of eight is held out: where it is no longer answered better, the run ends early.
            plan, _ = self._read(replace(plan, preset="voice", settings={"data": {"validation": 0.13}}))
            plan = plan.with_settings((name or "").strip() or plan.name, texts.TAUGHT, question or plan.question)
            self._launch(plan, RunRecord(owner=_digest(owner), taught=True))
        return owner

    def lesson(self, owner: str, known: object, request: gr.Request) -> Updates:
        """Updates of (its name, the run's view, start, timer) of the visitor's newest run on corrections."""
        found = ((name, self.runs.record(name)) for name in (self.runs.names() if owner else ()))
        name = next((name for name, r in found if r and r.taught and r.owner == _digest(owner)), None)
        html, *buttons = self._view(name, owner, request)
        run, missing = self.runs.get(name or ""), LEAST - len(checked(known))
        alive = run is not None and run.alive
        waits = alive or (run is not None and self._watch.is_asking(run))
        start = gr.update(interactive=missing <= 0 and not alive, value=texts.train_on_these(missing))
        return name or "", html if run else "", *buttons, start, gr.Timer(active=waits)

    # After a run.

    def chat_with(
        self, conversations: ConversationStore, name: str | None, box: dict[str, Any] | None, request: gr.Request
    ) -> Iterator[Updates]:
        """Updates of (tabs, timer, what a conversation that is opened changes): a new one with the adapter."""
        run, others = self.runs.get(name or ""), len(conversations.opened)
        if run is None or not run.adapter or run.name not in self.store.names():
            toast(BadInput(texts.NO_RUN if run is None else texts.NOT_THERE))
            yield (gr.skip(),) * (2 + others)
            return
        message, record = None, run.record
        if not (box and ((box.get("text") or "").strip() or box.get("files"))) and record.question:
            files = [record.picture] if record.picture and os.path.isfile(record.picture) else []
            message = {"text": record.question, "files": files}
        settings = {"adapter": run.name, "mix": BASE_ONLY}
        # The pickers before the tab: of two updates within one frame Gradio's page drops the first (6.31).
        yield gr.skip(), gr.Timer(active=False), *conversations.begin(settings, message, request)
        time.sleep(FRAME_SECONDS)
        yield gr.Tabs(selected="chat"), *[gr.skip()] * (1 + others)


def last_turn(row: Correction) -> Correction:
    """The question and the visitor's words; before a short question, which may mean nothing alone, the exchange
    before it too. What went before has the voice already: a model would learn to go on with it, and not to begin.
    """
    *before, question, answer = row["messages"]
    short = len(str(question.get("content", "")).split()) <= SHORT_QUESTION
    return {"messages": [*(before[-2:] if short else ()), question, answer]}


def zip_adapter(folder: Path) -> Path:
    """The adapter of a run as a zip for download, without the run's data, log and paths. Reuses an earlier zip."""
    files = [folder / name for name in PUBLISHED if (folder / name).exists()]
    stamp = max(file.stat().st_mtime_ns for file in files)  # the card is written after the weights
    parent = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()) / f"trained-{folder.name}-{stamp}"
    path = parent / f"{folder.name}.zip"
    if not path.exists():
        parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, f"{folder.name}/{file.name}")
    return path


def write_rows(lines: list[str], name: str) -> str:
    """Writes a file for training into a folder of its own among the uploads; returns its path."""
    folder = tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR"))
    path = Path(folder) / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def _digest(owner: str) -> str:
    return hashlib.sha256(str(owner).encode()).hexdigest()


def _typed(plan: RunPlan | None, values: Sequence[str | None]) -> list[str]:
    """Name, description and question as far as the visitor typed them; "" for what was proposed."""
    proposed = (plan.name, plan.description, plan.question) if plan else ("", "", "")
    texts = [(value or "").strip() for value in values]
    return ["" if text == known else text for text, known in zip(texts, proposed, strict=True)]


def _without_data(typed: Sequence[str]) -> Updates:
    """Updates of (plan, the settings, command, start)."""
    return None, *typed, gr.skip(), gr.skip(), texts.NO_COMMAND, gr.update(interactive=False)
