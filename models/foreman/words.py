"""The words that foreman's training text is made of, split into seen and held-out halves.

The held-out verbs, nouns and parameter names never occur in training as part of a tool: the
scores in the model card are measured on tools made of them, with values drawn from other seeds.
"""

from __future__ import annotations

import random
from typing import Final

VERBS: Final = (
    "add adjust allocate announce apply approve archive assign attach audit balance block book "
    "boost buy calibrate cancel cap charge check claim clean clear close collect compare compress "
    "confirm connect copy count create credit cut debit decode delay delete deliver deploy detach "
    "disable dispatch display divide download drain draw drop edit email enable encode estimate "
    "evict export extend fetch file filter find fix flag flush forecast forward freeze get give "
    "grant group halt hide hold import improve increase inspect install invoice invite issue join "
    "keep label launch lease limit link list load lock log lower make map mark measure merge meter "
    "migrate mix monitor move mute name notify open order pack park pause pay pin plan plot post "
    "predict preempt prepare price print probe promote prune publish pull purge push queue quote "
    "raise rank read rebuild record recover reduce refresh refund reject release remove rename "
    "renew repair replace replay report request reserve reset resize restart restore resume retire "
    "retry return reveal review revoke rotate route run sample save scale scan schedule search "
    "sell send set settle share shift ship show shrink sign simulate skip sort split start stop "
    "store submit subscribe suspend swap switch sync tag test throttle top trace track trade train "
    "transfer trim tune turn undo unlock unpin update upgrade upload validate verify view void "
    "wait wake warm watch weigh withdraw write"
).split()

NOUNS: Final = (
    "account agent alarm alert answer archive asset backup badge balance batch bill block board "
    "book budget bucket bundle cabinet cable cache calendar camera card cart case chart city "
    "client cluster code column comment contact container contract cost coupon crew customer "
    "dashboard database dataset deal delivery deposit desk device dialog discount disk document "
    "door draft driver drone email engine engineer entry error event experiment factory fan feed "
    "field file filter flag flight folder forecast forest form frame fund garden gate gateway "
    "goal grant graph grid group guest guide harbor heater hold hotel house idea image index "
    "invoice issue item job journal kernel key lab lamp label layer lease ledger lesson letter "
    "level library license light limit link list load location lock log machine mail map market "
    "meeting member memo menu message meter metric mirror mission mode model module monitor movie "
    "network node note notice number object offer office operator option order package page panel "
    "paper parcel part partner pass patient payment person phone photo picture pipeline plan plant "
    "playlist plug policy poll pool port position post price printer process product profile "
    "project promise prompt pump queue question quota quote rack rate reading recipe record region "
    "release reminder rent repair replica report request reservation robot role room route rule "
    "salary sale sample scene schedule screen script sensor server service session shelf shift "
    "ship shop signal site slot snapshot song source stage station stock store story stream street "
    "student subject supplier survey switch system table tag target task tax team tenant test "
    "text thread ticket tier timer token tool topic tower track trade train trip truck tunnel "
    "unit user vault vehicle vendor version video visit voucher wallet warehouse weather window "
    "worker zone"
).split()

STRING_PARAMS: Final = (
    "account address agent author backend branch bucket category channel city client cluster code "
    "color command comment contact country customer department destination device direction disk "
    "domain email engine engineer env event field file filter folder format from_city group host "
    "id image item job key label language level location machine manager message method model name "
    "node note origin owner owner_name panel partner path person phone place plan pool product "
    "project prefix profile query queue rack reason receiver recipient region replica report role "
    "room route sender server service session shelf site size source station status store stream "
    "subject suffix supplier table tag target team tenant text theme tier timezone title token "
    "to_city topic tower unit user vendor version warehouse window worker zone"
).split()

INTEGER_PARAMS: Final = (
    "age amount attempts batch batch_size bytes capacity cents chunk copies count cpu_count cycles "
    "days depth distance duration floor frames gpu_count height hours index interval layers length "
    "limit max_tokens megabytes meters miles minutes months number offset page pages percent port "
    "position priority quantity rank replicas retries rows score seats seconds seed slots steps "
    "temperature threads threshold timeout tokens total volume watts weeks weight width workers "
    "year years"
).split()

NUMBER_PARAMS: Final = (
    "alpha budget cost discount factor fee fraction gain hours_saved latitude longitude margin "
    "price rate ratio salary scale share speed tax usd voltage weight_kg"
).split()

BOOLEAN_PARAMS: Final = (
    "active async confirm dry_run enabled force urgent hidden notify permanent private public "
    "quiet recursive secure shared silent strict verbose visible"
).split()

TIERS: Final = ("free", "medium", "high", "premium", "ultra")
CHOICES: Final = (
    TIERS,
    ("low", "normal", "high"),
    ("red", "green", "blue", "yellow"),
    ("json", "csv", "table"),
    ("day", "week", "month"),
    ("celsius", "fahrenheit"),
    ("north", "south", "east", "west"),
    ("small", "medium", "large"),
    ("start", "stop", "restart"),
    ("gpu", "cpu", "lpu"),
    ("read", "write", "admin"),
    ("asc", "desc"),
)
CHOICE_PARAMS: Final = (
    "access action class direction format kind mode order period priority_class scale_mode side "
    "speed_class style type unit_kind"
).split()

FIRST_NAMES: Final = (
    "Ada Alan Amara Anna Arjun Ben Bruno Carla Chen Dana Diego Elena Emma Farah Felix Grace Hana "
    "Hugo Ines Ivan Jonas Julia Kai Karim Lars Lena Leo Lina Luca Maria Marta Max Mei Mina Nadia "
    "Nina Noah Olga Omar Otto Paul Petra Priya Rafael Rosa Sam Sara Sofia Tariq Theo Tom Uma Vera "
    "Victor Wei Yara Yuki Zoe"
).split()
CITIES: Final = (
    "Amsterdam Athens Austin Bangkok Berlin Bogota Boston Cairo Chicago Copenhagen Dakar Delhi "
    "Denver Dublin Geneva Hamburg Hanoi Helsinki Istanbul Jakarta Kyoto Lagos Lima Lisbon London "
    "Madrid Manila Milan Montreal Munich Nairobi Naples Osaka Oslo Paris Prague Quito Reykjavik "
    "Riga Rome Seattle Seoul Shanghai Singapore Stockholm Sydney Taipei Tallinn Tokyo Toronto "
    "Vienna Vilnius Warsaw Zurich"
).split()
PLAIN: Final = (
    "amber apple arrow autumn basin beacon birch bright bronze cactus canyon cedar cherry clay "
    "cloud cobalt copper coral cotton crystal dawn delta desert dusk eagle ember falcon fern flint "
    "forest frost galaxy ginger glacier gold granite harbor hazel honey indigo iris island ivory "
    "jade jasper juniper lagoon lemon lilac lotus lunar maple marble meadow mint misty moon moss "
    "night nova oak ocean olive onyx opal orchid otter pearl pepper pine plum polar poppy prairie "
    "quartz quick rain raven reef ridge river robin ruby saffron sage sand scarlet shadow silver "
    "sky slate solar spring spruce steel stone storm summer sunny tango teal thunder tiger topaz "
    "tulip tundra valley velvet violet walnut willow winter wolf yellow zephyr zinc"
).split()

_ONSETS: Final = "b br c ch d dr f g gr h j k kl l m n p pr qu r s sh st t tr v w x z".split()
_VOWELS: Final = "a e i o u ai ea io oo".split()
_CODAS: Final = ["", "", "", "k", "l", "m", "n", "nd", "r", "rk", "s", "t", "x"]


def held_out(words: list[str]) -> list[str]:
    """Every fifth word: the ones that training never puts into a tool."""
    return words[4::5]


def seen(words: list[str]) -> list[str]:
    """The words that training may use."""
    return [word for i, word in enumerate(words) if i % 5 != 4]


LISTS: Final = (
    VERBS,
    NOUNS,
    STRING_PARAMS,
    INTEGER_PARAMS,
    NUMBER_PARAMS,
    BOOLEAN_PARAMS,
    CHOICE_PARAMS,
)
_ALL: Final = (*LISTS[:3], [word for listed in LISTS[3:] for word in listed])
_HELD_OUT: Final = frozenset(word for listed in LISTS for word in held_out(listed))


def made_up(rng: random.Random) -> str:
    """A pronounceable word that is in no list."""
    syllables = rng.choice((1, 2, 2, 3))
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables)
    )


def fragments(rng: random.Random, words: list[str]) -> str:
    """A word of pieces of other words: it is spelt as an unseen word would be."""
    parts = []
    for _ in range(rng.choice((1, 2, 2, 3))):
        word = rng.choice(words)
        size = rng.randint(2, 5)
        start = rng.randrange(max(1, len(word) - size + 1))
        parts.append(word[start : start + size].strip("_"))
    return "".join(parts)


def compound(rng: random.Random) -> str:
    """A made-up word with a piece that may be cut from a held-out word, never one on its own.

    A piece that never had to be written cannot be written: training would only ever push it down.
    """
    word = rng.choice(rng.choice(_ALL)).split("_")[0]
    kind = rng.random()
    if kind < 0.15:
        other = rng.choice(rng.choice(_ALL)).split("_")[0]
    else:
        other = rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
    joined = other + word if 0.1 < kind < 0.3 else word + other
    return compound(rng) if joined in _HELD_OUT else joined


def cutting(rng: random.Random) -> str:
    """``fragments`` of any words, unless that gives a held-out word."""
    word = fragments(rng, rng.choice(_ALL))
    return cutting(rng) if word in _HELD_OUT or not word else word


def identifier(rng: random.Random) -> str:
    """A name as operators give them: worker-17, ab93f0, amber_4, zork."""
    shape = rng.randrange(7)
    if shape == 0:
        return f"{rng.choice(PLAIN)}-{rng.randrange(1, 100)}"
    if shape == 1:
        return "".join(rng.choice("0123456789abcdef") for _ in range(rng.choice((4, 6))))
    if shape == 2:
        return made_up(rng)
    if shape == 3:
        return f"{rng.choice('abcdefghijklmnopqrstuvwxyz')}{rng.randrange(1, 1000)}"
    if shape == 4:
        return f"{rng.choice(PLAIN)}_{rng.choice(PLAIN)}"
    if shape == 5:
        return made_up(rng).upper()[:4] + f"-{rng.randrange(10, 1000)}"
    return f"{made_up(rng)}-{rng.choice(PLAIN)}"


def string_value(rng: random.Random) -> str:
    """Some text that a string parameter may take."""
    shape = rng.randrange(12)
    if shape < 5:
        return identifier(rng)
    if shape == 5:
        return rng.choice(CITIES)
    if shape == 6:
        return rng.choice(FIRST_NAMES)
    if shape == 7:
        return " ".join(rng.sample(PLAIN, rng.choice((2, 3))))
    if shape == 8:
        return f"{rng.choice(FIRST_NAMES)} {made_up(rng).capitalize()}"
    if shape == 9:
        return f"20{rng.randrange(20, 32)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}"
    if shape == 10:
        return made_up(rng)
    return rng.choice(PLAIN)
