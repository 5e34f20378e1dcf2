"""How an answer is decoded, as a user sets it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from mllm.errors import UserError

MAX_BEAMS = 64
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Sampling:
    """Settings of decoding; `/set NAME VALUE` in the terminal.

    Args:
        temperature: 0 takes the likeliest token each time.
        top_p: with a temperature, the fewest likeliest tokens whose shares reach this.
        top_k: with a temperature, that many likeliest tokens; 0: all.
        beams: of beam search, which has no temperature and does not stream.
        max_new_tokens: longest answer.
        seed: of sampling; each attempt at an answer (`/retry`) takes the next one.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    beams: int = 1
    max_new_tokens: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            if type(getattr(self, name)) is int:  # of JSON; `generate` takes only floats
                object.__setattr__(self, name, float(getattr(self, name)))
        for name, (is_good, want) in LIMITS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not is_good(value):
                raise UserError(f"{name} {value!r}: {want}")
        if self.beams > 1 and self.temperature > 0:
            raise UserError(
                f"beams {self.beams} with temperature {self.temperature:g}: beam search does not "
                "sample; set beams 1 or temperature 0 first"
            )

    @property
    def values(self) -> dict[str, Any]:
        return asdict(self)

    def with_text(self, name: str, text: str) -> "Sampling":
        """One setting changed, its value as typed.

        Raises:
            UserError: no such setting, or not a value of it.
        """
        name = ALIASES.get(name, name)
        types = {field.name: field.type for field in fields(self)}
        if name not in types:
            raise UserError(f"no setting {name!r}; one of {', '.join(types)}")
        try:
            value: Any = float(text) if types[name] is float else int(text)
        except ValueError:
            raise UserError(f"{name} {text!r}: {LIMITS[name][1]}") from None
        return replace(self, **{name: value})


ALIASES = {"num_beams": "beams", "max_tokens": "max_new_tokens"}

LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (
        lambda value: isinstance(value, float | int) and (value == 0 or 0.01 <= value <= 100),
        "0 (the likeliest token) or a number from 0.01 to 100, such as 0.7",
    ),
    "top_p": (
        lambda value: isinstance(value, float | int) and 0 < value <= 1,
        "more than 0 and at most 1",
    ),
    "top_k": (lambda value: isinstance(value, int) and value >= 0, "0 (all) or a whole number"),
    "beams": (
        lambda value: isinstance(value, int) and 1 <= value <= MAX_BEAMS,
        f"a whole number from 1 to {MAX_BEAMS}",
    ),
    "max_new_tokens": (lambda value: isinstance(value, int) and value >= 1, "at least 1"),
    "seed": (
        lambda value: isinstance(value, int) and 0 <= value <= MAX_SEED,
        f"a whole number from 0 to {MAX_SEED}",
    ),
}
