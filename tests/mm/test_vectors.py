"""Every recorded call of the shared vectors: nothing unexplained, and the exemptions counted."""

from collections import Counter

import pytest

from cvars.formats.vectors import read_scenarios
from cvars.lab.comparing import Verdict, judge_scenario
from cvars.lab.replaying import play_scenario
from cvars.variables import SPEC


@pytest.fixture(scope="module")
def judgements(vectors):
    out = []
    for file in sorted((vectors / "mm").glob("*.jsonl")):
        with file.open() as lines:
            for scenario in read_scenarios(lines, where=file.name):
                out += judge_scenario(play_scenario(scenario, SPEC, {}))
    return out


def test_every_recorded_call_is_explained(judgements):
    assert len(judgements) == 1515
    bad = [(j.exchange.scenario, j.exchange.step, j.verdict.value) for j in judgements if not j.verdict.explained]
    assert bad == []


def test_unlabelled_calls_agree_but_for_the_readme_s_exemptions(judgements):
    unlabelled = [j for j in judgements if j.exchange.label is None and not j.exchange.after_divergence]
    found = Counter(j.verdict for j in unlabelled)
    assert found == {
        Verdict.EQUAL: 902,
        Verdict.ORDER: 34,
        Verdict.FIGURES: 29,
        Verdict.CAPACITY: 9,
        Verdict.CORRECTION: 6,
        Verdict.INTERNAL: 5,
    }
    assert sum(found.values()) == 985


def test_labelled_calls_take_the_side_that_the_table_says(judgements):
    recorded = Counter(j.exchange.label.id for j in judgements if j.verdict is Verdict.AS_RECORDED)
    assert recorded == {"D04": 1, "D12": 1, "D20": 2, "D23": 43, "D39": 1, "D57": 11, "D59": 3}
    ruled = Counter(j.exchange.label.id for j in judgements if j.verdict is Verdict.BY_RULE)
    assert ruled == {"D23": 1, "D28": 1, "D52": 1}
