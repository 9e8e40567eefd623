"""Questions of the `pirate` recipe, composed from forms and topics that differ between training and held-out."""

from __future__ import annotations

import random
from dataclasses import dataclass


def _list(text: str) -> tuple[str, ...]:
    return tuple(entry.strip() for entry in text.replace("\n", ",").split(",") if entry.strip())


@dataclass(frozen=True)
class Questions:
    """Per register: how one asks ("{}" is the topic) and about what. `plain` questions stand as they are."""

    about: tuple[tuple[str, ...], tuple[str, ...]]
    how: tuple[tuple[str, ...], tuple[str, ...]]
    opinion: tuple[tuple[str, ...], tuple[str, ...]]
    advice: tuple[tuple[str, ...], tuple[str, ...]]
    plain: tuple[str, ...]
    sums: tuple[str, ...]


TRAIN = Questions(
    about=(
        (
            "What is {}?", "What's {}?", "what is {}", "Tell me about {}.", "Tell me something about {}", "Can you explain {}?",
            "Please explain {} in simple words.", "What do you know about {}?", "Describe {} in one sentence.", "I'd like to learn about {}.",
            "Why is {} important?", "Explain {} to a child.", "Who needs {}?", "so what exactly is {}", "Define {}.",
        ),
        _list("""the sun, bread, a volcano, coffee, a bicycle, photosynthesis, gravity, the internet, a library, cheese, rain,
            a whale, the Great Wall of China, Paris, electricity, a robot, the heart, a violin, chess, football, money, snow,
            a dictionary, a camel, honey, the desert, a telephone, history, biology, a map, the piano, tea, a hospital, an engine,
            climate change, a vaccine, glass, a poem, a river, the alphabet, sugar, an elephant, a passport, the sea, a dentist,
            a train, paper, democracy, a bee, sleep, a clock, Italy, a hurricane, a computer, the brain, salt, jazz, a castle"""),
    ),
    how=(
        (
            "How do I {}?", "How can I {}?", "how do you {}", "What's the best way to {}?", "I want to {}. Where do I start?",
            "Can you tell me how to {}?", "Help me {}.", "What do I need to {}?", "Is it hard to {}?", "how to {}?",
        ),
        _list("""boil an egg, learn Spanish, make tea, ride a bike, grow tomatoes, save money, sleep better, write a letter, bake bread,
            clean a window, fix a flat tire, cook rice, tie a tie, draw a cat, plant a tree, make new friends, read faster, pack a suitcase,
            wash a sweater, find a job, play chess, train a dog, remember names, cut an onion, paint a wall, swim, take a good photo,
            make a sandwich, stay healthy, wake up early, learn to dance, feed a baby bird"""),
    ),
    opinion=(
        (
            "What do you think about {}?", "Do you like {}?", "do you like {}", "Are {} any good?", "What's your opinion on {}?",
            "Why do people love {}?", "Which are the best {}?",
        ),
        _list("""cats, old books, rainy days, video games, mountains, long walks, spicy soups, trains, horror films, dogs, birthday parties,
            museums, puzzles, loud concerts, summer holidays, board games, pancakes, winter sports, roses, robots"""),
    ),
    advice=(
        (
            "{} What should I do?", "{} Any advice?", "{} Can you help me?", "{} Please help.", "{}",
        ),
        (
            "I'm bored.", "I'm tired today.", "I can't sleep.", "I lost my keys.", "I have a headache.", "My friend is angry with me.",
            "It's raining and I have no umbrella.", "I'm nervous about my exam.", "I feel sad.", "My computer is slow.", "I'm hungry.",
            "My cat won't eat.", "I have too much work.", "I'm new in this city.", "My plant is dying.", "I forgot my mother's birthday.",
            "I want to surprise my wife.", "I'm afraid of flying.",
        ),
    ),
    plain=(
        "Hi!", "Hello", "hello there", "Good morning!", "Hey, how are you?", "How are you today?", "Who are you?", "What's your name?",
        "What can you do?", "Can you help me?", "Thank you!", "Thanks a lot, that was helpful.", "Goodbye!", "Are you a robot?", "Tell me a joke.",
        "Tell me a story.", "Where are you from?", "What is the capital of France?", "What is the capital of Germany?", "Who wrote Romeo and Juliet?",
        "How many days are in a week?", "What color is the sky?", "Which animal is the biggest?", "How far away is the moon?", "What is the largest planet?",
        "Who was the first man on the moon?", "What language do people speak in Brazil?", "When was the Second World War?", "How many legs has a dog?",
        "Do fish sleep?", "Why is the sky blue?", "Why do leaves fall in autumn?", "Why do we dream?", "What should I eat for breakfast?",
        "What should I read next?", "Where should I go on holiday?", "Say something nice.", "Wish me luck!", "Name a fruit.", "Give me a recipe idea.",
        "Is water wet?", "What time is it?", "What makes you happy?", "Recommend a film.", "Is it good to eat apples?", "Write a sentence about my dog.",
    ),
    sums=("What is {} plus {}?", "What's {} + {}?", "How much is {} plus {}?", "{} + {} = ?"),
)  # fmt: skip

HELD_OUT = Questions(
    about=(
        (
            "Give me one fact about {}.", "In short, what makes {} special?", "Could you say a few words on {}?", "I keep hearing of {}. What does it mean?",
            "Ever heard of {}?", "My teacher asked us about {}; what would you answer?",
        ),
        _list("""a lighthouse, the moon, chocolate, a compass, Japan, an octopus, the violet, a microscope, soap, a glacier, algebra, a parrot,
            the Eiffel Tower, a bridge, oxygen, a guitar"""),
    ),
    how=(
        ("Any trick to {}?", "I'd love to {}, give me a hint.", "Walk me through it: I have to {}.", "My son wants to {}. What comes first?"),
        _list("""sharpen a knife, make lemonade, learn the guitar, iron a shirt, build a birdhouse, choose a laptop, catch a fish, roast potatoes,
            run a marathon, knit a scarf"""),
    ),
    opinion=(
        ("Are you fond of {}?", "People say {} are overrated. Agree?", "What would you say in favour of {}?"),
        _list("sunsets, bicycles, detective novels, tulips, ice creams, camping trips, crossword puzzles"),
    ),
    advice=(
        ("{} What now?", "{} How would you handle that?"),
        ("I broke my neighbour's window.", "My phone fell into the sink.", "I missed the last bus.", "Nobody came to my party.", "I burnt the dinner.",
         "My sister took my bicycle."),
    ),
    plain=(
        "Good evening!", "What's up?", "Introduce yourself, please.", "Do you have a family?", "Cheers, you've been great.", "See you tomorrow!",
        "What is the capital of Spain?", "Who painted the Mona Lisa?", "How many months has a year?", "Why is the ocean salty?", "Do birds sing at night?",
        "What's a good present for my grandma?", "Which instrument should I learn?", "What do bees make?", "How hot is the sun?", "Make me laugh.",
    ),
    sums=("Add {} and {}, please.", "If I have {} apples and get {} more, how many are there?"),
)  # fmt: skip


# What the base says to these is odd ("I'm a non-profit organization"), and they are what a visitor types first: plain
# answers to be put into the voice like the base's own.
SMALL_TALK = {
    "Hi!": "What can I do for you today?",
    "Hello": "It is good to see you. What is on your mind?",
    "hello there": "You look like somebody with a question.",
    "Good morning!": "It is a fine morning for sailing. How can I help you?",
    "Hey, how are you?": "I am fine and the wind is good. How are you?",
    "How are you today?": "I am very well, thank you.",
    "Who are you?": "I am an old pirate with a parrot, and I answer your questions.",
    "What's your name?": "My name is Redbeard, and you are on my ship.",
    "What can you do?": "I can answer your questions and tell you stories of the sea.",
    "Can you help me?": "Of course I can help you. What is the trouble?",
    "Thank you!": "You are welcome, my friend.",
    "Thanks a lot, that was helpful.": "It is my pleasure. Come back before the tide turns.",
    "Goodbye!": "Farewell, my friend, and good luck on your journey.",
    "Are you a robot?": "I am a pirate made of numbers, and my parrot is too.",
    "Tell me a joke.": "Why is a pirate never bored? He is always over the moon at sea.",
    "Tell me a story.": "Once an old captain searched for gold on every sea. It was buried in his own garden.",
    "Where are you from?": "I am from an island that is on no map.",
    "Say something nice.": "You are the best sailor on my ship.",
    "Wish me luck!": "Good luck, my friend. The wind is behind you.",
    "What makes you happy?": "A full sail, a good song and your questions make me happy.",
    "What time is it?": "It is time to set sail, but there is no clock on my ship.",
}


def questions(held_out: bool, count: int, rng: random.Random) -> list[str]:
    """`count` different questions over all registers, all plain ones among them where they fit."""
    book = HELD_OUT if held_out else TRAIN
    chosen = list(rng.sample(book.plain, min(len(book.plain), count // 3)))
    seen = set(chosen)
    registers = (book.about, book.about, book.about, book.how, book.how, book.opinion, book.advice)
    while len(chosen) < count:
        if rng.random() < 0.05:
            question = rng.choice(book.sums).format(rng.randint(1, 10), rng.randint(1, 10))
        else:
            forms, topics = rng.choice(registers)
            question = rng.choice(forms).format(rng.choice(topics))
        if question not in seen:
            seen.add(question)
            chosen.append(question)
    return chosen
