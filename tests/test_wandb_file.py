"""The offline file we write, against the one W&B writes, and as W&B's own uploader reads it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from wandb.proto.wandb_internal_pb2 import HistoryStep, MetricRecord

import src.tracking
from src.tracking import Wandb
from src.tracking.wire import FILE_HEADER, framed, message, varint
from tests.wandb_files import contents, kinds, records, values
from tests.wandb_server import Uploaded, serving

CONFIG = {
    "id": "8c1f0a77d2", "label": "dpo β=0.1", "sweep": "a sweep", "lr": 1e-7, "steps": 7, "max_grad_norm": None,
    "limit": float("inf"), "loss": {"name": "dpo", "beta": 0.1, "long": 10**20, "on": True, "list": [1, 2.5, "a"]},
}  # fmt: skip

# Not only smooth curves: what is not a number comes late, early and in a summarised column, and floats of every size.
COLUMNS = {
    "step": np.arange(7),
    "log_pi/rejected": np.array([-1.0, -2.0, -3.0, np.nan, -5.0, -np.inf, -4.0]),
    "log_pi/chosen": np.array([-4.0, -1.0, -9.0, -3.0, -2.0, -7.0, -6.5]),
    "margin": np.array([np.inf, 1.0, 2.0, 3.0, 4.0, 5.0, 1.5]),
    "grad_norm": np.array([3.0] * 7),
    "log_pi/a prompt/yes": np.array([1e20, 1e21, 123456.789, 1e300, 5e-324, 1e-5, 1 / 3]),
    "whole": np.array([1.0, 0.0, -0.0, 100.0, 1e6, 123456789.0, 1e15]),
    "tokens": np.arange(7) * 10**12,
    "nonfinite": np.array([1, 0, 0, 1, 0, 1, 0]),
}
BATCHES = [slice(0, 4), slice(4, 6), slice(6, 7)]


def tracked(folder: Path) -> Path:
    """One run, in three batches; gives W&B's folder."""
    folder.mkdir()
    tracker = Wandb(mode="offline", project="margincall", entity="us").start(CONFIG, folder)
    for rows in BATCHES:
        tracker.log({name: column[rows] for name, column in COLUMNS.items()})
    tracker.finish(0)
    (made,) = (folder / "wandb").iterdir()
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The same run by us and by W&B."""
    base = tmp_path_factory.mktemp("both")
    made = {"ours": tracked(base / "ours")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(src.tracking, "FORMAT_KNOWN", ())
        made["theirs"] = tracked(base / "theirs")
    wandb.teardown()  # ends W&B's own process, which has then written everything
    return made


@pytest.fixture(scope="module")
def files(folders) -> dict[str, list[Any]]:
    return {who: records(next(folder.glob("*.wandb"))) for who, folder in folders.items()}


def test_the_installed_version_of_wandb_is_one_whose_files_we_know(folders):
    assert wandb.__version__.startswith(src.tracking.FORMAT_KNOWN)
    assert (folders["theirs"] / "logs").is_dir()
    assert not (folders["ours"] / "logs").exists()


def test_the_folder_is_named_as_wandb_names_it(folders):
    ours, theirs = (folders[who].name.split("-") for who in ("ours", "theirs"))
    assert ours[:2] == theirs[:2] == ["offline", "run"]
    assert ours[3:] == theirs[3:]
    assert len(ours[2]) == len(theirs[2]) == len("20261121_133152")
    assert [path.name for path in folders["ours"].glob("*.wandb")] == [
        p.name for p in folders["theirs"].glob("*.wandb")
    ]


def test_records_are_numbered_and_ours_belong_to_the_stream_of_the_run(files):
    for found in files.values():
        assert [record.num for record in found] == list(range(1, len(found) + 1))
    ids = {record._info.stream_id for record in files["ours"]}
    assert ids == {kinds(files["theirs"], "run")[0].run_id}


def test_the_header_asks_for_the_same_reader(files):
    ours, theirs = (kinds(files[who], "header")[0].version_info for who in ("ours", "theirs"))
    assert ours.min_consumer == theirs.min_consumer
    assert theirs.producer.startswith(ours.producer)


def test_the_run_is_described_as_wandb_describes_it(files):
    described = []
    for found in files.values():
        (run,) = kinds(found, "run")
        config = values(run.config.update)
        config.pop("_wandb", None)  # where W&B's own facts go, when it has some
        run.ClearField("config")
        run.ClearField("telemetry")  # what was known when the run began; the last of its records is compared below
        assert run.start_time.seconds > 1e9
        run.ClearField("start_time")
        described.append((run, config))
    assert described[0] == described[1]


def test_metrics_are_defined_as_wandb_defines_them(files):
    assert kinds(files["ours"], "metric") == kinds(files["theirs"], "metric")


def test_the_versions_and_features_told_are_those_wandb_tells(files):
    ours, theirs = (kinds(files[who], "telemetry")[-1] for who in ("ours", "theirs"))
    # Which libraries the process has imported, and the version of transformers if it is one of them.
    for unknown in ("imports_init", "imports_finish", "huggingface_version"):
        theirs.ClearField(unknown)
    assert ours == theirs


def test_every_row_has_the_items_wandb_gives_it(files):
    rows = {who: [(row.step.num, values(row.item)) for row in kinds(found, "history")] for who, found in files.items()}
    for _, row in rows["ours"] + rows["theirs"]:
        assert row.pop("_timestamp") > 1e9
        assert row.pop("_runtime") >= 0
    assert len(rows["ours"]) == 7
    np.testing.assert_equal(rows["ours"], rows["theirs"])
    assert all(isinstance(row[name], int) for _, row in rows["ours"] for name in ("_step", "step", "tokens"))


def test_the_summary_after_each_batch_is_the_one_wandb_keeps(files):
    sums = {who: [values(s.update) for s in kinds(found, "summary")] for who, found in files.items()}
    after_rows = {who: {s["_step"]: s for s in found if "_step" in s} for who, found in sums.items()}
    assert list(after_rows["ours"]) == [3, 5, 6]
    for step, ours in after_rows["ours"].items():
        for name in set(ours) - {"_timestamp", "_runtime"}:
            np.testing.assert_equal(ours[name], after_rows["theirs"][step][name])
    assert {"_wandb.runtime"} <= set(sums["ours"][-1]) & {name for s in sums["theirs"] for name in s}


def test_the_end_is_the_last_record(files):
    ours, theirs = (found[-1].exit for found in files.values())
    assert (ours.exit_code, ours.not_complete) == (theirs.exit_code, theirs.not_complete) == (0, False)
    assert 0 <= ours.runtime <= theirs.runtime + 5  # whole seconds


@pytest.fixture(scope="module")
def uploaded(folders, tmp_path_factory) -> dict[str, Uploaded]:
    """What W&B's own `wandb sync` makes of both files."""
    return {who: sync(folder, tmp_path_factory.mktemp("home")) for who, folder in folders.items()}


def sync(folder: Path, home: Path) -> Uploaded:
    with serving() as server:
        env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")} | server.environment
        command = [sys.executable, "-m", "wandb", "sync", str(folder)]
        env["HOME"] = str(home)
        done = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "Finished syncing" in done.stderr
        (run,) = server.runs.values()
        run.complaints = server.complaints
    return run


def test_wandb_sync_uploads_the_same_of_both(uploaded):
    ours, theirs = uploaded["ours"], uploaded["theirs"]
    for run in uploaded.values():
        assert len(run.history) == 7
        for content in (*run.history, run.summary):
            content.pop("_timestamp")
            content.pop("_runtime")
        assert run.summary.pop("_wandb").keys() == {"runtime"}
        own = run.config["_wandb"]["value"]
        axes = [
            own["m"][metric["5"] - 1]["1"] if "5" in metric else None for metric in own["m"]
        ]  # "5": which of the list
        metrics = [
            json.dumps(metric | {"5": axis}, sort_keys=True) for metric, axis in zip(own["m"], axes, strict=True)
        ]
        own["m"] = sorted(metrics)  # W&B gives them in no particular order
        imported, features = {"1", "2", "6"}, {"3"}  # 6: the version of transformers, where that is imported
        own["t"] = {key: value for key, value in own["t"].items() if key not in imported | features}
    np.testing.assert_equal(ours.history, theirs.history)
    np.testing.assert_equal(ours.summary, theirs.summary)
    assert ours.config == theirs.config
    assert (ours.exit_code, theirs.exit_code) == (0, 0)
    names = ("name", "project", "entity", "groupName", "displayName", "host")
    assert [ours.about[name] for name in names] == [theirs.about[name] for name in names]
    assert set(ours.files) == set(theirs.files) == {"config.yaml", "wandb-summary.json"}
    assert not (ours.complaints or theirs.complaints)


def test_of_a_run_that_was_killed_all_that_was_handed_over_is_uploaded_and_wandb_calls_it_crashed(tmp_path):
    tracker = Wandb(mode="offline", project="p", entity=None).start(CONFIG, tmp_path)
    for rows in BATCHES[:2]:
        tracker.log({name: column[rows] for name, column in COLUMNS.items()})
    run = sync(next(tmp_path.glob("wandb/*")), tmp_path)
    assert [row["step"] for row in run.history] == [0, 1, 2, 3, 4, 5]
    assert run.summary["margin"] == {"max": np.inf, "last": 5}
    assert run.exit_code != 0


# ---- bytes

FLOATS = st.floats(width=64) | st.floats(-1e-4, 1e-4)  # the second have the longest decimals


@given(arrays.arrays(np.float64, st.tuples(st.integers(1, 40), st.integers(1, 4)), elements=FLOATS))
def test_any_floats_come_back_exactly(tmp_path_factory, block):
    """But for the sign of -0.0, of which W&B itself keeps nothing."""
    columns = {f"a/{n}": block[:, n] for n in range(block.shape[1])}
    back = logged(tmp_path_factory.mktemp("run"), columns)
    for name, column in columns.items():
        assert np.array_equal(np.array([row[name] for row in back], float), column, equal_nan=True)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), st.text(min_size=1, max_size=300))
def test_any_integers_come_back_as_integers_under_any_name(tmp_path_factory, numbers, name):
    if name in {"step", "_step", "_timestamp", "_runtime"}:
        return
    back = logged(tmp_path_factory.mktemp("run"), {name: np.array(numbers, dtype=np.int64)})
    assert [row[name] for row in back] == numbers
    assert all(isinstance(row[name], int) for row in back)


def logged(folder: Path, columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    steps = np.arange(len(next(iter(columns.values()))))
    tracker = Wandb(mode="offline", project="p", entity=None).start({"id": "i", "label": "l", "sweep": "s"}, folder)
    tracker.log({"step": steps, **columns})
    (file,) = folder.glob("wandb/*/*.wandb")
    rows = kinds(records(file), "history")
    assert [row.step.num for row in rows] == steps.tolist()
    return [values(row.item) for row in rows]


@given(st.lists(st.one_of(st.integers(0, 40), st.integers(32700, 32800), st.integers(65000, 66000)), max_size=12))
def test_records_of_any_size_are_framed_so_that_they_come_back(sizes):
    """Sizes about a block's and twice a block's, in which the last bytes are too few for another header."""
    given = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
    at_once = FILE_HEADER + framed(given, len(FILE_HEADER))
    one_by_one = FILE_HEADER
    for record in given:
        one_by_one += framed([record], len(one_by_one))
    assert at_once == one_by_one
    assert [record for record in contents(at_once) if record] == [record for record in given if record]


@given(st.integers(0, 2**63 - 1), st.text())
def test_messages_are_those_of_protobuf(number, text):
    assert HistoryStep.FromString(message((1, number))) == HistoryStep(num=number)
    assert MetricRecord.FromString(message((1, text), (4, text))) == MetricRecord(name=text, step_metric=text)
    assert varint(number) == HistoryStep(num=number).SerializeToString()[1:] or number == 0


@settings(max_examples=20)
@given(st.integers(1, 30))
def test_a_long_history_handed_over_at_once_is_written_in_parts(tmp_path_factory, batch):
    steps = np.arange(30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.tracking.offline.BATCH", batch)
        back = logged(tmp_path_factory.mktemp("run"), {"margin": steps * 1.5})
    assert [row["margin"] for row in back] == (steps * 1.5).tolist()


def test_nothing_of_wandb_is_imported_to_write_offline(environment, tmp_path):
    code = f"""
import sys
from pathlib import Path
import numpy as np
from src.tracking import Wandb
folder, config = Path({str(tmp_path)!r}), dict(id="i", label="l", sweep="s")
tracker = Wandb(mode="offline", project="p", entity=None).start(config, folder)
tracker.log(dict(step=np.arange(3)))
tracker.finish(0)
print([name for name in sys.modules if name.partition(".")[0] in ("wandb", "google")])
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
    assert len(list(tmp_path.glob("wandb/*/*.wandb"))) == 1


def test_an_offline_run_keeps_nothing_open_between_calls(tmp_path):
    """Thousands of runs in a stack must not run out of file descriptors, and a forked worker shares nothing."""
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    runs = [
        Wandb(mode="offline", project="p", entity=None).start(
            {"id": f"{n}", "label": "l", "sweep": "s"}, tmp_path / f"{n}"
        )
        for n in range(20)
    ]
    for run in runs:
        run.log({"step": np.arange(2)})
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before
