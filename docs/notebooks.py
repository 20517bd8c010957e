"""Shows notebooks of this folder as pages, with the outputs that they were saved with.

mkdocs.yml has this file under `hooks`. The page of NAME.ipynb is NAME.md in the navigation, and its pictures stand
beside it. Other pages link to NAME.ipynb, which is right for readers of the repository.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

# What pandas puts around a table for a notebook: the site has a style of its own.
_PANDAS = re.compile(r'<style scoped>.*?</style>\s*|(?<=<table) border="1" class="dataframe"', re.DOTALL)
_PICTURE = re.compile(r"!\[png\]\((output_[^)]+)\)")
_LINK = re.compile(r"\]\((\w+)\.ipynb(?=[)#])")


def on_files(files: Any, *, config: Any) -> Any:
    """Add a page for each notebook to the files of the site, and the pictures in its outputs."""
    from mkdocs.structure.files import File
    from nbconvert import MarkdownExporter

    for notebook in sorted(Path(config.docs_dir).glob("*.ipynb")):
        text, resources = MarkdownExporter().from_filename(str(notebook))
        text = _PANDAS.sub("", text)
        text = _PICTURE.sub(rf"![Drawn by the lines above]({notebook.stem}-\1)", text)
        files.append(File.generated(config, f"{notebook.stem}.md", content=text))
        for name, picture in resources["outputs"].items():
            files.append(File.generated(config, f"{notebook.stem}-{name}", content=picture))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Point links to a notebook to its page; the page itself links to the notebook."""
    if Path(config.docs_dir, page.file.src_uri).with_suffix(".ipynb").exists():
        return markdown
    return _LINK.sub(r"](\1.md", markdown)
