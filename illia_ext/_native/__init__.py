"""The compiled library: how it is built, and how it is loaded."""
