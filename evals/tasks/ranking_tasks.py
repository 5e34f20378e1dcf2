"""The ranking, naming and language rows of KOSMOS-1's table: what each reads and from where."""

from functools import partial

from evals.tasks.cub import make_described, make_pairs
from evals.tasks.facts import ColorTerms, MemoryColor, RelativeSize
from evals.tasks.imagenet import ImageNet, make_constrained
from evals.tasks.info import TaskInfo
from evals.tasks.iq import Iq50, Raven
from evals.tasks.language import make_language
from evals.tasks.rendered_sst2 import RenderedSst2, RenderedSst2Cot

SST2_FILES = "{train,test}/{negative,positive}/*.png"
SST2_SOURCE = "rendered-sst2.tgz, github.com/openai/CLIP (data/rendered-sst2.md)"
IMAGENET_FILES = "val/WNID/*.JPEG (or flat, with the devkit), names.txt or classes.json"
IMAGENET_SOURCE = "image-net.org; the names: IMAGENET_CLASSNAMES of open_clip, one a line"
CUB_FILES = "CUB_200_2011/{images,image_class_labels,classes}.txt and images/; pairs.jsonl"
CUB_SOURCE = "data.caltech.edu (CUB_200_2011.tgz); further pairs are your own"
FACTS_SOURCE = "github.com/Victorwz/VaLM, folder data"
SUPERGLUE = "super.gluebenchmark.com/tasks"

LANGUAGE: dict[str, tuple[str, str, str]] = {  # what is asked, files, source
    "storycloze": (
        "which of two endings a story has",
        "cloze_test_ALL_{test,val}.csv or {test,validation}.jsonl",
        "cs.rochester.edu/nlp/rocstories (2016), on request",
    ),
    "hellaswag": (
        "which of four endings goes on",
        "hellaswag_{val,train}.jsonl",
        "github.com/rowanz/hellaswag, folder data",
    ),
    "winograd": (
        "whom a pronoun stands for, by partial scoring",
        "wsc273.jsonl or wsc285.jsonl",
        "huggingface.co/datasets/winograd_wsc, exported to JSON lines",
    ),
    "winogrande": (
        "which name fills the gap, by partial scoring",
        "dev.jsonl, train_xl.jsonl",
        "winogrande.allenai.org",
    ),
    "piqa": (
        "which of two ways reaches a goal",
        "{valid,train}.jsonl, {valid,train}-labels.lst",
        "yonatanbisk.com/piqa",
    ),
    "boolq": (
        "yes or no about a passage",
        "val.jsonl (SuperGLUE) or dev.jsonl, train.jsonl",
        f"{SUPERGLUE} or github.com/google-research-datasets/boolean-questions",
    ),
    "cb": (
        "whether a premise entails a hypothesis; macro-F1 beside accuracy",
        "{val,train}.jsonl",
        SUPERGLUE,
    ),
    "copa": ("which of two is the cause or the effect", "{val,train}.jsonl", SUPERGLUE),
}

RANKING_TASKS: dict[str, TaskInfo] = {
    "rendered_sst2": TaskInfo(
        "sentiment of a sentence drawn as a picture, by log-likelihood",
        RenderedSst2,
        "rendered_sst2",
        SST2_FILES,
        SST2_SOURCE,
    ),
    "rendered_sst2_cot": TaskInfo(
        "the same after a description that the model writes first",
        RenderedSst2Cot,
        "rendered_sst2",
        SST2_FILES,
        SST2_SOURCE,
        takes_shots=False,
    ),
    "iq50": TaskInfo(
        "Raven's matrices, six candidate pictures, by how sure the model is",
        Iq50,
        "iq50",
        "iq.jsonl and the pictures it names",
        "aka.ms/kosmos-iq50; write iq.jsonl for it",
        takes_shots=False,
    ),
    "raven": TaskInfo(
        "RAVEN or I-RAVEN, eight candidate pictures",
        Raven,
        "raven",
        "CONFIG/RAVEN_*_test.npz",
        "wellyzhang.github.io/project/raven.html, or made by the package raven-gen",
        takes_shots=False,
    ),
    "imagenet": TaskInfo(
        "class names said freely, beam 2",
        ImageNet,
        "imagenet",
        IMAGENET_FILES,
        IMAGENET_SOURCE,
        takes_shots=False,
    ),
    "imagenet_constrained": TaskInfo(
        "class names held to the list: trie and beam 2, or --constraint rank",
        make_constrained,
        "imagenet",
        IMAGENET_FILES,
        IMAGENET_SOURCE,
        takes_shots=False,
    ),
    "cub_pairs": TaskInfo(
        "which of two look-alikes: ranked, or --constraint none for a greedy answer",
        make_pairs,
        "cub",
        CUB_FILES,
        CUB_SOURCE,
        takes_shots=False,
    ),
    "cub_pairs_described": TaskInfo(
        "the same with a description of each, which pairs.jsonl holds",
        make_described,
        "cub",
        CUB_FILES,
        CUB_SOURCE,
        takes_shots=False,
    ),
    "relative_size": TaskInfo(
        "which of two things is larger, in both orders, without a picture",
        RelativeSize,
        "relative_size",
        "sizePairsFull.txt",
        f"{FACTS_SOURCE}/object_size",
        takes_shots=False,
    ),
    "memory_color": TaskInfo(
        "the colour of a thing, of eleven, without a picture",
        MemoryColor,
        "memory_color",
        "memory_color_data.csv",
        f"{FACTS_SOURCE}/object_color",
        takes_shots=False,
    ),
    "color_terms": TaskInfo(
        "the same of other things",
        ColorTerms,
        "color_terms",
        "color-concrete-objects.csv",
        f"{FACTS_SOURCE}/object_color",
        takes_shots=False,
    ),
    **{
        name: TaskInfo(
            about,
            partial(make_language, name),
            name,
            files,
            source,
            shots=(0, 1, 4),
            fewshot_limit=500,
        )
        for name, (about, files, source) in LANGUAGE.items()
    },
}
