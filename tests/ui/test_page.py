"""The page in a real browser, on the real embedded base with the shipped adapters: what answers there."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from adapter.serve.store import SHIPPED
from adapter.ui import theme
from adapter.ui.texts import page as texts
from tests.app_process import app_process, free_port, wait_until
from tests.browser import PHOTOGRAPHS, Visitor

pytestmark = [pytest.mark.slow, pytest.mark.browser]
STATS = re.compile(r"(frozen base|\w+ · strength [\d.]+) · \d+ tokens? · [\d.]+ tokens/s")


def test_an_answer_streams_and_the_swap_changes_it(visit, real_page):
    visitor = visit()
    with real_page.steps_of(0.1):  # on a fast machine it would come at once
        plain = visitor.answering(lambda: visitor.type("Why is the sky blue?"))
    seen = visitor.page.evaluate("() => window.shown")
    assert len(seen) >= 2 and plain.startswith(seen[0].rstrip())
    assert STATS.match(visitor.stats()) and visitor.stats().startswith("frozen base")
    visitor.pick("pirate")
    assert visitor.answering(visitor.button("Retry").click) != plain
    assert visitor.stats().startswith("pirate · strength 1 ·")
    visitor.set("Strength", 0)
    assert visitor.answering(visitor.button("Retry").click) == plain  # strength 0 is the frozen base
    assert len(visitor.answers()) == 1


def test_a_newcomer_meets_a_film_that_the_strength_moves_and_is_answered_by_its_adapter(visit):
    visitor = visit()
    assert visitor.first_picked == "pirate"
    frame = visitor.page.locator("#chat .film[data-shown] .frames p:visible")
    answers = json.loads(theme.FILM_EXAMPLE.read_text(encoding="utf-8"))[0]["answers"]  # the pirate's film
    base, _, plain, _, doubled = ("".join(word for word, _ in answer) for answer in answers)
    frame.get_by_text(base).wait_for()
    visitor.page.locator("#strength input[type=range]:disabled").wait_for()
    visitor.pick("pirate")
    for strength, answer in ((1, plain), (2, doubled), (0, base)):
        visitor.set("Strength", strength)
        frame.get_by_text(answer).wait_for()
    visitor.pick("see")
    visitor.set("Strength", 1)
    frame.get_by_text("traffic light").wait_for()
    visitor.page.locator("#chat .film[data-shown] img").evaluate("e => e.decode()")
    before = visitor.page.locator("#dock").bounding_box()
    visitor.pick("pirate")
    visitor.ask("Why is the sky blue, and the sea green? " * 40)
    wait_until(lambda: visitor.page.locator("#dock").bounding_box() == before)
    assert visitor.page.evaluate("() => document.documentElement.scrollHeight") == 900


def test_an_adapter_that_was_added_here_is_deleted_with_undo(visit):
    visitor = visit()
    page, runs = visitor.page, Path(os.environ["LLAMA_ADAPTER_RUNS"])
    shutil.copytree(SHIPPED / "pirate", runs / "macaw")  # while the page is open
    visitor.pick("macaw")
    visitor.open_drawer()
    page.locator("#mix > .label-wrap").click()
    mix = page.get_by_label(texts.SECOND_ADAPTER, exact=True)
    mix.click()
    page.get_by_role("option", name="pirate").click()
    page.locator("#delete-adapter").click()
    undo = page.get_by_role("button", name=texts.undo_delete("macaw"))
    undo.wait_for()
    assert visitor.picked == "" and not (runs / "macaw").exists()
    wait_until(lambda: mix.input_value() == texts.NO_MIX)
    undo.click()
    wait_until(lambda: visitor.picked == "macaw")
    assert (runs / "macaw").is_dir()
    page.goto("about:blank")
    shutil.rmtree(runs / "macaw")


def test_a_question_about_a_picture_is_asked_again_after_a_reload(visit):
    visitor = visit()
    visitor.open_conversation_panel()
    visitor.pick("see")
    visitor.set("Strength", 0.9)
    visitor.set("Temperature", 1.2)
    visitor.page.get_by_label("Seed").fill("5")
    seen = visitor.ask_about(PHOTOGRAPHS / "cheetah1.jpg", 'It\'s "raining" & 5 > 3; what $now?')
    visitor.reload()
    visitor.loaded_picture()
    assert visitor.answering(visitor.button("Retry").click) == seen and "no image" not in visitor.stats()


def test_a_server_that_is_gone_is_red_and_nothing_is_lost_when_it_is_back(browser, tmp_path):
    port = free_port()
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    with app_process(tmp_path, port=port) as server:
        visitor = Visitor(context, server.url)
        visitor.ask("Good morning.")
        rows = visitor.rows()
        visitor.box.fill("Not sent yet")
        visitor.page.evaluate("() => { window.old = true; }")
        server.process.terminate()
        visitor.page.get_by_role("alert").get_by_text(texts.SERVER_GONE).wait_for()
        assert not visitor.page.locator("#status").is_visible()
        server.process.wait()
    with app_process(tmp_path, port=port):
        visitor.page.wait_for_function("() => !window.old && document.querySelector('.status.ready')")
        assert not visitor.page.locator("#server-gone").is_visible()
        wait_until(lambda: visitor.rows() == rows and visitor.box.input_value() == "Not sent yet")
        assert visitor.answering(lambda: visitor.box.press("Enter"))
    context.close()


def test_extract_answers_with_a_table(visit):
    visitor = visit()
    page = visitor.page
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visitor.pick("extract")
    visitor.set("Max tokens", 96)
    visitor.ask("Please save Maria Keller from Nordlicht Ltd, maria.keller@gmail.com")
    rows = page.locator("#chat .json-answer > table > tbody > tr").all()
    shown = {row.locator("th").first.inner_text(): row.locator("td").first.inner_text() for row in rows}
    assert shown["type"] == "person" and shown["name"] == "Maria Keller"
    # Its text is behind it, and is what is copied.
    page.locator("#chat .json-answer summary").click()
    page.locator("#chat .bot-row ~ * [title='Copy message']").first.click()
    code = page.locator("#chat .json-answer code").inner_text()
    wait_until(lambda: page.evaluate("() => navigator.clipboard.readText()") == code)
    assert json.loads(code) == shown
