"""An oracle that is not ours: the features that the authors of the Fraud Detection Handbook computed."""

import sys
from pathlib import Path

import pyarrow.parquet as pq

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import handbook_features  # noqa: E402


def test_features_equal_the_authors(shared, tmp_path):
    folder = shared / "handbook"
    handbook_features.april_and_may(folder / "transactions.parquet", tmp_path / "raw.parquet")
    settings, _ = handbook_features.features_of(tmp_path / "raw.parquet", tmp_path / "cards")
    found = handbook_features.comparison(settings, pq.read_table(folder / "features_april_may.parquet").to_pandas())
    assert (
        len(found) == 1 + 14
        and found["rows"].max() == 585_177
        and found["rows"].min() == 585_177 - found.attrs["ties"]
        and 0 < found.attrs["ties"] < 100
    )
    assert found["differing"].sum() == 0, f"\n{found.to_string()}"
