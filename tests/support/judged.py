"""Models that are judged, and logs that are described, for their figures alone."""

import pytest

from fraud_poc.model import acceptance
from fraud_poc.ops import describe


def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    "Judging draws nothing, which takes half its time: test_evaluate and test_policy draw from all kinds of results."
    for name in ("draw_evaluation", "draw_policy"):
        monkeypatch.setattr(acceptance, name, lambda *given: [])


def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    "Describing a log draws nothing, which takes most of its time: test_describe draws, and one test of test_cli."
    monkeypatch.setattr(describe, "draw_all", lambda *given: [])
