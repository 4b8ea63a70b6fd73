"""The words and sentences that stories are made of; `stories.py` puts them together."""

from dataclasses import dataclass

WORDS: dict[str, tuple[str, ...]] = {
    "she": tuple(
        "Nora Vera Mia Clara Lucy Rosa Hilda Ruth Sonja Tilda Wanda Greta Petra Julia Martha Bella Dora Fiona Lena"
        " Maren Paula Sarah Thea Yara Zoe Carmen Beatrix Helga".split()
    ),
    "he": tuple(
        "Hugo Tom Felix Peter Jonas Martin Karl Leo Boris David Frank George Henry Jacob Kaspar Lukas Milo Nils Paul"
        " Quentin Robert Simon Theo Victor Walter Xaver Bruno Caspian".split()
    ),
    "thing": tuple(
        "kite lantern violin compass drum hammer mirror ribbon book candle bell rope map flute ladder whistle pencil"
        " clock camera blanket shovel needle coin marble puppet feather telescope trumpet button thimble magnet"
        " notebook paintbrush hourglass necklace bracelet saddle wheel sponge broom mask guitar poem letter"
        " postcard stamp shell pebble kettle spoon fork ball doll robot".split()
    ),
    "box": tuple(
        "basket drawer jar bucket chest cupboard sack barrel suitcase crate wardrobe teapot vase tin pocket"
        " fireplace mailbox cabinet hat boot pillowcase wheelbarrow cradle piano".split()
    ),
    "place": tuple(
        "garden kitchen harbor mill barn market school church forest castle library bakery station tower cellar meadow"
        " river beach cave farm stable square temple workshop valley lake museum lighthouse theater monastery"
        " chapel desert bridge vineyard".split()
    ),
    "animal": tuple(
        "cat dog pony goat parrot rabbit turtle hen duck hamster lamb donkey fox crow frog lizard piglet raven"
        " squirrel monkey".split()
    ),
    "food": tuple(
        "soup bread cake cheese rice salad porridge pudding fish pie toast honey yogurt stew pasta popcorn cocoa"
        " noodles cabbage spinach".split()
    ),
    "colour": tuple("red blue green yellow white black brown purple pink golden silver grey".split()),
    "garment": tuple("scarf coat shirt dress cap jacket sweater cloak vest skirt belt robe".split()),
}

OPENINGS = (
    "It was the first day of spring.",
    "There was a feast in the village.",
    "The holidays had just begun.",
    "Long ago, on a quiet morning, this is what happened.",
    "Everyone remembers that winter.",
    "This story is short.",
    "On Sunday some friends met.",
    "Nobody had slept well that night.",
)
FILLERS = (
    "It rained a little.",
    "The wind was warm.",
    "Someone laughed.",
    "The hours went by slowly.",
    "A cloud hid the sun.",
    "They talked about the weather for a while.",
    "Nothing else happened until noon.",
    "Far away a train went past.",
    "Everybody was hungry by then.",
    "The old song was sung twice.",
    "Snow began to fall.",
    "They rested and told each other jokes.",
)


@dataclass(frozen=True, kw_only=True)
class Theme:
    """What one kind of story says. Templates name `{key}` and `{value}`; `{old}` is the value before a change.

    `{his}` fits a person who is the key. An ending stops right before its answer; a theme without changes or trades
    has none of those events.
    """

    key: str
    value: str
    facts: tuple[str, ...]
    reminders: tuple[str, ...]
    changes: tuple[str, ...] = ()
    trades: tuple[str, ...] = ()
    ask_value: tuple[str, ...]
    ask_key: tuple[str, ...] = ()


THEMES = (
    Theme(
        key="person",
        value="thing",
        facts=(
            "{key} had a {value}.",
            "{key} carried a {value}.",
            "{key} kept a {value} in {his} bag.",
            "A {value} belonged to {key}.",
            "{key} had found a {value} by the road.",
        ),
        reminders=(
            "{key} would not let go of the {value}.",
            "{key} let everyone look at the {value}.",
            "They all asked {key} about the {value}.",
            "Nobody but {key} could touch the {value}.",
        ),
        trades=("Then {a} and {b} traded what they had.", "{a} and {b} made a swap, and both were glad."),
        ask_value=(
            "At sunset {key} went home with the",
            "Before going to bed {key} cleaned the",
            "In the end {key} wrapped a cloth around the",
            "That night {key} dreamed about the",
        ),
        ask_key=(
            "When somebody found the {value} on the grass, they gave it back to",
            "The {value} is still kept today by",
            "If you want to borrow the {value}, you must ask",
        ),
    ),
    Theme(
        key="thing",
        value="box",
        facts=(
            "The {key} was in the {value}.",
            "Somebody had put the {key} in the {value}.",
            "In the {value} there was a {key}.",
            "A {key} lay at the bottom of the {value}.",
        ),
        reminders=(
            "The {key} was safe in the {value}.",
            "Nobody would look for a {key} in the {value}.",
            "The {value} was never opened, so the {key} gathered dust.",
        ),
        changes=(
            "Then a boy moved the {key} from the {old} to the {value}.",
            "Later a girl took the {key} and hid it in the {value}.",
            "The {key} did not stay there, for a thief dropped it into the {value}.",
        ),
        ask_value=(
            "Whoever needs the {key} must look in the",
            "In the morning they found the {key} in the",
            "For a hundred years the {key} stayed in the",
        ),
        ask_key=("They opened the {value}, and in it was the", "The only thing in the {value} was the"),
    ),
    Theme(
        key="person",
        value="place",
        facts=(
            "{key} went to the {value}.",
            "{key} lived near the {value}.",
            "{key} had work at the {value}.",
            "All day {key} waited at the {value}.",
        ),
        reminders=(
            "From the {value}, {key} waved to the others.",
            "{key} liked it at the {value}.",
            "It was noisy at the {value}, but {key} did not care.",
        ),
        changes=(
            "Then {key} left the {old} and walked to the {value}.",
            "After lunch {key} was called to the {value}.",
            "Soon {key} grew tired and took a cart to the {value}.",
        ),
        ask_value=(
            "If you are looking for {key}, go to the",
            "In the evening a messenger met {key} at the",
            "The letter for {key} was taken to the",
        ),
        ask_key=("The one they saw last at the {value} was", "At the {value} the lamp was lit by"),
    ),
    Theme(
        key="person",
        value="food",
        facts=("{key} wanted {value}.", "{key} asked for some {value}.", "The cook promised {key} some {value}."),
        reminders=("{key} could think of nothing but {value}.", "{key} talked about {value} again and again."),
        changes=("Then {key} did not want {old} any more and asked for {value}.",),
        trades=("Then {a} and {b} traded their plates.",),
        ask_value=(
            "At last the cook came and gave {key} a plate of",
            "When {key} sat down at the table, there was a lot of",
        ),
        ask_key=("The cook had made too much {value}, and it was all for", "The plate with the {value} went to"),
    ),
    Theme(
        key="garment",
        value="colour",
        facts=("The {key} was {value}.", "There was a {value} {key}.", "Somebody had sewn a {value} {key}."),
        reminders=("The {value} {key} looked very fine.", "They hung the {value} {key} by the window."),
        changes=("Then the {key} was dyed {value}.", "A painter came by and made the {key} {value}."),
        ask_value=(
            "People who saw the {key} that day remember it was",
            "When the {key} came out of the water it was still",
        ),
        ask_key=("The tailor was proud of all of them, but only one was {value}, the",),
    ),
    Theme(
        key="thing",
        value="person",
        facts=(
            "The {key} was made by {value}.",
            "{value} had bought the {key}.",
            "{value} was the owner of the {key}.",
        ),
        reminders=("The {key} was dear to {value}.", "{value} spoke about the {key}."),
        changes=(
            "Then {old} gave the {key} to {value}.",
            "Then the {key} was sold to {value}.",
            "{value} won the {key} in a game.",
        ),
        ask_value=(
            "Now the {key} belongs to",
            "The {key} was mended and sent to",
            "You can see the {key} if you visit",
        ),
        ask_key=("As a present {value} wrapped up the",),
    ),
)

PETS = (
    ("{person} had a {animal}.", "{person} took care of a {animal}.", "The {animal} was a gift for {person}."),
    ("The {animal} slept in the {place}.", "At the {place} there was room for the {animal}."),
    (
        "Every evening {person} went to feed the pet at the",
        "When {person} called for the pet, an answer came from the",
    ),
)
RACES = (
    ("{fast} ran faster than {slow}.", "{slow} came in after {fast}.", "{fast} passed {slow} before the last turn."),
    ("The prize for the fastest went to", "They all cheered for the winner,"),
    ("Far behind the others, last of all, came", "They waited a long time for the slowest,"),
)
