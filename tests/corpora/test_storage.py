"""Which places a corpus may lie at, and what is said about the others."""

from pathlib import Path

import pytest

from corpora.storage import is_remote, list_shards, open_shard, shard_label
from mllm.errors import UserError


@pytest.mark.parametrize("place", ["runs/corpus", "/data/a b", Path("/data"), "pipe:cat x", "C:x"])
def test_folders_are_not_remote(place):
    assert not is_remote(place)


@pytest.mark.parametrize(
    "url", ["s3://bucket/laion", "gs://bucket", "https://host/{000..331}.tar", "memory://x"]
)
def test_urls_of_listed_schemes_are_remote(url):
    assert is_remote(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc", r"file:\.\.\.: shards are read from s3://, gs://, https:// or a plain"),
        ("simplecache::s3://bucket/x", "without chains of schemes"),
        ("pipe:curl https://host/x", "without chains of schemes"),
        ("ftp://host/x", "shards are read from"),
        ("S3://bucket/x", "shards are read from"),
        ("https://host/a::s3://b", "without `::`"),
        ("s3://bucket/../other", r"without `::` and `\.\.`"),
        ("http://host/x", "set MLLM_ALLOW_HTTP=1 to allow"),
        ("s3://", "names no bucket"),
    ],
)
def test_other_urls_are_refused_in_one_line(url, message):
    with pytest.raises(UserError, match=message) as refused:
        is_remote(url)
    assert "\n" not in str(refused.value)


def test_http_is_used_when_allowed(monkeypatch):
    monkeypatch.setenv("MLLM_ALLOW_HTTP", "1")
    assert is_remote("http://host/x")


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:hunter22@bucket/x",
        "https://me:hunter22@host/x",
        "https://host/x?X-Amz-Signature=hunter22",
        "https://host/x#hunter22",
        "me:hunter22@https://host",
        "s3::https://me:hunter22@host/x?hunter22",
    ],
)
def test_a_url_with_credentials_is_refused_without_repeating_them(url):
    for ask in (is_remote, list_shards, lambda u: open_shard(u, "a.tar")):
        with pytest.raises(UserError) as refused:
            ask(url)
        assert "hunter22" not in str(refused.value)
        assert "AKIAKEY" not in str(refused.value)


def test_labels_name_the_shard_not_the_braces():
    assert shard_label("s3://bucket/laion/", "0.tar") == "s3://bucket/laion/0.tar"
    assert shard_label("https://host/cc3m/{00..99}.tar", "07.tar") == "https://host/cc3m/07.tar"
    assert shard_label("/data/cc3m", "07.tar") == "/data/cc3m/07.tar"


@pytest.mark.parametrize("name", ["../a.tar", "a/b.tar", "..", "", "a\\b.tar"])
def test_a_shard_name_cannot_leave_its_corpus(name):
    for place in ("s3://bucket/x", "/data"):
        with pytest.raises(UserError, match="names no shard"):
            open_shard(place, name)


def test_braces_spell_the_shards_without_a_listing():
    assert list_shards("https://host/cc3m/{08..11}.tar") == ["08.tar", "09.tar", "10.tar", "11.tar"]
    assert list_shards("s3://b/{a,b}-{0..1}.tar") == ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://host/cc3m", "end the URL in their names with braces"),
        ("https://host/{0..3.tar", "a brace is missing"),
        ("https://host/{0..3}/a.tar", "braces belong to the names"),
        ("https://host/{0..3}.zip", "holds no .tar shard"),
        ("https://host/{0..20}.tar", "spells more than 12 names"),
        ("memory://no-such-folder", "no such object"),
    ],
)
def test_a_listing_that_cannot_be_had_is_one_line(url, message, monkeypatch):
    monkeypatch.setattr("corpora.remote.MAX_SHARDS", 12)
    with pytest.raises(UserError, match=message):
        list_shards(url)
