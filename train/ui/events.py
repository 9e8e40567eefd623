"""The event handlers of the Train tab: a visitor's inputs in, updates of components out.

Knows Gradio's updates and toasts, the runs and the store; knows nothing of layout. All lasting state is in the
runs' folders, so that every visitor and every reload sees the same.
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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import gradio as gr

from adapter.errors import AdapterError, BadInput
from adapter.files import atomic_write
from adapter.method.config import check_name
from adapter.serve.settings import BASE_ONLY
from adapter.server.generation import AdapterCatalog, browser_text
from adapter.ui import theme
from adapter.ui.status import FRAME_SECONDS
from adapter.ui.texts import page as page_texts
from adapter.ui.toasts import refusal, toast
from train.ui import texts
from train.ui.charts import run_html
from train.ui.data_upload import Preview, TrainingData, make_preview, open_sample, open_upload
from train.ui.plan import MAX_DESCRIPTION_LENGTH, RunPlan, Sample, estimate_minutes, free_name, samples
from train.ui.preview import nothing_html, preview_html, problem_html
from train.ui.runs import DEFAULT_FOLDER, ROOT, TrainingRun, TrainingRuns

log = logging.getLogger(__name__)

TICK, SLOW_TICK = 1.0, 4.0  # seconds between two updates while a run is running, and otherwise
SERVED = ("config.json", "adapter.safetensors", "README.md")  # the files of a run's folder that are downloaded
Updates = tuple[Any, ...]


class DataSummary(TypedDict):
    """The facts about the previewed data that the settings depend on; the browser holds them.

    shown: the data as written in a command; tokens: of a typical row; sample: its name, or ""; name, description:
    the values that were proposed for the adapter.
    """

    shown: str
    pictures: bool
    template: str
    tokens: int
    sample: str
    name: str
    description: str


class SettingsValues(NamedTuple):
    """The values of the settings, in the order of their components."""

    name: str | None
    description: str | None
    steps: float | None
    rate: float | None


class TrainEvents:
    """The handlers of one page, for any number of sessions at once.

    base: the value of `--base`. public: whether others than this machine may ask. Then only the browser that
    started a run, which holds a secret for it (`owner` of the handlers), may stop it.
    """

    def __init__(self, runs: TrainingRuns, store: AdapterCatalog, base: str, public: bool = False) -> None:
        self.runs, self.store, self.public = runs, store, public
        # The trainer runs in another working directory than the server.
        self.base = os.path.abspath(base) if os.path.exists(base) else base
        self.samples: dict[str, Sample] = {sample.name: sample for sample in samples()}
        self._drawn: dict[str, tuple[TrainingRun, str]] = {}  # the latest panel of each run, for all visitors

    # 1. Data. Updates of (the other data source, preview, summary, the settings, estimate, command, start).

    def choose_sample(
        self, sample: str, summary: DataSummary | None, name: str | None, description: str | None
    ) -> Updates:
        return self._preview(sample, None, *_typed_values(summary, name, description))

    def choose_upload(
        self, upload: str | None, summary: DataSummary | None, name: str | None, description: str | None
    ) -> Updates:
        if not upload:
            return self.clear_data(summary, name, description)
        return self._preview(None, upload, *_typed_values(summary, name, description))

    def use_rows(self, rows: list[list[Any]]) -> str:
        """The path of a file with the rows that were typed: line for line, so that an error's line is a row's."""
        lines = [[str(cell or "").strip() for cell in row] for row in rows]
        if not any(map(any, lines)):
            raise refusal(texts.NO_ROWS)
        named = (dict(zip((texts.QUESTION, texts.ANSWER_COLUMN), cells, strict=False)) for cells in lines)
        return write_rows([json.dumps(row) if any(row.values()) else "" for row in named], texts.TYPED_NAME)

    def clear_data(self, summary: DataSummary | None, name: str | None, description: str | None) -> Updates:
        return gr.skip(), nothing_html(texts.NO_DATA), *_disabled(*_typed_values(summary, name, description))

    def _preview(self, sample_name: str | None, upload: str | None, name: str, description: str) -> Updates:
        try:
            with tempfile.TemporaryDirectory() as folder:
                preview = make_preview(self._open_data(sample_name, upload, Path(folder)), self.base)
                shown = preview_html(preview)
        except AdapterError as error:
            return None, problem_html(error), *_disabled(name, description)
        except Exception:
            log.exception("training data could not be previewed")
            return None, problem_html(AdapterError(page_texts.FAILED)), *_disabled(name, description)
        sample = self.samples.get(sample_name or "")
        proposed = free_name(f"my-{sample.name}" if sample else Path(preview.name).stem, self.taken_names())
        summary = _summary(preview, sample, proposed)
        settings = SettingsValues(name or summary["name"], description or summary["description"], None, None)
        default = self._plan(summary, settings, Path("x")).recipe().train
        settings = settings._replace(steps=default.steps, rate=default.lr)
        return None, shown, summary, *settings, *self.describe_settings(summary, *settings)

    def _open_data(self, sample_name: str | None, upload: str | None, folder: Path) -> TrainingData:
        if upload:
            return open_upload(Path(upload), folder)
        sample = self.samples.get(sample_name or "")
        if sample is None:
            raise BadInput(texts.NO_DATA)
        return open_sample(sample.path)

    def taken_names(self) -> list[str]:
        return [*self.store.names(), *self.runs.taken()]

    # 2. The settings.

    def describe_settings(self, summary: DataSummary | None, *values: Any) -> Updates:
        """Updates of (estimate, or why the name cannot be used; the equivalent command; start)."""
        return *self._describe(summary, *values), self._start_button(summary, values[0])

    def _start_button(self, summary: DataSummary | None, name: object) -> Any:
        """It starts a run as soon as none is running and there are data and a free name."""
        if (running := self.runs.running()) is not None:
            return gr.update(interactive=False, value=texts.running(running))
        return gr.update(interactive=bool(summary) and not self._name_problem(name), value=texts.START)

    def _name_problem(self, name: object) -> str:
        try:
            check_name(str(name or ""), self.taken_names())
        except BadInput as error:
            return str(error)
        return ""

    def _describe(self, summary: DataSummary | None, *values: Any) -> tuple[str, str]:
        if not summary:
            return "", texts.NO_COMMAND
        settings = SettingsValues(*values)
        try:
            plan = self._plan(summary, settings, Path("x"))
            kind = texts.PICTURES if summary["pictures"] else texts.TEXTS
            minutes = estimate_minutes(plan.recipe().train, summary["tokens"], self.base, self.runs)
            estimate = texts.estimate(kind, *minutes)
        except AdapterError as error:
            return browser_text(error), texts.NO_COMMAND
        if problem := self._name_problem(settings.name):
            return problem, texts.NO_COMMAND
        own_folder = self.runs.folder != DEFAULT_FOLDER
        return estimate, plan.command(f"{self.runs.folder.name}/{plan.name}" if own_folder else "")

    def _plan(self, summary: DataSummary, settings: SettingsValues, data: Path) -> RunPlan:
        sample = self.samples.get(summary["sample"])
        return RunPlan(
            name=(settings.name or "").strip() or texts.NAME_HINT,
            data=data,
            shown=summary["shown"],
            pictures=summary["pictures"],
            description=" ".join((settings.description or "").split())[:MAX_DESCRIPTION_LENGTH],
            steps=None if settings.steps is None else int(settings.steps),
            lr=None if settings.rate is None else round(float(settings.rate), 6),
            base=self.base,
            template=summary["template"],
            extra=sample.settings if sample else {},
        )

    # 3. The run. Updates as `panel` returns them.

    def start(
        self, owner: str, sample_name: str | None, upload: str | None, summary: DataSummary | None, *values: Any
    ) -> Updates:
        """Starts a run; the first update is of `owner`."""
        settings = SettingsValues(*values)
        owner = owner or secrets.token_urlsafe(16)
        act = partial(self.launch, owner, sample_name, upload, settings)
        return owner, *self._act(None, summary, settings.name, owner, act)

    def launch(self, owner: str, sample_name: str | None, upload: str | None, settings: SettingsValues) -> str:
        """Starts a run and returns its name. Raises AdapterError.

        Previews the data again, because the browser's summary may be forged.
        """

        def plan(folder: Path) -> tuple[RunPlan, str, str]:
            data = self._open_data(sample_name, upload, folder)
            sample = self.samples.get(sample_name or "") if not upload else None
            own_summary = _summary(make_preview(data, self.base), sample)
            picture = str(sample.picture) if sample and sample.picture else ""
            return self._plan(own_summary, settings, data.path), sample.question if sample else "", picture

        return self.runs.start(settings.name or "", self.store.names(), plan, _digest(owner))

    def stop(
        self, name: str | None, launched: float | None, summary: DataSummary | None, new_name: str, owner: str
    ) -> Updates:
        """launched: when the process began whose panel the visitor saw. Somebody may have gone on with the run."""
        return self._act(name, summary, new_name, owner, lambda: self.runs.stop(self.own(name, owner), launched))

    def resume(self, name: str | None, summary: DataSummary | None, new_name: str, owner: str) -> Updates:
        return self._act(name, summary, new_name, owner, lambda: self.runs.resume(self.own(name, owner)))

    def own(self, name: str | None, owner: str) -> str:
        """The name of a run that this visitor may change. Raises BadInput for another's."""
        run = self.runs.get(name or "")
        if run is not None and not self.may_change(run, owner):
            raise BadInput(texts.NOT_YOURS)
        return name or ""

    def may_change(self, run: TrainingRun, owner: str) -> bool:
        return not self.public or bool(owner and run.record.owner == _digest(owner))

    def _act(
        self,
        name: str | None,
        summary: DataSummary | None,
        new_name: str | None,
        owner: str,
        action: Callable[[], str | None],
    ) -> Updates:
        try:
            name = action() or name
        except AdapterError as error:
            toast(error)
        except Exception:
            log.exception("a training run could not be changed")
            toast(AdapterError(page_texts.FAILED))
        return self.panel(name, summary, new_name, owner, None)

    def panel(
        self,
        name: str | None,
        summary: DataSummary | None,
        new_name: str | None,
        owner: str,
        known_names: list[str] | None,
    ) -> Updates:
        """Updates of (run picker, known names, launched, run, start, stop, resume, chat, compare, download, log,
        timer).

        new_name: of the run that the settings describe. known_names: the runs in the browser's picker; None to
        update the picker in any case.
        """
        names, running = self.runs.names(), self.runs.running()
        shown = name if name in names else running or next(iter(names), None)
        picker: Any = gr.skip()
        if names != known_names or shown != name:
            picker = gr.update(choices=names, value=shown, visible=len(names) > 1)
        run = self.runs.get(shown) if shown else None
        start = self._start_button(summary, new_name)
        timer = gr.Timer(TICK if running else SLOW_TICK, active=True)
        if run is None:
            hidden = gr.update(visible=False)
            return picker, names, None, nothing_html(texts.NOTHING_YET), start, *[hidden] * 5, "", timer
        own = self.may_change(run, owner)
        return (
            picker,
            names,
            run.record.launched,
            self._html(run),
            start,
            gr.update(visible=own and run.alive, interactive=run.state != "stopping"),
            gr.update(visible=own and not run.alive and run.state != "ended", interactive=running is None),
            gr.update(visible=run.adapter),
            gr.update(visible=run.adapter),
            self._download(run),
            self.runs.log(run.name),
            timer,
        )

    def _html(self, run: TrainingRun) -> str:
        """The panel of a run, drawn once as long as nothing changes."""
        drawn = self._drawn.get(run.name)
        if drawn is None or drawn[0] != run:
            drawn = self._drawn[run.name] = run, run_html(run)
        return drawn[1]

    def _download(self, run: TrainingRun) -> Any:
        if run.alive or not run.adapter:
            return gr.update(visible=False)
        try:
            return gr.update(visible=True, value=str(zip_adapter(self.runs.folder / run.name)))
        except OSError:
            return gr.update(visible=False)

    # After a run.

    def chat_with(self, name: str | None, box: dict[str, Any] | None) -> Iterator[Updates]:
        """Updates of (tabs, adapter picker, second adapter, message box, timer)."""
        if (run := self._servable(name)) is None:
            yield (gr.skip(),) * 5
            return
        # The picker before the tab: of two updates within one frame Gradio's page drops the first (6.31).
        picker = gr.update(choices=theme.picker_choices(self.store), value=run.name)
        yield gr.skip(), picker, BASE_ONLY, _question_update(run, box), gr.Timer(active=False)
        time.sleep(FRAME_SECONDS)
        yield gr.Tabs(selected="chat"), *[gr.skip()] * 4

    def compare_with(self, name: str | None, box: dict[str, Any] | None) -> Iterator[Updates]:
        """Updates of (tabs, first pane's picker, second pane's picker, message box, timer)."""
        if (run := self._servable(name)) is None:
            yield (gr.skip(),) * 5
            return
        choices = theme.short_choices(theme.picker_choices(self.store), page_texts.FROZEN_BASE)
        panes = [gr.update(choices=choices, value=value) for value in (BASE_ONLY, run.name)]
        yield gr.skip(), *panes, _question_update(run, box), gr.Timer(active=False)
        time.sleep(FRAME_SECONDS)
        yield gr.Tabs(selected="compare"), *[gr.skip()] * 4

    def _servable(self, name: str | None) -> TrainingRun | None:
        """The run if its adapter can be chatted with; shows a toast otherwise."""
        run = self.runs.get(name or "")
        if run is not None and run.adapter and run.name in self.store.names():
            return run
        toast(BadInput(texts.NO_RUN if run is None else texts.NOT_THERE))
        return None


def zip_adapter(folder: Path) -> Path:
    """The adapter of a run as a zip for download, without the run's data, log and paths. Reuses an earlier zip."""
    from adapter.method.checkpoint import WEIGHTS

    stamp = (folder / WEIGHTS).stat().st_mtime_ns
    parent = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()) / f"trained-{folder.name}-{stamp}"
    path = parent / f"{folder.name}.zip"
    files = [folder / name for name in SERVED if (folder / name).exists()]
    # The model card is written after the weights, at the end of a run.
    if not path.exists() or path.stat().st_mtime < max(file.stat().st_mtime for file in files):
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


def _question_update(run: TrainingRun, box: dict[str, Any] | None) -> Any:
    """Puts the run's question into the message box, unless the visitor has typed or attached something."""
    filled = box and ((box.get("text") or "").strip() or box.get("files"))
    if filled or not run.record.question:
        return gr.skip()
    files = [run.record.picture] if run.record.picture and os.path.isfile(run.record.picture) else []
    return gr.update(value={"text": run.record.question, "files": files})


def _typed_values(summary: DataSummary | None, name: str | None, description: str | None) -> tuple[str, str]:
    """The name and the description if the visitor typed them; "" if they were proposed for the previous data."""
    name, description = (name or "").strip(), (description or "").strip()
    if summary:
        name = "" if name == summary["name"] else name
        description = "" if description == summary["description"] else description
    return name, description


def _disabled(name: str, description: str) -> Updates:
    """Updates of (summary, the settings, estimate, command, start) without data."""
    return None, name, description, gr.skip(), gr.skip(), "", texts.NO_COMMAND, gr.update(interactive=False)


def _summary(preview: Preview, sample: Sample | None, name: str = "") -> DataSummary:
    shown = preview.name
    if sample:
        inside = sample.path.is_relative_to(ROOT)
        shown = sample.path.relative_to(ROOT).as_posix() if inside else sample.path.name
    return DataSummary(
        shown=shown,
        pictures=preview.pictures,
        template=preview.template,
        tokens=preview.tokens,
        sample=sample.name if sample else "",
        name=name,
        description=sample.settings.get("description", "") if sample else "",
    )
