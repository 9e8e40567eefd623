"""The event handlers of the Train tab: a visitor's inputs in, updates of components out.

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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from adapter.errors import AdapterError, BadInput
from adapter.files import atomic_write
from adapter.method.config import check_name
from adapter.serve.settings import BASE_ONLY
from adapter.server.generation import AdapterCatalog, browser_text
from adapter.ui import theme
from adapter.ui.status import FRAME_SECONDS
from adapter.ui.texts import page as page_texts
from adapter.ui.toasts import errors_as_toasts, refusal, toast
from train.config import RecipeFile
from train.ui import texts
from train.ui.charts import run_html
from train.ui.data_upload import Preview, TrainingData, make_preview, open_sample, open_upload
from train.ui.plan import RunPlan, Sample, free_name, samples
from train.ui.preview import nothing_html, preview_html, problem_html
from train.ui.runs import DEFAULT_FOLDER, ROOT, TrainingRun, TrainingRuns

log = logging.getLogger(__name__)

TICK, SLOW_TICK = 1.0, 4.0  # seconds between two updates while a run is running, and otherwise
SERVED = ("config.json", "adapter.safetensors", "README.md")  # the files of a run's folder that are downloaded
Updates = tuple[Any, ...]


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

    # 1. Data. Updates of (the other data source, preview, plan, the settings, remark, command, start).

    def choose_sample(
        self, sample: str, plan: RunPlan | None, name: str | None, description: str | None
    ) -> Updates:
        return self._preview(sample, None, *_typed_values(plan, name, description))

    def choose_upload(
        self, upload: str | None, plan: RunPlan | None, name: str | None, description: str | None
    ) -> Updates:
        if not upload:
            return self.clear_data(plan, name, description)
        return self._preview(None, upload, *_typed_values(plan, name, description))

    def use_rows(self, rows: list[list[Any]]) -> str:
        """The path of a file with the rows that were typed: line for line, so that an error's line is a row's."""
        lines = [[str(cell or "").strip() for cell in row] for row in rows]
        if not any(map(any, lines)):
            raise refusal(texts.NO_ROWS)
        named = (dict(zip((texts.QUESTION, texts.ANSWER_COLUMN), cells, strict=False)) for cells in lines)
        return write_rows([json.dumps(row) if any(row.values()) else "" for row in named], texts.TYPED_NAME)

    def clear_data(self, plan: RunPlan | None, name: str | None, description: str | None) -> Updates:
        return gr.skip(), nothing_html(texts.NO_DATA), *_without_data(*_typed_values(plan, name, description))

    def _preview(self, sample: str | None, upload: str | None, name: str, description: str) -> Updates:
        """name, description: "" for those that are proposed for the data."""
        try:
            with tempfile.TemporaryDirectory() as folder:
                preview = make_preview(self._open_data(sample, upload, Path(folder)), self.base)
                shown = preview_html(preview)
        except Exception as error:
            if not isinstance(error, AdapterError):
                log.exception("training data could not be previewed")
                error = AdapterError(page_texts.FAILED)
            return None, problem_html(error), *_without_data(name, description)
        wanted = f"my-{sample}" if sample in self.samples else Path(preview.data.name).stem
        plan = self._plan(preview, sample, free_name(wanted, self.taken_names()))
        default = plan.recipe(Path("x")).train
        settings = (name or plan.name, description or plan.description, default.steps, default.lr)
        return None, shown, plan, *settings, *self.describe_settings(plan, *settings)

    def _open_data(self, sample: str | None, upload: str | None, folder: Path) -> TrainingData:
        if upload:
            return open_upload(Path(upload), folder)
        if sample not in self.samples:
            raise BadInput(texts.NO_DATA)
        return open_sample(self.samples[sample].path)

    def _plan(self, preview: Preview, sample_name: str | None, name: str = "") -> RunPlan:
        """The plan for these data, with a proposed name and description."""
        sample, shown = self.samples.get(sample_name or ""), preview.data.name
        if sample:
            inside = sample.path.is_relative_to(ROOT)
            shown = sample.path.relative_to(ROOT).as_posix() if inside else sample.path.name
        description = sample.settings.get("description", "") if sample else ""
        facts = (preview.data.pictures, preview.template)
        return RunPlan(shown, *facts, sample, self.base, name, description)

    def taken_names(self) -> list[str]:
        return [*self.store.names(), *self.runs.taken()]

    # 2. The settings.

    def describe_settings(self, plan: RunPlan | None, *values: Any) -> Updates:
        """Updates of (remark, or why the name cannot be used; the equivalent command; start)."""
        return *self._describe(plan, *values), self._start_button(plan, values[0])

    def _start_button(self, plan: RunPlan | None, name: object) -> Any:
        """It starts a run as soon as none is running and there are data and a free name."""
        if (running := self.runs.running()) is not None:
            return gr.update(interactive=False, value=texts.RUNNING.format(running))
        return gr.update(interactive=bool(plan) and not self._name_problem(name), value=texts.START)

    def _name_problem(self, name: object) -> str:
        try:
            check_name(str(name or ""), self.taken_names())
        except BadInput as error:
            return str(error)
        return ""

    def _describe(self, plan: RunPlan | None, *values: Any) -> tuple[str, str]:
        if not plan:
            return "", texts.NO_COMMAND
        if problem := self._name_problem(values[0]):
            return problem, texts.NO_COMMAND
        try:
            plan = plan.with_settings(*values)
        except AdapterError as error:
            return browser_text(error), texts.NO_COMMAND
        own_folder = self.runs.folder != DEFAULT_FOLDER
        learns = texts.LEARNS_PICTURES if plan.pictures else texts.LEARNS_TEXT
        return learns, plan.command(f"{self.runs.folder.name}/{plan.name}" if own_folder else "")

    # 3. The run. Updates as `panel` returns them.

    def start(
        self, owner: str, sample: str | None, upload: str | None, plan: RunPlan | None, *values: Any
    ) -> Updates:
        """Starts a run; the first update is of `owner`."""
        owner = owner or secrets.token_urlsafe(16)
        act = partial(self.launch, owner, sample, upload, *values)
        return owner, *self._act(None, plan, values[0], owner, act)

    def launch(self, owner: str, sample_name: str | None, upload: str | None, name: str | None, *more: Any) -> str:
        """Starts a run and returns its name. Raises AdapterError. more: the other settings.

        Reads the data again: what was previewed may have been other data.
        """

        def prepare(folder: Path) -> tuple[RecipeFile, str, str]:
            data = self._open_data(sample_name, upload, folder)
            sample = None if upload else self.samples.get(sample_name or "")
            plan = self._plan(make_preview(data, self.base), sample.name if sample else None)
            picture = str(sample.picture) if sample and sample.picture else ""
            recipe = plan.with_settings(name, *more).recipe(data.path)
            return recipe, sample.question if sample else "", picture

        return self.runs.start(name or "", self.store.names(), prepare, _digest(owner))

    def stop(
        self, name: str | None, launched: float | None, plan: RunPlan | None, new_name: str, owner: str
    ) -> Updates:
        """launched: when the process began whose panel the visitor saw. Somebody may have gone on with the run."""
        return self._act(name, plan, new_name, owner, lambda: self.runs.stop(self.own(name, owner), launched))

    def resume(self, name: str | None, plan: RunPlan | None, new_name: str, owner: str) -> Updates:
        return self._act(name, plan, new_name, owner, lambda: self.runs.resume(self.own(name, owner)))

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
        plan: RunPlan | None,
        new_name: str | None,
        owner: str,
        action: Callable[[], str | None],
    ) -> Updates:
        with errors_as_toasts("a change of a training run"):
            name = action() or name
        return self.panel(name, plan, new_name, owner, None)

    def panel(
        self,
        name: str | None,
        plan: RunPlan | None,
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
        start = self._start_button(plan, new_name)
        timer = gr.Timer(TICK if running else SLOW_TICK, active=True)
        if run is None:
            hidden = gr.update(visible=False)
            return picker, names, None, nothing_html(texts.NOTHING_YET), start, *[hidden] * 5, "", timer
        own = self.may_change(run, owner)
        return (
            picker,
            names,
            run.record.launched,
            run_html(run),
            start,
            gr.update(visible=own and run.alive, interactive=run.state != "stopping"),
            gr.update(visible=own and not run.alive and run.state != "ended", interactive=running is None),
            gr.update(visible=bool(run.adapter)),
            gr.update(visible=bool(run.adapter)),
            self._download(run),
            self.runs.log(run.name),
            timer,
        )

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
        yield from self._open_tab("chat", name, box)

    def compare_with(self, name: str | None, box: dict[str, Any] | None) -> Iterator[Updates]:
        """Updates of (tabs, first pane's picker, second pane's picker, message box, timer)."""
        yield from self._open_tab("compare", name, box)

    def _open_tab(self, tab: str, name: str | None, box: dict[str, Any] | None) -> Iterator[Updates]:
        run = self.runs.get(name or "")
        if run is None or not run.adapter or run.name not in self.store.names():
            toast(BadInput(texts.NO_RUN if run is None else texts.NOT_THERE))
            yield (gr.skip(),) * 5
            return
        choices = theme.picker_choices(self.store)
        pickers: Updates
        if tab == "chat":
            pickers = gr.update(choices=choices, value=run.name), BASE_ONLY
        else:
            choices = theme.short_choices(choices, page_texts.FROZEN_BASE)
            pickers = gr.update(choices=choices, value=BASE_ONLY), gr.update(choices=choices, value=run.name)
        # The pickers before the tab: of two updates within one frame Gradio's page drops the first (6.31).
        yield gr.skip(), *pickers, _question_update(run, box), gr.Timer(active=False)
        time.sleep(FRAME_SECONDS)
        yield gr.Tabs(selected=tab), *[gr.skip()] * 4


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


def _typed_values(plan: RunPlan | None, name: str | None, description: str | None) -> tuple[str, str]:
    """The name and the description if the visitor typed them; "" if they were proposed for the previous data."""
    name, description = (name or "").strip(), (description or "").strip()
    proposed = (plan.name, plan.description) if plan else ("", "")
    return ("" if name == proposed[0] else name), ("" if description == proposed[1] else description)


def _without_data(name: str, description: str) -> Updates:
    """Updates of (plan, the settings, remark, command, start)."""
    return None, name, description, gr.skip(), gr.skip(), "", texts.NO_COMMAND, gr.update(interactive=False)
