"""The report: a page that needs no other file, and all numbers as JSON, written anew after each measurement."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from metacurv._version import __version__
from metacurv.measure.measurements import Finding, Settings
from metacurv.measure.subject import Subject

_STYLE = (
    "body { font: 16px/1.5 system-ui, sans-serif; max-width: 52em; margin: 2em auto; padding: 0 1em; }"
    " img { max-width: 100%; } .why { color: #666; } .failed { color: #b00020; }"
    " td { padding: 0 1.5em 0 0; }"
)


class Report:
    """A folder with report.html and report.json.

    Attributes:
        page: the path of the page.
        failed: True once a measurement has failed.
    """

    def __init__(self, folder: Path, subject: Subject, settings: Settings) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.page = folder / "report.html"
        self._numbers = folder / "report.json"
        self.failed = False
        self._about = {
            "subject": subject.name,
            "model": type(subject.model).__name__,
            "parameters": sum(p.numel() for p in subject.model.parameters() if p.requires_grad),
            "device": str(next(subject.model.parameters()).device),
            "dtype": str(next(subject.model.parameters()).dtype),
            "mode": "train" if subject.model.training else "eval",
            "loss": getattr(subject.loss_fn, "__name__", type(subject.loss_fn).__name__),
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "metacurv": __version__,
            "torch": torch.__version__,
            **dataclasses.asdict(settings),
        }
        self._findings: list[Finding] = []
        self._sections: list[str] = []
        self._write()

    def add(self, finding: Finding) -> None:
        """Adds a finding, and writes both files."""
        self._findings.append(finding)
        self._sections.append(_section(finding))
        self.failed = self.failed or finding.failed
        self._write()

    def _write(self) -> None:
        findings = {
            finding.title: {"seconds": finding.seconds, "why": finding.why, **finding.numbers}
            for finding in self._findings
        }
        whole = _plain({"about": self._about, "findings": findings})
        self._numbers.write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n")
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(_shown(value))}</td></tr>"
            for name, value in self._about.items()
        )
        title = f"Curvature of {html.escape(str(self._about['subject']))}"
        self.page.write_text(
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f"<style>{_STYLE}</style></head><body><h1>{title}</h1><table>{rows}</table>"
            f"{''.join(self._sections)}</body></html>\n"
        )


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _section(finding: Finding) -> str:
    kind = ' class="failed"' if finding.failed else ""
    parts = [f"<h2>{html.escape(finding.title)}</h2>", f"<p{kind}>{html.escape(finding.text)}</p>"]
    if finding.picture is not None:
        parts.append(f'<img alt="{html.escape(finding.title)}" src="{_drawn(finding)}">')
    why = f"{finding.why}; {finding.seconds:.1f} s" if finding.why else f"{finding.seconds:.1f} s"
    parts.append(f'<p class="why">{html.escape(why)}</p>')
    return "".join(parts)


def _drawn(finding: Finding) -> str:
    """Returns the picture as a data address, so that the page is one file."""
    from matplotlib import pyplot

    assert finding.picture is not None
    with pyplot.rc_context({"backend": "agg"}):
        finding.picture()
        figure = pyplot.gcf()
        into = io.BytesIO()
        figure.savefig(into, format="png", dpi=110)
        pyplot.close(figure)
    return f"data:image/png;base64,{base64.b64encode(into.getvalue()).decode()}"


def _plain(value: Any) -> Any:
    """Replaces numbers that JSON lacks by None."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
