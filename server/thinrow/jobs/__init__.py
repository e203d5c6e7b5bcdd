"""Jobs that commands run: backfill, export, materialize, verify, slim."""
