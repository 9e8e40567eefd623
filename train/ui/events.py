"""What the events of the Train tab do: a visitor's choices in, updates of components out.

Knows Gradio's updates and toasts, the runs and the store; knows nothing of layout. All that lasts is in the runs'
folders: whoever comes later sees the same.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import gradio as gr

from adapter.errors import AdapterError, BadInput
from adapter.server.settings import BASE_ONLY, without_folders
from adapter.ui import theme as look
from adapter.ui.chat_events import FRAME_SECONDS, toast
from adapter.ui.texts import page as page_texts
from adapter.ui.texts import train as texts
from train.config import check_name
from train.ui import data_upload as intake
from train.ui.charts import run_html
from train.ui.plan import LONGEST_DESCRIPTION, Plan, free_name, minutes
from train.ui.preview import nothing_html, preview_html, problem_html
from train.ui.runs import ROOT, USUAL, Run, TrainingRuns
from train.ui.samples import Sample, samples

log = logging.getLogger(__name__)

TICK, SLOW_TICK = 1.0, 4.0  # seconds between two looks at a run that moves, and at one that does not
SERVED = ("config.json", "adapter.safetensors", "README.md")  # of a run's folder, to take home


class Found(TypedDict):
    """What a preview leaves for the settings: what the data is called, of what kind it is, and how long; and the
    name and description that were proposed for the adapter.
    """

    shown: str
    pictures: bool
    template: str
    tokens: int
    sample: str
    name: str
    description: str


class Choice(NamedTuple):
    """Where the data comes from: the name of a sample, or the upload's path."""

    sample: str | None
    upload: str | None


class Typed(NamedTuple):
    """The settings, in the order of their components."""

    name: str | None
    description: str | None
    steps: float | None
    rate: float | None


Updates = tuple[Any, ...]


class TrainTab:
    """The handlers of one page. base: what `--base` names; safe for any number of sessions at once."""

    def __init__(self, runs: TrainingRuns, store: look.Cards, base: str) -> None:
        self.runs, self.store = runs, store
        # The trainer runs in another folder than the server.
        self.base = os.path.abspath(base) if os.path.exists(base) else base
        self.samples: dict[str, Sample] = {sample.name: sample for sample in samples()}

    # 1. Data. Updates of (the other source, preview, found, the settings, takes, command, start).

    def choose_sample(
        self, sample: str, before: Found | None, name: str | None, description: str | None
    ) -> Updates:
        return self._preview(Choice(sample, None), *_own(before, name, description))

    def choose_upload(
        self, upload: str | None, before: Found | None, name: str | None, description: str | None
    ) -> Updates:
        if not upload:
            return self.no_data(before, name, description)
        return self._preview(Choice(None, upload), *_own(before, name, description))

    def no_data(self, before: Found | None, name: str | None, description: str | None) -> Updates:
        return gr.skip(), nothing_html(texts.NO_DATA), *_off(*_own(before, name, description))

    def _preview(self, choice: Choice, name: str, description: str) -> Updates:
        try:
            with tempfile.TemporaryDirectory() as folder:
                preview = intake.preview(self._data(choice, Path(folder)), self.base)
                shown = preview_html(preview)
        except AdapterError as error:
            return None, problem_html(error), *_off(name, description)
        except Exception:
            log.exception("data could not be looked at")
            return None, problem_html(AdapterError(page_texts.FAILED)), *_off(name, description)
        sample = self.samples.get(choice.sample or "")
        proposed = free_name(f"my-{sample.name}" if sample else Path(preview.shown).stem, self._taken())
        found = _found(preview, sample, proposed)
        typed = Typed(name or found["name"], description or found["description"], None, None)
        plan = self._plan(found, typed, Path("x"))
        usual = plan.recipe().train
        typed = typed._replace(steps=usual.steps, rate=usual.lr)
        start = gr.update(interactive=self.runs.running() is None)
        return None, shown, found, *typed, *self.told(found, *typed), start

    def _data(self, choice: Choice, into: Path) -> intake.Data:
        if choice.upload:
            return intake.take_upload(Path(choice.upload), into)
        sample = self.samples.get(choice.sample or "")
        if sample is None:
            raise BadInput(texts.NO_DATA)
        return intake.take_sample(sample.path)

    def _taken(self) -> list[str]:
        return [*self.store.names(), *self.runs.taken()]

    # 2. Settings.

    def told(self, found: Found | None, *typed: Any) -> tuple[str, str]:
        """What the run will do, and the command that does the same, or why the name will not do."""
        if not found:
            return "", texts.NO_COMMAND
        settings = Typed(*typed)
        try:
            plan = self._plan(found, settings, Path("x"))
            kind = texts.PICTURES if found["pictures"] else texts.TEXTS
            takes = texts.takes(kind, *minutes(plan.recipe().train, found["tokens"], self.base, self.runs.folder))
        except AdapterError as error:
            return without_folders(str(error)), texts.NO_COMMAND
        try:
            check_name(settings.name or "", self._taken())
        except BadInput as error:
            return takes, str(error)
        own = self.runs.folder != USUAL
        return takes, plan.command(f"{self.runs.folder.name}/{plan.name}" if own else "")

    def _plan(self, found: Found, typed: Typed, data: Path) -> Plan:
        sample = self.samples.get(found["sample"])
        return Plan(
            name=(typed.name or "").strip() or texts.NAME_HINT,
            data=data,
            shown=found["shown"],
            pictures=found["pictures"],
            description=" ".join((typed.description or "").split())[:LONGEST_DESCRIPTION],
            steps=None if typed.steps is None else int(typed.steps),
            lr=None if typed.rate is None else round(float(typed.rate), 6),
            base=self.base,
            template=found["template"],
            extra=sample.settings if sample else {},
        )

    # 3. Run. Updates as `panel` makes them.

    def start(self, sample: str | None, upload: str | None, found: Found | None, *typed: Any) -> Updates:
        """Train. What is found is looked up anew: what comes from a browser may be anything."""
        choice, settings = Choice(sample, upload), Typed(*typed)

        def plan(folder: Path) -> tuple[Plan, str, str]:
            data = self._data(choice, folder)
            preview = intake.preview(data, self.base)
            chosen = self.samples.get(choice.sample or "") if not choice.upload else None
            now = _found(preview, chosen)
            picture = str(chosen.picture) if chosen and chosen.picture else ""
            return self._plan(now, settings, data.path), chosen.question if chosen else "", picture

        return self._acted(None, found, lambda: self.runs.start(settings.name or "", self.store.names(), plan))

    def stop(self, chosen: str | None, found: Found | None) -> Updates:
        return self._acted(chosen, found, lambda: self.runs.stop(chosen or ""))

    def go_on(self, chosen: str | None, found: Found | None) -> Updates:
        return self._acted(chosen, found, lambda: self.runs.go_on(chosen or ""))

    def _acted(self, chosen: str | None, found: Found | None, act: Callable[[], str | None]) -> Updates:
        try:
            chosen = act() or chosen
        except AdapterError as error:
            toast(error)
        except Exception:
            log.exception("a training run could not be changed")
            toast(AdapterError(page_texts.FAILED))
        return self.panel(chosen, found, None)

    def panel(self, chosen: str | None, found: Found | None, known: list[str] | None) -> Updates:
        """Updates of (which, known, run, start, stop, go on, chat, compare, download, log, timer).

        known: the runs that the browser's list has; None if it is to be sent in any case.
        """
        names, running = self.runs.names(), self.runs.running()
        shown = chosen if chosen in names else running or next(iter(names), None)
        which: Any = gr.skip()
        if names != known or shown != chosen:
            which = gr.update(choices=names, value=shown, visible=len(names) > 1)
        run = self.runs.get(shown) if shown else None
        start = gr.update(
            interactive=running is None and bool(found),
            value=texts.START if running is None else texts.busy(running),
        )
        timer = gr.Timer(TICK if running else SLOW_TICK, active=True)
        if run is None:
            hidden = gr.update(visible=False)
            return which, names, nothing_html(texts.NOTHING_YET), start, *[hidden] * 5, "", timer
        return (
            which,
            names,
            run_html(run),
            start,
            gr.update(visible=run.alive, interactive=run.state != "stopping"),
            gr.update(visible=not run.alive and run.state != "ended", interactive=running is None),
            gr.update(visible=run.adapter),
            gr.update(visible=run.adapter),
            self._download(run),
            without_folders(self.runs.log(run.name)),
            timer,
        )

    def _download(self, run: Run) -> Any:
        if run.alive or not run.adapter:
            return gr.update(visible=False)
        try:
            return gr.update(visible=True, value=str(packed(self.runs.folder / run.name)))
        except OSError:
            return gr.update(visible=False)

    # Afterwards.

    def chat_with(self, chosen: str | None, box: dict[str, Any] | None) -> Iterator[Updates]:
        """Updates of (tabs, adapter picker, message box, timer)."""
        if (run := self._servable(chosen)) is None:
            yield (gr.skip(),) * 4
            return
        # Choices and value before the tab: of two updates within one frame Gradio's page drops the first (6.31).
        picker = gr.update(choices=look.picker_choices(self.store), value=run.name)
        yield gr.skip(), picker, _question(run, box), gr.Timer(active=False)
        time.sleep(FRAME_SECONDS)
        yield gr.Tabs(selected="chat"), gr.skip(), gr.skip(), gr.skip()

    def compare_with(self, chosen: str | None, box: dict[str, Any] | None) -> Iterator[Updates]:
        """Updates of (tabs, first pane, second pane, message box, timer)."""
        if (run := self._servable(chosen)) is None:
            yield (gr.skip(),) * 5
            return
        choices = look.short_choices(look.picker_choices(self.store), page_texts.FROZEN_BASE)
        panes = [gr.update(choices=choices, value=value) for value in (BASE_ONLY, run.name)]
        yield gr.skip(), *panes, _question(run, box), gr.Timer(active=False)
        time.sleep(FRAME_SECONDS)
        yield gr.Tabs(selected="compare"), *[gr.skip()] * 4

    def _servable(self, chosen: str | None) -> Run | None:
        run = self.runs.get(chosen or "")
        if run is not None and run.adapter and run.name in self.store.names():
            return run
        toast(BadInput(texts.NO_RUN if run is None else texts.NOT_THERE))
        return None


def packed(folder: Path) -> Path:
    """The adapter in a run's folder as a zip that may leave this machine: no data, no log, no paths."""
    from adapter.files import atomic_write
    from adapter.method.checkpoint import WEIGHTS

    stamp = (folder / WEIGHTS).stat().st_mtime_ns
    into = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()) / f"trained-{folder.name}-{stamp}"
    path = into / f"{folder.name}.zip"
    # The card comes after the weights, when a run has ended.
    files = [folder / name for name in SERVED if (folder / name).exists()]
    if not path.exists() or path.stat().st_mtime < max(file.stat().st_mtime for file in files):
        into.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, f"{folder.name}/{file.name}")
    return path


def _question(run: Run, box: dict[str, Any] | None) -> Any:
    """What to ask the adapter, into an empty message box; what somebody has begun to write stays."""
    begun = box and ((box.get("text") or "").strip() or box.get("files"))
    if begun or not run.record.question:
        return gr.skip()
    files = [run.record.picture] if run.record.picture and os.path.isfile(run.record.picture) else []
    return gr.update(value={"text": run.record.question, "files": files})


def _own(before: Found | None, name: str | None, description: str | None) -> tuple[str, str]:
    """The name and the description that a visitor typed: "" for what was proposed for the data before."""
    own = [(name or "").strip(), (description or "").strip()]
    proposed = (before["name"], before["description"]) if before else ("", "")
    return "" if own[0] == proposed[0] else own[0], "" if own[1] == proposed[1] else own[1]


def _off(name: str, description: str) -> Updates:
    """Updates of (found, the settings, takes, command, start) where there is no data."""
    return None, name, description, gr.skip(), gr.skip(), "", texts.NO_COMMAND, gr.update(interactive=False)


def _found(preview: intake.Preview, sample: Sample | None, name: str = "") -> Found:
    return Found(
        shown=_written(sample.path) if sample else preview.shown,
        pictures=preview.pictures,
        template=preview.template,
        tokens=preview.tokens,
        sample=sample.name if sample else "",
        name=name,
        description=sample.settings.get("description", "") if sample else "",
    )


def _written(path: Path) -> str:
    """A file of the program's own as one writes it in its folder."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
