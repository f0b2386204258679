"""A recording of the live view as one animated SVG, which any browser, and a README, plays."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

from rich.console import Console, RenderableType

_SVG = re.compile(r"<svg\b.*</svg>", re.DOTALL)
_VIEW_BOX = re.compile(r'viewBox="([^"]+)"')


class Recording:
    """Collects pictures of one size; `save` writes them as an endless film."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._frames: list[str] = []

    def add(self, picture: RenderableType) -> None:
        """Append a picture."""
        console = Console(
            record=True, width=self._width, file=StringIO(), force_terminal=True, color_system="truecolor"
        )
        console.print(picture)
        svg = console.export_svg(title="bros top", unique_id=f"f{len(self._frames)}")
        found = _SVG.search(svg)
        assert found is not None, "rich exported no <svg>"
        self._frames.append(found[0])

    def save(self, path: Path, frame_s: float) -> None:
        """Write the film; each picture is shown for `frame_s` seconds."""
        boxes = [_VIEW_BOX.search(frame) for frame in self._frames]
        sizes = [[float(number) for number in box[1].split()] for box in boxes if box is not None]
        width, height = (max(size[axis] for size in sizes) for axis in (2, 3))
        path.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}">\n'
            + "\n".join(self._shown(index, frame, frame_s) for index, frame in enumerate(self._frames))
            + "\n</svg>\n"
        )

    def _shown(self, index: int, frame: str, frame_s: float) -> str:
        """Wrap a picture so that it is seen in its turn only."""
        count = len(self._frames)
        if count == 1:
            return frame
        times = [index / count, (index + 1) / count]
        keys = f"0;{times[0]:.5f};{times[1]:.5f};1" if index else f"0;{times[1]:.5f};1"
        values = "none;inline;none;none" if index else "inline;none;none"
        animation = (
            f'<animate attributeName="display" values="{values}" keyTimes="{keys}" calcMode="discrete"'
            f' dur="{count * frame_s:g}s" repeatCount="indefinite"/>'
        )
        return f'<g display="{"none" if index else "inline"}">{animation}{frame}</g>'
