"""`make screenshots`: walks through the real page as a new user and takes the README's pictures.

From the start of the server with nothing trained yet, through Chat, Inside and Compare, to a trained adapter that
answers. `--to DIR` writes the pictures elsewhere.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import ViewportSize, sync_playwright

from tests.app_process import ROOT, app_process
from tests.browser import CHROMIUM, PATIENCE_MS, PHOTOGRAPHS, QUIET, wait_for_fades

PICTURES = ROOT / "assets" / "screenshots"
DESKTOP = ViewportSize(width=1440, height=900)
NAME = "jeeves"
TRAINING = 600_000  # milliseconds, of a processor without bf16


class Walk:
    """A browser on the page, and the folder for the pictures."""

    def __init__(self, page: Any, folder: Path) -> None:
        self.page, self.folder = page, folder
        page.set_default_timeout(PATIENCE_MS)

    def shoot(self, name: str) -> None:
        """A picture of the window with 256 colours."""
        self.page.mouse.move(0, 0)
        wait_for_fades(self.page)
        file = self.folder / f"{name}.png"
        self.page.screenshot(path=file)
        Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)

    def wait_for_answers(self, count: int) -> None:
        """Until so many answers are complete."""
        self.page.locator("#chat .stats").nth(count - 1).wait_for()
        self.page.locator("#box .submit-button").wait_for()


def chat(walk: Walk) -> None:
    page = walk.page
    walk.shoot("first")
    page.locator("#box textarea").fill("Why is the sky blue?")
    page.locator("#box textarea").press("Enter")
    walk.wait_for_answers(1)
    page.locator('#picker input[value="see"]').check()
    page.locator("#box input[type=file]").set_input_files(PHOTOGRAPHS / "cheetah1.jpg")
    page.locator("#box .thumbnail-item").wait_for()
    page.locator("#box textarea").fill("What is in this picture?")
    page.locator("#box textarea").press("Enter")
    walk.wait_for_answers(2)
    walk.shoot("chat")


def inside(walk: Walk) -> None:
    page = walk.page
    page.locator("#inside-open").click()
    page.locator("#inside .tokens button").first.wait_for()
    tokens = page.locator("#inside .tokens button")
    tokens.nth(min(3, tokens.count() - 1)).click()
    page.locator("#inside .token table").wait_for()
    walk.shoot("inside")
    page.locator("#inside-open").click()


def compare(walk: Walk) -> None:
    page = walk.page
    page.get_by_role("tab", name="Compare").click()
    page.locator("#message textarea").fill("How does a boat float?")
    page.locator("#message textarea").press("Enter")
    page.locator("#answers mark").first.wait_for(state="attached")
    walk.shoot("compare")


def train(walk: Walk) -> None:
    page = walk.page
    page.get_by_role("tab", name="Train").click()
    page.locator("#samples label", has_text="The butler").click()
    page.locator("#train-preview .records").wait_for()
    page.get_by_label("Name", exact=True).fill(NAME)
    page.wait_for_function(
        f"() => document.querySelector('#train-command textarea').value.includes('name={NAME}')"
    )
    page.locator("#train-start").click()
    page.locator("#train-run polyline.held-out").wait_for()
    page.wait_for_function(
        "() => +(/Step (\\d+)/.exec(document.querySelector('#train-run').innerText)?.[1] ?? 0) >= 40",
        timeout=TRAINING,
    )
    walk.shoot("train")
    page.locator("#train-run .run.ended").wait_for(timeout=TRAINING)
    walk.shoot("trained")
    page.locator("#train-chat").click()
    page.locator(f'#picker input[value="{NAME}"]:checked').wait_for()
    page.locator("#box textarea").press("Enter")
    walk.wait_for_answers(1)  # in a conversation of its own
    walk.shoot("own")


def phone(walk: Walk) -> None:
    """The tabs on a narrow dark screen."""
    page = walk.page
    page.set_viewport_size(ViewportSize(width=390, height=844))
    page.emulate_media(color_scheme="dark")
    page.reload()
    walk.page.locator(".status.ready").wait_for()
    for tab in ("Chat", "Compare", "Train"):
        page.get_by_role("tab", name=tab).click()
        walk.shoot(f"phone-{tab.lower()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=PICTURES, metavar="DIR")
    folder = parser.parse_args().to
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as driver:
        runs = {"LLAMA_ADAPTER_RUNS": f"{temporary}/runs"}
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        walk = Walk(chromium.new_page(viewport=DESKTOP), folder)
        with app_process(Path(temporary), environment=runs, ready=()) as server:
            walk.page.goto(server.url)
            walk.page.locator("#box textarea").wait_for()
            walk.page.locator(".status.ready").wait_for()
            for part in (chat, inside, compare, train, phone):
                part(walk)
            walk.page.goto("about:blank")
        chromium.close()


if __name__ == "__main__":
    main()
