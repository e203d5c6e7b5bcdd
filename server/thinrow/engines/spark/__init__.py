"""Jobs on Apache Spark, with the same output as in one process."""
