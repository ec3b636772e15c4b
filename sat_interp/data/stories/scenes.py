"""The sentences of the built-in corpus, as templates (see ``lexicon`` for their notation).

Slots: ``a`` is the hero; ``x`` and ``y`` are any two characters who are already known; ``new`` is
one who is just coming in. ``toy`` and ``color`` stay with the hero for the whole story, ``place``
until somebody goes elsewhere; all else is drawn anew in each scene. A digit at a slot's end asks
for another draw from the same pool (``{animal2}``).

Only a giving frame (below) may put a character's name behind "to" or give one anything: what is
held out of training is decided there.
"""

from __future__ import annotations

from typing import NamedTuple

OPENINGS = (
    "Once upon a time, there was a little {a.kid} named {a}. {a.He} had {color.a} {toy}.",
    "Once upon a time, there was {trait.a} {a.kid} named {a}. {a.He} loved {a.his} {color} {toy} "
    "very much.",
    "There once was {trait.a} {a.kid} called {a}. {a.He} lived near the {place} with {a.his} "
    "{family} and {a.his} {color} {toy}.",
    "{a} was {trait.a} {a.kid}. {a.He} liked to {skill} and to play with {a.his} {color} {toy}.",
    "{a} was {feeling} today. {a.His} {family} gave {a.him} {color.a} {toy}, and {a.he} took it "
    "to the {place}.",
    "It was {weather.a} day. {a} had a new toy. It was {color.a} {toy}.",
)

# After a story that begins in the middle of things: what the hero has with them.
BELONGINGS = (
    "{a} also had {color.a} {toy}.",
    "{a} had brought {a.his} {color} {toy}.",
    "{a} had {color.a} {toy} in {a.his} bag.",
)

# How a further character comes in.
ARRIVALS = (
    "{a} had a good friend named {new}. {new} was {trait.a} {new.kid}.",
    "{a}'s best friend was {new}. {new.He} liked to {skill}.",
    "One day, {a} met {trait.a} {new.kid} at the {place}. {new.His} name was {new}.",
    "Soon, {new} came to play with {a}. {new.He} was {feeling}.",
    "A {new.kid} named {new} lived next to the {place}. {new.He} had {size.a} {animal}.",
    "At the {place}, {a} saw {new}. {new.He} was looking at the {animal.s}.",
)


class Frame(NamedTuple):
    """Two characters, one of whom (the giver) turns to the other: text up to the last "to"."""

    text: str
    endings: tuple[str, ...]  # what follows the receiver's name


_GIVEN = (
    ".",
    ". {io} was very {glad}.",
    ' with a smile. "Thank you, {giver}," said {io}.',
    '. "Thank you," said {io}. {io.He} was {glad}.',
    ". {io.He} liked it very much.",
    " and smiled.",
    ". {io} took it {pace}.",
    ' and said, "This is for you, {io}."',
)
_SHOWN = (
    ".",
    ", and they both laughed.",
    ". {io} thought it was {fine}.",
    '. "It is very {fine}," said {io}.',
)
_SAID = (
    ', "I am sorry, {io}." {io.He} was not angry any more.',
    ', "Let us be friends again."',
    ', "You were right, {io}." Then they both laughed.',
    ', "I do not want to fight." {io} said, "Me too, {giver}."',
    ', "Please play with me."',
)

_GREETED = (
    ', "Hello, {io}!"',
    ', "Please play with me."',
    ', "I like your {gift}, {io}."',
    ', "I am {feeling} today." {io} said, "Me too, {giver}."',
    ', "What a {weather} day it is!"',
)

# The frames of the task that circuits are looked for in, one for one those of the TinyStories
# prompts; ``{when}`` is an opener of a
# story or of a later scene.
IOI_FRAMES = (
    Frame("{when} {first} and {second} went to the {place}. {giver} gave {gift.a} to", _GIVEN),
    Frame(
        "{when} {first} and {second} had a lot of fun at the {place}. {giver} gave {gift.a} to",
        _GIVEN,
    ),
    Frame(
        "{when} {first} and {second} were working at the {place}. {giver} decided to give "
        "{gift.a} to",
        _GIVEN,
    ),
    Frame(
        "{when} {first} and {second} were thinking about going to the {place}. {giver} wanted to "
        "give {gift.a} to",
        (*_GIVEN[:2], ", but {giver.he} could not find it.", " first."),
    ),
    Frame("{when} {first} and {second} had a long argument, and afterwards {giver} said to", _SAID),
    Frame("After {first} and {second} went to the {place}, {giver} gave {gift.a} to", _GIVEN),
    Frame(
        "When {first} and {second} got {gift.a} at the {place}, {giver} decided to give it to",
        _GIVEN,
    ),
)

# More of the same kind, so that the receiver is found by its name and not by its frame.
OTHER_FRAMES = (
    Frame(
        "{when} {first} and {second} were playing {game} at the {place}. {giver} found {gift.a} "
        "and showed it to",
        _SHOWN,
    ),
    Frame("{when} {first} sat next to {second} at the {place}. {giver} passed {gift.a} to", _GIVEN),
    Frame(
        "{when} {first} met {second} at the {place}. {giver} was {glad}, so {giver.he} handed "
        "{gift.a} to",
        _GIVEN,
    ),
    Frame("{first} and {second} were hungry. {giver} had {food.a} and gave it to", _GIVEN),
    Frame("{when} {first} {deed}, and {second} {deed2}. {giver} brought {food.a} to", _GIVEN),
    Frame(
        "While {first} and {second} were waiting at the {place}, {giver} told a story about "
        "{animal.a} to",
        (". {io.He} laughed.", ". It was a long story.", " and drew a picture of it."),
    ),
    Frame("{when} {first} saw {second} at the {place}. {giver} {pace} said to", _GREETED),
)

# Names that come back within a few words: what a small model learns to copy from first. Without
# these a transformer of 4 layers (d 64) had not begun to copy names after 2.6 M tokens, with them
# it had after 0.8 M, and 2.5 M into a run of 5.7 M it was right on every held-out IOI prompt.
EXCHANGES = (
    "{x} {act} {y}, and {y} {act} {x}.",
    "{x} {act} {y}. {y} {act} {x} too.",
    "First {x} {act} {y}, and then {y} {act} {x}.",
    "{x} and {y} {stir}. {x} {act} {y}.",
    "{x} and {y} {stir}. {y} {act} {x}.",
    "{x} and {y} {stir}, and {y} {act} {x}.",
    '"Hello, {x}," said {y}. "Hello, {y}," said {x}.',
    '"{x}! {x}!" called {y}. "I am here, {y}!" said {x}.',
    '{x} looked for {y}. "{y}! {y}!" called {x}. "I am here, {x}!" said {y}.',
    '"Look at me, {x}!" said {y}. "Look at me, {y}!" said {x}.',
    '"Come on, {x}," said {y}. {x} {act} {y}.',
    "{x} was {feeling}. {y} was {feeling} too. {x} {act} {y}.",
)

SCENES = (
    # Pronouns.
    "{x} was {sorrow}, so {x.he} {deed}. Then {x.he} felt {glad}.",
    "{x} wanted to {skill} like {y}, but {x.he} was too {weak}. {y} helped {x.him}, and {x.he} "
    "was {glad}.",
    "{x} lost {x.his} {gift} at the {place}. {x.He} was {sorrow}. {y} hugged {x.him}.",
    "{x} {deed} all by {x.him}self. {x.His} {family} was very proud of {x.him}.",
    "{x} fell down and hurt {x.his} knee. {y} ran over and helped {x.him} up. {x.He} was {glad}.",
    "{x} and {y} wanted to {skill}. {x} was good at it because {x.his} {family} had helped "
    "{x.him}.",
    "{x} went back and gave {food.a} to {x.his} {family}.",
    # Dialogue.
    '"Can you {skill}, {y}?" asked {x}. "Yes, I can," said {y}. "Can you {skill2}, {x}?"',
    '"Where is the {animal}?" asked {x}. "The {animal} is under the {hiding}," said {y}.',
    '{x} said, "Look, {y}! I see {fur.a} {animal}!" {y} saw the {animal} too.',
    '"I am {feeling}," said {x}. {y} said, "Why are you {feeling}, {x}?"',
    '{x} asked, "Do you want to play {game}?" "Yes," said {y}, and they played {game}.',
    '"I like {meal}," said {x}. "I like {meal2} and {food.s}," said {y}. So they ate {meal} and '
    "{meal2}.",
    # Agreement, with a noun of the other number between subject and verb.
    "The {animal.s} near the {plant} were {size}. The {animal2} near the {plant2.s} was {look}.",
    "The {thing} by the {plant.s} was {color2}, but the {thing2.s} by the {plant2} were {color3}.",
    "The {animal} with the {count} {thing.s} was {feeling}. The {animal2.s} were {feeling2}.",
    '"The {animal.s} by the {plant} are {look}," said {x}. "And the {thing} by the {plant2.s} is '
    '{color2}," said {y}.',
    '"Is the {animal} by the {plant.s} {look}?" asked {x}. "No, but the {animal2.s} are," said '
    "{y}.",
    "{x} saw {count} {animal.s}. The {animal.s} were {look}. They were next to {size.a} {plant}.",
    # Recall of an object, a place or a name.
    "{a} could not find {a.his} {toy}. {a.He} looked under the {hiding}. At last {a.he} found the "
    "{color} {toy}.",
    "{a} played with the {color} {toy} again. The {toy} was still {a.his} best toy.",
    "There was {gift.a} and {food.a} in {size.a} box. {x} took the {gift}, and {y} ate the {food}.",
    "{x} saw {animal.a} and {animal2.a}. The {animal} was {look}, and the {animal2} was {feeling}. "
    "{y} liked the {animal} best.",
    # Repetition.
    '{x} sang, "{nonsense} {nonsense2} {nonsense3}, {nonsense} {nonsense2} {nonsense3}!" Then {y} '
    'sang, "{nonsense} {nonsense2} {nonsense3}!"',
    'The magic words were "{nonsense} {nonsense2}". {x} said, "{nonsense} {nonsense2}," and {y} '
    'said, "{nonsense} {nonsense2}."',
    "They saw {fur.a} {animal}, {color2.a} {thing} and {size.a} {plant}. {x} wanted to draw "
    "{fur.a} {animal}, {color2.a} {thing} and {size.a} {plant}.",
    "First {x} {deed}, and then {y} {deed}. They were both {glad}.",
    '{trait.A} {animal} came up and said, "{nonsense} {nonsense2}!" {x} did not know what '
    '"{nonsense} {nonsense2}" was.',
)

ENDINGS = (
    "At the end of the day, {a} took {a.his} {color} {toy} and went home.",
    "In the evening, {a} put the {color} {toy} under {a.his} bed and slept well.",
    "{x} and {y} were good friends from that day on.",
    "{a} went home and told {a.his} {family} about the {place}.",
    '"Who did you play with?" asked {a}\'s {family}. "I played with {other}," said {a}.',
    "They all went home. {a} was {glad}, and so was {other}.",
    "They played until the sun went down. It was a good day at the {place}.",
    'Then {a} said, "This was a good day, {other}." {other} smiled.',
)
