import json

import pytest

from mllm.errors import UserError
from tokenizer.command import main


def test_train_writes_a_model_and_its_report(world, tmp_path, capsys):
    out = tmp_path / "tokenizer"
    arguments = ["train", str(world.text), str(world.vqa), "--out", str(out)]
    assert main([*arguments, "--vocab-size", "350", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "report.json").read_text())
    assert printed["vocab_size"] == 350
    assert printed["round_trip"] == 1.0
    assert printed["produces_specials"] == []


def test_report_counts_every_text(world, capsys):
    assert main(["report", str(world.tokenizer_dir), str(world.text), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["num_texts"] == 80
    assert printed["byte_fallback"] < 0.05
    assert 1 < printed["tokens_per_word"] < 6
    main(["report", str(world.tokenizer_dir), str(world.text)])
    assert "round trip" in capsys.readouterr().out


def test_a_missing_corpus_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        main(["train", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
