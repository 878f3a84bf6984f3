"""``tokenworks perf``: predict, sweep, validate and calibrate."""

from __future__ import annotations

import gzip
import pathlib
import re

import pytest

from tests.cli.command_line import data, done, invoke
from tokenworks.cli import perf
from tokenworks.core.errors import ConfigInvalid, InvalidRequest
from tokenworks.live.calibration_file import read_calibration
from tokenworks.live.home import Home
from tokenworks.perf import fit, validate

APART = ("--mode", "disagg")
ROWS = pathlib.Path(__file__).parents[2] / "bench" / "data" / "silicon_rows.csv"


@pytest.fixture
def few_rows(tmp_path: pathlib.Path) -> pathlib.Path:
    """Every thirtieth row, and one that nobody can read."""
    head, *lines = ROWS.read_text().splitlines()
    odd = lines[0].replace(",1024,1024,", ",,1024,")
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([head, *lines[::30], odd]) + "\n")
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "STEPS_MAX", 20)
    monkeypatch.setattr(validate, "FOLDS", 2)
    monkeypatch.setattr(validate, "GROUP_FOLDS", 2)


def test_an_answer_has_an_interval_and_names_what_it_assumes(home: Home) -> None:
    found = data(home, "perf", "predict", "deepseek-r1", "hgx-b200", "--concurrency", "16")
    assert found["tpot_low_ms"] < found["tpot_ms"] < found["tpot_high_ms"]
    text = done(
        home, "perf", "predict", "gpt-moe-2t", "vr-nvl72", "--dtype", "fp4", "--gpus", "16",
        "--ep", "16", "--dp", "16", "--isl", "32000",
    )  # fmt: skip
    assert "tpot ms" in text
    assert "Assumed: rubin was never measured: factors of gb300." in text


def test_an_engine_is_found_however_it_is_written(home: Home) -> None:
    asked = ("perf", "predict", "deepseek-r1", "hgx-b200")
    plain = data(home, *asked, "--engine", "trtllm")
    for name in ("TRTLLM", "TensorRT-LLM"):
        assert data(home, *asked, "--engine", name) == plain
    assert data(home, *asked, "--engine", "vllm") != plain
    result = invoke(home, "perf", "sweep", "deepseek-r1", "hgx-b200", "--engine", "vlm")
    assert "vllm" in getattr(result.exception, "hint", "")


def test_the_load_that_just_fits_is_answered(home: Home) -> None:
    asked = ("perf", "predict", "deepseek-r1", "b200", "--mode", "disagg", "--decode-workers", "2")
    result = invoke(home, *asked, "--concurrency", "1e6")
    assert isinstance(result.exception, ConfigInvalid)
    most = re.search(r"Ask for ([\d,]+) or fewer", result.exception.hint or "")
    assert most is not None
    fits = int(most[1].replace(",", ""))
    found = data(home, *asked, "--concurrency", str(fits))
    assert 0 <= found["batch_max"] - fits / 2 < 1
    assert invoke(home, *asked, "--concurrency", str(fits + 2)).exit_code


def test_a_sweep_leaves_out_loads_that_have_to_wait(home: Home) -> None:
    asked = ("perf", "sweep", "deepseek-r1", "b200", "--gpus", "8")
    loads = ("--concurrency", "16", "--concurrency", "1e6")
    found = data(home, *asked, *loads)
    assert {each["concurrency"] for each in found} == {16}
    result = invoke(home, *asked, "--osl", "1e6")
    assert "tokens of context" in str(result.exception)


def test_prefill_and_decode_may_be_apart(home: Home) -> None:
    asked = ("perf", "predict", "deepseek-r1", "gb200", "--mode", "disagg", "--dtype", "fp4")
    one = data(home, *asked, "--decode-workers", "2", "--prefill-gpus", "4")
    assert one["gpus"] == 2 * 8 + 4
    assert data(home, *asked)["gpus"] == 16


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("llama-3.1-70b", "abacus"), "no accelerator 'abacus'"),
        (("llama-3.1-70b", "lpx"), "has no GPUs to decode on"),
        (("nothing", "b200"), "no model 'nothing'"),
        (("deepseek-r1", "h100", "--gpus", "4"), "do not fit into 80 GB"),
        (("deepseek-r1", "b200", "--ep", "3"), "--ep 3 does not divide 8"),
        (("deepseek-r1", "b200", "--ep", "0"), "--ep 0 does not divide 8"),
        (("deepseek-r1", "b200", "--gpus", "0"), "--gpus 0 is out of range"),
        (("deepseek-r1", "b200", "--gpus", "5000"), "--gpus 5000 is out of range"),
        (("deepseek-r1", "b200", *APART, "--prefill-gpus", "-4"), "--prefill-gpus -4 is out of"),
        (("deepseek-r1", "b200", *APART, "--prefill-gpus", "0"), "--prefill-gpus 0 is out of"),
        (("deepseek-r1", "b200", "--prefill-gpus", "4"), "--prefill-gpus has no meaning"),
        (("deepseek-r1", "b200", "--prefill-workers", "2"), "--prefill-workers has no meaning"),
        (("deepseek-r1", "b200", "--decode-workers", "1"), "--decode-workers has no meaning"),
        (("deepseek-r1", "b200", "--acceptance", "0.5"), "--acceptance has no meaning"),
        (("deepseek-r1", "b200", "--draft-share", "0.5"), "--draft-share has no meaning"),
        (("deepseek-r1", "b200", "--isl", "0"), "--isl 0.0 is out of range"),
        (("deepseek-r1", "b200", "--hit-share", "2"), "--hit-share 2.0 is out of range"),
        (("deepseek-r1", "b200", "--concurrency", "0"), "is no load"),
        (("deepseek-r1", "b200", "--engine", "trtlm"), "no engine 'trtlm'"),
        (("deepseek-r1", "b200", "--concurrency", "1e6"), "(batch_max)"),
        (("deepseek-r1", "b200", "--isl", "1e7"), "is asked for 10,001,024 tokens of context"),
    ],
)
def test_what_cannot_be_is_refused_with_what_could(
    home: Home, options: tuple[str, ...], said: str
) -> None:
    result = invoke(home, "perf", "predict", *options)
    assert isinstance(result.exception, ConfigInvalid | InvalidRequest)
    assert said in str(result.exception)
    assert result.exception.hint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--kept-rows", "3"), "--kept-rows has no meaning"),
        (
            ("--cross-validate", "group", "--calibration", str(ROWS)),
            "--calibration has no meaning",
        ),
    ],
)
def test_comparing_refuses_what_it_would_not_heed(
    home: Home, options: tuple[str, ...], said: str
) -> None:
    result = invoke(home, "perf", "validate", str(ROWS), *options)
    assert isinstance(result.exception, InvalidRequest)
    assert said in str(result.exception)


def test_a_sweep_shows_what_none_beats(home: Home) -> None:
    rows = data(home, "perf", "sweep", "gpt-oss-120b", "h200", "--dtype", "fp4")
    speeds = [row["tokens_per_s_per_user"] for row in rows]
    assert speeds == sorted(speeds, reverse=True)
    text = done(
        home, "perf", "sweep", "deepseek-r1", "b200", "--gpus", "1", "--gpus", "8",
        "--concurrency", "4", "--concurrency", "64",
    )  # fmt: skip
    assert "of 6 that fit; 1 layouts do not fit." in text


def test_measured_rows_are_compared(home: Home, few_rows: pathlib.Path) -> None:
    found = data(home, "perf", "validate", str(few_rows))
    assert found["how"] == "as fitted"
    assert found["rows"] == len(few_rows.read_text().splitlines()) - 1
    assert found["tpot"]["median_ape"] < 0.05
    assert set(found["tpot"]) == {
        "rows", "median_ape", "mape", "p90_ape", "bias", "coverage80",
    }  # fmt: skip
    assert {group["by"] for group in found["groups"]} == {
        "mode", "system", "engine", "model", "group",
    }  # fmt: skip
    (odd,) = found["unpredicted"]
    assert "isl and osl" in odd["why"]
    text = done(home, "perf", "validate", str(few_rows))
    assert "as fitted" in text
    assert "Not predicted" in text


@pytest.mark.heavy
def test_rows_show_hidden_speculation(home: Home) -> None:
    text = done(home, "perf", "validate", str(ROWS))
    assert "Hidden speculative decoding: deepseek-ai/DeepSeek" in text
    assert "beat the roofline" in text
    assert "1.5 times apart" in text


def test_many_rows_that_cannot_be_read_are_counted(home: Home, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text("model_path,system,backend,mode,isl,osl\n" + "a,b,c,agg,,\n" * 201)
    text = done(home, "perf", "validate", str(path))
    assert "No row was predicted." in text
    assert "and 1 more" in text
    one = tmp_path / "one.csv"
    one.write_text("model_path,system,backend,mode,isl,osl\ndeepseek-r1,b200,x,agg,9,9\n")
    assert "deepseek-r1" in done(home, "perf", "validate", str(one))


def test_rows_that_stand_in_or_measure_nothing_are_listed(
    home: Home, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "odd.csv"
    head = "id,model_path,system,backend,mode,isl,osl,silicon_tpot_ms\n"
    lines = ["a,deepseek-r1,b200,trtllm,agg,9,9,5", "b,deepseek-r1,l40s,x,agg,9,9,nan"]
    path.write_text(head + "\n".join(lines) + "\nc,deepseek-r1,b200,trtllm,,9,9,5\nd\n")
    found = data(home, "perf", "validate", str(path))
    assert (found["rows"], found["tpot"]["rows"]) == (4, 3)
    assert [each["id"] for each in found["unpredicted"]] == ["c", "d"]
    assert [each["id"] for each in found["substituted"]] == ["b"]
    assert found["unmeasured"] == [{"id": "b", "why": "silicon_tpot_ms is 'nan'"}]
    assert (found["substituted_left_off"], found["unmeasured_left_off"]) == (0, 0)
    text = done(home, "perf", "validate", str(path))
    assert "Not measured: b: silicon_tpot_ms is 'nan'" in text
    assert "1 rows are predicted as if of another model, system or engine" in text
    path.write_text(head + (lines[1] + "\n") * 201)
    text = done(home, "perf", "validate", str(path))
    assert "and 1 more" in text
    assert "201 rows are predicted as if" in text


@pytest.mark.heavy
@pytest.mark.usefixtures("quick")
def test_cross_validation_and_calibration_on_own_rows(
    home: Home, few_rows: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    found = data(home, "perf", "validate", str(few_rows), "--cross-validate", "configuration")
    assert found["how"] == "cross-validated, configuration left out, 2 folds"
    text = done(
        home, "perf", "validate", str(few_rows), "--cross-validate", "architecture",
        "--kept-rows", "3",
    )  # fmt: skip
    assert "architecture left out, 2 folds, 3 rows of each kept" in text
    out = tmp_path / "own" / "calibration.json.gz"
    said = done(home, "perf", "calibrate", str(few_rows), "--out", str(out))
    assert "1 could not be read" in said
    first = out.read_bytes()
    done(home, "perf", "calibrate", str(few_rows), "--out", str(out))
    assert out.read_bytes() == first
    own = done(home, "perf", "validate", str(few_rows), "--calibration", str(out))
    assert f"calibration of {read_calibration(out).rows} rows" in own


def test_files_that_are_none_are_refused(
    home: Home, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xff\xfe\x00")
    result = invoke(home, "perf", "validate", str(path))
    assert "is not text" in str(result.exception)
    monkeypatch.setattr("tokenworks.cli.perf.ROWS_BYTES_MAX", 1)
    result = invoke(home, "perf", "validate", str(path))
    assert "is too large" in str(result.exception)
    for content in (b"nothing", gzip.compress(b"{}")):
        path.write_bytes(content)
        with pytest.raises(ConfigInvalid, match="No calibration can be read"):
            read_calibration(path)


@pytest.mark.parametrize("form", ["svg", "png"])
def test_errors_are_drawn_with_what_is_drawn_behind_them(
    home: Home, few_rows: pathlib.Path, tmp_path: pathlib.Path, form: str
) -> None:
    path = tmp_path / f"errors.{form}"
    found = data(home, "perf", "validate", str(few_rows), "--picture", str(path))
    assert path.stat().st_size > 10_000
    drawn = found["picture"]
    read = found["rows"] - len(found["unpredicted"])
    assert len([p for p in drawn["points"] if p["target"] == "tpot"]) == read
    for kind in drawn["spreads"]:
        assert kind["stated_low"] <= 1 <= kind["stated_high"]
        assert kind["low"] <= kind["median"] <= kind["high"]
    # The picture and the report say the same of each kind.
    told = {(g["by"], g["name"]): g["tpot"]["coverage80"] for g in found["groups"]}
    for kind in drawn["spreads"]:
        if kind["target"] == "tpot":
            assert kind["coverage80"] == pytest.approx(told[kind["by"], kind["name"]])
    assert "picture" not in data(home, "perf", "validate", str(few_rows))


def test_rows_of_which_none_can_be_read_make_an_empty_picture(
    home: Home, few_rows: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    lines = few_rows.read_text().splitlines()
    few_rows.write_text("\n".join([lines[0], lines[-1]]) + "\n")
    path = tmp_path / "errors.svg"
    found = data(home, "perf", "validate", str(few_rows), "--picture", str(path))
    assert found["picture"] == {"points": [], "spreads": []}
    assert path.exists()


def test_who_looks_sees_how_far_it_is(
    few_rows: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    rows = list(range(300))
    assert list(perf._counted(rows)) == rows  # type: ignore[arg-type]
    assert "row 250 of 300" in capsys.readouterr().err
