"""Files and Arrow types as client and server read them; pyarrow and fsspec load lazily."""
