"""Arrays inside a page: PNG images as data URIs, and deflated numbers for the viewer script."""

import base64
import struct
import zlib

import numpy as np
from jaxtyping import Float, UInt8

from probes.viz.colors import MISSING_COLOR

# Values of larger arrays are thousandths, which is what the viewer shows; these deflate better.
_MAX_FINE_VALUES = 300_000


def encode_png(pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """PNG file of RGB pixels; the color of missing cells is transparent."""
    height, width, _ = pixels.shape
    rows = pixels.reshape(height, -1)
    # Filter 2 stores each line as the difference from the line above: repeated lines cost nothing.
    differences = rows - np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    lines = np.hstack([np.full((height, 1), 2, dtype=np.uint8), differences])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _png_chunk(b"IHDR", header)
        + _png_chunk(b"tRNS", struct.pack(">HHH", *MISSING_COLOR))
        + _png_chunk(b"IDAT", zlib.compress(lines.tobytes(), 9))
        + _png_chunk(b"IEND", b"")
    )


def png_data_uri(pixels: UInt8[np.ndarray, "height width 3"]) -> str:
    """Data URI for `<img src>`."""
    return "data:image/png;base64," + base64.b64encode(encode_png(pixels)).decode()


def encode_array(values: Float[np.ndarray, "..."], vmax: float = 1.0) -> dict[str, object]:
    """Quantize values in [0, vmax] to integer levels, deflated, in base64; NaN is `levels` + 1."""
    levels = 65534 if values.size <= _MAX_FINE_VALUES else 1000
    unit = np.clip(np.nan_to_num(values) / (vmax or 1.0), 0, 1)
    ints = np.where(np.isnan(values), levels + 1, np.rint(unit * levels))
    raw = ints.astype("<u2").tobytes()
    text = base64.b64encode(zlib.compress(raw, 9)).decode()
    return {"levels": levels, "top": float(vmax), "text": text}


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    check = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)
