"""The tasks on the demo corpus's further evaluation sets, whose modules say what a sample holds."""

from evals.tasks.flags import FlagCaption, Flags
from evals.tasks.info import TaskInfo, on_demo
from evals.tasks.look_alikes import Digits, DigitsDescribed, EmojiGroups, EmojiGroupsDescribed
from evals.tasks.nway import Nway2, Nway5
from evals.tasks.page_qa import Pages, PagesNoText
from evals.tasks.questions import Quartz, SocialIqa
from evals.tasks.raven_drawn import RavenDrawn
from evals.tasks.sentiment_drawn import Sentiment, SentimentCot


def _sets(name: str, has_support: bool = True) -> str:
    return f"eval/{name}_{{test,development}}" + (f", eval/{name}_support" if has_support else "")


LOCAL_SETS: dict[str, TaskInfo] = {
    "flags": on_demo(
        "flags by an artist never trained on: which of five countries",
        Flags,
        _sets("flags"),
        shots=(0, 2, 4, 8),
        fewshot_limit=80,
    ),
    "flag_caption": on_demo(
        "what the same flags look like, beam 5, CIDEr",
        FlagCaption,
        _sets("flags"),
        limit=40,
        fewshot_limit=20,
    ),
    "sentiment": on_demo(
        "film reviews drawn as pictures: positive or negative",
        Sentiment,
        _sets("sentiment"),
        limit=300,
    ),
    "sentiment_cot": on_demo(
        "the same after a description of the picture",
        SentimentCot,
        _sets("sentiment", has_support=False),
        limit=60,
        takes_shots=False,
    ),
    "raven_drawn": on_demo(
        "drawn Raven's matrices: which of eight pictures goes on",
        RavenDrawn,
        _sets("raven", has_support=False),
        limit=40,
        takes_shots=False,
    ),
    "pages": on_demo(
        "questions about drawn pages, given picture and text", Pages, _sets("pages"), limit=80
    ),
    "pages_no_text": on_demo(
        "the same, given the picture alone", PagesNoText, _sets("pages"), limit=80
    ),
    "digits": on_demo(
        "handwritten digits: which of ten names",
        Digits,
        _sets("digits"),
        limit=300,
        shots=(0, 2, 4, 8),
        fewshot_limit=80,
    ),
    "digits_described": on_demo(
        "the same after a sentence about each digit",
        DigitsDescribed,
        _sets("digits", has_support=False),
        limit=40,
        takes_shots=False,
    ),
    "emoji_groups": on_demo(
        "emoji much alike: which of two names",
        EmojiGroups,
        _sets("emoji_groups"),
        shots=(0, 2, 4, 8),
        fewshot_limit=80,
    ),
    "emoji_groups_described": on_demo(
        "the same after keywords of each",
        EmojiGroupsDescribed,
        _sets("emoji_groups", has_support=False),
        takes_shots=False,
    ),
    "socialiqa": on_demo(
        "Social IQa in words alone: which of three answers",
        SocialIqa,
        _sets("socialiqa"),
        limit=300,
        shots=(0, 1, 4),
        fewshot_limit=80,
    ),
    "quartz": on_demo(
        "QuaRTz in words alone: which of two answers",
        Quartz,
        _sets("quartz"),
        limit=300,
        shots=(0, 1, 4),
        fewshot_limit=80,
    ),
    "nway2": on_demo(
        "invented words for two new concepts, defined by the shots",
        Nway2,
        _sets("nway", has_support=False),
        shots=(0, 2, 4, 8),
    ),
    "nway5": on_demo(
        "invented words for five new concepts, defined by the shots",
        Nway5,
        _sets("nway5", has_support=False),
        shots=(0, 5, 10),
        fewshot_limit=80,
    ),
}
