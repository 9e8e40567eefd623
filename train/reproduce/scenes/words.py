"""The words that questions without a picture are made of. Knows nothing of questions."""

from __future__ import annotations

TOWNS = ("Milo", "Arno", "Bela", "Tula", "Runo", "Kora", "Dena", "Sora")
GOODS = ("salt", "wool", "corn", "silk", "iron", "milk", "fish", "wood", "gold", "rice")
NAMES = ("Ann", "Ben", "Eva", "Leo", "Mia", "Sam", "Tom", "Zoe")
STUFFS = ("rock", "stick", "glass", "rope", "cloth", "coin", "shell", "brick")
STATES = ("hot", "cold", "wet", "dry", "hard", "soft", "heavy", "light")
NEW_WORDS = ("dax", "blick", "wug", "toma", "fep", "zib", "norg", "kiv")
VERBS = ("run", "sing", "eat", "sleep", "jump", "read", "swim", "cook")

NOUNS = [
    "cat",
    "dog",
    "cup",
    "hat",
    "pen",
    "car",
    "tree",
    "bird",
    "book",
    "door",
    "hand",
    "king",
    "leaf",
    "moon",
    "nail",
    "road",
    "ship",
    "song",
    "star",
    "town",
    "wall",
    "wing",
    "boat",
    "cake",
    "desk",
    "farm",
    "game",
    "hill",
    "lamp",
    "map",
]

OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("open", "closed"), ("day", "night"), ("fast", "slow"),
    ("wet", "dry"), ("old", "new"), ("good", "bad"), ("hard", "soft"), ("light", "dark"), ("rich", "poor"),
    ("first", "last"), ("full", "empty"), ("happy", "sad"), ("early", "late"), ("high", "low"), ("long", "short"),
    ("near", "far"), ("right", "wrong"), ("strong", "weak"), ("thick", "thin"), ("true", "false"), ("win", "lose"),
)  # fmt: skip

CAPITALS = (
    ("Paris", "France"), ("Rome", "Italy"), ("Madrid", "Spain"), ("Berlin", "Germany"), ("London", "England"),
    ("Athens", "Greece"), ("Cairo", "Egypt"), ("Tokyo", "Japan"), ("Moscow", "Russia"), ("Vienna", "Austria"),
    ("Lima", "Peru"), ("Delhi", "India"), ("Dublin", "Ireland"), ("Warsaw", "Poland"), ("Lisbon", "Portugal"),
    ("Beijing", "China"), ("Oslo", "Norway"), ("Havana", "Cuba"), ("Seoul", "Korea"), ("Ottawa", "Canada"),
)  # fmt: skip

WORK = (
    ("baker", "bread"), ("farmer", "crops"), ("tailor", "clothes"), ("teacher", "lessons"), ("potter", "pots"),
    ("singer", "songs"), ("writer", "books"), ("painter", "pictures"), ("cook", "meals"), ("brewer", "beer"),
    ("poet", "poems"), ("builder", "houses"), ("jeweler", "rings"), ("shoemaker", "shoes"), ("miner", "coal"),
    ("carpenter", "tables"),
)  # fmt: skip

ANIMALS = [
    "dog",
    "cat",
    "horse",
    "cow",
    "lion",
    "tiger",
    "bear",
    "wolf",
    "fox",
    "rabbit",
    "mouse",
    "goat",
    "sheep",
    "duck",
    "eagle",
    "frog",
    "snake",
    "whale",
    "shark",
    "monkey",
    "camel",
    "zebra",
    "deer",
    "pig",
]
NOT_ANIMALS = [
    "table",
    "chair",
    "spoon",
    "hammer",
    "bottle",
    "window",
    "paper",
    "pencil",
    "shirt",
    "shoe",
    "bridge",
    "clock",
    "mirror",
    "bucket",
    "ladder",
    "candle",
    "button",
    "basket",
    "pillow",
    "carpet",
    "needle",
    "wheel",
    "brick",
    "kettle",
]
LIQUIDS = [
    "water",
    "milk",
    "oil",
    "juice",
    "tea",
    "wine",
    "coffee",
    "honey",
    "beer",
    "blood",
    "ink",
    "petrol",
    "vinegar",
    "soup",
    "lemonade",
    "gasoline",
]
SOLIDS = [
    "stone",
    "wood",
    "iron",
    "glass",
    "gold",
    "paper",
    "bone",
    "rock",
    "steel",
    "brick",
    "coal",
    "salt",
    "copper",
    "silver",
    "plastic",
    "marble",
]


def plural(noun: str) -> str:
    """The regular plural of a word used here."""
    if noun == "fish":
        return noun
    return noun[:-1] + "ves" if noun.endswith("leaf") else noun + "s"
