"""The recipes of ``thinrow demo``: data, models that read them, and what to predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from thinrow.demo.sample_data import complete_journey, longest, movielens_100k
from thinrow.store.times import DAY_MS

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinrow.demo.sample_data import SampleData

__all__ = ["RECIPES", "Dataset", "Recipe", "Tenant"]

Dataset = Literal["completejourney", "movielens"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tenant:
    """One of the models that read the same store, each as long and as wide as it needs."""

    name: str
    sequence_length: int
    """Newest events of a history; 0: all."""
    traits: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Recipe for one of the data sets."""

    load: Callable[[], SampleData]
    cadence_ms: int | None
    """Time between the store's generations; None to cut them as ``thinrow research`` does."""
    tenants: tuple[Tenant, ...]
    """The shortest first."""
    target: str
    """Trait that the model learns to predict."""
    repeats: bool
    """True where its value can come again."""
    lengths: tuple[int, int]
    """Lengths that it is trained at; 0: all."""
    remark: str
    """Remark on the data."""


SHORT = Tenant(name="short", sequence_length=50, traits=("item_id",))

RECIPES: dict[Dataset, Recipe] = {
    "completejourney": Recipe(
        load=lambda: longest(complete_journey(), users=200),
        cadence_ms=DAY_MS,
        tenants=(
            SHORT,
            Tenant(
                name="medium",
                sequence_length=500,
                traits=("event_ts", "item_id", "quantity", "sales_value"),
            ),
            Tenant(
                name="whole",
                sequence_length=0,
                traits=(
                    *("event_ts", "item_id", "quantity", "sales_value", "retail_disc"),
                    *("coupon_disc", "coupon_match_disc", "store_id", "week"),
                ),
            ),
        ),
        target="item_id",
        repeats=True,
        lengths=(16, 500),
        remark="The data are a grocer's, of a year; their authors call them simulated. The demo "
        "takes the 200 households with the longest histories, since ThinRow is made for such.",
    ),
    "movielens": Recipe(
        load=lambda: longest(movielens_100k(), users=100),
        cadence_ms=None,
        tenants=(
            SHORT,
            Tenant(name="whole", sequence_length=0, traits=("event_ts", "item_id", "rating")),
        ),
        target="item_id",
        repeats=False,
        lengths=(16, 0),
        remark="The demo takes the 100 people with the most ratings. Even theirs are short "
        "histories, so there is little to gain. Long ones are the default: thinrow demo",
    ),
}
