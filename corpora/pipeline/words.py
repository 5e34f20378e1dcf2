"""Words and sentences by rule, for datatrove's filters, MinHash and n-grams.

datatrove's own choice for English is spaCy, for some other languages NLTK or Stanza with models to
download. Wherever datatrove takes a `language` it also takes a `WordTokenizer` (see its
`load_word_tokenizer`), so these rules need no package and no network.
"""

from collections.abc import Iterator

import regex
from datatrove.utils.word_tokenizers import WordTokenizer

# Scripts written without spaces: one letter is taken for a word.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_WORD = regex.compile(
    rf"(?V1){_UNSPACED}\p{{M}}*|[\w--{_UNSPACED}]+(?:['’][\w--{_UNSPACED}]+)*|[^\w\s]"
)
_SENTENCE = regex.compile(r"\S.*?(?:[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+|(?=\n)|$)", regex.DOTALL)


class PlainWords(WordTokenizer):
    """A word is a run of letters, digits and inner apostrophes; every other mark is its own."""

    def word_tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[start:stop] for start, stop in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """(start, stop) of each sentence: up to a full stop before a space, or a line's end."""
        return list(_spans(text))


def _spans(text: str) -> Iterator[tuple[int, int]]:
    for match in _SENTENCE.finditer(text):
        yield match.start(), match.end()


WORDS = PlainWords()
