"""`mllm <verb>`: one lazy import per verb, no logic. Exit codes: 0 done, 2 the user's input,
1 ours, 75 training saved and stopped before its end."""

import errno
import importlib
import os
import sys

from mllm.command import printable
from mllm.errors import UserError

# verb: (module with `main(argv) -> int`, one line of help)
VERBS = {
    "train": (
        "mllm.launch",
        "train one stage: mllm train mllm/configs/demo_cpu.yaml --num-ranks 2",
    ),
    "recipe": ("mllm.recipe.command", "run stages in order, skipping finished ones"),
    "plan": (
        "mllm.plan_command",
        "memory, time and disk of a run: mllm plan CONFIG --world-size 64 --device H100",
    ),
    "stop": ("mllm.stop", "ask a running job to save and stop: mllm stop runs/demo/pretrain"),
    "corpora": ("corpora.command", "build, index, check and describe corpora: mllm corpora demo"),
    "tokenizer": ("tokenizer.command", "train or report on a tokenizer"),
    "stream": ("mllm.stream.command", "show the rows that training will see"),
    "export": ("mllm.export", "write a run as a folder that transformers loads"),
    "import": ("mllm.importing", "take over Kosmos-2's weights: mllm import kosmos2 DIR --out DIR"),
    "eval": ("evals.command", "zero-shot and few-shot evaluation with controls"),
    "report": ("mllm.report", "one HTML page over runs and evaluations"),
    "chat": ("mllm.chat.command", "chat with pictures: mllm chat --model runs/demo/export"),
    "doctor": ("mllm.doctor.command", "self-tests for the machine that will train: mllm doctor"),
    "demo": ("mllm.demo", "the whole chain on real data; what `make demo` runs"),
}

# What is wrong with the place that the user chose, not with us.
PLACE_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
)


def usage() -> str:
    verbs = "\n".join(f"  {verb:10} {text}" for verb, (_, text) in VERBS.items())
    return f"usage: mllm <verb> [options]\n\n{verbs}\n\n`mllm <verb> --help` shows examples."


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] not in VERBS:
        print(f"mllm: error: no verb {argv[0]!r}; one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(VERBS[argv[0]][0]).main(argv[1:]) or 0
    except UserError as error:
        print(f"mllm: error: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mllm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        if error.errno not in PLACE_ERRORS:
            raise
        path = error.filename2 or error.filename  # a rename's target; none for an open file
        place = "" if path is None else f"{printable(str(path))}: "
        print(
            f"mllm: error: {place}{error.strerror}; choose another place or free space",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
