"""Shows the gallery in the documentation: mkdocs takes pictures from docs/ alone, GitHub from where they are.

Pages name them as ../figures/gallery/NAME.png, which is right for readers of the repository; mkdocs.yml has this file
under `hooks`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

GALLERY = Path(__file__).parent
_IN_REPOSITORY, _IN_SITE = "../figures/gallery/", "gallery/"


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pictures to the files of the site."""
    from mkdocs.structure.files import File

    for picture in sorted(GALLERY.glob("*.png")):
        files.append(File.generated(config, f"{_IN_SITE}{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Rewrite the paths of a page's pictures to their places in the site."""
    return markdown.replace(_IN_REPOSITORY, _IN_SITE)
