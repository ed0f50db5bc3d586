"""Evidence that the numbers are right and stay right: `make validation` runs it all and writes docs/validation.md."""
