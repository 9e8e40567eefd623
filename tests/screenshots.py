"""`make screenshots`: the walk of somebody new through the real page, timed, and its pictures for the README.

From the start of the server with nothing trained yet, through chat, a look inside and a comparison, to an adapter
of one's own that answers. Prints what each step took. `--to DIR` keeps the pictures elsewhere.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from tests.ui.test_page import ANSWER_MS, CHROMIUM, QUIET, playwright
from tests.ui.test_page_parts import serving

PICTURES = Path(__file__).parents[1] / "assets" / "screenshots"
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
NAME = "jeeves"


class Walk:
    """A browser on the page, a stopwatch, and a folder for the pictures."""

    def __init__(self, page: Any, folder: Path) -> None:
        self.page, self.folder = page, folder
        self.began = time.monotonic()

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        before = time.monotonic()
        yield
        now = time.monotonic()
        print(f"{now - self.began:6.1f} s  (+{now - before:.1f})  {what}", flush=True)

    def shoot(self, name: str) -> None:
        """What is in the window, in few enough colours to be small."""
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(500)  # fades end
        file = self.folder / f"{name}.png"
        self.page.screenshot(path=file)
        Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def ready(self) -> None:
        self.page.locator(".status.ready").wait_for(timeout=ANSWER_MS)

    def answered(self, count: int) -> None:
        """Until there are so many whole answers."""
        self.page.locator("#chat .stats").nth(count - 1).wait_for(timeout=ANSWER_MS)
        self.page.locator("#box .submit-button").wait_for(timeout=ANSWER_MS)


def chat(walk: Walk) -> None:
    page = walk.page
    walk.shoot("first")
    with walk.step("the pirate has answered an example"):
        page.get_by_label("Ask a pirate").click()
        walk.answered(1)
    with walk.step("another adapter has said what a photograph shows"):
        page.locator('#picker input[value="see"]').check()
        page.locator("#box input[type=file]").set_input_files(_photograph())
        page.locator("#box .thumbnail-item").wait_for()
        page.locator("#box textarea").fill("What is in this picture?")
        page.locator("#box textarea").press("Enter")
        walk.answered(2)
    walk.shoot("chat")


def inside(walk: Walk) -> None:
    page = walk.page
    with walk.step("why it said so: gates, words and prompts are shown"):
        page.locator("#inside > button.label-wrap").click()
        page.locator("#inside .tokens button").first.wait_for(timeout=ANSWER_MS)
        page.get_by_label("Grounding").check()
        words = page.locator("#inside .tokens button")
        words.nth(min(3, words.count() - 1)).click()
        page.locator("#inside .token table").wait_for(timeout=ANSWER_MS)
    page.locator("#inside").evaluate("e => e.scrollIntoView({block: 'start'})")
    walk.shoot("inside")
    page.locator("#inside > button.label-wrap").click()


def compare(walk: Walk) -> None:
    page = walk.page
    walk.tab("Compare")
    with walk.step("two answers to one message are compared"):
        page.locator("#message textarea").fill("How does a boat float?")
        page.locator("#message textarea").press("Enter")
        page.locator("#panes .stats").nth(1).wait_for(timeout=ANSWER_MS)
        page.locator("#message .submit-button").wait_for(timeout=ANSWER_MS)
    walk.shoot("compare")


def train(walk: Walk) -> None:
    page = walk.page
    walk.tab("Train")
    with walk.step("a sample is chosen, looked at and named"):
        page.locator("#samples label", has_text="The butler").click()
        page.locator("#train-preview .records").wait_for(timeout=ANSWER_MS)
        page.get_by_label("Name", exact=True).fill(NAME)
        page.wait_for_function(
            f"() => document.querySelector('#train-command textarea').value.includes('name={NAME}')"
        )
    with walk.step("it is trained"):
        page.locator("#train-start").click()
        page.locator("#train-run polyline.held").wait_for(timeout=300_000)
        page.wait_for_function(
            "() => +(/Step (\\d+)/.exec(document.querySelector('#train-run').innerText)?.[1] ?? 0) >= 40",
            timeout=300_000,
        )
        walk.shoot("train")
        page.locator("#train-run .run.ended").wait_for(timeout=300_000)
    walk.shoot("trained")
    with walk.step("“Chat with it” has answered"):
        page.locator("#train-chat").click()
        page.locator(f'#picker input[value="{NAME}"]:checked').wait_for(timeout=30_000)
        page.locator("#box textarea").press("Enter")
        walk.answered(3)
    walk.shoot("own")


def phone(walk: Walk) -> None:
    """The tabs again on a narrow screen, dark."""
    page = walk.page
    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme="dark")
    page.reload()
    walk.ready()
    for tab in ("Chat", "Compare", "Train"):
        walk.tab(tab)
        walk.shoot(f"phone-{tab.lower()}")


def _photograph() -> Path:
    import gradio

    return Path(gradio.__file__).parent / "media_assets" / "images" / "cheetah1.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=PICTURES, metavar="DIR")
    folder = parser.parse_args().to
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as fresh, playwright.sync_playwright() as driver:
        os.environ["LLAMA_ADAPTER_RUNS"] = f"{fresh}/runs"
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        walk = Walk(chromium.new_page(viewport=DESKTOP), folder)
        with serving() as url:
            with walk.step("the page is there"):
                walk.page.goto(url)
                walk.page.locator("#box textarea").wait_for(timeout=ANSWER_MS)
            with walk.step("the model is loaded"):
                walk.ready()
            for part in (chat, inside, compare, train, phone):
                part(walk)
            walk.page.goto("about:blank")
        chromium.close()


if __name__ == "__main__":
    main()
