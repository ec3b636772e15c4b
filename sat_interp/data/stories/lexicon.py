"""The words of the built-in corpus: names of known gender, nouns that know their forms, pools.

A template writes ``{a}`` for a character's name and ``{a.he}``, ``{a.his}`` for the pronouns that
agree with it; ``{gift.a}`` for "a ball" or "an apple", ``{animal.s}`` for "dogs". Agreement is thus
a property of the word, and no template has to think of it.
"""

from __future__ import annotations

from functools import cached_property


class Girl(str):
    """A girl's name; the attributes are named after the masculine forms."""

    he, He, him, his, His, kid = "she", "She", "her", "her", "Her", "girl"


class Boy(str):
    """A boy's name."""

    he, He, him, his, His, kid = "he", "He", "him", "his", "His", "boy"


class Word(str):
    """A noun or an adjective."""

    @cached_property
    def a(self) -> str:
        """With its indefinite article (no word of ours begins with a silent h or a spoken y)."""
        return f"an {self}" if self[0] in "aeiou" else f"a {self}"

    @cached_property
    def A(self) -> str:
        """The same at the beginning of a sentence."""
        return "A" + self.a[1:]

    @cached_property
    def s(self) -> str:
        """The plural of a noun."""
        if self.endswith("y") and self[-2] not in "aeiou":
            return self[:-1] + "ies"
        return self + ("es" if self.endswith(("s", "x", "ch", "sh")) else "s")


def _words(text: str) -> tuple[Word, ...]:
    return tuple(Word(word) for word in text.split())


def _phrases(text: str) -> tuple[Word, ...]:
    return tuple(Word(line.strip()) for line in text.strip().split(";"))


# Short, ordinary and of one gender only; none is also a word, and each is one token of GPT-2's.
GIRLS = tuple(
    Girl(name)
    for name in _words(
        "Lily Mia Lucy Amy Anna Sally Sara Jane Daisy Molly Bella Jill Emma Mary Lisa Luna Emily "
        "Sarah Jenny Kate Alice Tina Ellie Penny Maria Sophie Annie Claire Kim Ruby Julie Maggie "
        "Linda Abby Zoe Rachel Chloe Tara Clara Maya"
    )
)
BOYS = tuple(
    Boy(name)
    for name in _words(
        "Tim Tom Sam Max Ben Bob Jack Adam John Tommy Billy Joe Leo Jimmy Fred Jerry Bobby Jim "
        "Peter Jake Andy Pete Dave Danny Toby Charlie Finn Mike Joey Ted George Henry Paul Tony "
        "David Harry James Carl Dan Luke"
    )
)
NAMES: tuple[Girl | Boy, ...] = GIRLS + BOYS
NAMES_F: tuple[str, ...] = tuple(str(name) for name in GIRLS)
NAMES_M: tuple[str, ...] = tuple(str(name) for name in BOYS)

PLACES = _words(
    "park store school beach farm zoo garden house station hospital restaurant office lake "
    "library market playground castle bakery"
)
TOYS = _words(
    "ball doll plane drum train boat car robot puzzle balloon bear whistle wagon truck puppet"
)
OBJECTS = TOYS + _words(
    "ring necklace bone basketball computer book hat cup spoon box flower shell stone feather "
    "leaf coin key map lamp bell blanket basket pencil bag brush rope bucket umbrella"
)

# What a slot of a template draws from, when the story has not yet filled it.
POOLS: dict[str, tuple[Word, ...]] = {
    "place": PLACES,
    "toy": TOYS,
    "gift": OBJECTS,
    "thing": _words(
        "box cup hat basket lamp bag chair table plate book stone flower shell bell blanket brush "
        "pot mug bowl pillow towel boot glove jar"
    ),
    "plant": _words("tree bush log fence gate bench rock wall bridge door window tent"),
    "hiding": _words("bed table sofa chair bush tree bench rug blanket stairs"),
    "animal": _words(
        "dog cat bird duck frog rabbit horse cow pig goat bear fox owl hen bee ant turtle squirrel "
        "puppy kitten monkey lion tiger elephant snail spider worm whale crab parrot"
    ),
    "food": _words(
        "apple cookie banana cake sandwich orange carrot pie peach egg pear muffin pancake plum "
        "lemon melon bun nut cupcake"
    ),
    "meal": _words("soup bread rice pasta cheese toast pizza salad honey milk corn jam"),
    "color": _words("red blue green yellow orange pink purple brown white black silver golden"),
    "fur": _words("red brown black white gray golden yellow spotted"),
    "size": _words("big small little tiny huge large old"),
    "look": _words("wet dirty quiet loud strange nice pretty funny fast slow clean cold"),
    "fine": _words("pretty nice lovely beautiful strange funny special useful old"),
    "trait": _words(
        "kind brave clever funny shy gentle curious patient lazy quiet careful polite friendly "
        "smart silly cheerful young strong helpful"
    ),
    "feeling": _words(
        "happy sad tired angry scared proud hungry sleepy excited worried surprised bored nervous "
        "thirsty sick calm"
    ),
    "glad": _words("happy glad proud excited pleased thankful cheerful"),
    "sorrow": _words("sad upset worried unhappy angry"),
    "weak": _words("tired scared shy sleepy small nervous"),
    "family": _words("mom dad grandma grandpa sister brother aunt uncle teacher"),
    "weather": _words("sunny rainy windy snowy cloudy cold warm hot"),
    "game": _phrases("tag; hide and seek; catch; soccer; pirates; cards; chess; house; ball"),
    "skill": _words(
        "draw sing dance read swim climb cook paint write count jump run ski skate whistle sew "
        "spell hop bake"
    ),
    "deed": _phrases(
        "climbed a tree; built a tower; drew a picture; read a story; made a cake; dug a hole; "
        "picked some flowers; fed the ducks; rode a bike; washed the dishes; painted the fence; "
        "swam in the water; looked at the clouds; danced in the rain; jumped in the mud; "
        "baked some bread; cleaned the room; fixed the old clock; wrote a letter; "
        "chased a butterfly; caught a fish; watched the stars; planted a seed; "
        "collected some leaves; rolled down the grass; counted the cars; took a nap; "
        "learned a new song; opened the window; carried the heavy bags"
    ),
    "act": _phrases(
        "smiled at; waved at; looked at; ran after; hugged; helped; chased; followed; thanked; "
        "liked; laughed with; jumped over; stood behind; sat beside"
    ),
    "stir": _phrases(
        "sat down; ran outside; jumped up; woke up; went home; looked around; came back; "
        "stopped; laughed; got tired; were happy; held hands"
    ),
    "pace": _words("quickly slowly quietly happily softly gently"),
    "count": _words("two three four five six seven eight nine ten"),
    "nonsense": _words(
        "zib dop mun tak fip lor wug ban sil koo rem jav pim gog tee nub yip hoo das vee bim "
        "lop zan mip"
    ),
    # The first words of a story that begins in the middle of things, and of a later scene.
    "start": _phrases(
        "One day,; One morning,; One afternoon,; Last week,; One sunny day,; Last summer,; "
        "Yesterday,; On Sunday,; Last night,; This morning,"
    ),
    "when": _phrases(
        "Then,; Later,; After that,; The next day,; Soon,; A little later,; Another day,; "
        "After a while,; The next week,; A week later,; Two days later,"
    ),
}
