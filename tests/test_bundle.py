"""Bundles: what is saved comes back to the bit, and each kind of damage is refused, also with new checksums."""

import errno
import hashlib
import json
import os
import shutil
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import xgboost
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from fraud_poc.core.files import PARTIAL, sole_use
from fraud_poc.core.settings import load_settings
from fraud_poc.features.table import build_table
from fraud_poc.model import bundle as module
from fraud_poc.model.bundle import (
    SECRET,
    SIGNATURE,
    import_bundle,
    installation_secret,
    latest_bundle,
    list_bundles,
    load_bundle,
    read_manifest_of,
    read_signature,
    save_bundle,
    sealed,
    sign_bundle,
    signature,
)
from fraud_poc.model.evaluate import evaluate, judge
from fraud_poc.model.policy import plain_policy
from fraud_poc.model.trees import NODE_LINKS, NODE_NUMBERS, model_problem

ORDERS = Path(__file__).resolve().parents[1] / "config" / "orders.toml"
ROWS = ['Value("order_amount")', "Hour()", 'Count(by="customer_id", over=["1h", "7d"])']
NOON = datetime(2025, 7, 1, 12, tzinfo=UTC)
ACCEPTED, REJECTED = (
    {"acceptance": "accepted", "reasons": ["good enough"]},
    {"acceptance": "rejected", "reasons": ["AUC ROC 0.5 is too low"]},
)


def settings_in(folder: Path, **changes):
    return load_settings(
        ORDERS, {"batch.folder": str(folder), "features.rows": ROWS, "acceptance.bootstrap": 5} | changes
    )


def some_orders(seed: int, n: int = 2_000, width: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    vectors = rng.lognormal(0, 1, (n, width)).astype(np.float32)
    labels = (rng.random(n) < 1 / (1 + np.exp(3 - 1.2 * vectors[:, 0]))).astype(np.int8)
    vectors[rng.random(vectors.shape) < 0.1] = np.nan
    return vectors, labels


def train(seed: int = 1, width: int = 4, names=None, labels=None, **parameters) -> xgboost.Booster:
    vectors, found = some_orders(seed, width=width)
    data = xgboost.DMatrix(vectors, found if labels is None else labels, feature_names=names)
    return xgboost.train(
        {"objective": "binary:logistic", "max_depth": 4, "base_score": 0.5, "nthread": 1, "seed": seed} | parameters,
        data,
        12,
    )


def measured(settings) -> dict:
    vectors, labels = some_orders(3)
    return evaluate(
        settings,
        labels,
        train().inplace_predict(vectors),
        np.arange(2_000) * 400_000,
        np.arange(1, 2_001, dtype=np.uint64),
        np.full(2_000, 100),
    )


def save(settings, table=None, booster=None, minute=0, **other) -> Path:
    given = {
        "sample": some_orders(2)[0][:200],
        "calibration": (0.8, -0.3),
        "policy": plain_policy(settings),
        "evaluation": {"metrics": {}},
        "judgement": ACCEPTED,
        "training": {"rows": 2_000},
        "created": NOON + timedelta(minutes=minute),
    }
    return save_bundle(settings, table or build_table(settings), booster or train(), **given | other)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A good bundle, its table; copy it before it is harmed."
    home = tmp_path_factory.mktemp("bundle")
    settings = settings_in(home / "orders", **{"live.redis_url": "rediss://:secret@store.example:6379/0"})
    (home / "plots").mkdir()
    (home / "plots" / "roc.png").write_bytes(b"\x89PNG, as it were")
    return save(settings, evaluation=measured(settings), plots=home / "plots"), build_table(settings), settings


@pytest.fixture
def copy(made, tmp_path):
    return moved(made, tmp_path / "models" / "copy")


def moved(made, to: Path) -> Path:
    "A copy of the bundle in another folder of the same installation."
    to.parents[1].mkdir(exist_ok=True)
    shutil.copy(made[2].batch.folder / SECRET, to.parents[1])
    return shutil.copytree(made[0], to)


def reseal(folder: Path, **fields) -> None:
    "Change fields of a manifest and make every checksum anew."
    old = json.loads((folder / "manifest.json").read_text())
    files = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in old["files"]
        if (folder / name).exists()
    }
    (folder / "manifest.json").write_bytes(sealed(old | {"files": files} | fields))
    sign_bundle(folder)


def edited(content: bytes, edit) -> bytes:
    "booster.json after `edit(learner, trees)`."
    model = json.loads(content)
    edit(model["learner"], model["learner"]["gradient_booster"]["model"]["trees"])
    return json.dumps(model).encode()


# --- what is saved comes back -----------------------------------------------------------------------------------------


def test_a_bundle_comes_back_to_the_bit(made):
    folder, table, settings = made
    bundle, vectors = load_bundle(folder, table), some_orders(5)[0]
    assert np.array_equal(bundle.booster.inplace_predict(vectors), train().inplace_predict(vectors))
    assert (bundle.names, bundle.table_hash, bundle.calibration, bundle.policy) == (
        table.names,
        table.hash,
        (0.8, -0.3),
        plain_policy(settings),
    )
    assert bundle.policy.hash == bundle.manifest["files"]["policy.json"]
    assert (
        np.array_equal(bundle.sample, some_orders(2)[0][:200], equal_nan=True)
        and bundle.sample.dtype == bundle.sample_scores.dtype == np.float32
    )
    assert np.array_equal(bundle.sample_scores, bundle.booster.inplace_predict(bundle.sample))
    assert (
        bundle.hash == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest() and bundle.folder == folder
    )
    assert bundle.manifest["metrics"]["auc"]["value"] > 0.7 and bundle.manifest["created"].startswith(
        "2025-07-01T12:00:00"
    )
    assert (folder / "plots" / "roc.png").is_file() and json.loads((folder / "evaluation.json").read_text())[
        "events"
    ] == 2_000
    assert folder.parent == settings.batch.folder / "models" and latest_bundle(settings, table).hash == bundle.hash


def test_nothing_of_this_machine_and_no_secret_is_kept(made):
    text = (made[0] / "manifest.json").read_text()
    assert "secret" not in text and "redis" not in text and str(made[2].batch.folder) not in text
    assert json.loads(text)["settings"]["model"]["max_depth"] == 6


def test_the_same_model_gives_the_same_bytes_and_may_move(made, tmp_path):
    again = save(settings_in(tmp_path / "again"), evaluation=measured(made[2]), plots=made[0] / "plots")
    there = lambda folder: {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != SIGNATURE
    }
    assert there(again) == there(made[0]) and again.name == made[0].name
    assert (
        load_bundle(shutil.copytree(tmp_path / "again", tmp_path / "moved") / "models" / again.name, made[1]).hash
        == load_bundle(made[0], made[1]).hash
    )


@pytest.mark.parametrize(
    "parameters",
    [
        {"tree_method": "exact", "gamma": 2.0},
        {"tree_method": "hist", "max_leaves": 9, "grow_policy": "lossguide"},
        {"names": ["order_amount", "hour", "count_1h_by_customer_id", "count_7d_by_customer_id"]},
        {"labels": np.zeros(2_000)},
    ],
    ids=["pruned", "leaf_wise", "named", "stumps"],
)
def test_all_kinds_of_grown_trees_are_served(parameters, tmp_path):
    settings, booster = settings_in(tmp_path), train(**parameters)
    bundle = load_bundle(save(settings, booster=booster), build_table(settings))
    assert np.array_equal(bundle.booster.inplace_predict(bundle.sample), booster.inplace_predict(bundle.sample))


# --- damaged files ----------------------------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["booster.json", "policy.json", "sample.npy", "sample_scores.npy", "evaluation.json", "plots/roc.png"]
)
def test_a_damaged_file_is_named(copy, made, name):
    path, table = copy / name, made[1]
    whole = path.read_bytes()
    for place in {0, len(whole) // 2, len(whole) - 1}:
        flip(path, place)
        with pytest.raises(
            ValueError, match=rf"{Path(name).name} has checksum .* manifest says .*: copy the bundle again"
        ):
            load_bundle(copy, table)
        path.write_bytes(whole)
    for shorter in (b"", whole[:-1], whole + b"\n"):
        path.write_bytes(shorter)
        with pytest.raises(ValueError, match=f"{Path(name).name} has checksum"):
            load_bundle(copy, table)
    path.unlink()
    with pytest.raises(ValueError, match=f"{Path(name).name} is missing"):
        load_bundle(copy, table)
    path.symlink_to(made[0] / name)
    with pytest.raises(ValueError, match=f"{Path(name).name} is a link"):
        load_bundle(copy, table)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"{Path(name).name} is a link or a device"):
        load_bundle(copy, table)


def test_every_byte_of_the_manifest_counts(copy):
    whole = (copy / "manifest.json").read_bytes()
    for place in range(0, len(whole), 11):
        flip(copy / "manifest.json", place)
        with pytest.raises(ValueError, match="manifest.json"):
            read_manifest_of(copy)
        (copy / "manifest.json").write_bytes(whole)
    for content in (b"", whole[:-1], whole + b" ", b"[]", b"null", b"1", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}'):
        (copy / "manifest.json").write_bytes(content)
        with pytest.raises(ValueError, match="manifest.json"):
            read_manifest_of(copy)


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "plots/more.png", "deep/er/booster.json", "booster.ubj"])
def test_an_extra_file_is_refused(copy, made, name):
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=f"{Path(name).name} is not named in the manifest: remove it"):
        load_bundle(copy, made[1])


def test_links_to_folders_and_paths_that_lead_out_are_refused(copy, made, tmp_path):
    (copy / "more").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="more is not named"):
        load_bundle(copy, made[1])
    (copy / "more").unlink()
    (tmp_path / "outside").write_bytes(b"x")
    files = json.loads((copy / "manifest.json").read_text())["files"]
    reseal(copy, files=files | {"../outside": hashlib.sha256(b"x").hexdigest()})
    with pytest.raises(ValueError, match="outside is missing"):
        load_bundle(copy, made[1])


@pytest.mark.parametrize("name", ["booster.json", "policy.json", "sample.npy", "sample_scores.npy"])
def test_a_file_that_serving_needs_cannot_be_left_out(copy, made, name):
    (copy / name).unlink()
    reseal(copy)
    with pytest.raises(ValueError, match=f"{name} is missing"):
        load_bundle(copy, made[1])


def test_what_is_no_bundle_is_named(made, tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match="manifest.json does not exist, so this is no bundle: give the folder"):
            load_bundle(folder, made[1])


# --- damage with right checksums --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"format": 1}, "is of format 1, and this version reads 4"),
        ({"format": "2"}, "is of format '2'"),
        ({"format": True}, "is of format True"),
        ({"names": "order_amount"}, "wrong at names"),
        ({"names": []}, "wrong at names"),
        ({"acceptance": "maybe"}, "wrong at acceptance"),
        ({"notes": "x"}, "wrong at notes"),
        ({"calibration": [1.0]}, "wrong at calibration"),
        ({"calibration": [1.0, "0"]}, "wrong at calibration.1"),
        ({"calibration": [True, 0.0]}, "wrong at calibration.0"),
        ({"calibration": [0.0, 0.0]}, "slope 0.0, by which a higher score would not be"),
        ({"calibration": [-1.0, 0.0]}, "slope -1.0"),
        ({"thresholds": [0.7, 0.6]}, "wrong at thresholds"),
        ({"table_hash": "0" * 64}, "was trained on feature table 000000000000.*run `fraud-poc features`"),
        ({"table_hash": "abc"}, "wrong at table_hash"),
        ({"acceptance": "rejected"}, "is of a rejected model .good enough.: it is never served"),
        (
            {"names": ["hour", "order_amount", "count_1h_by_customer_id", "count_7d_by_customer_id"]},
            "has 'hour' as feature 0, where the feature table has 'order_amount'",
        ),
        ({"names": ["order_amount", "hour", "count_1h_by_customer_id"]}, "has None as feature 3"),
        (
            {"names": ["order_amount", "hour", "count_1h_by_customer_id", "count_7d_by_customer_id", "x"]},
            "has 'x' as feature 4, where the feature table has None",
        ),
    ],
)
def test_a_manifest_that_means_something_else_is_refused(copy, made, fields, words):
    reseal(copy, **fields)
    with pytest.raises(ValueError, match=rf"manifest\.json .*{words}"):
        load_bundle(copy, made[1])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"review_over": -1.0}, "review_over"),
        ({"version": 9}, "version"),
        ({"costs": {}}, "costs"),
        ({"more": 1}, "more"),
    ],
)
def test_a_policy_that_is_none_is_refused(copy, made, change, words):
    (copy / "policy.json").write_text(json.dumps(json.loads((copy / "policy.json").read_text()) | change))
    reseal(copy)
    with pytest.raises(ValueError, match=rf"policy\.json.*{words}.*train anew"):
        load_bundle(copy, made[1])


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(copy, made, value):
    rest = json.loads((copy / "manifest.json").read_text())
    del rest["seal"]
    number = float(value.replace("1e999", "inf"))
    text = lambda fields: (
        (json.dumps(fields, indent=1, sort_keys=True) + "\n")
        .encode()
        .replace(json.dumps(number).encode(), value.encode())
    )
    fields = rest | {"calibration": [0.5, number]}
    (copy / "manifest.json").write_bytes(text(fields | {"seal": hashlib.sha256(text(fields)).hexdigest()}))
    sign_bundle(copy)
    with pytest.raises(ValueError, match="manifest.json"):
        load_bundle(copy, made[1])
    fields = rest | {"metrics": {"auc": number}}
    (copy / "manifest.json").write_bytes(text(fields | {"seal": hashlib.sha256(text(fields)).hexdigest()}))
    sign_bundle(copy)
    with pytest.raises(ValueError, match="manifest.json was changed"):
        load_bundle(copy, made[1])


def put(name, place, value):
    "An edit: one entry of the third tree."
    return lambda learner, trees: trees[2][name].__setitem__(place, value)


def cut(name):
    return lambda learner, trees: trees[2][name].pop()


def make_categorical(learner, trees):
    trees[2]["split_type"][0] = 1
    (
        trees[2]["categories_nodes"],
        trees[2]["categories_segments"],
        trees[2]["categories_sizes"],
        trees[2]["categories"],
    ) = [0], [0], [1], [2]


@pytest.mark.parametrize(
    "edit, words",
    [
        (put("left_children", 0, 9_999), "tree 2 that has child 9999, outside of 0 to"),
        (put("right_children", 0, -2), "has child -2"),
        (put("left_children", 0, 1.5), "has child 1.5"),
        (put("left_children", 0, 0), "reaches a node twice"),
        (put("right_children", 1, 1), "reaches a node twice"),
        (put("left_children", 0, 2), "reaches a node twice"),
        (put("left_children", 0, -1), "has one child at node 0"),
        (put("parents", 1, 7), "names another parent"),
        (put("split_indices", 0, 4), "splits on feature 4, outside of 0 to 3"),
        (put("split_indices", 0, -1), "splits on feature -1"),
        (put("split_indices", 0, 2**31 - 1), "splits on feature"),
        (put("split_indices", 0, None), "splits on feature nan"),
        (put("split_conditions", 0, float("nan")), "not finite"),
        (put("split_conditions", -1, float("inf")), "not finite"),
        (put("split_conditions", 0, 1e39), "not finite"),
        (put("sum_hessian", 0, float("nan")), "not finite"),
        (put("split_type", 0, 1), "categorical"),
        (make_categorical, "categorical"),
        (put("default_left", 0, 3), "default direction"),
        (put("left_children", 0, "x"), "not XGBoost's JSON format"),
        (put("left_children", 0, [1]), "not XGBoost's JSON format"),
        (put("left_children", 0, 10**400), "JSON format"),
        *[(cut(name), f"another number of {name}") for name in NODE_LINKS + NODE_NUMBERS],
        (lambda learner, trees: trees[2]["tree_param"].update(num_nodes="0"), "has 0 nodes"),
        (lambda learner, trees: trees[2]["tree_param"].update(num_deleted="2"), "2 were pruned"),
        (lambda learner, trees: trees[2]["tree_param"].update(size_leaf_vector="2"), "vectors in its leaves"),
        (lambda learner, trees: trees[2].pop("parents"), "KeyError"),
        (lambda learner, trees: trees.clear(), "has no trees"),
        (lambda learner, trees: trees.pop(), "has 11 trees, and counts them otherwise"),
        (
            lambda learner, trees: learner["gradient_booster"]["model"].update(iteration_indptr=[0, 99]),
            "counts them otherwise",
        ),
        (
            lambda learner, trees: learner["gradient_booster"]["model"]["tree_info"].__setitem__(1, 5),
            "counts them otherwise",
        ),
        (lambda learner, trees: learner["gradient_booster"].update(name="dart"), "is 'dart' for"),
        (lambda learner, trees: learner["objective"].update(name="reg:squarederror"), "is 'gbtree' for 'reg"),
        (
            lambda learner, trees: learner["learner_model_param"].update(num_feature="5"),
            "takes 5 features, and the manifest names 4",
        ),
        (lambda learner, trees: learner["learner_model_param"].update(num_class="3"), "more than one output"),
        (lambda learner, trees: learner["learner_model_param"].update(base_score="[0]"), "base score"),
        (
            lambda learner, trees: learner.update(
                feature_names=["hour", "order_amount", "count_1h_by_customer_id", "count_7d_by_customer_id"]
            ),
            "in another order",
        ),
        (lambda learner, trees: learner.clear(), "KeyError"),
        (put("split_conditions", -1, 5.0), "another score than when it was saved"),
    ],
)
def test_a_model_that_cannot_be_walked_is_refused(copy, made, edit, words):
    (copy / "booster.json").write_bytes(edited((copy / "booster.json").read_bytes(), edit))
    reseal(copy)
    with pytest.raises(ValueError, match=rf"booster\.json .*{words}"):
        load_bundle(copy, made[1])


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"null", b"[1]", b"{L\x00\x00", b"[" * 100_000, b"\x80\x04."],
    ids=["empty", "object", "null", "list", "ubj", "deep", "pickle"],
)
def test_what_is_no_model_is_refused(copy, made, content):
    (copy / "booster.json").write_bytes(content)
    reseal(copy)
    with pytest.raises(ValueError, match="booster.json is not XGBoost's JSON format"):
        load_bundle(copy, made[1])


numbers = st.one_of(
    st.integers(-3, 40),
    st.sampled_from(
        [-(2**31), 2**31 - 1, 2**31, 2**63, 1e38, 1e300, 0.5, float("nan"), float("inf"), None, "1", [], {}]
    ),
)


@given(st.integers(0, 11), st.sampled_from([*NODE_LINKS, *NODE_NUMBERS]), st.integers(0, 30), numbers)
@profile(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_written_into_a_tree_is_refused_or_harmless(made, tree, name, place, value):
    folder, table, _ = made
    content = edited(
        (folder / "booster.json").read_bytes(),
        lambda learner, trees: trees[tree][name].__setitem__(place % len(trees[tree][name]), value),
    )
    if model_problem(content, table.names):
        return
    try:
        booster = xgboost.Booster(model_file=bytearray(content))
    except xgboost.core.XGBoostError:
        return
    assert np.isfinite(booster.inplace_predict(some_orders(4)[0])).all()


@pytest.mark.parametrize(
    "name, array, words",
    [
        (
            "sample.npy",
            np.zeros((5, 3), np.float32),
            r"float32 of shape \(5, 3\), where float32 of shape \(None, 4\) is needed",
        ),
        ("sample.npy", np.zeros((200, 4)), "holds float64"),
        ("sample.npy", np.zeros((0, 4), np.float32), "shape"),
        ("sample.npy", np.zeros(4, np.float32), "shape"),
        ("sample.npy", np.array([[None] * 4] * 200, object), "holds object of shape"),
        ("sample_scores.npy", np.zeros(199, np.float32), r"where float32 of shape \(200,\)"),
        ("sample_scores.npy", np.full(200, np.nan, np.float32), "gives 200 of 200 sample vectors another score"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(copy, made, name, array, words):
    np.save(copy / name, array, allow_pickle=True)
    reseal(copy)
    with pytest.raises(ValueError, match=words):
        load_bundle(copy, made[1])


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"not an array at all", b"\x80\x04K\x01."], ids=["empty", "cut", "text", "pickle"]
)
def test_what_is_no_array_is_refused(copy, made, content):
    (copy / "sample.npy").write_bytes(content)
    reseal(copy)
    with pytest.raises(ValueError, match="sample.npy is no array"):
        load_bundle(copy, made[1])


def test_several_arrays_in_place_of_one_are_refused(copy, made):
    with open(copy / "sample.npy", "wb") as handle:
        np.savez(handle, a=np.zeros(3))
    reseal(copy)
    with pytest.raises(ValueError, match="sample.npy is no array"):
        load_bundle(copy, made[1])


def test_another_feature_table_is_refused(made, tmp_path):
    for rows in (ROWS[::-1], ROWS[:2], [*ROWS[:2], 'Count(by="customer_id", over=["1h", "8d"])']):
        with pytest.raises(ValueError, match="was trained on feature table"):
            load_bundle(made[0], build_table(settings_in(tmp_path, **{"features.rows": rows})))


# --- saving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"calibration": (-1.0, 0.0)}, "slope -1.0"),
        ({"calibration": (float("nan"), 0.0)}, "no bundle can hold this"),
        ({"training": {"rows": np.int64(5)}}, "no bundle can hold this.*int64"),
        ({"sample": np.zeros((0, 4), np.float32)}, "feature vectors"),
        ({"booster": lambda: train(num_parallel_tree=2)}, "counts them otherwise"),
        ({"booster": lambda: train(booster="dart")}, "is 'dart'"),
        ({"booster": lambda: train(objective="reg:squarederror")}, "reg:squarederror"),
        ({"booster": lambda: train(names=list("abcd"))}, "names other features"),
    ],
)
def test_what_would_not_load_is_not_saved(tmp_path, changes, words):
    changes = {key: value() if callable(value) else value for key, value in changes.items()}
    with pytest.raises(ValueError, match=words):
        save(settings_in(tmp_path), **changes)
    assert list_bundles(settings_in(tmp_path)) == [] and not list((tmp_path / "models").glob("*[!k]"))


def test_a_save_that_breaks_leaves_nothing(tmp_path, monkeypatch):
    settings = settings_in(tmp_path)
    for name, target in [("rename", os), ("_write", module), ("_sync", module)]:

        def fail(*given):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(target, name, fail)
        with pytest.raises(OSError, match="No space left on device; no model was saved in"):
            save(settings)
        monkeypatch.undo()
        assert list_bundles(settings) == [] and [path.name for path in (tmp_path / "models").iterdir()] == [".lock"]
    left = tmp_path / "models" / f".20250101T000000000-aaaaaaaa{PARTIAL}"
    left.mkdir()
    (left / "booster.json").write_text("half")
    assert list_bundles(settings) == []
    folder = save(settings)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [".lock", folder.name]
    with pytest.raises(ValueError, match="a model is never overwritten"):
        save(settings)
    with sole_use(tmp_path / "models"), pytest.raises(ValueError, match="another run is writing"):
        save(settings, minute=1)
    assert load_bundle(folder, build_table(settings)).folder == folder


# --- which one is served ----------------------------------------------------------------------------------------------


def test_the_newest_accepted_model_is_served(tmp_path):
    settings = settings_in(tmp_path)
    table = build_table(settings)
    with pytest.raises(
        ValueError, match="there is no model in .*models: run `fraud-poc train`, then `fraud-poc evaluate`"
    ):
        latest_bundle(settings, table)
    bad = save(settings, judgement=REJECTED)
    with pytest.raises(
        ValueError,
        match=(
            "all 1 models in .* were rejected, the newest since AUC ROC 0.5 is too low: run `fraud-poc train`, "
            "then `fraud-poc evaluate`"
        ),
    ):
        latest_bundle(settings, table)
    old, new, worse = (
        save(settings, minute=1),
        save(settings, minute=2, booster=train(5)),
        save(settings, minute=3, judgement=REJECTED),
    )
    assert latest_bundle(settings, table).folder == new
    rows = list_bundles(settings)
    assert [row["id"] for row in rows] == [worse.name, new.name, old.name, bad.name] and [
        row["acceptance"] for row in rows
    ] == ["rejected", "accepted", "accepted", "rejected"]
    assert rows[1]["hash"] == latest_bundle(settings, table).hash and json.dumps(rows)
    with pytest.raises(ValueError, match="rejected model .AUC ROC 0.5 is too low."):
        load_bundle(worse, table)
    assert load_bundle(worse, table, allow_rejected=True).manifest["acceptance"] == "rejected"
    flip(worse / "sample.npy", 9)
    flip(old / "manifest.json", 9)
    assert latest_bundle(settings, table).folder == new
    flip(new / "manifest.json", 9)
    assert "problem" in list_bundles(settings)[1]
    with pytest.raises(ValueError, match=f"{new.name}/manifest.json"):
        latest_bundle(settings, table)
    shutil.rmtree(new)
    save(settings, minute=9)
    with pytest.raises(ValueError, match="was trained on feature table"):
        latest_bundle(settings, build_table(settings_in(tmp_path, **{"features.rows": ROWS[:2]})))


def test_a_judged_model_from_end_to_end(tmp_path):
    settings = settings_in(tmp_path, **{"acceptance.min_auc": 0.6})
    strict = settings_in(tmp_path, **{"acceptance.min_auc": 0.999})
    result = measured(settings)
    for minute, chosen in enumerate((settings, strict)):
        save(chosen, minute=minute, evaluation=result, judgement=judge(chosen, result["metrics"]))
    assert [row["acceptance"] for row in list_bundles(settings)] == ["rejected", "accepted"]
    assert (
        "below acceptance.min_auc 0.999" in list_bundles(settings)[0]["reasons"][0]
        and latest_bundle(settings, build_table(settings)).manifest["acceptance"] == "accepted"
    )


def test_figures_with_labels_frozen_are_kept_and_earlier_bundles_have_none(made, tmp_path):
    folder, table, settings = made
    assert "frozen" not in load_bundle(folder, table).manifest
    mine, found = settings_in(tmp_path), measured(settings)
    frozen = {
        "events_changed": 5,
        "metrics": {"auc": {"value": 0.6, "low": 0.5, "high": 0.7}},
        "money": None,
        "meaning": "less",
    }
    for minute, figures in enumerate((frozen, None)):
        bundle = load_bundle(save(mine, minute=minute, evaluation=found | {"frozen": figures}), table)
        assert (
            bundle.manifest.get("frozen") == (figures and figures["metrics"])
            and json.loads((bundle.folder / "evaluation.json").read_text())["frozen"] == figures
        )


# --- whose it is ------------------------------------------------------------------------------------------------------


def resealed_only(folder: Path, **fields) -> None:
    "Every checksum is made anew, as a stranger can, and not the signature."
    kept = (folder / SIGNATURE).read_bytes()
    reseal(folder, **fields)
    (folder / SIGNATURE).write_bytes(kept)


def signed_by(folder: Path, secret: bytes) -> None:
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    (folder / SIGNATURE).write_bytes(signature(secret, digest))


def linked(path: Path) -> None:
    "The same content, behind a link."
    target = path.rename(path.with_name(f"{path.name}.elsewhere"))
    path.symlink_to(target)


FOREIGN = {
    "a calibration that blocks nothing": (lambda f: resealed_only(f, calibration=(1.0, -50.0)), "does not match"),
    "no signature": (lambda f: (f / SIGNATURE).unlink(), "import-model"),
    "a signature that is no JSON": (lambda f: (f / SIGNATURE).write_bytes(b"["), "import-model"),
    "a signature that is a list": (lambda f: (f / SIGNATURE).write_bytes(b"[]"), "import-model"),
    "a link as signature": (lambda f: linked(f / SIGNATURE), "import-model"),
    "another installation": (lambda f: signed_by(f, bytes(32)), "is of installation"),
    "our name and not our secret": (
        lambda f: (f / SIGNATURE).write_text(json.dumps(read_signature(f) | {"mac": "0" * 64})),
        "does not match",
    ),
    "whose it is said to be": (
        lambda f: (f / SIGNATURE).write_text(json.dumps(read_signature(f) | {"imported": {"from": "us"}})),
        "does not match",
    ),
    "a secret that is gone": (lambda f: (f.parents[1] / SECRET).unlink(), "and this is none"),
    "a secret that is damaged": (lambda f: (f.parents[1] / SECRET).write_text("abc"), "64 hexadecimal digits"),
    "a link as manifest": (lambda f: linked(f / "manifest.json"), "manifest.json is a link"),
    "a link as folder": (linked, "copy is a link"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_bundle_that_this_installation_did_not_sign_is_not_loaded(copy, made, case):
    damage, words = FOREIGN[case]
    load_bundle(copy, made[1])
    damage(copy)
    with pytest.raises(ValueError, match=words):
        load_bundle(copy, made[1])


def test_the_secret_is_for_its_owner_alone_and_no_bundle_holds_it(made):
    path = made[2].batch.folder / SECRET
    assert path.stat().st_mode & 0o777 == 0o600
    secret = installation_secret(made[2].batch.folder)
    assert all(secret.hex().encode() not in one.read_bytes() for one in made[0].rglob("*") if one.is_file())


def test_a_bundle_of_another_installation_is_imported_with_its_hash_and_whose_it_is(made, tmp_path):
    ours, table = settings_in(tmp_path / "ours"), made[1]
    with pytest.raises(ValueError, match="--from is empty"):
        import_bundle(ours, table, made[0], "  ")
    summary = import_bundle(ours, table, made[0], "risk team, Lyon")
    theirs = read_signature(made[0])["installation"]
    assert (summary["from"], summary["installation"]) == ("risk team, Lyon", theirs)
    bundle = latest_bundle(ours, table)
    assert bundle.hash == summary["hash"] == load_bundle(made[0], table).hash
    assert read_signature(bundle.folder)["imported"] == {"from": "risk team, Lyon", "installation": theirs}
    with pytest.raises(ValueError, match="never overwritten"):
        import_bundle(ours, table, made[0], "risk team, Lyon")
    (bundle.folder / SIGNATURE).unlink()  # as an earlier version saved it
    with pytest.raises(ValueError, match="import-model"):
        latest_bundle(ours, table)
    assert import_bundle(ours, table, bundle.folder, "ourselves")["installation"] == "unknown"
    assert latest_bundle(ours, table).hash == summary["hash"]


def test_a_damaged_bundle_is_not_imported(copy, made, tmp_path):
    flip(copy / "booster.json", 500)
    with pytest.raises(ValueError, match="booster.json has checksum"):
        import_bundle(settings_in(tmp_path / "ours"), made[1], copy, "Lyon")
    assert not list((tmp_path / "ours").rglob("manifest.json"))


@pytest.mark.parametrize("shape", [(10**15, 4), (2**62, 4), (200, 4, 1), (201, 4), (199, 4), (-200, 4), (10**30, 4)])
def test_an_array_that_claims_other_bytes_than_it_has_takes_no_memory(copy, made, shape):
    content = (copy / "sample.npy").read_bytes()
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    (copy / "sample.npy").write_bytes(content[:8] + len(head).to_bytes(2, "little") + head + content[128:])
    reseal(copy)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="sample.npy"):
            load_bundle(copy, made[1])
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
