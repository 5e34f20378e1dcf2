"""Checkpoints in an object store: uploaded whole or not there, fetched where the disk is new."""

import json
import shutil
import uuid
from itertools import count
from pathlib import Path

import boto3
import fsspec
import pytest

from mllm.checkpoint import newest_valid
from mllm.checkpoint_files import checkpoints, problem_of
from mllm.checkpoint_store import fetch_newer, stored_checkpoints, take_back
from mllm.config import TrainConfig
from mllm.errors import UserError
from mllm.saving import Saver
from tests.corpora.remote_servers import Proxy, running, s3_server
from tests.test_saving import EXTRA, LiveEngine, begin

KEY, SECRET = "AKIAHUNTER22", "hunter22secret"


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place = uuid.uuid4().hex if request.param == "memory" else f"{tmp_path}/store"
    return f"{request.param}://{place}"


def train(run_dir: Path, store: str, steps: list[int], keep: int = 2) -> list[str]:
    """Saves at these steps, as a run does; gives back what it says."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text("seed: 1\n")
    (run_dir / "stream.json").write_text("{}\n")
    saver, engine = Saver(run_dir, EXTRA, keep, store=store), LiveEngine()
    for step in steps:
        begin(saver, engine, step)
        assert saver.finish()
        (run_dir / "metrics.jsonl").write_text(f'{{"step": {step}}}\n')
    saver.finish_uploads(lambda: None)
    return saver.news()


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def damage(store: str, step: int, name: str = "model.safetensors") -> None:
    files, path = fsspec.url_to_fs(f"{store}/step-{step:08d}/{name}")
    data = bytearray(files.cat_file(path))
    data[len(data) // 2] ^= 1
    files.pipe_file(path, bytes(data))


def test_a_new_disk_gets_what_the_old_one_had(tmp_path: Path, store: str) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    news = train(old, store, [10])
    assert any("uploaded to" in line for line in news)
    fetch_newer(store, new)
    fetched = newest_valid(new)
    assert fetched is not None and fetched.name == "step-00000010"
    assert content(fetched) == content(old / "checkpoints" / fetched.name)
    assert (new / "stream.json").read_text() == "{}\n"
    assert (new / "config.yaml").exists()


def test_what_a_rollback_took_back_is_not_fetched_again(tmp_path: Path, store: str) -> None:
    """And the file that says what was left out comes along."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "rollbacks.json").write_text("[]\n")
    train(tmp_path / "old", store, [10, 20, 30], keep=3)
    take_back(store, 10)
    fetch_newer(store, tmp_path / "new")
    fetched = newest_valid(tmp_path / "new")
    assert fetched is not None and fetched.name == "step-00000010"
    assert (tmp_path / "new" / "rollbacks.json").read_text() == "[]\n"


def test_what_the_disk_has_as_new_is_not_fetched_nor_a_folder_touched(
    tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, store, [10])
    (tmp_path / "stream.json").write_text("mine\n")
    fetch_newer(store, tmp_path)
    assert "fetched" not in capsys.readouterr().out
    shutil.rmtree(tmp_path / "checkpoints")
    fetch_newer(store, tmp_path)
    assert "fetched" in capsys.readouterr().out
    assert (tmp_path / "stream.json").read_text() == "mine\n"


def test_the_newest_stay_and_the_oldest_go(tmp_path: Path, store: str) -> None:
    from corpora.transfer import RemoteSettings

    for step in (10, 20, 30):
        train(tmp_path, store, [step])
    names = stored_checkpoints(store, RemoteSettings())
    assert names == ["step-00000020", "step-00000030"]


def test_a_damaged_one_is_passed_over_and_an_upload_cut_short_is_none(
    tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old"
    for step in (10, 20, 30):
        train(old, store, [step], keep=9)
    damage(store, 20)
    files, path = fsspec.url_to_fs(f"{store}/step-00000030/manifest.json")
    files.rm(path)
    fetch_newer(store, tmp_path / "new")
    assert newest_valid(tmp_path / "new").name == "step-00000010"  # type: ignore[union-attr]
    out = capsys.readouterr().out
    assert "step-00000020: model.safetensors is not what its manifest says" in out
    assert not list((tmp_path / "new" / "checkpoints").glob(".tmp*"))


def test_nothing_whole_anywhere_is_an_error_not_a_new_beginning(tmp_path: Path, store: str) -> None:
    train(tmp_path / "old", store, [10])
    damage(store, 10, "deepspeed/states.pt")
    with pytest.raises(UserError, match=r"states.pt is not what .* leave the key out to start"):
        fetch_newer(store, tmp_path / "new")
    fetch_newer(store, tmp_path / "old")  # which has its own
    fetch_newer(store + "/empty", tmp_path / "new")  # a new run


def test_a_store_that_fails_never_stops_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mllm import checkpoint_store

    put, names = checkpoint_store.put_object, []

    def put_or_fail(url: str, *rest: object) -> None:
        names.append(url)
        if "step-00000010" in url:
            raise OSError("the network is down")
        put(url, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint_store, "put_object", put_or_fail)
    store = f"memory://{uuid.uuid4().hex}"
    assert any("step-00000010 NOT uploaded" in line for line in train(tmp_path, store, [10]))
    assert any("step-00000020: " in line for line in train(tmp_path, store, [20]))
    assert names[-1].endswith("step-00000020/manifest.json")  # last


@pytest.mark.parametrize(
    "url",
    ["runs/mine", "https://host/x", "s3://key:secret@bucket/x", "s3://b/../x", "s3://b/x?y=1"]
    + ["simplecache::s3://bucket/x", "s3://"],
)
def test_other_urls_are_refused_without_repeating_secrets(url: str) -> None:
    with pytest.raises(ValueError, match=r"train.checkpoint_store .*: use a plain s3://") as caught:
        TrainConfig(checkpoint_store=url)
    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_an_s3_server_that_spoils_every_third_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = count()

    def every_third(command: str, headers: dict[str, str]) -> str:
        if command != "PUT" and "Range" not in headers:
            return ""
        number = next(numbers)
        return "" if number % 3 else ("500", "cut", "503")[number // 3 % 3]

    with s3_server() as url, running(Proxy(url)) as proxy:
        options = {"s3": {"endpoint_url": proxy.url, "key": KEY, "secret": SECRET}}
        monkeypatch.setenv("MLLM_STORAGE_OPTIONS", json.dumps(options))
        monkeypatch.setenv("MLLM_REMOTE_TIMEOUT_SECONDS", "2")
        with pytest.raises(UserError, match=r"checkpoint_store s3://bucket/.*no such .*bucket"):
            train(tmp_path / "old", "s3://bucket/run", [10])
        boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        ).create_bucket(Bucket="bucket")
        proxy.stall_seconds = 4.0
        proxy.fault = every_third
        for step in (10, 20, 30):
            news = train(tmp_path / "old", "s3://bucket/run", [step])
            assert any("uploaded to s3://bucket/run" in line for line in news), news
        fetch_newer("s3://bucket/run", tmp_path / "new")
    assert set(proxy.faults) == {"500", "503", "cut"}
    assert [path.name for path in checkpoints(tmp_path / "new" / "checkpoints")] == [
        "step-00000030"
    ]
    fetched = newest_valid(tmp_path / "new")
    assert fetched is not None and problem_of(fetched) is None
    assert content(fetched) == content(tmp_path / "old" / "checkpoints" / fetched.name)
    assert SECRET not in capsys.readouterr().out
