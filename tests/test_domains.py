"""A new domain is a configuration file and nothing else."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from support import house

from fraud_poc.core.settings import load_settings
from fraud_poc.data.ingest import ingest
from fraud_poc.data.log import read_manifest
from fraud_poc.features.batch import compute_features
from fraud_poc.features.state_files import features_folder, read_states
from fraud_poc.features.table import Stepper, build_table, step_event, step_label

PAYMENTS = """
[domain]
name = "payments"
[input]
events = "payments.csv"
labels = "disputes.csv"
[columns]
id = ["reference"]
time = "sent_at"
time_format = "epoch_ms"
timezone = "UTC"
amount = "yen"
decimals = 0
entities = ["payer", "payee"]
categories = ["channel"]
missing_values = ["NULL"]
[labels]
column = "outcome"
fraud_values = ["scam", "stolen"]
legitimate_values = ["settled"]
unresolved_values = []
other_values = "refuse"
time_column = "closed_at"
delay = ""
source = "chargeback"
priority = ["chargeback", "analyst", "customer", "rule"]
[limits]
min_amount = 1.0
max_amount = 1_000_000_000.0
earliest = "2020-01-01"
latest = "2030-01-01"
gap = "400d"
[features]
retention = "30d"
forget_after = "365d"
exact_events = 32
set_size = 8
rows = [
    'Count(by=["payer", "payee"], over=["1h", "1d"])',
    'Mean("yen", by="payer", over="30d")',
    'KnownBefore("payee", by="payer")',
    'SameAsLast("channel", by="payer")',
    'FraudCount(by="payee", over="lifetime")',
]
[batch]
folder = "out"
scheduler = ""
threads = 2
partitions = 3
part_rows = 50
step_rows = 80
"""


def test_a_domain_of_its_own(root, tmp_path):
    (tmp_path / "payments.toml").write_text(PAYMENTS + house.rest_of_settings(root, "payer"), encoding="utf-8")
    hour = 3_600_000
    start = 1_700_000_000_000 // hour * hour
    payments = [
        (f"p{i:03d}", start + i * hour // 2, 1000 + i, f"payer{i % 3}", f"payee{i % 5}", "app" if i % 7 else "web")
        for i in range(120)
    ]
    lines = [",".join(map(str, row)) for row in payments]
    (tmp_path / "payments.csv").write_text(
        "\n".join(["reference,sent_at,yen,payer,payee,channel", *lines]) + "\n", encoding="utf-8"
    )
    (tmp_path / "disputes.csv").write_text(
        f"reference,outcome,closed_at\np000,scam,{start + 30 * hour}\np005,settled,{start + 31 * hour}\n",
        encoding="utf-8",
    )

    settings = load_settings(tmp_path / "payments.toml")
    ingested = ingest(settings)
    report = compute_features(settings)
    assert (ingested["events"], ingested["labels"], report["events"], report["features"]) == (120, 2, 120, 8)
    assert report["entities"] == {"payer": 3, "payee": 5}

    table = build_table(settings)
    features = pa.concat_tables(
        [
            pq.read_table(features_folder(settings, table) / "parts" / f"{p['name']}.parquet")
            for p in read_manifest(settings.batch.folder)["parts"]
        ]
    ).to_pandas()
    assert list(features.columns) == ["seq", "flags_payer", "flags_payee", *table.names]
    # payer0 pays every 90 minutes: as of its tenth payment, nine are known, one of them in the last... none
    # within an hour
    tenth = features.iloc[27]
    assert tenth.count_1h_by_payer == 0 and tenth.count_1d_by_payer == 9
    assert tenth.yen_mean_30d_by_payer == np.float32(np.mean([1000 + i for i in range(0, 27, 3)]))
    assert tenth.payee_known_by_payer == 1 and features.payee_known_by_payer.iloc[0] == 0
    # the scam on p000 (to payee0) was known 30 hours after the start, between p060 and p061
    to_payee0 = features.fraud_count_lifetime_by_payee.iloc[::5]
    assert to_payee0.iloc[:12].eq(0).all() and to_payee0.iloc[12:].eq(1).all()
    assert sum(len(states) for states in read_states(settings, table, "payee")) == 5


def test_a_label_leaves_states_of_entities_that_learn_none_as_they_are(root):
    table = build_table(
        load_settings(
            root / "config" / "orders.toml",
            {"features.rows": ['FraudCount(by="customer_id", over="lifetime")', 'Count(by="email", over="1d")']},
        )
    )
    assert [(entity.by, bool(entity.labels)) for entity in table.entities] == [("customer_id", True), ("email", False)]
    stepper, keys = Stepper(table), {"customer_id": 7, "email": 8, "ip_addr": 0, "device": 0, "location": 0}
    states = step_event(stepper, 1_748_736_000_000, 1, 500, keys, [b"", b""])[2]
    after = step_label(stepper, 1_748_736_000_000, 1, 1, -1, states)
    assert after[0] != states[0] and after[1] == states[1] != b""
