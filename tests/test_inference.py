"""The compiled walk of the trees gives XGBoost's own bits, or XGBoost scores, visibly."""

import json

import numpy as np
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from fraud_poc.model.trees import (
    Scorer,
    contributions,
    edge_vectors,
    prove,
    proved_scorer,
    proved_trees,
    read_trees,
    rounds_of,
    score_many,
)

EXTREMES = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.0]


def train(
    seed: int, rounds: int = 20, rows: int = 250, width: int = 6, missing: float = 0.2, **parameters
) -> tuple[xgb.Booster, np.ndarray]:
    "A booster and the vectors that it learned from. The last two features never vary, the last one is never missing."
    rng = np.random.default_rng(seed)
    x = np.round(rng.normal(size=(rows, width)), int(rng.integers(0, 4))).astype(
        np.float32
    )  # few values: thresholds that vectors lie on
    x[:, -2] = 1
    label = np.nan_to_num(x[:, 0]) + rng.normal(size=rows) > 0.5
    x[rng.random(x.shape) < missing] = np.nan
    x[:, -1] = 1
    given = {
        "objective": "binary:logistic",
        "nthread": 1,
        "seed": seed,
        "base_score": 0.5,
        "min_child_weight": 0.1,
        "verbosity": 0,
    } | parameters
    return xgb.train(given, xgb.DMatrix(x, label), rounds), x


def trees_of(booster: xgb.Booster):
    return read_trees(model_of(booster))


def model_of(booster: xgb.Booster) -> bytes:
    return bytes(booster.save_raw("json"))


def bits(scores: np.ndarray) -> np.ndarray:
    return np.asarray(scores, np.float32).view(np.uint32)


def assert_same(booster: xgb.Booster, vectors: np.ndarray) -> None:
    "Batch, single vectors and both of XGBoost's ways agree on the bits."
    trees, theirs = trees_of(booster), booster.inplace_predict(vectors)
    assert (bits(score_many(trees, vectors)) == bits(theirs)).all()
    finite = ~np.isinf(vectors).any(1)
    if finite.any():
        assert (
            bits(booster.predict(xgb.DMatrix(vectors[finite], feature_names=booster.feature_names)))
            == bits(theirs[finite])
        ).all()


@pytest.fixture(scope="module")
def model():
    return train(1)


# --- equality ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.integers(0, 10_000),
    st.integers(1, 8),
    st.sampled_from([1, 2, 25]),
    st.sampled_from([0.0, 0.2, 0.9]),
    st.sampled_from([0.5, 0.013, 0.97]),
    st.sampled_from(
        [
            {},
            {"grow_policy": "lossguide", "max_leaves": 30},
            {"tree_method": "exact"},
            {"num_parallel_tree": 3, "subsample": 0.5},
        ]
    ),
)
def test_random_models_are_equal_on_every_edge(seed, depth, rounds, missing, base_score, kind):
    booster, x = train(seed, rounds, missing=missing, max_depth=depth, base_score=base_score, **kind)
    assert prove(booster, trees_of(booster), x) == ""
    extreme = np.random.default_rng(seed).choice(np.array(EXTREMES, np.float32), (200, x.shape[1]))
    assert_same(booster, np.concatenate([x, extreme]))


def test_a_fitted_base_score_is_read():
    booster, x = train(3, base_score=None)
    assert json.loads(json.loads(booster.save_raw("json"))["learner"]["learner_model_param"]["base_score"]) != [0.5]
    assert_same(booster, x)


def test_a_model_that_never_splits():
    booster, x = train(4, rounds=3, gamma=1e9)
    assert trees_of(booster).steps == 0 and proved_scorer(booster, x).compiled
    assert_same(booster, x)


@pytest.mark.parametrize("base_score", [1e-38, 9e-7, 1e-6, 2e-6, 0.999999, 1 - 6e-8])
def test_base_scores_at_the_ends_are_cut_as_xgboost_does(base_score):
    booster, x = train(5, base_score=base_score)
    assert_same(booster, x)


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_at_the_ends_of_the_sigmoid(sign):
    booster, x = train(5, rounds=30)
    text = json.loads(booster.save_raw("json"))
    for tree in text["learner"]["gradient_booster"]["model"]["trees"]:
        tree["split_conditions"] = [
            v * 20 * sign if child < 0 else v for v, child in zip(tree["split_conditions"], tree["left_children"])
        ]
    booster.load_model(bytearray(json.dumps(text).encode()))
    margins = booster.inplace_predict(x, predict_type="margin")
    assert margins.min() < -100 and margins.max() > 90
    assert_same(booster, x)


def test_edges_reach_every_node(model):
    booster, x = model
    trees = trees_of(booster)
    edges = list(edge_vectors(trees, x))
    for number, (first, end) in enumerate(zip(trees.root, [*trees.root[1:], len(trees.left)])):
        seen = {int(first)}
        for vector in edges[number]:
            node = int(first)
            while trees.left[node] != node:
                value, slot = vector[trees.slot[node] % trees.features], trees.slot[node]
                left = slot < trees.features if np.isnan(value) else value < trees.threshold[node]
                node = int(trees.left[node]) + (not left)
                seen.add(node)
        assert seen == set(range(first, end))
        splits = int((trees.left[first:end] != np.arange(first, end)).sum())
        assert len(edges[number]) == 6 * splits


# --- early stopping ---------------------------------------------------------------------------------------------------


def test_a_booster_stopped_early_counts_to_its_best_round():
    _, x = train(6)
    label = np.random.default_rng(6).random(len(x)) < 0.3
    data, other = xgb.DMatrix(x[:150], label[:150]), xgb.DMatrix(x[150:], label[150:])
    booster = xgb.train(
        {"objective": "binary:logistic", "nthread": 1, "eval_metric": "auc"},
        data,
        60,
        evals=[(other, "v")],
        early_stopping_rounds=5,
        verbose_eval=False,
    )
    best = booster.best_iteration + 1
    assert rounds_of(booster) == best < booster.num_boosted_rounds()
    scorer, cut = proved_scorer(booster, x), booster[:best]
    assert scorer.compiled and rounds_of(cut) == best and len(trees_of(booster).root) == best
    assert [scorer.score(v) for v in x] == cut.inplace_predict(x).tolist()
    assert [Scorer(None, lambda: booster).score(v) for v in x[:20]] == cut.inplace_predict(x[:20]).tolist()
    assert (contributions(booster, x) == contributions(cut, x)).all()


# --- the proof and the way out ----------------------------------------------------------------------------------------


def test_single_scores_are_plain_floats_equal_to_the_batch(model):
    booster, x = model
    scorer = proved_scorer(booster, x)
    assert scorer.compiled and scorer.reason == ""
    scores = [scorer.score(v) for v in x]
    assert all(type(s) is float for s in scores) and (bits(scores) == bits(booster.inplace_predict(x))).all()
    with pytest.raises(ValueError, match="6 features, not 5"):
        scorer.score(x[0, :5])
    with pytest.raises(ValueError, match="vectors of 6 features"):
        score_many(trees_of(booster), x[:, :5])
    with pytest.raises(ValueError, match="proved on feature vectors"):
        proved_scorer(booster, x[:0])


def changed(trees, part, place, value):
    array = getattr(trees, part).copy()
    array[place] = value
    return trees._replace(**{part: array})


@pytest.mark.parametrize(
    "part", ["threshold up", "threshold down", "feature", "direction", "child", "leaf", "base", "left out"]
)
def test_doctored_trees_are_caught_and_xgboost_scores(model, part, monkeypatch):
    booster, x = model
    trees = trees_of(booster)
    split, leaf = np.flatnonzero(trees.left != np.arange(len(trees.left)))[3], np.argmax(trees.value)
    f, n = trees.slot[split], trees.features
    wrong = {
        "threshold up": lambda: changed(
            trees, "threshold", split, np.nextafter(trees.threshold[split], np.float32(np.inf))
        ),
        "threshold down": lambda: changed(
            trees, "threshold", split, np.nextafter(trees.threshold[split], np.float32(-np.inf))
        ),
        "feature": lambda: changed(trees, "slot", split, (f + 1) % n + n * (f >= n)),
        "direction": lambda: changed(trees, "slot", split, (f + n) % (2 * n)),
        "child": lambda: changed(trees, "left", split, trees.left[split] + 1),
        "leaf": lambda: changed(trees, "value", leaf, trees.value[leaf] * np.float32(1.001)),
        "base": lambda: trees._replace(base=np.nextafter(trees.base, np.float32(1)) + np.float32(1e-6)),
        "left out": lambda: trees._replace(root=trees.root[:-1]),
    }[part]()
    monkeypatch.setattr("fraud_poc.model.trees.read_trees", lambda model: wrong)
    scorer = proved_scorer(booster, x)
    assert not scorer.compiled and "differ from XGBoost's" in scorer.reason
    assert [scorer.score(v) for v in x[:50]] == booster.inplace_predict(x[:50]).tolist()


@pytest.mark.parametrize(
    "parameters, reason",
    [
        ({"objective": "reg:squarederror"}, "objective='reg:squarederror'"),
        ({"objective": "multi:softprob", "num_class": 3, "base_score": None}, "multi:softprob"),
        ({"booster": "dart", "rate_drop": 0.3}, "booster='dart'"),
        ({"booster": "gblinear"}, "booster='gblinear'"),
    ],
)
def test_other_models_are_refused_by_name(parameters, reason):
    booster, x = train(7, rounds=3, **parameters)
    with pytest.raises(ValueError, match=reason):
        trees_of(booster)
    scorer = proved_scorer(booster, x)
    assert not scorer.compiled and reason in scorer.reason
    if "gblinear" not in reason and "multi" not in reason:  # those two have no single score in place
        assert scorer.score(x[0]) == booster.inplace_predict(x[:1])[0]


def test_categorical_splits_are_refused():
    import pandas as pd

    rng = np.random.default_rng(8)
    frame = pd.DataFrame({"c": pd.Categorical(rng.integers(0, 4, 200)), "x": rng.normal(size=200)})
    booster = xgb.train(
        {"objective": "binary:logistic", "max_cat_to_onehot": 1},
        xgb.DMatrix(frame, (frame["c"].cat.codes % 2).to_numpy(), enable_categorical=True),
        3,
    )
    with pytest.raises(ValueError, match="tree 0 of the model has categorical splits"):
        trees_of(booster)


@pytest.mark.parametrize(
    "name, node, value, words",
    [
        ("left_children", 0, 10**6, "no nodes of a tree"),
        ("right_children", 1, -1, "no nodes of a tree"),
        ("left_children", 1, 0, "no nodes of a tree"),
        ("right_children", 2, 1, "no nodes of a tree"),
        ("split_indices", 0, 6, "splits on feature 6, and there are 6"),
        ("split_indices", 0, -1, "splits on feature -1"),
        ("split_conditions", 0, float("nan"), "must be finite"),
        ("split_conditions", 0, float("-inf"), "must be finite"),
    ],
)
def test_tables_that_lead_astray_are_rejected(model, name, node, value, words):
    booster, x = model
    text = json.loads(booster.save_raw("json"))
    text["learner"]["gradient_booster"]["model"]["trees"][4][name][node] = value
    doctored = json.dumps(text).encode()
    with pytest.raises(ValueError, match="tree 4 .*" + words):
        read_trees(doctored)
    trees, reason = proved_trees(booster, doctored, x)
    assert trees is None and words in reason
    assert Scorer(trees, lambda: booster, reason).score(x[0]) == booster.inplace_predict(x[:1])[0]


# --- contributions ----------------------------------------------------------------------------------------------------


def test_contributions_add_up_to_the_logit(model):
    booster, x = model
    shares = contributions(booster, x)
    assert shares.shape == (len(x), x.shape[1] + 1)
    np.testing.assert_allclose(shares.sum(1), booster.inplace_predict(x, predict_type="margin"), atol=1e-4)
    assert (shares[:, -2] == 0).all()  # of the feature that never varies
    with pytest.raises(ValueError, match="feature 2 of vector 1 is inf"):
        contributions(booster, np.where(np.arange(12).reshape(2, 6) == 8, np.inf, 1).astype(np.float32))


def test_feature_names_of_the_booster_are_kept():
    _, x = train(9)
    booster = xgb.train(
        {"objective": "binary:logistic", "nthread": 1}, xgb.DMatrix(x, x[:, 0] > 0, feature_names=list("abcdef")), 3
    )
    assert proved_scorer(booster, x).compiled and contributions(booster, x[:3]).shape == (3, 7)
    assert_same(booster, x)
