"""Trains Meta's DlrmHSTU, unchanged, from thin rows, on the CPU.

It needs the public generative-recommenders repository and what that imports::

    git clone https://github.com/meta-recsys/generative-recommenders
    pip install --no-deps torchrec==1.9.2 fbgemm-gpu-cpu==1.8.0 torchmetrics==1.0.3
    pip install tensordict pyvers tqdm pyre-extensions lightning-utilities iopath psutil pandas
    pip install triton

After ``thinrow demo --dataset movielens``, serve its store in one terminal, and train in another::

    thinrow serve --store .demo/movielens/store
    PYTHONPATH=generative-recommenders python examples/dlrm_hstu.py \\
        --rows .demo/movielens/rows.parquet --server 127.0.0.1:7878
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from generative_recommenders.common import HammerKernel
from generative_recommenders.dlrm_v3.datasets.dataset import Samples
from generative_recommenders.modules.dlrm_hstu import DlrmHSTU, DlrmHSTUConfig
from generative_recommenders.modules.multitask_module import MultitaskTaskType, TaskConfig
from thinrow.client import Projection
from thinrow.client.torch import LoaderConfig, ThinRowLoader
from torchrec.modules.embedding_configs import EmbeddingConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from thinrow.client.torch import TensorBatch

SEQUENCE_LENGTH = 64
TABLE_ROWS = 4096
"""Ids are taken modulo this; the original's tables have ten million rows."""
EMBEDDING_WIDTH = 32
LIKED_FROM = 4
"""Ratings from this value on are positive labels."""
UIH = ["user_id", "movie_id", "action_timestamp", "item_weights", "movie_rating"]
CANDIDATE = ["item_movie_id", "item_query_time", "item_action_weights", "item_movie_rating"]

CONFIG = DlrmHSTUConfig(
    max_seq_len=SEQUENCE_LENGTH + 2,  # a history, its user, its candidate
    max_num_candidates=1,
    hstu_num_heads=2,
    hstu_attn_linear_dim=16,
    hstu_attn_qk_dim=16,
    hstu_attn_num_layers=2,
    hstu_embedding_table_dim=EMBEDDING_WIDTH,
    hstu_preprocessor_hidden_dim=32,
    hstu_transducer_embedding_dim=EMBEDDING_WIDTH,
    contextual_feature_to_max_length={"user_id": 1},
    contextual_feature_to_min_uih_length={"user_id": 20},
    user_embedding_feature_names=["movie_id", "user_id"],
    item_embedding_feature_names=["item_movie_id"],
    uih_post_id_feature_name="movie_id",
    uih_action_time_feature_name="action_timestamp",
    uih_weight_feature_name="item_weights",
    candidates_querytime_feature_name="item_query_time",
    candidates_weight_feature_name="item_action_weights",
    candidates_watchtime_feature_name="item_movie_rating",
    hstu_uih_feature_names=UIH,
    hstu_candidate_feature_names=CANDIDATE,
    merge_uih_candidate_feature_mapping=list(zip(UIH[1:], CANDIDATE, strict=True)),
    action_weights=[1, 2, 4, 8, 16],
    multitask_configs=[TaskConfig("liked", 1, MultitaskTaskType.BINARY_CLASSIFICATION)],
)


def to_samples(batch: TensorBatch) -> Samples:
    """Makes of a batch what DlrmHSTU takes: its histories, and one candidate for each.

    Everything is int64, and times are in seconds. The user comes before the history, as a feature
    of length 1. Histories hold the newest events already; the model's own readers keep the oldest.
    """
    ratings, label = batch.values["rating"].long(), batch.columns["label_rating"].long()
    inputs = replace(
        batch,
        values={
            "movie_id": batch.values["item_id"] % TABLE_ROWS,
            "action_timestamp": batch.values["event_ts"] // 1000,
            "item_weights": 1 << (ratings - 1),
            "movie_rating": ratings,
        },
        columns={
            "user_id": batch.columns["user_id"] % TABLE_ROWS,
            "item_movie_id": batch.columns["label_item_id"] % TABLE_ROWS,
            "item_query_time": batch.columns["request_ts"] // 1000,
            "item_action_weights": (label >= LIKED_FROM).long(),
            "item_movie_rating": label,
        },
    )
    return Samples(
        uih_features_kjt=inputs.to_kjt(UIH[1:], contextual=UIH[:1]),
        candidates_features_kjt=inputs.to_kjt([], contextual=CANDIDATE),
    )


def make_model() -> DlrmHSTU:
    """DlrmHSTU with small tables, on the CPU and with its kernels in plain PyTorch."""
    tables = {
        name: EmbeddingConfig(
            name=name,
            num_embeddings=TABLE_ROWS,
            embedding_dim=EMBEDDING_WIDTH,
            feature_names=features,
        )
        for name, features in (
            ("movie_id", ["movie_id", "item_movie_id"]),
            ("user_id", ["user_id"]),
        )
    }
    model = DlrmHSTU(CONFIG, tables, is_inference=False, bf16_training=False)
    model.set_hammer_kernel(HammerKernel.PYTORCH)
    # They are made without memory, so that several ranks can share them out.
    for table in model._embedding_collection.to_empty(device="cpu").parameters():
        torch.nn.init.normal_(table, std=EMBEDDING_WIDTH**-0.5)
    return model


def train(model: DlrmHSTU, batches: Iterable[TensorBatch]) -> Iterator[float]:
    """Takes a step on each batch; yields its loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for batch in batches:
        samples = to_samples(batch)
        _, _, losses, *_ = model(samples.uih_features_kjt, samples.candidates_features_kjt)
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def make_loader(rows: str, server: str) -> ThinRowLoader:
    """Streams the newest events of every example."""
    return ThinRowLoader(
        rows,
        server,
        Projection(SEQUENCE_LENGTH, traits=("item_id", "rating", "event_ts")),
        LoaderConfig(batch_examples=128),
    )


def main() -> None:
    """Trains for one pass over the rows."""
    parser = argparse.ArgumentParser(description="Trains DlrmHSTU from thin rows.")
    parser.add_argument("--rows", required=True, help="files of thin rows")
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    options = parser.parse_args()
    with make_loader(options.rows, options.server) as loader:
        for step, loss in enumerate(train(make_model(), loader), start=1):
            if step % 10 == 0:
                print(f"step {step}: loss {loss:.4f}")
        print(loader.starvation)


if __name__ == "__main__":
    main()
