"""Models that are judged for their figures alone."""

import pytest

from fraud_poc.model import acceptance


def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    "Judging draws nothing, which takes half its time: test_evaluate and test_policy draw from all kinds of results."
    for name in ("draw_evaluation", "draw_policy"):
        monkeypatch.setattr(acceptance, name, lambda *given: [])
