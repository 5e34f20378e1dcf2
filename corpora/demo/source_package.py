"""Downloads a source package and runs nothing of it; `packages.py` starts it as a child.

    python -m corpora.demo.source_package vaderSentiment==3.3.2 --file NAME.tar.gz -d FOLDER

`pip download` of a source package runs its setup.py to learn what it needs. Here pip only looks the
file up and fetches it, with the user's own settings (index, mirrors, proxy, certificates). pip
has no public call for that; the parts used here are equal from pip 20.3 on, and where they
differ this process fails with a line for the user.
"""

import argparse
import importlib
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pinned")
    parser.add_argument("--file", required=True)
    parser.add_argument("-d", dest="folder", type=Path, required=True)
    arguments = parser.parse_args()
    name = arguments.pinned.partition("==")[0]
    pip = importlib.import_module("pip._internal.commands.download")
    command = pip.DownloadCommand("download", "")
    with command.main_context():
        options, _ = command.parse_args(
            ["--no-binary", ":all:", "--no-input", "--retries", "2", arguments.pinned]
        )
        session = command.get_default_session(options)
        finder = command._build_package_finder(options, session)
        links = {found.link.filename: found.link for found in finder.find_all_candidates(name)}
        if arguments.file not in links:
            raise SystemExit(f"ERROR: the package index has no {arguments.file}")
        # "identity": a server may else pack the archive once more, and the hash be another.
        response = session.get(
            links[arguments.file].url_without_fragment, headers={"Accept-Encoding": "identity"}
        )
        response.raise_for_status()
        (arguments.folder / arguments.file).write_bytes(response.content)


if __name__ == "__main__":
    main()
