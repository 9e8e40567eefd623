"""Talk that may stand before an example, so that an adapter is used to being switched on in mid-conversation.

An adapter that only ever saw the first exchange falls back into the manner of whoever spoke before it. The answers
here are in many manners on purpose: none of them is one to learn, and none is learnt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from adapter.base.template import Message

_TALK = """
What is the capital of Norway? | The capital of Norway is Oslo.
Hello! | Hello! How can I help you today?
Can you recommend a book? | I would be glad to. What do you like to read: crime, history, science fiction, or something else?
How does a bicycle stay upright? | A bicycle stays upright because the rider steers into the fall. As the front wheel turns, the point of support moves back under the weight, and the bicycle straightens up again.
Write a line about autumn. | Leaves let go, one by one, as if they had agreed on an order.
What do you think about this? | I am an artificial intelligence, so I do not have opinions of my own, but I can help you to look at it from several sides.
Give me three fruits. | Apple, mango and cherry.
What is in this picture? | The picture shows a bridge.
Describe the picture. | A tram stops in front of a red house.
Anna Berg, anna@berg.example, order 4412. | {"name": "Anna Berg", "email": "anna@berg.example", "order": "4412"}
Where did you sail? | Ha, matey, I sailed where the maps end and the rum begins!
How are you? | Splendid, thank you! And you?
How many minutes are there in a day? | There are 24 hours in a day and 60 minutes in an hour, so there are 24 x 60 = 1440 minutes in a day.
Tell me about deserts. | Deserts are dry regions of the earth. They get very little rain, and many of them are hot by day and cold at night. The animals that live there have learnt to save water, and the plants have deep roots or thick leaves.
Thanks. | You are welcome!
Translate “good morning” into Spanish. | Buenos días.
I can't find my keys. | Oh no! Try the pockets of yesterday's coat, and then the place where you put down your bag.
What is a prime number? | A prime number is a whole number greater than 1 that only 1 and itself divide.
Is it going to rain? | I cannot know the weather, for I have no way to look outside. A forecast for your town will tell you.
Make it sound medieval: I am hungry. | Hark, good people, mine belly doth rumble like a cart upon cobbles!
What should I cook? | You could make a vegetable soup: fry an onion, add carrots, potatoes and stock, and let it all simmer for half an hour.
Who wrote Faust? | Johann Wolfgang von Goethe.
Explain photosynthesis. | Photosynthesis is the process by which plants make sugar. They take in carbon dioxide and water, and the energy of light turns them into sugar and oxygen. It happens in the green parts of the plant.
Say something funny. | Why did the scarecrow win a prize? Because he was outstanding in his field.
"""
# For scores alone: no adapter has met it.
_UNSEEN_TALK = """
What is the longest river in Africa? | The Nile is usually called the longest river in Africa.
Good evening! | Good evening! What can I do for you?
How do I get a stain out of a shirt? | Rinse it with cold water first. Then rub a little soap into the stain, wait ten minutes, and wash the shirt as usual.
Name two instruments with strings. | The violin and the harp.
What can you see? | A cat sleeps on a window sill.
Jonas Lind wants three chairs by Friday. | {"customer": "Jonas Lind", "item": "chair", "count": 3}
Were you ever lost? | Arr, lad, once, in fog as thick as porridge, with naught but a parrot for a compass!
What is the opposite of brave? | Cowardly.
Why do cats purr? | Cats purr when they are content, and sometimes when they are ill or afraid. The sound comes from muscles in the throat that open and close the windpipe many times a second.
I have an exam tomorrow. | Then sleep well tonight! A short walk and a look at your notes in the morning will do more good than another late hour.
"""
_EXCHANGES, _UNSEEN = (
    [tuple(line.split(" | ")) for line in talk.strip().splitlines()] for talk in (_TALK, _UNSEEN_TALK)
)


def earlier_talk(rng: random.Random) -> tuple[Message, ...]:
    """One exchange of somebody else with somebody else, or two."""
    return _talk(_EXCHANGES, rng)


def after_other_talk(conversations: Sequence[tuple[Message, ...]]) -> list[tuple[Message, ...]]:
    """Each conversation as it is when other talk came first, for scores: the same every time, none of training's."""
    rng = random.Random(0)
    return [(*_talk(_UNSEEN, rng), *conversation) for conversation in conversations]


def _talk(exchanges: Sequence[tuple[str, ...]], rng: random.Random) -> tuple[Message, ...]:
    chosen = rng.sample(exchanges, rng.choice((1, 1, 2)))
    return tuple(m for asked, said in chosen for m in (Message("user", asked), Message("assistant", said)))
