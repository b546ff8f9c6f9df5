"""Makes each picture a link to itself, so that a phone can show it large."""

from __future__ import annotations

import re

PICTURE = re.compile(r'<img\b[^>]*?\bsrc="(?P<src>[^"]+)"[^>]*>')


def on_page_content(content: str, **_: object) -> str:
    """The page with its pictures in links."""
    return PICTURE.sub(r'<a class="picture" href="\g<src>">\g<0></a>', content)
