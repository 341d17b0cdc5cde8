"""The claim ledger: the file of claims and its refusals, every branch of the rules, and the table that is assembled."""

import math
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebit import claims
from onebit.claims import assemble, by_count, by_ratio, by_threshold, by_value, decide, load, retake, row
from onebit.metrics.estimate import Estimate, over_seeds
from onebit.study import Run

GOOD = {"source": '"000"', "where": '"table 1"', "claim": '"It works."', "unit": '"share"', "compare": '"text"',
        "at_least": "0.8", "notebook": '"03"'}
WIDE = "not testable here (interval too wide)"
ONE_SEED = over_seeds([1.5], "one seed")


def estimate(value, low, high):
    return Estimate(value, low, high, 3, "by hand")


def written(folder, **changes):
    """A file with one claim `demo`: GOOD with some lines changed, added, or (None) left out."""
    lines = [f"{name} = {text}" for name, text in (GOOD | changes).items() if text is not None]
    path = folder / "claims.toml"
    path.write_text("\n".join(["[demo]", *lines, ""]))
    return path


# The file ------------------------------------------------------------------------------------------------------------


def test_the_ledger_names_every_source_and_every_deciding_notebook():
    ledger = load()
    assert {s for c in ledger.values() for s in c.source.split(", ")} == set(claims.SOURCES)
    assert {c.notebook for c in ledger.values() if c.notebook} == {f"{n:02d}" for n in range(1, 9)}
    assert {c.source for c in ledger.values() if c.out_of_reach} == {"001", "002", "003"}
    for claim_id, claim in ledger.items():
        assert claim.claim_id == claim_id
        assert claim_id.startswith("all-" if ", " in claim.source else f"{claim.source}-")


def test_printed_numbers_of_the_ledger_stand_in_its_words():
    """A mistyped number differs from the one in the sentence or in the place where it was found."""
    for claim in load().values():
        words = {float(x) for x in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", f"{claim.claim} {claim.where}")}
        assert claim.printed == (1.0,) or set(claim.printed) <= words, claim.claim_id  # 1.0: all of them


def test_comparisons_of_the_ledger_have_a_direction_to_test():
    for claim in load().values():
        if claim.compare in ("ratio", "difference"):
            assert claim.published != (1.0 if claim.compare == "ratio" else 0.0), claim.claim_id


@pytest.mark.parametrize(("claim_id", "notebook", "published"), [
    ("000-one-bit", "01", 1.0), ("000-compressed", "01", math.nan), ("000-fmd-gap", "02", 425.8 / 241.4),
    ("000-legibility-gap", "02", 0.8873 / 0.9222), ("all-1bit-trains", "02", math.nan),
    ("all-train-in-1bit", "07", math.nan), ("000-legibility-drop", "05", -3.49), ("003-ebb-w1a4", "07", 8.53 / 10.87),
])
def test_published_numbers_that_notebooks_rely_on(claim_id, notebook, published):
    claim = load()[claim_id]
    assert claim.notebook == notebook
    assert claim.published == pytest.approx(published, rel=1e-12, nan_ok=True)


def test_a_claim_is_read_as_it_is_written(tmp_path):
    path = written(tmp_path, published="[1.5, 3]", compare='"ratio"', at_least=None)
    assert load(path) == {"demo": claims.Claim(
        "demo", source="000", where="table 1", claim="It works.", unit="share", compare="ratio", printed=(1.5, 3.0),
        notebook="03")}
    assert load(path)["demo"].published == 0.5
    drop = load(written(tmp_path, published="[1.5, 3]", compare='"difference"', at_least=None))["demo"]
    assert (drop.published, drop.null) == (-1.5, 0)
    assert load(written(tmp_path, published="7", compare='"value"', at_least=None))["demo"].published == 7.0
    words = load(written(tmp_path, at_most="1.2"))["demo"]
    assert math.isnan(words.published) and (words.at_least, words.at_most, words.null) == (0.8, 1.2, 1)
    outside = load(written(tmp_path, notebook=None, out_of_reach='"needs a phone"'))["demo"]
    assert (outside.notebook, outside.out_of_reach) == (None, "needs a phone")


@pytest.mark.parametrize(("changes", "message"), [
    ({"sources": '"000"'}, "unknown field sources"),
    ({"where": None}, "where has to be text, got None"),
    ({"unit": '" "'}, "unit has to be text, got ' '"),
    ({"claim": "3"}, "claim has to be text, got 3"),
    ({"notebook": "3"}, "notebook has to be text, got 3"),
    ({"source": '"004"'}, "unknown source '004'; valid: 000, 001, 002, 003"),
    ({"source": '"003, 001"'}, "unknown source '003, 001'"),
    ({"source": '"001,003"'}, "unknown source '001,003'"),
    ({"notebook": '"10"'}, "unknown notebook '10'; valid: 01, 02"),
    ({"compare": '"factor"'}, "unknown comparison 'factor'; valid: value, ratio"),
    ({"notebook": None}, "either which notebook"),
    ({"out_of_reach": '"needs a phone"'}, "either which notebook"),
    ({"notebook": None, "out_of_reach": '""'}, "out_of_reach has to be text, got ''"),
    ({"published": "nan"}, "published has to be one finite number or two, got nan"),
    ({"published": '"5.54"'}, "published has to be one finite number or two, got '5.54'"),
    ({"published": "true"}, "published has to be one finite number or two, got True"),
    ({"published": "[1, 2, 3]", "compare": '"ratio"'}, "published has to be one finite number or two"),
    ({"published": "[1, 0]", "compare": '"ratio"'}, "the second published number is zero"),
    ({"published": "[1, 2]", "compare": '"value"'}, "two published numbers make a ratio"),
    ({"compare": '"ratio"', "at_least": None}, "ratio compares with a published number"),
    ({"at_least": None}, "text without a published number needs at_least, at_most or count"),
    ({"at_least": '"0.8"'}, "at_least has to be a finite number, got '0.8'"),
    ({"at_least": "inf"}, "at_least has to be a finite number, got inf"),
    ({"count": "3"}, "either bounds or a count"),
    ({"compare": '"ratio"', "published": "[1, 2]"}, "held against the published number: no bounds"),
    ({"rival": '"demo"'}, "only a value has a rival"),
    ({"at_most": "0.7"}, "at_least no more than at_most"),
    ({"null": "0.5"}, "null is 0 or 1"), ({"tolerance": "-1"}, "tolerance zero or more"),
    ({"at_least": "0"}, "the bounds of a ratio are above zero"),
    ({"at_least": "-5"}, "the bounds of a ratio are above zero"),
    ({"at_least": None, "count": "1"}, "count has to be a whole number"),
    ({"at_least": None, "count": "2.5"}, "count has to be a whole number"),
    ({"premise": "0.6"}, "a premise needs a number and"), ({"without": '"no copies"'}, "a premise needs a number and"),
    ({"compare": '"value"', "at_least": None, "published": "1", "rival": '"x"'}, "no claim with a number is its rival"),
])
def test_a_faulty_claim_is_refused_by_name_and_file(tmp_path, changes, message):
    path = written(tmp_path, **changes)
    with pytest.raises(ValueError, match=re.escape(f"claim demo in {path}: ")) as caught:
        load(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [
    ("[demo]\nsource = 1\n[demo]\nsource = 2\n", "twice"), ("[demo\n", "Expected"),
    ('title = "x"\n', "claim title in .*: a claim is a table of its own"),
])
def test_a_file_that_is_no_list_of_claims_is_refused(tmp_path, text, message):
    path = tmp_path / "claims.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


# The rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("measured", "published", "verdict"), [
    (estimate(12.0, 11.0, 13.0), 10.0, "reproduced"),  # outside the interval, exactly 20 % away
    (estimate(12.1, 11.1, 13.1), 10.0, "not reproduced"),  # 21 % away; of three runs: single ones in 10.1 .. 14.1
    (estimate(12.1, 11.0, 13.2), 10.0, WIDE),  # single ones in 9.9 .. 14.3: one more run could print 10
    (estimate(8.0, 7.9, 8.1), 10.0, "reproduced"),
    (estimate(7.9, 7.8, 8.0), 10.0, "not reproduced"),
    (estimate(14.0, 10.0, 18.0), 10.0, WIDE),  # far, but the interval reaches it
    (estimate(11.0, 6.0, 16.0), 10.0, "reproduced"),  # half as wide to either side as what is published
    (estimate(11.0, 5.9, 16.1), 10.0, WIDE),  # wider: it would hold nearly anything
    (estimate(11.0, -90.0, 112.0), 10.0, WIDE),  # near by luck
    (estimate(20.0, 15.1, 24.9), 10.0, "not reproduced"),
    (estimate(-9.0, -9.1, -8.9), -10.0, "reproduced"),
    (estimate(9.0, 8.9, 9.1), -10.0, "not reproduced"),
    (0.35, 1.0, "not reproduced"), (0.9, 1.0, "reproduced"), (4, 4, "reproduced"),  # plain numbers are exact
    (ONE_SEED, 1.5, "not testable here (one seed)"),
    (Estimate(1.5, math.nan, math.nan, 2000, ""), 1.5, "not testable here (no interval)"),
])
def test_by_value(measured, published, verdict):
    assert by_value(measured, published) == verdict


def test_a_value_is_near_what_is_published_no_more_than_half_the_way_to_its_rival():
    """5.54 against 5.89: half the way is 0.175.  The exact 5.7 is nearer to 5.54, the exact 5.72 is not."""
    assert by_value(5.7, 5.54, rival=5.89) == "reproduced" == by_value(5.73, 5.89, rival=5.54)
    assert by_value(5.72, 5.54, rival=5.89) == "not reproduced" == by_value(5.7, 5.89, rival=5.54)
    assert by_value(300.0, 241.4, rival=425.8) == "not reproduced"  # half the way is 92, a fifth of it 48


def test_an_interval_that_holds_the_rival_too_confirms_neither():
    assert by_value(estimate(5.57, 5.4, 5.74), 5.54, rival=5.89) == "reproduced"
    assert by_value(estimate(5.57, 5.2, 5.94), 5.54, rival=5.89) == WIDE
    assert by_value(estimate(5.57, 5.25, 5.89), 5.54, rival=5.89) == WIDE  # its end is the rival


@pytest.mark.parametrize(("measured", "ends"), [
    (estimate(10.0, 8.0, 12.0), (6.0, 14.0)),  # three runs: sqrt(3 + 1) = 2
    (estimate(2.0, 1.0, 4.0), (0.5, 8.0)),  # a factor of two either way: of four
    (Estimate(10.0, 9.0, 11.0, 8, ""), (7.0, 13.0)), (5, (5, 5)),  # nothing scatters where the number is exact
])
def test_one_more_run_scatters_more_than_a_mean(measured, ends):
    assert claims.of_one_run(measured) == pytest.approx(ends)


def test_the_interval_of_one_more_run_is_that_of_a_prediction():
    """t sd sqrt(1 + 1/n) of 1, 2, 4: mean 7/3, variance 7/3, t(2) = 4.302653."""
    low, high = claims.of_one_run(over_seeds([1, 2, 4], "p"))
    half = 4.302652729911275 * math.sqrt(7 / 3) * math.sqrt(1 + 1 / 3)
    assert (low, high) == (pytest.approx(7 / 3 - half), pytest.approx(7 / 3 + half))


def test_the_tolerance_of_a_value_is_relative_to_the_published_number():
    assert by_value(estimate(10.9, 10.8, 11.0), 10.0, tolerance=0.05) == "not reproduced"
    assert by_value(estimate(10.4, 10.3, 10.5), 10.0, tolerance=0.05) == "reproduced"
    assert by_value(estimate(10.4, 10.3, 10.5), 10.0, tolerance=0) == "not reproduced"


@pytest.mark.parametrize(("measured", "published", "verdict"), [
    # a published increase of 0.8: within 20 % of both 1.8 (0.36) and 0.8 (0.16)
    (estimate(1.7, 1.5, 1.9), 1.8, "reproduced"),
    (estimate(1.95, 1.2, 2.7), 1.8, "reproduced"),
    (estimate(1.6, 1.5, 1.7), 1.8, "direction only"),  # 11 % of the ratio, but a quarter of the gap
    (estimate(3.0, 2.9, 3.1), 1.8, "direction only"),
    (estimate(1.7, 0.9, 2.5), 1.8, WIDE),  # none, and as much as published: both possible
    (estimate(1.5, 1.0, 2.0), 1.8, WIDE),  # touches null
    (estimate(1.2, 0.95, 1.45), 1.8, "not reproduced"),  # perhaps none, and of single pairs none in 0.7 .. 1.7
    (estimate(1.3, 1.0, 1.7), 1.8, WIDE),  # but of these pairs one might: 0.7 .. 2.1
    (estimate(1.2, 0.96, 1.5), 1.8, WIDE),  # a factor of 1.25 either way: in logarithms, of 1.56
    (estimate(0.8, 0.6, 1.0), 1.8, "not reproduced"),
    (estimate(0.8, 0.7, 0.99), 1.8, "contradicted"),
    # a published decrease, large: 0.2 +- 0.04, the stricter of the two bounds
    (estimate(0.21, 0.1, 0.3), 0.2, "reproduced"),
    (estimate(0.3, 0.2, 0.4), 0.2, "direction only"),
    (estimate(0.5, 0.4, 1.2), 0.2, "not reproduced"),
    (estimate(1.2, 1.1, 1.3), 0.2, "contradicted"),
    # a published decrease, small: 0.96 +- 0.008
    (estimate(0.80, 0.75, 0.85), 0.96, "direction only"),
    (estimate(0.965, 0.95, 0.98), 0.96, "reproduced"),
    (1.49, 28.0, "direction only"), (28.03, 28.0, "reproduced"), (1.0, 28.0, "not reproduced"),
    (0.5, 28.0, "contradicted"),  # plain numbers are exact
    (ONE_SEED, 1.8, "not testable here (one seed)"),
])
def test_by_ratio(measured, published, verdict):
    assert by_ratio(measured, published) == verdict


@pytest.mark.parametrize(("measured", "verdict"), [
    (estimate(-3.0, -5.0, -1.0), "reproduced"), (estimate(-4.1, -5.0, -3.0), "reproduced"),
    (estimate(-1.0, -1.5, -0.5), "direction only"), (estimate(-9.0, -9.5, -8.5), "direction only"),
    (estimate(-3.5, -7.1, 0.1), WIDE), (estimate(2.0, 1.0, 3.0), "contradicted"),
    (estimate(-1.0, -2.1, 0.1), "not reproduced"),
])
def test_by_ratio_of_a_difference(measured, verdict):
    """The published drop of 3.49 points, against zero."""
    assert by_ratio(measured, -3.49, null=0.0) == verdict


@given(st.floats(-9, 9), st.floats(0, 5), st.floats(0.1, 9), st.sampled_from([-1, 1]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_by_ratio_does_not_mind_which_arm_is_subtracted(value, half, published, sign):
    straight = by_ratio(estimate(value, value - half, value + half), sign * published, null=0.0)
    mirrored = by_ratio(estimate(-value, -value - half, -value + half), -sign * published, null=0.0)
    assert straight == mirrored


@pytest.mark.parametrize(("measured", "bounds", "verdict"), [
    (estimate(0.95, 0.9, 1.0), {"at_least": 0.9}, "reproduced"),
    (estimate(0.95, 0.89, 1.0), {"at_least": 0.9}, WIDE),
    (estimate(0.85, 0.8, 0.9), {"at_least": 0.9}, WIDE),
    (estimate(0.8, 0.7, 0.89), {"at_least": 0.9}, "contradicted"),
    (estimate(0.4, 0.3, 0.5), {"at_most": 0.5}, "reproduced"),
    (estimate(0.4, 0.3, 0.6), {"at_most": 0.5}, WIDE),
    (estimate(0.9, 0.8, 1.0), {"at_most": 0.5}, "contradicted"),
    (estimate(1.0, 0.96, 1.04), {"at_least": 0.95, "at_most": 1.05}, "reproduced"),
    (estimate(1.0, 0.90, 1.10), {"at_least": 0.95, "at_most": 1.05}, WIDE),
    (estimate(1.2, 1.10, 1.30), {"at_least": 0.95, "at_most": 1.05}, "contradicted"),
    (0.35, {"at_least": 0.9}, "contradicted"), (0.9, {"at_least": 0.9}, "reproduced"),  # plain numbers are exact
    (0, {"at_most": 0}, "reproduced"),
    (ONE_SEED, {"at_least": 1.0}, "not testable here (one seed)"),
])
def test_by_threshold(measured, bounds, verdict):
    assert by_threshold(measured, **bounds) == verdict


@pytest.mark.parametrize(("measured", "verdict"), [
    (estimate(2, 2, 2), "reproduced"), (estimate(1, 1, 1), "direction only"), (estimate(0, 0, 0), "contradicted"),
    (estimate(1, 0, 2), WIDE), (estimate(2, 1, 2), WIDE), (estimate(1, 0, 1), WIDE), (2, "reproduced"),
    (ONE_SEED, "not testable here (one seed)"),
])
def test_by_count_of_two_signs(measured, verdict):
    assert by_count(measured, 2) == verdict


@pytest.mark.parametrize(("judge", "message"), [
    (lambda: by_count(1, 1), "claimed has to be two or more, got 1"),
    (lambda: by_value(math.nan, 1.0), "measured is nan"),
    (lambda: by_ratio(math.inf, 2.0), "measured is inf"),
    (lambda: by_threshold(estimate(math.nan, 0, 1), at_least=0), "measured is nan"),
    (lambda: by_value(estimate(1.0, 2.0, 0.0), 1.0), "no proper interval"),
    (lambda: by_value(estimate(1.0, math.nan, 2.0), 1.0), "no proper interval"),
    (lambda: by_value(1.0, math.nan), "use by_threshold where the source prints no number"),
    (lambda: by_ratio(1.0, math.nan), "use by_threshold where the source prints no number"),
    (lambda: by_ratio(1.5, 1.0), "there is no direction to test"),
    (lambda: by_ratio(1.5, 2.0, null=math.nan), "there is no direction to test"),
    (lambda: by_value(1.0, 1.0, tolerance=-0.1), "tolerance has to be zero or more"),
    (lambda: by_ratio(1.0, 2.0, tolerance=math.nan), "tolerance has to be zero or more"),
    (lambda: by_threshold(1.0), "at_least, at_most or both"),
    (lambda: by_threshold(1.0, at_least=2.0, at_most=1.0), "at_least, at_most or both"),
    (lambda: by_threshold(1.0, at_least=math.nan), "at_least, at_most or both"),
])
def test_rules_refuse_what_cannot_be_compared(judge, message):
    with pytest.raises(ValueError, match=message):
        judge()


# The ledger ----------------------------------------------------------------------------------------------------------

RUNS = [Run(seed=1), Run(seed=0), Run(seed=1, recipe="ptq-1bit")]  # the last is trained as the first is


def demo_row(claim_id="000-fmd-gap", measured=None, runs=RUNS, notebook="02"):
    return row(claim_id, measured or estimate(1.5, 1.4, 1.6), runs, notebook)


def test_a_row_holds_the_claim_the_measurement_and_the_sorted_runs():
    entry = demo_row()
    assert list(entry) == list(claims.COLUMNS)
    runs = entry.pop("runs").split(" ")
    assert [re.sub("-[0-9a-f]{12}$", "", name) for name in runs] == [
        "train-mnist-resunet64-fp16-s0", "train-mnist-resunet64-fp16-s1"]
    assert entry == {
        "claim_id": "000-fmd-gap", "source": "000", "claim": "Fréchet distance, 1-bit over control",
        "published": 425.8 / 241.4, "measured": 1.5, "ci_low": 1.4, "ci_high": 1.6, "n_seeds": 2,
        "verdict": "direction only", "notebook": "02"}


def test_a_row_of_an_exact_number_has_no_interval_and_needs_no_runs():
    entry = row("000-one-bit", 0.35, notebook="01")
    assert (entry["measured"], entry["verdict"], entry["n_seeds"], entry["runs"]) == (0.35, "contradicted", 0, "")
    assert math.isnan(entry["ci_low"]) and math.isnan(entry["ci_high"])


def test_a_claim_that_rests_on_one_seed_does_not_count_those_of_the_notebook():
    runs = [Run(seed=seed) for seed in (0, 1)]
    notebook = load()["000-fmd-gap"].notebook
    assert row("000-fmd-gap", ONE_SEED, runs, notebook)["n_seeds"] == 1
    assert row("000-fmd-gap", estimate(1.5, 1.4, 1.6), runs, notebook)["n_seeds"] == 2


@pytest.mark.parametrize(("change", "message"), [
    ({"claim_id": "000-fmd"}, "unknown claim '000-fmd'"),
    ({"measured": math.nan}, "measured is nan"),
    ({"notebook": "04"}, "claim 000-fmd-gap belongs to notebook 02, got '04'"),
    ({"claim_id": "003-phone"}, r"claim 003-phone belongs to no notebook \(needs the phone\), got '02'"),
])
def test_a_row_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        demo_row(**change)


@pytest.mark.parametrize("verdict", [*claims.VERDICTS, "not testable here (one seed)", "reproduced (two seeds)"])
def test_a_verdict_may_give_its_reason(verdict):
    ledger = assemble([pd.DataFrame([demo_row() | {"verdict": verdict}])]).set_index("claim_id")
    assert ledger.verdict["000-fmd-gap"] == verdict


def test_the_assembled_ledger_has_every_claim_once_and_says_why_a_row_is_empty():
    first = pd.DataFrame([row("000-one-bit", 0.35, [], "01")])
    second = pd.DataFrame([demo_row(), demo_row("000-legibility-gap", ONE_SEED)])
    ledger = assemble([first, second])
    assert list(ledger.columns) == list(claims.COLUMNS)
    assert list(ledger.claim_id) == list(load())
    byid = ledger.set_index("claim_id")
    assert byid.verdict["000-one-bit"] == "contradicted" and byid.measured["000-one-bit"] == 0.35
    assert byid.loc["000-fmd-gap", ["measured", "ci_low", "ci_high", "n_seeds"]].tolist() == [1.5, 1.4, 1.6, 2]
    assert byid.runs["000-fmd-gap"] == demo_row()["runs"]
    assert byid.verdict["003-phone"] == "not testable here (needs the phone)" and byid.notebook["003-phone"] == ""
    assert byid.verdict["000-curling"] == "not testable here (notebook 06 has not measured it)"
    assert byid.published["000-fmd-16bit"] == 241.4 and math.isnan(byid.measured["000-fmd-16bit"])
    assert byid.n_seeds["000-curling"] == 0 and byid.runs["000-curling"] == ""
    decided = {"000-one-bit", "000-fmd-gap", "000-legibility-gap"}
    assert (byid.measured.notna() == byid.index.isin(decided)).all()
    assert all(v.startswith(claims.VERDICTS) for v in ledger.verdict)


def test_frames_read_back_from_csv_assemble_to_the_same_ledger(tmp_path):
    """As pandas reads them: source 000 as 0, notebook 01 as 1, no runs as NaN."""
    frames = [pd.DataFrame([row("000-one-bit", 0.35, [], "01")]), pd.DataFrame([demo_row()])]
    again = []
    for frame in frames:
        frame.to_csv(tmp_path / "claims.csv", index=False)
        again.append(pd.read_csv(tmp_path / "claims.csv"))
    assert again[0].source[0] == 0 and again[0].runs.isna().all()
    pd.testing.assert_frame_equal(assemble(again), assemble(frames))


def test_assembling_refuses_duplicates_unknown_claims_and_frames_of_another_kind():
    frame = pd.DataFrame([demo_row()])
    with pytest.raises(ValueError, match="claim 000-fmd-gap is decided twice"):
        assemble([frame, frame])
    with pytest.raises(ValueError, match="claim 000-fmd-gap is decided twice"):
        assemble([pd.concat([frame, frame])])
    with pytest.raises(ValueError, match="unknown claim 'x'"):
        assemble([frame.assign(claim_id="x")])
    with pytest.raises(ValueError, match="claim 003-phone is out of reach"):
        assemble([frame.assign(claim_id="003-phone")])
    with pytest.raises(ValueError, match="claim 000-fmd-gap: 'yes' is no verdict"):
        assemble([frame.assign(verdict="yes")])
    with pytest.raises(ValueError, match="lacks the columns ci_low, runs"):
        assemble([frame.drop(columns=["ci_low", "runs"])])


def test_a_summary_is_one_row_per_arm_and_claim():
    measured = Estimate(1.8, 1.7, 1.9, 2, "p")
    frame = claims.summary({"unet": [("000-fmd-gap", measured)], "other": [("000-one-bit", 0.5)]})
    assert frame.verdict.tolist() == ["reproduced", "contradicted"]
    assert frame.arm.tolist() == ["unet", "other"] and frame.measured.tolist() == [1.8, 0.5]
    assert frame.loc[0, ["low", "high"]].tolist() == [1.7, 1.9] and frame.loc[1, ["low", "high"]].tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="unknown claim"):
        claims.summary({"unet": [("no-such-claim", measured)]})


def test_a_claim_that_something_falls_needs_something_to_fall():
    why, told = "the control does not copy", "not testable here (the control does not copy)"
    assert claims.given(estimate(0.02, 0.011, 0.03), 0.01, "contradicted", why) == "contradicted"
    assert claims.given(estimate(0.0, -0.01, 0.01), 0.01, "contradicted", why) == told
    assert claims.given(0.0, 0.01, "contradicted", why) == told


def test_a_premise_that_is_not_decided_is_no_reason():
    why = "the control does not copy"  # nobody knows whether it does
    assert claims.given(estimate(0.02, 0.01, 0.03), 0.01, "contradicted", why) == claims.TOO_WIDE
    assert claims.given(ONE_SEED, 0.01, "contradicted", why) == "not testable here (one seed)"


# Decided -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("claim_id", "measured", "verdict"), [
    ("000-fmd-gap", estimate(1.7, 1.5, 1.9), "reproduced"),  # 425.8 over 241.4, a ratio
    ("000-legibility-drop", estimate(-1.0, -1.5, -0.5), "direction only"),  # a difference of -3.49, against zero
    ("000-memorization-16bit", 5.72, "not reproduced"),  # nearer to 5.89, which the other arm has
    ("002-bits-binary", 1.127, "not reproduced"), ("002-bits-binary", 1.126, "reproduced"),  # within 0.1 %
    ("001-same-cost", 1.1, "reproduced"),  # a share without bounds: the printed one
    ("000-diversity-comparable", estimate(1.0, 0.92, 1.08), "reproduced"),
    ("000-diversity-comparable", estimate(1.0, 0.88, 1.08), WIDE),
    ("000-explosion", estimate(1, 1, 1), "direction only"),  # one of three signs
])
def test_a_claim_is_decided_by_the_rule_written_beside_it(claim_id, measured, verdict):
    assert decide(claim_id, measured) == verdict == row(claim_id, measured, (), load()[claim_id].notebook)["verdict"]


def test_a_claim_that_something_falls_is_decided_with_its_premise():
    fall = estimate(-0.2, -0.3, -0.1)
    assert decide("000-copies-less", fall, premise=estimate(0.9, 0.8, 1.0)) == "reproduced"
    assert decide("000-copies-less", fall, premise=0.5) == "not testable here (the control does not copy)"
    with pytest.raises(ValueError, match="claim 000-copies-less has a premise"):
        decide("000-copies-less", fall)
    with pytest.raises(ValueError, match="claim 000-stencil has no premise"):
        decide("000-stencil", 0.5, premise=0.9)


def test_a_claim_out_of_reach_is_not_decided():
    with pytest.raises(ValueError, match="claim 003-phone is out of reach: needs the phone"):
        decide("003-phone", 4.62)


@pytest.mark.parametrize(("rule", "strict", "lenient"), [
    ({"at_most": 1.25}, {"at_most": 1.25**0.5}, {"at_most": 1.25**2}),
    ({"at_least": 0.8}, {"at_least": 0.8**0.5}, {"at_least": 0.64}),
    ({"at_least": 4}, {"at_least": 16}, {"at_least": 2}),  # asks for an effect: more of it is stricter
    ({"at_most": 0.5}, {"at_most": 0.25}, {"at_most": 0.5**0.5}),
    ({"at_least": 1}, {"at_least": 1}, {"at_least": 1}),  # a direction
    ({"at_least": -5, "at_most": 5, "null": 0}, {"at_least": -2.5, "at_most": 2.5}, {"at_least": -10, "at_most": 10}),
    ({"at_most": -0.01, "null": 0}, {"at_most": -0.02}, {"at_most": -0.005}),
    ({"at_most": 0, "null": 0}, {"at_most": 0}, {"at_most": 0}),
])
def test_bounds_move_away_from_no_effect_or_towards_it(rule, strict, lenient):
    claim = claims.Claim("x", "000", "", "", "", "text", notebook="03", **rule)
    assert claims.bounds(claim) == {name: bound for name, bound in rule.items() if name != "null"}
    assert claims.bounds(claim, claims.LENIENCE["strict"]) == pytest.approx(strict)
    assert claims.bounds(claim, claims.LENIENCE["lenient"]) == pytest.approx(lenient)


def test_a_ledger_is_decided_again_with_other_bounds():
    measured = {"000-no-mode-collapse": estimate(0.78, 0.70, 0.85), "000-copies-less": estimate(-0.2, -0.3, -0.1),
                "000-fmd-gap": estimate(1.7, 1.5, 1.9), "000-stencil": ONE_SEED, "000-one-bit": 0.92}
    control = {"000-copies-less": 0.5}
    rows = [row(name, one, RUNS, load()[name].notebook, control.get(name)) for name, one in measured.items()]
    found = claims.sensitivity(assemble([pd.DataFrame(rows)])).set_index("claim_id")
    assert list(found.columns) == ["source", "rule", "strict", "stated", "lenient"] and len(found) == 5
    verdicts = found[list(claims.LENIENCE)].T.to_dict("list")
    assert verdicts["000-no-mode-collapse"] == ["contradicted", WIDE, "reproduced"]  # 0.894, 0.8, 0.64
    assert verdicts["000-fmd-gap"] == ["reproduced"] * 3  # 0.064 from 1.764: within a tenth of the gap, 0.076
    assert verdicts["000-one-bit"] == ["contradicted", "reproduced", "reproduced"]  # an exact number: 0.949, 0.9
    assert verdicts["000-copies-less"] == ["not testable here (the control does not copy)"] * 3
    assert verdicts["000-stencil"] == ["not testable here (one seed)"] * 3
    assert found.rule.to_dict() == {
        "000-no-mode-collapse": "at least 0.8", "000-copies-less": "at most -0.01", "000-stencil": "at most 0.9",
        "000-fmd-gap": "1.764 within 20 %", "000-one-bit": "at least 0.9"}


@pytest.mark.parametrize("control", [estimate(0.7, 0.5, 0.9), ONE_SEED])
def test_a_verdict_for_want_of_a_decided_premise_stays_at_every_bound(control):
    """The fall itself is decided, and the ledger has but its interval."""
    found = row("000-copies-less", estimate(-0.2, -0.3, -0.1), RUNS, "03", control)
    assert claims.state(found["verdict"]) == "undecided"
    verdicts = claims.sensitivity(assemble([pd.DataFrame([found])]))[list(claims.LENIENCE)]
    assert (verdicts == found["verdict"]).all(axis=None)


def test_a_ledger_of_other_rules_is_told():
    ledger = assemble([pd.DataFrame([demo_row() | {"verdict": "contradicted"}])])
    with pytest.raises(ValueError, match=r"claim 000-fmd-gap is 'contradicted' in this ledger, .*'direction only'"):
        claims.sensitivity(ledger)


@pytest.mark.parametrize("path", ["claims.csv", "digits/claims.csv"])
def test_the_committed_ledgers_are_those_of_the_committed_rules(path):
    ledger = pd.read_csv(Path(__file__).parents[1] / "figures" / path)
    found = claims.sensitivity(ledger).set_index("claim_id")
    assert found.stated.to_dict() == ledger[ledger.measured.notna()].set_index("claim_id").verdict.to_dict()


# Decided again -------------------------------------------------------------------------------------------------------


def test_a_claim_retaken_has_the_new_measurement_and_no_other_claim_changes():
    first = assemble([pd.DataFrame([row("000-fmd-gap", estimate(2.3, 1.6, 3.3), notebook="02"),
                                    row("000-legibility-gap", estimate(0.98, 0.95, 1.01), notebook="02")])])
    anew = row("000-fmd-gap", estimate(1.1, 0.3, 4.1), notebook="02")
    second = retake(first, [anew], "09").set_index("claim_id")
    assert second.loc["000-fmd-gap", ["measured", "ci_low", "ci_high", "verdict", "notebook"]].tolist() == [
        1.1, 0.3, 4.1, WIDE, "09"]
    pd.testing.assert_frame_equal(second.drop("000-fmd-gap"), first.set_index("claim_id").drop("000-fmd-gap"))
    assert list(retake(first, [], "09").columns) == list(first.columns)


@pytest.mark.parametrize("claim_id", ["000-memorization-gap", "no-such-claim"])
def test_a_claim_that_nobody_measured_cannot_be_retaken(claim_id):
    first = assemble([pd.DataFrame([row("000-fmd-gap", estimate(2.3, 1.6, 3.3), notebook="02")])])
    with pytest.raises(ValueError, match=f"claim {claim_id} has not been measured"):
        retake(first, [{"claim_id": claim_id}], "09")


@pytest.mark.parametrize(("verdict", "counted"), [
    ("reproduced", "reproduced"), ("direction only", "direction only"), (WIDE, "undecided"),
    ("not testable here (one seed)", "undecided"), ("not testable here (no interval)", "undecided"),
    ("not testable here (the control does not copy)", "not testable here"),
    ("not testable here (smoke has not measured it)", "not measured yet"),
])
def test_figures_and_pages_count_verdicts_alike(verdict, counted):
    assert claims.state(verdict) == counted


def test_what_is_no_verdict_is_not_counted():
    with pytest.raises(ValueError, match="'probably' is no verdict"):
        claims.state("probably")


def test_a_rule_is_explained_as_its_docstring_says_it():
    assert claims.explained(claims.by_count).splitlines()[2:8] == [
        "| verdict | when |", "| --- | --- |",
        "| *reproduced* | all of them, for sure: the interval begins at `claimed` |",
        "| *direction only* | some of them for sure, and not all: it begins at 1 or more, and ends below `claimed` |",
        "| *contradicted* | none: it ends below 1 |",
        "| *not testable here* | without an interval (one seed), or otherwise |"]
    text = claims.explained(claims.by_value)
    assert r"\|measured - published\| <= tolerance * \|published\|, and no more than half the way from there to" in text
    assert "Raises" not in text and text.count("\n| *") == 3 and text.endswith("both intervals are the number itself.")
