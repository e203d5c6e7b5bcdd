"""Files and Arrow types as client and server both read them; pyarrow is imported when needed."""
