"""Histories as a DataFrame of Spark: the rows of the Arrow reader, in the types that Spark has."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from support.paths import ROOT
from support.spark_cluster import Sparked, active_session, properties, spark_home
from support.thin_rows import write_rows
from support.worlds import World, built_world
from thinrow.client import Projection
from thinrow.client.arrow import read
from thinrow.client.spark import register
from thinrow.errors import InputError
from thinrow.materialization.config import ServerConfig
from thinrow.materialization.server import Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sparked]:
    folder = tmp_path_factory.mktemp("spark")
    hidden = {"spark.sql.execution.pyspark.udf.hideTraceback.enabled": "true"}
    wanted = {**properties(folder, spark_master="local[1]"), **hidden}
    with active_session(folder, wanted) as session:
        yield session


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return built_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def address(world: World) -> Iterator[str]:
    config = ServerConfig(store=world.store, listen="127.0.0.1:0", metrics=None)
    with Server(config) as server:
        yield server.address


def loaded(spark: Sparked, options: dict[str, Any]) -> Any:  # noqa: ANN401
    register(spark.session)
    return spark.session.read.format("thinrow").options(**options).load()


def test_rows_are_those_of_the_arrow_reader(spark: Sparked, address: str, tmp_path: Path) -> None:
    write_rows(tmp_path, [60, 40], row_group=20)
    rows = str(tmp_path / "*.parquet")
    options = {"rows": rows, "target": address, "partition_rows": 20, "lookup_rows": 7}
    frame = loaded(spark, options)
    assert frame.rdd.getNumPartitions() == 5
    expected = read(rows, address, Projection()).read_all()
    assert len(expected) == 100
    assert frame.columns == expected.column_names
    assert frame.toArrow().to_pylist() == expected.to_pylist()

    wanted = Projection(sequence_length=3, traits=("rating", "brand"), truncation="head")
    some = {
        "traits": "rating, brand",
        "sequence_length": 3,
        "truncation": "head",
        "columns": "user_id",
    }
    expected = read(rows, address, wanted, columns=["user_id"]).read_all()
    assert loaded(spark, {**options, **some}).toArrow().to_pylist() == expected.to_pylist()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rows": ""}, r'UsageError: The reader for Spark needs \.option\("rows", …\)\.'),
        ({"trait": "brand"}, "UsageError: The reader for Spark has no option 'trait'; there are"),
        ({"sequence_length": "x"}, "UsageError: sequence_length is 'x', but must be a whole"),
        ({"partition_rows": "0"}, "UsageError: partition_rows is 0, but must be 1 or more"),
        ({"traits": "x"}, "RequestError: There is no trait 'x'; the store has"),
        ({"columns": "x"}, "InputError: The thin rows have no column 'x'"),
        ({"target": "nowhere"}, "UsageError: 'nowhere' is neither an address nor a folder"),
        ({"tenant": "a", "traits": "brand"}, "UsageError: The tenant 'a' has a projection"),
    ],
)
def test_a_mistake_is_one_sentence_before_any_task(
    spark: Sparked, address: str, tmp_path: Path, options: dict[str, str], sentence: str
) -> None:
    write_rows(tmp_path, [3])
    with pytest.raises(Exception, match=sentence) as caught:
        loaded(spark, {"rows": str(tmp_path), "target": address, **options})
    assert "Traceback" not in str(caught.value)


def test_types_that_spark_lacks_become_larger() -> None:
    spark_home()
    from pyspark.sql.pandas.types import to_arrow_schema
    from thinrow.client.spark.types import cast_batch, spark_schema

    big = 2**64 - 1
    cases = {
        "small": (pa.array([255], pa.uint8()), "smallint", 255),
        "middle": (pa.array([2**32 - 1], pa.uint32()), "bigint", 2**32 - 1),
        "large": (pa.array([[big, None]], pa.list_(pa.uint64())), None, [Decimal(big), None]),
        "half": (pa.array([[1.5]], pa.list_(pa.float16())), "array<float>", [1.5]),
        "vectors": (pa.array([[[1, 2], None]], pa.list_(pa.list_(pa.int8(), 2))), None, None),
        "words": (pa.array(["a"]).dictionary_encode(), "string", "a"),
        "struct": (pa.array([{"a": 7}], pa.struct([("a", pa.uint16())])), None, {"a": 7}),
    }
    batch = pa.RecordBatch.from_arrays([array for array, _, _ in cases.values()], list(cases))
    schema = spark_schema(batch.schema)
    cast = cast_batch(batch, to_arrow_schema(schema, timezone="UTC"))
    for name, (array, kind, value) in cases.items():
        assert kind is None or schema[name].dataType.simpleString() == kind
        expected = array.to_pylist()[0] if value is None else value
        assert cast.column(name).to_pylist() == [expected]
    assert schema["large"].dataType.simpleString() == "array<decimal(20,0)>"

    times = pa.RecordBatch.from_arrays([pa.array([1], pa.timestamp("ns"))], ["at"])
    with pytest.raises(InputError, match="The column at is timestamp"):
        cast_batch(times, to_arrow_schema(spark_schema(times.schema), timezone="UTC"))
    with pytest.raises(InputError, match=r"The column no is .*, which Spark lacks"):
        spark_schema(pa.schema([("no", pa.decimal256(60, 0))]))


def test_the_guide(
    spark: Sparked,
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (ROOT / "docs/guides/engines.md").read_text(encoding="utf-8")
    section = page.split("\n## Spark\n")[1].split("\n## ")[0]
    [program] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (tmp_path / "rows").mkdir()
    write_rows(tmp_path / "rows", [9])
    # The driver's Python workers have the folder of the session, not that of the test.
    program = program.replace("rows/*.parquet", f"{tmp_path}/rows/*.parquet")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(program.replace("localhost:7878", address), names)
    assert names["frame"].count() == 9
    assert names["spark"].sparkContext is spark.session.sparkContext
    assert "uih_status" in capsys.readouterr().out
