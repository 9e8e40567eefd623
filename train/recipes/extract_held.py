"""The phrases of the `extract` recipe's validation and test texts: written apart, never trained on."""

from __future__ import annotations

from train.recipes.extract_grammar import Phrasebook

PERSON = Phrasebook(
    heads=(
        "yesterday evening I got chatting with {name}<, {a role} over at {company}>.",
        "{company} has [hired|taken on] {name}< as its {role}>.",
        "[our point of contact|my counterpart] at {company} is {name}<, the {role}>.",
        "the owner of {company} is {name}<, and the shop is in {city}>.",
        "{name} [makes a living|earns a living] as {a role}< in {city}>.",
        "if anything goes wrong, {name} is your best bet<: {phone}>.",
        "I promised {name} you would drop a line to {email}.",
        "{name} asked that we use {email} from now on.",
        "would you mind putting {name} in the directory?< {phone} is the line to use.>",
        "make sure {name} from {company} ends up in our database.",
        "an old flatmate of mine, {name}, [has become {a role}|ended up at {company}|now calls {city} home].",
        "{name} introduced {self} as {a role}< working out of {city}>.",
        "there's a {role} in {city} by the name of {name}.",
        "you wanted the details of that {role}: {name}< at {company}>.",
        "{name} sends regards< from {city}>.",
        "looking for a good {role}? try {name}.",
        "after ten years abroad {name} is back in {city}.",
        "{name} took over as {role}< at {company}>.",
        "I found {name} [through a friend|online].",
        "{name} picked up the phone when I tried {phone}.",
        "the business card reads {name}<, {role}><, {company}>.",
        "among the guests was {name}<, {a role} from {city}>.",
    ),
    fragments={},
    followups=(
        "{he} earns good money at {company}.", "{company} is where {he} works.", "{he} represents {company}.",
        "{his} trade is that of {a role}.", "{he} scrapes by as {a role}.", "{he} was hired as {a role}.",
        "home for {him} is {city}.", "{he} grew up elsewhere but calls {city} home.", "{city} is where {he} lives.",
        "the quickest way to get hold of {him} is {phone}.", "if it's urgent, dial {phone}.", "{he} left {phone} as a number.",
        "try {him} on {phone}.", "{he} checks {email} every day.", "messages should go to {email}.", "drop {him} a line: {email}.",
        "{he} asked for everything to be sent to {email}.",
    ),
    notes={
        "name": ("{raw name}",), "role": ("{raw role}", "employed as {a role}"), "company": ("{raw company}", "employed by {company}"),
        "city": ("{raw city}", "resident of {city}"), "email": ("{raw email}", "e: {raw email}"), "phone": ("{raw phone}", "p: {raw phone}"),
    },
    note_heads=("", "", "address book entry:", "save this person:"),
    labels={
        "name": ("Surname and first name", "Contact person"), "role": ("Occupation", "Function"),
        "company": ("Workplace", "Business"), "city": ("Place of residence", "Home town"), "email": ("Email address", "Mailbox"),
        "phone": ("Phone number", "Telephone no."),
    },
    distractors=(
        "{other full} used to sit in the next office.", "what a lovely evening that was.", "we swapped numbers after the concert.",
        "{he} owns {n} bicycles.", "say hi from me if you two speak.", "no idea how old {he} is.", "{he} has a dog named Rufus.",
        "I trust {him} completely.", "{other} can vouch for {him}.",
    ),
)  # fmt: skip

SELF = Phrasebook(
    heads=(
        "hey there, {name} on the line<, I'm calling from {company}>.",
        "allow me to introduce myself: {name}<, {role}><, resident in {city}>.",
        "you don't know me yet; the name is {name}.",
        "{name} is my name< and {role} is my trade>.",
    ),
    fragments={},
    followups=(
        "these days {company} pays my salary.", "I earn my money as {a role}.", "my home is {city}.", "the best number for me is {phone}.",
        "feel free to ring {phone}.", "my inbox is {email}.", "replies to {email}, if you don't mind.", "you'll find me at my desk in {city}.",
    ),
    notes={}, note_heads=(), labels={},
    distractors=("we sat at the same table in spring.", "{other} speaks highly of you.", "sorry to write out of the blue.", "I have {n} questions."),
)  # fmt: skip

MEETING = Phrasebook(
    heads=(
        "{with} suggested {date}< {at time}>< for a chat about {topic}>.",
        "could we squeeze in half an hour {on date}< {at time}> to sort out {the topic}?",
        "I've pencilled you in {on date}< {at time}>.",
        "block {date} in your diary<, we are off to see {with}>.",
        "the discussion of {the topic} has been put off until {date}.",
        "come round {on date}<, {in place},> so that we can thrash out {the topic}.",
        "{with} can make it {at time}< {on date}>.",
        "my appointment {with with} has been brought forward to {time}.",
        "everyone who cares about {the topic} should turn up {in place}< {at time}>.",
        "would {time} be too early for you?< I was thinking of {date}.>",
        "I'm due to see {with}< {on date}>< {at time}>.",
        "we're gathering {in place}< {on date}>< {at time}>< to hash out {the topic}>.",
        "fancy a coffee {with with}< {on date}>?",
        "there will be a round table on {topic}< {on date}>< {in place}>.",
        "{with} and the rest of us will convene {in place}< {at time}>.",
        "{the topic} needs a decision, so let's all get in one room {on date}.",
        "I have to catch {with}< {on date}> for a word about {the topic}.",
        "no chance this week, but {with} is up for a chat {on date}< {at time}>.",
        "your interview {with with} is scheduled< for {date}>< {at time}>.",
        "expect {with} {in place}< {at time}>.",
        "{in place}, {time}: we'll put our heads together< over {the topic}>.",
        "tell the others that we get together {on date}< {in place}>.",
        "a working lunch {with with} has been laid on< {in place}>.",
        "the get-together about {the topic} kicks off {at time}.",
    ),
    fragments={},
    followups=(
        "the plan is to sort out {the topic}.", "{the topic} will be the only item.", "what we need to settle is {the topic}.",
        "the whole point is {the topic}.", "{with} has already said yes.", "{with} will be sitting in.", "you'd be talking to {with}.",
        "{date} was the only day left.", "keep {date} free.", "we settled on {date}<, {at time}>.", "the day to remember is {date}.",
        "doors open {at time}.", "things kick off {at time}.", "aim to arrive {at time}.", "everyone should be there {at time}.",
        "they're putting us {in place}.", "you'll find us {in place}.", "head for {place}.", "the venue this time is {place}.",
    ),
    notes={
        "topic": ("{raw topic}", "concerns {topic}"), "with": ("{raw with}", "together with {raw with}"), "date": ("{raw date}",),
        "time": ("{raw time}", "at about {raw time}"), "place": ("{raw place}", "over at {raw place}"),
    },
    note_heads=("diary:", "gathering:", "conference call", "appt.", "one-on-one"),
    labels={
        "topic": ("Concerning", "Discussion of"), "with": ("People", "Meeting partner"), "date": ("Scheduled for", "Calendar day"),
        "time": ("Hour", "Beginning"), "place": ("Address", "Meeting point"),
    },
    distractors=(
        "I'll have had only {n} hours of sleep.", "wear something warm.", "dress code is casual.", "{other} sends apologies.",
        "we got through {n} pages last time.", "shout if you would rather skip it.", "the coffee there is dreadful.",
        "it shouldn't drag on.", "I'm bringing biscuits.",
    ),
)  # fmt: skip

ORDER = Phrasebook(
    heads=(
        "{customer} is after {q item}< and will pay {price}>.",
        "we're running low, so {q item} would be great< {by date}>.",
        "could you see to it that {q item} [goes|gets] to {customer}?",
        "put {q item} aside for {customer}.",
        "I owe {customer} {q item}< {by date}>.",
        "my sister is desperate for {q item}<, {price} is her limit>.",
        "{customer} just placed an order: {q item}<, {price}>.",
        "a request came in from {customer}, who is keen on {q item}.",
        "kindly dispatch {q item}< to {customer}><, arriving {by date}>.",
        "I have {price} to spend on {q item}.",
        "how soon could I have {q item}?< {date} is my deadline.>",
        "this time we'd go for {q item}< at {price}>.",
        "please supply {customer} with {q item}.",
        "{q item} went to {customer}< for {price}>.",
        "hoping to pick up {q item}< {on date}>.",
        "over the phone {customer} settled on {q item}< at {price} apiece>.",
        "{customer} can't do without {q item}.",
        "the parcel should contain {q item}< and go to {customer}>.",
        "would {price} be enough for {q item}?",
        "ring up {q item}, that comes to {price}.",
        "{date} is when {customer} expects {q item}.",
        "all we're missing is {q item}.",
        "send along {q item} as well<, {customer} will settle the bill>.",
    ),
    fragments={},
    followups=(
        "altogether {raw quantity} should do.", "the number of pieces is {raw quantity}.", "we'd want {raw quantity}.",
        "we shook hands on {price}.", "the bill comes to {price}.", "{price} was the figure on the website.",
        "I can go up to {price}.", "{customer} will foot the bill.", "the parcel is meant for {customer}.",
        "put {customer} on the invoice.", "make the package out to {customer}.", "{date} is the deadline.",
        "it can't be later than {date}.", "we'd love to see it here {by date}.", "expect us {on date} to collect it.",
    ),
    notes={
        "item": ("{q item}", "{raw item}<, {raw quantity} unit(s)>", "{raw item}"), "quantity": ("{raw quantity} unit(s)", "count {raw quantity}"),
        "price": ("{raw price}", "costs {raw price}"), "customer": ("{raw customer}", "buyer {raw customer}"),
        "date": ("{raw date}", "deadline {raw date}"),
    },
    note_heads=("shopping:", "order note:", "stock request:", "orders today:"),
    labels={
        "item": ("Goods", "Ordered"), "quantity": ("Units", "Pieces"), "price": ("To pay", "Charge"),
        "customer": ("Recipient", "Ordered by"), "date": ("Deadline", "Arrival"),
    },
    distractors=(
        "the previous batch had {n} scratches.", "I've shopped with you for {n} years.", "surprise me with the colour of the box.",
        "a receipt would help.", "{other} picked the model.", "my cat ruined the last one.", "gift paper would be lovely.",
        "ours fell off a lorry.", "leave it with the porter.",
    ),
)  # fmt: skip

BOOKS = {"person": PERSON, "self": SELF, "meeting": MEETING, "order": ORDER}

OPENINGS = (
    "hiya,", "evening all,", "good afternoon {other},", "to whom it may concern,", "quick update:", "a little something for your records:",
    "right,", "just heard back.", "{other}, one small thing:", "greetings!", "apologies for the silence.", "heads up:",
)  # fmt: skip
CLOSINGS = (
    "ta!",
    "much obliged.",
    "speak tomorrow then.",
    "all the best",
    "appreciate it!",
    "over and out.",
    "warmly",
    "does that work?",
)
INSTRUCTIONS = (
    "Pull the key facts out of this note: {text}", "I need this as a JSON record.\n\n{text}", "Fill in a form from this: {text}",
    "{text}\n\nWhat would that be as structured data?", "Summarise as key-value pairs: {text}", "Which fields can you find in: {text}",
)  # fmt: skip
SEPARATORS = (", ", " // ", " · ", "; ", "\n", " -- ")
BLOCK_TITLES = {
    "person": ("", "Address card"),
    "meeting": ("Agenda item", "Upcoming meeting"),
    "order": ("Shop order", "Purchase request"),
}
SIGNATURE_BODIES = (
    "it was a pleasure to talk on the phone.",
    "we are happy to send you samples.",
    "sorry that I missed your call.",
    "I attach the documents you wanted.",
)
SIGNOFFS = ("Sincerely,", "With kind regards,", "Warm wishes,", "Take care,")
CHAT = (
    ("Hey, who are you?", "I'm an AI assistant. Ask me anything."), ("How many legs does a spider have?", "A spider has eight legs."),
    ("Recommend a book.", "You might enjoy The Hobbit by J. R. R. Tolkien."), ("What's the opposite of hot?", "The opposite of hot is cold."),
    ("Translate cat into Spanish.", "Cat in Spanish is gato."), ("Cool, thank you", "My pleasure! Let me know if there is more."),
    ("What should I cook tonight?", "A simple tomato pasta is quick and tasty."), ("When did World War II end?", "World War II ended in 1945."),
)  # fmt: skip
