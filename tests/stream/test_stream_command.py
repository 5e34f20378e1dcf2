import json
import time

import pytest

from mllm.errors import UserError
from mllm.stream.command import main, parse_steps

ROW_KEYS = {
    *("step", "rank", "micro_step", "row", "source"),
    *("samples", "tokens", "scored_tokens", "images"),
}


def show(capsys, *arguments):
    assert main(["show", *map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_show_prints_the_same_samples_at_any_world_size(config, capsys):
    by_world = {
        world_size: show(capsys, config, "--steps", "3:5", "--world-size", world_size)
        for world_size in (1, 2, 4)
    }
    assert all(len(rows) == 16 and set(rows[0]) == ROW_KEYS for rows in by_world.values())
    for rows in by_world.values():
        assert [(r["step"], r["row"]) for r in rows] == [(s, n) for s in (3, 4) for n in range(8)]
        assert [r["samples"] for r in rows] == [r["samples"] for r in by_world[1]]
    assert {r["rank"] for r in by_world[4]} == {0, 1, 2, 3}


def test_step_ten_million_is_as_near_as_step_nought(config, capsys):
    began = time.perf_counter()
    rows = show(capsys, config, "--steps", "10000000:10000001", "seed=4")
    assert rows[0]["step"] == 10_000_000
    assert time.perf_counter() - began < 5


def test_describe_tells_padding_cuts_and_shares(config, capsys):
    (found,) = show(capsys, config, "--describe")
    assert found["sources"]["pairs"]["token_share"] == pytest.approx(0.6, abs=0.01)
    assert 0 <= found["padding"] < 0.2
    for source in found["sources"].values():
        assert source["truncated_tokens"] == source["masked"] == source["masked_tokens"] == 0
        positions = source["rows_per_epoch"] * 192
        assert source["padding_tokens"] == pytest.approx(source["padding"] * positions, abs=1)
    (found,) = show(capsys, config, "--describe", "--world-size", 4)
    assert found["image_balance"]["world_size"] == 4
    assert 1 <= found["image_balance"]["max_over_mean"] <= 4


def test_describe_counts_what_takedown_lists_mask(config, capsys, tmp_path):
    (tmp_path / "list").write_text("pair0001\npair0002\n")
    (found,) = show(capsys, config, "--describe", f"data.exclude=[{tmp_path / 'list'}]")
    assert found["sources"]["pairs"]["masked"] == 2
    assert found["sources"]["pairs"]["masked_tokens"] > 2 * 6
    assert found["sources"]["text"]["masked"] == 0


def test_mistakes_name_the_flag(config):
    for text in ("", "a:b", "3:3", "5:2", "-1:2"):
        with pytest.raises(UserError, match="--steps"):
            parse_steps(text)
    with pytest.raises(UserError, match="3 ranks x"):
        main(["show", str(config), "--steps", "0:1", "--world-size", "3"])
