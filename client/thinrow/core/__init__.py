"""Code that client and server share; optional dependencies are imported when needed."""
