"""The published sets of captions, visual questions, memes and web pages, as downloaded."""

from functools import partial

from evals.tasks.info import TaskInfo
from evals.tasks.memes import HatefulMemes
from evals.tasks.photo_captions import PhotoCaption
from evals.tasks.vqa import Vqa
from evals.tasks.websrc import WebSrc, WebSrcNoText

GRID = (0, 2, 4, 8)
KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
COCO_IMAGES = "train2014/ and val2014/ of COCO (a link will do)"

VISION_TASKS: dict[str, TaskInfo] = {
    "coco_caption": TaskInfo(
        "COCO captions, Karpathy's test part, beam 5, CIDEr",
        partial(PhotoCaption, "coco_caption"),
        "coco",
        "dataset_coco.json, train2014/, val2014/",
        f"{KARPATHY}, https://cocodataset.org",
        shots=GRID,
    ),
    "flickr30k_caption": TaskInfo(
        "Flickr30k captions, Karpathy's test part, beam 5, CIDEr",
        partial(PhotoCaption, "flickr30k_caption"),
        "flickr30k",
        "dataset_flickr30k.json, flickr30k-images/",
        f"{KARPATHY}, https://shannon.cs.illinois.edu/DenotationGraph",
        shots=GRID,
    ),
    "vqav2": TaskInfo(
        "VQAv2's validation questions, greedy, VQA accuracy",
        partial(Vqa, "vqav2"),
        "coco",
        "v2_OpenEnded_mscoco_{val,train}2014_questions.json, "
        f"v2_mscoco_{{val,train}}2014_annotations.json, {COCO_IMAGES}",
        "https://visualqa.org/download.html",
        shots=GRID,
    ),
    "vizwiz": TaskInfo(
        "VizWiz's validation questions, greedy, VQA accuracy",
        partial(Vqa, "vizwiz"),
        "vizwiz",
        "{val,train}.json, {val,train}/",
        "https://vizwiz.org/tasks-and-datasets/vqa",
        shots=GRID,
    ),
    "okvqa": TaskInfo(
        "OK-VQA's validation questions, greedy, VQA accuracy",
        partial(Vqa, "okvqa"),
        "okvqa",
        "OpenEnded_mscoco_{val,train}2014_questions.json, "
        f"mscoco_{{val,train}}2014_annotations.json, {COCO_IMAGES}",
        "https://okvqa.allenai.org/download.html",
        shots=GRID,
    ),
    "textvqa": TaskInfo(
        "TextVQA's validation questions, greedy, VQA accuracy",
        partial(Vqa, "textvqa"),
        "textvqa",
        "TextVQA_0.5.1_{val,train}.json, train_images/",
        "https://textvqa.org/dataset",
        shots=GRID,
    ),
    "hateful_memes": TaskInfo(
        "HatefulMemes' dev_seen, yes against no, ROC AUC",
        HatefulMemes,
        "hateful_memes",
        "dev_seen.jsonl, train.jsonl, img/",
        "https://hatefulmemeschallenge.com",
    ),
    "websrc": TaskInfo(
        "WebSRC's dev questions, screenshot and text, greedy, EM and F1",
        WebSrc,
        "websrc",
        "dataset_split_release.json, DOMAIN/SITE/dataset.csv, DOMAIN/SITE/processed_data/",
        "https://x-lance.github.io/WebSRC",
    ),
    "websrc_no_text": TaskInfo(
        "the same, the screenshot alone",
        WebSrcNoText,
        "websrc",
        "as websrc, without the HTML",
        "https://x-lance.github.io/WebSRC",
    ),
}
