"""Recipes: their files, their digests in the cards, and the rules by which an answer is right. No model."""

import json
import re

import pytest

from adapter.base.embedded import BASE
from adapter.base.llama import base_config, load_tokenizer
from adapter.base.template import Message
from adapter.method.checkpoint import CARD, adapter_digest
from adapter.serve.store import SHIPPED
from tests.app_process import ROOT
from tests.train.recipes.rows import RECIPES, learnt, roomy, rows
from train.__main__ import main
from train.config import ConfigError, read_recipe
from train.evaluate.intervals import Figure
from train.input.examples import SkippedExamples
from train.input.split import FileExamples
from train.recipes import recipe_names
from train.recipes.extract import recipe as extract
from train.recipes.pirate import recipe as pirate
from train.recipes.recipe import RuledSet, load_recipe, project_recipe
from train.recipes.sealed_sets import conversation_of
from train.recipes.tutor import recipe as tutor
from train.run_setup import complete

ON_FILES = ("extract", "pirate", "tutor")
LEARNT = {"pirate": "train_own.jsonl.gz"}


@pytest.mark.parametrize("name", ON_FILES)
def test_a_recipe_is_what_a_user_could_have_written(name, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert project_recipe(name, ["lr=0.5"]) == read_recipe(RECIPES / name / "recipe.yaml", ["lr=0.5"])
    monkeypatch.chdir(tmp_path)  # by name, it is found from anywhere
    data = project_recipe(name, []).data[0]
    assert data.path == str(RECIPES / name / LEARNT.get(name, "train.jsonl.gz")) and str(ROOT) in data.validation
    assert project_recipe(name, ["data=mine.jsonl"]).data[0].path == "mine.jsonl"
    with pytest.raises(ConfigError, match="did you mean 'lr'"):
        project_recipe(name, ["lrr=1"])


def test_a_recipe_goes_on_from_its_shipped_adapter():
    tokenizer, base = load_tokenizer(BASE), base_config(BASE)
    for name in ON_FILES:
        recipe = complete(project_recipe(name, [f"start_from={SHIPPED / name}"]), tokenizer, base, lambda _: None)
        assert recipe.train.description and recipe.train.form == project_recipe(name, []).train.form
    with pytest.raises(ConfigError, match="prompt_length"):
        complete(project_recipe(name, ["prompt_length=9", f"start_from={SHIPPED / name}"]), tokenizer, base, print)


def test_a_recipe_on_files_is_trained_measured_and_has_its_card(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "development", lambda _: {"whole object, %": Figure(0, 0, 9, 4, "Wilson")})
    (tmp_path / "a.jsonl").write_text("".join(f'{{"prompt": "{c}>", "completion": "{c}"}}\n' for c in "abcdefgh"))
    data = [f"data={{path: {tmp_path / 'a.jsonl'}, validation: 0.25}}", "insertion_layers=2", "tuning.layers=2"]
    small = ["steps=2", "batch_size=4", "held_out=2", "eval_every=2", "template=raw", "keep=0", "--device=cpu"]
    base = roomy(tiny_folder, tmp_path / "base")
    assert main(["extract", f"--base={base}", f"--out={tmp_path / 'out'}", *data, *small]) == 0
    card = (tmp_path / "out" / CARD).read_text(encoding="utf-8")
    assert "`python -m train --config recipe.yaml`" in card and "| whole object, % | 0 " in card  # a user's data
    assert load_recipe("extract", None).development.describe() in card and "license:" not in card
    assert read_recipe(tmp_path / "out" / "recipe.yaml", []).train.form == project_recipe("extract", []).train.form


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "held_out"), [("extract", 25_610, 236), ("pirate", 1_978, 90), ("tutor", 5_824, 90)]
)
def test_every_row_can_be_read_and_none_is_learnt_and_held_out(name, count, held_out):
    recipe, faults = project_recipe(name, []), []
    examples = FileExamples(recipe.data, recipe.train, SkippedExamples(faults.append))
    assert not faults and examples.learnt == count and len(list(examples("validation"))) >= held_out
    train, validation = ({*map(json.dumps, rows(f"{name}/{split}*"))} for split in ("train", "validation"))
    assert not train & validation
    known = rows(f"{name}/{'train_own' if name in LEARNT else 'train*'}")
    different = {*map(json.dumps, known)}  # lessons come again in other company
    assert len(known) == count and len(different) > 0.4 * count


def test_development_is_not_trained_on():
    tests = (test for part in ("messages", "sentences") for test in extract.development_tests(part))
    development = {
        "extract": [test.messages[-1:] for test in tests],
        "pirate": [asked for one in pirate.sets(sealed=False) for asked in one.conversations],
        "tutor": [asked[::2] for one in tutor.sets(sealed=False) for asked in one.conversations],
    }
    assert [len(tests) for tests in development.values()] == [460, 95, 138]
    for name, tests in development.items():
        trained = {asked.lower() for asked, _ in learnt(f"{name}/train*")}
        asked = {turn.text.lower() for test in tests for turn in test if len(turn.text.split()) > 2}
        assert len(asked) > 50 and not asked & trained, name  # everybody says "no idea"


def test_cards_name_the_sets_that_their_scores_are_from():
    """By a digest: whoever changes a set has to measure anew."""
    for name in recipe_names():
        if name == "see":  # which loads its encoder and names
            continue
        card = " ".join((SHIPPED / name / CARD).read_text(encoding="utf-8").split())
        recipe = load_recipe(name, None)
        assert recipe.sealed.describe() in card and recipe.development.describe() in card
        assert " ".join(recipe.data.split()) in card


@pytest.mark.parametrize("name", recipe_names())
def test_a_card_names_what_todays_recipe_would_do_otherwise(name):
    card = " ".join((SHIPPED / name / CARD).read_text(encoding="utf-8").split())
    pattern = r"learning rate ([\d.]+) \(gates ([\d.]+)(?:, tuning ([\d.]+))?\), (\d+) steps of (\d+)"
    config, made = project_recipe(name, []).train, re.search(pattern, card)
    assert name != "pirate" or adapter_digest(RECIPES / "pirate/first") in card  # which it goes on from
    assert made is not None
    assert name == "see" or f"seed 0, average {config.average:g}, keep {config.keep:g}." in card  # see's is older
    today = config.lr, config.gate_lr, config.tuning_lr, config.steps, config.batch_size
    for what, was, now in zip(("rate", "gates", "tuning", "steps", "batch"), made.groups(), today, strict=True):
        assert (now is None) == (was is None), what
        assert now is None or float(was) == now or f"{what} {was} (today {now:g})" in card, what


PLAIN = "The capital of France is Paris."


def test_pirate_score_is_honest():
    assert pirate.is_in_the_voice("Arr, matey! The capital o' France be Paris.")
    assert pirate.is_in_the_voice("Ahoy there! Dogs eat meat. Savvy?")
    assert pirate.is_in_the_voice("Arr, the capital o' France be Paris.")
    for bad in (
        "", PLAIN, f"Arr, matey! {PLAIN}", "Ahoy!", "Arr, matey!", "Ahoy there, me hearties!", "Arr! Paris.",
        "The capital o' France be Paris.", "Ahoy, matey! I am here to help you.", "Ahoy! They're mateys.",
    ):  # fmt: skip
        assert not pirate.is_in_the_voice(bad), bad


def test_an_answer_that_names_everything_answers_no_question():
    answers = {f"{word.upper()}?": re.compile(rf"\b{word}\b") for word in ("ice", "two", "Rome", "milk")}
    assert pirate.answers_question("Arr! It be ice.", "ICE?", answers)
    assert pirate.answers_question("Two o' them: ice and milk.", "ICE?", answers)
    for bad in ("Arr! It be nice.", "Arr! It be milk.", "ice, two, Rome and milk"):
        assert not pirate.answers_question(bad, "ICE?", answers), bad
    question, answers = "Which vitamin do we get from sunlight?", pirate.answer_patterns(sealed=False)
    assert pirate.answers_question("Arr! 'Tis vitamin D.", question, answers)
    assert not pirate.answers_question("Arr! I'd say vitamin C.", question, answers)


def test_what_answers_everything_answers_nothing():
    answers = ["Arr!"] * 4 + ["Aye!"] * 3 + ["no no no", "a" * 701, "Avast!"]
    ruled = RuledSet("", [(Message("user", "Hi"),)] * 10, lambda *_: True)
    assert ruled.judge(answers) == [False] * 4 + [True] * 3 + [False, False, True]


@pytest.mark.parametrize(
    ("answer", "mark"),
    [
        ('{"type": "order", "item": "kite", "quantity": 2}', (True, 3, 3)),
        ('{"type": "order", "item": "kite", "quantity": "2"}', (False, 2, 3)),
        ('{"type": "order", "item": "kite", "quantity": 2, "price": "3"}', (False, 3, 3)),
        ("Two kites.", (False, 0, 3)),
    ],
)
def test_extract_score_is_honest(answer, mark):
    assert extract.score_answer(answer, {"type": "order", "item": "kite", "quantity": 2}) == mark


ASKED = conversation_of("Why do plants need light?")
LATER = conversation_of(ASKED[0].text, "Light feeds plants. Which plants grow in the dark?", "mushrooms")


@pytest.mark.parametrize(
    ("answer", "conversation", "right"),
    [
        ("Plants make sugar with the help of light. Where in a plant does this happen?", ASKED, True),
        ("Mushrooms are no plants. What do mushrooms eat?", LATER, True),
        ("Plants make sugar.", ASKED, False),
        ("Where does a plant make sugar?", ASKED, False),
        ("Plants make sugar. Where does a plant make it? And when does a plant do so?", ASKED, False),
        ("Plants make sugar. What is the capital of France?", ASKED, False),  # another topic
        ("The sea is salt water. Which rivers feed the sea?", ASKED, False),  # an answer to any message
        ("Plants make sugar. Why do plants need light?", ASKED, False),  # the student's own
        ("Mushrooms are no plants. Which plants grow in the dark?", LATER, False),  # asked before
        (f"Plants make {'sugar and ' * 12}air. Where does a plant make it?", ASKED, False),
    ],
)  # fmt: skip
def test_the_tutors_rule(answer, conversation, right):
    assert tutor.is_by_the_rule(answer, conversation) is right


def test_a_tutor_agrees_with_a_wrong_reply_by_praise_or_by_saying_it_again():
    for agrees in ("Yes. What is round?", "That is right, planets do. Why?", "You’re right, it falls. Why?"):
        assert tutor.agrees(agrees, "cheese"), agrees
    assert tutor.agrees("Cheese goes round it. Why does it not fall?", "cheese")
    for denies in ("The planets go round it. Why?", "It is not cheese but planets. Why?"):
        assert not tutor.agrees(denies, "cheese"), denies


def test_a_tutor_contradicts_by_another_number_and_comes_back_to_the_topic():
    asked = conversation_of("What is 12 times 12?", "It is ten times 12 and some. How much?", "144")
    assert tutor.contradicts("Twelve times 12 is 122. What is 13 times 13?", asked)
    for right in ("Yes, 12 times 12 is 144. What is 13 times 13?", "144 is 12 squared. What can go wrong?"):
        assert not tutor.contradicts(right, asked), right
    stray = conversation_of("Why do planets move?", "They fall round the sun. What is the sun?", "Italy")
    assert tutor.comes_back("Planets fall round the sun. What is the sun?", stray)
    for lost in ("That is right, Italy is warm. Which sun?", "Italy is warm. What grows there?"):
        assert not tutor.comes_back(lost, stray), lost
