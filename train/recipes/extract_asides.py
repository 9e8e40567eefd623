"""Sentences of the `extract` recipe's training texts that give no field, though they may look like it.

They teach the answer to leave out what the message does not say: hours that are no time of the meeting, people who are
not the customer, places where nobody lives. Their slots are context, never fields. `noisy` goes further: strange words
among those of a sentence teach it to read past words that it has never seen there.
"""

from __future__ import annotations

import random
import re
from functools import cache

from faker import Faker

ANYWHERE = (
    "I [hope|trust] [everyone|the family|everybody at home] is [well|fine|healthy].",
    "[hope to hear from you|write back|answer me] [soon|when you find the time|whenever it suits].",
    "[sorry|excuse me] for [my late answer|the many mails|my spelling|writing in a hurry].",
    "[{other}|my assistant|my wife|my husband|a friend] is [copied in|reading along|helping me with this|away today].",
    "[{other}|{other full}] will [take over|write to you separately|call you later|see to the rest].",
    "[I am|I'm] [typing on my phone|on the bus|in a hurry|still at work|new to this].",
    "the [traffic|weather|queue|noise] was [awful|terrible|unbelievable|not too bad].",
    "it [snowed|rained|was sunny] [all night|for {n} days|the whole weekend].",
    "[I've|I have] [lost my notes|forgotten my glasses|mislaid the old list|a bad cold].",
    "[my train|the bus|my flight] is [late again|{n} minutes late|cancelled].",
    "[we know each other|we go back] [well|for ages|{n} years].",
    "[don't worry|no worries|never mind], [there is time|we'll manage|I can wait|nothing is urgent].",
    "[that is|that's] [the plan|how it is|what I heard|all so far|everything from my side].",
    "[ask|check with] {other} [if anything is unclear|if in doubt|when something is missing].",
    "[feel free|you're welcome] to [ask|write|pass this on].",
    "[you may|please] [delete|ignore|forget] my [last|previous|earlier] [mail|message|note].",
    "I [couldn't|could not] [find it|reach anyone|open the file|get through].",
    "[we|they] [won|lost] by {n} points.",
    "the [coffee|cake|soup] here is [great|cold|worth it].",
    "[no|not a] [problem|big deal] [if not|either way|at all].",
    "[PS:|by the way:] {other} [says hi|is back|has a new car|passed the exam].",
    "[I will|we will|I'll] [be in touch|write again|explain later].",
    "[my|our] [dog|cat|printer|car] is [ill|broken|fine again].",
)
PERSON = (
    "[{he}|{other}] [told|showed] me [a funny story|some pictures|the way].",
    "{he} [has|owns] {n} [cats|bikes|horses|houses].",
    "{he} [plays|teaches] [the piano|chess|tennis|the violin] [at weekends|very well|for fun].",
    "{he} [is|looks] [tall|shy|about {n}|always busy|well organised|good with numbers].",
    "{he} [studied with|went to school with|is married to|is a cousin of] {other}.",
    "{he} [drove|flew|walked] [to {town}|through {town}|past {town}] [once|for a holiday|last summer].",
    "{he} [never|rarely|seldom] [reads messages|answers|complains|is late].",
    "{he} [knows|asked about|worries about|likes] [our plans|my brother|{other}|old cars].",
    "I [like|trust|remember|admire] {him}[| a lot| very much].",
    "[we|they] [had dinner|played cards|shared a taxi|watched the match][| for {n} hours].",
    "{other} [can tell you more|sent me the picture|sat with us|has known {him} for years].",
    "[not to be confused with|unlike] {other full}[, who is retired|, a namesake|].",
    "[a very|such a|quite a] [kind|funny|clever|reliable|quiet] person.",
)
SELF = (
    "[I saw|I read about|I heard of] your [shop|project|article|work].",
    "{other} [thought|said] [I should write|you might help|we would get along].",
    "I [have|own] {n} [cats|bikes|houses].",
    "I [like|love] [chess|old cars|hiking|your website].",
    "[my brother|my sister|{other}] will [join me|help|come along].",
    "I [passed through|flew over|spent a weekend in] {town}[| once].",
    "[looking forward|I hope] to [talk to|meet|work with] you.",
)
MEETING = (
    "[expect|it takes|plan for|allow] [about|around|up to|some] [{n} minutes|an hour|two hours|half a day].",
    "[bring|pack] [a pen|your badge|the contract|something to eat].",
    "[{other}|{other full}|the boss|my deputy] [is on leave|is ill|will not make it|has other plans].",
    "[tickets|seats|chairs|copies] for {n} [people|guests|of us] are [ordered|ready|there].",
    "[I have|I've|we have] [sent|printed|attached|read] the [slides|papers|notes|minutes].",
    "[the last one|last time it|the first round] [was cancelled|went well|was boring|ended in a fight].",
    "[drinks|snacks|sandwiches|tea] [will be served|are on us|are provided].",
    "[take|use] the [lift|side door|stairs|tram number {n}].",
    "[can you|could you|will you] [make it|let me know|tell the rest|take notes]?",
    "[it is|it's] [informal|only a first talk|open to all|nothing special|worth your time].",
    "[please|kindly] [answer|register|vote|reply] [soon|first|by return].",
    "[the first|the other|our old] [idea|plan|slot] [fell through|did not work out|was no good].",
    "[I'm afraid|sadly] [it can't wait|there is no other way|we lost the last vote].",
)
ORDER = (
    "[{other}|my neighbour|a friend|my colleague] [has|bought|praised|showed me|recommended] [the same one|yours|this shop|your work].",
    "[the last|our earlier|the first] [one|ones|delivery|parcel] [broke|was perfect|came late|got lost].",
    "[we|I] [have been|are|am] [a customer|happy with you|loyal to you][| for {n} years| since the start].",
    "[ring|knock|use] the [bell|back door|side gate|buzzer {n}].",
    "[pack|wrap|label] [it|them|everything] [well|twice|separately|in paper].",
    "[it is|it's|that's] [for a birthday|a surprise|for the workshop|a replacement|for the new office].",
    "[we|they] [still have|threw away|returned|gave away] {n} of [the others|the old sort|last year's].",
    "[the colour|the size|the brand] [does not matter|is up to you|should match].",
    "[{other}|my colleague|the driver] [will be at the door|measured twice|can carry it|has the key].",
    "[do you|can you] [gift-wrap|give a discount|take cards|offer a guarantee]?",
    "[another shop|your competitor|the market] [had none|was rude|closed down|let us down].",
    "[the kids|our guests|the {n} of us] [love it|can't wait|asked for it|will be happy].",
    "[no need|don't bother] to [ring|wrap it|send a receipt|hurry].",
)

_CONTEXT = re.compile(r"\{(other|firm|town)| not |\bnot\b|never|instead")
_REPLACED, _DROPPED, _ADDED = 0.12, 0.06, 0.06


@cache
def _words() -> tuple[str, ...]:
    """Some thousand common English words."""
    fake = Faker("en_US")
    return tuple(sorted({word.lower() for word in fake.get_words_list() if word.isalpha()}))


def nonsense(rng: random.Random) -> str:
    """A sentence of words that say nothing, at times with a number or a name."""
    words = rng.choices(_words(), k=rng.randint(3, 8))
    if rng.random() < 0.3:
        words[rng.randrange(len(words))] = rng.choice(("{n}", "{other}", "{other full}"))
    return " ".join(words) + rng.choice((".", ".", "!", "?"))


def noisy(frame: str, rng: random.Random) -> str:
    """A sentence frame with some of its words exchanged, dropped or joined by others; slots stay.

    Frames whose words tell a field from what only looks like one stay as they are.
    """
    if _CONTEXT.search(frame):
        return frame
    words: list[str] = []
    for word in frame.split(" "):
        roll = rng.random()
        if not word.isalpha() or roll >= _REPLACED + _DROPPED + _ADDED:
            words.append(word)
        elif roll < _REPLACED:
            words.append(rng.choice(_words()))
        elif roll < _REPLACED + _ADDED:
            words += [word, rng.choice(_words())]
    return " ".join(words)
