"""Systems that users have today, each set up as its own documentation recommends."""
