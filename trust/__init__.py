"""Evidence that the numbers are right and stay right: `make trust` runs it all and writes docs/trust.md."""
