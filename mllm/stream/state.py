"""The stream's state: what `stream.json` holds, enough to say every batch of a run again.

fixed            tokenizer, seq_len, num_latents, packing, global batch: may not change in a run
segments         first stream step, seed, sources with weights: a changed mixture begins another
excluded_steps   windows of stream steps that are never trained
quarantine       from which stream step on which takedown lists held
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mllm.errors import UserError
from mllm.files import fingerprint
from mllm.stream.order import Segment, Window, merged, stream_step


@dataclass(frozen=True)
class SourceRecord:
    """A source as it stood in a segment. In one run, a name stands for one corpus and joining."""

    name: str
    path: str
    corpus: str  # fingerprint
    weight: str
    join_documents: str
    rows_per_period: int


@dataclass(frozen=True)
class SegmentRecord:
    """A segment with all that its order comes from."""

    first_step: int  # stream step
    seed: int
    unit: str
    sources: tuple[SourceRecord, ...]

    @property
    def mixture(self) -> str:
        """16 hex over sources, corpora and weights; where they lie does not count."""
        return fingerprint(
            [self.unit, [[s.name, s.corpus, s.weight, s.join_documents] for s in self.sources]]
        )

    @property
    def segment(self) -> Segment:
        return Segment(
            self.first_step, self.seed, {s.name: s.rows_per_period for s in self.sources}
        )


@dataclass(frozen=True)
class Quarantine:
    """Takedown lists that hold from a stream step on."""

    first_step: int
    hash: str
    num_samples: int


@dataclass(frozen=True)
class StreamState:
    """Together with a step: a batch."""

    fixed: dict[str, Any]  # config key or part to its value
    segments: tuple[SegmentRecord, ...]
    excluded_steps: tuple[Window, ...]  # merged
    quarantine: tuple[Quarantine, ...]

    @property
    def fingerprint(self) -> str:
        """16 hex over all that decides the rows."""
        segments = [[s.first_step, s.seed, s.mixture] for s in self.segments]
        return fingerprint([self.fixed, segments, self.excluded_steps])

    def to_json(self) -> dict[str, Any]:
        segments = [
            {"mixture": segment.mixture, **dataclasses.asdict(segment)} for segment in self.segments
        ]
        return {
            "fingerprint": self.fingerprint,
            "fixed": self.fixed,
            "segments": segments,
            "excluded_steps": [list(window) for window in self.excluded_steps],
            "quarantine": [dataclasses.asdict(entry) for entry in self.quarantine],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], where: str) -> "StreamState":
        """UserError when `value`, read from `where`, is no stream state."""
        try:
            return cls(
                fixed=value["fixed"],
                segments=tuple(
                    SegmentRecord(
                        segment["first_step"],
                        segment["seed"],
                        segment["unit"],
                        tuple(SourceRecord(**source) for source in segment["sources"]),
                    )
                    for segment in value["segments"]
                ),
                excluded_steps=tuple((a, b) for a, b in value["excluded_steps"]),
                quarantine=tuple(Quarantine(**entry) for entry in value["quarantine"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{where}: no stream state of this version ({type(error).__name__}: {error}); "
                "choose another run_dir"
            ) from None


def parse_windows(windows: Sequence[str]) -> tuple[Window, ...]:
    """`data.exclude_steps`: "A:B" each. ValueError names the one that is no window."""
    found = []
    for text in windows:
        match = re.fullmatch(r"(\d+):(\d+)", str(text))
        if not match or int(match[1]) >= int(match[2]):
            raise ValueError(
                f"data.exclude_steps: {text!r} is no window; write A:B, stream steps A up to, "
                'not including, B, such as "1000:1010"'
            )
        found.append((int(match[1]), int(match[2])))
    return merged(found)


def continued(
    before: StreamState, now: StreamState, step: int, where: str
) -> tuple[StreamState, list[str]]:
    """The state of a run that goes on at training step `step` with the settings of `now`.

    What `before` says of stream steps that were not reached, or were given up by resuming from an
    earlier checkpoint, is dropped.

    Returns:
        The state, and a line for each thing that changes here.

    Raises:
        UserError: something changed that would make the rest another run.
    """
    for key in sorted(before.fixed.keys() | now.fixed.keys()):
        if before.fixed.get(key) != now.fixed.get(key):
            raise UserError(
                f"{key} changed since {where} was written ({before.fixed.get(key)}, now "
                f"{now.fixed.get(key)}): rows would be others; take the change back or choose "
                "another run_dir"
            )
    reached = stream_step(step - 1, before.excluded_steps) + 1 if step else 0
    for window in _trained(before.excluded_steps, now.excluded_steps, reached):
        raise UserError(
            f"data.exclude_steps: {window[0]}:{window[1]} differs from what {where} says, and the "
            f"run has reached stream step {reached}; change windows from there on only, or resume "
            "from an earlier checkpoint (move the later ones away)"
        )
    notes = []
    segments = [segment for segment in before.segments if segment.first_step < reached]
    asked = now.segments[-1]
    _check_names(segments, asked, where)
    if not segments:
        segments = [dataclasses.replace(asked, first_step=0)]
    elif (segments[-1].mixture, segments[-1].seed) != (asked.mixture, asked.seed):
        what = "seed" if segments[-1].mixture == asked.mixture else "mixture"
        notes.append(
            f"the {what} changed: segment {len(segments) + 1} of the stream begins at stream step "
            f"{reached}; sources go on where they were"
        )
        segments.append(dataclasses.replace(asked, first_step=reached))
    quarantine = [entry for entry in before.quarantine if entry.first_step < reached]
    lists = now.quarantine[-1]
    if not quarantine or quarantine[-1].hash != lists.hash:
        if quarantine:
            notes.append(
                f"data.exclude changed: {lists.num_samples} samples are left out from stream step "
                f"{reached} on"
            )
        quarantine.append(dataclasses.replace(lists, first_step=reached))
    state = StreamState(now.fixed, tuple(segments), now.excluded_steps, tuple(quarantine))
    return state, notes


def _trained(one: Sequence[Window], two: Sequence[Window], reached: int) -> list[Window]:
    """Windows, cut at `reached`, that only one of both has."""
    cut = [
        {(first, min(stop, reached)) for first, stop in windows if first < reached}
        for windows in (one, two)
    ]
    return sorted(cut[0] ^ cut[1])


def _check_names(segments: Sequence[SegmentRecord], asked: SegmentRecord, where: str) -> None:
    known = {source.name: source for segment in segments for source in segment.sources}
    for source in asked.sources:
        old = known.get(source.name, source)
        for what, a, b in (
            ("corpus", old.corpus, source.corpus),
            ("join_documents", old.join_documents, source.join_documents),
        ):
            if a != b:
                raise UserError(
                    f"data.mixture: the {what} of {source.name} changed since {where} was written "
                    f"({a}, now {b}); take the change back, or give the source another name to "
                    "begin it anew"
                )


class Resumable:
    """A stream whose batches follow from its state; subclasses order themselves in `_settle`."""

    state: StreamState

    def _settle(self, state: StreamState) -> None:
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """16 hex over all that decides the batches."""
        return self.state.fingerprint

    def recall(self, state: StreamState) -> None:
        """Gives the batches that a run with this state has had; its sources are all open.

        Raises:
            UserError: a corpus has changed since.
        """
        mine = {source.name: source.corpus for source in self.state.segments[-1].sources}
        for segment in state.segments:
            for source in segment.sources:
                if mine[source.name] != source.corpus:
                    raise UserError(
                        f"{source.path}: has changed since the run read it; what its steps were "
                        "cannot be told any more"
                    )
        self._settle(state)

    def resume(self, before: StreamState, step: int, where: str) -> list[str]:
        """Goes on at training step `step` of a run whose state `where` holds.

        Returns:
            A line for each thing that changes here. UserError when the rest would be another run.
        """
        state, notes = continued(before, self.state, step, where)
        self._settle(state)
        return notes

    def leave_out(self, window: str, step: int) -> None:
        """From training step `step` on, the stream steps "A:B" are not trained."""
        windows = merged((*self.state.excluded_steps, *parse_windows([window])))
        now = dataclasses.replace(self.state, excluded_steps=windows)
        self._settle(continued(self.state, now, step, "this run")[0])
