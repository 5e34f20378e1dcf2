"""Decoding held to a closed list: at each step only tokens that go on in some name."""

from collections.abc import Callable, Sequence

import torch

from tokenizer.specials import EOS_ID


class Trie:
    """Token sequences as a tree. Where one ends, `</s>` is a child, so that ending and going on
    compete (`tiger`, `tiger shark`).

    Args:
        names: Token ids of each name; none is empty.
    """

    def __init__(self, names: Sequence[Sequence[int]]) -> None:
        self.children: dict[tuple[int, ...], set[int]] = {}
        for name in names:
            if not name:
                raise ValueError("a name without tokens cannot be generated")
            for end in range(len(name)):
                self.children.setdefault(tuple(name[:end]), set()).add(name[end])
            self.children.setdefault(tuple(name), set()).add(EOS_ID)

    def after(self, token_ids: Sequence[int]) -> list[int]:
        """What may follow; `</s>` after a name has ended."""
        return sorted(self.children.get(tuple(token_ids), {EOS_ID}))


def constrain(
    tries: Sequence[Trie], prompt_length: int
) -> Callable[[int, torch.Tensor], list[int]]:
    """`prefix_allowed_tokens_fn` of `transformers`' `generate`.

    Args:
        tries: A row of the batch each.
        prompt_length: Positions before the first generated token, padding on the left included.
    """

    def allowed(row: int, token_ids: torch.Tensor) -> list[int]:
        return tries[row].after(token_ids[prompt_length:].tolist())

    return allowed
