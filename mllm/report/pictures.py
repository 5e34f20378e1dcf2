"""Pictures of a corpus, small enough to stand inside the page."""

import base64
import io
from typing import Literal


def data_url(encoded: bytes, side: int, kind: Literal["PNG", "JPEG"]) -> str:
    """`data:image/...` of a picture as the model's decoder sees it, at most `side` pixels a side.

    Raises:
        ValueError: it is no picture, or broken.
    """
    from mllm.images import open_picture

    picture = open_picture(encoded)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, kind, optimize=True, quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{data}"
