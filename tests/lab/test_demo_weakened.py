"""A demo with one check taken out says so: its verdicts rest on the checks."""

import pytest


@pytest.mark.parametrize(
    ("check", "step"),
    [("record-authentication", 6), ("anchor-comparison", 7), ("vm-binding", 8), ("lease", 9)],
)
def test_with_one_check_taken_out_its_step_fails_and_the_demo_ends_1(run_demo, tmp_path, check, step):
    ran = run_demo(tmp_path / "lab", "tdx", "--test-without", check)
    assert ran.code == 1
    assert ran.step(step)["ok"] is False
    assert ran.step(step)["observed"] != ran.step(step)["expected"]
    assert [s["ok"] for s in ran.report["steps"][: step - 1]] == [True] * (step - 1)
