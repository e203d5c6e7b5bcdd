"""The explorer: a page that shows histories as serving saw them."""
