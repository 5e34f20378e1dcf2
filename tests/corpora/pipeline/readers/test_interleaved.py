"""Interleaved documents: pictures stand where the source has them."""

import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpora.document import TextSegment
from mllm.errors import UserError

from .reading import coded, content, image, name_of, read

RED, GREEN, BLUE = image("red"), image("green", "JPEG"), image("blue")


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_mmc4_puts_a_picture_before_its_sentence(tmp_path):
    row = {
        "url": "http://x.org",
        "text_list": ["One.", "Two.", "", "Three.", "Four."],
        "image_info": [
            {"image_name": "b.png", "raw_url": "u", "matched_text_index": 3, "matched_sim": 0.3},
            {"image_name": "r.png", "matched_text_index": 0},
            {"image_name": "gone.png", "matched_text_index": 1},
            {"image_name": "g.jpg", "matched_text_index": 3},
            {"image_name": "g.jpg", "matched_text_index": 9},
        ],
        "similarity_matrix": [[0.1]],
    }
    for name, data in {"r.png": RED, "g.jpg": GREEN, "b.png": BLUE}.items():
        (tmp_path / name).write_bytes(data)
    lost = {"text_list": ["x"], "image_info": [{"image_name": "no.png", "matched_text_index": 0}]}
    write_lines(tmp_path / "docs_shard_0.jsonl", row, lost, {"text_list": "x", "image_info": []})
    documents, log = read("interleaved", tmp_path)
    assert [content(d) for d in documents] == [[RED, "One. Two.", BLUE, GREEN, "Three. Four."]]
    assert documents[0].meta == {"url": "http://x.org"}
    assert log.edited == {"picture missing": 2, "picture matched to no sentence": 1}
    assert log.dropped == {"no picture left": 1, "text_list or image_info is no list": 1}


def test_mmc4_in_the_zip_that_it_is_shipped_in_with_base64(tmp_path):
    row = {
        "text_list": ["One.", "Two."],
        "image_info": [{"image_base64": coded(RED), "matched_text_index": 1}],
    }
    with zipfile.ZipFile(tmp_path / "docs_shard_0_v2.jsonl.zip", "w") as archive:
        archive.writestr("docs_shard_0_v2.jsonl", json.dumps(row) + "\n")
    assert name_of("interleaved", tmp_path) == "mmc4"
    assert [content(d) for d in read("interleaved", tmp_path)[0]] == [["One.", RED, "Two."]]


def obelics(path, images):
    texts = [["First.", None, "Second.", None], [None, "x"]]
    table = {
        "texts": texts,
        "images": images,
        "metadata": ["[]", "[]"],
        "general_metadata": ['{"url": "http://page"}', "not json"],
    }
    pq.write_table(pa.table(table), path)


def test_obelics_with_urls_through_a_map(tmp_path):
    urls = ["http://a/1?x=2", "https://b/2", "http://c/3"]
    obelics(tmp_path / "a.parquet", [[None, urls[0], None, urls[1]], [urls[2], None]])
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "00.png").write_bytes(RED)
    (pictures / "01.jpg").write_bytes(GREEN)
    names = ({"url": urls[0], "file_name": "00.png"}, {"url": urls[1], "file_name": "01.jpg"})
    write_lines(pictures / "urls.jsonl", *names)
    documents, log = read("interleaved", tmp_path / "a.parquet", image_dir=str(pictures))
    assert [content(d) for d in documents] == [["First.", RED, "Second.", GREEN]]
    assert documents[0].meta == {"url": "http://page"}
    assert log.dropped == {"no picture left": 1}
    assert log.edited == {"picture's URL is not in urls.jsonl": 1}


def test_obelics_with_bytes_and_misaligned_rows(tmp_path):
    path = tmp_path / "a.parquet"
    obelics(path, [[None, RED, None, b"no"], [GREEN, None]])
    documents, log = read("interleaved", tmp_path)
    assert [content(d) for d in documents] == [["First.", RED, "Second."], [GREEN, "x"]]
    assert documents[1].meta == {}
    assert log.edited == {"not a picture": 1}
    obelics(path, [[None, RED, None], [GREEN, BLUE]])
    assert read("interleaved", path)[1].dropped == {"texts and images are not aligned": 2}


def test_own_json(tmp_path):
    (tmp_path / "r.png").write_bytes(RED)
    data = f"data:image/jpeg;base64,{coded(GREEN)}"
    segments = [{"text": "Q:", "scored": False}, {"image": "r.png"}, {"text": "A"}, {"image": data}]
    write_lines(
        tmp_path / "a.jsonl",
        {"segments": segments, "source": "mine"},
        {"segments": [{"sound": "x"}]},
        {"segments": [{"text": "only text"}]},
        {"segments": [{"text": "a"}, {"image": "gone"}, {"text": "b"}, {"image": "r.png"}]},
    )
    documents, log = read("interleaved", tmp_path)
    assert [content(d) for d in documents] == [["Q:", RED, "A", GREEN], ["a", "\nb", RED]]
    assert documents[0].segments[0] == TextSegment("Q:", is_scored=False)
    assert documents[0].meta == {"source": "mine"}
    assert log.dropped == {"a segment is neither text nor image": 1, "no picture left": 1}


PAGE = """<!DOCTYPE html><html><head><title>T</title><style>p {}</style></head><body>
<div class="navheader"><a href="x">Prev</a> <img src="red.png"></div>
<nav>menu</nav><h1>The  <em>Crop</em>
Tool</h1><!-- note --><p>Text before<b>bold</b> tail.<br>New line
<img src="../images/red%20one.png" alt="x"> after it,</p>
<script>var x = "<p>no</p>";</script>
<ul><li>one</li><li>two<img src="../images/g.jpg"></li></ul>
<pre>a
  b</pre>
<img src="logo.svg"><img src="https://x.org/a.png"><img src="../../outside.png"><img>
<svg><text>drawn</text></svg><p>Ende: größer &amp; &lt;b&gt;</p></body></html>"""


def test_html_in_reading_order(tmp_path):
    for folder in ("help/en", "help/images"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "outside.png").write_bytes(BLUE)
    (tmp_path / "help/images/red one.png").write_bytes(RED)
    (tmp_path / "help/images/g.jpg").write_bytes(GREEN)
    (tmp_path / "help/en/crop.html").write_text(PAGE, "utf-8")
    (tmp_path / "help/en/text.html").write_text("<p>no picture</p>")
    (tmp_path / "help/en/empty.html").write_text("")
    documents, log = read("interleaved", tmp_path / "help")
    assert [content(d) for d in documents] == [
        [
            "The Crop Tool\nText beforebold tail.\nNew line",
            RED,
            "after it,\none\ntwo",
            GREEN,
            "a\n  b\nEnde: größer & <b>",
        ]
    ]
    assert documents[0].meta == {"file": "en/crop.html"}
    assert log.edited == {
        "picture is SVG": 1,
        "picture is not local": 1,
        "picture outside of --image-dir": 1,
        "picture without src": 1,
    }
    assert log.dropped == {"no picture left": 1, "empty page": 1}


def test_html_whose_pictures_lie_beside_the_source(tmp_path):
    (tmp_path / "en").mkdir()
    (tmp_path / "en/a.html").write_bytes("<p>größe<img src='../r.png'>".encode("latin-1"))
    (tmp_path / "r.png").write_bytes(RED)
    assert read("interleaved", tmp_path / "en")[1].edited == {"picture outside of --image-dir": 1}
    documents, _ = read("interleaved", tmp_path / "en", image_dir=str(tmp_path))
    assert [content(d) for d in documents] == [["größe", RED]]


def test_no_known_format_names_all(tmp_path):
    write_lines(tmp_path / "a.jsonl", {"caption": "x"})
    with pytest.raises(UserError, match=r"columns caption; no known format.*mmc4.*obelics.*html"):
        read("interleaved", tmp_path)
    with pytest.raises(UserError, match=r"no text_list and no image_info; its keys are caption"):
        read("interleaved", tmp_path, forced="mmc4")
    with pytest.raises(UserError, match="--format coco: interleaved have mmc4, obelics"):
        read("interleaved", tmp_path, forced="coco")
