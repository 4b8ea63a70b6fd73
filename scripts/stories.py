"""Short stories whose last word can only be known from earlier in the story, as many as one asks for.

A story is a small world written down: *facts* pair a key with a value (a person and a kite, a ring and a drawer), then
*events* pass: a reminder repeats a fact, a change gives a key a new value, a trade swaps two values without naming
them, and some sentences mean nothing. The *ending* then asks for one value, or for one key, as its last word:

    facts   Nora carried a lantern. Hugo had a violin. Vera kept a compass in her pocket.
    events  It rained a little. Then Nora and Hugo traded what they had.
    ending  At sunset Nora went home with the | violin

The last sentence never holds its own answer, so the ending alone is not enough. Most of the stories hold one word
that fits; the others hold several, and there only who reads with care can choose. A small model learns the first kind
within minutes and guesses at the second, which leaves its score where damage and improvement both show. This is the
shape of LAMBADA (Paperno et al., 2016): the context is everything before the last space, the target is the word after
it. Stories end without a full stop for that reason.

Training and held-out stories cannot meet: a hash of the text decides which of the two a story belongs to, so the split
holds for every seed (`is_held_out`). Nothing here needs more than the standard library.
"""

import hashlib
import random
from collections.abc import Iterator
from itertools import pairwise

from story_themes import FILLERS, OPENINGS, PETS, RACES, THEMES, WORDS, Theme

FEWEST_WORDS = 15
MOST_WORDS = 90
MOST_EVENTS = 4
FACTS = {1: 14, 2: 4, 3: 2}
"""How many facts a story tells, and how often."""
HELD_OUT_SHARE = 16  # One story in sixteen is held out.


def generate_stories(seed: int, *, held_out: bool, plain: bool = False) -> Iterator[str]:
    """Yield stories of one side of the split without end; the same seed yields the same stories.

    Held-out stories ask one question. Training stories ask up to four, for every answer is a chance to learn. A plain
    story has no opening, no events and no least length.
    """
    dice = random.Random(seed)
    while True:
        story = tell(dice, questions=1 if held_out else dice.randint(1, 4), plain=plain)
        fewest = 1 if plain else FEWEST_WORDS
        if fewest <= len(story.split(" ")) <= MOST_WORDS and is_held_out(story) == held_out:
            yield story


def is_held_out(story: str) -> bool:
    """Say which side of the split a story is on, from its text alone."""
    return hashlib.sha256(story.encode()).digest()[0] % HELD_OUT_SHARE == 0


def tell(dice: random.Random, *, questions: int, plain: bool = False) -> str:
    """Make up one story of any length that asks at most so many questions; its last word is an answer."""
    kind = dice.random()
    if kind < 0.10:
        facts, events, endings = tell_of_pets(dice)
    elif kind < 0.18:
        facts, events, endings = tell_of_a_race(dice)
    else:
        facts, events, endings = tell_of(dice.choice(THEMES), dice, most_events=0 if plain else MOST_EVENTS)
    dice.shuffle(endings)
    questions_asked = ". ".join(endings[:questions])
    if plain:
        return " ".join([*facts, *events, questions_asked])
    for filler in dice.sample(FILLERS, dice.randint(0, 3)):
        events.insert(dice.randint(0, len(events)), filler)
    opening = [dice.choice(OPENINGS)] if dice.random() < 0.6 else []
    return " ".join([*opening, *facts, *events, questions_asked])


def tell_of(theme: Theme, dice: random.Random, *, most_events: int) -> tuple[list[str], list[str], list[str]]:
    """Pair keys with values, let things happen, and ask for what is true at the end."""
    count = draw_count(dice)
    keys, values = pick(theme.key, count, dice), pick(theme.value, count + 2, dice)
    spare = values[count:]
    state = dict(zip(keys, values, strict=False))
    facts = [say(theme.facts, dice, key=key, value=value) for key, value in state.items()]
    events = []
    for _ in range(dice.randint(0, most_events)):
        key = dice.choice(keys)
        chance = dice.random()
        if theme.changes and spare and chance < 0.35:
            old, state[key] = state[key], spare.pop()
            events.append(say(theme.changes, dice, key=key, value=state[key], old=old))
        elif theme.trades and count > 1 and chance < 0.30:
            a, b = dice.sample(keys, 2)
            state[a], state[b] = state[b], state[a]
            events.append(say(theme.trades, dice, a=a, b=b))
        else:
            events.append(say(theme.reminders, dice, key=key, value=state[key]))
    told = list(dict.fromkeys(events))  # Nobody says the same sentence twice.
    return facts, told, [ask(theme, key, value, dice) for key, value in state.items()]


def ask(theme: Theme, key: str, value: str, dice: random.Random) -> str:
    """End with the value that the key has now or, where the theme can, with the key that has the value."""
    if theme.ask_key and dice.random() < 0.35:
        return f"{say(theme.ask_key, dice, value=value)} {key}"
    return f"{say(theme.ask_value, dice, key=key)} {value}"


def tell_of_pets(dice: random.Random) -> tuple[list[str], list[str], list[str]]:
    """Two steps to the answer: the person leads to the animal, the animal to the place."""
    owning, sleeping, asking = PETS
    count = draw_count(dice)
    people, animals, places = (pick(kind, count, dice) for kind in ("person", "animal", "place"))
    facts = [say(owning, dice, person=p, animal=a) for p, a in zip(people, animals, strict=True)]
    homes = [say(sleeping, dice, animal=a, place=p) for a, p in zip(animals, places, strict=True)]
    dice.shuffle(homes)
    return facts, homes, [f"{say(asking, dice, person=x)} {y}" for x, y in zip(people, places, strict=True)]


def tell_of_a_race(dice: random.Random) -> tuple[list[str], list[str], list[str]]:
    """Pairs of runners in any order; the answer is the first or the last of the whole row."""
    comparing, first, last = RACES
    row = pick("person", dice.randint(3, 4), dice)
    facts = [say(comparing, dice, fast=fast, slow=slow) for fast, slow in pairwise(row)]
    dice.shuffle(facts)
    return facts, [], [f"{say(first, dice)} {row[0]}", f"{say(last, dice)} {row[-1]}"]


def draw_count(dice: random.Random) -> int:
    """Draw how many facts a story tells."""
    return dice.choices(list(FACTS), list(FACTS.values()))[0]


def pick(kind: str, count: int, dice: random.Random) -> list[str]:
    """Draw `count` different words of one kind; a person is any name."""
    words = WORDS["she"] + WORDS["he"] if kind == "person" else WORDS[kind]
    return dice.sample(words, count)


def say(templates: tuple[str, ...], dice: random.Random, **words: str) -> str:
    """Fill one template at random; `{his}` follows the person who is the key."""
    his = "her" if words.get("key") in WORDS["she"] else "his"
    return dice.choice(templates).format(his=his, **words)
