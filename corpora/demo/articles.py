"""Articles by rule of thumb: "an owl", "grapes", "the flag of Chad"."""

import re


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PERSONS = words("man woman person boy girl child baby adult men women people men’s women’s")
# Where the head of a name ends: in "bottle with popping cork" the bottle decides.
HEAD_END = re.compile(
    r"\W+(?:with|of|in|on|and|at|for|from|over|under|behind|without|showing|facing)\b"
)
MASS_NOUNS = words(
    """
    american bacon badminton baseball basketball beer bento bread broccoli butter candy cheese
    chess chocolate coral corn cream cricket curling custard dizzy dna fencing fire fog food
    football garlic ginger hockey honey ice jewelry karaoke lacrosse lightning locked meat milk
    money popcorn rain rice sake salt skateboarding snow soap softball spaghetti sushi tea tennis
    thread unlocked volleyball water wind wood yarn
    """
)
PLURALS = words("people men women feet children mice teeth dice men’s women’s")
SINGULAR_S = ("ss", "us", "is", "os", "as", "ics")
SINGULAR_WORDS = words("lens bus gas cactus circus compass canvas news chess")
NO_ARTICLE = re.compile(r"(?:no|two|three|one|hundred|first|top|back|on|input)\b")
SOUNDS_AN = re.compile(r"[aeio]|u(?!ni|ti|s[aeiou])|hour|honest|atm|sos|mx |x-ray|1[18]", re.I)
SOUNDS_A = re.compile(r"euro|ewe|one|once|ufo|ukul", re.I)


def with_article(name: str) -> str:
    """The name as a phrase that fits after "An image of": "an owl", "grapes", "a bald man".

    No grammar, but the same for training and evaluation.
    """
    head, colon, detail = name.partition(": ")
    if head == "flag":
        return f"the flag of {detail}"
    if colon:
        name = _without_colon(head, detail)
    if _takes_no_article(name):
        return name
    sounds_an = SOUNDS_AN.match(name) and not SOUNDS_A.match(name)
    return f"{'an' if sounds_an else 'a'} {name}"


def _without_colon(head: str, detail: str) -> str:
    """ "man: beard" to "man with beard"; "family: man, boy" to "family of man, boy"."""
    if detail == "facing right":
        return f"{head} facing right"
    if detail == "bald":
        return f"bald {head}"
    return f"{head} {'with' if head in ('man', 'woman', 'person', 'keycap') else 'of'} {detail}"


def _takes_no_article(name: str) -> bool:
    words = name.split()
    if words[0] in PERSONS:
        return words[0] in PLURALS
    head = HEAD_END.split(name, maxsplit=1)[0].split()
    last = head[-1].lower()
    is_plural = last in PLURALS or (
        last.endswith("s") and not last.endswith(SINGULAR_S) and last not in SINGULAR_WORDS
    )
    is_activity = len(words) == 1 and re.fullmatch(r"(?!dump)\w{3,}ing", name) is not None
    is_proper = all(word[0].isupper() for word in words if word != "of") and not words[0].isupper()
    return bool(
        is_plural
        or is_activity
        or is_proper
        or last in MASS_NOUNS
        or NO_ARTICLE.match(name)
        or not name[0].isalpha()
    )
