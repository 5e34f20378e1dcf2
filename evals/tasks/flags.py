"""Flags by an artist never trained on: which of five countries, and what the flag looks like."""

from functools import cached_property

from evals.api import Support
from evals.tasks.caption import Caption
from evals.tasks.local_set import LocalSet
from evals.tasks.naming import Naming
from evals.tasks.sources import Source


class Flags(Naming):
    """Ranks ` {country}` against four others, whose flags do not look alike.

    The headline norm is the mean per token: countries have from one token to twenty, and the sum
    favours the short ones. Chosen on the development half, where it gave 40.3 % and the sum 28.6 %.
    """

    name = set_name = "flags"
    parts = LocalSet.parts
    norm = "token"
    prompt = "An image of the flag of"


class FlagCaption(Caption):
    """Continues `An image of` to the country and the flag's colours and shapes.

    Only flags that the factbook describes are asked and shown.
    """

    name = "flag_caption"
    set_name = "flags"
    parts = LocalSet.parts
    max_new_tokens = 60  # a description is longer than a name

    def ids(self) -> list[str]:
        return self._described

    @cached_property
    def _described(self) -> list[str]:
        return described(self.source)

    def support(self) -> Support:
        whole = super().support()
        return Support(tuple(sorted(described(self.support_source))), whole.fingerprint, whole.read)


def described(source: Source) -> list[str]:
    """The samples with a description."""
    documents = (source.document(key) for key in source.ids())
    return [document.key for document in documents if source.meta(document, "description")[0]]
