"""How fast is the sample generator on one core, Parquet written, and how much memory does it take?

    python benchmarks/sample.py [--orders 3000000]

Each run is a fresh process on one core. The largest run is cut short: it writes the first slices of the last batch of
a sample of 100 million orders. The last line is one JSON object.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

CONFIG = Path(__file__).parent.parent / "config" / "orders.toml"


class Enough(Exception):
    "The cut run has written enough."


def one_run(orders: int, stop_after: int) -> dict:
    "Make data on one core and measure; `stop_after` orders of the last batch alone when above 0."
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)

    from fraud_poc.core.settings import load_settings
    from fraud_poc.data.sample import make_data, write_batch
    from fraud_poc.data.shop import slices_of

    settings = load_settings(CONFIG, {"sample.orders": orders, "sample.customers": max(1, orders * 2 // 15)})
    done = [0]

    def tell(count: int) -> None:
        done[0] += count
        if done[0] >= stop_after:
            raise Enough

    with tempfile.TemporaryDirectory() as folder:
        make_data(
            load_settings(CONFIG, {"sample.orders": 1000}), Path(folder)
        )  # imports and first calls are not measured
        wall, cpu = time.perf_counter(), time.process_time()
        if stop_after:
            try:
                write_batch(
                    settings.sample,
                    slices_of(settings.sample)[-1].batch,
                    (Path(folder) / "orders", Path(folder) / "labels"),
                    tell,
                )
            except Enough:
                size = float("nan")
        else:
            done[0] = make_data(settings, Path(folder), workers=1)["orders"]
            size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet")) / done[0]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "orders": orders,
        "written": done[0],
        "wall_s": wall,
        "cpu_s": cpu,
        "per_second": done[0] / wall,
        "per_cpu_second": done[0] / cpu,
        "bytes_per_order": size,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def fresh(*arguments: int) -> dict:
    "A run in a process of its own, so that its peak memory is its own."
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(one_run, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--orders", type=int, default=3_000_000, help="orders of the measured run (default: %(default)s)"
    )
    measured = parser.parse_args().orders
    runs = [fresh(max(1, measured // 10), 0), fresh(measured, 0), fresh(100_000_000, min(measured, 3_000_000))]
    print(
        f"{'sample of':>12} {'written':>11} {'wall s':>7} {'CPU s':>7} {'orders/s':>10} {'a CPU s':>10} "
        f"{'bytes each':>10} {'peak MB':>8}"
    )
    for run in runs:
        print(
            f"{run['orders']:>12,} {run['written']:>11,} {run['wall_s']:>7.2f} {run['cpu_s']:>7.2f} "
            f"{run['per_second']:>10,.0f} {run['per_cpu_second']:>10,.0f} {run['bytes_per_order']:>10.1f} "
            f"{run['peak_memory_mb']:>8.0f}"
        )
    print(
        json.dumps(
            {
                "orders_per_second": round(runs[1]["per_second"]),
                "orders_per_cpu_second": round(runs[1]["per_cpu_second"]),
                "orders_per_cpu_second_small": round(runs[0]["per_cpu_second"]),
                "orders_per_cpu_second_100m": round(runs[2]["per_cpu_second"]),
                "peak_memory_mb": round(runs[1]["peak_memory_mb"]),
                "peak_memory_mb_100m": round(runs[2]["peak_memory_mb"]),
            }
        )
    )


if __name__ == "__main__":
    main()
