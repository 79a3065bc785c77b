"""Color scales: cividis for fractions, red and blue around 0 for signed values.

Both are readable for color-blind people. The tables are here, so that drawing imports nothing.
Missing cells are a light gray that is on neither scale.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

ColorScale = Literal["sequential", "diverging"]

MISSING_COLOR = (230, 230, 230)
COLOR_STOPS: dict[ColorScale, str] = {
    # cividis (Nunez, Anderton and Renslow 2018, arXiv 1712.01662).
    "sequential": (
        "00224e00285b002e6a0533711a386f273e6e32436d3b496c434e6c4b546c535a6d5a5f6e61656f686a716f7073"
        "7676767d7c788482798c8878938e789b9476a39a74aba072b4a76fbcae6cc4b468cdbb63d5c25edec958e7d150"
        "f0d846f9e03afee838"
    ),
    # RdBu of ColorBrewer, reversed: blue is negative, red is positive.
    "diverging": (
        "0530610e41791752901f63a82a71b23480b93f8ec0529dc86bacd184bcd99bc9e0aed3e6c2ddecd4e6f1e0ecf3"
        "ecf2f5f7f6f6f9eee7fbe5d8fddcc9fbccb4f8bb9ef5aa89ee9677e48066db6b55d05548c53e3dba2832ab162a"
        "930e267c072267001f"
    ),
}


def apply_colormap(
    values: Float[np.ndarray, "..."], scale: ColorScale, vmax: float = 1.0
) -> UInt8[np.ndarray, "... 3"]:
    """RGB colors of values; NaN is gray.

    Args:
        values: In [0, vmax] for `sequential`, in [-vmax, vmax] for `diverging`; others are clipped.
        scale: `sequential` or `diverging`.
        vmax: Value at the end of the scale.
    """
    table = np.frombuffer(bytes.fromhex(COLOR_STOPS[scale]), dtype=np.uint8).reshape(-1, 3)
    unit = values / (vmax or 1.0)
    unit = (unit + 1) / 2 if scale == "diverging" else unit
    positions = np.clip(np.nan_to_num(unit), 0, 1) * (len(table) - 1)
    channels = [np.interp(positions, np.arange(len(table)), table[:, c]) for c in range(3)]
    colors = np.floor(np.stack(channels, axis=-1) + 0.5).astype(np.uint8)
    colors[np.isnan(values)] = MISSING_COLOR
    return colors


def to_hex(color: UInt8[np.ndarray, "3"] | tuple[int, int, int]) -> str:
    """Color as `#rrggbb`."""
    return "#" + "".join(f"{int(channel):02x}" for channel in color)


def text_color(color: UInt8[np.ndarray, "3"]) -> str:
    """White or black, whichever has more contrast with the color: at least 4.5, as WCAG 2 asks."""
    channels = color.astype(float) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return "#fff" if (luminance + 0.05) ** 2 < 1.05 * 0.05 else "#000"


def css_gradient(scale: ColorScale) -> str:
    """Scale as a CSS gradient from left to right."""
    stops = [COLOR_STOPS[scale][at : at + 6] for at in range(0, len(COLOR_STOPS[scale]), 24)]
    return "linear-gradient(90deg," + ",".join(f"#{stop}" for stop in stops) + ")"
