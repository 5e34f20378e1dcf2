"""OK-VQA's stemming of a prediction, for `--okvqa-match stem`.

OK-VQA's `answer` fields are stemmed `raw_answer`s: verbs in -ing to their lemma (NLTK's WordNet),
plurals to singulars (`inflection`), and a list of exceptions made by hand. The exceptions are read
back from the annotation files themselves, where every raw answer stands beside its stem.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

from evals.layouts.vqa import VqaRecord
from mllm.errors import UserError

NLTK_DATA = ("wordnet", "punkt_tab", "averaged_perceptron_tagger_eng")
MEND = (
    "pip install nltk inflection && python -m nltk.downloader "
    + " ".join(NLTK_DATA)
    + ", or score with --okvqa-match raw"
)


class Stemmer:
    """Turns an answer into what OK-VQA's annotations call it.

    Args:
        records: Of the annotation file scored against: raw answers and their stems.

    Raises:
        UserError: NLTK, its WordNet data or `inflection` is missing.
    """

    def __init__(self, records: Iterable[VqaRecord]) -> None:
        try:
            import inflection
            import nltk

            self._singular = inflection.singularize
            self._lemma = nltk.stem.WordNetLemmatizer().lemmatize
            self._tagged = lambda text: nltk.pos_tag(nltk.tokenize.word_tokenize(text))
            self._lemma("riding", "v")
            self._tagged("two dogs")
        except (ImportError, LookupError) as error:
            missing = getattr(error, "name", None) or "its data"
            raise UserError(
                f"--okvqa-match stem needs NLTK with its data and inflection ({missing} is "
                f"missing): {MEND}"
            ) from None
        self._known = _known_stems(records)

    def __call__(self, answer: str) -> str:
        text = answer.strip()
        if text in self._known:
            return self._known[text]
        return " ".join(self._word(word, tag) for word, tag in self._tagged(text))

    def _word(self, word: str, tag: str) -> str:
        if word in self._known:
            return self._known[word]
        if word.endswith("ing"):
            return self._lemma(word, "v")
        return self._singular(word) if tag.startswith(("NNS", "NNPS")) else word


def _known_stems(records: Iterable[VqaRecord]) -> dict[str, str]:
    """Each raw answer's stem, the commonest where annotators' files disagree."""
    stems: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for raw, stem in zip(record.raw_answers, record.answers, strict=True):
            stems[raw.strip()][stem] += 1
    return {raw: counts.most_common(1)[0][0] for raw, counts in stems.items()}
