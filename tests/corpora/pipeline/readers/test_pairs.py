"""Image-text pairs of foreign writers: every picture with its caption, in order."""

import csv
import io
import json
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpora.document import TextSegment
from mllm.errors import UserError

from .reading import coded, content, image, name_of, read

COLOURS = ["red", "green", "blue", "black", "white", "orange"]
PICTURES = [image(c, "JPEG" if i % 2 else "PNG") for i, c in enumerate(COLOURS)]
CAPTIONS = [f"a {c} image, größer" for c in COLOURS]
PAIRS = [[picture, caption] for picture, caption in zip(PICTURES, CAPTIONS, strict=True)]


def test_parquet_that_datasets_writes(tmp_path):
    import datasets

    table = datasets.Dataset.from_dict(
        {"image": [{"bytes": p, "path": None} for p in PICTURES], "text": CAPTIONS, "id": range(6)},
        features=datasets.Features(
            {
                "image": datasets.Image(),
                "text": datasets.Value("string"),
                "id": datasets.Value("int64"),
            }
        ),
    )
    table.to_parquet(tmp_path / "a.parquet")
    documents, log = read("pairs", tmp_path)
    assert [content(d) for d in documents] == PAIRS
    assert documents[2].meta == {"id": 2}
    assert not log.dropped


@pytest.mark.parametrize(
    ("image_column", "caption_column"), [("jpg", "TEXT"), ("image_bytes", "caption")]
)
def test_parquet_with_bytes_by_row_groups(tmp_path, image_column, caption_column):
    table = pa.table({image_column: PICTURES, caption_column: CAPTIONS, "url": ["u"] * 6})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    documents, _ = read("pairs", tmp_path, unit_bytes=1)
    assert [content(d) for d in documents] == PAIRS
    assert documents[0].meta == {"url": "u"}


def test_parquet_with_odd_columns_and_several_captions(tmp_path):
    table = pa.table({"photo": PICTURES[:2], "said": [["one", "two", ""], ["three"]]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"columns are photo, said; name one with --image-column"):
        read("pairs", tmp_path, forced="parquet")
    chosen = {"image_column": "photo", "text_column": "said"}
    documents, _ = read("pairs", tmp_path, forced="parquet", **chosen)
    assert [content(d)[1] for d in documents] == ["one", "two", "three"]
    documents, _ = read("pairs", tmp_path, forced="parquet", captions="first", **chosen)
    assert [content(d)[1] for d in documents] == ["one", "three"]


def test_bad_rows_of_parquet_are_counted(tmp_path):
    table = pa.table(
        {
            "image": [PICTURES[0], None, b"", b"<svg/>", PICTURES[1]],
            "caption": ["a", "b", "c", "d", None],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    documents, log = read("pairs", tmp_path)
    assert [content(d) for d in documents] == [[PICTURES[0], "a"]]
    assert log.dropped == {"no picture": 2, "not a picture": 1, "no caption": 1}
    assert log.examples["not a picture"] == [{"id": "a.parquet row 3", "excerpt": "b'<svg/>'"}]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_image_folders(tmp_path, form):
    """The layout that `datasets.load_dataset("imagefolder")` reads."""
    folder = tmp_path / "train"
    (folder / "deep").mkdir(parents=True)
    rows = []
    for i, (picture, caption) in enumerate(PAIRS):
        name = f"deep/{i}.img" if i % 2 else f"{i}.img"
        (folder / name).write_bytes(picture)
        rows.append({"file_name": name, "text": caption, "n": str(i)})
    if form == "jsonl":
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metadata.jsonl").write_text(lines)
    else:
        with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["file_name", "text", "n"])
            writer.writeheader()
            writer.writerows(rows)
    assert name_of("pairs", tmp_path) == "imagefolder"
    for unit_bytes in (64, 1 << 20):
        documents, log = read("pairs", tmp_path, unit_bytes)
        assert [content(d) for d in documents] == PAIRS
        assert documents[1].meta == {"file_name": "deep/1.img", "n": "1"}
        assert not log.dropped


def test_names_that_lead_out_of_the_folder_read_nothing(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(PICTURES[0])
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    names = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "gone.png", "a\0b"]
    lines = "".join(json.dumps({"file_name": n, "text": "x"}) + "\n" for n in names[:4])
    (folder / "metadata.jsonl").write_text(lines)
    documents, log = read("pairs", folder)
    assert documents == []
    assert log.dropped == {"picture outside of --image-dir": 3, "picture missing": 1}


def coco(path, places=None):
    images = [{"id": 100 + i, "file_name": f"{i}.jpg", "height": 7} for i in range(4)]
    annotations = [
        {"id": n, "image_id": 100 + n % 3, "caption": f"caption {n} of {n % 3}"} for n in range(7)
    ]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))
    return images


def as_folder(place, names):
    place.mkdir()
    for name, picture in names.items():
        (place / name).write_bytes(picture)


def as_tar(place, names):
    with tarfile.open(place, "w") as tar:
        for name, picture in names.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(picture)
            tar.addfile(info, io.BytesIO(picture))


def as_zip(place, names):
    with zipfile.ZipFile(place, "w") as archive:
        for name, picture in names.items():
            archive.writestr(name, picture)


@pytest.mark.parametrize(
    ("place", "write"), [("p", as_folder), ("p.tar", as_tar), ("p.zip", as_zip)]
)
def test_coco_captions(tmp_path, monkeypatch, place, write):
    monkeypatch.setattr("corpora.pipeline.readers.coco.IMAGES_A_PART", 2)
    path = tmp_path / "captions.json"
    coco(path)
    write(tmp_path / place, {f"{i}.jpg": PICTURES[i] for i in (0, 2, 3)})
    options = {"image_dir": str(tmp_path / place)}
    documents, log = read("pairs", path, **options)
    assert [(content(d), d.meta["id"]) for d in documents] == [
        ([PICTURES[0], "caption 0 of 0"], 100),
        ([PICTURES[0], "caption 3 of 0"], 100),
        ([PICTURES[0], "caption 6 of 0"], 100),
        ([PICTURES[2], "caption 2 of 2"], 102),
        ([PICTURES[2], "caption 5 of 2"], 102),
    ]
    assert log.dropped == {"picture missing": 1, "no caption": 1}
    documents, _ = read("pairs", path, captions="first", **options)
    assert [content(d)[1] for d in documents] == ["caption 0 of 0", "caption 2 of 2"]


def test_coco_without_captions_or_pictures_says_so(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": [{"id": 1}], "annotations": [{"bbox": []}]}))
    with pytest.raises(UserError, match=r"not COCO captions JSON.*keys are images, annotations"):
        read("pairs", path, forced="coco")
    coco(path)
    with pytest.raises(UserError, match=r"nowhere: no folder, .tar or .zip of pictures"):
        read("pairs", path, image_dir=str(tmp_path / "nowhere"))
    path.write_text('{"images": [')
    with pytest.raises(UserError, match="not a whole JSON file"):
        read("pairs", path, forced="coco")


def test_karpathy_splits(tmp_path):
    (tmp_path / "val2014").mkdir()
    images = []
    for i, split in enumerate(["train", "restval", "test"]):
        (tmp_path / "val2014" / f"{i}.jpg").write_bytes(PICTURES[i])
        sentences = [{"raw": f"{split} {n}.", "tokens": [split]} for n in range(2)]
        images.append(
            {"filepath": "val2014", "filename": f"{i}.jpg", "split": split, "sentences": sentences}
        )
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    assert name_of("pairs", path) == "karpathy"
    documents, _ = read("pairs", path, split="train,restval")
    assert [content(d) for d in documents] == [
        [PICTURES[0], "train 0."],
        [PICTURES[0], "train 1."],
        [PICTURES[1], "restval 0."],
        [PICTURES[1], "restval 1."],
    ]
    assert len(read("pairs", path)[0]) == 6


def test_tsv_with_base64(tmp_path):
    path = tmp_path / "a.tsv"
    rows = [[str(i), "img", c, "person&&dog", coded(p)] for i, (p, c) in enumerate(PAIRS)]
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"5 columns without header.*number 5; .*--columns"):
        read("pairs", path)
    for unit_bytes in (100, 1 << 20):
        documents, log = read("pairs", path, unit_bytes, columns="id,_,caption,labels,image")
        assert [content(d) for d in documents] == PAIRS
        assert documents[1].meta == {"id": "1", "labels": "person&&dog"}
        assert not log.dropped


def test_tsv_of_two_columns_and_with_header(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("".join(f"{c}\t{coded(p)}\n" for p, c in PAIRS))
    assert [content(d) for d in read("pairs", path)[0]] == PAIRS
    header = "url\tTEXT\timage\n"
    path.write_text(header + "".join(f"u\t{c}\t{coded(p)}\n" for p, c in PAIRS))
    documents, _ = read("pairs", path, 60)
    assert [content(d) for d in documents] == PAIRS
    assert documents[0].meta == {"url": "u"}


def test_bad_lines_of_tsv_are_counted(tmp_path):
    path = tmp_path / "a.tsv"
    good = f"a\t{coded(PICTURES[0])}"
    path.write_text(f"{good}\nno tabs\nb\t!!!\nc\t{coded(b'text')}\n\t{coded(PICTURES[1])}\nd\t\n")
    documents, log = read("pairs", path)
    assert [content(d) for d in documents] == [[PICTURES[0], "a"]]
    assert log.dropped == {
        "not 2 columns": 1,
        "picture is not base64": 1,
        "not a picture": 1,
        "no caption": 1,
        "no picture": 1,
    }


def test_a_pair_is_scored(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text(f"a caption\t{coded(PICTURES[0])}\n")
    assert read("pairs", path)[0][0].segments[1] == TextSegment("a caption", is_scored=True)
