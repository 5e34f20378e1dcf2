"""Where each sample of a row stands, which is how `--replay` tells losses apart."""

from dataclasses import replace

import pytest

from mllm.stream.stream import TokenStream
from tests.conftest import World
from tests.scenarios import pretrain_config
from tokenizer.specials import BOS_ID, EOS_ID


@pytest.mark.parametrize("join_share", [0.0, 0.5, 1.0])
def test_spans_are_where_the_batch_has_each_sample(world: World, join_share: float) -> None:
    """Told by the tokens: a whole document begins with `<s>` but in joined rows, and ends in
    `</s>`; between spans there is at most one divider."""
    config = pretrain_config(world.root, world.root / "run")
    mixture = [replace(source, join_documents=join_share) for source in config.data.mixture]
    stream = TokenStream.from_config(replace(config, data=replace(config.data, mixture=mixture)))
    num_joined = num_whole = 0
    for step in range(30):
        batch = stream.batch(step, rank=0, world_size=1, micro_batch_size=4)
        for b, row in enumerate(batch.rows):
            spans = stream.spans(step, row.row)
            assert len(spans) == len(row.samples)
            ids = batch.token_ids[b].tolist()
            order = stream.rows(step).order
            source = stream.sources[order.source_ids[row.row]]
            plan_row = int(order.rows[row.row])
            is_joined = bool(source.plan.is_joined[plan_row])
            num_joined += is_joined
            end = int(is_joined)
            for (begin, stop), piece in zip(spans, source.plan.pieces(plan_row), strict=True):
                sample, first, last = piece
                if begin > end:
                    assert is_joined and begin == end + 1 and ids[end] == EOS_ID
                whole = source.sequence(sample).token_ids.tolist()
                cut = whole[max(first, int(is_joined)) : last]
                assert ids[begin:stop] == cut
                num_whole += len(cut) + is_joined == len(whole)
                end = stop
            assert row.tokens == end
            assert ids[0] == BOS_ID or source.plan.pieces(plan_row)[0][1] > 0
    assert num_whole
    if join_share:
        assert num_joined
