"""How fast are 20 window features, by our fold and by other libraries?

    python benchmarks/batch.py [--orders 1000000] [--large 10000000] [--repeats 3] [--keep FOLDER]

Generated orders with skewed customers are ingested; time, amount and the keys of customer and address are handed to
every engine as the same file of ready integer columns. Of each order, over its customer's earlier orders: count, sum,
mean and maximum of the amount over 1 hour, 1, 7 and 30 days, count and distinct addresses over the lifetime, time
since the last and since the first order. All results are compared, value by value.

What is measured: CPU seconds (user and system) of the computation alone, from columns in memory to columns in memory
in the order of the input. Each engine runs in a fresh process and in one thread, and does the whole work once
unmeasured, so that nothing is compiled or allocated for the first time. The processes take turns; shown are medians.
Peak memory is that of the process, the input included. pandas works on every tenth customer.

Then the whole `features` step through Dask, from Parquet to Parquet, states included, with this table; ten times as
many orders; and a key that holds a third of all events. The last line is one JSON object.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
WINDOWS = {"1h": 3_600_000, "1d": 86_400_000, "7d": 604_800_000, "30d": 2_592_000_000}
COLUMNS = [f"{what}_{w}" for w in WINDOWS for what in ("count", "sum", "mean", "max")] + [
    "since",
    "age",
    "count",
    "distinct",
]
ALONE = {
    "POLARS_MAX_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ARROW_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
}


# --- the engines: each gives a function from the input to whatever it computes, and one from that to columns ----------


def our_settings(**batch):
    "Orders with the table of 20 rows; 256 exact events, more than a customer has in 30 days: all agree."
    from fraud_poc.core.settings import load_settings

    over = json.dumps([*WINDOWS])
    rows = [
        f'Count(by="customer_id", over={over})',
        'Count(by="customer_id", over="lifetime")',
        'TimeSince(by="customer_id")',
        'Age(by="customer_id")',
        'Distinct("ip_addr", by="customer_id", over="lifetime")',
        *(f'{kind}("order_amount", by="customer_id", over={over})' for kind in ("Sum", "Mean", "Max")),
    ]
    return load_settings(
        ROOT / "config" / "orders.toml",
        {"features.rows": rows, "features.exact_events": 256} | {f"batch.{k}": v for k, v in batch.items()},
    )


def our_names() -> list[str]:
    amount = "order_amount_{}_{}_by_customer_id"
    names = {f"{what}_{w}": amount.format(what, w) for w in WINDOWS for what in ("sum", "mean", "max")} | {
        f"count_{w}": f"count_{w}_by_customer_id" for w in WINDOWS
    }
    names |= {
        "since": "time_since_by_customer_id",
        "age": "age_by_customer_id",
        "count": "count_lifetime_by_customer_id",
        "distinct": "ip_addr_distinct_lifetime_by_customer_id",
    }
    return [names[column] for column in COLUMNS]


def fold(dtype=np.float32):
    from fraud_poc.features.items import features_of_arrays
    from fraud_poc.features.table import build_table

    table = build_table(our_settings())
    places = [table.names.index(name) for name in our_names()]
    load = lambda t: {
        "time": t["t"].to_numpy(),
        "amount": t["amount"].to_numpy(),
        "customer_id": t["customer"].to_numpy(),
        "ip_addr": t["ip"].to_numpy(),
    }
    return load, lambda columns: features_of_arrays(table, columns, dtype), lambda r: dict(zip(COLUMNS, r[:, places].T))


def fold64():
    return fold(np.float64)


def major(columns: dict) -> dict:
    """What the others compute, in our units and with our marks for nothing.

    Amounts come from cents and times from ms; no sum is 0, no first order no age.
    """
    units = {
        name: 100 if name.startswith(("sum", "mean", "max")) else 1000 if name in ("since", "age") else 1
        for name in COLUMNS
    }
    values = {name: np.asarray(columns[name], np.float64) / unit for name, unit in units.items()}
    values |= {name: np.nan_to_num(v) for name, v in values.items() if name.startswith(("sum", "count", "distinct"))}
    return values | {"age": np.where(values["count"] == 0, np.nan, values["age"])}


def polars_load(t):
    import polars as pl

    return pl.from_arrow(t).with_columns(pl.col("t").cast(pl.Datetime("ms")))


def polars_columns(frame):
    return major({name: frame[name].to_physical().cast(float).to_numpy() for name in COLUMNS})


def polars_lifetime() -> list:
    "The four features that are no windows; needs a column `new`, 1 at a customer's first order from an address."
    import polars as pl

    t, new = pl.col("t"), pl.col("new")
    return [
        (t - t.shift(1)).over("customer").alias("since"),
        (t - t.first()).over("customer").alias("age"),
        pl.int_range(pl.len()).over("customer").alias("count"),
        (new.cum_sum().over("customer") - new).alias("distinct"),
    ]


def polars_sorted(frame):
    import polars as pl

    new = pl.struct("customer", "ip").is_first_distinct().cast(pl.Int32)
    return (
        frame.with_row_index("row").sort("customer", maintain_order=True).with_columns(one=pl.lit(1, pl.Int64), new=new)
    )


def polars_over():
    "The ordinary way: `rolling_*_by(...).over(customer)`."
    import polars as pl

    def run(frame):
        rolled = []
        for name, ms in WINDOWS.items():
            window = dict(by="t", window_size=f"{ms}ms", closed="none")  # (t - w, t): times of a customer differ
            amount = pl.col("amount")
            rolled += [
                pl.col("one").rolling_sum_by(**window).over("customer").alias(f"count_{name}"),
                amount.rolling_sum_by(**window).over("customer").alias(f"sum_{name}"),
                amount.rolling_mean_by(**window).over("customer").alias(f"mean_{name}"),
                amount.rolling_max_by(**window).over("customer").alias(f"max_{name}"),
            ]
        return polars_sorted(frame).select("row", *rolled, *polars_lifetime()).sort("row")

    return polars_load, run, polars_columns


def polars_rolling():
    "Its fastest documented way: one `DataFrame.rolling(index_column, period, group_by)` for each window."
    import polars as pl

    def run(frame):
        frame, rolled = polars_sorted(frame), []
        for name, ms in WINDOWS.items():
            amount = pl.col("amount")
            rolled.append(
                frame.rolling("t", period=f"{ms}ms", closed="none", group_by="customer")
                .agg(
                    pl.len().alias(f"count_{name}"),
                    amount.sum().alias(f"sum_{name}"),
                    amount.mean().alias(f"mean_{name}"),
                    amount.max().alias(f"max_{name}"),
                )
                .drop("customer", "t")
            )
        return pl.concat([frame.select("row", *polars_lifetime()), *rolled], how="horizontal").sort("row")

    return polars_load, run, polars_columns


def polars_shifted():
    "A trick: customers laid one after another on one clock, far enough apart, so that `rolling_*_by` needs no groups."
    import polars as pl

    def run(frame):
        frame, rolled = polars_sorted(frame), []
        clock = pl.col("t").cast(pl.Int64) - pl.col("t").cast(pl.Int64).min()
        frame = frame.with_columns(
            clock=clock + pl.col("customer").rle_id().cast(pl.Int64) * (clock.max() + 2 * max(WINDOWS.values()))
        )
        for name, ms in WINDOWS.items():
            window, amount = dict(by="clock", window_size=f"{ms}i", closed="none"), pl.col("amount")
            rolled += [
                pl.col("one").rolling_sum_by(**window).alias(f"count_{name}"),
                amount.rolling_sum_by(**window).alias(f"sum_{name}"),
                amount.rolling_mean_by(**window).alias(f"mean_{name}"),
                amount.rolling_max_by(**window).alias(f"max_{name}"),
            ]
        return frame.select("row", *rolled, *polars_lifetime()).sort("row")

    return polars_load, run, polars_columns


def duckdb_query() -> str:
    "The ordinary way: RANGE frames of intervals, one aggregate for each feature."
    frames = [
        f"w{name} AS (PARTITION BY customer ORDER BY t RANGE BETWEEN INTERVAL {ms - 1} MILLISECONDS PRECEDING AND "
        "INTERVAL 1 MILLISECOND PRECEDING)"
        for name, ms in WINDOWS.items()
    ]
    rolled = [
        f"count(*) OVER w{w} AS count_{w}, sum(amount) OVER w{w} AS sum_{w}, avg(amount) OVER w{w} AS mean_{w}, "
        f"max(amount) OVER w{w} AS max_{w}"
        for w in WINDOWS
    ]
    return f"""SELECT row, {", ".join(rolled)}, row_number() OVER o - 1 AS count,
        epoch_ms(t) - lag(epoch_ms(t)) OVER o AS since,
        epoch_ms(t) - first_value(epoch_ms(t)) OVER o AS age, count(DISTINCT ip) OVER past AS distinct_
        FROM orders WINDOW {", ".join(frames)}, o AS (PARTITION BY customer ORDER BY t),
        past AS (PARTITION BY customer ORDER BY t ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) ORDER BY row"""


def duckdb_tuned_query() -> str:
    """The fastest that we found.

    Integers for times, the current row excluded, means from sums and counts, distinct values from first ones.
    """
    frames = [
        f"w{name} AS (PARTITION BY customer ORDER BY ms RANGE BETWEEN {ms - 1} PRECEDING AND CURRENT ROW EXCLUDE "
        "CURRENT ROW)"
        for name, ms in WINDOWS.items()
    ]
    rolled = [
        f"count(*) OVER w{w} AS count_{w}, sum(amount) OVER w{w} AS sum_{w}, max(amount) OVER w{w} AS max_{w}"
        for w in WINDOWS
    ]
    means = ", ".join(f"sum_{w} / count_{w} AS mean_{w}" for w in WINDOWS)
    return f"""SELECT *, {means} FROM (SELECT row, {", ".join(rolled)}, row_number() OVER o - 1 AS count,
        ms - lag(ms) OVER o AS since,
        ms - first_value(ms) OVER o AS age, sum(new) OVER past AS distinct_
        FROM (SELECT *, (row_number() OVER (PARTITION BY customer, ip ORDER BY ms) = 1)::INT AS new FROM orders)
        WINDOW {", ".join(frames)}, o AS (PARTITION BY customer ORDER BY ms),
        past AS (PARTITION BY customer ORDER BY ms ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)) ORDER BY row"""


def duckdb(query=duckdb_query):
    import duckdb

    connection = duckdb.connect(config={"threads": 1})

    def load(t):
        connection.register("given", t.append_column("row", pa.array(np.arange(len(t)))))
        connection.execute(
            "CREATE TABLE orders AS SELECT row, make_timestamp(t * 1000) AS t, t AS ms, customer, ip, amount FROM given"
        )

    columns = lambda t: major(
        {name: t["distinct_" if name == "distinct" else name].cast(pa.float64()).to_numpy() for name in COLUMNS}
    )
    return load, lambda _: connection.sql(query()).to_arrow_table(), columns


def duckdb_tuned():
    return duckdb(duckdb_tuned_query)


def pandas():
    import pandas as pd

    def load(t):
        frame = t.to_pandas()
        return (
            frame[frame["customer"] % 10 == 0]
            .assign(t=lambda f: f["t"].astype("datetime64[ms]"))
            .reset_index(drop=True)
        )

    def run(frame):
        frame = frame.sort_values("customer", kind="stable")
        groups, rolled = frame.set_index("t").groupby("customer", sort=False)["amount"], {}
        for name, ms in WINDOWS.items():
            window = groups.rolling(pd.Timedelta(ms, "ms"), closed="neither", min_periods=0)
            rolled |= {f"{what}_{name}": getattr(window, what)().to_numpy() for what in ("count", "sum", "mean", "max")}
        groups, new = frame.groupby("customer", sort=False), (~frame.duplicated(["customer", "ip"])).astype("int64")
        rest = {
            "since": groups["t"].diff(),
            "age": frame["t"] - groups["t"].transform("first"),
            "count": groups.cumcount(),
            "distinct": new.groupby(frame["customer"]).cumsum() - new,
        }
        return pd.DataFrame(rolled, index=frame.index).assign(**rest).sort_index()

    ms = lambda values: values / pd.Timedelta(1, "ms") if values.dtype.kind == "m" else values
    return load, run, lambda f: major({name: ms(f[name]).to_numpy() for name in COLUMNS})


ENGINES = {
    "our fold": fold,
    "polars, rolling_*_by over": polars_over,
    "polars, DataFrame.rolling": polars_rolling,
    "polars, one shifted clock": polars_shifted,
    "duckdb, RANGE frames": duckdb,
    "duckdb, tuned by hand": duckdb_tuned,
    "pandas, every 10th customer": pandas,
}


# --- measuring --------------------------------------------------------------------------------------------------------


def measured(call, times: int) -> dict:
    "CPU and wall seconds of a call, done once before."
    call()
    cpu, wall = [], []
    for _ in range(times):
        start = time.process_time(), time.perf_counter()
        result = call()
        cpu.append(time.process_time() - start[0])
        wall.append(time.perf_counter() - start[1])
        del result
    return {"cpu": cpu, "wall": wall, "peak_mb": peak_mb()}


def peak_mb() -> float:
    "Largest memory of this process so far. (ru_maxrss also counts that of the process that started it.)"
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return int(next(text for text in status.read_text().splitlines() if text.startswith("VmHWM")).split()[1]) / 2**10


def run_engine(name: str, source: str, target: str, times: int) -> dict:
    pa.set_cpu_count(1)
    load, run, columns = (fold64 if name == "fold64" else ENGINES[name])()
    table = feather.read_table(source, memory_map=False)
    given = load(table)
    del table
    found = measured(lambda: run(given), times)
    result = run(given)
    if target:
        feather.write_feather(pa.table(columns(result)), target, compression="uncompressed")
    return found | {"rows": len(result)}


def run_step(folder: str, times: int) -> dict:
    "The features step on an ingested log."
    from fraud_poc.features.batch import compute_features

    settings = our_settings(folder=folder)
    found = measured(lambda: compute_features(settings, replace=True), times)
    return found | {"rows": compute_features(settings)["events"]}


def fresh(**task) -> dict:
    "A task in a process of its own."
    done = subprocess.run(
        [sys.executable, __file__, "--task", json.dumps(task)],
        env=os.environ | (ALONE if "engine" in task else {}),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{task} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def merged(runs: list[dict]) -> dict:
    "Medians over all calls of several processes."
    every = lambda what: [value for run in runs for value in run[what]]
    return {
        "rows": runs[0]["rows"],
        "cpu": statistics.median(every("cpu")),
        "wall": statistics.median(every("wall")),
        "least": min(every("cpu")),
        "most": max(every("cpu")),
        "peak_mb": max(run["peak_mb"] for run in runs),
    }


# --- data -------------------------------------------------------------------------------------------------------------


def make_log(folder: Path, orders: int) -> None:
    "Generated orders, ingested."
    from fraud_poc.core.settings import load_settings
    from fraud_poc.data.ingest import ingest
    from fraud_poc.data.sample import make_data

    settings = load_settings(
        ROOT / "config" / "orders.toml",
        {
            "sample.orders": orders,
            "sample.customers": max(1, orders * 2 // 15),
            "batch.folder": str(folder),
            "input.events": str(folder / "raw" / "orders"),
            "input.labels": str(folder / "raw" / "labels"),
        },
    )
    make_data(settings)
    ingest(settings)


def make_input(folder: Path, orders: int) -> Path:
    """The log's integer columns, in order.

    Of a customer's orders at one moment only the first is taken, so that all engines mean the same.
    """
    from fraud_poc.data.log import read_manifest, read_part

    if not (folder / "input.feather").exists():
        make_log(folder, orders)
        names = ["time", "order_amount", "customer_id_key", "ip_addr_key"]
        table = pa.concat_tables(
            [read_part(folder, "events", part["name"], names) for part in read_manifest(folder)["parts"]]
        )
        t, amount, customer, ip = [table[name].cast(pa.int64(), safe=False).to_numpy() for name in names]
        order = np.lexsort([t, customer])
        again = np.zeros(len(t), bool)
        again[order[1:]] = (np.diff(t[order]) == 0) & (np.diff(customer[order]) == 0)
        keep = ~again
        write_input(
            folder / "input.feather", t[keep], customer[keep].view(np.uint64), ip[keep].view(np.uint64), amount[keep]
        )
    return folder / "input.feather"


def write_input(path: Path, t, customer, ip, amount) -> None:
    feather.write_feather(
        pa.table({"t": t, "customer": customer, "ip": ip, "amount": amount}), path, compression="uncompressed"
    )


def make_spreads(source: Path) -> dict[str, Path]:
    "The same orders with other customers: evenly spread, and a third of all with one customer."
    table, rng = feather.read_table(source), np.random.default_rng(3)
    t, ip, amount = [table[name].to_numpy() for name in ("t", "ip", "amount")]
    even = rng.integers(1, 2**64, len(t) // 8, dtype=np.uint64)[rng.integers(0, len(t) // 8, len(t))]
    paths = {name: source.with_name(f"{name}.feather") for name in ("even", "hot")}
    write_input(paths["even"], t, even, ip, amount)
    write_input(paths["hot"], t, np.where(rng.random(len(t)) < 1 / 3, even[0], even), ip, amount)
    return paths


def differences(folder: Path, source: Path) -> dict[str, int]:
    """How many values of each engine differ from our fold in float64, and of our float32 from that fold.

    Relative 1e-12 for float64, counts and sums exactly; any bit for float32.
    """
    expected = feather.read_table(folder / "fold64.feather")
    tenth = np.flatnonzero(feather.read_table(source)["customer"].to_numpy() % 10 == 0)
    found = {}
    for name in ENGINES:
        got, wrong = feather.read_table(folder / f"{name.replace('*', '')}.feather"), 0
        for column in COLUMNS:
            theirs, ours = got[column].to_numpy(), expected[column].to_numpy()
            if name.startswith("pandas"):
                ours = ours[tenth]
            if name == "our fold":
                wrong += int((theirs.view(np.uint32) != ours.astype(np.float32).view(np.uint32)).sum())
                continue
            tolerance = 0 if column.startswith(("count", "distinct")) else 1e-12
            wrong += int(
                (
                    ~np.isclose(
                        theirs, ours, rtol=tolerance, atol=0 if not name.startswith("pandas") else 1e-6, equal_nan=True
                    )
                ).sum()
            )
        found[name] = wrong
    return found


# --- the report -------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


def line(name: str, run: dict, more: str = "") -> None:
    print(
        (
            f"{name:<30} {run['rows']:>10,} {run['cpu']:>8.2f} {run['least']:>7.2f} {run['most']:>7.2f} "
            f"{run['wall']:>8.2f} {run['rows'] / run['cpu']:>12,.0f} {run['peak_mb']:>8,.0f} {more}"
        ),
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--orders", type=int, default=1_000_000, help="orders that the engines compute (default: %(default)s)"
    )
    parser.add_argument(
        "--large", type=int, default=10_000_000, help="orders of the large run, 0 for none (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="processes of each engine, and calls in each (default: %(default)s)"
    )
    parser.add_argument(
        "--keep", type=Path, help="a folder for the data, used again by the next run (default: a temporary one)"
    )
    parser.add_argument("--task", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        task = json.loads(given.task)
        found = (
            run_engine(task["engine"], task["source"], task["target"], task["times"])
            if "engine" in task
            else run_step(task["step"], task["times"])
        )
        print(json.dumps(found))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        return report(given, given.keep or Path(temporary))


def report(given: argparse.Namespace, folder: Path) -> int:
    say(f"making {given.orders:,} orders")
    source = make_input(folder / f"{given.orders}", given.orders)
    runs = {name: [] for name in ENGINES}
    for turn in range(given.repeats):
        for name in ENGINES:
            say(f"turn {turn + 1} of {given.repeats}: {name}")
            target = str(folder / f"{name.replace('*', '')}.feather") if turn == 0 else ""
            runs[name].append(
                fresh(engine=name, source=str(source), target=target, times=given.repeats if name == "our fold" else 1)
            )
    fresh(engine="fold64", source=str(source), target=str(folder / "fold64.feather"), times=0)
    wrong = differences(folder, source)
    print(
        f"{'20 features, one thread':<30} {'rows':>10} {'CPU s':>8} {'least':>7} {'most':>7} {'wall s':>8} "
        f"{'rows/CPU s':>12} {'peak MB':>8} differing values"
    )
    engines = {name: merged(found) for name, found in runs.items()}
    for name, run in engines.items():
        line(name, run, f"{wrong[name]}")
    rate = {name: run["rows"] / run["cpu"] for name, run in engines.items()}
    ratio = {name: round(rate["our fold"] / value, 2) for name, value in rate.items()}

    say("a third of all events with one key")
    spreads, turns = make_spreads(source), {"even": [], "hot": [], "fold": [], "step": []}
    for _ in range(given.repeats):
        for name, path in [*spreads.items(), ("fold", source)]:
            turns[name].append(fresh(engine="our fold", source=str(path), target="", times=given.repeats))
        turns["step"].append(fresh(step=str(source.parent), times=given.repeats))
    share = {
        what: statistics.median(
            merged([fold])[what] / merged([step])[what] * step["rows"] / fold["rows"]
            for fold, step in zip(turns["fold"], turns["step"])
        )
        for what in ("cpu", "wall")
    }  # of turns side by side: a shared machine changes from minute to minute
    turns = {name: merged(found) for name, found in turns.items()}
    line("our fold, even spread", turns["even"])
    line("our fold, a third on one key", turns["hot"])
    print(
        f"\n{'features step through Dask':<30} {'rows':>10} {'CPU s':>8} {'least':>7} {'most':>7} {'wall s':>8} "
        f"{'rows/CPU s':>12} {'peak MB':>8} rows/wall s"
    )
    line("our fold again, in turns", turns["fold"], f"{turns['fold']['rows'] / turns['fold']['wall']:,.0f}")
    line("Parquet to Parquet, states", turns["step"], f"{turns['step']['rows'] / turns['step']['wall']:,.0f}")
    result = {
        "vs_polars": ratio["polars, rolling_*_by over"],
        "vs_polars_rolling": ratio["polars, DataFrame.rolling"],
        "vs_polars_shifted": ratio["polars, one shifted clock"],
        "vs_duckdb": ratio["duckdb, RANGE frames"],
        "vs_duckdb_tuned": ratio["duckdb, tuned by hand"],
        "vs_pandas": ratio["pandas, every 10th customer"],
        "dask_share": round(share["wall"], 3),
        "dask_share_cpu": round(share["cpu"], 3),
        "hot_key": round(turns["hot"]["cpu"] / turns["even"]["cpu"], 2),
    }
    if given.large:
        say(f"making {given.large:,} orders")
        large = make_input(folder / f"{given.large}", given.large)
        pairs, medians = {"step": [], "fold": []}, {}
        for turn in range(2):  # small and large side by side
            say(f"turn {turn + 1} of 2: the features step and the bare fold on them")
            pairs["step"].append([fresh(step=str(path.parent), times=1) for path in (source, large)])
            pairs["fold"].append(
                [fresh(engine="our fold", source=str(path), target="", times=1) for path in (source, large)]
            )
        for what, name in [("step", "Parquet to Parquet, states"), ("fold", "our fold, in memory")]:
            medians[what] = run = merged([big for _, big in pairs[what]])
            line(name, run, f"{run['rows'] / run['wall']:,.0f}")
        scale = lambda what, unit: round(
            statistics.median(merged([big])[unit] / merged([small])[unit] for small, big in pairs[what]), 2
        )
        result |= {
            "ratio_10m": scale("step", "wall"),
            "ratio_10m_cpu": scale("step", "cpu"),
            "ratio_10m_fold": scale("fold", "wall"),
            "ratio_10m_fold_cpu": scale("fold", "cpu"),
            "peak_mb_10m": round(medians["step"]["peak_mb"]),
            "dask_share_10m": round(
                statistics.median(
                    merged([fold])["wall"] / merged([step])["wall"]
                    for (_, step), (_, fold) in zip(pairs["step"], pairs["fold"])
                ),
                3,
            ),
        }
    result |= {"rows_per_cpu_second": round(rate["our fold"]), "differing": sum(wrong.values())}
    print(json.dumps(result))
    return int(result["differing"] > 0)


if __name__ == "__main__":
    sys.exit(main())
